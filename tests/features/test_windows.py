"""Windows of the future: whole moments in order, and nothing of validation time."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from tests.training.toy_prepared import write_toy

from sostenuto.data.prepared import PreparedData
from sostenuto.data.worlds import world_prepared
from sostenuto.features.batch_parts import batch_parts
from sostenuto.features.collation import Collator
from sostenuto.features.cooccurrence import training_events
from sostenuto.features.negatives import NegativeSampler
from sostenuto.features.sequences import SequenceLoader
from sostenuto.features.view import HistoryView
from sostenuto.features.windows import FutureWindows
from sostenuto.schema.errors import SpecError

MOMENTS, EACH = 3, 2


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    return world_prepared("stable_taste", tmp_path_factory.mktemp("windows") / "w", events=3_000, seed=2)


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    return write_toy(tmp_path_factory.mktemp("windows") / "toy")


def loader_of(data: PreparedData) -> SequenceLoader:
    requests = data.requests("train")
    counts = np.ones(data.features.num_items)
    return SequenceLoader(
        Collator(data, HistoryView()),
        requests,
        np.arange(len(requests)),
        batch_requests=20,
        negatives=NegativeSampler(counts, count=8, power=0, log_q=False),
        windows=FutureWindows(data, moments=MOMENTS, per_moment=EACH),
    )


@pytest.mark.parametrize("which", ["toy", "world"])
def test_a_window_is_the_next_moments_in_order(which: str, request: pytest.FixtureRequest) -> None:
    """Against a slow loop over the log, moment by moment."""
    data: PreparedData = request.getfixturevalue(which)
    lawful = training_events(data)
    b, requests = data.behaviours, data.requests("train")
    sizes = set()
    for batch in loader_of(data):
        future = batch.future
        assert future is not None
        row = future.items.row.numpy()
        for r, (user, request_row) in enumerate(zip(batch.user.tolist(), batch.request.tolist(), strict=True)):
            now = int(requests.time_ms[request_row])
            mine = [n for n in range(int(b.offsets[user]), int(b.offsets[user + 1])) if b.time_ms[n] >= now]
            expected: list[tuple[int, int, int]] = []
            moments = itertools.groupby((n for n in mine if lawful[n]), key=lambda n: int(b.time_ms[n]))
            for step, (_, rows) in enumerate(itertools.islice(moments, MOMENTS)):
                expected += [(int(b.item[n]), step, int(b.action[n])) for n in list(rows)[:EACH]]
            columns = (future.items.item, future.step, future.action)
            found = [tuple(int(c[w]) for c in columns) for w in np.flatnonzero(row == r)]
            assert found == expected
            sizes.add(len(found))
    assert max(sizes) > MOMENTS if which == "toy" else {0, MOMENTS} <= sizes


def test_no_event_of_validation_time_is_ever_a_target(world: PreparedData) -> None:
    """Renaming every item at and after the first validation request changes no window."""
    first = int(world.requests("valid").time_ms.min())
    windows = FutureWindows(world, moments=50, per_moment=50)
    requests = world.requests("train")
    found = windows.of(np.asarray(requests.user), np.asarray(requests.prefix))
    assert len(found.position)
    times = np.asarray(world.behaviours.time_ms)[found.position]
    assert int(times.max()) < first
    owner = np.repeat(np.arange(len(requests)), np.diff(found.offsets))
    assert bool((times >= np.asarray(requests.time_ms)[owner]).all())
    late = world.requests("valid")
    assert not len(windows.of(np.asarray(late.user), np.asarray(late.prefix)).position)


def test_parts_of_a_batch_keep_their_windows(toy: PreparedData) -> None:
    for batch in loader_of(toy):
        parts = [part.batch for part in batch_parts(batch, 60)]
        assert len(parts) > 1
        assert batch.future is not None
        for name in ("step", "action"):
            joined = torch.cat([getattr(part.future, name) for part in parts])
            assert torch.equal(joined, getattr(batch.future, name))
        assert torch.equal(torch.cat([p.future.items.item for p in parts if p.future]), batch.future.items.item)
        assert [p.future.items.offsets.shape[0] - 1 for p in parts if p.future] == [len(p.request) for p in parts]


def test_negatives_by_group_lie_in_their_group() -> None:
    generator = np.random.default_rng(0)
    groups = np.zeros((50, 3), bool)
    groups[np.arange(2, 48), np.arange(2, 48) % 2] = True  # items 48 and 49 are in neither; nothing is in group 2
    counts = np.ones(50)
    counts[4] = 0
    sampler = NegativeSampler(counts, count=400, power=0, log_q=False, groups=groups)
    drawn = sampler.draw(generator)
    assert drawn.pool is not None
    assert np.bincount(drawn.pool + 1).tolist() == [200, 100, 100]
    for group in (0, 1):
        assert groups[drawn.item[drawn.pool == group], group].all()
    assert {48, 49} <= set(drawn.item[drawn.pool < 0].tolist())
    assert not np.isin(drawn.item, [0, 1, 4]).any()
    with pytest.raises(SpecError, match="log_q must be false"):
        NegativeSampler(counts, count=4, power=0, log_q=True, groups=groups)


def test_nonsense_is_refused(toy: PreparedData) -> None:
    with pytest.raises(SpecError, match="at least one moment"):
        FutureWindows(toy, moments=0, per_moment=1)
