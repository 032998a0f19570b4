"""Rankers that read the whole history."""

from __future__ import annotations

from sostenuto.models.table import default_config
from sostenuto.recipes.variants import newest_50, without_match
from sostenuto.training.config import RunConfig


def din() -> RunConfig:
    """Train target attention over the whole history."""
    return RunConfig(name="din", model="din", model_config=default_config("din"))


def din_recent50() -> RunConfig:
    """Train target attention over the newest 50 behaviours."""
    return newest_50(din())


def din_no_match() -> RunConfig:
    """Train target attention without match features."""
    return without_match(din())


def sdim() -> RunConfig:
    """Train hash buckets over the whole history, attention over its newest part."""
    return RunConfig(name="sdim", model="sdim", model_config=default_config("sdim"))


def sdim_recent50() -> RunConfig:
    """Train hash buckets over the newest 50 behaviours."""
    return newest_50(sdim())


def sdim_no_match() -> RunConfig:
    """Train hash buckets without match features."""
    return without_match(sdim())


__all__ = ["din", "din_no_match", "din_recent50", "sdim", "sdim_no_match", "sdim_recent50"]
