import copy

import numpy as np
import pytest
import torch

from sostenuto.layers import content_vectors
from sostenuto.layers.content_vectors import ContentVectors
from sostenuto.schema.content import ItemContent
from sostenuto.schema.errors import RunError, SpecError
from sostenuto.schema.features import ContentField

FIELD = ContentField(name="text", vector_dim=3)


def invented(num=6, width=3, *, codes=False):
    rng = np.random.default_rng(0)
    known = torch.tensor([False, False] + [True] * (num - 2))
    if codes:
        vectors = torch.from_numpy(rng.integers(-127, 128, (num, width)).astype(np.int8))
        return ItemContent(name="text", arrays_hash="a", known=known, vectors=vectors, scale=torch.rand(num))
    vectors = torch.from_numpy(rng.normal(size=(num, width)).astype(np.float16))
    return ItemContent(name="text", arrays_hash="a", known=known, vectors=vectors)


@pytest.mark.parametrize("codes", [True, False])
def test_rows_are_codes_times_scale(codes):
    layer, content = ContentVectors(FIELD, 6), invented(codes=codes)
    layer.set_content(content)
    item = torch.tensor([5, 2, 2])
    scale = content.scale if codes else torch.ones(6)
    wanted = torch.stack([content.vectors[i].float() * scale[i] for i in item])
    assert torch.equal(layer(item), wanted)
    assert layer(item).dtype == torch.float32
    assert layer.is_known(torch.tensor([0, 1, 2])).tolist() == [False, False, True]


def test_nothing_is_trained_saved_or_copied():
    layer, content = ContentVectors(FIELD, 6), invented(codes=True)
    layer.set_content(content)
    assert list(layer.parameters()) == []
    assert layer.state_dict() == {}
    assert not layer(torch.tensor([2])).requires_grad
    assert layer.vectors.data_ptr() == content.vectors.data_ptr()


def test_asking_before_content_came_says_what_to_do():
    with pytest.raises(RunError, match="call take_content"):
        ContentVectors(FIELD, 6)(torch.tensor([1]))


@pytest.mark.parametrize(("num", "width"), [(7, 3), (6, 4)])
def test_content_of_another_shape_is_refused(num, width):
    with pytest.raises(SpecError, match=r"must have the shape \(6, 3\)"):
        ContentVectors(FIELD, 6).set_content(invented(num, width))


@pytest.mark.parametrize("codes", [True, False])
def test_inverse_lengths_are_those_of_the_stored_rows(codes, monkeypatch):
    monkeypatch.setattr(content_vectors, "ROWS_AT_ONCE", 4)
    layer, content = ContentVectors(FIELD, 6), invented(codes=codes)
    content.vectors[3] = 0
    layer.set_content(content)
    item = torch.tensor([5, 3, 0, 5, 1])
    wanted = [0.0 if i in (0, 1, 3) else 1.0 / content.vectors[i].float().norm() for i in item.tolist()]
    torch.testing.assert_close(layer.inverse_length(item), torch.tensor(wanted, dtype=torch.float64), rtol=1e-6, atol=0)


def test_lengths_are_taken_once_per_content_and_follow_it(monkeypatch):
    layer, taken = ContentVectors(FIELD, 6), []
    real = torch.Tensor.norm
    monkeypatch.setattr(torch.Tensor, "norm", lambda rows, *a, **k: taken.append(len(rows)) or real(rows, *a, **k))
    for content in (invented(codes=True), invented()):
        layer.set_content(content)
        assert not taken  # nobody asked
        for item in ([2, 3], [5], []):
            layer.inverse_length(torch.tensor(item, dtype=torch.int64))
        assert taken == [6]
        taken.clear()
        assert float(layer.inverse_length(torch.tensor([4]))) == pytest.approx(
            1.0 / float(real(content.vectors[4].float())), rel=1e-6
        )
    assert layer.state_dict() == {}


def test_lengths_move_with_the_layer_and_a_copy_has_its_own():
    layer = ContentVectors(FIELD, 6)
    layer.set_content(invented(codes=True))
    layer.inverse_length(torch.tensor([2]))
    other = copy.deepcopy(layer)
    other.set_content(invented())
    assert not torch.equal(other.inverse_length(torch.arange(6)), layer.inverse_length(torch.arange(6)))
    before = layer.inverse_length(torch.arange(6))
    assert torch.equal(layer.to(torch.float32).inverse_length(torch.arange(6)), before)  # no digit is lost
    assert layer.to("meta").inverse.device.type == "meta"
