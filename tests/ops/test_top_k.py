"""Searches against sorting every pair, by the plain form and by every compiled twin."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.ops.shapes import offsets_of, row_pairs
from tests.reference.slow_top_k import differing_bits, inner_product, slow_top_k

from sostenuto.native.library import available, using
from sostenuto.ops import top_k
from sostenuto.ops.native_rows import gather
from sostenuto.ops.native_top_k import hamming_search, product_search
from sostenuto.ops.table_rows import spread_rows
from sostenuto.ops.target_attention import UnitWeights, target_attention
from sostenuto.ops.top_k import hamming_top_k, inner_product_top_k, pack_signatures, selected

LIBRARIES = available()
FORMS = {"plain": None, **LIBRARIES}
needs_a_library = pytest.mark.skipif(not LIBRARIES, reason="no compiled library is here: install with a C++ compiler")


def offsets_of_pairs(pairs):
    return offsets_of([c for c, _ in pairs]), offsets_of([j for _, j in pairs])


def few_values(rows, width, most, seed):
    """Draw whole numbers in -most .. most: products are exact and ties are many."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-most, most + 1, (rows, width), generator=generator).float()


def as_lists(found):
    return [
        [(value, place) for value, place in zip(values, places, strict=True) if place >= 0]
        for values, places in zip(found.values.tolist(), found.positions.tolist(), strict=True)
    ]


@given(rows=st.integers(0, 5), bits=st.integers(0, 200), seed=st.integers(0, 999))
def test_a_signature_is_packed_in_words_of_64_bits_first_bit_lowest(rows, bits, seed):
    drawn = torch.rand(rows, bits, generator=torch.Generator().manual_seed(seed)) < 0.5
    packed = pack_signatures(drawn)
    assert packed.shape == (rows, -(-bits // 64))
    for row, words in zip(drawn.tolist(), packed.tolist(), strict=True):
        number = sum((word % 2**64) << (64 * at) for at, word in enumerate(words))
        assert number == sum(bit << at for at, bit in enumerate(row))


@pytest.mark.parametrize("name", FORMS)
@settings(max_examples=60)
@given(
    pairs=row_pairs,
    bits=st.sampled_from([1, 3, 64, 65, 128, 130, 200]),
    spread=st.sampled_from([0.05, 0.5]),
    k=st.integers(1, 9),
    seed=st.integers(0, 999),
)
def test_the_nearest_signatures_are_those_of_sorting_all(name, pairs, bits, spread, k, seed):
    starts, ends = offsets_of_pairs(pairs)
    generator = torch.Generator().manual_seed(seed)
    query = torch.rand(int(starts[-1]), bits, generator=generator) < spread
    key = torch.rand(int(ends[-1]), bits, generator=generator) < spread
    with using(FORMS[name]):
        found = hamming_top_k(pack_signatures(query), starts, pack_signatures(key), ends, k)
    assert found.positions.shape == found.values.shape == (query.shape[0], k)
    assert as_lists(found) == slow_top_k(query, starts, key, ends, k, distance=differing_bits)
    assert torch.equal(found.values < 0, found.positions < 0)


@pytest.mark.parametrize("name", FORMS)
@settings(max_examples=60)
@given(
    pairs=row_pairs, dim=st.integers(1, 20), most=st.sampled_from([1, 4]), k=st.integers(1, 9), seed=st.integers(0, 999)
)
def test_the_largest_products_are_those_of_sorting_all(name, pairs, dim, most, k, seed):
    starts, ends = offsets_of_pairs(pairs)
    query = few_values(int(starts[-1]), dim, most, seed)
    key = few_values(int(ends[-1]), dim, most, seed + 1)
    with using(FORMS[name]):
        found = inner_product_top_k(query, starts, key, ends, k)
    expected = slow_top_k(query, starts, key, ends, k, distance=lambda a, b: -inner_product(a, b))
    assert as_lists(found) == [[(-value, place) for value, place in row] for row in expected]
    assert torch.equal(found.values == -torch.inf, found.positions < 0)


@pytest.mark.parametrize("name", FORMS)
@settings(max_examples=30)
@given(
    length=st.integers(1, 700),
    k=st.sampled_from([1, 7, 50, 300]),
    kind=st.sampled_from(["any", "nearer and nearer", "further and further", "all alike"]),
    words=st.integers(1, 4),
    seed=st.integers(0, 999),
)
def test_long_rows_in_any_order(name, length, k, kind, words, seed):
    generator = torch.Generator().manual_seed(seed)
    distance = torch.randint(0, 64 * words + 1, (length,), generator=generator)
    distance = {
        "any": distance,
        "nearer and nearer": distance.sort(descending=True).values,
        "further and further": distance.sort().values,
        "all alike": distance[:1].expand(length),
    }[kind]
    bits = torch.arange(64 * words) < distance[:, None]
    query, starts, ends = torch.zeros(6, 64 * words, dtype=torch.bool), torch.tensor([0, 6]), torch.tensor([0, length])
    with using(FORMS[name]):
        codes = hamming_top_k(pack_signatures(query), starts, pack_signatures(bits), ends, k)
        products = inner_product_top_k(torch.ones(6, 1), starts, -distance[:, None].float(), ends, k)
    order = sorted(range(length), key=lambda j: (int(distance[j]), -j))[:k]
    expected = torch.tensor(order + [-1] * (k - len(order))).expand(6, k)
    assert torch.equal(codes.positions, expected)
    assert torch.equal(products.positions, expected)
    real = expected >= 0
    assert torch.equal(codes.values[real], distance[expected[real]])
    assert torch.equal(products.values[real], -distance[expected[real]].float())


@pytest.mark.parametrize("name", FORMS)
def test_behaviours_of_one_item_tie_to_the_newest_wherever_they_stand(name):
    generator = torch.Generator().manual_seed(0)
    items, query = torch.randn(30, 32, generator=generator), torch.randn(40, 32, generator=generator)
    which = torch.randint(0, 30, (3000,), generator=generator)
    with using(FORMS[name]):
        found = inner_product_top_k(query, torch.tensor([0, 40]), items[which], torch.tensor([0, 3000]), 500)
    same = which[found.positions][:, 1:] == which[found.positions][:, :-1]
    falling = found.positions[:, 1:] < found.positions[:, :-1]
    assert bool((falling | ~same).all())
    for candidate in found.positions:
        for item in which[candidate].unique():
            newest = (which == item).nonzero().flatten().flip(0)
            taken = candidate[which[candidate] == item]
            assert torch.equal(taken, newest[: len(taken)])


@pytest.mark.parametrize("name", FORMS)
def test_products_do_not_depend_on_the_batch_and_are_right_within_rounding(name):
    generator = torch.Generator().manual_seed(1)
    query, key = torch.randn(37, 19, generator=generator), torch.randn(301, 19, generator=generator)
    with using(FORMS[name]):
        together = inner_product_top_k(query, torch.tensor([0, 37]), key, torch.tensor([0, 301]), 20)
        for c in (0, 12, 36):
            alone = inner_product_top_k(query[c : c + 1], torch.tensor([0, 1]), key, torch.tensor([0, 301]), 20)
            assert torch.equal(alone.positions[0], together.positions[c])
            torch.testing.assert_close(alone.values[0], together.values[c], rtol=1e-6, atol=1e-6)
    exact = (query.double() @ key.double().T).topk(20).values
    torch.testing.assert_close(together.values, exact.float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", FORMS)
def test_what_is_no_number_comes_last_and_zeros_of_both_signs_tie(name):
    key = torch.tensor([[1.0], [torch.nan], [-0.0], [0.0], [-torch.inf], [-3.0]])
    with using(FORMS[name]):
        found = inner_product_top_k(torch.ones(1, 1), torch.tensor([0, 1]), key, torch.tensor([0, 6]), 6)
    assert found.positions.tolist() == [[0, 3, 2, 5, 4, 1]]
    assert found.values.tolist() == [[1.0, 0.0, 0.0, -3.0, -torch.inf, -torch.inf]]


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("k", [3, 60])
def test_threads_and_blocks_change_nothing(name, k, monkeypatch):
    generator = torch.Generator().manual_seed(2)
    starts, ends = offsets_of([70, 0, 1, 150]), offsets_of([500, 3, 0, 777])
    key = torch.randint(0, 5, (int(ends[-1]), 6), generator=generator).float()
    query = torch.randint(-3, 5, (int(starts[-1]), 6), generator=generator).float()
    codes = [pack_signatures(x @ torch.randn(6, 70, generator=generator) > 0) for x in (query, key)]
    before = torch.get_num_threads()
    found = []
    with using(FORMS[name]):
        for threads, block in ((1, 2048), (3, 64)):
            torch.set_num_threads(threads)
            monkeypatch.setattr(top_k, "BEHAVIOUR_BLOCK", block)
            monkeypatch.setattr(top_k, "CANDIDATE_BLOCK", block)
            try:
                found.append(
                    (
                        *hamming_top_k(codes[0], starts, codes[1], ends, k),
                        *inner_product_top_k(query, starts, key, ends, k),
                    )
                )
            finally:
                torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("name", FORMS)
@settings(max_examples=40)
@given(
    index=st.lists(st.integers(0, 19), min_size=0, max_size=60),
    dim=st.integers(1, 19),
    threads=st.sampled_from([1, 2, 3]),
)
def test_gathered_rows_have_a_dense_gradient(name, index, dim, threads):
    values = torch.randn(20, dim, generator=torch.Generator().manual_seed(0)).requires_grad_()
    asked = torch.tensor(index, dtype=torch.int64)
    upstream = torch.randn(len(index), dim, generator=torch.Generator().manual_seed(1))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with using(FORMS[name]):
            found = spread_rows(values, asked)
            found.backward(upstream)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found, values[asked])
    assert not values.grad.is_sparse
    torch.testing.assert_close(values.grad, torch.zeros(20, dim).index_add(0, asked, upstream))


@pytest.mark.parametrize("name", FORMS)
@given(pairs=row_pairs, seed=st.integers(0, 99))
def test_attention_over_all_that_was_found_is_exact_attention(name, pairs, seed):
    generator = torch.Generator().manual_seed(seed)
    starts, ends = offsets_of_pairs(pairs)
    query = torch.randn(int(starts[-1]), 5, generator=generator)
    key = torch.randn(int(ends[-1]), 5, generator=generator).requires_grad_()
    weights = [torch.randn(shape, generator=generator) for shape in ((4, 5), (4, 5), (4, 5), (4,), (4,), ())]
    with using(FORMS[name]):
        exact = target_attention(query, starts, key, ends, key, UnitWeights(*weights))
        found = inner_product_top_k(query, starts, key, ends, 6)  # at least every row
        row_starts, taken = selected(found.positions)
        mine = spread_rows(key, taken.positions)
        searched = target_attention(query, row_starts, mine, taken.offsets, mine, UnitWeights(*weights))
        torch.testing.assert_close(searched, exact, rtol=1e-4, atol=1e-4)
        expected, gradient = (torch.autograd.grad(out.sum(), key)[0] for out in (exact, searched))
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-4)


def test_a_short_history_makes_a_short_row():
    rows = selected(torch.tensor([[4, 2, -1], [-1, -1, -1], [0, 1, 2]]))
    assert rows.query_offsets.tolist() == [0, 1, 2, 3]
    assert rows.taken.positions.tolist() == [4, 2, 0, 1, 2]
    assert rows.taken.offsets.tolist() == [0, 2, 2, 5]


@pytest.mark.parametrize("search", [hamming_top_k, inner_product_top_k])
def test_a_search_that_makes_no_sense_is_refused(search):
    offsets, width = torch.tensor([0, 2]), torch.zeros(2, 3)
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        search(width, offsets, width, offsets, 0)
    with pytest.raises(ValueError, match="equally wide, got 3 and 2"):
        search(width, offsets, width[:, :2], offsets, 1)


@pytest.mark.parametrize("name", FORMS)
def test_signatures_of_other_words_are_refused(name):
    offsets, codes = torch.tensor([0, 2]), torch.zeros(2, 1, dtype=torch.int32)
    with using(FORMS[name]), pytest.raises(ValueError, match=r"int64 words, got torch\.int32"):
        hamming_top_k(codes, offsets, codes, offsets, 1)


@needs_a_library
@pytest.mark.parametrize("name", LIBRARIES)
def test_what_would_reach_beyond_the_arrays_is_refused(name):
    offsets, beyond = torch.tensor([0, 2]), torch.tensor([0, 3])
    codes, vectors = torch.zeros(2, 1, dtype=torch.int64), torch.zeros(2, 3)
    with using(LIBRARIES[name]):
        for search, rows in ((hamming_search, codes), (product_search, vectors)):
            with pytest.raises(ValueError, match="query_offsets must rise from 0 to 2"):
                search(rows, beyond, rows, offsets, 1)
            with pytest.raises(ValueError, match="key_offsets must rise from 0 to 2"):
                search(rows, offsets, rows, beyond, 1)
        with pytest.raises(IndexError, match=r"must be in \[0, 2\), got -1 to 1"):
            gather(vectors, torch.tensor([1, -1]))
        with pytest.raises(ValueError, match=r"key_offsets must be of shape \(3,\), got \(2,\)"):
            product_search(vectors, torch.tensor([0, 1, 2]), vectors, offsets, 1)
        whole = product_search(vectors, offsets, vectors, offsets, 1)
        assert torch.equal(product_search(vectors, offsets.int(), vectors, offsets.int(), 1)[0], whole[0])


@needs_a_library
@pytest.mark.parametrize("name", LIBRARIES)
def test_the_operators_are_registered_whole(name):
    offsets = torch.tensor([0, 2])
    codes, vectors = torch.ones(2, 1, dtype=torch.int64), torch.ones(2, 3)
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    with using(LIBRARIES[name]):
        torch.library.opcheck(hamming_search, (codes, offsets, codes, offsets, 3), test_utils=tests)
        torch.library.opcheck(product_search, (vectors, offsets, vectors, offsets, 3), test_utils=tests)
        torch.library.opcheck(gather, (vectors.clone().requires_grad_(), torch.tensor([1, 0, 1])), test_utils=tests)
