"""What the system says about this process's memory, and what the C library is told about it."""

from __future__ import annotations

import contextlib
import ctypes
from pathlib import Path

MMAP_THRESHOLD, TRIM_THRESHOLD = -3, -1  # names of glibc's mallopt
KEPT_BYTES = 1 << 30  # arrays up to this size, and as much in one piece


def _status(key: str) -> int:
    try:
        with Path("/proc/self/status").open(encoding="utf-8") as file:
            for line in file:
                if line.startswith(key + ":"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


def resident_bytes() -> int:
    """Bytes of memory the process holds now; 0 where the system does not tell."""
    return _status("VmRSS")


def peak_bytes() -> int:
    """Highest `resident_bytes` of the process so far; 0 where the system does not tell."""
    if highest := _status("VmHWM"):
        return highest
    try:
        import resource
    except ImportError:
        return 0
    import sys

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def forget_peak() -> None:
    """Let `peak_bytes` start anew from what is resident now, where the system can: several runs share a process."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def available_bytes() -> int:
    """Bytes a process can still take without swapping; 0 where the system does not tell."""
    left = 0
    with contextlib.suppress(OSError), Path("/proc/meminfo").open(encoding="utf-8") as file:
        left = next((int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable:")), 0)
    for limit_name, used_name in (("memory.max", "memory.current"),):
        with contextlib.suppress(OSError, ValueError):
            limit = int(Path("/sys/fs/cgroup", limit_name).read_text(encoding="utf-8"))
            used = int(Path("/sys/fs/cgroup", used_name).read_text(encoding="utf-8"))
            left = min(left or limit, max(limit - used, 0))
    return left


def release_freed() -> None:
    """Give memory that was freed back to the system, where the C library can."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def keep_freed() -> None:
    """Let the C library keep large freed arrays for the next step, where it can.

    glibc gives arrays above some 32 MB back at once and takes them anew, page by page, in the next step: up to a
    third of a training step with long histories. What is kept is bounded by the largest pass.
    """
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        library.mallopt(MMAP_THRESHOLD, KEPT_BYTES)
        library.mallopt(TRIM_THRESHOLD, KEPT_BYTES)


__all__ = ["available_bytes", "forget_peak", "keep_freed", "peak_bytes", "release_freed", "resident_bytes"]
