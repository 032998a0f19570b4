"""One JSON line per request, and one per act that somebody may have to answer for.

Request lines name the route, never the path: paths hold user ids. They hold no addresses, no bodies and no user ids.
Audit lines (a deletion, an export, another model) name the key that did it and, where it concerns a user, a keyed
hash of the id: who knows the id can prove what was done, and the log brings nobody back who was deleted.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec


class RequestLog:
    """Writes lines to a file or to stderr; a line is one write, so processes may share the file.

    Args:
        path: None = stderr. Beside a file lies `<name>.salt`, the key of the hashes; without one it is new each time.
    """

    def __init__(self, path: Path | None) -> None:
        self._encode = msgspec.json.Encoder().encode
        self._path = path
        self._lock = threading.Lock()
        self._fd = self._open()
        self._salt = secrets.token_bytes(32) if path is None else _salt_of(path)

    def _open(self) -> int:
        if self._path is None:
            return sys.stderr.fileno()
        self._path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def request(self, **fields: Any) -> None:
        """Write a line of the request log."""
        self._write({"log": "request", "time": _now(), **fields})

    def audit(self, act: str, *, request_id: str, key: str, user_id: str | None = None, **fields: Any) -> None:
        """Write a line of the audit log."""
        subject = {} if user_id is None else {"user_hash": self.user_hash(user_id)}
        self._write(
            {"log": "audit", "time": _now(), "act": act, "request_id": request_id, "key": key, **subject, **fields}
        )

    def user_hash(self, user_id: str) -> str:
        """Return what stands for a user in the audit log."""
        return hashlib.blake2b(user_id.encode(), digest_size=16, key=self._salt).hexdigest()

    def reopen(self) -> None:
        """Go on in a new file after the old one was moved away (logrotate, then SIGHUP)."""
        if self._path is not None:
            with self._lock:
                os.close(self._fd)
                self._fd = self._open()

    def close(self) -> None:
        """Let go of the file."""
        if self._path is not None and self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _write(self, line: dict[str, Any]) -> None:
        data = self._encode(line) + b"\n"
        with self._lock:
            try:
                os.write(self._fd, data)
            except OSError:  # a full disk must not stop the ranking; what is missing shows in the counts of /metrics
                return


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _salt_of(path: Path) -> bytes:
    salt = path.with_name(path.name + ".salt")
    salt.parent.mkdir(parents=True, exist_ok=True)
    try:
        with os.fdopen(os.open(salt, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(secrets.token_bytes(32))
    except FileExistsError:
        pass
    return salt.read_bytes()[:32]


__all__ = ["RequestLog"]
