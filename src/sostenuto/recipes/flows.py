"""Generative rankers: timelines as sequences of tokens."""

from __future__ import annotations

from sostenuto.models.table import default_config
from sostenuto.recipes.variants import newest_50, without_match
from sostenuto.training.config import RunConfig


def sfgr() -> RunConfig:
    """Train one flow of item-and-action tokens, a history per request."""
    return RunConfig(name="sfgr", model="sfgr", model_config=default_config("sfgr"))


def sfgr_published() -> RunConfig:
    """Train the same with the published time bias, which no cache survives."""
    return RunConfig(name="sfgr_published", model="sfgr_published", model_config=default_config("sfgr_published"))


def metagr() -> RunConfig:
    """Train items and actions as tokens in turn, all requests of a timeline in one pass."""
    return RunConfig(name="metagr", model="metagr", model_config=default_config("metagr"))


def dfgr() -> RunConfig:
    """Train a real and a fake flow, all requests of a timeline in one pass."""
    return RunConfig(name="dfgr", model="dfgr", model_config=default_config("dfgr"))


def dfgr_recent50() -> RunConfig:
    """Train both flows over the newest 50 behaviours."""
    return newest_50(dfgr())


def dfgr_no_match() -> RunConfig:
    """Train both flows without match features."""
    return without_match(dfgr())


__all__ = ["dfgr", "dfgr_no_match", "dfgr_recent50", "metagr", "sfgr", "sfgr_published"]
