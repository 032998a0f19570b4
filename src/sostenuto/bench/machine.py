"""What machine this is: names and sizes for the head of a table, as far as the system tells."""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Cache:
    """One cache as the first processor sees it; a virtual machine may show what is shared with its neighbours."""

    level: int
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """The machine and the software on it."""

    processor: str
    processors: int  # logical ones that this process may use
    caches: tuple[Cache, ...]  # for data, smallest level first; empty where the system does not tell
    memory_bytes: int | None
    load: float | None  # runnable processes, mean of the last minute, when this was asked
    operators: str  # instruction set of the compiled twins, or "plain"
    torch_instructions: str
    system: str
    python: str
    torch: str


def this_machine() -> Machine:
    """Look at the machine as it is now."""
    import torch

    from sostenuto.ops.backend import library

    twins = library()
    return Machine(
        processor=_processor(),
        processors=_processors(),
        caches=tuple(_caches()),
        memory_bytes=_memory("MemTotal"),
        load=load(),
        operators="plain" if twins is None else twins.processor,
        torch_instructions=torch.backends.cpu.get_cpu_capability(),
        system=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        torch=torch.__version__,
    )


def load() -> float | None:
    """Return the mean number of runnable processes in the last minute; None where the system does not tell."""
    with contextlib.suppress(OSError, AttributeError):
        return os.getloadavg()[0]
    return None


def available_bytes() -> int:
    """Return memory that can be had without swapping; a cautious 2 GiB where the system does not tell."""
    return _memory("MemAvailable") or 2 << 30


def _lines(path: str) -> Iterable[str]:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ()


def _processor() -> str:
    for line in _lines("/proc/cpuinfo"):
        name, _, value = line.partition(":")
        if name.strip() in ("model name", "Processor", "cpu model") and value.strip():
            return value.strip()
    return platform.processor() or platform.machine()


def _processors() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _caches() -> list[Cache]:
    found = []
    for folder in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        told = {name: "".join(_lines(str(folder / name))).strip() for name in ("level", "type", "size")}
        digits, unit = told["size"][:-1], told["size"][-1:]
        if told["type"] != "Instruction" and told["level"].isdigit() and digits.isdigit() and unit in "KM":
            found.append(Cache(level=int(told["level"]), size_bytes=int(digits) << (10 if unit == "K" else 20)))
    return sorted(found, key=lambda cache: cache.level)


def _memory(name: str) -> int | None:
    for line in _lines("/proc/meminfo"):
        key, _, value = line.partition(":")
        if key == name:
            return int(value.split()[0]) * 1024
    return None


__all__ = ["Cache", "Machine", "available_bytes", "load", "this_machine"]
