"""A score graph says what the ranker says; a ranker whose scoring is no graph says so."""

from __future__ import annotations

import sys

import pytest
import torch
from tests.contract.batches import make_batch
from tests.contract.test_contract import assert_same, every, ready, specs_of

from sostenuto.ops.backend import using
from sostenuto.schema.errors import MissingExtra, SpecError
from sostenuto.serving.invented import invented_history, invented_request
from sostenuto.serving.score_graph import OneRequest, export_score, graph_inputs, save_onnx

# What has a graph; all others must refuse.
WITH_GRAPH = {"popularity", "popularity_recent", "repeat", "mean_pool", "sasrec", "hstu", "prior_heads"}
REQUESTS = ((31, 11), (64, 2), (2, 40), (1, 1), (0, 3))  # behaviours and candidates


def asked(name, request, seed):
    """Return the inputs of a graph for one request, and the ranker's own logits with the plain operators."""
    spec = specs_of(name)[0]
    ranker, batch = ready(name, spec), make_batch(spec, [request], seed)
    with using(None), torch.no_grad():
        state = ranker.encode(batch.histories)
        logits = ranker.score(state, batch.candidates, batch.context).logits
    return graph_inputs(state, batch.candidates, batch.context), logits


def check_graph(name):
    graph = export_score(ready(name, specs_of(name)[0]), specs_of(name)[0])
    run = graph.program.module()
    for seed, request in enumerate(REQUESTS):
        inputs, logits = asked(name, request, seed)
        assert tuple(inputs) == graph.names
        assert torch.equal(run(*inputs.values()), logits)
    assert "candidates.item" in graph.names
    return graph


@pytest.mark.parametrize("name", ["repeat", "sasrec"])
def test_a_graph_scores_bit_for_bit_as_the_plain_ranker(name):
    check_graph(name)


@pytest.mark.slow  # traces every model
@every()
def test_every_ranker_has_an_exact_graph_or_says_why_not(name):
    spec = specs_of(name)[0]
    if name in WITH_GRAPH:
        check_graph(name)
    else:
        with pytest.raises(SpecError, match="serve the bundle instead"):
            export_score(ready(name, spec), spec)


def test_a_ranker_that_looks_into_the_history_is_refused():
    with pytest.raises(SpecError, match="DIN has other"):
        export_score(ready("din", specs_of("din")[0]), specs_of("din")[0])


@pytest.mark.slow  # the converter takes its time
@pytest.mark.parametrize("name", sorted(WITH_GRAPH))
def test_an_onnx_file_scores_as_the_ranker(name, tmp_path):
    pytest.importorskip("onnxscript", reason="the extra 'onnx' is not installed")
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    save_onnx(check_graph(name), tmp_path / "score.onnx")
    session = runtime.InferenceSession(str(tmp_path / "score.onnx"), providers=["CPUExecutionProvider"])
    for seed, request in enumerate(REQUESTS):
        inputs, logits = asked(name, request, seed)
        given = {one.name: inputs[one.name].numpy() for one in session.get_inputs()}
        assert_same(torch.from_numpy(session.run(["logits"], given)[0]), logits)


def test_without_the_converter_its_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(MissingExtra, match=r"sostenuto\[onnx\]"):
        save_onnx(None, tmp_path / "score.onnx")


def test_what_is_invented_has_the_shapes_of_the_features():
    for spec in specs_of("mean_pool"):
        histories = invented_history(spec, (0, 3, 1))
        candidates, context = invented_request(spec, 5)
        real = make_batch(spec, [(0, 5), (3, 1), (1, 1)], 0)
        for ours, theirs in ((histories, real.histories), (candidates, real.candidates), (context, real.context)):
            for name in ours.__dataclass_fields__:
                a, b = getattr(ours, name), getattr(theirs, name)
                pairs = [(a[key], b[key]) for key in b] if name == "fields" else [(a, b)]
                assert name != "fields" or set(a) == set(b)
                for x, y in pairs:
                    assert x.dtype == y.dtype, name
                    assert x.shape[1:] == y.shape[1:], name
        assert histories.lengths.tolist() == [0, 3, 1]
        assert int(histories.item.max()) < spec.num_items


def test_all_candidates_of_one_request_lie_in_row_0():
    candidates, _ = invented_request(specs_of("mean_pool")[0], 4)
    values = {name: getattr(candidates, name) for name in ("offsets", "item", "category", "match", "fields")}
    assert OneRequest(**values).row.tolist() == candidates.row.tolist() == [0, 0, 0, 0]
