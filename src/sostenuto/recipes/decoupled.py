"""DARE and the rows of its ablation table; `dare_shared` is what its paper calls TWIN."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sostenuto.models.table import default_config
from sostenuto.recipes.variants import newest, newest_50, without_match
from sostenuto.training.config import RunConfig


def dare() -> RunConfig:
    """Train separate tables for attention and representation."""
    return RunConfig(name="dare", model="dare", model_config=default_config("dare"))


def dare_no_match() -> RunConfig:
    """Train DARE without match features."""
    return without_match(dare())


def dare_recent50() -> RunConfig:
    """Train DARE over the newest 50 behaviours: nothing is left to search."""
    return newest_50(dare())


def dare_recent200() -> RunConfig:
    """Train DARE over the newest 200 behaviours."""
    return newest(dare(), 200)


def dare_recent1000() -> RunConfig:
    """Train DARE over the newest 1,000 behaviours."""
    return newest(dare(), 1000)


def _changed(suffix: str, **changes: Any) -> RunConfig:
    whole = dare()
    return replace(whole, name=f"dare_{suffix}", model_config=replace(whole.model_config, **changes))


def dare_shared() -> RunConfig:
    """Let one set of tables do both jobs."""
    return _changed("shared", tables="shared")


def dare_shared_hard() -> RunConfig:
    """Share tables, and search by category."""
    return _changed("shared_hard", tables="shared", search="category")


def dare_shared_projections() -> RunConfig:
    """Share tables, with linear maps for each job of candidates and behaviours."""
    return _changed("shared_projections", tables="shared", projections=True)


def dare_three() -> RunConfig:
    """Attention of candidates, attention of behaviours, and representation have tables of their own."""
    return _changed("three", tables="three")


def dare_four() -> RunConfig:
    """Representation of candidates has tables of its own as well."""
    return _changed("four", tables="four")


def dare_not_target_aware() -> RunConfig:
    """Leave out the product of candidate and interest."""
    return _changed("not_target_aware", target_aware=False)


def dare_wide() -> RunConfig:
    """Make attention tables as wide as those of the representation."""
    return _changed("wide", attention_category_dim=8, attention_field_dim=8, attention_time_dim=8)


def dare_gap() -> RunConfig:
    """Tell times by the gap to the request instead of the distance from the end."""
    return _changed("gap", times="gap")


def dare_no_full_head() -> RunConfig:
    """Leave out the head over the whole history."""
    return _changed("no_full_head", full_weight=0.0)


DARE_ROWS = (
    dare,
    dare_no_match,
    dare_recent50,
    dare_recent200,
    dare_recent1000,
    dare_shared,
    dare_shared_hard,
    dare_shared_projections,
    dare_three,
    dare_four,
    dare_not_target_aware,
    dare_wide,
    dare_gap,
    dare_no_full_head,
)

__all__ = ["DARE_ROWS"]
