"""What the generative rankers are for: actions as inputs, and a mask that cannot be cheated (dfgr.md, property 11)."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from tests.contract.batches import one_by_one
from tests.models.flows import exposures
from tests.models.test_dfgr import SeesItself, leaking
from tests.models.test_sdim import auc
from torch.nn.functional import binary_cross_entropy_with_logits

from sostenuto.data.worlds import world_prepared
from sostenuto.evaluation.along_leaks import check_along
from sostenuto.features.collation import Collator
from sostenuto.features.loading import RequestLoader
from sostenuto.features.sequences import SequenceLoader
from sostenuto.features.view import HistoryView
from sostenuto.layers.embedding import Table
from sostenuto.layers.flow_config import FlowConfig
from sostenuto.models.dfgr import DFGR
from sostenuto.models.table import build, default_config
from sostenuto.schema.features import FeatureSpec
from sostenuto.training.process_memory import keep_freed


def optimisers_of(ranker, rate):
    tables = [module.weight for module in ranker.modules() if isinstance(module, Table)]
    known = {id(table) for table in tables}
    return [
        torch.optim.SparseAdam(tables, lr=5 * rate),
        torch.optim.Adam([p for p in ranker.parameters() if id(p) not in known], lr=rate),
    ]


def step(optimisers, output, labels):
    for optimiser in optimisers:
        optimiser.zero_grad()
    binary_cross_entropy_with_logits(output.logits, labels).backward()
    for optimiser in optimisers:
        optimiser.step()


def with_shuffled_actions(batch, generator):
    action = batch.histories.action
    shuffled = action[torch.randperm(len(action), generator=generator)]
    return replace(batch, histories=replace(batch.histories, action=shuffled))


def world_auc(data, name, *, epochs, seed, actions="given"):
    """Train on a world's training requests and return the AUC on its test requests.

    Fixed item vectors and match features are off: they know nothing of actions, and both rankers go without.
    """
    collator = Collator(data, HistoryView(match=False))
    features = replace(collator.features, num_actions=2) if actions == "unseen" else collator.features
    ranker = build(name, replace(default_config(name), vector_dim=0, key_vector_dim=0), features, seed=seed)
    optimisers, generator = optimisers_of(ranker, 2e-3), torch.Generator().manual_seed(seed)
    requests = {split: data.requests(split) for split in ("train", "test")}
    rows = {split: np.arange(len(some.user)) for split, some in requests.items()}
    of_timelines = hasattr(ranker, "logits_along")
    loader = (SequenceLoader if of_timelines else RequestLoader)(
        collator, requests["train"], rows["train"], batch_requests=64, seed=seed
    )

    def prepared(batch):
        return with_shuffled_actions(batch, generator) if actions == "shuffled" else batch

    for epoch in range(epochs):
        ranker.train()
        for batch in map(prepared, loader.epoch(epoch)):
            output = (
                ranker.logits_along(batch) if of_timelines else ranker(batch.histories, batch.candidates, batch.context)
            )
            step(optimisers, output, batch.labels)
    ranker.eval()
    labels, logits = [], []
    with torch.no_grad():
        for batch in map(prepared, RequestLoader(collator, requests["test"], rows["test"], batch_requests=128)):
            labels.append(batch.labels)
            logits.append(ranker(batch.histories, batch.candidates, batch.context).logits)
    return auc(torch.cat(labels), torch.cat(logits))


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_actions_as_inputs_are_worth_it_and_shuffled_ones_are_not(seed, tmp_path):
    """Property 11, on the world whose label is the last action of a kind: seen by DFGR, not by DIN without actions."""
    keep_freed()
    data = world_prepared("last_action", tmp_path / "world", events=20_000, users=400, requests=6_000, seed=seed)
    blind = world_auc(data, "din", epochs=3, seed=seed, actions="unseen")
    seeing = world_auc(data, "dfgr", epochs=5, seed=seed)
    shuffled = world_auc(data, "dfgr", epochs=5, seed=seed, actions="shuffled")
    found = f"DIN without actions {blind:.4f}, DFGR {seeing:.4f}, with shuffled actions {shuffled:.4f}"
    assert seeing > blind + 0.02, found
    assert shuffled < seeing - 0.02, found
    assert shuffled < blind + 0.02, found


@cache
def trained_on_coins(kind):
    """Train on labels that only the behaviour's own action tells; return AUC along training and at inference."""
    spec = FeatureSpec(num_items=40, num_item_rows=40, num_actions=4)
    batch = exposures([12] * 16, spec=spec)
    action = torch.randint(2, 4, (len(batch.histories.item),), generator=torch.Generator().manual_seed(5))
    batch = replace(batch, histories=replace(batch.histories, action=action), labels=(action == 3).float())
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = FlowConfig(
            dim=16, layers=1, tower_units=(8,), pure=True, vector_dim=0, key_vector_dim=0, category_dim=0
        )
        ranker = DFGR(replace(config, item_dim=4, block_dropout=0.0, dropout=0.0), spec)
        ranker = leaking(ranker) if kind is SeesItself else ranker
        optimisers = optimisers_of(ranker, 5e-3)
        for _ in range(200):
            step(optimisers, ranker.logits_along(batch), batch.labels)
    ranker.eval()
    other = exposures([12] * 16, spec=spec, seed=9)
    coins = torch.randint(2, 4, (len(other.histories.item),), generator=torch.Generator().manual_seed(6))
    other = replace(other, histories=replace(other.histories, action=coins), labels=(coins == 3).float())
    alone = one_by_one(other)
    with torch.no_grad():
        seen = auc(other.labels, ranker.logits_along(other).logits)
        used = auc(other.labels, ranker(alone.histories, alone.candidates, alone.context).logits)
    return seen, used, check_along(ranker, other.part(0, 1))


def test_a_broken_mask_trains_to_perfection_and_collapses_in_use():
    """Property 11: the labels are coins, so anything above one half is a leak; the detector says so beforehand."""
    seen, used, report = trained_on_coins(SeesItself)
    assert seen > 0.85
    assert used < 0.65
    assert not report.is_clean
    seen, used, report = trained_on_coins(DFGR)
    assert seen == pytest.approx(used, abs=1e-3)
    assert seen < 0.65
    assert report.is_clean
