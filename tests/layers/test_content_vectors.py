import numpy as np
import pytest
import torch

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
