"""The table of metrics that are ratios of sums over users: what intervals and paired tests can be had for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from sostenuto.evaluation import gauc, logloss, pcoc, top_k
from sostenuto.evaluation.predictions import Predictions
from sostenuto.evaluation.score_counts import count_scores
from sostenuto.evaluation.terms import Array, GroupTerms, row_terms
from sostenuto.schema.errors import SpecError, did_you_mean

HEADLINE = "gauc_request"


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """Name, how people read it, and which way is up."""

    name: str
    title: str
    larger_is_better: bool = True


_PLAIN = {
    m.name: m
    for m in (
        Measure(name="gauc_request", title="GAUC by request and list [exposures]"),
        Measure(name="gauc_user", title="GAUC by user [exposures]"),
        Measure(name="logloss", title="Logloss", larger_is_better=False),
    )
}
_TITLES = {"ndcg": "NDCG", "recall": "Recall", "hr": "HR", "mrr": "MRR", "map": "MAP"}


def measure(name: str) -> Measure:
    """Return the measure of a name such as `gauc_request`, `logloss` or `ndcg@10`."""
    if name in _PLAIN:
        return _PLAIN[name]
    kind, _, k = name.partition("@")
    if kind in _TITLES and k.isdecimal() and int(k) > 0:
        return Measure(name=name, title=f"{_TITLES[kind]}@{k}")
    known = [*_PLAIN, *(f"{kind}@10" for kind in _TITLES)]
    raise SpecError(f"measure must be one of {', '.join(known)} (any k), got {name!r}.{did_you_mean(name, known)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnedTerms:
    """A metric as sums by group, and the user that owns each group."""

    terms: GroupTerms
    user: Array  # (G,)


def _owned(terms: GroupTerms, group: Array, user: Array) -> OwnedTerms:
    owner = np.zeros(len(terms.group), np.int64)
    owner[np.searchsorted(terms.group, group)] = user
    return OwnedTerms(terms=terms, user=owner)


def measure_terms(predictions: Predictions, names: Iterable[str]) -> dict[str, OwnedTerms]:
    """Return each measure of `names` as sums by group with their users; `pcoc` and `rate` are known here too."""
    p, group = predictions, predictions.request_list
    by_list = count_scores(p.label, p.logit, group)
    out: dict[str, OwnedTerms] = {}
    for name in names:
        if name == "pcoc":
            terms = pcoc.terms(p.label, p.logit, p.user)
        elif name == "rate":
            terms = row_terms(p.user, p.label, np.ones(len(p)))
        elif name == "logloss":
            terms = logloss.terms(p.label, p.logit, p.user)
        elif name == "gauc_user":
            terms = gauc.terms(count_scores(p.label, p.logit, p.user))
        elif name == "gauc_request":
            out[name] = _owned(gauc.terms(by_list), group, p.user)
            continue
        else:
            kind, _, k = measure(name).name.partition("@")
            out[name] = _owned(top_k.TOP_K[kind](by_list, int(k)), group, p.user)
            continue
        out[name] = OwnedTerms(terms=terms, user=terms.group)
    return out


__all__ = ["HEADLINE", "Measure", "OwnedTerms", "measure", "measure_terms"]
