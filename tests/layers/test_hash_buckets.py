import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.ops.shapes import offsets_of, row_pairs
from tests.reference.slow_buckets import collide, slow_sdim

from sostenuto.layers.hash_buckets import DAY_MS, HashBuckets
from sostenuto.ops.jagged import row_index

DIM, WIDTH = 4, 5


def layer(**changes):
    torch.manual_seed(0)
    settings_ = {"num_hashes": 12, "hash_bits": 2, "half_life_days": (3.0, 30.0), "counted": True, **changes}
    return HashBuckets(DIM, [WIDTH], **settings_)


def drawn(pairs, seed):
    generator = torch.Generator().manual_seed(seed)
    key_offsets, query_offsets = offsets_of([a for a, _ in pairs]), offsets_of([b for _, b in pairs])
    num, asked = int(key_offsets[-1]), int(query_offsets[-1])
    days = [torch.randint(0, 50, (a,), generator=generator).sort().values for a, _ in pairs]
    return {
        "vectors": torch.randn(num, DIM, generator=generator),
        "values": torch.randn(num, WIDTH, generator=generator),
        "offsets": key_offsets,
        "time_ms": torch.cat([torch.zeros(0, dtype=torch.int64), *days]) * DAY_MS + 1_000_000_000_000,
        "query": torch.randn(asked, DIM, generator=generator),
        "query_offsets": query_offsets,
    }


def encoded(buckets, case, part=None):
    if part is None:
        part = torch.ones(len(case["values"]), dtype=torch.bool)
    row = row_index(case["offsets"])
    lengths = torch.bincount(row[part], minlength=len(case["offsets"]) - 1)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    place = torch.arange(len(part))[part]
    return buckets.encode(buckets.hash(case["vectors"]), place, case["values"][part], offsets, case["time_ms"][part])


def found(buckets, state, case):
    ids, offsets = buckets.hash(case["query"]), case["query_offsets"]
    return buckets.lookup(state, ids, offsets), buckets.collisions(state, ids, row_index(offsets))


@settings(max_examples=25)
@given(pairs=row_pairs, seed=st.integers(0, 999))
def test_every_set_equals_its_direct_form_with_ages_counted_from_the_request(pairs, seed):
    """The request-time factor cancels in the division by |u|, so ages may count from any moment."""
    buckets, case = layer(), drawn([(3, 2), *pairs], seed)
    interest, _ = found(buckets, encoded(buckets, case), case)
    asked_at = int(case["time_ms"].max()) + 11 * DAY_MS
    for s, half_life in enumerate([float("inf"), 3.0, 30.0]):
        weights = 0.5 ** ((asked_at - case["time_ms"]).double() / DAY_MS / half_life)
        expected = slow_sdim(
            case["query"],
            case["query_offsets"],
            case["vectors"],
            case["offsets"],
            case["values"],
            buckets.planes,
            weights=weights,
        )
        torch.testing.assert_close(interest[:, s], expected.float(), rtol=1e-5, atol=1e-6)


@settings(max_examples=25)
@given(pairs=row_pairs, seed=st.integers(0, 999), cut=st.integers(0, 49))
def test_folding_events_in_equals_encoding_anew(pairs, seed, cut):
    buckets, case = layer(), drawn([(3, 2), *pairs], seed)
    early = case["time_ms"] < 1_000_000_000_000 + cut * DAY_MS
    state = buckets.append(encoded(buckets, case, early), encoded(buckets, case, ~early))
    whole = encoded(buckets, case)
    torch.testing.assert_close(state.sums, whole.sums, rtol=1e-5, atol=1e-5)
    assert torch.equal(state.counts, whole.counts)
    assert torch.equal(state.lengths, whole.lengths)
    assert torch.equal(state.reference_ms, whole.reference_ms)


def test_a_thousand_single_events_equal_one_encoding():
    buckets, case = layer(half_life_days=(1.0,)), drawn([(1000, 3)], 5)
    state = encoded(buckets, case, torch.zeros(1000, dtype=torch.bool))
    for j in range(1000):
        state = buckets.append(state, encoded(buckets, case, torch.arange(1000) == j))
    whole, _ = found(buckets, encoded(buckets, case), case)
    torch.testing.assert_close(found(buckets, state, case)[0], whole, rtol=1e-5, atol=1e-6)


@given(seed=st.integers(0, 99))
@settings(max_examples=10)
def test_scale_changes_nothing(seed):
    """sdim.md section 9, property 6."""
    buckets, case = layer(), drawn([(6, 3)], seed)
    before, _ = found(buckets, encoded(buckets, case), case)
    scaled = case | {"query": 7 * case["query"], "vectors": 7 * case["vectors"], "values": 7 * case["values"]}
    torch.testing.assert_close(found(buckets, encoded(buckets, scaled), scaled)[0], before)


def test_gradients_reach_exactly_the_behaviours_that_collide():
    """Property 7: nothing flows to what is hashed, and values that never collide stay silent."""
    buckets, case = layer(num_hashes=9, hash_bits=3, half_life_days=()), drawn([(30, 1)], 3)
    case["values"].requires_grad_()
    case["query"].requires_grad_()
    case["vectors"].requires_grad_()
    interest, _ = found(buckets, encoded(buckets, case), case)
    interest.square().sum().backward()
    assert case["query"].grad is None
    assert case["vectors"].grad is None
    upstream = torch.randn(interest.shape, generator=torch.Generator().manual_seed(1))
    case["values"].grad = None
    found(buckets, encoded(buckets, case), case)[0].backward(upstream)
    touched = case["values"].grad.abs().sum(1) > 0
    # generic values: a bucket with one behaviour has a gradient too, across its direction
    assert torch.equal(touched, collide(case["query"][0], case["vectors"], buckets.planes).any(1))


def test_the_order_of_behaviours_changes_nothing():
    buckets, case = layer(half_life_days=()), drawn([(9, 3)], 3)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(0))
    turned = case | {"vectors": case["vectors"][order], "values": case["values"][order]}
    torch.testing.assert_close(
        found(buckets, encoded(buckets, turned), turned)[0], found(buckets, encoded(buckets, case), case)[0]
    )


def test_an_empty_history_is_exactly_zero_with_finite_gradients():
    buckets, case = layer(), drawn([(0, 2)], 1)
    case["values"].requires_grad_()
    interest, count = found(buckets, encoded(buckets, case), case)
    assert not interest.any()
    assert not count.any()
    interest.sum().backward()
    assert torch.isfinite(case["values"].grad).all()


def test_counts_are_the_mean_sizes_of_the_buckets_met():
    buckets, case = layer(), drawn([(20, 2), (4, 1)], 2)
    _, count = found(buckets, encoded(buckets, case), case)
    for c, (a, b) in enumerate([(0, 20), (0, 20), (20, 24)]):
        met = collide(case["query"][c], case["vectors"][a:b], buckets.planes).sum(0).float().mean()
        torch.testing.assert_close(count[c, 0], met)


def test_hyperplanes_travel_with_the_checkpoint():
    """Property 9: fixed for the life of the model."""
    first = layer()
    torch.manual_seed(1)
    second = HashBuckets(DIM, [WIDTH], num_hashes=12, hash_bits=2, half_life_days=(3.0, 30.0), counted=True)
    assert not torch.equal(first.planes, second.planes)
    second.load_state_dict(first.state_dict())
    case = drawn([(9, 3)], 3)
    assert torch.equal(found(first, encoded(first, case), case)[0], found(second, encoded(second, case), case)[0])
    assert not any(parameter.requires_grad for parameter in first.parameters())


@pytest.mark.parametrize("length", [10, 3000])
def test_the_state_has_one_size_whatever_the_history(length):
    """Property 10."""
    buckets, case = layer(), drawn([(length, 3)], 3)
    assert encoded(buckets, case).sums.shape == (1, 6, 4, 3, WIDTH)
