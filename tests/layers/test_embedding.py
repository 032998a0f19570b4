import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.contract.batches import PREPARED, make_batch

from sostenuto.layers.embedding import FieldEncoder, ItemEmbedding, Table, TimedVectors, standardise
from sostenuto.schema import features
from sostenuto.schema.features import FeatureSpec, Field


@given(st.lists(st.integers(0, 9), min_size=1, max_size=20))
def test_a_lookup_equals_indexing_and_touches_only_its_rows(index):
    table = Table(10, 3, std=1.0)
    found = table(torch.tensor(index))
    assert torch.equal(found, table.weight[torch.tensor(index)])
    found.square().sum().backward()
    gradient = table.weight.grad.coalesce()
    assert gradient.indices()[0].tolist() == sorted(set(index) - {0})
    expected = torch.zeros(10, 3).index_add(0, torch.tensor(index), 2 * found.detach())
    expected[0] = 0
    torch.testing.assert_close(gradient.to_dense(), expected)


def test_the_padding_row_is_zero():
    table = Table(4, 2, std=1.0)
    assert not table(torch.tensor([[0, 0]])).any()


def test_a_table_needs_rows_and_columns():
    with pytest.raises(ValueError, match="0 rows of width 4"):
        Table(0, 4)


def test_missing_numbers_become_the_mean():
    assert standardise(torch.tensor([3.0, torch.nan, 5.0]), 3.0, 2.0).tolist() == [0.0, 0.0, 1.0]
    assert standardise(torch.tensor([3.0, 4.0]), 3.0, 0.0).tolist() == [0.0, 1.0]


def test_every_kind_of_field_is_read():
    fields = (
        Field(name="brand", kind="categorical", size=5),
        Field(name="price", kind="numeric", mean=1.0, std=2.0),
        Field(name="tags.all", kind="multi", size=6, width=3),
        Field(name="shape", kind="vector", width=2),
    )
    encoder = FieldEncoder(fields, 4, std=1.0)
    columns = {
        "brand": torch.tensor([2, 0]),
        "price": torch.tensor([5.0, torch.nan]),
        "tags.all": torch.tensor([[2, 3, 0], [0, 0, 0]]),
        "shape": torch.tensor([[0.5, torch.nan], [1.0, 2.0]]),
    }
    vector = encoder(columns, 2)
    assert vector.shape == (2, encoder.out_dim) == (2, 4 + 1 + 4 + 2)
    tags = encoder.tables["tags/all"].weight
    torch.testing.assert_close(vector[0, 5:9], (tags[2] + tags[3]) / 2)
    assert vector[:, 4].tolist() == [2.0, 0.0]
    assert vector[0, 9:].tolist() == [0.5, 0.0]
    assert not vector[1, :9].any()


def test_no_fields_make_an_empty_vector():
    assert FieldEncoder((), 4)({}, 3).shape == (3, 0)


def embedded(items, item):
    num = len(item)
    return items(torch.tensor(item), torch.zeros(num, 0, dtype=torch.int64), {})


def test_items_without_a_row_share_the_unknown_row():
    items = ItemEmbedding(FeatureSpec(num_items=20, num_item_rows=10), item_dim=4, category_dim=0, field_dim=0, std=1.0)
    rows = embedded(items, [1, 10, 19, 9])
    assert torch.equal(rows[0], rows[1])
    assert torch.equal(rows[0], rows[2])
    assert not torch.equal(rows[0], rows[3])


def test_behaviours_and_candidates_share_one_space():
    items = ItemEmbedding(PREPARED, item_dim=4, category_dim=2, field_dim=2, std=1.0)
    batch = make_batch(PREPARED, [(3, 3)], 1)
    history, candidates = batch.histories, batch.candidates
    past = items(history.item, history.category, history.fields)
    asked = items(candidates.item, candidates.category, candidates.fields)
    assert past.shape[1] == asked.shape[1] == items.out_dim
    assert items.identity_dim == 4 + 2 * 2


def test_identity_may_be_left_out_while_something_remains():
    items = ItemEmbedding(PREPARED, item_dim=0, category_dim=2, field_dim=0)
    assert items.out_dim == 4
    with pytest.raises(ValueError, match="set item_dim to 8 or more"):
        ItemEmbedding(FeatureSpec(num_items=9, num_item_rows=9), item_dim=0, category_dim=2, field_dim=2)


def test_id_dropout_hides_whole_items_in_training_only():
    spec = FeatureSpec(num_items=200, num_item_rows=200)
    items = ItemEmbedding(spec, item_dim=4, category_dim=0, field_dim=0, std=1.0, id_dropout=0.5)
    index = [*range(2, 200), *range(2, 200)]
    torch.manual_seed(0)
    rows = embedded(items, index)
    hidden = (rows == items.item.weight[1]).all(1)
    assert 60 < int(hidden[:198].sum()) < 140
    assert torch.equal(hidden[:198], hidden[198:])
    assert torch.equal(embedded(items.eval(), index)[:198], items.item.weight[2:])


def timed(spec, parts=1, dim=3):
    rng = torch.Generator().manual_seed(0)
    shape = (spec.num_items, parts * dim)
    return TimedVectors(
        last=torch.randn(shape, generator=rng),
        past=torch.randn(3, *shape, generator=rng).half(),
        starts_ms=torch.tensor([100, 200, 300]),
    )


def test_training_sees_the_version_of_the_newest_behaviour_and_evaluation_the_last():
    spec = FeatureSpec(num_items=20, num_item_rows=10)
    items = ItemEmbedding(spec, item_dim=0, category_dim=0, field_dim=0, vector_dim=3, key_vector_dim=2)
    vectors = timed(spec)
    items.set_vectors(vectors)
    assert items.version_at(torch.tensor([0, 99, 100, 199, 200, 5000])).tolist() == [0, 0, 0, 0, 1, 2]
    offsets, times = torch.tensor([0, 2, 2, 3]), torch.tensor([50, 250, 300])
    version = items.version_of_behaviours(offsets, times)
    assert version.tolist() == [1, 1, 2]
    item = torch.tensor([4, 5, 6])
    expected = vectors.past[version, item].float()
    assert torch.equal(items.fixed(item, version), expected)
    assert torch.equal(items(item, torch.zeros(3, 0, dtype=torch.int64), {}, version), expected[:, :2])
    items.eval()
    assert items.version_at(torch.tensor([150])) is None
    assert items.version_of_behaviours(offsets, times) is None
    assert torch.equal(items.fixed(item), vectors.last[item])


def test_past_versions_are_not_saved():
    spec = FeatureSpec(num_items=20, num_item_rows=10)
    items = ItemEmbedding(spec, item_dim=0, category_dim=0, field_dim=0, vector_dim=3, key_vector_dim=2)
    items.set_vectors(timed(spec))
    assert set(items.state_dict()) == {"vectors"}


def test_items_beyond_the_bound_have_a_zero_vector(monkeypatch):
    monkeypatch.setattr(features, "MOST_VECTOR_ITEMS", 10)
    spec = FeatureSpec(num_items=20, num_item_rows=10)
    items = ItemEmbedding(spec, item_dim=0, category_dim=0, field_dim=0, vector_dim=3, key_vector_dim=2)
    last, past = torch.ones(10, 3), torch.ones(2, 10, 3)
    last[0], past[:, 0] = 0, 0
    items.set_vectors(TimedVectors(last=last, past=past.half(), starts_ms=torch.tensor([1, 2])))
    item = torch.tensor([9, 10, 19])
    assert items.fixed(item).sum(1).tolist() == [3, 0, 0]
    assert items.fixed(item, torch.tensor([0, 1, 1])).sum(1).tolist() == [3, 0, 0]
