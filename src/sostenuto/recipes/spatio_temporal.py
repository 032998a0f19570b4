"""STIM and the rows of its ablation grid."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sostenuto.models.table import default_config
from sostenuto.recipes.variants import without_match
from sostenuto.training.config import RunConfig


def stim() -> RunConfig:
    """Train experts over masks of time and place with a forgetting curve."""
    return RunConfig(name="stim", model="stim", model_config=default_config("stim"))


def stim_no_match() -> RunConfig:
    """Train STIM without match features."""
    return without_match(stim())


def _changed(suffix: str, **changes: Any) -> RunConfig:
    whole = stim()
    return replace(whole, name=f"stim_{suffix}", model_config=replace(whole.model_config, **changes))


def _without_expert(name: str) -> RunConfig:
    experts = tuple(expert for expert in stim().model_config.experts if expert != name)
    return _changed(f"no_{name}", experts=experts)


def stim_no_forgetting() -> RunConfig:
    """Let every behaviour be retained: R = 1."""
    return _changed("no_forgetting", forgetting="none")


def stim_no_reinforcement() -> RunConfig:
    """Let repetition slow nothing down: alpha = 0."""
    return _changed("no_reinforcement", reinforcement=False)


def stim_hard() -> RunConfig:
    """Cut by fixed thresholds of retention instead of adding ln R to the scores."""
    return _changed("hard", forgetting="hard")


def stim_no_hour() -> RunConfig:
    """Leave out the expert of the same hour."""
    return _without_expert("hour")


def stim_no_week() -> RunConfig:
    """Leave out the expert of the same weekday."""
    return _without_expert("week")


def stim_no_place() -> RunConfig:
    """Leave out the expert of the same place."""
    return _without_expert("place")


def stim_uniform_gate() -> RunConfig:
    """Weigh the experts alike."""
    return _changed("uniform_gate", gate="uniform")


def stim_top_2() -> RunConfig:
    """Let the gate mix the two experts it prefers instead of all."""
    return _changed("top_2", gate_top_k=2)


def stim_no_interests() -> RunConfig:
    """Leave out the interests of the newest behaviours."""
    return _changed("no_interests", interests=0)


def stim_shallow() -> RunConfig:
    """Read the interests from the behaviours themselves only."""
    return _changed("shallow", interest_levels="shallow")


def stim_deep() -> RunConfig:
    """Take the interests after the deepest reading only."""
    return _changed("deep", interest_levels="deep")


STIM_ROWS = (
    stim,
    stim_no_match,
    stim_no_forgetting,
    stim_no_reinforcement,
    stim_hard,
    stim_no_hour,
    stim_no_week,
    stim_no_place,
    stim_uniform_gate,
    stim_top_2,
    stim_no_interests,
    stim_shallow,
    stim_deep,
)

__all__ = [
    "STIM_ROWS",
    "stim",
    "stim_deep",
    "stim_hard",
    "stim_no_forgetting",
    "stim_no_hour",
    "stim_no_interests",
    "stim_no_match",
    "stim_no_place",
    "stim_no_reinforcement",
    "stim_no_week",
    "stim_shallow",
    "stim_top_2",
    "stim_uniform_gate",
]
