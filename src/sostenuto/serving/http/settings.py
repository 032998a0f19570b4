"""What a server is told: where it listens, who may ask, how much, how long. Made, or read from TOML."""

from __future__ import annotations

import dataclasses
import ipaddress
import tomllib
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sostenuto.schema.errors import SpecError, did_you_mean
from sostenuto.serving.served_log import ServedLogSettings

T = typing.TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """How much one request may bring, and how much is under way at once. All are per worker process."""

    body_bytes: int = 2 * 1024 * 1024  # of one request
    header_bytes: int = 32 * 1024  # request line and headers together
    candidates: int = 2_000  # of one ranking
    explained: int = 10  # items of one explanation
    events: int = 1_000  # of one batch
    items: int = 1_000  # of one PUT
    timeline: int = 1_000  # events of one page
    recommended: int = 500  # items of one list
    future_s: int = 86_400  # an event may be this far ahead of the server's clock
    requests_per_s: float = 0.0  # of one key, on average; 0 = no limit. Divided among the workers
    burst: int = 200  # requests that a key may save up
    scoring_threads: int = 1  # rank, recommend, explain; torch has threads of its own
    scoring_queue: int = 64  # rankings waiting or under way beyond the threads; more are refused with 503
    append_threads: int = 32  # batches of events that wait for one durable commit together
    append_queue: int = 256
    control_threads: int = 4  # everything else
    control_queue: int = 32
    connections: int = 1_024
    header_timeout_s: float = 10.0  # from connecting to the end of the headers
    body_timeout_s: float = 10.0  # for the whole body
    request_timeout_s: float = 10.0  # from the body to the answer; a control request has ten times that
    send_timeout_s: float = 30.0  # for a client to take what it is sent
    keep_alive_s: int = 30  # an idle connection is kept

    def __post_init__(self) -> None:
        for one in dataclasses.fields(self):
            value = getattr(self, one.name)
            least = 0 if one.name in {"requests_per_s", "future_s"} else 1 if one.type == "int" else 0.001
            if not value >= least:
                raise SpecError(
                    f"limits.{one.name} must be at least {least}, got {value}; leave it out for the default"
                )


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerSettings:
    """Where to listen, and the rest. Paths are as given: relative to where the server starts."""

    host: str = "127.0.0.1"
    port: int = 8000  # 0 = any free one
    workers: int = 1  # processes
    keys: Path | None = None  # file of `sostenuto serve keys`; None: no keys are asked for, and only loopback may ask
    log: Path | None = None  # request and audit log; None = stderr
    served: ServedLogSettings | None = None  # None = served lists are not logged
    drain_s: float = 0.0  # at the end: say 503 in /readyz this long before connections are refused
    graceful_s: float = 30.0  # then finish what is under way, at most this long
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65_535:
            raise SpecError(f"port must lie in 0 .. 65535, got {self.port}; 0 takes any free one")
        if self.workers < 1:
            raise SpecError(f"workers must be at least 1, got {self.workers}")
        if self.drain_s < 0 or self.graceful_s < 0:
            raise SpecError(f"drain_s and graceful_s must not be negative, got {self.drain_s} and {self.graceful_s}")
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise SpecError("tls_certificate and tls_key must be given together, got one of them; name both files")
        if self.keys is None and not is_loopback(self.host):
            raise SpecError(
                f"host must be a loopback address as long as there are no keys, got {self.host!r}; "
                f"make a key with `sostenuto serve keys add` and start with --keys FILE"
            )

    @property
    def is_open(self) -> bool:
        """Whether anybody on this machine may ask anything."""
        return self.keys is None


def is_loopback(host: str) -> bool:
    """Say whether a host can be reached from this machine only.

    >>> [is_loopback(h) for h in ("localhost", "127.0.0.1", "::1", "0.0.0.0", "", "example.org")]
    [True, True, True, False, False, False]
    """
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def read_tables(path: Path) -> dict[str, Any]:
    """Return the tables of a TOML file of settings.

    Raises:
        SpecError: no such file, or no TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise SpecError(f"--settings must be a TOML file, {path} is not there; name one") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SpecError(f"{path} must be TOML: {error}; correct it") from error


def make(kind: type[T], given: Mapping[str, Any], origin: str) -> T:
    """Build a settings value from plain tables; an unknown key or a value of another kind is refused.

    Raises:
        SpecError: what is wrong, by name.
    """
    fields = {one.name: one for one in dataclasses.fields(typing.cast(Any, kind))}
    hints = typing.get_type_hints(kind)
    values: dict[str, Any] = {}
    for name, value in given.items():
        if name not in fields:
            raise SpecError(f"{origin}: {name} is not a known setting.{did_you_mean(name, fields)}")
        values[name] = _typed(hints[name], value, f"{origin}: {name}")
    return kind(**values)


def _typed(hint: Any, value: Any, name: str) -> Any:
    kinds = typing.get_args(hint) or (hint,)
    if value is None and type(None) in kinds:
        return None
    kind = next(one for one in kinds if one is not type(None))
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, Mapping):
            return value if isinstance(value, typing.cast(type, kind)) else _refuse(name, "a table", value)
        return make(typing.cast(type, kind), value, name)
    if kind is Path:
        return Path(value) if isinstance(value, str | Path) else _refuse(name, "a path", value)
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if typing.get_origin(hint) is typing.Literal:
        return value if value in kinds else _refuse(name, f"one of {', '.join(map(str, kinds))}", value)
    if type(value) is kind:
        return value
    return _refuse(name, getattr(kind, "__name__", str(kind)), value)


def _refuse(name: str, wanted: str, value: Any) -> typing.NoReturn:
    raise SpecError(f"{name} must be {wanted}, got {value!r}")


__all__ = ["Limits", "ServerSettings", "is_loopback", "make", "read_tables"]
