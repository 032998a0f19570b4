"""Named, complete runs: Python functions that return a config. A variant calls another and replaces a field.

    RECIPES["din"]()                    full history, match features
    RECIPES["din_recent50"]()           the newest 50 behaviours, match features of the same 50
    RECIPES["din_no_match"]()           full history, no match features

Budget, seed and single fields are set on top with `sostenuto.training.config.apply_overrides`.
"""

from __future__ import annotations

from collections.abc import Callable

from sostenuto.recipes.baselines import (
    logistic,
    logistic_no_match,
    logistic_recent50,
    mean_pool,
    mean_pool_no_match,
    mean_pool_recent50,
    popularity,
    popularity_recent,
    repeat,
    repeat_recent50,
    trees,
    trees_no_match,
    trees_recent50,
)
from sostenuto.recipes.content import MUSE_ROWS, em3, em3_no_contrastive, em3_no_end_to_end, em3_no_lora
from sostenuto.recipes.decoupled import DARE_ROWS
from sostenuto.recipes.evolution import DIEN_ROWS
from sostenuto.recipes.flows import dfgr, dfgr_no_match, dfgr_recent50, metagr, sfgr, sfgr_published
from sostenuto.recipes.lifelong import din, din_no_match, din_recent50, sdim, sdim_no_match, sdim_recent50
from sostenuto.recipes.next_item import hstu, hstu_no_time, sasrec, sasrec_content
from sostenuto.recipes.prior_heads import PRIOR_HEADS_ROWS
from sostenuto.recipes.search import SEARCH_ROWS
from sostenuto.recipes.spatio_temporal import STIM_ROWS
from sostenuto.schema.errors import SpecError, did_you_mean
from sostenuto.training.config import RunConfig

Recipe = Callable[[], RunConfig]

RECIPES: dict[str, Recipe] = {
    recipe.__name__: recipe
    for recipe in (
        popularity,
        popularity_recent,
        repeat,
        repeat_recent50,
        logistic,
        logistic_recent50,
        logistic_no_match,
        trees,
        trees_recent50,
        trees_no_match,
        mean_pool,
        mean_pool_recent50,
        mean_pool_no_match,
        din,
        din_recent50,
        din_no_match,
        sdim,
        sdim_recent50,
        sdim_no_match,
        *DIEN_ROWS,
        *SEARCH_ROWS,
        *DARE_ROWS,
        sfgr,
        sfgr_published,
        metagr,
        dfgr,
        dfgr_recent50,
        dfgr_no_match,
        sasrec,
        sasrec_content,
        hstu,
        hstu_no_time,
        *STIM_ROWS,
        *PRIOR_HEADS_ROWS,
        em3,
        em3_no_end_to_end,
        em3_no_lora,
        em3_no_contrastive,
        *MUSE_ROWS,
    )
}

# The rows of a comparison when nobody names any: every method once, full history, match features.
COMPARED = ("popularity", "popularity_recent", "repeat", "logistic", "trees", "mean_pool", "din", "sdim")


def recipe_named(name: str) -> RunConfig:
    """Return the config of a recipe; refuse unknown names."""
    if name not in RECIPES:
        known = ", ".join(RECIPES)
        raise SpecError(f"recipe must be one of {known}, got {name!r}.{did_you_mean(name, RECIPES)}")
    return RECIPES[name]()


__all__ = ["COMPARED", "RECIPES", "Recipe", "recipe_named"]
