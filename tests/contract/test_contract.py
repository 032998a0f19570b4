"""The laws of every ranker, over the table of models.

That events at or after the request's time change nothing is a law of collation (tests/features): a ranker is only
ever handed what came before.
"""

import contextlib
import dataclasses
import tempfile
from functools import lru_cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.contract.batches import (
    BARE,
    PREPARED,
    batches,
    invented_content,
    make_batch,
    make_sequences,
    one_by_one,
    padded_with_junk,
    permute_candidates,
    row_lengths,
    shuffle_moments,
    specs,
    split_history,
    take_candidates,
    take_rows,
    view_of,
)
from torch.nn.functional import binary_cross_entropy_with_logits

from sostenuto.layers.embedding import Table
from sostenuto.models.saved import load_ranker, save_ranker
from sostenuto.models.table import MODELS, build, default_config, missing_extras
from sostenuto.native.library import available, using
from sostenuto.schema.errors import SpecError

SPECS = (
    view_of(PREPARED, match=True),
    view_of(PREPARED, match=False),
    view_of(BARE, match=True),
    view_of(dataclasses.replace(PREPARED, item_fields=(), num_actions=2, has_value=False), match=True),
)
LIBRARIES = available()
FORMS = {"plain": None, **LIBRARIES}
# What makes a fit on a hundred candidates quick and possible.
QUICK = {"trees": {"leaves_grid": (4,), "min_leaf_grid": (2,), "max_trees": 5, "threads": 1}}


def every(*kinds: str):
    """Parametrise over the entries of the table, with a reason where an extra is missing."""
    rows = []
    for name, entry in MODELS.items():
        if kinds and entry.kind not in kinds:
            continue
        missing = missing_extras(entry)
        marks = [pytest.mark.skip(reason=f"{name} needs the extra {missing[0]!r}")] if missing else []
        rows.append(pytest.param(name, marks=marks, id=name))
    return pytest.mark.parametrize("name", rows)


def built(name, spec, *, config=None, seed=0):
    """Build a ranker and hand it what content it reads: invented, of every kind its entry names."""
    ranker = build(name, config or default_config(name), spec, seed=seed)
    return handed(name, spec, ranker)


def handed(name, spec, ranker):
    if kinds := MODELS[name].content:
        ranker.take_content(invented_content(spec, kinds))
    return ranker


def with_content(name, spec):
    """Return the specification, with content where the model lives by it and there is none."""
    if MODELS[name].content and not spec.content:
        return dataclasses.replace(spec, content=PREPARED.content)
    return spec


def with_objective(*objectives: str):
    """Parametrise over the models that train so."""
    return pytest.mark.parametrize("name", [name for name, entry in MODELS.items() if entry.objective in objectives])


def config_of(name):
    return dataclasses.replace(default_config(name), **QUICK.get(name, {}))


@lru_cache
def specs_of(name):
    """Return the specifications that a model accepts; it may refuse data that lack what it lives by, and says so."""
    accepted = []
    for spec in dict.fromkeys([*SPECS, *(with_content(name, spec) for spec in SPECS)]):
        with contextlib.suppress(SpecError):
            build(name, config_of(name), spec)
            accepted.append(spec)
    assert accepted
    return accepted


@lru_cache(maxsize=64)
def ready(name, spec):
    """Return a ranker whose every part speaks: parameters far from their small start, fitted ones fitted."""
    ranker = built(name, spec, config=config_of(name), seed=1)
    if MODELS[name].kind == "neural":
        generator = torch.Generator().manual_seed(2)
        with torch.no_grad():
            for parameter in ranker.parameters():
                parameter.normal_(0.0, 0.2, generator=generator)
            for module in ranker.modules():
                if isinstance(module, Table):
                    module.weight[0] = 0.0
            batch = make_batch(spec, [(5, 4)] * 6, 3)
            ranker(batch.histories, batch.candidates, batch.context)  # training mode: fills stored statistics
        return ranker.eval()
    if hasattr(ranker, "fit"):
        train = [make_batch(spec, [(6, 6)] * 8, seed) for seed in range(3)]
        ranker.fit(train, train[:1])
    return ranker


def loss_of(output, labels):
    """Return what training adds up, with equal shares."""
    loss = binary_cross_entropy_with_logits(output.logits, labels) + sum(output.aux_losses.values())
    heads = output.aux_heads.values()
    return loss + sum(head.weight * binary_cross_entropy_with_logits(head.logits, labels) for head in heads)


def logits_of(ranker, batch):
    with torch.no_grad():
        return ranker.score(ranker.encode(batch.histories), batch.candidates, batch.context).logits


def assert_same(a, b):
    """Hold the tolerance of law 3; the largest logit stands for the terms that were summed."""
    assert a.shape == b.shape
    assert torch.isfinite(a).all()
    scale = max(1.0, float(a.abs().max())) if a.numel() else 1.0
    assert float((a - b).abs().max() if a.numel() else 0.0) <= 1e-5 * scale


def drawn(name, data):
    spec = data.draw(st.sampled_from(specs_of(name)))
    return spec, data.draw(batches(spec)), data.draw(st.integers(0, 1000))


@every()
@settings(max_examples=10)
@given(data=st.data())
def test_scores_are_one_finite_float_per_candidate(name, data):
    spec, batch, _ = drawn(name, data)
    logits = logits_of(ready(name, spec), batch)
    assert logits.shape == batch.labels.shape
    assert logits.dtype == torch.float32
    assert torch.isfinite(logits).all()


@every()
@settings(max_examples=10)
@given(data=st.data())
def test_the_rest_of_the_batch_changes_no_score(name, data):
    spec, batch, _ = drawn(name, data)
    ranker = ready(name, spec)
    rows = range(len(batch.user))
    alone = torch.cat([logits_of(ranker, take_rows(batch, [r])) for r in rows])
    assert_same(logits_of(ranker, batch), alone)


@every()
@settings(max_examples=10)
@given(data=st.data())
def test_the_order_of_requests_changes_no_score(name, data):
    spec, batch, _ = drawn(name, data)
    ranker = ready(name, spec)
    rows = list(reversed(range(len(batch.user))))
    offsets = batch.candidates.offsets
    there = torch.cat([torch.arange(int(offsets[r]), int(offsets[r + 1])) for r in rows])
    assert_same(logits_of(ranker, batch)[there], logits_of(ranker, take_rows(batch, rows)))


@every()
@settings(max_examples=10)
@given(data=st.data())
def test_candidates_permute_with_their_scores(name, data):
    spec, batch, seed = drawn(name, data)
    ranker = ready(name, spec)
    shuffled, there = permute_candidates(batch, seed)
    assert_same(logits_of(ranker, batch)[there], logits_of(ranker, shuffled))


@every()
@settings(max_examples=10)
@given(data=st.data())
def test_a_candidate_alone_scores_as_among_others(name, data):
    spec, batch, _ = drawn(name, data)
    ranker = ready(name, spec)
    first = batch.candidates.offsets[:-1]
    assert_same(logits_of(ranker, batch)[first], logits_of(ranker, take_candidates(batch, first)))


@every()
@settings(max_examples=10)
@given(data=st.data())
def test_junk_behind_the_mask_changes_no_score(name, data):
    spec, batch, seed = drawn(name, data)
    ranker = ready(name, spec)
    history = padded_with_junk(batch.histories, spec, seed)
    assert_same(logits_of(ranker, batch), logits_of(ranker, dataclasses.replace(batch, histories=history)))


@every()
@settings(max_examples=10)
@given(data=st.data())
def test_shuffling_behaviours_of_one_moment_changes_no_score(name, data):
    if MODELS[name].ordered:
        pytest.skip(f"{name} reads the order of behaviours by design")
    spec, batch, seed = drawn(name, data)
    ranker = ready(name, spec)
    history = shuffle_moments(batch.histories, seed)
    assert_same(logits_of(ranker, batch), logits_of(ranker, dataclasses.replace(batch, histories=history)))


@every()
@settings(max_examples=10)
@given(data=st.data(), share=st.floats(0, 1))
def test_folding_later_events_in_equals_encoding_anew(name, data, share):
    if MODELS[name].update == "none":
        pytest.skip(f"{name} cannot fold events in")
    spec, batch, _ = drawn(name, data)
    ranker = ready(name, spec)
    early, later = split_history(batch.histories, share)
    with torch.no_grad():
        state = ranker.append(ranker.encode(early), later)
        logits = ranker.score(state, batch.candidates, batch.context).logits
    assert_same(logits_of(ranker, batch), logits)


@every()
def test_a_saved_ranker_scores_the_same(name):
    spec = specs_of(name)[-1]
    ranker = ready(name, spec)
    batch = make_batch(spec, [(0, 2), (7, 3), (1, 1)], 5)
    with tempfile.TemporaryDirectory() as folder:
        save_ranker(folder, name, config_of(name), spec, ranker, {"step": 3})
        loaded, meta = load_ranker(folder)
    handed(name, spec, loaded)
    assert meta["features"] == spec
    assert meta["config"] == config_of(name)
    assert meta["extra"] == {"step": 3}
    assert torch.equal(logits_of(loaded, batch), logits_of(ranker, batch))


@with_objective("ranking_along")
@settings(max_examples=12)
@given(data=st.data(), lengths=st.lists(st.integers(0, 9), min_size=1, max_size=3), seed=st.integers(0, 1000))
def test_a_logit_along_a_timeline_is_the_score_of_what_came_before(name, data, lengths, seed):
    spec = data.draw(st.sampled_from(specs_of(name)))
    ranker, along = ready(name, spec), make_sequences(spec, lengths, seed)
    with torch.no_grad():
        logits = ranker.logits_along(along).logits
    assert_same(logits_of(ranker, one_by_one(along)), logits)


@with_objective("next_item")
@settings(max_examples=12)
@given(data=st.data(), lengths=st.lists(st.integers(0, 9), min_size=1, max_size=3), seed=st.integers(0, 1000))
def test_a_query_along_a_timeline_is_the_query_of_what_came_before(name, data, lengths, seed):
    spec = data.draw(st.sampled_from(specs_of(name)))
    ranker, along = ready(name, spec), make_sequences(spec, lengths, seed)
    alone = one_by_one(along)
    with torch.no_grad():
        queries = ranker.query(ranker.encode(alone.histories), alone.context)
        assert_same(queries, ranker.queries_along(along))
        vectors = ranker.item_vectors(alone.candidates)
    assert_same(logits_of(ranker, alone), (queries[alone.candidates.row] * vectors).sum(1))


@every("neural")
@settings(max_examples=10)
@given(data=st.data())
def test_forward_is_score_of_encode_bit_for_bit(name, data):
    spec, batch, _ = drawn(name, data)
    ranker = ready(name, spec)
    with torch.no_grad():
        whole = ranker(batch.histories, batch.candidates, batch.context).logits
    assert torch.equal(whole, logits_of(ranker, batch))


@every("neural")
@settings(max_examples=12)
@given(spec=specs(), lengths=row_lengths(), seed=st.integers(0, 1000))
def test_every_parameter_gets_a_finite_gradient(name, spec, lengths, seed):
    spec = with_content(name, spec)
    batch = make_batch(spec, [(4, 3), *lengths], seed)
    ranker = built(name, spec, seed=seed)
    output = ranker(batch.histories, batch.candidates, batch.context)
    loss_of(output, batch.labels).backward()
    without = [key for key, p in ranker.named_parameters() if p.grad is None]
    assert not without, f"no gradient reaches {without}"
    for key, parameter in ranker.named_parameters():
        gradient = parameter.grad.coalesce().values() if parameter.grad.is_sparse else parameter.grad
        assert torch.isfinite(gradient).all(), key


def gradients_of(name, batch, *, library=None, precision=torch.float32):
    """Return the loss of a fresh ranker and its dense gradients, by a compiled library or the plain forms."""
    ranker = built(name, SPECS[0])
    torch.manual_seed(0)
    with using(library):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
            output = ranker(batch.histories, batch.candidates, batch.context)
        output = dataclasses.replace(output, logits=output.logits.float())
        loss = loss_of(output, batch.labels)
        loss.backward()
    gradients = {key: p.grad.to_dense() for key, p in ranker.named_parameters() if p.grad is not None}
    return float(loss.detach()), gradients


@every("neural")
@pytest.mark.parametrize("processor", LIBRARIES)
@pytest.mark.parametrize("lengths", [[(1, 1)], [(5, 3), (0, 2)]], ids=["one behaviour", "several"])
def test_compiled_twins_have_the_gradients_of_the_plain_forms(name, processor, lengths):
    batch = make_batch(SPECS[0], lengths, 1)
    loss, expected = gradients_of(name, batch)
    again, found = gradients_of(name, batch, library=LIBRARIES[processor])
    assert again == pytest.approx(loss, rel=1e-5)
    assert found.keys() == expected.keys()
    for key, gradient in found.items():
        torch.testing.assert_close(gradient, expected[key], rtol=1e-3, atol=1e-5, msg=key)


@every("neural")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("lengths", [[(1, 1)], [(2, 3), (30, 9)]], ids=["one behaviour", "several"])
def test_products_may_be_of_lower_precision_in_training(name, form, lengths):
    batch = make_batch(SPECS[0], lengths, 1)
    loss, expected = gradients_of(name, batch)
    lower, found = gradients_of(name, batch, library=FORMS[form], precision=torch.bfloat16)
    assert lower == pytest.approx(loss, rel=0.05)
    assert found.keys() == expected.keys()
    for key, gradient in found.items():
        assert gradient.dtype == torch.float32
        assert torch.isfinite(gradient).all(), key


@every("neural")
@pytest.mark.parametrize("spec", [SPECS[0], SPECS[2]], ids=["full", "bare"])
def test_an_empty_history_has_finite_scores_and_gradients(name, spec):
    spec = with_content(name, spec)
    batch = make_batch(spec, [(0, 3), (0, 1)], 1)
    ranker = built(name, spec)
    loss = ranker(batch.histories, batch.candidates, batch.context).logits.square().sum()
    loss.backward()
    assert torch.isfinite(loss)
    for key, parameter in ranker.named_parameters():
        if parameter.grad is not None:
            assert torch.isfinite(parameter.grad.to_dense()).all(), key


@every("neural")
def test_padding_rows_are_zero_and_get_no_gradient(name):
    spec = SPECS[0]
    ranker = built(name, spec)
    batch = make_batch(spec, [(6, 4)] * 3, 2)
    ranker(batch.histories, batch.candidates, batch.context).logits.sum().backward()
    tables = [module for module in ranker.modules() if isinstance(module, Table)]
    assert tables
    for table in tables:
        assert not table.weight[0].any()
        assert table.weight.grad.is_sparse
        assert not table.weight.grad.to_dense()[0].any()


@every("neural")
def test_a_tiny_batch_is_overfitted(name):
    spec = SPECS[0]
    batch = make_batch(spec, [(6, 6)] * 4, 4)
    ranker = built(name, spec, seed=3)
    tables = [module.weight for module in ranker.modules() if isinstance(module, Table)]
    known = {id(t) for t in tables}
    optimisers = [
        torch.optim.SparseAdam(tables, lr=0.01),
        torch.optim.Adam([p for p in ranker.parameters() if id(p) not in known], lr=0.01),
    ]
    for _ in range(150):
        for optimiser in optimisers:
            optimiser.zero_grad()
        output = ranker(batch.histories, batch.candidates, batch.context)
        loss = loss_of(output, batch.labels)
        loss.backward()
        for optimiser in optimisers:
            optimiser.step()
        if float(loss.detach()) < 0.05:
            return
    pytest.fail(f"loss is {float(loss.detach()):.3f} after 150 steps")


@every("neural")
def test_content_is_not_saved_and_not_trained(name):
    if not MODELS[name].content:
        pytest.skip(f"{name} reads no content")
    spec = SPECS[0]
    content = invented_content(spec, MODELS[name].content)
    before = {key: part.vectors.clone() for key, part in content.items()}
    ranker = build(name, default_config(name), spec)
    saved = set(ranker.state_dict())
    ranker.take_content(content)
    assert set(ranker.state_dict()) == saved
    owned = {p.data_ptr() for p in ranker.parameters()}
    assert not owned & {part.vectors.data_ptr() for part in content.values()}
    batch = make_batch(spec, [(6, 4)] * 3, 2)
    optimiser = torch.optim.SGD([p for p in ranker.parameters() if p.requires_grad], lr=0.1)
    ranker(batch.histories, batch.candidates, batch.context).logits.square().sum().backward()
    optimiser.step()
    assert all(torch.equal(part.vectors, before[key]) for key, part in content.items())


@every("neural")
def test_fresh_parameters_follow_the_seed_alone(name):
    before = torch.random.get_rng_state()
    a, b, c = (build(name, default_config(name), SPECS[0], seed=seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert any(not torch.equal(a[key], c[key]) for key in a)
