"""Build hook: compile the native twins where a C++ compiler is at hand; without one the package is pure Python."""

from __future__ import annotations

import importlib.util
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

BUILDING = Path("src/sostenuto/native/building.py")


class NativeTwins(BuildHookInterface):  # type: ignore[type-arg]
    """Puts the compiled libraries into the wheel, or next to the sources of an editable install."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, and mark the wheel as one for this platform when something was compiled."""
        root = Path(self.root)
        spec = importlib.util.spec_from_file_location("building", root / BUILDING)
        assert spec is not None
        assert spec.loader is not None
        building = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(building)
        if made := building.compile_twins():
            build_data["artifacts"] += [str(path.relative_to(root)) for path in made]
            build_data["pure_python"] = False
            build_data["tag"] = "py3-none-" + sysconfig.get_platform().replace("-", "_").replace(".", "_")
