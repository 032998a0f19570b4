import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.ops.shapes import offsets_of, row_pairs
from tests.reference.slow_buckets import slow_sdim

import sostenuto.ops.bucket_sum as module
from sostenuto.ops.bucket_sum import bucket_mean, bucket_sum, direction
from sostenuto.ops.jagged import row_index
from sostenuto.ops.simhash import bucket_ids, random_hyperplanes

DIM = 4


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(module, "ROW_BLOCK", 3)


def interest(query, query_offsets, key, key_offsets, value, planes, *, normalise=True):
    table = bucket_sum(value, bucket_ids(key, planes), key_offsets, 2 ** planes.shape[2])
    return bucket_mean(direction(table) if normalise else table, bucket_ids(query, planes), row_index(query_offsets))


def drawn(pairs, seed, bits=2, signatures=5):
    generator = torch.Generator().manual_seed(seed)
    key_offsets, query_offsets = offsets_of([a for a, _ in pairs]), offsets_of([b for _, b in pairs])
    key = torch.randn(int(key_offsets[-1]), DIM, generator=generator, dtype=torch.float64)
    query = torch.randn(int(query_offsets[-1]), DIM, generator=generator, dtype=torch.float64)
    value = torch.randn(int(key_offsets[-1]), 3, generator=generator, dtype=torch.float64)
    planes = random_hyperplanes(DIM, signatures, bits, generator=generator)
    return query, query_offsets, key, key_offsets, value.requires_grad_(), planes


@settings(max_examples=40)
@given(pairs=row_pairs, seed=st.integers(0, 999), bits=st.integers(0, 3), normalise=st.booleans())
def test_buckets_equal_the_direct_form_in_values_and_gradients(pairs, seed, bits, normalise):
    """sdim.md section 9, property 5."""
    case = drawn([(2, 1), *pairs], seed, bits)
    fast, slow = interest(*case, normalise=normalise), slow_sdim(*case, normalise=normalise)
    torch.testing.assert_close(fast, slow)
    upstream = torch.randn(fast.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    value = case[4]
    torch.testing.assert_close(torch.autograd.grad(fast, value, upstream), torch.autograd.grad(slow, value, upstream))


def test_bucket_sums_pass_gradcheck():
    *_, key_offsets, value, planes = drawn([(5, 1), (0, 1), (4, 1)], 2)
    ids = torch.randint(0, 4, (9, 5), generator=torch.Generator().manual_seed(0))
    assert torch.autograd.gradcheck(lambda v: bucket_sum(v, ids, key_offsets, 4), value)
    assert planes.shape == (DIM, 5, 2)


@settings(max_examples=20)
@given(pairs=row_pairs, seed=st.integers(0, 99))
def test_no_bits_are_mean_pooling(pairs, seed):
    """Property 3: with tau = 0 everything collides, and only the direction of the sum is left."""
    query, query_offsets, key, key_offsets, value, planes = drawn(pairs, seed, bits=0)
    found = interest(query, query_offsets, key, key_offsets, value, planes)
    row = row_index(query_offsets)
    for c in range(len(query)):
        sums = value[int(key_offsets[row[c]]) : int(key_offsets[row[c] + 1])].sum(0)
        torch.testing.assert_close(found[c], direction(sums[None])[0])


def test_an_empty_bucket_is_zero_and_silent():
    vectors = torch.zeros(2, 3, requires_grad=True)
    out = direction(vectors)
    assert not out.any()
    out.sum().backward()
    assert not vectors.grad.any()


@given(scale=st.sampled_from([1e-150, 1e-30, 1.0, 7.0, 1e30]), seed=st.integers(0, 99))
def test_direction_forgets_the_scale_and_has_length_one(scale, seed):
    vectors = torch.randn(3, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    torch.testing.assert_close(direction(vectors * scale), direction(vectors))
    torch.testing.assert_close(direction(vectors).norm(dim=1), torch.ones(3, dtype=torch.float64))


def test_direction_passes_gradcheck_and_has_no_radial_gradient():
    vectors = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    assert torch.autograd.gradcheck(direction, vectors)
    upstream = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    (gradient,) = torch.autograd.grad(direction(vectors), vectors, upstream)
    torch.testing.assert_close((gradient * vectors).sum(1), torch.zeros(3, dtype=torch.float64), atol=1e-12, rtol=0)


def test_thousands_of_terms_keep_their_digits(monkeypatch):
    value = torch.full((30_000, 1), 0.1)
    ids = torch.zeros(30_000, 1, dtype=torch.int64)
    monkeypatch.setattr(module, "ROW_BLOCK", 4096)
    total = bucket_sum(value, ids, torch.tensor([0, 30_000]), 1)
    torch.testing.assert_close(total.item(), 30_000 * float(value[0]), rtol=1e-12, atol=0)


def test_entropy_of_the_collision_weights_falls_with_tau():
    """Property 4: more bits look more sharply."""
    generator = torch.Generator().manual_seed(0)
    key = torch.randn(60, 8, generator=generator)
    query = key[:1] + 0.3 * torch.randn(1, 8, generator=generator)
    entropies = []
    for bits in (1, 2, 3, 5, 8):
        planes = random_hyperplanes(8, 4000, bits, generator=generator)
        share = (bucket_ids(key, planes) == bucket_ids(query, planes)).double().mean(1)
        share = share / share.sum()
        entropies.append(float(-(share * share.clamp(min=1e-30).log()).sum()))
    assert entropies == sorted(entropies, reverse=True)


def test_many_bits_leave_only_equal_directions():
    """Property 3: what is left at tau = 64 is what points the same way."""
    generator = torch.Generator().manual_seed(0)
    key = torch.randn(20, 8, generator=generator)
    planes = random_hyperplanes(8, 50, 64, generator=generator)
    value = torch.eye(20, dtype=torch.float64)
    found = slow_sdim(3.0 * key[4:5], torch.tensor([0, 1]), key, torch.tensor([0, 20]), value, planes)
    torch.testing.assert_close(found[0], value[4])


def clustered(seed):
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(8, 64, generator=generator, dtype=torch.float64)
    key = direction(centres[torch.arange(256) % 8] + 0.7 * torch.randn(256, 64, generator=generator))
    query = direction(centres[:4] + 0.7 * torch.randn(4, 64, generator=generator))
    return query, key, generator


def closed_form(query, key):
    angle = torch.arccos((query @ key.T).clamp(-1, 1))
    return (1.0 - angle / torch.pi) ** 3


def test_the_error_falls_like_one_over_root_g():
    """Property 2: 16 times the signatures, a quarter of the error; against softmax attention the cosine is high."""
    query, key, generator = clustered(1)
    expected = closed_form(query, key)
    errors = {}
    for signatures in (16, 256):
        runs = []
        for _ in range(12):
            planes = random_hyperplanes(64, signatures, 3, generator=generator)
            share = (bucket_ids(query, planes)[:, None] == bucket_ids(key, planes)[None]).double().mean(2)
            runs.append((share - expected).abs().max(1).values.mean())
        errors[signatures] = float(torch.stack(runs).mean())
    assert 3 <= errors[16] / errors[256] <= 5

    planes = random_hyperplanes(64, 64, 3, generator=generator)
    found = interest(query, torch.tensor([0, 4]), key, torch.tensor([0, 256]), key, planes)
    attention = (query @ key.T / 0.5).softmax(1) @ key
    assert (torch.cosine_similarity(found, attention) >= 0.95).all()
