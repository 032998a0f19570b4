"""Online equals offline: a log played to a service, event by event, is scored as training and evaluation score it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.serving.small_bundles import VIEW, trained_on, write_whole

from sostenuto.data.prepared import PreparedData
from sostenuto.features.collation import Collator
from sostenuto.features.view import HistoryView
from sostenuto.models.table import MODELS
from sostenuto.schema.events import Event
from sostenuto.serving.bundle import open_bundle
from sostenuto.serving.deployed import Deployed
from sostenuto.serving.exporting import export_bundle
from sostenuto.serving.parity import TOLERANCE, Offline, Question, replay
from sostenuto.serving.stores.layout import RecordLayout
from sostenuto.serving.stores.lmdb_store import LmdbStore
from sostenuto.serving.warming import warm_up

SOME = ("repeat", "din", "sdim", "dfgr", "muse")  # the others are slow tests


class InProcess:
    """A deployed model, played to without HTTP; its encoder runs when it is told to."""

    def __init__(self, deployed: Deployed, *, encoding: bool) -> None:
        self.deployed, self.encoding = deployed, encoding
        self.origins: list[str] = []

    def score(self, question: Question, model: str) -> Sequence[float]:
        self.deployed.forget(self.deployed.model.follow())
        found = self.deployed.scorer.scores(question)
        self.origins.append(found.origin)
        return found.logits.tolist()

    def append(self, events: Sequence[Event]) -> None:
        self.deployed.model.store.append(events)
        if self.encoding:
            while self.deployed.encoder.run_once():
                pass


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    return write_whole(Path(tmp_path_factory.mktemp("whole")) / "prepared")


def played(
    data: PreparedData,
    name: str,
    folder: Path,
    *,
    encoding: bool = False,
    view: HistoryView = VIEW,
    events_at_once: int | None = None,
) -> Any:
    trained = trained_on(data, name, view=view)
    export_bundle(trained, data, folder / "bundle")
    from_ms = int(np.quantile(data.behaviours.time_ms, 0.2))
    with LmdbStore(folder / "store", RecordLayout.of(data.features.behaviour_fields)) as store:
        warm_up(store, data, until_ms=from_ms)
        deployed = Deployed.of(open_bundle(folder / "bundle"), store)
        if encoding:
            deployed.encoder.warm_up()
        service = InProcess(deployed, encoding=encoding)
        users = range(2, len(data.vocabulary("user")))
        offline = {name: Offline(collator=Collator(data, view), ranker=trained.ranker)}
        scored = list(replay(data, offline, service, from_ms=from_ms, users=users, events_at_once=events_at_once))
    return scored, service.origins


@pytest.mark.parametrize(
    "name", [name if name in SOME else pytest.param(name, marks=pytest.mark.slow) for name in MODELS]
)
def test_a_log_played_to_a_service_is_scored_as_offline(name, data, tmp_path):
    scored, origins = played(data, name, tmp_path, events_at_once=100)
    assert len(scored) == 200
    assert max(one.difference for one in scored) <= TOLERANCE
    assert any(one.history_length for one in scored)
    foldable = MODELS[name].update == "exact"
    assert ("folded" in origins) == foldable


def test_a_log_played_event_by_event_is_scored_as_offline(data, tmp_path):
    scored, _ = played(data, "sdim", tmp_path)
    assert max(one.difference for one in scored) <= TOLERANCE


@pytest.mark.parametrize("name", ["din", "sdim"])
def test_states_of_the_encoder_score_as_offline(name, data, tmp_path):
    scored, origins = played(data, name, tmp_path, encoding=True, events_at_once=100)
    assert max(one.difference for one in scored) <= TOLERANCE
    assert origins.count("cached") > len(origins) / 2


@pytest.mark.parametrize("name", ["din", "sdim"])
def test_a_view_of_the_newest_scores_as_offline(name, data, tmp_path):
    scored, origins = played(data, name, tmp_path, view=HistoryView(recent=3), events_at_once=100)
    assert max(one.difference for one in scored) <= TOLERANCE
    assert "folded" not in origins
