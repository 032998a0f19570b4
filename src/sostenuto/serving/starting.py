"""From a bundle and a store to a running service: what every worker process of a server does first."""

from __future__ import annotations

import fcntl
import logging
from dataclasses import dataclass
from pathlib import Path

from sostenuto.schema.errors import SpecError
from sostenuto.serving.bundle import open_bundle
from sostenuto.serving.live_service import LiveService, ServiceSettings
from sostenuto.serving.service import Traffic
from sostenuto.serving.stores.layout import RecordLayout
from sostenuto.serving.stores.opening import open_store
from sostenuto.serving.user_states import CACHE_BYTES

STARTED, LOCK = "started-with", "starting.lock"
_log = logging.getLogger("sostenuto.serving")


@dataclass(frozen=True, kw_only=True, slots=True)
class ServiceTable:
    """The table `[service]` of a settings file."""

    store: str | None = None  # folder, redis://..., unix://...; default: beside the bundle, BUNDLE.store
    control: Path | None = None  # folder of this server; default: beside the store, STORE.server
    store_mb: int = 0  # most of an LMDB file, MB; 0 = the store's own limit
    cache_mb: int = CACHE_BYTES >> 20  # states in memory, per model version and process, MB
    follow_every_s: float = 0.05  # how old popularity may be
    encode: bool = True  # False: another process keeps states up to date
    threads: int = 1  # of torch in one process

    def __post_init__(self) -> None:
        if self.threads < 1 or self.cache_mb < 1 or self.store_mb < 0 or self.follow_every_s < 0:
            raise SpecError("service.threads and cache_mb must be at least 1, store_mb and follow_every_s at least 0")

    def places(self, bundle: Path) -> tuple[str, Path]:
        """Return where the store is and which folder is the server's.

        Raises:
            SpecError: a store that is no folder has no place beside it.
        """
        store = self.store or str(bundle.with_name(bundle.name + ".store"))
        if self.control is not None:
            return store, self.control
        if "://" in store:
            raise SpecError("--control must be given with a store that is no folder, got none; name a folder")
        return store, Path(store.removeprefix("lmdb:") + ".server")


def start_service(bundle: Path, table: ServiceTable) -> LiveService:
    """Open the store and the models, and let the bundle answer unless this server was told otherwise before.

    A server that starts again with the same bundle goes on with the traffic it had (a swap stays a swap). Another
    bundle than last time, or traffic that no longer can be, sets the traffic anew.

    Raises:
        BundleError: the bundle cannot be opened. StoreError: the store cannot. SpecError: a setting that cannot be.
    """
    import torch

    torch.set_num_threads(table.threads)
    bundle = bundle.resolve()
    opened = open_bundle(bundle)
    location, control = table.places(bundle)
    layout = RecordLayout.of(opened.features.behaviour_fields)
    store = open_store(location, layout, most_bytes=table.store_mb * 1_000_000 or None)
    settings = ServiceSettings(
        bundles=bundle.parent,
        control=control,
        cache_bytes=table.cache_mb << 20,
        follow_every_s=table.follow_every_s,
        encode=table.encode,
    )
    service = LiveService(store, settings)
    try:
        with (control / LOCK).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # workers start together; the first one sets the traffic for all
            service.apply()
            _set_traffic(service, bundle.name, opened.version, control / STARTED)
    except BaseException:
        service.close()
        raise
    return service


def _set_traffic(service: LiveService, name: str, version: str, started: Path) -> None:
    traffic = service.models().traffic
    before = started.read_text(encoding="utf-8") if started.is_file() else ""
    loaded = {model.version for model in service.models().models if model.loaded}
    if traffic is not None and traffic.main in loaded and before == version:
        if traffic.main != version:
            _log.warning("the traffic goes to %s, as it was set before, not to %s", traffic.main, version)
        return
    service.load_model(name)
    if traffic is None or traffic.main != version:
        service.set_traffic(Traffic(main=version))
    started.write_text(version, encoding="utf-8")


__all__ = ["ServiceTable", "start_service"]
