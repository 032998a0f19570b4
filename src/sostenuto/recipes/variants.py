"""What a variant changes: the name, and the view."""

from __future__ import annotations

from dataclasses import replace

from sostenuto.training.config import RunConfig


def newest_50(config: RunConfig) -> RunConfig:
    """Return the run with only the newest 50 behaviours; match features are truncated alike."""
    return replace(config, name=f"{config.name}_recent50", view=replace(config.view, recent=50))


def without_match(config: RunConfig) -> RunConfig:
    """Return the run without match features."""
    return replace(config, name=f"{config.name}_no_match", view=replace(config.view, match=False))


__all__ = ["newest_50", "without_match"]
