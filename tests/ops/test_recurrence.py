"""Recurrent states: the plain form against the loop, the compiled twins against the plain form, the cells' limits."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.ops.shapes import lengths_lists, offsets_of, row_pairs
from tests.reference.slow_recurrence import slow_states

from sostenuto.native.library import available, using
from sostenuto.ops.native_recurrence import EVERY, recurrence
from sostenuto.ops.recurrence import CELLS, cell_step, evolved_states, recurrent_states

LIBRARIES = available()
CANDIDATE_CELLS = CELLS[1:]
compiled = pytest.mark.skipif(not LIBRARIES, reason="no compiled library is here: install with a C++ compiler")
FORMS = [None, *LIBRARIES.values()]
form_names = ["plain", *LIBRARIES]


class Case:
    """Drawn operands of one call; `double` for comparison with the loop."""

    def __init__(self, pairs, units, seed, dtype=torch.float32):
        generator = torch.Generator().manual_seed(seed)
        self.offsets = offsets_of([steps for steps, _ in pairs])
        self.query_offsets = offsets_of([count for _, count in pairs])
        number = sum(steps * count for steps, count in pairs)

        def drawn(*shape, scale=1.0):
            return (scale * torch.randn(*shape, generator=generator)).to(dtype).requires_grad_()

        self.inputs = drawn(int(self.offsets[-1]), 3 * units)
        self.attention = torch.rand(number, generator=generator).to(dtype).requires_grad_()
        self.weight = drawn(3 * units, units, scale=units**-0.5)
        self.bias = drawn(3 * units)
        self.initial = drawn(len(pairs), units)

    def evolved(self, cell):
        operands = (self.inputs, self.attention, self.weight, self.bias)
        out = evolved_states(
            self.inputs, self.offsets, self.attention, self.query_offsets, self.weight, self.bias, cell
        )
        return out, operands

    def states(self):
        out = recurrent_states(self.inputs, self.offsets, self.weight, self.bias, self.initial)
        return out, (self.inputs, self.weight, self.bias, self.initial)

    def slow_evolved(self, cell):
        zeros = self.inputs.new_zeros(int(self.query_offsets[-1]), self.weight.shape[1])
        args = (self.inputs, self.offsets, self.attention, self.query_offsets, self.weight, self.bias, zeros, cell)
        return slow_states(*args)[1]

    def slow_rows(self):
        each = torch.arange(len(self.offsets))
        args = (self.inputs, self.offsets, None, each, self.weight, self.bias, self.initial, "gru")
        return slow_states(*args)[0]


def assert_same(found, expected, operands, *, tolerance, seed=0):
    """Compare values, and gradients of a random combination of them."""
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
    if not expected.requires_grad:  # nothing was stepped
        assert not expected.any()
        return
    push = torch.randn(expected.shape, generator=torch.Generator().manual_seed(seed)).to(expected.dtype)
    a, b = (torch.autograd.grad((out * push).sum(), operands, allow_unused=True) for out in (found, expected))
    for mine, theirs in zip(a, b, strict=True):
        mine, theirs = (torch.zeros(1) if g is None else g for g in (mine, theirs))
        scale = max(1.0, float(theirs.abs().max()) if theirs.numel() else 0.0)
        assert bool(((mine - theirs).abs() <= 10 * tolerance * scale).all())


@pytest.mark.parametrize("cell", CANDIDATE_CELLS)
@settings(max_examples=8, deadline=None)
@given(pairs=row_pairs, units=st.integers(1, 5), seed=st.integers(0, 99))
def test_the_plain_form_equals_the_loop(cell, pairs, units, seed):
    case = Case(pairs, units, seed, torch.float64)
    out, operands = case.evolved(cell)
    assert_same(out, case.slow_evolved(cell), operands, tolerance=1e-10)


@settings(max_examples=8, deadline=None)
@given(lengths=lengths_lists, units=st.integers(1, 5), seed=st.integers(0, 99))
def test_the_plain_states_of_rows_equal_the_loop(lengths, units, seed):
    case = Case([(length, 1) for length in lengths], units, seed, torch.float64)
    out, operands = case.states()
    assert_same(out, case.slow_rows(), operands, tolerance=1e-10)


long_pairs = st.lists(st.tuples(st.integers(0, 3 * EVERY + 2), st.integers(0, 30)), min_size=1, max_size=4)


@compiled
@pytest.mark.parametrize("cell", CANDIDATE_CELLS)
@pytest.mark.parametrize("name", LIBRARIES)
@settings(max_examples=8, deadline=None)
@given(pairs=long_pairs, units=st.sampled_from([1, 7, 16, 32, 48]), seed=st.integers(0, 99), two=st.booleans())
def test_a_twin_equals_the_definition(name, cell, pairs, units, seed, two):
    """Rows of several stretches and tiles among them; threads change nothing."""
    case = Case(pairs, units, seed)
    before = torch.get_num_threads()
    torch.set_num_threads(1 + two)
    try:
        with using(None):
            plain, _ = case.evolved(cell)
        with using(LIBRARIES[name]):
            twin, operands = case.evolved(cell)
            assert_same(twin, plain, operands, tolerance=5e-6)
    finally:
        torch.set_num_threads(before)


@compiled
@pytest.mark.parametrize("name", LIBRARIES)
@settings(max_examples=10, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 3 * EVERY + 2), min_size=1, max_size=30),
    units=st.sampled_from([1, 7, 16, 32, 48]),
    seed=st.integers(0, 99),
    two=st.booleans(),
)
def test_a_twin_of_states_of_rows_equals_the_definition(name, lengths, units, seed, two):
    case = Case([(length, 1) for length in lengths], units, seed)
    before = torch.get_num_threads()
    torch.set_num_threads(1 + two)
    try:
        with using(None):
            plain, _ = case.states()
        with using(LIBRARIES[name]):
            twin, operands = case.states()
            assert_same(twin, plain, operands, tolerance=5e-6)
    finally:
        torch.set_num_threads(before)


@compiled
@pytest.mark.parametrize("name", LIBRARIES)
def test_threads_and_neighbours_change_no_bit(name):
    """A candidate's state does not depend on its tile, nor sums of the weights on the number of threads."""
    case = Case([(40, 30), (17, 5), (0, 2), (33, 13)], 32, 3)
    found = {}
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            with using(LIBRARIES[name]):
                out, operands = case.evolved("augru")
                found[threads] = [out, *torch.autograd.grad(out.square().sum(), operands)]
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(found[1], found[2], strict=True))
    with using(LIBRARIES[name]), torch.no_grad():
        alone = evolved_states(
            case.inputs[:40],
            torch.tensor([0, 40]),
            case.attention[7 * 40 : 8 * 40],
            torch.tensor([0, 1]),
            case.weight,
            case.bias,
            "augru",
        )
    assert torch.equal(alone[0], found[1][0][7])


@pytest.mark.parametrize("form", FORMS, ids=form_names)
def test_going_on_from_a_state_equals_going_all_the_way(form):
    """The state behind 23 steps is all that the next steps need."""
    case = Case([(40, 1)], 32, 1)
    with using(form), torch.no_grad():
        whole, _ = case.states()
        first = recurrent_states(case.inputs[:23], torch.tensor([0, 23]), case.weight, case.bias, case.initial)
        second = recurrent_states(case.inputs[23:], torch.tensor([0, 17]), case.weight, case.bias, first[-1:])
    torch.testing.assert_close(torch.cat([first, second]), whole, rtol=0, atol=1e-7)


def evolved_with(form, cell, attention, units=16):
    """Return the last states of 30 steps with one attention to all of them, beside those of a plain cell."""
    case = Case([(30, 3)], units, 5)
    with using(form), torch.no_grad():
        filled = torch.full_like(case.attention, attention)
        out = evolved_states(case.inputs, case.offsets, filled, case.query_offsets, case.weight, case.bias, cell)
        plain = recurrent_states(case.inputs, case.offsets, case.weight, case.bias, torch.zeros(1, units))[-1]
        before = recurrent_states(case.inputs, case.offsets, case.weight, case.bias, torch.zeros(1, units))
    return out, plain, case, before


@pytest.mark.parametrize("form", FORMS, ids=form_names)
def test_augru_of_the_paper_with_full_attention_is_a_plain_gru_and_without_stays(form):
    """dien.md section 7, property 1."""
    out, plain, _, _ = evolved_with(form, "augru", 1.0)
    torch.testing.assert_close(out, plain.expand_as(out), rtol=1e-6, atol=1e-6)
    out, *_ = evolved_with(form, "augru", 0.0)
    assert not out.any()


@pytest.mark.parametrize("initial", [0.0, 1.7])
def test_without_attention_augru_returns_any_initial_state_unchanged(initial):
    """dien.md section 7, property 1, for a state that is not 0."""
    case = Case([(1, 1)], 6, 2)
    state = torch.full((4, 6), initial)
    x = torch.randn(4, 18, generator=torch.Generator().manual_seed(0)) * 9
    assert torch.equal(cell_step(x, state, case.weight, case.bias, "augru", torch.zeros(4)), state)


def contents(form, case, units=16):
    """Return the candidate content c of the last of 30 steps where every step takes its content as it is."""
    state = torch.zeros(1, units)
    ones = torch.ones(1)
    for t in range(30):
        state = cell_step(case.inputs[t : t + 1].detach(), state, case.weight, case.bias, "agru", ones)
    return state.detach()


@pytest.mark.parametrize("form", FORMS, ids=form_names)
def test_released_augru_without_attention_is_a_plain_gru_and_with_full_attention_takes_the_content(form):
    """dien.md section 7, property 2: the two variants are different models."""
    out, plain, case, _ = evolved_with(form, "released", 0.0)
    torch.testing.assert_close(out, plain.expand_as(out), rtol=1e-6, atol=1e-6)
    out, *_ = evolved_with(form, "released", 1.0)
    torch.testing.assert_close(out, contents(form, case).expand_as(out), rtol=1e-5, atol=1e-6)
    half, *_ = evolved_with(form, "released", 0.5)
    ours, *_ = evolved_with(form, "augru", 0.5)
    assert not torch.allclose(half, ours, atol=1e-2)


@pytest.mark.parametrize("form", FORMS, ids=form_names)
def test_agru_takes_the_content_and_aigru_is_a_plain_gru_with_full_attention(form):
    """dien.md section 7, property 3."""
    out, plain, case, _ = evolved_with(form, "agru", 1.0)
    content = contents(form, case)
    torch.testing.assert_close(out, content.expand_as(out), rtol=1e-5, atol=1e-6)
    assert not torch.allclose(content[0], plain, atol=1e-2)
    out, plain, _, _ = evolved_with(form, "aigru", 1.0)
    torch.testing.assert_close(out, plain.expand_as(out), rtol=1e-6, atol=1e-6)


def test_the_content_is_what_the_equation_says():
    """With all of the content taken, one step from a state h is tanh(x_c + r * U_c h + b_c)."""
    case = Case([(1, 1)], 6, 2, torch.float64)
    state = torch.randn(1, 6, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    x, ones = case.inputs[:1], torch.ones(1, dtype=torch.float64)
    r = torch.sigmoid(x[:, 6:12] + state @ case.weight[6:12].T + case.bias[6:12])
    c = torch.tanh(x[:, 12:] + r * (state @ case.weight[12:].T) + case.bias[12:])
    for cell in ("agru", "released"):
        torch.testing.assert_close(cell_step(x, state, case.weight, case.bias, cell, ones), c)


@compiled
@pytest.mark.parametrize("name", LIBRARIES)
def test_extreme_inputs_stay_finite_and_exact(name):
    case = Case([(20, 2)], 16, 7)
    with torch.no_grad():
        case.inputs *= 60
    with using(None):
        plain, _ = case.evolved("augru")
    with using(LIBRARIES[name]):
        twin, operands = case.evolved("augru")
    assert_same(twin, plain, operands, tolerance=5e-6)


@compiled
def test_what_is_kept_for_the_backward_pass_is_a_sixteenth_of_the_states():
    case = Case([(100, 3), (15, 2), (16, 2), (17, 2), (0, 5)], 16, 0)
    args = (case.inputs, case.attention, None, case.weight, case.bias, case.query_offsets, case.offsets, 1, False)
    with torch.no_grad():
        *_, kept = recurrence(*args, True)
        *_, none = recurrence(*args, False)
    assert kept.shape == (3 * 6 + 0 + 0 + 2, 16)
    assert none.numel() == 0


@compiled
@pytest.mark.parametrize("name", LIBRARIES)
def test_what_would_reach_beyond_the_arrays_is_refused(name):
    case = Case([(3, 2), (4, 1)], 16, 0)
    operands = (case.weight, case.bias)
    with using(LIBRARIES[name]), torch.no_grad():
        with pytest.raises(ValueError, match="offsets must rise from 0 to 7"):
            evolved_states(case.inputs, torch.tensor([0, 3, 9]), case.attention, case.query_offsets, *operands, "augru")
        with pytest.raises(ValueError, match="query_offsets must rise from 0 to 3"):
            evolved_states(case.inputs, case.offsets, case.attention, torch.tensor([0, 4, 3]), *operands, "augru")
        with pytest.raises(ValueError, match="attention must have 10 rows, got 9"):
            evolved_states(case.inputs, case.offsets, case.attention[1:], case.query_offsets, *operands, "augru")
        with pytest.raises(ValueError, match="must have the 2 rows of the steps, got 1"):
            evolved_states(case.inputs, case.offsets, case.attention, torch.tensor([0, 3]), *operands, "augru")
        with pytest.raises(ValueError, match="initial must have 2 rows, got 1"):
            recurrent_states(case.inputs, case.offsets, *operands, case.initial[:1])
        for name, tensors in {
            "weight": (case.inputs, case.weight[:, :8], case.bias, case.initial),
            "inputs": (case.inputs[:, :47], case.weight[:45, :15], case.bias[:45], case.initial[:, :15]),
            "bias": (case.inputs, case.weight, case.bias[:3], case.initial),
            "initial": (case.inputs, case.weight, case.bias, case.initial[:, :2]),
        }.items():
            inputs, weight, bias, initial = tensors
            with pytest.raises(ValueError, match=f"{name} must be of shape"):
                recurrence(inputs, None, initial, weight, bias, torch.arange(3), case.offsets, 0, True, True)


@compiled
@pytest.mark.parametrize("name", LIBRARIES)
def test_the_operator_is_registered_whole(name):
    case = Case([(20, 2), (4, 1)], 16, 0)
    shared = (case.weight, case.bias)
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    with using(LIBRARIES[name]):
        per_row = (case.inputs, None, case.initial, *shared, torch.arange(3), case.offsets, 0, True, True)
        torch.library.opcheck(recurrence, per_row, test_utils=checks)
        per_pair = (case.inputs, case.attention, None, *shared, case.query_offsets, case.offsets, 1, False, True)
        torch.library.opcheck(recurrence, per_pair, test_utils=checks)
