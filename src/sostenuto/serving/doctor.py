"""Whether a server would come up and do well here: what is checked before it is started, or while it runs."""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from sostenuto.schema.errors import SostenutoError
from sostenuto.serving.bundle import open_bundle
from sostenuto.serving.http.keys import KeyFile
from sostenuto.serving.stores.layout import RecordLayout
from sostenuto.serving.stores.opening import open_store

if TYPE_CHECKING:
    from sostenuto.serving.http.settings import ServerSettings
    from sostenuto.serving.starting import ServiceTable

PACKAGES = ("fastapi", "uvicorn", "httptools", "msgspec", "prometheus_client")
LITTLE_BYTES = 1_000_000_000  # of free disk
FEW_FILES = 4_096


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """What one check found."""

    check: str
    outcome: Literal["fine", "remark", "problem"]
    text: str


def examine(bundle: Path, settings: ServerSettings, table: ServiceTable) -> Iterator[Finding]:
    """Yield a finding per check; nothing is changed, and a store that is not there is not made."""
    for check in (_packages, _files, _keys, _listening, _tracing):
        yield from _guarded(check.__name__.strip("_"), lambda check=check: check(settings))  # type: ignore[misc]
    yield from _guarded("bundle", lambda: _bundle(bundle))
    yield from _guarded("store", lambda: _store(bundle, table))
    yield from _guarded("disk", lambda: _disk(bundle, settings, table))


def _guarded(check: str, run: Callable[[], Iterator[tuple[Literal["fine", "remark", "problem"], str]]]) -> (
    Iterator[Finding]
):  # fmt: skip
    try:
        for outcome, text in run():
            yield Finding(check=check, outcome=outcome, text=text)
    except (SostenutoError, OSError) as error:
        yield Finding(check=check, outcome="problem", text=str(error))


_Found = Iterator[tuple[Literal["fine", "remark", "problem"], str]]


def _packages(settings: ServerSettings) -> _Found:
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        yield "problem", f"missing: {', '.join(missing)}; pip install 'sostenuto[serve]'"
    elif importlib.util.find_spec("uvloop") is None:
        yield "remark", "uvloop is not installed: requests cost more; pip install uvloop"
    else:
        yield "fine", "all installed"


def _files(settings: ServerSettings) -> _Found:
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = settings.limits.connections + 256
    if soft < wanted:
        yield "problem", f"{soft} files may be open, {wanted} are needed for limits.connections; raise ulimit -n"
    elif soft < FEW_FILES:
        yield "remark", f"{soft} files may be open; more is usual for a server: ulimit -n"
    else:
        yield "fine", f"{soft} files may be open"


def _keys(settings: ServerSettings) -> _Found:
    if settings.keys is None:
        yield "remark", "no keys: only this machine may ask, and it may ask anything"
        return
    found = KeyFile(settings.keys).read()
    if not found:
        yield "problem", f"{settings.keys} holds no key; make one with `sostenuto serve keys add`"
        return
    mode = stat.S_IMODE(settings.keys.stat().st_mode)
    if mode & 0o077:
        yield "problem", f"{settings.keys} may be read by others (mode {mode:o}); chmod 600 it"
    else:
        yield "fine", f"{len(found)} keys"


def _listening(settings: ServerSettings) -> _Found:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.host.strip("[]"), settings.port))
        except OSError as error:
            yield "problem", f"{settings.host}:{settings.port} cannot be had: {error.strerror}; is a server running?"
            return
    yield "fine", f"{settings.host}:{settings.port} is free"


def _tracing(settings: ServerSettings) -> _Found:
    from sostenuto.serving.http.tracing import open_tracer

    tracer = open_tracer()
    if tracer is None:
        yield "fine", "not asked for"
    else:
        tracer.close()
        yield "fine", "spans will be made"


def _bundle(bundle: Path) -> _Found:
    opened = open_bundle(bundle)
    yield "fine", f"{opened.name} {opened.version}, every file as it was exported"


def _store(bundle: Path, table: ServiceTable) -> _Found:
    location, _ = table.places(bundle.resolve())
    if "://" not in location and not Path(location.removeprefix("lmdb:")).exists():
        yield "remark", "not there yet: the server will make it"
        return
    layout = RecordLayout.of(open_bundle(bundle).features.behaviour_fields)
    with open_store(location, layout) as store:
        problems = store.verify()
        stats = store.stats()
    for problem in problems[:10]:
        yield "problem", problem
    if stats.most_bytes and stats.bytes > 0.8 * stats.most_bytes:
        yield "remark", f"{stats.bytes / stats.most_bytes:.0%} of its limit is used; compact it or raise the limit"
    if not problems:
        yield "fine", f"{stats.users} users, {stats.events} events, nothing contradicts itself"


def _disk(bundle: Path, settings: ServerSettings, table: ServiceTable) -> _Found:
    location, control = table.places(bundle.resolve())
    wanted = {"server folder": control}
    if "://" not in location:
        wanted["store"] = Path(location.removeprefix("lmdb:"))
    if settings.served is not None:
        wanted["served lists"] = settings.served.folder
    if settings.log is not None:
        wanted["log"] = settings.log
    for name, path in wanted.items():
        there = path.absolute()
        while not there.exists():
            there = there.parent
        free = shutil.disk_usage(there).free
        if not os.access(there, os.W_OK):
            yield "problem", f"{name}: {there} cannot be written; give it to the server's user"
        elif free < LITTLE_BYTES:
            yield "remark", f"{name}: only {free / 1e6:.0f} MB are free"
        else:
            yield "fine", f"{name}: {free / 1e9:.0f} GB are free"


__all__ = ["Finding", "examine"]
