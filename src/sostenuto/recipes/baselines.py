"""The strong simple baselines that every table holds."""

from __future__ import annotations

from sostenuto.models.table import default_config
from sostenuto.recipes.variants import newest_50, without_match
from sostenuto.training.config import RunConfig


def popularity() -> RunConfig:
    """Rank by popularity of all time before the request."""
    return RunConfig(name="popularity", model="popularity", model_config=default_config("popularity"))


def popularity_recent() -> RunConfig:
    """Rank by popularity of the four weeks before the request."""
    return RunConfig(
        name="popularity_recent", model="popularity_recent", model_config=default_config("popularity_recent")
    )


def repeat() -> RunConfig:
    """Rank by how often and how recently the user met the item."""
    return RunConfig(name="repeat", model="repeat", model_config=default_config("repeat"))


def repeat_recent50() -> RunConfig:
    """Count repeats over the newest 50 behaviours only."""
    return newest_50(repeat())


def logistic() -> RunConfig:
    """Fit a logistic regression on hand-made features."""
    return RunConfig(name="logistic", model="logistic", model_config=default_config("logistic"))


def logistic_recent50() -> RunConfig:
    """Fit the logistic regression on features of the newest 50 behaviours."""
    return newest_50(logistic())


def logistic_no_match() -> RunConfig:
    """Fit the logistic regression without match features."""
    return without_match(logistic())


def trees() -> RunConfig:
    """Fit gradient-boosted trees on hand-made features: the bar."""
    return RunConfig(name="trees", model="trees", model_config=default_config("trees"))


def trees_recent50() -> RunConfig:
    """Fit the trees on features of the newest 50 behaviours."""
    return newest_50(trees())


def trees_no_match() -> RunConfig:
    """Fit the trees without match features."""
    return without_match(trees())


def mean_pool() -> RunConfig:
    """Train the network that averages the history instead of attending to it."""
    return RunConfig(name="mean_pool", model="mean_pool", model_config=default_config("mean_pool"))


def mean_pool_recent50() -> RunConfig:
    """Average the newest 50 behaviours only."""
    return newest_50(mean_pool())


def mean_pool_no_match() -> RunConfig:
    """Average without match features."""
    return without_match(mean_pool())


__all__ = [
    "logistic",
    "logistic_no_match",
    "logistic_recent50",
    "mean_pool",
    "mean_pool_no_match",
    "mean_pool_recent50",
    "popularity",
    "popularity_recent",
    "repeat",
    "repeat_recent50",
    "trees",
    "trees_no_match",
    "trees_recent50",
]
