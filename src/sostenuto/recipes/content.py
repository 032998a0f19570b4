"""Rankers that read the content of items; build some first with `sostenuto content build`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sostenuto.models.table import default_config
from sostenuto.recipes.variants import newest, without_match
from sostenuto.training.config import RunConfig


def em3() -> RunConfig:
    """Train encoders of item content and a ranker together."""
    return RunConfig(name="em3", model="em3", model_config=default_config("em3"))


def em3_no_end_to_end() -> RunConfig:
    """Train the ranker over stored content vectors."""
    return _em3("no_end_to_end", end_to_end="off")


def em3_no_lora() -> RunConfig:
    """Train the map of the history's contents as a whole."""
    return _em3("no_lora", history_map="full")


def em3_no_contrastive() -> RunConfig:
    """Train without the content-id loss."""
    return _em3("no_contrastive", contrastive_weight=0.0)


def _em3(variant: str, **changes: Any) -> RunConfig:
    return replace(em3(), name=f"em3_{variant}", model_config=replace(default_config("em3"), **changes))


def muse() -> RunConfig:
    """Train search and attention by content."""
    return RunConfig(name="muse", model="muse", model_config=default_config("muse"))


def muse_no_match() -> RunConfig:
    """Train MUSE without match features."""
    return without_match(muse())


def muse_recent200() -> RunConfig:
    """Train MUSE over the newest 200 behaviours."""
    return newest(muse(), 200)


def muse_search_by_id() -> RunConfig:
    """Search by the cosine of id vectors; stage two stays."""
    return _muse("search_by_id", search="id")


def muse_search_by_category() -> RunConfig:
    """Search by category; stage two stays."""
    return _muse("search_by_category", search="category")


def muse_no_fusion() -> RunConfig:
    """Leave cosines out of the scores of stage two."""
    return _muse("no_fusion", fusion=False)


def muse_no_tiers() -> RunConfig:
    """Leave the counts of cosines out."""
    return _muse("no_tiers", tiers=False)


def muse_plain_attention() -> RunConfig:
    """Search by content; stage two does not know it."""
    return _muse("plain_attention", fusion=False, tiers=False)


def _muse(variant: str, **changes: Any) -> RunConfig:
    return replace(muse(), name=f"muse_{variant}", model_config=replace(default_config("muse"), **changes))


MUSE_ROWS = (
    muse,
    muse_no_match,
    muse_recent200,
    muse_search_by_id,
    muse_search_by_category,
    muse_no_fusion,
    muse_no_tiers,
    muse_plain_attention,
)

__all__ = [
    "MUSE_ROWS",
    "em3",
    "em3_no_contrastive",
    "em3_no_end_to_end",
    "em3_no_lora",
    "muse",
    "muse_no_fusion",
    "muse_no_match",
    "muse_no_tiers",
    "muse_plain_attention",
    "muse_recent200",
    "muse_search_by_category",
    "muse_search_by_id",
]
