"""Arrays that are slow to make, kept in the `cache/` of a prepared folder.

A name must say all that the arrays depend on: the version of the code that made them, `arrays_hash`, settings.
"""

from __future__ import annotations

import contextlib
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def kept_arrays(path: Path, *names: str) -> tuple[Array, ...] | None:
    """Read arrays of an .npz file by name; None where there is none, or a damaged one: then they are made anew."""
    try:
        with path.open("rb") as file, np.load(file) as kept:  # numpy leaves a damaged file open
            return tuple(kept[name] for name in names)
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile):
        return None


def keep_arrays(path: Path, **arrays: Any) -> None:
    """Write the arrays in one step; a folder that cannot be written is no error, only slower next time."""
    partial = path.with_name(f"{path.stem}.{os.getpid()}.partial.npz")
    try:
        path.parent.mkdir(exist_ok=True)
        np.savez(partial, **arrays)
        partial.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            partial.unlink()  # a full disk leaves a piece of it


__all__ = ["keep_arrays", "kept_arrays"]
