"""Rankers that read the content of items; build some first with `sostenuto content build`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sostenuto.models.table import default_config
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


__all__ = ["em3", "em3_no_contrastive", "em3_no_end_to_end", "em3_no_lora"]
