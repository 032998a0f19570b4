"""Requests by the groups of what is true in them: one group's own accuracy, and users who leave their habits.

A request *explores* when one of its true items is of a group that never occurs in its history. Items that are in all
groups are ignored there: nothing is known of them, so they are no news.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sostenuto.evaluation.measures import OwnedTerms
from sostenuto.evaluation.terms import Array, GroupTerms


def exploring(truth: Sequence[Array], history: Sequence[Array], groups: Array) -> Array:
    """Return (R,) bool: requests with a true item of a group that their history does not know.

    Args:
        truth:   true items of each request.
        history: items of each request's history.
        groups:  (num_items, C) bool.
    """
    told = groups & ~groups.all(1, keepdims=True)
    found = np.zeros(len(truth), bool)
    for r, (wanted, met) in enumerate(zip(truth, history, strict=True)):
        found[r] = bool((told[wanted] & ~told[met].any(0)).any())
    return found


def of_group(truth: Sequence[Array], groups: Array) -> Array:
    """Return (R, C) bool: requests with a true item of each group; items that are in all groups are ignored."""
    told = groups & ~groups.all(1, keepdims=True)
    return np.stack([told[wanted].any(0) for wanted in truth]) if len(truth) else np.zeros((0, groups.shape[1]), bool)


def restricted(owned: OwnedTerms, requests: Array) -> OwnedTerms:
    """Return a measure over some requests only: the metrics of exploring users, or of one group."""
    kept = np.isin(owned.terms.group, requests)
    terms = owned.terms
    return OwnedTerms(
        terms=GroupTerms(group=terms.group[kept], numerator=terms.numerator[kept], denominator=terms.denominator[kept]),
        user=owned.user[kept],
    )


__all__ = ["exploring", "of_group", "restricted"]
