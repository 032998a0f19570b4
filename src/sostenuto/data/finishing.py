"""Whole or not there: a folder is built beside its place and moved into it in one step."""

from __future__ import annotations

import contextlib
import glob
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from sostenuto.data.spilling import sync_tree
from sostenuto.schema.errors import DataError

LOCK = ".building"


def _is_abandoned(folder: Path) -> bool:
    """Tell whether whoever was building `folder` is gone: a living builder holds the lock on its mark."""
    import fcntl

    try:
        with (folder / LOCK).open("rb") as mark:
            fcntl.flock(mark, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return True
    except BlockingIOError:
        return False
    return True


def remove_leftovers(out: Path) -> list[Path]:
    """Remove what killed runs left beside `out`; those of runs that still live are kept and returned."""
    living = []
    name = glob.escape(out.name)
    for folder in sorted(out.parent.glob(f"{name}.partial-*")):
        if _is_abandoned(folder):
            shutil.rmtree(folder)
        else:
            living.append(folder)
    for folder in sorted(out.parent.glob(f"{name}.replaced-*")):
        if out.exists():
            shutil.rmtree(folder)
        else:  # killed between the two moves of an overwrite: the old data are still whole
            folder.rename(out)
    return living


def _check_place(out: Path, *, overwrite: bool) -> None:
    if not out.exists():
        return
    if not out.is_dir():
        raise DataError(f"out must be a folder, {out} is a file; name another one")
    if not any(out.iterdir()):
        return
    if not overwrite:
        raise DataError(f"out must not exist or be empty, {out} holds files; name another folder or pass overwrite")
    if not (out / "manifest.json").is_file():
        raise DataError(f"only a prepared folder is overwritten, {out} has no manifest.json; remove it yourself")


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def partial_folder(out: Path, *, overwrite: bool) -> Iterator[Path]:
    """Give a folder to build in; on success it becomes `out`, on failure it is removed.

    A kill leaves a `<out>.partial-...` without meaning, which the next run removes.

    Raises:
        DataError: `out` is taken, or another run is building it.
    """
    import fcntl

    out = out.absolute()
    living = remove_leftovers(out)
    if living:
        raise DataError(f"out must be built by one run at a time, {living[0]} is being written; wait for it")
    _check_place(out, overwrite=overwrite)
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = out.with_name(f"{out.name}.partial-{secrets.token_hex(4)}")
    folder.mkdir()
    try:
        with (folder / LOCK).open("wb") as mark:
            fcntl.flock(mark, fcntl.LOCK_EX)
            yield folder
            (folder / LOCK).unlink()
            sync_tree(folder)
            _move(folder, out)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _move(folder: Path, out: Path) -> None:
    replaced = None
    if out.exists() and any(out.iterdir()):
        replaced = out.with_name(f"{out.name}.replaced-{secrets.token_hex(4)}")
        out.rename(replaced)
    folder.rename(out)  # takes the place of an empty folder too
    _sync_folder(out.parent)
    if replaced is not None:
        shutil.rmtree(replaced)


__all__ = ["LOCK", "partial_folder", "remove_leftovers"]
