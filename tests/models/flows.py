"""Generative rankers far from their start, and timelines on which every behaviour is a request."""

from dataclasses import replace

import torch
from tests.contract.batches import PREPARED, make_batch, make_sequences, view_of

from sostenuto.layers.embedding import Table
from sostenuto.layers.flow_config import FlowConfig
from sostenuto.models.table import entry_of, load_class
from sostenuto.schema.histories import Candidates, Context, SequenceBatch

SPEC = view_of(PREPARED, match=True)
SMALL = {
    "dim": 8,
    "heads": 2,
    "tower_units": (8,),
    "num_positions": 6,
    "vector_dim": 0,
    "key_vector_dim": 0,
    "item_dim": 6,
}
VARIANTS = {
    "default": {},
    "research": {"variant": "research"},
    "stu": {"variant": "stu", "relative_bias": False},
    "one block": {"layers": 1},
    "three blocks": {"layers": 3, "time_bias": False},
    "pure": {"pure": True},
}


def ranker_of(name, spec=SPEC, *, seed=0, **changes):
    """Return a ranker whose every part speaks."""
    torch.manual_seed(seed)
    ranker = load_class(entry_of(name))(FlowConfig(**{**SMALL, **changes}), spec)
    with torch.no_grad():
        for parameter in ranker.parameters():
            parameter.normal_(0.0, 0.3)
        for module in ranker.modules():
            if isinstance(module, Table):
                module.weight[0] = 0.0
    return ranker.eval()


def exposures(lengths, *, seed=0, spec=SPEC, moments=False):
    """Return timelines whose every behaviour is the one candidate of a request; behaviours share times if asked."""
    histories = make_batch(spec, [(length, 1) for length in lengths], seed).histories
    if not moments:
        histories = replace(histories, time_ms=histories.time_ms.min() + torch.arange(len(histories.item)) * 40_000_000)
    count = len(histories.item)
    row = torch.repeat_interleave(torch.arange(len(lengths)), histories.lengths)
    first = torch.arange(count) - histories.offsets[row]
    for n in range(1, count):
        if row[n] == row[n - 1] and histories.time_ms[n] == histories.time_ms[n - 1]:
            first[n] = first[n - 1]
    beside = make_batch(spec, [(0, 1)] * count, seed + 1)
    items = {f.name: histories.fields[f.name] for f in spec.item_fields}
    return SequenceBatch(
        histories=histories,
        row=row,
        prefix=first,
        candidates=Candidates(
            offsets=torch.arange(count + 1),
            item=histories.item,
            category=histories.category,
            match=beside.candidates.match,
            fields={**beside.candidates.fields, **items},
        ),
        context=Context(time_ms=histories.time_ms, place=histories.place, fields=beside.context.fields),
        labels=beside.labels,
        list_id=beside.list_id,
        request=torch.arange(count),
        user=row + 2,
    )


def along(ranker, batch):
    with torch.no_grad():
        return ranker.logits_along(batch).logits


def with_other_action(batch, event):
    action = batch.histories.action.clone()
    action[event] = (action[event] + 1) % 4
    return replace(batch, histories=replace(batch.histories, action=action))


__all__ = ["SPEC", "VARIANTS", "along", "exposures", "make_sequences", "ranker_of", "with_other_action"]
