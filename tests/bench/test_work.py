"""Operations and bytes agree with counts by hand, and with what torch counts."""

import dataclasses

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from sostenuto.bench import attention, buckets, tables
from sostenuto.bench.arrays import AucSizes, auc_work
from sostenuto.bench.attention import AttentionSizes
from sostenuto.ops.target_attention import UnitWeights, deep_target_attention

SMALL = AttentionSizes(requests=1, candidates=2, length=3, dim=4, units=5)


def test_attention_forward_by_hand():
    work = attention.forward_work(SMALL)
    # a candidate: 5 x 4 multiply-adds for its matrix, as many for its part of the layer
    # a pair: 5 x 4 for the layer, 5 for the readout, 4 for the sum
    assert work.flops == 2 * (2 * 20 + 2 * 20) + 2 * 3 * (2 * 20 + 2 * 5 + 2 * 4)
    assert work.streamed_bytes == 4 * (2 * 4 + 2 * 4 + 3 * 4)  # queries, results, keys
    assert work.gathers == ()


def test_attention_training_by_hand():
    forward, work = attention.forward_work(SMALL), attention.training_work(SMALL)
    # a pair: two products of 5 x 4, a product and a sum of 5, two products of 4; a candidate: five of 5 x 4
    assert work.flops - forward.flops == 2 * 5 * 2 * 20 + 6 * (2 * 2 * 20 + 2 * 5 + 2 * 2 * 4)
    # keys once more and their gradient; queries, their gradient and that of the result
    assert work.streamed_bytes - forward.streamed_bytes == 4 * (2 * 3 * 4 + 3 * 2 * 4)


def test_values_of_their_own_are_read_and_softmax_and_prelu_computed():
    plain = attention.forward_work(SMALL)
    wide = attention.forward_work(dataclasses.replace(SMALL, width=4))
    assert wide.flops == plain.flops
    assert wide.streamed_bytes - plain.streamed_bytes == 4 * 3 * 4
    more = attention.forward_work(dataclasses.replace(SMALL, softmax=True, prelu=True))
    assert more.flops - plain.flops == 6 * (4 + 5)


def test_attention_agrees_with_what_torch_counts():
    sizes = AttentionSizes(requests=1, candidates=20, length=300, width=24)
    query, key, value = torch.randn(20, 32), torch.randn(300, 32), torch.randn(300, 24)
    weights = [torch.randn(64, 32) for _ in range(3)]
    unit = UnitWeights(*weights, torch.zeros(64), torch.randn(64), torch.zeros(()))
    offsets = (torch.tensor([0, 20]), torch.tensor([0, 300]))
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        deep_target_attention(query, offsets[0], key, offsets[1], value, unit, lambda layer: layer)
    # torch counts matrix products: neither the candidates' matrices nor the readout
    left_out = 20 * 2 * 64 * 32 + 20 * 300 * 2 * 64
    assert counter.get_total_flops() == attention.forward_work(sizes).flops - left_out


def test_bucket_sums_by_hand():
    work = buckets.sums_work(buckets.BucketSizes(users=1, length=2, signatures=3, bits=1, sets=1, width=2))
    # a behaviour: 2 products, 3 x 2 additions; back 3 x 2 additions and 2 multiply-adds
    assert (work.flops, work.double_flops) == (2 * (2 + 6), 2 * (6 + 4))
    # twice: 2 floats, 1 weight, a place, 3 buckets; the values' gradient; the table of 3 x 2 x 2 out, its gradient in
    assert work.streamed_bytes == 2 * 2 * (8 + 8 + 8 + 12) + 2 * 8 + 2 * 8 * 12


def test_a_lookup_fetches_a_row_a_signature():
    work = buckets.lookup_work(buckets.BucketSizes(users=1, candidates=7, signatures=3, bits=1, sets=2, width=2))
    (gather,) = work.gathers
    assert (gather.rows, gather.row_bytes, gather.table_bytes) == (21, 16, 4 * 3 * 2 * 4)


def test_table_rows_by_hand():
    work = tables.lookup_work(tables.LookupSizes(rows=1, lookups=5, dim=2))
    assert work.flops == 10
    assert work.gathered_bytes == 2 * 5 * 8
    assert work.streamed_bytes == 5 * (8 + 8 + 16) + (8 + 8)
    step = tables.step_work(tables.StepSizes(rows=10, touched=3, dim=2))
    assert step.gathered_bytes == 3 * 8 * 6
    assert step.moved_bytes == 3 * 8 * 6 + 3 * (8 + 8)


def test_gauc_reads_every_row_once():
    work = auc_work(AucSizes(rows=64, groups=4))
    assert (work.operations, work.moved_bytes) == (64 * 4, 64 * 20)


@pytest.mark.parametrize("prelu", [False, True])
def test_the_naive_form_gives_the_same_attention(prelu):
    sizes = AttentionSizes(requests=2, candidates=3, length=5, dim=4, units=6, width=3, softmax=True, prelu=prelu)
    case = attention.attention_training_beside_naive(sizes, 0)
    for ours, plain, naive in zip(case.ours(), case.plain(), case.naive(), strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(ours, naive, rtol=1e-4, atol=1e-5)
