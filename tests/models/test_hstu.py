"""HSTU: what its spec promises, each with its test."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.contract.batches import (
    PREPARED,
    batches,
    make_batch,
    make_sequences,
    one_by_one,
    shuffle_moments,
    split_history,
    take_history,
    view_of,
)

from sostenuto.models.hstu import HSTU, HSTUConfig
from sostenuto.schema.errors import SpecError
from sostenuto.schema.histories import Candidates, History

SPEC = view_of(PREPARED, match=False)


def hstu(seed=0, **changes):
    torch.manual_seed(seed)
    small = {"width": 8, "heads": 2, "blocks": 2, "max_length": 9, "table_std": 0.5, "temperature": 1.0}
    return HSTU(HSTUConfig(**{**small, **changes}), SPEC).eval()


def line(items, *, times=None):
    """Make one user's history of items at distinct times."""
    count = len(items)
    zeros = torch.zeros(count, dtype=torch.int64)
    return History(
        offsets=torch.tensor([0, count]),
        item=torch.tensor(items, dtype=torch.int64),
        category=torch.zeros(count, 2, dtype=torch.int64),
        time_ms=torch.arange(1, count + 1) * 1000 if times is None else torch.tensor(times),
        action=zeros,
        value=torch.zeros(count),
        place=zeros,
        fields={
            "brand": zeros,
            "tags": torch.zeros(count, 3, dtype=torch.int64),
            "shape": torch.zeros(count, 4),
            "channel": zeros,
            "discount": torch.zeros(count),
        },
    )


def spoken(ranker):
    """Draw all parameters anew, large enough that each part matters."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in ranker.parameters():
            parameter.normal_(0.0, 0.4, generator=generator)
    return ranker


def query(ranker, histories):
    with torch.no_grad():
        return ranker.encode(histories).query


VARIANTS = {
    "as published": {"category_dim": 0, "field_dim": 0},
    "order only": {"time_bias": False},
    "stu": {"variant": "stu"},
    "one block": {"blocks": 1, "heads": 1},
    "window of 3": {"max_length": 3},
    "window of 1": {"max_length": 1},
}


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
@settings(max_examples=10, deadline=None)
@given(batch=batches(SPEC), share=st.floats(0, 1), seed=st.integers(0, 99))
def test_every_variant_keeps_the_laws(changes, batch, share, seed):
    ranker = hstu(**changes)
    whole = query(ranker, batch.histories)
    assert torch.isfinite(whole).all()
    torch.testing.assert_close(query(ranker, shuffle_moments(batch.histories, seed)), whole, rtol=1e-5, atol=1e-5)
    early, later = split_history(batch.histories, share)
    with torch.no_grad():
        folded = ranker.append(ranker.encode(early), later).query
    torch.testing.assert_close(folded, whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
@settings(max_examples=10, deadline=None)
@given(lengths=st.lists(st.integers(0, 9), min_size=1, max_size=3), seed=st.integers(0, 999))
def test_timelines_longer_than_the_window_are_read_as_each_request_would(changes, lengths, seed):
    ranker, along = hstu(**changes), make_sequences(SPEC, lengths, seed)
    alone = one_by_one(along)
    with torch.no_grad():
        torch.testing.assert_close(ranker.queries_along(along), query(ranker, alone.histories), rtol=1e-5, atol=1e-5)


def test_nothing_later_reaches_a_query():
    """Causality: change every behaviour behind a request's prefix, and its query stays, bit for bit."""
    ranker, along = hstu(), make_sequences(SPEC, [8], 4)
    first = int(along.prefix[1])
    later = torch.arange(8) >= first
    changed = replace(along.histories, item=torch.where(later, 3, along.histories.item))
    with torch.no_grad():
        before = ranker.queries_along(along)
        after = ranker.queries_along(replace(along, histories=changed))
    assert torch.equal(before[:2], after[:2])
    assert not torch.allclose(before[2:], after[2:])


def test_the_order_of_moments_matters():
    ranker = hstu()
    assert not torch.allclose(query(ranker, line([2, 3, 4])), query(ranker, line([3, 2, 4])))
    assert not torch.allclose(query(ranker, line([2, 3, 4])), query(ranker, line([2, 4, 3])))


def test_distances_in_time_matter_only_with_the_time_bias():
    far = line([2, 3, 4], times=[5, 10**9, 10**12])
    order = hstu(time_bias=False)
    torch.testing.assert_close(query(order, line([2, 3, 4])), query(order, far))
    timed = spoken(hstu())
    assert not torch.allclose(query(timed, line([2, 3, 4])), query(timed, far), atol=1e-4)


def test_without_time_bias_no_table_of_times_is_kept():
    names = dict(hstu(time_bias=False).named_parameters())
    assert not [name for name in names if name.endswith("relative.time")]
    assert [name for name in names if name.endswith("relative.position")]


def test_queries_and_items_lie_on_the_unit_sphere_and_the_temperature_divides():
    ranker, batch = hstu(temperature=0.05), make_batch(SPEC, [(4, 3), (0, 2)], 0)
    with torch.no_grad():
        state = ranker.encode(batch.histories)
        torch.testing.assert_close(state.query.norm(dim=1), torch.full((2,), 20.0))
        torch.testing.assert_close(ranker.item_vectors(batch.candidates).norm(dim=1), torch.ones(5))
        logits = ranker.score(state, batch.candidates, batch.context).logits
    assert float(logits.abs().max()) <= 20.0 + 1e-4


def test_one_layer_equals_its_equation():
    """Y = X + W_o (U * LN(A V)) with A = SiLU(Q K + rab) / n over what came before and itself, pair by pair."""
    ranker = spoken(hstu(blocks=1, heads=2, category_dim=0, field_dim=0))
    history = line([2, 5, 3, 9], times=[1_000, 5_000, 60_000, 4_000_000])
    block, count, width = ranker.blocks[0], 4, 8
    with torch.no_grad():
        x = ranker.items(history.item, history.category, history.fields) * width**0.5 + ranker.position[:count]
        norm = torch.nn.functional.layer_norm
        mapped = torch.nn.functional.silu(norm(x, (width,), eps=1e-6) @ block.weight.T)
        u, q, v, k = mapped.split(width, 1)
        seconds = history.time_ms // 1000
        read = torch.zeros(count, width)
        for i in range(count):
            for j in range(i + 1):
                gap = max(abs(int(seconds[i] - seconds[j])), 1)
                bucket = min(int(math.log(gap) / 0.301), 128)
                bias = block.relative.position[i - j] + block.relative.time[bucket]
                for h in range(2):
                    part = slice(4 * h, 4 * h + 4)
                    weight = torch.nn.functional.silu(q[i, part] @ k[j, part] + bias) / 9
                    read[i, part] += weight * v[j, part]
        out = x + (u * norm(read, (width,), eps=1e-6)) @ block.out.weight.T + block.out.bias
        wanted = torch.nn.functional.normalize(out[-1], dim=0)
    torch.testing.assert_close(query(ranker, history)[0], wanted, rtol=1e-4, atol=1e-5)


def test_behaviours_before_the_window_change_nothing():
    ranker = hstu(max_length=3)
    torch.testing.assert_close(query(ranker, line([9, 8, 2, 3, 4])), query(ranker, line([2, 3, 4])))


def test_a_moment_that_the_window_would_split_is_kept_whole():
    ranker = hstu(max_length=2)
    together = line([2, 3, 4, 5], times=[1, 2, 2, 3])
    torch.testing.assert_close(query(ranker, together), query(ranker, line([3, 4, 5], times=[2, 2, 3])))


def test_a_query_depends_on_neither_candidate_nor_request():
    ranker, batch = hstu(), make_batch(SPEC, [(5, 2), (3, 2)], 1)
    later = replace(batch.context, time_ms=batch.context.time_ms + 10**9, place=batch.context.place * 0)
    with torch.no_grad():
        state = ranker.encode(batch.histories)
        assert torch.equal(ranker.query(state, batch.context), ranker.query(state, later))


def test_an_empty_history_asks_for_the_learnt_start():
    ranker = hstu()
    empty = take_history(make_batch(SPEC, [(3, 1)], 0).histories, torch.zeros(0, dtype=torch.int64), torch.tensor([0]))
    torch.testing.assert_close(query(ranker, empty)[0], torch.nn.functional.normalize(ranker.start.detach(), dim=0))


def test_the_state_is_bounded_by_the_window():
    ranker = hstu(max_length=4)
    state = ranker.encode(line(list(range(2, 20))))
    assert len(state.window.vectors) == 4


@pytest.mark.parametrize(
    "wrong", [{"width": 0}, {"heads": 3}, {"max_length": 0}, {"dropout": 1.0}, {"blocks": 0}, {"temperature": 0.0}]
)
def test_impossible_sizes_are_refused(wrong):
    with pytest.raises(SpecError, match=r"HSTUConfig|heads"):
        HSTUConfig(**wrong)


def test_the_next_item_of_a_cycle_is_learnt():
    """Users walk round a ring of items: after training, the next one stands first among all."""
    from sostenuto.training.losses import objective_named

    ring, length = 12, 9
    torch.manual_seed(0)
    ranker = HSTU(HSTUConfig(width=16, max_length=12, category_dim=0, field_dim=0, dropout=0.1), SPEC)
    optimiser = [
        torch.optim.SparseAdam([ranker.items.items.item.weight], lr=0.02),
        torch.optim.Adam([p for n, p in ranker.named_parameters() if not n.startswith("items")], lr=0.01),
    ]
    walks = [[2 + (start + step) % ring for step in range(length)] for start in range(ring)]
    batch = _walks(walks)
    for _ in range(60):
        for one in optimiser:
            one.zero_grad()
        (-objective_named("next_item").output(ranker, batch).logits.mean()).backward()
        for one in optimiser:
            one.step()
    ranker.eval()
    with torch.no_grad():
        vectors = ranker.item_vectors(_items(range(2, 2 + ring)))
        best = (ranker.queries_along(batch) @ vectors.T).argmax(1) + 2
    assert best[batch.prefix > 0].tolist() == batch.candidates.item[batch.prefix > 0].tolist()


def _items(items) -> Candidates:
    item = torch.tensor(list(items))
    count = len(item)
    return Candidates(
        offsets=torch.tensor([0, count]),
        item=item,
        category=torch.zeros(count, 2, dtype=torch.int64),
        match=torch.zeros(count, 0),
        fields=line([2] * count).fields,
    )


def _walks(walks):
    """Make timelines whose every position is a request for the item there; all items are negatives."""
    whole = line(list(itertools.chain(*walks)))
    lengths = [len(walk) for walk in walks]
    like = make_sequences(SPEC, [1], 0)
    row = torch.repeat_interleave(torch.arange(len(walks)), torch.tensor(lengths))
    prefix = torch.cat([torch.arange(n) for n in lengths])
    targets = _items(itertools.chain(*walks))
    return replace(
        like,
        histories=replace(whole, offsets=torch.tensor([0, *itertools.accumulate(lengths)])),
        row=row,
        prefix=prefix,
        candidates=replace(targets, offsets=torch.arange(len(row) + 1)),
        labels=torch.ones(len(row)),
        negatives=_items(range(2, 14)),
    )
