"""Optimiser steps on touched rows: both forms against a loop over numbers, and each other."""

from __future__ import annotations

import contextlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.reference.slow_rows import slow_update

from sostenuto.native.library import available, using
from sostenuto.ops.row_updates import UpdateRule, new_state, square_sum, state_bytes_per_row, update_rows

LIBRARIES = available()
FORMS = {"plain": None, **LIBRARIES}
KINDS = ["adam", "rowwise_adam", "adagrad", "rowwise_adagrad"]
ROWS = 12

rules = st.builds(
    UpdateRule,
    kind=st.sampled_from(KINDS),
    betas=st.tuples(st.sampled_from([0.0, 0.5, 0.9]), st.sampled_from([0.0, 0.99, 0.999])),
    eps=st.sampled_from([1e-8, 1e-3]),
    decay=st.sampled_from([0.0, 0.3]),
    decay_by=st.sampled_from(["touch", "frequency"]),
)
steps = st.lists(st.sets(st.integers(0, ROWS - 1), max_size=ROWS).map(sorted), min_size=1, max_size=4)


@contextlib.contextmanager
def threads(number):
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def lists(state):
    return {name: value.double().tolist() if name != "touches" else value.tolist() for name, value in state.items()}


@pytest.mark.parametrize("name", FORMS)
@settings(max_examples=60, deadline=None)
@given(rule=rules, steps=steps, dim=st.integers(1, 35), first=st.sampled_from([0, 7, 5_000, 40_000]))
def test_steps_are_those_of_the_equations(name, rule, steps, dim, first):
    table, state = drawn(ROWS, dim), new_state(torch.zeros(ROWS, dim), rule.kind)
    state["touches"] += first  # rows of some age: their moments are zero, which the equations do not mind
    expected, held = table.double().tolist(), lists(state)
    with using(FORMS[name]):
        for number, rows in enumerate(steps):
            gradient = drawn(len(rows), dim, seed=1 + number)
            expected, held = slow_update(expected, held, rows, gradient.double().tolist(), rule, 0.1)
            update_rows(table, state, torch.tensor(rows, dtype=torch.int64), gradient, rule=rule, learning_rate=0.1)
    torch.testing.assert_close(table, torch.tensor(expected), rtol=2e-5, atol=2e-6)
    assert state["touches"].tolist() == held["touches"]
    for part, value in state.items():
        if part != "touches":
            torch.testing.assert_close(value, torch.tensor(held[part]), rtol=1e-5, atol=1e-6)  # of terms of about 1


@pytest.mark.parametrize("name", LIBRARIES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dim", [1, 16, 19])
def test_a_twin_does_what_the_plain_form_does_over_many_steps_and_threads_change_no_bit(name, kind, dim):
    rule, found = UpdateRule(kind=kind, decay=0.1), {}
    for form, number in ((None, 1), (LIBRARIES[name], 1), (LIBRARIES[name], 3)):
        table = drawn(9_000, dim)
        state = new_state(table, kind)
        with using(form), threads(number):
            for step in range(5):
                rows = torch.randperm(9_000, generator=torch.Generator().manual_seed(step))[:7_000].sort().values
                update_rows(table, state, rows, drawn(7_000, dim, seed=step), rule=rule, learning_rate=0.01)
        found[form is None, number] = (table, state)
    one, three = found[False, 1], found[False, 3]
    assert torch.equal(one[0], three[0])
    assert all(torch.equal(value, three[1][part]) for part, value in one[1].items())
    torch.testing.assert_close(one[0], found[True, 1][0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(one[1], found[True, 1][1], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [[-1, 2], [3, 6], [2, 2], [4, 1]])
def test_rows_that_repeat_fall_or_lie_outside_are_refused_and_change_nothing(name, kind, rows):
    table, before = drawn(6, 3), drawn(6, 3)
    state = new_state(table, kind)
    with using(FORMS[name]), pytest.raises(ValueError, match="sum repeated rows first"):
        update_rows(table, state, torch.tensor(rows), drawn(2, 3), rule=UpdateRule(kind=kind), learning_rate=0.1)
    assert torch.equal(table, before)
    assert not any(value.any() for value in state.values())


@pytest.mark.parametrize("name", FORMS)
def test_a_graph_that_needs_the_old_rows_does_not_go_on_with_the_new(name):
    table = drawn(4, 2).requires_grad_()
    loss = table.square().sum()
    with using(FORMS[name]), torch.no_grad():
        update_rows(
            table,
            new_state(table.detach(), "adam"),
            torch.tensor([1]),
            torch.ones(1, 2),
            rule=UpdateRule(),
            learning_rate=0.1,
        )
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dim", [1, 16])
def test_state_holds_the_bytes_that_are_named(kind, dim):
    held = sum(value.nbytes for value in new_state(torch.zeros(10, dim), kind).values())
    assert held == 10 * state_bytes_per_row(kind, dim)
    wide = sum(value.nbytes for value in new_state(torch.zeros(10, dim, dtype=torch.float64), kind).values())
    assert wide == 10 * state_bytes_per_row(kind, dim, number_bytes=8)


@pytest.mark.parametrize("kind", KINDS)
def test_tables_of_float64_take_the_plain_form(kind):
    table = drawn(4, 3).double()
    expected, _ = slow_update(
        table.tolist(), lists(new_state(table, kind)), [1, 3], [[1.0, 2.0, 3.0]] * 2, UpdateRule(kind=kind), 0.1
    )
    gradient = torch.tensor([[1.0, 2.0, 3.0]] * 2, dtype=torch.float64)
    update_rows(
        table,
        new_state(table, kind),
        torch.tensor([1, 3]),
        gradient,
        rule=UpdateRule(kind=kind),
        learning_rate=0.1,
    )
    torch.testing.assert_close(table, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", FORMS)
@given(shape=st.tuples(st.integers(0, 9), st.integers(1, 9)), scale=st.sampled_from([1e-20, 1.0, 1e20]))
def test_the_square_sum_neither_overflows_nor_vanishes(name, shape, scale):
    values = drawn(*shape) * scale
    with using(FORMS[name]):
        found = square_sum(values)
    torch.testing.assert_close(found, values.double().square().sum(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_the_square_sum_shows_what_is_not_finite(name, bad):
    values = torch.ones(3, 7)
    values[2, 5] = bad
    with using(FORMS[name]):
        assert not torch.isfinite(square_sum(values))
