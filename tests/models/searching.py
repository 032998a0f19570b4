"""What the tests of the two-stage rankers share."""

from dataclasses import replace

import numpy as np
import torch
from tests.contract.batches import PREPARED, shuffle_moments, split_history, view_of
from tests.models.test_flow_worlds import optimisers_of
from tests.models.test_sdim import auc
from torch.nn.functional import binary_cross_entropy_with_logits

from sostenuto.data.worlds import world_prepared
from sostenuto.features.collation import Collator
from sostenuto.features.loading import RequestLoader
from sostenuto.features.view import HistoryView
from sostenuto.models.table import MODELS, build, default_config, load_class
from sostenuto.schema.histories import Catalogue

SPEC = view_of(PREPARED, match=True)
SMALL = {
    "item_dim": 6,
    "category_dim": 3,
    "field_dim": 3,
    "attention_units": (8,),
    "tower_units": (8,),
    "head_dim": 4,
    "table_std": 0.5,
}
VARIANTS = {
    "two kept": {"kept": 2, "short_recent": 2},
    "one kept, one head": {"kept": 1, "heads": 1},
    "no gaps": {"gaps": False, "products": False, "wide": False},
}


def ranker_of(name, seed=0, spec=SPEC, **changes):
    torch.manual_seed(seed)
    ranker = load_class(MODELS[name])(replace(default_config(name), **{**SMALL, **changes}), spec)
    with torch.no_grad():
        if ranker.two_stage.long.bias.gap is not None:
            ranker.two_stage.long.bias.gap.weight.normal_()
    return ranker.eval()


def logits(ranker, batch, histories=None):
    with torch.no_grad():
        return ranker(batch.histories if histories is None else histories, batch.candidates, batch.context).logits


def check_laws(ranker, batch, share, seed):
    """Hold order inside moments, and that later events can be folded in."""
    whole = logits(ranker, batch)
    assert torch.isfinite(whole).all()
    again = logits(ranker, batch, shuffle_moments(batch.histories, seed))
    torch.testing.assert_close(again, whole, rtol=1e-5, atol=1e-5)
    early, later = split_history(batch.histories, share)
    with torch.no_grad():
        state = ranker.append(ranker.encode(early), later)
        folded = ranker.score(state, batch.candidates, batch.context).logits
    torch.testing.assert_close(folded, whole, rtol=1e-5, atol=1e-5)


def loss_of(output, labels):
    heads = output.aux_heads.values()
    loss = binary_cross_entropy_with_logits(output.logits, labels)
    return loss + sum(head.weight * binary_cross_entropy_with_logits(head.logits, labels) for head in heads)


def check_trains(ranker, batch):
    ranker.train()
    loss_of(ranker(batch.histories, batch.candidates, batch.context), batch.labels).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad.to_dense()).all() for p in ranker.parameters())


def check_kept_items(ranker, batch):
    """Hold that what is kept of items changes no score."""
    item, candidates = torch.arange(SPEC.num_items), batch.candidates
    category = torch.zeros(SPEC.num_items, candidates.category.shape[1], dtype=torch.int64)
    category[candidates.item] = candidates.category
    fields = {}
    for field in SPEC.item_fields:
        column = candidates.fields[field.name]
        fields[field.name] = column.new_zeros(len(item), *column.shape[1:]).index_put((candidates.item,), column)
    made = logits(ranker, batch)
    assert ranker.keep_items(Catalogue(category=category, fields=fields)) > 0
    assert ranker.two_stage.head.kept.columns() is None  # gradients are on
    with torch.no_grad():
        assert ranker.two_stage.head.kept.rows(candidates) is not None
    torch.testing.assert_close(logits(ranker, batch), made, rtol=1e-5, atol=1e-5)  # products of other shapes


def world_auc(data, name, *, epochs, seed, recent=None):
    """Train on a world's training requests and return the AUC on its test requests.

    Match features and fixed vectors, which see all of a history, are off.
    """
    collator = Collator(data, HistoryView(match=False, recent=recent))
    config = replace(default_config(name), vector_dim=0, key_vector_dim=0)
    ranker = build(name, config, collator.features, seed=seed)
    optimisers = optimisers_of(ranker, 2e-3)
    requests = {split: data.requests(split) for split in ("train", "test")}
    rows = {split: np.arange(len(some.user)) for split, some in requests.items()}
    loader = RequestLoader(collator, requests["train"], rows["train"], batch_requests=64, seed=seed)
    for epoch in range(epochs):
        ranker.train()
        for batch in loader.epoch(epoch):
            for optimiser in optimisers:
                optimiser.zero_grad()
            loss_of(ranker(batch.histories, batch.candidates, batch.context), batch.labels).backward()
            for optimiser in optimisers:
                optimiser.step()
    ranker.eval()
    labels, found = [], []
    for batch in RequestLoader(collator, requests["test"], rows["test"], batch_requests=128):
        labels.append(batch.labels)
        found.append(logits(ranker, batch))
    return auc(torch.cat(labels), torch.cat(found))


def check_long_range(name, folder, seed):
    """Hold that a ranker finds what DIN over the newest 50 cannot see: those are noise in this world."""
    data = world_prepared("long_range", folder / "world", events=24_000, requests=2_400, seed=seed)
    newest = world_auc(data, "din", epochs=2, seed=seed, recent=50)
    found = world_auc(data, name, epochs=2, seed=seed)
    assert found > newest + 0.02, f"{name} {found:.4f}, DIN over the newest 50 {newest:.4f}"
