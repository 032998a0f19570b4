"""Every shared size and switch of a neural ranker is refused out of range, with its name, value and a fix."""

from __future__ import annotations

import pytest

from sostenuto.models.table import MODELS, default_config
from sostenuto.schema.errors import SpecError

WRONG = {
    "item_dim": -1,
    "vector_dim": -8,
    "key_vector_dim": -1,
    "category_dim": -2,
    "field_dim": -1,
    "side_dim": -1,
    "bins": -1,
    "table_std": 0.0,
    "field_std": float("nan"),
    "dropout": 1.0,
    "embedding_dropout": -0.1,
    "id_dropout": float("nan"),
    "short_recent": 0,
    "attention_units": (),
    "tower_units": (64, 0),
    "tower_activation": "gelu",
    "normalise": "max",
}
CASES = [
    (name, field, wrong)
    for name, entry in MODELS.items()
    if entry.kind == "neural"
    for field, wrong in WRONG.items()
    if hasattr(default_config(name), field)
]


@pytest.mark.parametrize(("model", "field", "wrong"), CASES)
def test_a_value_out_of_range_is_refused_by_name(model, field, wrong):
    config = type(default_config(model))
    with pytest.raises(SpecError, match=rf"{config.__name__}\.{field} must be .* got .*; set it so"):
        config(**{field: wrong})


def test_there_are_cases_of_every_field():
    assert {field for _, field, _ in CASES} == set(WRONG)
