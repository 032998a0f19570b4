"""The log of served lists: what was shown to whom, where, by which model and with what probability.

A folder of files with one JSON object a line, one line per served list, `user_id` first:

    {"user_id":"u1","format":1,"request_id":"...","time_ms":...,"logged_ms":...,"operation":"rank","place":"",
     "context":{},"model":"sdim","version":"3fa1...","arm":"main","policy":"deterministic","history_length":812,
     "candidates":["a","b","c"],"candidate_fields":{"price":[1.5,2.0,null]},
     "order":[2,0],"scores":[1.2,0.3],"propensities":[1.0,1.0],"sources":null}

`order` are positions in `candidates`: what was shown, first place first; candidates that are not in it were scored and
not shown. Every worker process writes files of its own, so nothing interleaves; a new file begins at every start and
every `max_bytes`, so only the last line of a file can be cut off by a crash, and readers skip it.

Deleting a user takes her lines out of all files, whichever process writes them: writers hold a shared lock of the
folder while they write, `forget` an exclusive one while it rewrites, and a writer whose file was replaced goes on in
the new one. Lists of requests from before the deletion that are only written later are dropped then: `forgotten` holds
keyed hashes of deleted users for that, one hour long. Beside every finished file lies an index, `*.users`: keyed
hashes of the users in it, so that a deletion reads only files that concern it; it can be rebuilt and is left out where
missing.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import queue
import secrets
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sostenuto.schema.errors import MissingExtra, SpecError, StoreFull
from sostenuto.serving.private_files import open_private, replace_private

FORMAT = 1
HASH_BYTES = 16
FORGOTTEN_S = 3_600  # a queue that is an hour behind would have been noticed
FORGOTTEN_ENTRY = HASH_BYTES + 8  # hash, and deletion time, epoch ms
AT_ONCE = 256  # lines of one write
_log = logging.getLogger("sostenuto.served_log")


@dataclass(frozen=True, kw_only=True, slots=True)
class ServedLogSettings:
    """Where served lists are logged, and how safely."""

    folder: Path
    max_bytes: int = 64 * 1024 * 1024  # of one file
    keep_days: float | None = None  # finished files older than this are deleted; None = kept
    # second: at most a second of lists is lost with the machine (none with the process alone, once written);
    # always: a list is on disk before it is answered, and what cannot be logged is not answered
    fsync: Literal["never", "second", "always"] = "second"
    queue: int = 1_024  # lists waiting to be written; then answers wait

    def __post_init__(self) -> None:
        if self.max_bytes < 1 or self.queue < 1:
            raise SpecError(f"max_bytes and queue must be at least 1, got {self.max_bytes} and {self.queue}")
        if self.keep_days is not None and not self.keep_days > 0:
            raise SpecError(f"keep_days must be above 0, got {self.keep_days}; leave it out to keep all")
        if self.fsync not in {"never", "second", "always"}:
            raise SpecError(f"fsync must be never, second or always, got {self.fsync!r}")


@dataclass(frozen=True, kw_only=True, slots=True)
class ServedList:
    """One line; see the module. `order`, `scores`, `propensities` and `sources` are as long as what was shown."""

    user_id: str  # first in the line: deletion compares prefixes
    format: int = FORMAT
    request_id: str
    time_ms: int  # the request's moment
    logged_ms: int  # the server's clock when the request came
    operation: Literal["rank", "recommend"]
    place: str
    context: Mapping[str, Any]
    model: str
    version: str
    arm: str
    policy: str
    history_length: int
    candidates: Sequence[str]
    candidate_fields: Mapping[str, Sequence[str | float | None]]
    order: Sequence[int]
    scores: Sequence[float]
    propensities: Sequence[float]
    sources: Sequence[Sequence[str]] | None = None


class _Waiting:
    """One queued line, and how it went for whoever waits."""

    __slots__ = ("done", "error", "line")

    def __init__(self, line: ServedList | None, *, waited_for: bool) -> None:
        self.line = line
        self.done = threading.Event() if waited_for else None
        self.error: OSError | None = None


class ServedLog:
    """Writes served lists from any number of threads; one writer thread does the work.

    Args:
        settings: folder and policies.
        start:    False opens the folder only to read and to forget.
    """

    def __init__(self, settings: ServedLogSettings, *, start: bool = True) -> None:
        try:
            import msgspec
        except ImportError as error:
            raise MissingExtra("the log of served lists needs msgspec; pip install 'sostenuto[serve]'") from error
        self.settings = settings
        self.folder = settings.folder
        self.folder.mkdir(parents=True, exist_ok=True)
        self._encode = msgspec.json.Encoder().encode
        self._lock_fd = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        self._lock_mutex = threading.Lock()  # a lock of flock belongs to the descriptor, not to the thread
        self._salt = self._read_salt()
        self.written = 0  # lines since the start
        self.lost = 0  # lines that could not be written
        self._fd = -1
        self._path = self.folder
        self._size = 0
        self._users: set[bytes] = set()
        self._files = 0
        self._token = f"{os.getpid():x}{secrets.token_hex(4)}"
        self._forgotten: dict[bytes, int] = {}
        self._forgotten_stamp = (0, 0)
        self._queue: queue.Queue[_Waiting | None] = queue.Queue(settings.queue)
        self._thread: threading.Thread | None = None
        if start:
            self._thread = threading.Thread(target=self._run, name="served-log", daemon=True)
            self._thread.start()

    @property
    def waiting(self) -> int:
        """Lists that are queued."""
        return self._queue.qsize()

    def write(self, line: ServedList) -> None:
        """Queue a list; with `fsync="always"` it is on disk on return.

        Raises:
            StoreFull: it cannot be written, and the policy says that it must be.
        """
        waiting = _Waiting(line, waited_for=self.settings.fsync == "always")
        self._queue.put(waiting)
        if waiting.done is not None:
            waiting.done.wait()
            if waiting.error is not None:
                raise StoreFull(f"the log of served lists must take every list, {self.folder} took none") from (
                    waiting.error
                )

    def flush(self) -> None:
        """Wait until everything queued so far is written."""
        if self._thread is None:
            return
        barrier = _Waiting(None, waited_for=True)
        self._queue.put(barrier)
        assert barrier.done is not None
        barrier.done.wait()

    def close(self) -> None:
        """Write what is queued, put it on disk, and end."""
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join()
            self._thread = None
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1

    def lines_of(self, user_id: str) -> Iterator[bytes]:
        """Yield the raw lines of a user, file by file; what is queued in other processes is not among them."""
        self.flush()
        prefix, key = self._prefix(user_id), self._hash(user_id)
        for path in self._all_files():
            if key in _index_of(path, {key}):
                with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
                    yield from (line.rstrip(b"\n") for line in file if line.startswith(prefix))

    def forget(self, user_id: str) -> int:
        """Take a user's lists out of all files, and out of the queues of all processes; return how many were written.

        When this returns, no file holds the id, and no list that was answered before will be written.
        """
        self.flush()
        prefix, key = self._prefix(user_id), self._hash(user_id)
        removed = 0
        with self._locked(fcntl.LOCK_EX):
            for unfinished in self.folder.glob("*.new"):  # of a rewrite that a crash ended
                unfinished.unlink()
            self._remember(key)
            for path in self._all_files():
                if key in _index_of(path, {key}):
                    removed += self._rewrite(path, prefix, key)
            _sync_folder(self.folder)
        return removed

    def _prefix(self, user_id: str) -> bytes:
        return b'{"user_id":' + self._encode(user_id) + b","

    def _hash(self, user_id: str) -> bytes:
        return hashlib.blake2b(user_id.encode(), digest_size=HASH_BYTES, key=self._salt).digest()

    def _all_files(self) -> list[Path]:
        return sorted(self.folder.glob("served-*.jsonl"))

    def _read_salt(self) -> bytes:
        """Return the key of all hashes in the folder, made by whoever comes first."""
        path = self.folder / "salt"
        with self._locked(fcntl.LOCK_EX):
            if not path.is_file():
                replace_private(path, secrets.token_bytes(32))
            return path.read_bytes()

    @contextlib.contextmanager
    def _locked(self, how: int) -> Iterator[None]:
        with self._lock_mutex:
            fcntl.flock(self._lock_fd, how)
            try:
                yield
            finally:
                fcntl.flock(self._lock_fd, fcntl.LOCK_UN)

    def _rewrite(self, path: Path, prefix: bytes, key: bytes) -> int:
        """Replace a file by itself without some lines; the lock is held."""
        removed, new = 0, path.with_suffix(".new")
        with path.open("rb") as old, open_private(new) as kept:
            for line in old:
                if line.startswith(prefix):
                    removed += 1
                else:
                    kept.write(line)
            kept.flush()
            os.fsync(kept.fileno())
        index = path.with_suffix(".users")
        if index.is_file():
            _write_index(index, _read_index(index) - {key})
        new.replace(path)
        return removed

    def _remember(self, key: bytes) -> None:
        """Note a deletion for queues of other processes; the lock is held."""
        now = _now_ms()
        path = self.folder / "forgotten"
        known = {k: at for k, at in _read_forgotten(path).items() if at > now - FORGOTTEN_S * 1000}
        known[key] = now
        replace_private(path, b"".join(k + at.to_bytes(8, "big") for k, at in known.items()))

    # -- the writer thread ---------------------------------------------------------------------------------------------

    def _run(self) -> None:
        unsynced_since: float | None = None
        ending = False
        while not ending:
            wait = None if unsynced_since is None else max(0.0, unsynced_since + 1.0 - time.monotonic())
            batch: list[_Waiting] = []
            try:
                first = self._queue.get(timeout=wait)
                ending = first is None
                if first is not None:
                    batch.append(first)
                    while len(batch) < AT_ONCE and not ending:
                        following = self._queue.get_nowait()
                        ending = following is None
                        if following is not None:
                            batch.append(following)
            except queue.Empty:
                pass
            try:
                if any(one.line is not None for one in batch):
                    self._write_batch(batch)
                    unsynced_since = unsynced_since or time.monotonic()
                due = unsynced_since is not None and time.monotonic() >= unsynced_since + 1.0
                if self._fd >= 0 and self.settings.fsync != "never" and unsynced_since is not None:
                    if due or ending or self.settings.fsync == "always":
                        os.fdatasync(self._fd)
                        unsynced_since = None
                elif due:
                    unsynced_since = None
                if self._size >= self.settings.max_bytes:
                    self._finish_file()
            except OSError as error:
                _log.error("served lists cannot be written to %s: %s", self.folder, error.strerror)
                unsynced_since = None
                for one in batch:
                    one.error = error
            for one in batch:
                if one.done is not None:
                    one.done.set()
        try:
            self._finish_file()
        except OSError as error:
            _log.error("the last file of served lists in %s has no index: %s", self.folder, error.strerror)

    def _write_batch(self, batch: list[_Waiting]) -> None:
        with self._locked(fcntl.LOCK_SH):
            self._read_news()
            kept: list[tuple[bytes, bytes]] = []
            for one in batch:
                if one.line is not None:
                    key = self._hash(one.line.user_id)
                    if one.line.logged_ms > self._forgotten.get(key, -1):
                        kept.append((key, self._encode(one.line) + b"\n"))
            if not kept:
                return
            try:
                self._ensure_file()
                block = memoryview(b"".join(line for _, line in kept))
                while block:
                    block = block[os.write(self._fd, block) :]
            except OSError:
                self.lost += len(kept)
                if self._fd >= 0:  # no half line stays between whole ones
                    with contextlib.suppress(OSError):
                        os.ftruncate(self._fd, self._size)
                raise
            self._size += sum(len(line) for _, line in kept)
            self._users.update(key for key, _ in kept)
            self.written += len(kept)

    def _read_news(self) -> None:
        """Learn of deletions by other processes; the lock is held."""
        path = self.folder / "forgotten"
        try:
            found = path.stat()
        except FileNotFoundError:
            return
        stamp = (found.st_mtime_ns, found.st_ino)
        if stamp != self._forgotten_stamp:
            self._forgotten = _read_forgotten(path)
            self._forgotten_stamp = stamp
            self._users -= set(self._forgotten)  # their lines are gone; later ones are entered again

    def _ensure_file(self) -> None:
        """Have a file open that is still in the folder; the lock is held."""
        if self._fd >= 0 and os.fstat(self._fd).st_nlink == 0:  # replaced by a rewrite
            os.close(self._fd)
            self._fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            self._size = os.fstat(self._fd).st_size
        if self._fd < 0:
            stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
            self._path = self.folder / f"served-{stamp}-{self._token}-{self._files:05d}.jsonl"
            self._files += 1
            self._fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL, 0o600)
            self._size = 0
            self._users = set()
            _sync_folder(self.folder)

    def _finish_file(self) -> None:
        """Close the file, write its index, and delete files that are too old."""
        if self._fd < 0:
            return
        with self._locked(fcntl.LOCK_EX):
            self._read_news()
            if self.settings.fsync != "never":
                os.fdatasync(self._fd)
            os.close(self._fd)
            self._fd = -1
            self._size = 0
            _write_index(self._path.with_suffix(".users"), self._users)
            if self.settings.keep_days is not None:
                oldest = time.time() - self.settings.keep_days * 86_400
                for path in self._all_files():
                    if path.with_suffix(".users").is_file() and path.stat().st_mtime < oldest:
                        path.unlink()
                        path.with_suffix(".users").unlink(missing_ok=True)


def read_served(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield every whole line of a folder of served lists; a line that a crash cut off is skipped.

    Raises:
        SpecError: a line is of another format, or there is no such folder.
    """
    import json

    if not folder.is_dir():
        raise SpecError(f"the log of served lists must be a folder, {folder} is none; name the one the server writes")
    for path in sorted(folder.glob("served-*.jsonl")):
        with path.open("rb") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    continue
                entry: dict[str, Any] = json.loads(line)
                if entry.get("format") != FORMAT:
                    raise SpecError(
                        f"{path.name} must hold served lists of format {FORMAT}, got {entry.get('format')!r}; "
                        f"read it with the release that wrote it"
                    )
                yield entry


def _index_of(path: Path, if_unknown: Iterable[bytes]) -> set[bytes]:
    """Return the users that a file may hold: by its index, or `if_unknown` where it has none yet."""
    index = path.with_suffix(".users")
    return _read_index(index) if index.is_file() else set(if_unknown)


def _read_index(path: Path) -> set[bytes]:
    data = path.read_bytes()
    return {data[at : at + HASH_BYTES] for at in range(0, len(data), HASH_BYTES)}


def _write_index(path: Path, users: set[bytes]) -> None:
    replace_private(path, b"".join(sorted(users)))


def _read_forgotten(path: Path) -> dict[bytes, int]:
    if not path.is_file():
        return {}
    data = path.read_bytes()
    entries = (data[at : at + FORGOTTEN_ENTRY] for at in range(0, len(data), FORGOTTEN_ENTRY))
    return {entry[:HASH_BYTES]: int.from_bytes(entry[HASH_BYTES:], "big") for entry in entries}


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


__all__ = ["ServedList", "ServedLog", "ServedLogSettings", "read_served"]
