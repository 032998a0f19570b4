"""Popularity, recent popularity and repeat."""

from dataclasses import replace

import pytest
import torch
from tests.baselines.planted_requests import FEATURES, planted_batch

from sostenuto.baselines.popularity import Popularity, PopularityConfig, RecentPopularity
from sostenuto.baselines.repeat import Repeat, RepeatConfig
from sostenuto.schema.errors import SpecError


def logits(ranker, batch):
    return ranker.score(ranker.encode(batch.histories), batch.candidates, batch.context).logits


@pytest.mark.parametrize(("cls", "name"), [(Popularity, "popularity"), (RecentPopularity, "popularity_28d")])
def test_popularity_orders_as_its_field(cls, name):
    batch = planted_batch(0)
    ranked = logits(cls(PopularityConfig(), FEATURES), batch)
    assert torch.equal(ranked.argsort(), batch.candidates.fields[name].argsort())


@pytest.mark.parametrize("cls", [Popularity, RecentPopularity])
def test_popularity_does_not_depend_on_the_user(cls):
    ranker = cls(PopularityConfig(), FEATURES)
    batch, other = planted_batch(0), planted_batch(1)
    state = ranker.encode(other.histories)
    assert torch.equal(
        ranker.score(state, batch.candidates, batch.context).logits,
        logits(ranker, batch),
    )


def test_missing_popularity_scores_like_the_average():
    batch = planted_batch(0)
    nothing = torch.full_like(batch.candidates.fields["popularity"], torch.nan)
    missing = replace(batch.candidates, fields={**batch.candidates.fields, "popularity": nothing})
    assert torch.equal(
        logits(Popularity(PopularityConfig(), FEATURES), replace(batch, candidates=missing)),
        torch.zeros(len(batch.labels)),
    )


def test_an_item_met_more_often_or_more_recently_ranks_higher_all_else_equal():
    batch = planted_batch(0)
    ranker = Repeat(RepeatConfig(), FEATURES)
    before = logits(ranker, batch)
    for column in (FEATURES.match.index("item.count"), FEATURES.match.index("item.recency")):
        match = batch.candidates.match.clone()
        match[:, column] += 0.1
        more = replace(batch, candidates=replace(batch.candidates, match=match))
        assert (logits(ranker, more) > before).all()


def test_what_was_never_met_is_ordered_by_popularity():
    batch = planted_batch(0)
    unmet = replace(batch, candidates=replace(batch.candidates, match=torch.zeros_like(batch.candidates.match)))
    ranked = logits(Repeat(RepeatConfig(), FEATURES), unmet)
    assert torch.equal(ranked.argsort(), batch.candidates.fields["popularity"].argsort())


def test_repeat_refuses_a_view_without_match_features_and_negative_weights():
    with pytest.raises(SpecError, match="match=true"):
        Repeat(RepeatConfig(), replace(FEATURES, match=()))
    with pytest.raises(SpecError, match=r"RepeatConfig\.count_weight must be at least 0, got -1"):
        RepeatConfig(count_weight=-1)
