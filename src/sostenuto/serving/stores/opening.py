"""Open a store by what an operator writes: a folder, `lmdb:FOLDER`, or the URL of a Redis server."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from sostenuto.schema.errors import SpecError
from sostenuto.serving.stores.layout import RecordLayout
from sostenuto.serving.stores.store import Store

SCHEMES = ("lmdb:FOLDER", "redis://HOST:PORT/DB", "rediss://HOST:PORT/DB", "unix:///SOCKET")


def open_store(
    location: str | Path,
    layout: RecordLayout | None = None,
    *,
    most_bytes: int | None = None,
    weak: Literal["refuse", "warn"] = "refuse",
) -> Store:
    """Open the store at a location, or make one where there is none and a layout is given.

    Args:
        location: a folder, `lmdb:FOLDER`, `redis://...`, `rediss://...` or `unix://...`.
        layout: fields that must be there, and what a new store is made with; None: there must be a store.
        most_bytes: limit of an LMDB file; a Redis server has its own.
        weak: what to do with a Redis server that may lose what it acknowledged.
    """
    text = str(location)
    if re.match(r"(rediss?|unix)://", text):
        from sostenuto.serving.stores.redis_store import RedisStore

        if most_bytes is not None:
            raise SpecError("most_bytes is for LMDB, a Redis server has its own maxmemory; set it there")
        return RedisStore(text, layout, weak=weak)
    if "://" in text:
        raise SpecError(f"a store must be one of {', '.join(SCHEMES)}, got {text.partition('://')[0]}://...; take one")
    from sostenuto.serving.stores.lmdb_store import MOST_BYTES, LmdbStore

    return LmdbStore(text.removeprefix("lmdb:"), layout, most_bytes=most_bytes or MOST_BYTES)


__all__ = ["SCHEMES", "open_store"]
