"""What all processes of one server should be doing: which bundles are loaded, and who answers.

One small file says what is wanted, with a number that grows with every change. Each process says in a file of its own
which number it has come to, so that whoever asks for a change can wait until it holds everywhere. Locks and files are
of one machine; every machine of a larger service has a folder of its own.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import IO, Any

from sostenuto.schema.errors import SpecError
from sostenuto.serving.service import Traffic

WANTED, LOCK, LEADER, SALT = "wanted.json", "wanted.lock", "leader.lock", "salt"
WAIT_S = 0.02  # between two looks at what the others have come to


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What all processes should be doing."""

    generation: int = 0
    bundles: dict[str, str] = field(default_factory=dict)  # version -> name of the bundle, in order of loading
    traffic: Traffic | None = None
    previous: Traffic | None = None

    @classmethod
    def from_json(cls, said: dict[str, Any]) -> Wanted:
        """Return what `asdict` made."""
        traffics = {name: None if said[name] is None else Traffic(**said[name]) for name in ("traffic", "previous")}
        return cls(generation=int(said["generation"]), bundles=dict(said["bundles"]), **traffics)


class Control:
    """The folder through which the processes of one server agree.

    Args:
        folder: of this server alone; made when missing.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._mine = folder / f"process-{os.getpid()}.json"
        self._leader: IO[str] | None = None

    def wanted(self) -> Wanted:
        """Return what is wanted."""
        path = self.folder / WANTED
        try:
            return Wanted.from_json(json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return Wanted()
        except (KeyError, TypeError, ValueError) as error:
            raise SpecError(
                f"{WANTED} must be as a server wrote it, it is damaged ({error}); delete it and name the bundle again"
            ) from error

    def change(self, changed: Callable[[Wanted], Wanted]) -> Wanted:
        """Change what is wanted, one process at a time, and return it."""
        with self._locked():
            wanted = self.wanted()
            wanted = replace(changed(wanted), generation=wanted.generation + 1)
            partial = self.folder / f"{WANTED}.{os.getpid()}"
            partial.write_text(json.dumps(asdict(wanted)), encoding="utf-8")
            partial.replace(self.folder / WANTED)
        return wanted

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with (self.folder / LOCK).open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def reached(self, generation: int, problem: str = "") -> None:
        """Say how far this process has come, and what it could not do."""
        partial = self._mine.with_suffix(".partial")
        partial.write_text(json.dumps({"generation": generation, "problem": problem}), encoding="utf-8")
        partial.replace(self._mine)

    def wait(self, generation: int, *, at_most_s: float) -> str:
        """Wait until every process has come to a generation; return what one of them could not do, "" when all did."""
        until = time.monotonic() + at_most_s
        while True:
            behind, problems = 0, []
            for path in self.folder.glob("process-*.json"):
                if not _lives(int(path.stem.removeprefix("process-"))):
                    path.unlink(missing_ok=True)
                    continue
                with contextlib.suppress(FileNotFoundError, ValueError):
                    said = json.loads(path.read_text(encoding="utf-8"))
                    behind += said["generation"] < generation
                    problems += [said["problem"]] if said["problem"] else []
            if not behind:
                return problems[0] if problems else ""
            if time.monotonic() > until:
                return "another process of the server has not answered"
            time.sleep(WAIT_S)

    def salt(self) -> bytes:
        """Return a secret of this server, made once: draws of all its processes follow from it."""
        path = self.folder / SALT
        with self._locked():
            if not path.is_file():
                path.touch(mode=0o600)
                path.write_bytes(secrets.token_bytes(16))
            return path.read_bytes()

    def leads(self) -> bool:
        """Say whether this process does what one of them must do for all; the first to ask does, until it ends."""
        if self._leader is not None:
            return True
        file = (self.folder / LEADER).open("w")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.close()
            return False
        self._leader = file
        return True

    def leave(self) -> None:
        """Say that this process ends."""
        self._mine.unlink(missing_ok=True)
        if self._leader is not None:
            self._leader.close()
            self._leader = None


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


__all__ = ["Control", "Wanted"]
