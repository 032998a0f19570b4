"""Online equals offline through HTTP: a real server, a real store, five models, a log played event by event."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tests.serving.live_server import OverHTTP, live_server
from tests.serving.small_bundles import VIEW, exported, write_whole
from tests.serving.stores.redis_server import place_of

from sostenuto.features.collation import Collator
from sostenuto.serving.parity import TOLERANCE, Offline, replay
from sostenuto.serving.stores.layout import RecordLayout
from sostenuto.serving.stores.opening import open_store
from sostenuto.serving.warming import warm_up

MODELS = ("repeat", "din", "sdim", "dfgr", "muse")


@pytest.fixture(params=["lmdb", pytest.param("redis", marks=pytest.mark.slow)])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    with place_of(request.param, tmp_path) as place:
        yield place


def test_a_log_played_through_http_is_scored_as_offline(store, tmp_path):
    data = write_whole(tmp_path / "prepared")
    collator = Collator(data, VIEW)
    offline = {}
    for name in MODELS:
        trained = exported(data, name, tmp_path / "bundles" / name)
        offline[name] = Offline(collator=collator, ranker=trained.ranker)
    from_ms = int(np.quantile(data.behaviours.time_ms, 0.75))
    with open_store(store, RecordLayout.of(data.features.behaviour_fields)) as opened:
        warm_up(opened, data, until_ms=from_ms)
    with (
        live_server(
            tmp_path / "server", store=store, bundle=tmp_path / "bundles" / "din", follow_every_s=0.0
        ) as server,
        OverHTTP(server) as service,
    ):
        for name in MODELS:
            service.post("/v1/models", {"bundle": name})
        versions = {one["bundle"]: one["version"] for one in service.get("/v1/models")["models"] if one["loaded"]}
        models = {versions[name]: offline[name] for name in MODELS}
        users = range(2, len(data.vocabulary("user")))
        scored = list(replay(data, models, service, from_ms=from_ms, users=users))
    assert len(scored) >= 50 * len(MODELS)
    assert max(one.difference for one in scored) <= TOLERANCE
    assert {"folded", "cached"} <= set(service.states)
