"""dare.md section 2 and property 9: the two jobs of a table measured apart, the training unchanged."""

import math
from dataclasses import replace

import pytest
import torch
from tests.models.test_dare import SMALL

from sostenuto.models.dare import DAREConfig
from sostenuto.schema.errors import SpecError
from sostenuto.training.config import Budget, RunConfig, TrainingConfig
from sostenuto.training.gradient_conflict import RowGradients, measure_conflict, measures
from sostenuto.training.loop import Hooks, train
from sostenuto.training.losses import objective_named
from sostenuto.training.run import process_settings, ready_to_train
from sostenuto.training.validation import Validation

STEPS = 12


def config_of(**changes):
    return RunConfig(
        name="dare",
        model="dare",
        model_config=replace(DAREConfig(**SMALL), vector_dim=4, key_vector_dim=2, **changes),
        training=TrainingConfig(batch_requests=10, threads=1, log_every_steps=1, device="cpu"),
        budget=Budget(name="little", epochs=1),
    )


def losses_of_shared(toy):
    """Train with shared tables, and return the loss of every step."""
    config = config_of(tables="shared")
    found = []
    with process_settings(config, torch.device("cpu")):
        ranker, loader = ready_to_train(toy, config, torch.device("cpu"))
        torch.manual_seed(config.training.seed)
        hooks = Hooks(
            evaluate=lambda: Validation(gauc=0.5),
            log=lambda record: found.append(record["loss"]) if record["kind"] == "train" else None,
        )
        training = replace(config.training, steps=STEPS)
        train(ranker, loader, training, epochs=1, objective=objective_named("bce"), hooks=hooks)
    return found


@pytest.mark.parametrize("tables", ["shared", "separate"])
def test_9_losses_are_those_of_shared_tables_and_shares_lie_between_0_and_100(toy, tables):
    found = measure_conflict(toy, config_of(tables=tables), steps=STEPS)
    assert found["steps"] == STEPS
    assert set(found["tables"]) == {"item", "levels.0", "time"}
    for of in [found["whole"], *found["tables"].values()]:
        assert of["rows"] > 0
        assert 0.0 <= of["negative_percent"] <= 100.0
        assert -1.0 <= of["cosine"] <= 1.0
        assert of["ratio"] > 0
    assert all(math.isfinite(point["loss"]) for point in found["points"])
    assert [point["loss"] for point in found["points"]] == pytest.approx(losses_of_shared(toy), rel=1e-5)


def test_rescaling_changes_the_training(toy):
    plain, rescaled = (measure_conflict(toy, config_of(), steps=6, rescale=r) for r in (False, True))
    assert plain["points"][0]["loss"] == rescaled["points"][0]["loss"]
    assert plain["points"][-1]["loss"] != rescaled["points"][-1]["loss"]


def test_norms_and_cosines_are_of_rows_that_both_jobs_touch():
    gradients = RowGradients(
        attention=torch.tensor([[3.0, 4.0], [1.0, 0.0], [0.0, 0.0], [0.0, 2.0]]),
        representation=torch.tensor([[6.0, 8.0], [-2.0, 0.0], [1.0, 0.0], [0.0, 0.0]]),
    )
    found = measures(gradients.sums())
    assert found["rows"] == 2
    assert found["attention_norm"] == pytest.approx(3.0)
    assert found["ratio"] == pytest.approx(2.0)
    assert found["negative_percent"] == 50.0
    assert found["cosine"] == pytest.approx(0.0)
    assert math.isnan(
        measures(RowGradients(attention=torch.zeros(1, 2), representation=torch.zeros(1, 2)).sums())["ratio"]
    )


def test_models_that_cannot_share_are_refused(toy):
    config = RunConfig(name="popularity", model="popularity", model_config=None)
    with pytest.raises(SpecError, match="must be able to share its tables"):
        measure_conflict(toy, config, steps=1)
