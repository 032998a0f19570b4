from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sostenuto.schema.errors import SpecError
from sostenuto.schema.histories import AuxHead, Candidates, Context, History, RankerOutput, RequestBatch
from sostenuto.training.losses import (
    binary_cross_entropy,
    loss_of,
    objective_named,
    own_items,
    positive_against_negatives,
    request_list_groups,
    sampled_log_softmax,
    shares,
    shares_of,
)


def batch_of(lengths: list[int], list_id: list[int], labels: list[int]) -> RequestBatch:
    """A batch with `lengths` candidates per request and nothing in its histories."""
    n, b = len(labels), len(lengths)
    none = torch.zeros(0, dtype=torch.int64)
    return RequestBatch(
        histories=History(
            offsets=torch.zeros(b + 1, dtype=torch.int64),
            item=none,
            category=none[:, None],
            time_ms=none,
            action=none,
            value=torch.zeros(0),
            place=none,
        ),
        candidates=Candidates(
            offsets=torch.tensor([0, *lengths]).cumsum(0),
            item=torch.full((n,), 2),
            category=torch.zeros(n, 0, dtype=torch.int64),
            match=torch.zeros(n, 0),
        ),
        context=Context(time_ms=torch.zeros(b, dtype=torch.int64), place=torch.zeros(b, dtype=torch.int64)),
        labels=torch.tensor(labels, dtype=torch.float32),
        list_id=torch.tensor(list_id),
        request=torch.arange(b),
        user=torch.arange(b),
    )


@st.composite
def batches(draw: st.DrawFn) -> tuple[RequestBatch, Tensor]:
    lengths = draw(st.lists(st.integers(0, 5), min_size=1, max_size=4).filter(sum))
    n = sum(lengths)
    whole = st.integers(0, 2)
    batch = batch_of(
        lengths,
        draw(st.lists(whole, min_size=n, max_size=n)),
        draw(st.lists(st.integers(0, 1), min_size=n, max_size=n)),
    )
    logits = draw(st.lists(st.floats(-30, 30, width=32), min_size=n, max_size=n))
    return batch, torch.tensor(logits, dtype=torch.float32)


def cells(batch: RequestBatch) -> dict[tuple[int, int], list[int]]:
    """Positions by (request, list)."""
    found: dict[tuple[int, int], list[int]] = {}
    for n, key in enumerate(zip(batch.candidates.row.tolist(), batch.list_id.tolist(), strict=True)):
        found.setdefault(key, []).append(n)
    return found


@given(batches())
def test_shares_give_every_group_of_the_weighting_the_same(drawn: tuple[RequestBatch, Tensor]) -> None:
    batch, _ = drawn
    n = len(batch.labels)
    assert torch.allclose(shares(batch, "candidate"), torch.full((n,), 1 / n))
    by_request, groups = shares(batch, "request"), cells(batch)
    for positions in groups.values():
        assert float(by_request[positions].sum()) == pytest.approx(1 / len(groups), rel=1e-5)
    by_list, lists = shares(batch, "list"), sorted(set(batch.list_id.tolist()))
    for number in lists:
        assert float(by_list[batch.list_id == number].sum()) == pytest.approx(1 / len(lists), rel=1e-5)


@given(batches(), st.sampled_from(["candidate", "request", "list"]))
def test_cross_entropy_equals_its_definition(drawn: tuple[RequestBatch, Tensor], weighting: str) -> None:
    batch, logits = drawn
    weight = torch.rand(len(logits), generator=torch.Generator().manual_seed(0))
    share = shares(batch, weighting)  # type: ignore[arg-type]
    expected = 0.0
    for logit, label, w, s in zip(logits.tolist(), batch.labels.tolist(), weight.tolist(), share.tolist(), strict=True):
        signed = logit if label else -logit
        expected += w * s * (math.log1p(math.exp(-abs(signed))) + max(-signed, 0.0))
    loss = binary_cross_entropy(RankerOutput(logits=logits, sample_weight=weight), batch, shares(batch, weighting))  # type: ignore[arg-type]
    assert float(loss) == pytest.approx(expected, rel=1e-4, abs=1e-6)


@given(batches())
def test_listwise_loss_equals_a_loop_over_positives_and_has_finite_gradients(
    drawn: tuple[RequestBatch, Tensor],
) -> None:
    batch, logits = drawn
    terms = []
    for positions in cells(batch).values():
        negatives = [float(logits[n]) for n in positions if batch.labels[n] == 0]
        positives = [float(logits[n]) for n in positions if batch.labels[n] == 1 and negatives]
        terms += [math.log1p(sum(math.exp(s - p) for s in negatives)) for p in positives]
    expected = sum(terms) / len(terms) if terms else 0.0
    logits = logits.requires_grad_()
    share = shares_of(batch, weighting="candidate", listwise=1.0).listwise
    assert share is not None
    loss = (positive_against_negatives(logits, batch.labels, *request_list_groups(batch)) * share).sum()
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-4, abs=1e-5)
    loss.backward()
    assert logits.grad is not None
    assert bool(logits.grad.isfinite().all())


@pytest.mark.parametrize("size", [1e4, -1e4])
def test_listwise_loss_stays_finite_for_huge_logits(size: float) -> None:
    logits = torch.tensor([size, 0.0, -size]).requires_grad_()
    loss = positive_against_negatives(logits, torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0, 0, 0]), 1).sum()
    loss.backward()
    assert logits.grad is not None
    assert bool(loss.isfinite())
    assert bool(logits.grad.isfinite().all())


def test_auxiliary_losses_and_listwise_are_added_and_named() -> None:
    batch, logits = batch_of([2], [0, 0], [1, 0]), torch.tensor([0.3, -0.2])
    output = RankerOutput(logits=logits, aux_losses={"search": torch.tensor(0.5)})
    share = shares_of(batch, weighting="candidate", listwise=2.0)
    loss = loss_of(objective_named("bce"), output, batch, share)
    assert list(loss.parts) == ["main", "listwise", "aux.search"]
    assert float(loss.total) == pytest.approx(sum(float(part) for part in loss.parts.values()))
    assert float(loss.parts["listwise"]) == pytest.approx(2 * math.log1p(math.exp(-0.5)), rel=1e-5)
    half = loss_of(objective_named("bce"), output, batch, share, aux_share=0.5)
    assert float(half.parts["aux.search"]) == 0.25
    share = shares_of(batch, weighting="candidate", listwise=0.0)
    bare = loss_of(objective_named("bce"), RankerOutput(logits=logits), batch, share)
    assert list(bare.parts) == ["main"]


def test_an_auxiliary_head_is_taught_by_the_labels_with_the_shares_of_the_main_loss() -> None:
    batch, logits = batch_of([2, 1], [0, 0, 0], [1, 0, 1]), torch.tensor([0.3, -0.2, 0.1])
    share = shares_of(batch, weighting="request", listwise=0.0)
    output = RankerOutput(logits=logits, aux_heads={"search": AuxHead(2 * logits, 0.5)})
    loss = loss_of(objective_named("bce"), output, batch, share, aux_share=0.1)
    alone = loss_of(objective_named("bce"), RankerOutput(logits=2 * logits), batch, share)
    assert list(loss.parts) == ["main", "aux.search"]
    assert float(loss.parts["aux.search"]) == pytest.approx(0.5 * float(alone.total))
    assert float(loss.total) == pytest.approx(sum(float(part) for part in loss.parts.values()))


def test_sampled_softmax_with_log_q_estimates_the_full_softmax() -> None:
    generator = torch.Generator().manual_seed(0)
    items, draws = 50, 200_000
    scores = torch.randn(3, items, generator=generator)
    chance = torch.rand(items, generator=generator) + 0.1
    chance[7] = 0.0  # the target is never drawn
    chance = chance / chance.sum()
    drawn = torch.multinomial(chance, draws, replacement=True, generator=generator)
    log_q = (chance[drawn] * draws).log()
    none = torch.zeros(3, draws, dtype=torch.bool)
    found = sampled_log_softmax(scores[:, 7], scores[:, drawn], log_q, none)
    torch.testing.assert_close(found, scores.log_softmax(1)[:, 7], atol=0.02, rtol=0)
    without = sampled_log_softmax(scores[:, 7], scores[:, drawn], None, none)
    assert bool((without < found - 1).all())


def test_a_negative_that_is_a_target_of_the_same_request_is_no_negative() -> None:
    batch = batch_of([2, 1], [0, 0, 0], [1, 1, 1])
    candidates = dataclasses.replace(batch.candidates, item=torch.tensor([4, 5, 6]))
    own = own_items(candidates, torch.tensor([5, 6, 7]))
    assert own.tolist() == [[True, False, False], [True, False, False], [False, True, False]]
    alone = sampled_log_softmax(torch.zeros(3), torch.full((3, 3), 50.0), None, torch.ones(3, 3, dtype=torch.bool))
    assert alone.tolist() == [0.0, 0.0, 0.0]


def test_an_unknown_objective_is_refused() -> None:
    with pytest.raises(SpecError, match="Did you mean 'bce'"):
        objective_named("bec")
