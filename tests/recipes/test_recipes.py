from __future__ import annotations

import json

import pytest

from sostenuto.models.table import MODELS, config_class
from sostenuto.recipes import COMPARED, RECIPES, recipe_named
from sostenuto.schema.errors import SpecError
from sostenuto.training.config import apply_overrides, from_dict, to_dict


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_a_recipe_is_named_like_its_function_and_survives_json(name: str) -> None:
    config = RECIPES[name]()
    assert config.name == name
    assert isinstance(config.model_config, config_class(config.model))
    assert from_dict(json.loads(json.dumps(to_dict(config), allow_nan=False))) == config


def test_every_model_has_a_recipe_of_its_own_name() -> None:
    assert set(MODELS) <= set(RECIPES)
    assert set(COMPARED) <= set(RECIPES)


def test_a_variant_changes_its_view_and_nothing_else() -> None:
    base = to_dict(recipe_named("din"))
    short, bare = to_dict(recipe_named("din_recent50")), to_dict(recipe_named("din_no_match"))
    assert short == base | {"name": "din_recent50", "view": base["view"] | {"recent": 50}}
    assert bare == base | {"name": "din_no_match", "view": base["view"] | {"match": False}}


def test_overrides_reach_a_real_model_config() -> None:
    config = apply_overrides(recipe_named("din"), ["budget=standard", "model_config.item_dim=8", "training.seed=2"])
    assert (config.budget.train, config.model_config.item_dim, config.training.seed) == (20_000, 8, 2)


def test_an_unknown_recipe_is_refused_with_the_nearest() -> None:
    with pytest.raises(SpecError, match="Did you mean 'din_recent50'"):
        recipe_named("din_recent_50")
