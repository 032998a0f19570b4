"""ItemTable and the rankers that keep one: the same scores, nothing stale, nothing guessed."""

import copy
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.contract.batches import PREPARED, invented_content, make_batch, view_of

from sostenuto.layers import item_table
from sostenuto.layers.embedding import ItemEmbedding, TimedVectors
from sostenuto.layers.item_table import ItemTable
from sostenuto.models.saved import load_ranker, save_ranker
from sostenuto.models.table import MODELS, build, config_class
from sostenuto.schema.histories import Catalogue
from sostenuto.schema.ranker import ItemKeeper

SPEC = view_of(PREPARED, match=True)
KEEPERS = ("din", "dien", "sdim", "dare", "muse", "em3")
BY_TWO_STAGE = ("sim_hard", "sim_soft", "eta", "twin")  # held by tests/models/searching.py
every = pytest.mark.parametrize("name", KEEPERS)


def config_of(name, **changes):
    return config_class(name)(**{"item_dim": 6, "table_std": 0.5, "tower_units": (8,), **changes})


def made(name, **changes):
    ranker = handed(name, build(name, config_of(name, **changes), SPEC, seed=1))
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in ranker.parameters():
            parameter.normal_(0.0, 0.3, generator=generator)
        width = items_of(ranker).vectors.shape[1]
        draw = torch.randn(3, SPEC.num_vector_items, width, generator=generator)
        times = torch.tensor([0, 1_490_000_000_000])
        items_of(ranker).set_vectors(TimedVectors(last=draw[0], past=draw[1:], starts_ms=times))
    return ranker.eval()


def items_of(ranker):
    """Return the embedding that makes item vectors, the only one with fixed vectors."""
    (found,) = (part for part in ranker.modules() if isinstance(part, ItemEmbedding) and part.vector_dim)
    return found


def table_of(ranker):
    """Return the table of item vectors, the first where there are several."""
    return next(part for part in ranker.modules() if isinstance(part, ItemTable))


def handed(name, ranker):
    if kinds := MODELS[name].content:
        ranker.take_content(invented_content(SPEC, kinds))
    return ranker


def catalogue_and_batch(seed, lengths=((5, 9), (0, 3), (30, 70))):
    """Draw requests, and read the catalogue off others of the same seed, in which every real item occurs."""
    batch = make_batch(SPEC, list(lengths), seed)
    asked = make_batch(SPEC, [(0, 4_000)], seed).candidates  # item columns are functions of the seed
    assert set(range(1, SPEC.num_items)) <= set(asked.item.tolist())
    first = torch.stack([(asked.item == i).int().argmax() for i in range(SPEC.num_items)])  # padding has any row
    names = [f.name for f in SPEC.item_fields]
    about = Catalogue(category=asked.category[first], fields={name: asked.fields[name][first] for name in names})
    return about, batch


def logits(ranker, batch):
    with torch.no_grad():
        return ranker(batch.histories, batch.candidates, batch.context).logits


def looks_up(ranker, batch):
    with torch.no_grad():
        return table_of(ranker).rows(batch.candidates) is not None


def test_the_rankers_with_item_work_say_so():
    rankers = {name: made_or_none(name) for name, entry in MODELS.items() if entry.kind == "neural"}
    keepers = {name for name, ranker in rankers.items() if any(isinstance(m, ItemTable) for m in ranker.modules())}
    assert keepers == {*KEEPERS, *BY_TWO_STAGE}
    assert keepers == {name for name, ranker in rankers.items() if isinstance(ranker, ItemKeeper)}


def made_or_none(name):
    return build(name, config_class(name)(), SPEC)


@every
@settings(max_examples=10)
@given(seed=st.integers(0, 1000))
def test_scores_are_the_same_bit_for_bit(name, seed):
    ranker, (about, batch) = made(name), catalogue_and_batch(seed)
    plain = logits(ranker, batch)
    assert ranker.keep_items(about) >= table_of(ranker).num_bytes > 0
    assert looks_up(ranker, batch)
    assert torch.equal(logits(ranker, batch), plain)


@every
def test_a_table_filled_in_parts_is_the_same(name, monkeypatch):
    ranker, (about, batch) = made(name), catalogue_and_batch(3)
    plain = logits(ranker, batch)
    monkeypatch.setattr(item_table, "ITEMS_AT_ONCE", 7)
    ranker.keep_items(about)
    assert looks_up(ranker, batch)
    torch.testing.assert_close(logits(ranker, batch), plain, rtol=1e-5, atol=1e-5)


@every
def test_what_the_catalogue_does_not_cover_is_computed(name):
    ranker, (about, batch) = made(name), catalogue_and_batch(4)
    changed = {
        "beyond": (about.part(0, 20), batch),
        "category": (about, with_candidates(batch, category=batch.candidates.category.roll(1, 0))),
        "field": (about, with_field(batch, "shape", batch.candidates.fields["shape"] + 1.0)),
    }
    for which, asked in changed.values():
        table_of(ranker).empty()
        plain = logits(ranker, asked)
        ranker.keep_items(which)
        assert not looks_up(ranker, asked)
        assert torch.equal(logits(ranker, asked), plain)


def with_candidates(batch, **changes):
    return replace(batch, candidates=replace(batch.candidates, **changes))


def with_field(batch, name, column):
    return with_candidates(batch, fields={**batch.candidates.fields, name: column})


@every
def test_missing_numbers_of_the_catalogue_are_no_difference(name):
    ranker, (about, batch) = made(name), catalogue_and_batch(5)
    missing = about.fields["shape"].clone()
    missing[::2] = torch.nan
    about = replace(about, fields={**about.fields, "shape": missing})
    batch = with_field(batch, "shape", missing[batch.candidates.item])
    plain = logits(ranker, batch)
    ranker.keep_items(about)
    assert looks_up(ranker, batch)
    assert torch.equal(logits(ranker, batch), plain)


@every
def test_nothing_is_looked_up_where_a_gradient_is_wanted(name):
    ranker, (about, batch) = made(name), catalogue_and_batch(6)
    ranker.keep_items(about)
    ranker(batch.histories, batch.candidates, batch.context).logits.sum().backward()
    plain = made(name)
    plain(batch.histories, batch.candidates, batch.context).logits.sum().backward()
    table = items_of(ranker).item.weight.grad.to_dense()
    assert torch.equal(table, items_of(plain).item.weight.grad.to_dense())


def changes_of(ranker):
    """Return what makes a filled table old, by name."""
    items = items_of(ranker)

    def in_place():
        with torch.no_grad():
            items.item.weight[2:] += 1.0

    def set_vectors():
        shape = items.vectors.shape
        items.set_vectors(TimedVectors(last=torch.ones(shape), past=torch.ones(1, *shape), starts_ms=torch.tensor([0])))

    def swapped():
        items.item.weight.data = items.item.weight.data * 2.0

    return {
        "training": lambda: ranker.train().eval(),
        "loading": lambda: ranker.load_state_dict(ranker.state_dict()),
        "moving": lambda: ranker.to(torch.float32),
        "in place": in_place,
        "vectors": set_vectors,
        "swapped": swapped,
    }


@every
@pytest.mark.parametrize("what", ["training", "loading", "moving", "in place", "vectors", "swapped"])
def test_whatever_may_change_a_parameter_empties_the_table(name, what):
    ranker, (about, batch) = made(name), catalogue_and_batch(7)
    ranker.keep_items(about)
    assert looks_up(ranker, batch)
    changes_of(ranker)[what]()
    assert not looks_up(ranker, batch)
    assert table_of(ranker).num_bytes == 0
    after = logits(ranker, batch)
    ranker.keep_items(about)
    assert torch.equal(logits(ranker, batch), after)


@every
def test_training_mode_is_refused(name):
    with pytest.raises(ValueError, match=r"the ranker is in training mode; call eval\(\) first"):
        made(name).train().keep_items(catalogue_and_batch(8)[0])


@every
def test_the_table_is_not_saved(name, tmp_path):
    ranker, (about, batch) = made(name), catalogue_and_batch(9)
    before = set(ranker.state_dict())
    ranker.keep_items(about)
    assert set(ranker.state_dict()) == before
    save_ranker(tmp_path, name, config_of(name), SPEC, ranker)
    again = handed(name, load_ranker(tmp_path)[0])
    assert table_of(again).num_bytes == 0
    again.keep_items(about)
    assert torch.equal(logits(again, batch), logits(ranker, batch))


@every
def test_a_copy_watches_its_own_parameters(name):
    ranker, (about, batch) = made(name), catalogue_and_batch(10)
    ranker.keep_items(about)
    other = copy.deepcopy(ranker)
    with torch.no_grad():
        items_of(other).item.weight[2:] += 1.0
    assert looks_up(ranker, batch)
    assert not looks_up(other, batch)
    assert not torch.equal(logits(other, batch), logits(ranker, batch))


@every
def test_the_order_of_candidates_changes_no_score(name):
    ranker, (about, batch) = made(name), catalogue_and_batch(11, [(6, 40)])
    ranker.keep_items(about)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    c = batch.candidates
    turned = replace(
        c,
        item=c.item[order],
        category=c.category[order],
        match=c.match[order],
        fields={key: column[order] for key, column in c.fields.items()},
    )
    moved = logits(ranker, replace(batch, candidates=turned))
    torch.testing.assert_close(moved, logits(ranker, batch)[order], rtol=1e-5, atol=1e-5)


def test_an_empty_catalogue_keeps_nothing():
    ranker, (about, batch) = made("din"), catalogue_and_batch(12)
    assert ranker.keep_items(about.part(0, 0)) == 0
    assert not looks_up(ranker, batch)
