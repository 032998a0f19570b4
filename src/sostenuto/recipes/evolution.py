"""DIEN and the rows of its tables: over the newest 200 behaviours, which a recurrent layer takes one by one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sostenuto.models.table import default_config
from sostenuto.recipes.variants import newest_50, without_match
from sostenuto.training.config import RunConfig

NEWEST = 200  # behaviours


def dien() -> RunConfig:
    """Train interest extraction and evolution over the newest 200 behaviours."""
    config = RunConfig(name="dien", model="dien", model_config=default_config("dien"))
    return replace(config, view=replace(config.view, recent=NEWEST))


def dien_recent50() -> RunConfig:
    """Train it over the newest 50 behaviours."""
    return newest_50(dien())


def dien_no_match() -> RunConfig:
    """Train it without match features."""
    return without_match(dien())


def _changed(suffix: str, **changes: Any) -> RunConfig:
    whole = dien()
    return replace(whole, name=f"dien_{suffix}", model_config=replace(whole.model_config, **changes))


def dien_aigru() -> RunConfig:
    """Let attention scale the inputs of the evolving layer."""
    return _changed("aigru", evolution="aigru")


def dien_agru() -> RunConfig:
    """Let attention stand in the place of the update gate."""
    return _changed("agru", evolution="agru")


def dien_gru_att() -> RunConfig:
    """Take the attention-weighted sum of two plain GRU layers."""
    return _changed("gru_att", evolution="gru_att")


def dien_released() -> RunConfig:
    """Take the update gate of the released code: without attention a plain step."""
    return _changed("released", augru_variant="released")


def dien_no_auxiliary() -> RunConfig:
    """Train without the next-behaviour loss."""
    return _changed("no_auxiliary", auxiliary_weight=0.0)


DIEN_ROWS = (
    dien,
    dien_recent50,
    dien_no_match,
    dien_aigru,
    dien_agru,
    dien_gru_att,
    dien_released,
    dien_no_auxiliary,
)

__all__ = [
    "DIEN_ROWS",
    "dien",
    "dien_agru",
    "dien_aigru",
    "dien_gru_att",
    "dien_no_auxiliary",
    "dien_no_match",
    "dien_recent50",
    "dien_released",
]
