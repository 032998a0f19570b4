"""The state of a run on disk, so that a killed run goes on as if nothing had happened.

    resume/state.json               progress, and the name of the tensor file it belongs to; replaced last
    resume/state-<step>.safetensors weights, optimiser state, state of the random generators

A reader sees either the old state or the new one: state.json is replaced in one move after the tensors are on disk.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sostenuto.schema.errors import RunError

FORMAT_VERSION = 1


def write_text_whole(path: Path, text: str) -> None:
    """Write a text file in one move: a reader sees the old text or the new one, never half."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def save_state(folder: Path, tensors: Mapping[str, Tensor], progress: Mapping[str, Any]) -> None:
    """Write a state; the one before it is deleted after this one is whole."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    name = f"state-{progress['step']:09d}.safetensors"
    partial = folder / (name + ".partial")
    save_file({key: value.detach().cpu().contiguous() for key, value in tensors.items()}, partial)
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    partial.replace(folder / name)
    meta = {"format_version": FORMAT_VERSION, "tensors": name, "progress": dict(progress)}
    write_text_whole(folder / "state.json", json.dumps(meta, indent=2) + "\n")
    for path in folder.glob("state-*"):
        if path.name != name:
            path.unlink(missing_ok=True)


def load_state(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Read the newest whole state, or None when none was written."""
    from safetensors.torch import load_file

    path = folder / "state.json"
    if not path.is_file():
        return None
    meta = json.loads(path.read_text(encoding="utf-8"))
    if meta.get("format_version") != FORMAT_VERSION:
        raise RunError(
            f"format_version of {path} must be {FORMAT_VERSION}, it is {meta.get('format_version')!r}; "
            "start the run anew with resume=False"
        )
    return load_file(folder / meta["tensors"]), meta["progress"]


def random_state() -> dict[str, Tensor]:
    """Return the state of torch's global generators as tensors."""
    state = {"random.cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["random.cuda"] = torch.cuda.get_rng_state()
    return state


def restore_random_state(tensors: Mapping[str, Tensor]) -> None:
    """Set torch's global generators to what `random_state` gave."""
    torch.set_rng_state(tensors["random.cpu"])
    if "random.cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["random.cuda"])


__all__ = ["FORMAT_VERSION", "load_state", "random_state", "restore_random_state", "save_state", "write_text_whole"]
