"""Two-stage rankers: a search over the history, exact attention over what it found; and the grid of lengths.

Rows of one table differ in the search alone. `_recent200` is for comparisons with models that read a window.
"""

from __future__ import annotations

from dataclasses import replace

from sostenuto.models.table import default_config
from sostenuto.recipes.lifelong import din, sdim
from sostenuto.recipes.variants import newest, newest_50, without_match
from sostenuto.training.config import RunConfig

CLUSTER_SIZE = 8  # behaviours of a cluster of twin_clusters, at most


def _run(model: str) -> RunConfig:
    return RunConfig(name=model, model=model, model_config=default_config(model))


def sim_hard() -> RunConfig:
    """Train search by category."""
    return _run("sim_hard")


def sim_hard_no_match() -> RunConfig:
    """Train search by category without match features."""
    return without_match(sim_hard())


def sim_hard_recent200() -> RunConfig:
    """Train search by category in the newest 200 behaviours."""
    return newest(sim_hard(), 200)


def sim_soft() -> RunConfig:
    """Train search by learned product."""
    return _run("sim_soft")


def sim_soft_no_match() -> RunConfig:
    """Train search by learned product without match features."""
    return without_match(sim_soft())


def sim_soft_recent200() -> RunConfig:
    """Train search by learned product in the newest 200 behaviours."""
    return newest(sim_soft(), 200)


def eta() -> RunConfig:
    """Train search by signature."""
    return _run("eta")


def eta_no_match() -> RunConfig:
    """Train search by signature without match features."""
    return without_match(eta())


def eta_recent200() -> RunConfig:
    """Train search by signature in the newest 200 behaviours."""
    return newest(eta(), 200)


def twin() -> RunConfig:
    """Train search by attention score."""
    return _run("twin")


def twin_no_match() -> RunConfig:
    """Train search by attention score without match features."""
    return without_match(twin())


def twin_recent200() -> RunConfig:
    """Train search by attention score in the newest 200 behaviours."""
    return newest(twin(), 200)


def twin_recent50() -> RunConfig:
    """Train search by attention score in the newest 50 behaviours: nothing is left to search."""
    return newest_50(twin())


def twin_recent1000() -> RunConfig:
    """Train search by attention score in the newest 1,000 behaviours."""
    return newest(twin(), 1000)


def twin_clusters() -> RunConfig:
    """Train search by attention score among clusters of old behaviours, as in TWIN-V2."""
    whole = twin()
    return replace(whole, name="twin_clusters", model_config=replace(whole.model_config, cluster_size=CLUSTER_SIZE))


def din_recent200() -> RunConfig:
    """Train target attention over the newest 200 behaviours."""
    return newest(din(), 200)


def din_recent1000() -> RunConfig:
    """Train target attention over the newest 1,000 behaviours."""
    return newest(din(), 1000)


def sdim_recent200() -> RunConfig:
    """Train hash buckets over the newest 200 behaviours."""
    return newest(sdim(), 200)


def sdim_recent1000() -> RunConfig:
    """Train hash buckets over the newest 1,000 behaviours."""
    return newest(sdim(), 1000)


SEARCH_ROWS = (
    sim_hard,
    sim_hard_no_match,
    sim_hard_recent200,
    sim_soft,
    sim_soft_no_match,
    sim_soft_recent200,
    eta,
    eta_no_match,
    eta_recent200,
    twin,
    twin_no_match,
    twin_recent200,
    twin_recent50,
    twin_recent1000,
    twin_clusters,
    din_recent200,
    din_recent1000,
    sdim_recent200,
    sdim_recent1000,
)

__all__ = ["SEARCH_ROWS"]
