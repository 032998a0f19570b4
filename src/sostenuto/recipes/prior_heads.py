"""Human-prior heads on both sequence backbones, and the same backbones without heads beside them.

All see the same windows, negatives, budget and temperature: what differs is the heads. `_short` rows are for budgets of
few requests, such as `standard`.
"""

from __future__ import annotations

import dataclasses

from sostenuto.features.view import HistoryView
from sostenuto.models.table import default_config
from sostenuto.training.config import Budget, RunConfig, TrainingConfig


def prior_heads() -> RunConfig:
    """Train heads for communities of items and two segments of the future on SASRec."""
    return RunConfig(
        name="prior_heads",
        model="prior_heads",
        model_config=default_config("prior_heads"),
        view=HistoryView(recent=50, match=False),
        training=TrainingConfig(
            learning_rate=1e-3,
            table_learning_rate=1e-3,
            weight_decay=0.0,
            table_decay=0.0,
            schedule="linear",
            weighting="candidate",
            batch_requests=256,
            negatives=512,
            evaluation_batch_requests=256,
            evaluations_per_epoch=1,
            patience=5,
            metric="ndcg@10",
        ),
        budget=Budget(name="next-item", valid=3_000, epochs=20),
    )


def prior_heads_hstu() -> RunConfig:
    """Train the same heads on HSTU."""
    base = prior_heads()
    model_config = dataclasses.replace(base.model_config, backbone="hstu")
    return dataclasses.replace(base, name="prior_heads_hstu", model_config=model_config)


def prior_heads_off() -> RunConfig:
    """Train SASRec alone on the same windows, negatives and budget."""
    return _off(prior_heads())


def prior_heads_hstu_off() -> RunConfig:
    """Train HSTU alone on the same windows, negatives and budget."""
    return _off(prior_heads_hstu())


def prior_heads_short() -> RunConfig:
    """Train heads on SASRec within budgets of few requests and epochs: smaller batches, so that there are steps."""
    return _short(prior_heads())


def prior_heads_hstu_short() -> RunConfig:
    """Train the same on HSTU."""
    return _short(prior_heads_hstu())


def prior_heads_short_off() -> RunConfig:
    """Train SASRec alone within the same budget."""
    return _short(prior_heads_off())


def prior_heads_hstu_short_off() -> RunConfig:
    """Train HSTU alone within the same budget."""
    return _short(prior_heads_hstu_off())


def _short(config: RunConfig) -> RunConfig:
    backbone = config.name.removesuffix("_off")
    training = dataclasses.replace(config.training, batch_requests=32, evaluations_per_epoch=2)
    name = f"{backbone}_short{config.name.removeprefix(backbone)}"
    return dataclasses.replace(config, name=name, training=training)


def _off(config: RunConfig) -> RunConfig:
    model = config.model_config
    model = dataclasses.replace(
        model,
        heads=dataclasses.replace(model.heads, compose="off"),
        steering=dataclasses.replace(model.steering, masks=False),
    )
    return dataclasses.replace(config, name=f"{config.name}_off", model_config=model)


PRIOR_HEADS_ROWS = (
    prior_heads,
    prior_heads_off,
    prior_heads_hstu,
    prior_heads_hstu_off,
    prior_heads_short,
    prior_heads_short_off,
    prior_heads_hstu_short,
    prior_heads_hstu_short_off,
)

__all__ = [
    "PRIOR_HEADS_ROWS",
    "prior_heads",
    "prior_heads_hstu",
    "prior_heads_hstu_off",
    "prior_heads_hstu_short",
    "prior_heads_hstu_short_off",
    "prior_heads_off",
    "prior_heads_short",
    "prior_heads_short_off",
]
