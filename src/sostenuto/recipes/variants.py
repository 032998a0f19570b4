"""What a variant changes: the name, and the view."""

from __future__ import annotations

from dataclasses import replace

from sostenuto.training.config import RunConfig


def newest(config: RunConfig, count: int) -> RunConfig:
    """Return the run with only the newest `count` behaviours; match features are truncated alike."""
    return replace(config, name=f"{config.name}_recent{count}", view=replace(config.view, recent=count))


def newest_50(config: RunConfig) -> RunConfig:
    """Return the run with only the newest 50 behaviours."""
    return newest(config, 50)


def without_match(config: RunConfig) -> RunConfig:
    """Return the run without match features."""
    return replace(config, name=f"{config.name}_no_match", view=replace(config.view, match=False))


__all__ = ["newest", "newest_50", "without_match"]
