"""From predictions to a comparison: the numbers are those of evaluation, the right pairs are tested."""

import numpy as np
import pytest
from tests.features.small_prepared import write_small
from tests.reports.invented import invented_data, invented_groups

from sostenuto.evaluation.gauc import gauc
from sostenuto.reports.assembling import assemble_comparison, natural_contrasts
from sostenuto.reports.comparison import ComparisonResult, load_comparison
from sostenuto.reports.data_summary import summarise_data


def test_the_headline_is_the_mean_gauc_by_request_of_the_seeds(comparison):
    group = next(g for g in invented_groups(150) if g.key == "din/full/match")
    for list_id, name in enumerate(("promoted", "window")):
        values = []
        for p in group.seeds:
            q = p.take(p.list_id == list_id)
            values.append(gauc(q.label, q.logit, q.request).value)
        score = comparison.row(group.key).lists[name].metrics["gauc_request"]
        assert score.per_seed == pytest.approx(values)
        assert score.mean == pytest.approx(np.mean(values))
        assert score.low <= score.mean <= score.high


def test_each_row_but_the_baseline_is_set_against_it(comparison):
    for row in comparison.rows:
        for result in row.lists.values():
            assert (result.versus_baseline is None) == (row.key == comparison.baseline)


def test_contrasts_pair_forms_of_one_model_that_differ_in_one_thing(comparison):
    found = {(c.question, c.a, c.b) for c in comparison.contrasts if c.list_name == "window"}
    assert found == {
        (question, f"{m}/full/match", f"{m}/{other}")
        for m in ("trees", "din", "sdim")
        for question, other in (
            ("Full history against newest 50", "newest 50/match"),
            ("With against without match features", "full/plain"),
        )
    }
    assert natural_contrasts(invented_groups(20)[:2]) == []


def test_lengths_cover_every_request_once(comparison):
    for row in comparison.rows:
        for result in row.lists.values():
            assert sum(result.by_length.requests) == 150
            assert len(result.by_length.value) == len(result.by_length.parts)


def test_row_order_of_predictions_changes_nothing():
    groups = [g for g in invented_groups(30) if g.key in ("din/full/match", "trees/full/match")]
    options = {"title": "t", "lists": ("promoted", "window"), "baseline": "trees/full/match", "data": invented_data()}
    one = assemble_comparison(groups, draws=20, **options)
    for group in groups:
        shuffled = [p.take(np.random.default_rng(s).permutation(len(p))) for s, p in enumerate(group.seeds)]
        object.__setattr__(group, "seeds", shuffled)
    assert assemble_comparison(groups, draws=20, **options) == one


def test_a_comparison_survives_its_file(comparison, tmp_path):
    comparison.save(tmp_path / "comparison.json")
    assert load_comparison(tmp_path / "comparison.json") == comparison


def test_documents_with_unknown_fields_or_names_are_refused(comparison):
    document = comparison.model_dump(mode="json")
    with pytest.raises(ValueError, match="extra"):
        ComparisonResult.model_validate(document | {"surprise": 1})
    with pytest.raises(ValueError, match="baseline must be a row key"):
        ComparisonResult.model_validate(document | {"baseline": "nobody"})
    with pytest.raises(ValueError, match="distinct keys"):
        ComparisonResult.model_validate(document | {"rows": [document["rows"][0]] * 2, "contrasts": []})


def test_data_are_summed_up_from_the_prepared_folder(tmp_path):
    data = write_small(tmp_path / "small")
    summary = summarise_data(data)
    assert sum(summary.length_counts) == len(data.requests("test"))
    assert len(summary.length_edges) == len(summary.length_counts) + 1
    assert summary.first_ms == int(data.behaviours.time_ms.min())
    assert summary.length_quantiles["longest"] == int(data.requests("test").prefix.max())
    assert summary.protocol == "random v1"
