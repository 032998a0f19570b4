"""Files that only their owner may read, replaced as a whole."""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO


def open_private(path: Path) -> BinaryIO:
    """Open a file to write it anew, readable for its owner only."""
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb")


def replace_private(path: Path, data: bytes) -> None:
    """Put `data` in the place of a file: readers find the old content or the new, on disk, never half of it."""
    new = path.with_name(path.name + ".new")
    with open_private(new) as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)


__all__ = ["open_private", "replace_private"]
