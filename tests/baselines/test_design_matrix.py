from dataclasses import replace

import numpy as np
import pytest
from tests.baselines.planted_requests import FEATURES, planted_batch

from sostenuto.baselines.design_matrix import (
    candidate_number,
    check_names,
    design_columns,
    design_matrix,
    match_column,
    positive_share,
    read_batches,
    write_names,
)
from sostenuto.schema.errors import DataError, RunError, SpecError


def test_the_matrix_equals_a_slow_walk_over_candidates():
    batch = planted_batch(3)
    features = replace(FEATURES, match=FEATURES.match[:3])  # without user.length: the matrix makes its own
    columns = design_columns(features, max_codes=64)
    matrix = design_matrix(columns, batch.histories.lengths, batch.candidates, batch.context)
    c = batch.candidates
    for n, row in enumerate(c.row.tolist()):
        expected = [
            *c.match[n, :3].tolist(),
            np.log1p(int(batch.histories.lengths[row])),
            *(float(c.fields[name][n]) for name in ("price", "popularity", "popularity_28d")),
            float(c.category[n, 0]),
            float(c.fields["display"][n]),
            float(batch.context.fields["day_of_week"][row]),
        ]
        np.testing.assert_allclose(matrix[n], np.array(expected, np.float32), rtol=1e-6)


def test_large_categories_are_left_out_and_numbers_come_first():
    columns = design_columns(FEATURES, max_codes=64)
    assert "category.type" not in {column.name for column in columns}
    assert "category.department" in {column.name for column in columns}
    kinds = [column.is_categorical for column in columns]
    assert kinds == sorted(kinds)


def test_the_length_of_the_history_is_there_once():
    for features in (FEATURES, replace(FEATURES, match=())):
        assert [c.name for c in design_columns(features, max_codes=8)].count("user.length") == 1


def test_a_missing_field_is_refused_by_its_name():
    with pytest.raises(SpecError, match=r"numeric candidate field 'popularty'.*Did you mean 'popularity'"):
        candidate_number(FEATURES, "popularty", asked_by="test")
    with pytest.raises(SpecError, match=r"match feature 'item\.count'.*match=true"):
        match_column(replace(FEATURES, match=()), "item.count", asked_by="repeat")


def test_nothing_to_learn_from_is_refused():
    columns = design_columns(FEATURES, max_codes=8)
    with pytest.raises(DataError, match="train batches must hold at least one candidate"):
        read_batches(columns, [], split="train")
    with pytest.raises(DataError, match="both 0 and 1, all are 1"):
        positive_share([np.ones(4)])


def test_columns_of_another_model_are_refused(tmp_path):
    with pytest.raises(RunError, match=r"must hold columns\.json"):
        check_names(tmp_path, ["a"])
    write_names(tmp_path, ["a", "b"])
    check_names(tmp_path, ["a", "b"])
    with pytest.raises(RunError, match="it names others"):
        check_names(tmp_path, ["b", "a"])
