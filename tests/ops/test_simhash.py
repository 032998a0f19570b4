import math

import pytest
import torch

from sostenuto.ops.simhash import PACKED_BITS, bucket_ids, packed_signatures, random_hyperplanes, signature_bits
from sostenuto.ops.top_k import pack_signatures


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def pair(angle, dim=8):
    """Two unit vectors with a known angle."""
    basis, _ = torch.linalg.qr(torch.randn(dim, 2, generator=generator(3), dtype=torch.float64))
    first, second = basis.T
    return torch.stack([first, math.cos(angle) * first + math.sin(angle) * second])


@pytest.mark.parametrize("bits", [1, 2, 3])
@pytest.mark.parametrize("angle", [0.0, 0.3, 1.0, 2.0, math.pi])
def test_the_collision_rate_is_the_closed_form(angle, bits):
    """sdim.md section 9, property 1: (1 - angle / pi) ** tau within 3 standard errors."""
    signatures = 20_000
    first, second = bucket_ids(pair(angle), random_hyperplanes(8, signatures, bits, generator=generator(bits)))
    rate = (first == second).double().mean()
    expected = (1.0 - angle / math.pi) ** bits
    error = math.sqrt(expected * (1.0 - expected) / signatures)
    assert abs(float(rate) - expected) <= 3 * error + 1e-12


def test_scale_changes_no_bucket():
    vectors = torch.randn(50, 8, generator=generator())
    planes = random_hyperplanes(8, 16, 3, generator=generator(1))
    assert torch.equal(bucket_ids(vectors, planes), bucket_ids(7.0 * vectors, planes))


def test_bits_are_packed_lowest_first():
    planes = torch.eye(3)[:, None, :]
    assert bucket_ids(torch.tensor([[1.0, -1.0, -1.0], [-1.0, -1.0, 2.0], [1.0, 1.0, 1.0]]), planes).tolist() == [
        [1],
        [4],
        [7],
    ]


def test_a_zero_vector_lies_on_the_low_side():
    assert not signature_bits(torch.zeros(1, 4), random_hyperplanes(4, 5, 2)).any()


def test_batch_shape_flips_no_bit_even_beside_a_plane():
    planes = random_hyperplanes(33, 16, 3, generator=generator(1))
    along = torch.randn(400, 33, generator=generator(2))
    normal = planes[:, 0, 0]
    near = along - (along @ normal)[:, None] * normal / normal.square().sum()  # float32 noise away from a plane
    whole = bucket_ids(near, planes)
    assert torch.equal(whole, torch.cat([bucket_ids(row[None], planes) for row in near]))
    assert torch.equal(whole[100:317], bucket_ids(near[100:317], planes))


def test_no_gradient_reaches_what_is_hashed():
    vectors = torch.randn(4, 8, requires_grad=True)
    assert not bucket_ids(vectors, random_hyperplanes(8, 4, 3)).requires_grad


@pytest.mark.parametrize("signatures", [1, 2, 4, 5])
def test_packed_signatures_are_the_packed_bits(signatures):
    planes = random_hyperplanes(7, signatures, PACKED_BITS, generator=generator())
    vectors = torch.randn(30, 7, generator=generator())
    vectors[3] = 0.0
    expected = pack_signatures(signature_bits(vectors, planes).flatten(1))
    assert torch.equal(packed_signatures(vectors, planes), expected)
