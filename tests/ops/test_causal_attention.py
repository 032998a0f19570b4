import resource

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.reference.slow_causal_attention import slow_attention

from sostenuto.ops import causal_attention as module
from sostenuto.ops.causal_attention import OwnKey, RelativeBias, causal_attention, masks, plan_attention, time_bucket
from sostenuto.ops.jagged import lengths_to_offsets, position_in_row, row_index


def drawn_case(asked, known, *, heads=2, seed=0, with_bias=True, owns=1, dtype=torch.float64):
    torch.manual_seed(seed)
    query_offsets, key_offsets = (lengths_to_offsets(torch.tensor(n)) for n in (asked, known))
    num_queries, num_keys = sum(asked), sum(known)
    limit = torch.tensor(known)[row_index(query_offsets)]
    visible = (torch.rand(num_queries) * (limit + 1)).long().clamp(max=limit)

    def leaf(*shape):
        return torch.randn(*shape, dtype=dtype).requires_grad_()

    query, key, value = leaf(num_queries, heads, 3), leaf(num_keys, heads, 3), leaf(num_keys, heads, 5)
    own = [OwnKey(leaf(num_queries, heads, 3), leaf(num_queries, heads, 5), distance) for distance in range(owns)]
    bias = None
    if with_bias:
        bias = RelativeBias(
            leaf(6),
            leaf(129),
            torch.randint(0, 5, (num_queries,)).sort().values,
            torch.randint(0, 12, (num_keys,)),
            torch.randint(0, 3, (num_queries,)).sort().values * 10**7 + 1_600_000_000,
            torch.randint(0, 10**8, (num_keys,)) + 1_500_000_000,
        )
    return query, key, value, query_offsets, key_offsets, visible, bias, own


def leaves(query, key, value, bias, own):
    tables = [] if bias is None else [bias.position, bias.time]
    return [query, key, value, *tables, *(t for one in own for t in (one.key, one.value))]


lengths = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=4)


@pytest.mark.parametrize("form", ["silu", "softmax"])
@settings(max_examples=40)
@given(rows=lengths, seed=st.integers(0, 99), with_bias=st.booleans(), owns=st.integers(0, 2), tile=st.integers(8, 200))
def test_values_and_gradients_are_those_of_the_loop(form, rows, seed, with_bias, owns, tile):
    rows = [*rows, (3, 4), (9, 5)]
    case = drawn_case([q for q, _ in rows], [k for _, k in rows], seed=seed, with_bias=with_bias, owns=owns)
    query, key, value, query_offsets, key_offsets, visible, bias, own = case
    options = {"form": form, "scale": 0.7, "normaliser": 4.0, "bias": bias, "own": own}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "TILE", tile)
        patch.setattr(module, "LEAST_QUERIES", 2)
        plan = plan_attention(query_offsets, key_offsets, visible)
        fast = causal_attention(query, key, value, plan, **options)
        slow = slow_attention(query, key, value, query_offsets, key_offsets, visible, **options)
        torch.testing.assert_close(fast, slow, rtol=1e-9, atol=1e-9)
        push = torch.randn_like(fast)
        parts = leaves(query, key, value, bias, own)
        got = torch.autograd.grad(fast, parts, push, allow_unused=True)
    wanted = torch.autograd.grad(slow, parts, push, allow_unused=True)
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(
            torch.zeros(1) if a is None else a, torch.zeros_like(a) if b is None else b, rtol=1e-7, atol=1e-8
        )
    assert plan.num_pairs == int(visible.sum())


@pytest.mark.parametrize("form", ["silu", "softmax"])
def test_long_rows_in_tiles_are_those_of_one_dense_matrix(form):
    known = [700, 3, 260, 40, 41]
    torch.manual_seed(0)
    offsets = lengths_to_offsets(torch.tensor(known))
    visible = position_in_row(offsets) + 1
    query, key, value = (torch.randn(sum(known), 2, 8) for _ in range(3))
    out = causal_attention(query, key, value, plan_attention(offsets, offsets, visible), form=form, normaliser=9.0)
    for a, b in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
        score = torch.einsum("qhd,khd->hqk", query[a:b], key[a:b])
        seen = torch.ones(b - a, b - a, dtype=torch.bool).tril()
        weight = torch.nn.functional.silu(score) * seen / 9.0
        if form == "softmax":
            weight = score.masked_fill(~seen, -torch.inf).softmax(2)
        wanted = torch.einsum("hqk,khd->qhd", weight, value[a:b])
        torch.testing.assert_close(out[a:b], wanted, rtol=1e-4, atol=1e-4)


def test_the_upper_triangle_is_not_computed():
    for known in ([1000], [4000], [100] * 20, [30] * 50):
        offsets = lengths_to_offsets(torch.tensor(known))
        plan = plan_attention(offsets, offsets, position_in_row(offsets))
        assert plan.num_pairs == sum(n * (n - 1) // 2 for n in known)
        squares = sum(n * n for n in known)
        assert plan.num_scores <= (0.6 if known[0] >= 1000 else 1.05 if known[0] < 100 else 0.7) * squares


@pytest.mark.slow
@pytest.mark.parametrize("form", ["silu", "softmax"])
def test_ten_thousand_tokens_need_no_square_matrix(form):
    offsets = torch.tensor([0, 10_000])
    plan = plan_attention(offsets, offsets, torch.arange(10_000))
    parts = [torch.randn(10_000, 2, 32, requires_grad=True) for _ in range(3)]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    causal_attention(*parts, plan, form=form).square().sum().backward()
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 150_000  # KiB; one head's scores would be 390,625


def test_what_a_query_cannot_see_gets_no_gradient():
    query, key, value, query_offsets, key_offsets, _, bias, _ = drawn_case([1], [5], owns=0)
    plan = plan_attention(query_offsets, key_offsets, torch.tensor([3]))
    causal_attention(query, key, value, plan, bias=bias).sum().backward()
    assert key.grad[:3].any(2).all()
    assert not key.grad[3:].any()
    assert not value.grad[3:].any()


@pytest.mark.parametrize("form", ["silu", "softmax"])
def test_a_query_that_sees_nothing_gives_zeros_and_finite_gradients(form):
    query, key, value, query_offsets, key_offsets, visible, bias, _ = drawn_case([2, 1], [4, 0], owns=0)
    plan = plan_attention(query_offsets, key_offsets, torch.zeros_like(visible))
    out = causal_attention(query, key, value, plan, form=form, bias=bias)
    assert not out.any()
    out.sum().backward()
    assert not any(t.grad.any() for t in (query, key, value))


def test_a_query_may_not_see_into_the_next_row():
    with pytest.raises(ValueError, match="visible must lie between 0 and the keys"):
        plan_attention(torch.tensor([0, 1, 2]), torch.tensor([0, 3, 6]), torch.tensor([4, 1]))


def test_buckets_are_the_published_ones():
    gaps = torch.tensor([0, 1, -5, 2, 60, 3600, 86_400, 10**9], dtype=torch.int32)
    assert time_bucket(gaps).tolist() == [0, 0, 0, 2, 13, 27, 37, 68]


def plain(rows):
    return torch.tensor([[mark == "x" for mark in row.replace(" ", "")] for row in rows])


def test_the_mask_of_two_flows_is_the_drawn_one():
    drawn = plain(["x.. ...", "xx. ...", "xxx ...", "... x..", "x.. .x.", "xx. ..x"])
    assert torch.equal(masks("dfgr", torch.tensor([3]), num_history=3)[0], drawn)


def test_behaviours_of_one_session_do_not_see_each_other():
    drawn = plain(["x.. ...", ".x. ...", "xxx ...", "... x..", "... .x.", "xx. ..x"])
    assert torch.equal(masks("dfgr", torch.tensor([3]), sessions=torch.tensor([[0, 0, 1]]), num_history=3)[0], drawn)


def test_the_interleaved_mask_is_the_drawn_one():
    drawn = plain(["x... ..", "xx.. ..", "xxx. ..", "xxxx ..", "xxxx x.", "xxxx .x"])
    assert torch.equal(masks("metagr", torch.tensor([2]), num_history=2, num_candidates=2)[0], drawn)


def test_candidates_see_all_history_and_themselves_and_padding_nothing():
    found = masks("sfgr", torch.tensor([2, 1]), num_history=2, num_candidates=2)
    assert torch.equal(found[0], plain(["x. ..", "xx ..", "xx x.", "xx .x"]))
    assert torch.equal(found[1], plain(["x. ..", ".. ..", "x. x.", "x. .x"]))
    assert torch.equal(found, masks("dfgr_infer", torch.tensor([2, 1]), num_history=2, num_candidates=2))


def test_mask_counts():
    """dfgr.md section 6, property 6: N^2 + N pairs against 2 N^2 + N."""
    for n in (1, 5, 12):
        assert int(masks("dfgr", torch.tensor([n]), num_history=n).sum()) == n * n + n
        assert int(masks("metagr", torch.tensor([n]), num_history=n).sum()) == 2 * n * n + n


def test_an_unknown_mode_is_refused():
    with pytest.raises(ValueError, match="mode must be one of metagr"):
        masks("both", torch.tensor([1]), num_history=1)
