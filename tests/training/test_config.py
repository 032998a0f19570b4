from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass, field
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sostenuto.features.view import HistoryView
from sostenuto.schema.errors import SpecError
from sostenuto.training.config import (
    BUDGETS,
    RunConfig,
    TrainingConfig,
    apply_overrides,
    differences,
    known_paths,
    plain,
    read_dict,
    to_dict,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Tower:
    units: tuple[int, ...] = (64, 32)
    dropout: float = 0.1


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    embedding_dim: int = 16
    normalise: Literal["none", "softmax"] = "none"
    use_value: bool = True
    window: tuple[int, float] = (3, 0.5)
    tower: Tower = field(default_factory=Tower)


CONFIG = RunConfig(name="toy", model="toy", model_config=ModelConfig())


def test_overrides_take_the_type_of_the_annotation() -> None:
    config = apply_overrides(
        CONFIG,
        [
            "training.learning_rate=3e-4",
            "model_config.embedding_dim=32",
            "model_config.tower.units=[8,4,2]",
            "model_config.use_value=false",
            "model_config.window=7,1",
            "view.recent=50",
            "training.max_grad_norm=inf",
            "training.steps=none",
            "budget=smoke",
            "budget.train=17",
        ],
    )
    assert config.training.learning_rate == 3e-4
    assert config.model_config.embedding_dim == 32
    assert config.model_config.tower.units == (8, 4, 2)
    assert config.model_config.tower.dropout == 0.1
    assert config.model_config.use_value is False
    assert config.model_config.window == (7, 1.0)
    assert isinstance(config.model_config.window[1], float)
    assert config.view == HistoryView(recent=50)
    assert math.isinf(config.training.max_grad_norm)
    assert config.training.steps is None
    assert config.budget == dataclasses.replace(BUDGETS["smoke"], train=17)
    assert CONFIG.training == TrainingConfig()  # the recipe's own value is left alone


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("training.learning_rat=1", "training.learning_rate"),
        ("learning_rate=1", "training.learning_rate"),
        ("model_config.embeding_dim=8", "model_config.embedding_dim"),
        ("model_config.embedding_dim=8.5", "a whole number"),
        ("model_config.embedding_dim=__import__('os')", "a whole number"),
        ("training.learning_rate=fast", "a number"),
        ("training.learning_rate=nan", "a number"),
        ("training.learning_rate=-1", "at least 0"),
        ("model_config.normalise=sofmax", "softmax"),
        ("model_config.use_value=1", "true or false"),
        ("model_config.window=1,2,3", "2 values"),
        ("training.batch_requests=none", "a whole number"),
        ("view.recent=0", "at least 1"),
        ("training=fast", "field by field"),
        ("budget=standart", "standard"),
        ("model=din", "another recipe"),
        ("view.recent", "=VALUE"),
    ],
)
def test_a_wrong_override_is_refused_and_told_what_is_right(override: str, says: str) -> None:
    with pytest.raises(SpecError, match=says.replace("(", r"\(")):
        apply_overrides(CONFIG, [override])


def test_every_known_path_can_be_set_to_its_own_value() -> None:
    for path in known_paths(CONFIG):
        value = CONFIG
        for part in path.split("."):
            value = getattr(value, part)
        if path == "model":
            continue
        text = str(value).lower() if isinstance(value, bool) else str(value)
        assert apply_overrides(CONFIG, [f"{path}={text}"]) == CONFIG


@given(
    st.builds(
        TrainingConfig,
        learning_rate=st.floats(0, 1),
        batch_requests=st.integers(1, 1000),
        steps=st.none() | st.integers(1, 10),
        max_grad_norm=st.floats(0.1, 10) | st.just(math.inf),
        weighting=st.sampled_from(["candidate", "request", "list"]),
    )
)
def test_json_round_trip_gives_the_same_config(training: TrainingConfig) -> None:
    tree = json.loads(json.dumps(to_dict(dataclasses.replace(CONFIG, training=training)), allow_nan=False))
    assert read_dict(TrainingConfig, tree["training"]) == training
    assert read_dict(ModelConfig, tree["model_config"]) == CONFIG.model_config
    assert read_dict(HistoryView, tree["view"]) == CONFIG.view


def test_json_with_an_unknown_or_missing_or_mistyped_field_is_refused() -> None:
    with pytest.raises(SpecError, match="Did you mean 'dropout'"):
        read_dict(Tower, {"dropuot": 0.1}, "model_config.tower.")
    with pytest.raises(SpecError, match=r"model_config\.tower must be an object"):
        read_dict(ModelConfig, {"tower": 3}, "model_config.")
    with pytest.raises(SpecError, match="must be given"):
        read_dict(RunConfig, {"name": "x"})
    with pytest.raises(SpecError, match="a whole number"):
        read_dict(ModelConfig, {"embedding_dim": True})


def test_differences_name_the_field() -> None:
    other = apply_overrides(CONFIG, ["training.seed=3"])
    assert list(differences(plain(CONFIG), plain(other))) == [("training.seed", 0, 3)]
