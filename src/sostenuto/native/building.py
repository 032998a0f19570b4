"""Compile the twins: used by the build hook, and by hand with `python -m sostenuto.native.building`.

`CXX` names the compiler (default: c++, then g++, then clang++). `SOSTENUTO_NO_NATIVE=1` leaves the twins out. Standard
library only: the build hook loads this file before the package can be imported.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

SOURCE = Path(__file__).parent / "source"
BUILT = Path(__file__).parent / "built"
FLAGS = (
    "-std=c++17",
    "-O3",
    "-fPIC",
    "-shared",
    "-pthread",
    "-fvisibility=hidden",
    "-ffp-contract=fast",
    "-fno-math-errno",
)
X86: dict[str, tuple[str, ...]] = {  # one file per instruction set; library.py chooses when it is opened
    "generic": (),
    "avx2": ("-mavx2", "-mfma"),
    "avx512": ("-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mfma"),
}


def compiler() -> str | None:
    """Return the C++ compiler to use, None without one."""
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]
    return next((found for name in names if (found := shutil.which(name))), None)


def say(text: str) -> None:
    """Tell the person who installs."""
    sys.stderr.write(f"sostenuto: {text}\n")


def compile_twins(into: Path = BUILT, flags: Sequence[str] = ()) -> list[Path]:
    """Compile every variant for this kind of machine; return the files that could be made.

    Args:
        into:  folder of the libraries; made when missing.
        flags: added to the compiler's, for sanitizers.
    """
    cxx = compiler()
    if cxx is None or os.environ.get("SOSTENUTO_NO_NATIVE") == "1" or sys.platform == "win32":
        say("no C++ compiler in use: going on without compiled twins (plain torch, slower)")
        return []
    suffix = ".dylib" if sys.platform == "darwin" else ".so"
    variants = X86 if platform.machine().lower() in {"x86_64", "amd64"} else {"generic": ()}
    sources = sorted(str(path) for path in SOURCE.glob("*.cpp"))
    into.mkdir(parents=True, exist_ok=True)
    made = []
    for name, processor in variants.items():
        target = into / f"sostenuto_{name}{suffix}"
        partial = target.with_suffix(f".{os.getpid()}.partial")
        command = [cxx, *FLAGS, *processor, *flags, *sources, "-ldl", "-o", str(partial)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            partial.unlink(missing_ok=True)
            say(f"the {name} twins could not be compiled, going on without them\n{done.stderr[-2000:]}")
            continue
        partial.replace(target)
        made.append(target)
    return made


def main() -> int:
    """Compile from the command line."""
    parser = argparse.ArgumentParser(description="Compile the native twins of the operators.")
    parser.add_argument("--into", type=Path, default=BUILT, help="folder of the libraries")
    parser.add_argument("--flags", default="", help="further flags of the compiler, e.g. '-fsanitize=address -g'")
    given = parser.parse_args()
    made = compile_twins(given.into, given.flags.split())
    for path in made:
        say(f"made {path}")
    return 0 if made else 1


if __name__ == "__main__":
    sys.exit(main())
