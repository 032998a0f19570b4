"""Build hook: compile the native twins when a C++ compiler is at hand; without one the package is pure Python.

`CXX` names the compiler (default: c++, then g++, then clang++). `SOSTENUTO_NO_NATIVE=1` leaves the twins out.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCE = Path("src/sostenuto/native/source")
BUILT = Path("src/sostenuto/native/built")
FLAGS = [
    "-std=c++17",
    "-O3",
    "-fPIC",
    "-shared",
    "-fvisibility=hidden",
    "-ffp-contract=fast",
    "-fno-math-errno",
    "-pthread",
]
X86 = {
    "generic": [],
    "avx2": ["-mavx2", "-mfma"],
    "avx512": ["-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mfma"],
}


def compiler() -> str | None:
    """Return the C++ compiler to use, None without one."""
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]
    return next((found for name in names if (found := shutil.which(name))), None)


def compile_twins(root: Path) -> list[Path]:
    """Compile every variant for this machine; return what could be made."""
    cxx = compiler()
    if cxx is None or os.environ.get("SOSTENUTO_NO_NATIVE") == "1" or sys.platform == "win32":
        print("sostenuto: no C++ compiler in use, installing without compiled twins (plain torch, slower)")
        return []
    suffix = ".dylib" if sys.platform == "darwin" else ".so"
    is_x86 = platform.machine().lower() in {"x86_64", "amd64"}
    variants = X86 if is_x86 else {"generic": []}
    (root / BUILT).mkdir(exist_ok=True)
    made = []
    for name, flags in variants.items():
        target = root / BUILT / f"sostenuto_{name}{suffix}"
        partial = target.with_suffix(".partial")
        sources = sorted(str(path) for path in (root / SOURCE).glob("*.cpp"))
        done = subprocess.run([cxx, *FLAGS, *flags, *sources, "-o", str(partial)], capture_output=True, text=True)
        if done.returncode:
            print(f"sostenuto: {name} twins could not be compiled, going on without them\n{done.stderr[-2000:]}")
            continue
        partial.replace(target)
        made.append(target)
    return made


class NativeTwins(BuildHookInterface):  # type: ignore[type-arg]
    """Puts the compiled libraries into the wheel, or next to the sources of an editable install."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, and mark the wheel as one for this platform when something was compiled."""
        if self.target_name != "wheel":
            return
        root = Path(self.root)
        if made := compile_twins(root):
            build_data["artifacts"] += [str(path.relative_to(root)) for path in made]
            build_data["pure_python"] = False
            build_data["infer_tag"] = False
            import sysconfig

            build_data["tag"] = "py3-none-" + sysconfig.get_platform().replace("-", "_").replace(".", "_")


if __name__ == "__main__":
    print("\n".join(map(str, compile_twins(Path(__file__).parent))))
