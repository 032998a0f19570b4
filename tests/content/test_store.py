import numpy as np
import pytest
import torch
from tests.content.invented import content_arrays

from sostenuto.content.neighbours import nearest
from sostenuto.content.store import ContentStore, open_content
from sostenuto.data.content_folder import write_content
from sostenuto.data.prepared import PreparedData
from sostenuto.features.collation import Collator
from sostenuto.features.view import HistoryView
from sostenuto.schema.errors import DataError, SpecError
from sostenuto.schema.features import ContentField

SIZES = ContentField(name="text", vector_dim=6, num_tokens=4, num_token_ids=11, token_dim=6, has_states=True)


@pytest.fixture
def with_text(shop):
    write_content(shop.folder, "text", **content_arrays(SIZES, 60, 0), encoder="invented", last_layer={}, heads=2)
    return shop


def test_a_folder_knows_its_content(with_text):
    assert list(with_text.content()) == ["text"]
    assert with_text.content()["text"].sizes == SIZES


def test_all_vectors_as_a_tensor_equal_the_rows(with_text):
    store = ContentStore(with_text.folder / "content" / "text")
    whole = store.tensor()
    assert whole.dtype == torch.float32
    np.testing.assert_array_equal(whole.numpy(), store.rows(np.arange(60)))
    assert store.tensor(torch.float16).dtype == torch.float16


def test_only_kinds_that_are_read_are_opened(with_text):
    store = ContentStore(with_text.folder / "content" / "text")
    bare = store.content(("vectors",))
    assert bare.tokens is None
    assert bare.states is None
    tokens = store.content(("tokens",))
    assert tokens.tokens.shape == (60, 4)
    assert tokens.states is None
    assert store.content().states.shape == (30, 4, 6)


def test_what_is_written_into_opened_content_stays_out_of_the_file(with_text):
    store = ContentStore(with_text.folder / "content" / "text")
    content = store.content()
    content.vectors.fill_(7.0)
    assert not (np.load(store.folder / "vectors.npy") == 7.0).any()


def test_the_collator_hands_sizes_on_and_the_view_chooses(with_text):
    assert Collator(with_text, HistoryView()).features.content == (SIZES,)
    assert Collator(with_text, HistoryView(content=())).features.content == ()
    with pytest.raises(SpecError, match="Did you mean 'text'"):
        Collator(with_text, HistoryView(content=("tex",)))
    with pytest.raises(SpecError, match="distinct names"):
        HistoryView(content=("text", "text"))


def test_content_that_is_missing_or_of_other_sizes_is_refused(with_text):
    other = ContentField(name="image", vector_dim=3)
    with pytest.raises(DataError, match="content 'image' must be in the prepared folder"):
        open_content(with_text, [other])
    with pytest.raises(DataError, match="must have the sizes"):
        open_content(with_text, [ContentField(name="text", vector_dim=7)])
    assert set(open_content(with_text, [SIZES])) == {"text"}


def test_a_folder_that_is_being_built_is_no_content(with_text):
    folder = with_text.folder / "content" / "other.building"
    folder.mkdir()
    (folder / "manifest.json").write_text("{}")
    assert list(PreparedData(with_text.folder).content()) == ["text"]


def test_the_nearest_items_are_those_of_highest_cosine_and_equal_ones_stand_once(shop):
    rng = np.random.default_rng(1)
    vectors = rng.normal(size=(60, 4)).astype(np.float16).astype(np.float32)
    vectors[9] = vectors[4]
    vectors[11] = vectors[10]
    known = np.ones(60, bool)
    known[20:] = False
    write_content(shop.folder, "mine", vectors=vectors, known=known, encoder="invented")
    store = ContentStore(shop.folder / "content" / "mine")
    found = nearest(store, 4, 100)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    slow = {row: float(unit[row] @ unit[4]) for row in range(2, 20) if row not in (4, 9, 11)}
    assert [row for row, _ in found] == sorted(slow, key=slow.get, reverse=True)
    assert dict(found) == pytest.approx(slow, abs=1e-5)
    with pytest.raises(DataError, match="item index 30 has none"):
        nearest(store, 30, 1)
