"""RedisStore: the store on a Redis server, for several machines.

Keys below one prefix. No key is made of what came from outside: ids are fields of hashes, keys have codes.

    meta          hash: counters, layout, salt          users         hash: user id -> head
    user_ids      hash: code -> user id                 user_fields   hash: user code -> JSON
    codes:<kind>  hash: name -> code                    names:<kind>  list of names by code
    e:<user>      string: records in order              i:<user>      hash: hash of event id -> sequence
    stream        sorted set: change by sequence        cursors       hash: name -> sequence
    items         hash: item id -> revision, JSON       item_stream   sorted set: item id by revision
    s:<model>     hash: user code -> state              deleted       hash: salted hash of a user id -> sequence
    snapshots     hash: name -> sequence, parts; name, sequence, part -> bytes

A history is one string, because one string is what Redis and its client hand over fastest: an event that comes in order
is appended to it, a late one moves what stands behind it. Everything that changes more than one key is one script.
"""

from __future__ import annotations

import json
import re
import secrets
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, Self, TypeVar
from urllib.parse import parse_qsl, urlencode, urlsplit

import numpy as np
import numpy.typing as npt

from sostenuto.schema.errors import (
    MissingExtra,
    SpecError,
    StoreDamaged,
    StoreError,
    StoreFull,
    StoreGone,
    did_you_mean,
)
from sostenuto.schema.events import Event, check_id
from sostenuto.serving.stores.consistency import problems_of_user
from sostenuto.serving.stores.layout import RecordLayout
from sostenuto.serving.stores.packing import (
    NUMBER,
    STATE,
    VALUE,
    biased,
    check_events,
    event_hash,
    json_bytes,
    numeric_field,
    pack_head,
    text_field,
    unpack_change,
    unpack_head,
    unpack_state,
    user_hash,
)
from sostenuto.serving.stores.redis_scripts import scripts_for
from sostenuto.serving.stores.shared_steps import (
    change_of,
    check_empty,
    check_kind,
    check_layout,
    check_snapshot_name,
    check_trimmed,
    cut_records,
    event_blocks,
    item_pages,
)
from sostenuto.serving.stores.store import (
    Appended,
    Change,
    Compacted,
    CompactionPolicy,
    Deletion,
    EventBlock,
    Head,
    Snapshot,
    StoredHistory,
    StoredItem,
    StoredState,
    StoredUser,
    StoreStats,
    StoreSummary,
)

Array = npt.NDArray[Any]
Result = TypeVar("Result")

FORMAT = 1
PAGE = 500  # users or names of one call of a long walk
ANSWER_S = 30.0  # a server that is silent for longer is gone
CONNECT_S = 2.0
READ_BYTES = 2**20  # at once: the client's own 32 KiB make a long history ten times as slow
REWRITE_S = 600.0
# what a server must be told so that what it acknowledged is on its disk
DURABLE = {"appendonly": "yes", "appendfsync": "always", "no-appendfsync-on-rewrite": "no"}
NO_EVICTION = {"maxmemory-policy": "noeviction"}
OUTCOMES = ("new", "duplicate", "expired")
# of the URL; what comes behind `name` is the client's
OPTIONS = ("name", "db", "ssl_ca_certs", "ssl_ca_path", "ssl_certfile", "ssl_keyfile", "ssl_check_hostname")
NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


class RedisStore:
    """The promise of `Store`, kept by a Redis server."""

    layout: RecordLayout

    def __init__(
        self,
        url: str,
        layout: RecordLayout | None = None,
        *,
        weak: Literal["refuse", "warn"] = "refuse",
    ) -> None:
        """Open a store, or make one where there is none.

        Args:
            url: redis://HOST:PORT/DB, rediss://..., or unix:///PATH?db=DB; `name=` in the query tells stores of one
                server apart, default "sostenuto".
            layout: fields that must be there; what a new store is made with. None: there must be a store.
            weak: what to do where the server may lose what it acknowledged, or evict it.

        Raises:
            SpecError: the URL cannot be read, the store lacks fields of `layout`, or the server is too weak.
            StoreGone: there is no store, or no server.
        """
        try:
            import redis
        except ImportError as error:
            raise MissingExtra(
                "a store on Redis needs the package redis, which is not installed; pip install 'sostenuto[redis]'"
            ) from error
        self._errors = redis.exceptions
        server, name, self.location = parse_url(url)
        self._prefix = f"{name}:"
        no_retry = redis.retry.Retry(redis.backoff.NoBackoff(), 0)  # what may be sent again is known here, not there
        try:
            # its types tell too little of what a command answers
            self._server: Any = redis.Redis.from_url(
                server,
                protocol=2,
                retry=no_retry,
                socket_timeout=ANSWER_S,
                socket_connect_timeout=CONNECT_S,
                socket_read_size=READ_BYTES,
            )
        except (ValueError, TypeError) as error:
            raise SpecError(f"the URL of a Redis store must be readable, {self.location} is not: {error}") from error
        self._hashes: dict[str, str] = {}
        self._loading = threading.Lock()
        self._scripts = scripts_for(layout or RecordLayout())
        try:
            self._refuse_weak_server(weak)
            self._open(layout)
        except BaseException:
            self.close()
            raise

    # opening, closing, and what may go wrong

    def _refuse_weak_server(self, weak: str) -> None:
        try:
            told = self._run(lambda server: server.config_get(*DURABLE, *NO_EVICTION))
        except StoreError as error:
            if not isinstance(error.__cause__, self._errors.ResponseError):
                raise
            told = {}  # CONFIG is forbidden
        told = {_text(name): _text(value) for name, value in told.items()}
        wrong = [f"{name} {value}" for name, value in (DURABLE | NO_EVICTION).items() if told.get(name) != value]
        if not wrong:
            return
        text = (
            f"the Redis server of {self.location} must keep what it acknowledges, which needs {', '.join(wrong)}; "
            "set that in its configuration"
        )
        if weak == "refuse":
            raise SpecError(f"{text}, or allow a weak store, which may lose events")
        warnings.warn(text, stacklevel=4)

    def _open(self, layout: RecordLayout | None) -> None:
        told = "" if layout is None else json.dumps(layout.to_json())
        flat = self._script("open", told, secrets.token_hex(16), FORMAT)
        meta = {_text(name): _text(value) for name, value in zip(flat[::2], flat[1::2], strict=True)}
        if not meta:
            raise StoreGone(f"a store must be at {self.location}, there is none; name it, or make one by serving")
        if meta.get("format") != str(FORMAT):
            raise StoreError(
                f"{self.location} must be of format {FORMAT}, it is of {meta.get('format')}; use the version of "
                "Sostenuto that made it, or back it up there and restore it here"
            )
        if meta.get("loading") != "0":
            raise StoreDamaged(
                f"{self.location} must be whole, filling it was broken off; delete it and restore or migrate again"
            )
        self.layout = RecordLayout.from_json(json.loads(meta["layout"]))
        self._salt = bytes.fromhex(meta["salt"])
        check_layout(self.layout, layout, self.location)
        self._scripts = scripts_for(self.layout)
        self._hashes = {}
        self._letters = "".join("c" if kind == "categorical" else "n" for _, kind in self.layout.fields)
        self._kinds = {kind: at for at, kind in enumerate(self.layout.name_kinds)}

    def close(self) -> None:
        """Let go of it. Further calls raise `StoreGone`."""
        server, self._server = self._server, None
        if server is not None:
            server.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _told(self, error: Exception) -> StoreError:
        """Return our error for one of the client's. Its text never holds the URL, which may hold a password."""
        errors, where, text = self._errors, self.location, str(error)
        if isinstance(error, errors.OutOfMemoryError) or text.startswith("OOM") or "No space left" in text:
            return StoreFull(f"{where} must have room, it has none; compact it, or raise the server's maxmemory")
        if "HISTORYFULL" in text:
            return StoreFull(f"a history in {where} must stay below 512 MB, one would not; compact the store")
        if isinstance(error, errors.ResponseError) and text.startswith("WRONGTYPE"):
            return StoreDamaged(
                f"{where} must be a whole store, it is not ({text}); restore a backup under another name"
            )
        return StoreGone(f"{where} must answer, it does not ({type(error).__name__}: {text}); see to the server")

    def _run(self, step: Callable[[Any], Result], *, again: bool = True) -> Result:
        """Ask the server, a second time where the connection is lost and asking twice does no harm."""
        server = self._server
        if server is None:
            raise StoreGone(f"the store {self.location} must be open, it was closed; open it again")
        lost = (self._errors.ConnectionError, self._errors.TimeoutError)
        try:
            try:
                return step(server)
            except lost as error:
                if not again or isinstance(error, self._errors.BusyLoadingError):
                    raise
                return step(server)
        except self._errors.RedisError as error:
            raise self._told(error) from error

    def _ask(self, *command: Any) -> Any:
        return self._run(lambda server: server.execute_command(*command))

    def _script(self, name: str, *args: Any, again: bool = True) -> Any:
        def step(server: Any) -> Any:
            known = self._hashes.get(name)
            if known is not None:
                try:
                    return server.evalsha(known, 1, self._prefix, *args)
                except self._errors.NoScriptError:  # the server was restarted
                    pass
            self._hashes[name] = _text(server.script_load(self._scripts[name]))
            return server.evalsha(self._hashes[name], 1, self._prefix, *args)

        return self._run(step, again=again)

    def _key(self, name: str) -> str:
        return self._prefix + name

    def _number(self, name: str) -> int:
        found = self._run(lambda server: server.hget(self._key("meta"), name))
        if found is None:
            raise StoreGone(f"a store must be at {self.location}, it was removed; restore a backup")
        return int(found)

    # names

    def names(self, kind: str, since: int = 0) -> list[str]:
        """Return the names of codes since + 1, since + 2, ... of a kind."""
        check_kind(self.layout, kind)
        key = self._key(f"names:{self._kinds[kind]}")
        return [_text(name) for name in self._run(lambda server: server.lrange(key, since, -1))]

    def user_id(self, user: int) -> str | None:
        """Return the id of a user's code."""
        found = self._run(lambda server: server.hget(self._key("user_ids"), str(user)))
        return None if found is None else _text(found)

    # users

    def head(self, user_id: str) -> Head | None:
        """Return what is known of a user."""
        check_id("user_id", user_id)
        packed = self._run(lambda server: server.hget(self._key("users"), user_id))
        return None if packed is None else unpack_head(packed)

    def user_fields(self, user_id: str) -> Mapping[str, Any] | None:
        """Return what `set_user_fields` was told."""
        found = self._read_user(user_id, None)
        return None if found is None else found.fields

    def set_user_fields(self, user_id: str, fields: Mapping[str, Any]) -> None:
        """Replace the fields of a user."""
        check_id("user_id", user_id)
        self._script("set_user_fields", user_id, json_bytes("a user", fields))

    # events

    def check(self, events: Sequence[Event]) -> None:
        """Raise what `append` would raise about the events themselves."""
        check_events(self.layout, events)

    def append(self, events: Sequence[Event]) -> list[Appended]:
        """Accept events, durably, in one transaction."""
        self.check(events)
        if not events:
            return []
        args: list[Any] = [self._letters]
        for event in events:
            args += (event.user_id, event_hash(event.event_id), NUMBER.pack(biased(event.time_ms)))
            args += (event.item_id, event.action, event.place, VALUE.pack(event.value))
            for name, kind in self.layout.fields:
                args.append(
                    text_field(event, name) if kind == "categorical" else VALUE.pack(numeric_field(event, name))
                )
        told = self._script("append", *args)  # twice is once: events have ids
        return [
            Appended(outcome=OUTCOMES[told[at]], sequence=told[at + 1], user=told[at + 2], revision=told[at + 3])  # type: ignore[arg-type]
            for at in range(0, len(told), 4)
        ]

    def _read_user(self, user_id: str, after_sequence: int | None) -> StoredUser | None:
        check_id("user_id", user_id)
        told = None
        if after_sequence is None:
            told = self._read_whole(user_id)
        if told is None:
            told = self._script("history", user_id, "" if after_sequence is None else after_sequence)
        if told is None:
            return None
        packed, records, fields = told
        return StoredUser(
            user_id=user_id,
            head=unpack_head(packed),
            fields=None if fields is None else json.loads(fields),
            records=self._records(records),
        )

    def _read_whole(self, user_id: str) -> Any:
        """Read a user without a script, which would copy a long history twice; None where the script must look."""
        head = self.head(user_id)
        if head is None:
            return None

        def step(server: Any) -> Any:
            with server.pipeline(transaction=True) as several:
                several.hget(self._key("users"), user_id)
                several.get(self._key(f"e:{head.user}"))
                several.hget(self._key("user_fields"), str(head.user))
                return several.execute()

        try:
            packed, records, fields = self._run(step)
        except StoreFull:
            return None  # a full server takes no transactions, not even of reading ones
        if packed is None or unpack_head(packed).user != head.user:
            return None  # deleted meanwhile
        return packed, records or b"", fields

    def _records(self, packed: bytes) -> Array:
        if len(packed) % self.layout.dtype.itemsize:
            raise StoreDamaged(f"{self.location} must hold whole records, a history is none; restore a backup")
        return np.frombuffer(packed, self.layout.dtype)

    def history(
        self, user_id: str, *, before_ms: int | None = None, after_sequence: int | None = None
    ) -> StoredHistory | None:
        """Return the events of a user."""
        found = self._read_user(user_id, after_sequence)
        if found is None:
            return None
        return StoredHistory.of(found.head, cut_records(found.records, before_ms, after_sequence))

    def _codes_and_ids(self) -> Iterator[tuple[int, str]]:
        first, end = 1, self._number("next_user")
        while first < end:
            codes = range(first, min(first + PAGE, end))
            found = self._ask("HMGET", self._key("user_ids"), *map(str, codes))
            yield from (
                (code, _text(user_id)) for code, user_id in zip(codes, found, strict=True) if user_id is not None
            )
            first = codes.stop

    def user_pages(self, batch: int) -> Iterator[list[StoredUser]]:
        """Yield all users by code, in pages of at least `batch` events but the last."""
        page: list[StoredUser] = []
        num_events = 0
        for user_id in self.users():
            user = self._read_user(user_id, None)
            if user is None:
                continue  # deleted meanwhile
            page.append(user)
            num_events += len(user.records)
            if num_events >= batch or len(page) >= PAGE:
                yield page
                page, num_events = [], 0
        if page:
            yield page

    def all_events(self, batch: int = 100_000) -> Iterator[EventBlock]:
        """Yield all events, user after user."""
        yield from event_blocks(self.user_pages(batch), self.layout, batch)

    def users(self) -> Iterator[str]:
        """Yield user ids by code."""
        for _, user_id in self._codes_and_ids():
            yield user_id

    # the stream

    def last_sequence(self) -> int:
        """Return the newest sequence given."""
        return self._number("sequence")

    def changes(self, after: int, limit: int) -> list[Change]:
        """Return changes by sequence, those beyond `after`."""
        told = self._script("changes", after, max(limit, 0))
        check_trimmed(after, int(told[0]))
        found = []
        for packed, user_id in zip(told[1::2], told[2::2], strict=True):
            sequence = NUMBER.unpack_from(packed)[0]
            found.append(unpack_change(sequence, packed[NUMBER.size :], None if user_id is None else _text(user_id)))
        return found

    def cursor(self, name: str) -> int:
        """Return how far a named consumer has come."""
        check_id("cursor", name)
        return int(self._run(lambda server: server.hget(self._key("cursors"), name)) or 0)

    def set_cursor(self, name: str, sequence: int) -> None:
        """Say how far a named consumer has come."""
        check_id("cursor", name)
        self._run(lambda server: server.hset(self._key("cursors"), name, sequence))

    def drop_cursor(self, name: str) -> None:
        """Forget a consumer."""
        check_id("cursor", name)
        self._run(lambda server: server.hdel(self._key("cursors"), name))

    def put_snapshot(self, name: str, sequence: int, parts: Sequence[bytes]) -> bool:
        """Keep what a consumer has made of the stream."""
        check_snapshot_name(name)
        try:
            for at, part in enumerate(parts):
                if not self._script("put_part", name, sequence, at, part):
                    return False
            return bool(self._script("put_snapshot", name, sequence, len(parts)))
        except StoreFull:
            self._run(lambda server: server.unlink(self._key("snapshots")))  # events need the room more
            raise

    def snapshot(self, name: str) -> Snapshot | None:
        """Return what a consumer has kept."""
        check_snapshot_name(name)
        key = self._key("snapshots")
        found = self._run(lambda server: server.hget(key, name))
        said = re.fullmatch(rb"(\d{1,19}) (\d{1,9})", found or b"")
        if said is None:
            return None
        sequence, count = int(said[1]), int(said[2])
        parts = []
        for at in range(count):
            part = self._run(lambda server, at=at: server.hget(key, f"{name} {sequence} {at}"))  # type: ignore[misc]
            if part is None:  # taken away meanwhile
                return None
            parts.append(part)
        return Snapshot(sequence=sequence, parts=parts)

    # items

    def put_items(self, items: Mapping[str, Mapping[str, Any]]) -> int:
        """Replace the fields of items."""
        args: list[Any] = []
        for item_id, fields in items.items():
            check_id("item_id", item_id)
            args += (item_id, json_bytes("an item", fields))
        return int(self._script("put_items", *args))

    def item(self, item_id: str) -> StoredItem | None:
        """Return what was told about an item."""
        check_id("item_id", item_id)
        packed = self._run(lambda server: server.hget(self._key("items"), item_id))
        return None if packed is None else _stored_item(item_id, packed)

    def changed_items(self, after: int, limit: int) -> list[StoredItem]:
        """Return items by revision, those beyond `after`."""
        stream = self._key("item_stream")
        ids = self._run(lambda server: server.zrangebyscore(stream, f"({after}", "+inf", start=0, num=max(limit, 0)))
        if not ids:
            return []
        packed = self._run(lambda server: server.hmget(self._key("items"), ids))
        found = [_stored_item(_text(each), value) for each, value in zip(ids, packed, strict=True) if value is not None]
        return sorted(found, key=lambda item: item.revision)

    def items(self) -> Iterator[StoredItem]:
        """Yield all items that have fields, by revision."""
        yield from item_pages(self)

    # states

    def put_state(self, model: str, user_id: str, *, revision: int, newest_ms: int, blob: bytes) -> bool:
        """Keep a user's state."""
        check_id("model", model)
        check_id("user_id", user_id)
        packed = STATE.pack(revision, newest_ms) + blob
        return bool(self._script("put_state", model, user_id, revision, packed))

    def state(self, model: str, user_id: str) -> StoredState | None:
        """Return the state of a model version."""
        check_id("model", model)
        check_id("user_id", user_id)
        packed = self._script("state", model, user_id)
        return None if packed is None else unpack_state(packed)

    def drop_states(self, model: str) -> int:
        """Forget all states of a model version."""
        check_id("model", model)
        return int(self._script("drop_states", model, again=False))

    # taking away

    def delete_user(self, user_id: str) -> Deletion | None:
        """Take everything of a user away."""
        check_id("user_id", user_id)
        hashed = user_hash(self._salt, user_id)
        sequence = self._script("delete_user", user_id, hashed, again=False)
        return None if sequence is None else Deletion(user_hash=hashed, sequence=int(sequence))

    def deletions(self) -> Iterator[Deletion]:
        """Yield the list of deletions."""
        found = self._run(lambda server: server.hgetall(self._key("deleted")))
        for hashed in sorted(found):
            yield Deletion(user_hash=hashed, sequence=int(found[hashed]))

    def compact(self, policy: CompactionPolicy, *, now_ms: int) -> Compacted:
        """Drop old events, user after user."""
        users = events = 0
        most = "" if policy.most_events is None else policy.most_events
        oldest = "" if policy.most_age_ms is None else now_ms - policy.most_age_ms
        if most != "" or oldest != "":
            for user_id in self.users():
                dropped = int(self._script("compact_user", user_id, most, oldest, again=False))
                users += dropped > 0
                events += dropped
        changes = 0
        while policy.trim_stream and (done := int(self._script("trim", again=False))):
            changes += done
        return Compacted(users=users, events=events, changes=changes)

    def rewrite(self) -> None:
        """Let the server write its files anew: the append-only file, and the snapshot where it makes some."""
        self._wait_for_rewrite("aof_rewrite_in_progress", "aof_rewrite_scheduled")
        self._run(lambda server: server.bgrewriteaof(), again=False)
        told = self._wait_for_rewrite("aof_rewrite_in_progress", "aof_rewrite_scheduled")
        good = _text(told.get("aof_last_bgrewrite_status", "ok")) == "ok"
        if self._snapshots():
            self._run(lambda server: server.bgsave(), again=False)
            told = self._wait_for_rewrite("rdb_bgsave_in_progress")
            good = good and _text(told.get("rdb_last_bgsave_status", "ok")) == "ok"
        if not good:
            raise StoreError(f"the server of {self.location} must be able to rewrite its files, it failed; see its log")

    def _snapshots(self) -> bool:
        try:
            told = self._run(lambda server: server.config_get("save"))
        except StoreError:
            return True  # CONFIG is forbidden
        return any(_text(value) for value in told.values())

    def _wait_for_rewrite(self, *flags: str) -> Mapping[str, Any]:
        until = time.monotonic() + REWRITE_S
        while True:
            told: Mapping[str, Any] = self._run(lambda server: server.info("persistence"))
            if not any(int(told.get(flag, 0)) for flag in flags):
                return told
            if time.monotonic() > until:
                raise StoreError(f"the server of {self.location} must rewrite its files in time; see its log")
            time.sleep(0.05)

    # looking at it as a whole

    def stats(self) -> StoreStats:
        """Count."""

        def step(server: Any) -> tuple[list[Any], Mapping[str, Any]]:
            with server.pipeline() as several:
                several.hmget(self._key("meta"), ["sequence", "events"])
                for name in ("users", "items", "deleted", "cursors"):
                    several.hlen(self._key(name))
                several.zcard(self._key("stream"))
                several.llen(self._key("names:model"))
                several.hgetall(self._key("cursors"))
                return several.execute(), server.info("memory")

        told, memory = self._run(step)
        (sequence, events), users, items, deleted, _, changes, models, cursors = told
        states = [self._ask("HLEN", self._key(f"s:{model}")) for model in range(1, models + 1)]
        return StoreStats(
            kind="redis",
            location=self.location,
            users=users,
            events=int(events or 0),
            items=items,
            states=sum(states),
            changes=changes,
            deleted=deleted,
            last_sequence=int(sequence or 0),
            bytes=int(memory["used_memory"]),
            most_bytes=int(memory.get("maxmemory", 0)) or None,
            cursors={_text(name): int(at) for name, at in cursors.items()},
        )

    def verify(self) -> list[str]:
        """Walk through what the store holds, user by user."""
        problems: list[str] = []
        known = [self._ask("LLEN", self._key(f"names:{kind}")) for kind in range(3)]
        for code, user_id in self._codes_and_ids():
            told = self._script("whole_user", user_id)
            if told is None:
                if self.user_id(code) is not None:  # else she was deleted meanwhile
                    problems.append(f"user {code}: she has a code and no head")
                continue
            packed, records, flat, back = told
            head = unpack_head(packed)
            if len(records) % self.layout.dtype.itemsize:
                problems.append(f"user {head.user}: records are not whole")
                continue
            user = StoredUser(user_id=user_id, head=head, fields=None, records=self._records(records))
            ids = {bytes(hashed): int(sequence) for hashed, sequence in zip(flat[::2], flat[1::2], strict=True)}
            last, next_user = self._number("sequence"), self._number("next_user")
            problems += problems_of_user(user, ids, last_sequence=last, next_user=next_user, num_names=known)
            if back is None or _text(back) != user_id:
                problems.append(f"user {head.user}: her code stands for another one")
        return problems

    # backup, restore, migration

    def summary(self) -> StoreSummary:
        """Return counters and cursors."""

        def step(server: Any) -> Any:
            with server.pipeline() as several:
                several.hmget(self._key("meta"), ["sequence", "trimmed", "next_user", "item_revision"])
                several.hgetall(self._key("cursors"))
                return several.execute()

        (sequence, trimmed, next_user, item_revision), cursors = self._run(step)
        return StoreSummary(
            layout=self.layout,
            salt=self._salt,
            last_sequence=int(sequence),
            trimmed=int(trimmed),
            next_user=int(next_user),
            item_revision=int(item_revision),
            cursors={_text(name): int(at) for name, at in cursors.items()},
        )

    def start_load(self, summary: StoreSummary) -> None:
        """Take over another store's counters."""
        stats = self.stats()
        check_empty(self.layout, summary, stats.last_sequence + stats.items, self.location)
        counters = {
            "loading": 1,
            "salt": summary.salt.hex(),
            "sequence": summary.last_sequence,
            "trimmed": summary.trimmed,
            "next_user": summary.next_user,
            "item_revision": summary.item_revision,
        }

        def step(server: Any) -> Any:
            with server.pipeline(transaction=True) as several:
                several.hset(self._key("meta"), mapping=counters)
                if summary.cursors:
                    several.hset(self._key("cursors"), mapping=dict(summary.cursors))
                return several.execute()

        self._run(step)
        self._salt = summary.salt

    def load_names(self, kind: str, names: Sequence[str]) -> None:
        """Give the next codes to names."""
        at = self._kinds[kind]

        def step(server: Any) -> Any:
            there = server.llen(self._key(f"names:{at}"))
            with server.pipeline(transaction=True) as several:
                several.rpush(self._key(f"names:{at}"), *names)
                codes = {name: there + 1 + place for place, name in enumerate(names)}
                several.hset(self._key(f"codes:{at}"), mapping=codes)
                return several.execute()

        if names:
            self._run(step, again=False)

    def load_users(self, users: Sequence[StoredUser]) -> None:
        """Write users as they are."""
        trimmed = self._number("trimmed")

        def step(server: Any) -> Any:
            with server.pipeline(transaction=True) as several:
                for user in users:
                    self._load_user(several, user, trimmed)
                return several.execute()

        self._run(step, again=False)

    def _load_user(self, several: Any, user: StoredUser, trimmed: int) -> None:
        code = user.head.user
        several.hset(self._key("users"), user.user_id, pack_head(user.head))
        several.hset(self._key("user_ids"), str(code), user.user_id)
        if user.fields is not None:
            several.hset(self._key("user_fields"), str(code), json_bytes("a user", user.fields))
        if not len(user.records):
            return
        sequences = [int(sequence) for sequence in user.records["sequence"]]
        hashes = [record.tobytes() for record in user.records["id_hash"]]
        several.set(self._key(f"e:{code}"), user.records.tobytes())
        several.hset(self._key(f"i:{code}"), mapping=dict(zip(hashes, sequences, strict=True)))
        stream = {
            NUMBER.pack(sequence) + change_of(code, record): sequence
            for sequence, record in zip(sequences, user.records, strict=True)
            if sequence > trimmed
        }
        if stream:
            several.zadd(self._key("stream"), stream)
        several.hincrby(self._key("meta"), "events", len(sequences))

    def load_items(self, items: Sequence[StoredItem]) -> None:
        """Write items as they are."""
        packed = {each.item_id: NUMBER.pack(each.revision) + json_bytes("an item", each.fields) for each in items}

        def step(server: Any) -> Any:
            with server.pipeline(transaction=True) as several:
                several.hset(self._key("items"), mapping=packed)
                several.zadd(self._key("item_stream"), {item.item_id: item.revision for item in items})
                return several.execute()

        if items:
            self._run(step)

    def load_deletions(self, deletions: Sequence[Deletion]) -> None:
        """Write a list of deletions as it is."""
        if deletions:
            packed = {each.user_hash: each.sequence for each in deletions}
            self._run(lambda server: server.hset(self._key("deleted"), mapping=packed))

    def finish_load(self) -> None:
        """Make the store an ordinary one."""
        self._run(lambda server: server.hset(self._key("meta"), "loading", 0))


def parse_url(url: str) -> tuple[str, str, str]:
    """Return the server's URL, the store's name on it, and what may be shown of both."""
    parts = urlsplit(url)
    options = parse_qsl(parts.query)
    names = [value for name, value in options if name == "name"]
    name = names[0] if names else "sostenuto"
    if not NAME.fullmatch(name):
        raise SpecError(f"name of a Redis store must be of letters, digits, '_', '.' and '-', got {name!r}; rename it")
    for option, _ in options:
        if option not in OPTIONS:
            raise SpecError(
                f"options of a Redis store must be of {', '.join(OPTIONS)}, got {option!r}; leave it out."
                f"{did_you_mean(option, OPTIONS)}"
            )
    others = urlencode([each for each in options if each[0] != "name"])
    server = url.partition("?")[0] + (f"?{others}" if others else "")
    host = parts.netloc.rsplit("@", 1)[-1]
    return server, name, f"{parts.scheme}://{host}{parts.path}?name={name}"


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _stored_item(item_id: str, packed: bytes) -> StoredItem:
    fields = json.loads(packed[NUMBER.size :])
    return StoredItem(item_id=item_id, revision=NUMBER.unpack_from(packed)[0], fields=fields)


__all__ = ["FORMAT", "RedisStore", "parse_url"]
