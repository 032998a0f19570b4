"""A run on disk, alike for neural, fitted and rule models.

config.json            resolved config, data hash, seed, threads, device, versions, machine, revision; when the run is
                       over also `finished`: what came out
log.jsonl              see run_log.py
model/                 the best weights on validation; see models/saved.py. `extra` holds the view
resume/                the last state of a neural run; removed when it is finished
predictions/valid.npz  what the saved model says of the validation requests
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sostenuto
from sostenuto.data.content_folder import identities
from sostenuto.data.prepared import PreparedData
from sostenuto.models.table import entry_of
from sostenuto.ops.backend import library
from sostenuto.schema.errors import RunError
from sostenuto.training.checkpoint import write_text_whole
from sostenuto.training.config import RunConfig, differences, from_dict, plain, to_dict

FORMAT_VERSION = 1
_PARTS = ("config.json", "log.jsonl", "metrics.json", "model", "resume", "predictions", "tensorboard")


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """What came out of a run; `finished` in config.json."""

    steps: int  # optimiser steps; 0 for fitted and rule models
    stopped: str  # epochs, steps, patience, fitted or rule
    best_step: int
    gauc: float | None  # validation GAUC by request of the saved model, mean over lists; none without both classes
    by_list: dict[str, float | None]
    logloss: float | None
    seconds: float  # training and fitting, all processes together
    parameters: int  # trainable numbers; 0 for fitted and rule models
    peak_rss_mb: float | None  # of the process, as measured; none where the system does not tell
    planned_peak_mb: float | None  # by the memory plan
    metric: str = "gauc"  # what weights were chosen by
    best_value: float | None = None  # of it, of the saved model; none for fitted and rule models


def versions() -> dict[str, str]:
    """Return the versions that numbers depend on."""
    from importlib.metadata import PackageNotFoundError, version

    twins = library()
    found = {
        "sostenuto": sostenuto.__version__,
        "python": platform.python_version(),
        "operators": "plain" if twins is None else twins.processor,
    }
    for name in ("torch", "numpy", "scipy", "polars", "safetensors", "lightgbm"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, Any]:
    """Return what the machine is."""
    name = platform.processor() or platform.machine()
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8") as file:
            name = next((line.partition(":")[2].strip() for line in file if line.startswith("model name")), name)
    except OSError:
        pass
    return {"system": platform.platform(), "processor": name, "cores": os.cpu_count()}


def revision(folder: Path | None = None) -> str | None:
    """Return the git commit of the source tree, `+changes` behind it when files differ, or None outside a tree."""
    where = folder or Path(sostenuto.__file__).parent
    git = shutil.which("git")
    if git is None:
        return None

    def answer(*arguments: str) -> str | None:
        done = subprocess.run([git, "-C", str(where), *arguments], capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else None

    tracked = answer("ls-files", "--error-unmatch", str(where)) if folder is None else ""
    commit = answer("rev-parse", "HEAD")
    if commit is None or tracked is None:  # installed into someone else's repository
        return None
    return commit + ("+changes" if answer("status", "--porcelain", "--untracked-files=no") else "")


def data_identity(config: RunConfig, data: PreparedData) -> dict[str, Any]:
    """Return what a run must find again: the hash of the data, and of their content where the model reads some."""
    identity: dict[str, Any] = {"arrays_hash": data.manifest.arrays_hash}
    if entry_of(config.model).content:
        there = identities(data.content())
        wanted = there if config.view.content is None else config.view.content
        identity["content"] = {name: there[name] for name in wanted if name in there}
    return identity


def described(config: RunConfig, data: PreparedData, *, threads: int, device: str) -> dict[str, Any]:
    """Return the contents of config.json for a run that starts now."""
    return {
        "format_version": FORMAT_VERSION,
        "config": to_dict(config),
        "data": {
            "folder": str(data.folder.resolve()),
            "name": data.manifest.name,
            **data_identity(config, data),
        },
        "seed": config.training.seed,
        "threads": threads,
        "device": device,
        "versions": versions(),
        "machine": machine(),
        "revision": revision(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "memory_plan": None,
        "finished": None,
    }


def read_run(folder: Path) -> dict[str, Any]:
    """Return config.json of a run; refuse a folder that is none."""
    path = folder / "config.json"
    if not path.is_file():
        raise RunError(f"a run folder must hold config.json, {folder} does not; make it with `sostenuto train`")
    try:
        described = dict(json.loads(path.read_text(encoding="utf-8")))
    except (TypeError, ValueError) as error:
        raise RunError(
            f"config.json of a run must be as training wrote it, {path} is damaged ({error}); take another folder"
        ) from error
    if described.get("format_version") != FORMAT_VERSION:
        raise RunError(
            f"format_version of a run must be {FORMAT_VERSION}, {path} has {described.get('format_version')!r}; "
            "train it again with this version"
        )
    return described


def write_run(folder: Path, described: Mapping[str, Any]) -> None:
    """Write config.json in one move."""
    write_text_whole(folder / "config.json", json.dumps(plain(described), indent=2, allow_nan=False) + "\n")


def config_of(folder: Path) -> RunConfig:
    """Return the config of a run."""
    return from_dict(read_run(folder)["config"])


def finished_of(described: Mapping[str, Any]) -> Finished | None:
    """Return what came out of a run, None while it is not over."""
    return None if described["finished"] is None else Finished(**described["finished"])


def with_finished(described: Mapping[str, Any], finished: Finished) -> dict[str, Any]:
    """Return config.json's contents with the result."""
    ended = datetime.now(UTC).isoformat(timespec="seconds")
    return {**described, "finished": asdict(finished), "ended": ended}


def clear_run(folder: Path) -> None:
    """Delete the parts of a run, and nothing else, from a folder."""
    for name in _PARTS:
        path = folder / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def refuse_other_run(folder: Path, there: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Refuse to go on with a run of another config or of other data, and name the first field that differs.

    A field that came after the run was made has its default there: defaults leave what was as it was.
    """
    for path, old, new in differences(to_dict(from_dict(there["config"])), wanted["config"]):
        raise RunError(
            f"{path} must be {old!r} as in the run that is in {folder}, got {new!r}; "
            "resume with the same config, or take another output folder"
        )
    old, new = there["data"]["arrays_hash"], wanted["data"]["arrays_hash"]
    if old != new:
        raise RunError(
            f"data.arrays_hash must be {old[:12]}... as in the run that is in {folder}, the data have {new[:12]}...; "
            "train on the data of the run, or take another output folder"
        )
    there_content, content = there["data"].get("content", {}), wanted["data"].get("content", {})
    for name in sorted({*there_content, *content}):
        was, now = (str(c.get(name, "nothing"))[:12] for c in (there_content, content))
        if was != now:
            raise RunError(
                f"content {name!r} must be {was} as in the run that is in {folder}, the data have {now}; "
                "train on the content of the run, or take another output folder"
            )


__all__ = [
    "FORMAT_VERSION",
    "Finished",
    "clear_run",
    "config_of",
    "data_identity",
    "described",
    "finished_of",
    "machine",
    "read_run",
    "refuse_other_run",
    "revision",
    "versions",
    "with_finished",
    "write_run",
]
