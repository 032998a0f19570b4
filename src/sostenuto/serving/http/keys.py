"""API keys: made once, kept as hashes, checked in constant time.

A key reads `sst_<id>_<secret>`. The id (64 random bits, no secret) finds the entry in the key file; the secret holds
256 random bits. Because nobody can guess or list 256 random bits, a fast hash is the right one here: slow hashes
(scrypt, argon2) make guessing *chosen* passwords dear, and would only cost every request some milliseconds. Entries
hold BLAKE2b of the secret with a salt of their own; the file is of no use to whoever steals it.

The file is replaced as a whole under a lock, so that a server reads the old or the new one, never half of it; servers
look once a second, so a revoked key is refused a second later. A file that went missing opens nothing: then no key is
known any more.
"""

from __future__ import annotations

import base64
import fcntl
import hashlib
import hmac
import json
import os
import re
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sostenuto.schema.errors import SpecError, did_you_mean
from sostenuto.serving.private_files import replace_private

FORMAT = 1
# what a key may do; `admin` is for routes that a team adds to the application itself
SCOPES = ("rank", "events", "users", "items", "models", "metrics", "admin")
LOOK_AGAIN_S = 1.0
_TOKEN = re.compile(r"sst_([0-9a-f]{16})_([A-Za-z0-9_-]{43})")
_NO_ENTRY_HASH = bytes(32)


@dataclass(frozen=True, kw_only=True, slots=True)
class Key:
    """One entry of the key file."""

    key_id: str
    name: str  # for people: who has it
    scopes: frozenset[str]
    salt: bytes
    digest: bytes
    created: str  # ISO 8601, UTC
    requests_per_s: float | None = None  # in place of the server's limit


class KeyFile:
    """The entries on disk."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> list[Key]:
        """Return all keys; none when there is no file.

        Raises:
            SpecError: the file is not one of ours.
        """
        try:
            text = self.path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return []
        except (UnicodeDecodeError, OSError) as error:
            raise SpecError(f"the key file must be readable text, {self.path} is not: {error}") from error
        try:
            document = json.loads(text)
            if document["format"] != FORMAT:
                raise SpecError(f"{self.path} must be a key file of format {FORMAT}, got {document['format']!r}")
            return [_from_json(entry) for entry in document["keys"]]
        except (ValueError, KeyError, TypeError) as error:
            if isinstance(error, SpecError):
                raise
            raise SpecError(
                f"{self.path} must be a key file, made by `sostenuto serve keys add`, and is not; name that"
            ) from error

    def add(self, name: str, scopes: Sequence[str], *, requests_per_s: float | None = None) -> tuple[Key, str]:
        """Make a key; return its entry and the key itself, which is kept nowhere.

        Raises:
            SpecError: an unknown scope, or none.
        """
        for scope in scopes:
            if scope not in SCOPES:
                raise SpecError(
                    f"scopes must be of {', '.join(SCOPES)}, got {scope!r}; name some of them."
                    f"{did_you_mean(scope, SCOPES)}"
                )
        if not scopes:
            raise SpecError(f"a key must have scopes, of {', '.join(SCOPES)}, got none; name some")
        if requests_per_s is not None and not 0 < requests_per_s < 1e9:
            raise SpecError(
                f"requests_per_s must be above 0, got {requests_per_s}; leave it out for the server's limit"
            )
        secret = base64.urlsafe_b64encode(secrets.token_bytes(32)).rstrip(b"=").decode()
        salt = secrets.token_bytes(16)
        key = Key(
            key_id=secrets.token_hex(8),
            name=name,
            scopes=frozenset(scopes),
            salt=salt,
            digest=_digest(secret, salt),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            requests_per_s=requests_per_s,
        )
        self._change(lambda keys: [*keys, key])
        return key, f"sst_{key.key_id}_{secret}"

    def revoke(self, key_id: str) -> Key:
        """Take a key out.

        Raises:
            SpecError: there is none of this id.
        """
        found = [key for key in self.read() if key.key_id == key_id]
        if not found:
            known = ", ".join(key.key_id for key in self.read()) or "none"
            raise SpecError(f"the key must be one of {self.path} ({known}), got {key_id!r}; see `serve keys list`")
        self._change(lambda keys: [key for key in keys if key.key_id != key_id])
        return found[0]

    def _change(self, change: Callable[[list[Key]], list[Key]]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(self.path.with_name(self.path.name + ".lock"), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            document = {"format": FORMAT, "keys": [_as_json(key) for key in change(self.read())]}
            replace_private(self.path, json.dumps(document, indent=2).encode() + b"\n")
        finally:
            os.close(lock)


class Keyring:
    """The keys a server knows at the moment; looks at the file again once a second."""

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._file = KeyFile(path)
        self._clock = clock
        self._looked = -LOOK_AGAIN_S
        self._stamp: tuple[int, int, int] | None = None
        self._keys: dict[str, Key] = {key.key_id: key for key in self._file.read()}
        self.trouble = ""  # why the file could not be read when it last changed

    def __len__(self) -> int:
        return len(self._keys)

    def find(self, token: str) -> Key | None:
        """Return the key that `token` is, or None. Takes the same time whatever is wrong with a secret."""
        self._look()
        parts = _TOKEN.fullmatch(token)
        if parts is None:
            return None
        key = self._keys.get(parts[1])
        given = _digest(parts[2], key.salt if key is not None else bytes(16))
        right = hmac.compare_digest(given, key.digest if key is not None else _NO_ENTRY_HASH)
        return key if right else None

    def _look(self) -> None:
        now = self._clock()
        if now - self._looked < LOOK_AGAIN_S:
            return
        self._looked = now
        try:
            found = self._file.path.stat()
            stamp = (found.st_mtime_ns, found.st_ino, found.st_size)
        except FileNotFoundError:
            self._keys, self._stamp = {}, None
            return
        except OSError as error:
            self.trouble = str(error.strerror)
            return
        if stamp == self._stamp:
            return
        try:
            self._keys = {key.key_id: key for key in self._file.read()}
            self._stamp, self.trouble = stamp, ""
        except SpecError as error:  # somebody edits it by hand: the keys of before stay
            self.trouble = str(error)


def _digest(secret: str, salt: bytes) -> bytes:
    return hashlib.blake2b(secret.encode(), digest_size=32, salt=salt).digest()


def _as_json(key: Key) -> dict[str, Any]:
    return {
        "id": key.key_id,
        "name": key.name,
        "scopes": sorted(key.scopes),
        "salt": key.salt.hex(),
        "blake2b": key.digest.hex(),
        "created": key.created,
        "requests_per_s": key.requests_per_s,
    }


def _from_json(entry: dict[str, Any]) -> Key:
    salt, digest = bytes.fromhex(entry["salt"]), bytes.fromhex(entry["blake2b"])
    if len(salt) != 16 or len(digest) != 32 or not set(entry["scopes"]) <= set(SCOPES):
        raise ValueError("not an entry of a key file")
    return Key(
        key_id=str(entry["id"]),
        name=str(entry["name"]),
        scopes=frozenset(entry["scopes"]),
        salt=salt,
        digest=digest,
        created=str(entry["created"]),
        requests_per_s=entry["requests_per_s"],
    )


__all__ = ["SCOPES", "Key", "KeyFile", "Keyring"]
