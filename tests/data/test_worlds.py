"""Synthetic worlds hold the truth they claim."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from sostenuto.data.preparation import prepare
from sostenuto.data.prepared import Array, PreparedData
from sostenuto.data.spec import load_spec
from sostenuto.data.worlds import WORLDS, WorldLog, expected_auc, make_world, world_log, world_prepared
from sostenuto.data.worlds.table import CANDIDATES, GROUPS, HABIT_LEAST, LOYALTY, NEWEST, PHASE_EVENTS, RARE_SHARE
from sostenuto.data.worlds.two_jobs import circle_of, relevant_events, says_good
from sostenuto.schema.errors import SpecError

DAY_MS = 86_400_000


def auc(labels: Array, scores: Array) -> float:
    """Share of pairs in the right order, ties half."""
    positive, negative = scores[labels > 0], np.sort(scores[labels == 0])
    below = np.searchsorted(negative, positive) + np.searchsorted(negative, positive, side="right")
    return float(below.mean() / 2 / len(negative))


@pytest.fixture(scope="module", params=sorted(WORLDS))
def log(request: pytest.FixtureRequest) -> WorldLog:
    return world_log(request.param, events=20_000, seed=3)


def kind_auc(log: WorldLog, weight: Callable[[Array, int], Array], requests: int = 700) -> float:
    """AUC of a score that sums `weight` (event rows, request) over the user's earlier events of a candidate's kind."""
    edges = np.searchsorted(log.event_user, np.arange(log.num_users + 1))
    kinds = log.item_kind[log.event_item]
    scores = []
    for r in range(requests):
        user, now = log.request_user[r], log.request_time_ms[r]
        rows = np.arange(edges[user], edges[user + 1])
        rows = rows[log.event_time_ms[rows] < now]
        mass = np.bincount(kinds[rows], weight(rows, r), minlength=int(log.item_kind.max()) + 1)
        scores.append(mass[log.item_kind[log.candidate_item[r]]])
    return auc(log.label[:requests].ravel(), np.concatenate(scores))


def every_event(rows: Array, _: int) -> Array:
    return np.ones(len(rows))


def test_oracle_reaches_the_stated_auc(log: WorldLog) -> None:
    # 16,000 labels: the standard error of an AUC near .85 is about .004
    assert auc(log.label.ravel(), log.logit.ravel()) == pytest.approx(log.oracle_auc, abs=0.015)
    assert log.oracle_auc == 0.5 if log.name == "noise" else log.oracle_auc > 0.8


def test_histories_are_in_order_and_counts_are_as_asked(log: WorldLog) -> None:
    assert len(log.event_user) == 20_000
    assert (np.diff(log.event_user) >= 0).all()
    same = np.diff(log.event_user) == 0
    assert (np.diff(log.event_time_ms)[same] >= 0).all()
    assert set(np.unique(log.event_user)) == set(range(log.num_users))
    assert (np.diff(log.request_time_ms) >= 0).all()


def test_a_request_shows_no_item_twice(log: WorldLog) -> None:
    ordered = np.sort(log.candidate_item, axis=1)
    assert (ordered[:, 1:] != ordered[:, :-1]).all()


def test_popularity_tells_nothing_of_the_label(log: WorldLog) -> None:
    count = np.bincount(log.event_item, minlength=len(log.item_kind))
    assert auc(log.label.ravel(), count[log.candidate_item.ravel()]) == pytest.approx(0.5, abs=0.04)


def test_position_tells_nothing_of_the_label(log: WorldLog) -> None:
    position = np.tile(np.arange(CANDIDATES), len(log.label))
    assert auc(log.label.ravel(), position) == pytest.approx(0.5, abs=0.02)


def test_stable_taste_is_seen_by_counts() -> None:
    assert kind_auc(world_log("stable_taste", events=20_000, seed=1), every_event) > 0.75


def test_noise_has_no_signal_in_the_history() -> None:
    assert kind_auc(world_log("noise", events=20_000, seed=1), every_event) == pytest.approx(0.5, abs=0.03)


def test_long_range_is_invisible_to_the_newest() -> None:
    log = world_log("long_range", events=20_000, seed=1)

    def newest(rows: Array, _: int) -> Array:
        weight = np.zeros(len(rows))
        weight[-NEWEST:] = 1
        return weight

    assert kind_auc(log, newest) == pytest.approx(0.5, abs=0.03)
    assert kind_auc(log, every_event) > 0.75


def test_two_jobs_is_seen_by_who_finds_the_circle_and_reads_the_side_and_by_no_one_else() -> None:
    log = world_log("two_jobs", events=20_000, seed=1)
    edges = np.searchsorted(log.event_user, np.arange(log.num_users + 1))
    kind = log.item_kind[log.event_item].astype(np.int64)
    side = np.where(says_good(kind), 1, -1)
    scores: dict[str, list[Array]] = {"both": [], "circle": [], "side": []}
    for r in range(700):
        low = edges[log.request_user[r]]
        user = slice(low, edges[log.request_user[r] + 1])
        past = slice(low, low + np.searchsorted(log.event_time_ms[user], log.request_time_ms[r]))
        asked = circle_of(log.item_kind[log.candidate_item[r]].astype(np.int64))
        circle = circle_of(kind[past])
        scores["both"].append((relevant_events(circle, asked) * side[past]).sum(1))
        scores["circle"].append((circle == asked[:, None]).sum(1))
        scores["side"].append(np.full(len(asked), side[past][-3:].sum()))
    found = {name: auc(log.label[:700].ravel(), np.concatenate(of)) for name, of in scores.items()}
    assert found["both"] > 0.75
    assert max(found["circle"], found["side"]) < 0.6
    assert kind_auc(log, every_event) == pytest.approx(0.5, abs=0.05)


def test_drift_is_seen_by_recency() -> None:
    log = world_log("drift", events=20_000, seed=1)

    def decayed(rows: Array, r: int) -> Array:
        return np.exp(-(log.request_time_ms[r] - log.event_time_ms[rows]) / (15 * DAY_MS))

    assert kind_auc(log, decayed) > kind_auc(log, every_event) + 0.05


def test_weekly_habit_is_seen_by_weekday() -> None:
    log = world_log("weekly_habit", events=20_000, seed=1)

    def same_weekday(rows: Array, r: int) -> Array:
        gap = log.event_time_ms[rows] // DAY_MS - log.request_time_ms[r] // DAY_MS
        return (gap % 7 == 0).astype(float)

    assert kind_auc(log, same_weekday) > kind_auc(log, every_event) + 0.05


def test_prior_intents_are_seen_group_by_group() -> None:
    """Counts within a group tell more than counts over all: the rare group has few events and as many candidates."""
    log = world_log("prior_intents", events=20_000, seed=1)
    group = log.item_group[log.event_item]
    rare = np.bincount(group) / len(group)

    def share_of_group(rows: Array, r: int) -> Array:
        mine = np.bincount(group[rows], minlength=GROUPS)
        return 1.0 / (1.0 + np.where(group[rows] == GROUPS - 1, mine[GROUPS - 1], mine[: GROUPS - 1].sum()))

    assert rare[GROUPS - 1] == pytest.approx(RARE_SHARE, abs=0.01)
    assert (log.item_group[log.candidate_item] == GROUPS - 1).mean() == pytest.approx(0.5, abs=0.02)
    assert kind_auc(log, share_of_group) > kind_auc(log, every_event) + 0.01


def test_phases_follow_each_other_in_the_same_order_for_all() -> None:
    log = world_log("phases", events=20_000, seed=1)
    starts = np.searchsorted(log.event_user, np.arange(log.num_users))
    place = np.arange(len(log.event_user)) - starts[log.event_user]
    group = log.item_group[log.event_item]
    turn = (group - place // PHASE_EVENTS) % GROUPS  # of loyal events the same for all events of a user
    most = np.array([np.bincount(turn[log.event_user == user], minlength=GROUPS).max() for user in range(50)])
    of_50 = np.bincount(log.event_user[log.event_user < 50])
    loyal = LOYALTY + (1 - LOYALTY) / GROUPS
    assert most.sum() / of_50.sum() == pytest.approx(loyal, abs=0.03)

    def its_group_is_next(rows: Array, _: int) -> Array:
        own = place[rows] // PHASE_EVENTS  # a turn comes back after all others
        return ((len(rows) // PHASE_EVENTS - own) % GROUPS == 0).astype(float)

    assert kind_auc(log, its_group_is_next) > kind_auc(log, every_event) + 0.1


def test_place_habit_is_seen_by_place() -> None:
    log = world_log("place_habit", events=20_000, seed=1)

    def same_place(rows: Array, r: int) -> Array:
        return (log.event_place[rows] == log.request_place[r]).astype(float)

    assert kind_auc(log, same_place) > kind_auc(log, every_event) + 0.05


def test_last_action_is_seen_by_the_last_action_and_not_by_counts_or_recency() -> None:
    log = world_log("last_action", events=20_000, seed=1)

    def last_of_its_kind(rows: Array, _: int) -> Array:
        kinds = log.item_kind[log.event_item[rows]]
        newest = np.array([not (kinds[n + 1 :] == kind).any() for n, kind in enumerate(kinds)], bool)
        return np.where(newest, np.where(log.event_action[rows] == 1, 1.0, -0.5), 0.0)

    seen = kind_auc(log, last_of_its_kind, 300)
    assert seen == pytest.approx(log.oracle_auc, abs=0.03)
    for blind in (every_event, lambda rows, r: np.exp((log.event_time_ms[rows] - log.request_time_ms[r]) / 9e8)):
        assert kind_auc(log, blind, 300) < seen - 0.1
    # telling apart the kinds that were bought last among those that were met at all needs the order of actions
    assert kind_auc(log, lambda rows, _: log.event_action[rows] - 0.5, 300) < seen - 0.05


def test_habits_are_three_structures_that_old_behaviours_tell() -> None:
    log = world_log("habits", events=24_000, seed=1)
    assert np.bincount(log.part.ravel()).min() > 0.15 * log.part.size
    edges = np.searchsorted(log.event_user, np.arange(log.num_users + 1))
    assert np.diff(edges).min() >= HABIT_LEAST
    shown = log.item_kind[log.candidate_item]
    scores = {name: np.zeros(shown.shape) for name in ("newest", "weekday", "place")}
    for r in range(len(shown)):
        rows = np.arange(edges[log.request_user[r]], edges[log.request_user[r] + 1])
        rows = rows[log.event_time_ms[rows] < log.request_time_ms[r]]
        gap = log.event_time_ms[rows] // DAY_MS - log.request_time_ms[r] // DAY_MS
        chosen = {
            "newest": rows[-NEWEST:],
            "weekday": rows[gap % 7 == 0],
            "place": rows[log.event_place[rows] == log.request_place[r]],
        }
        for name, some in chosen.items():
            scores[name][r] = (log.item_kind[log.event_item[some]][None] == shown[r][:, None]).mean(1)
    probability = 1 / (1 + np.exp(-log.logit.astype(np.float64)))

    def part(name: str, number: int) -> float:
        return expected_auc(probability[log.part == number], scores[name][log.part == number])

    # each structure by its own behaviours; the newest show the taste and little of the habits
    assert part("newest", 1) > 0.75
    assert part("weekday", 2) > part("newest", 2) + 0.1
    assert part("place", 3) > part("newest", 3) + 0.1


def test_action_taste_is_seen_by_action() -> None:
    log = world_log("action_taste", events=20_000, seed=1)

    def bought(rows: Array, _: int) -> Array:
        return (log.event_action[rows] == 1).astype(float)

    assert kind_auc(log, bought) > kind_auc(log, every_event) + 0.05


def test_several_interests_are_lost_in_their_mean() -> None:
    log = world_log("several_interests", events=20_000, seed=1)
    edges = np.searchsorted(log.event_user, np.arange(log.num_users + 1))
    mean, apart = [], []
    for r in range(700):
        user = log.request_user[r]
        rows = np.arange(edges[user], edges[user + 1])
        rows = rows[log.event_time_ms[rows] < log.request_time_ms[r]]
        history = log.item_vector[log.event_item[rows]]
        shown = log.item_vector[log.candidate_item[r]]
        mean.append(shown @ history.mean(0) if len(rows) else np.zeros(CANDIDATES))
        apart.append(np.exp(8 * (shown @ history.T)).mean(1) if len(rows) else np.zeros(CANDIDATES))
    labels = log.label[:700].ravel()
    assert auc(labels, np.concatenate(apart)) > auc(labels, np.concatenate(mean)) + 0.05


def test_favourites_take_the_stated_share_of_events() -> None:
    log = world_log("stable_taste", events=50_000, users=20, seed=5)
    kinds = log.item_kind[log.event_item]
    for user in range(20):
        counts = np.sort(np.bincount(kinds[log.event_user == user], minlength=41))
        expected = LOYALTY + (1 - LOYALTY) * 3 / 41
        assert counts[-3:].sum() / counts.sum() == pytest.approx(expected, abs=0.06)


@pytest.mark.parametrize("name", ["drift", "long_range"])
def test_same_seed_same_world_and_other_seed_another(name: str) -> None:
    first, again, other = (world_log(name, events=2_000, seed=seed) for seed in (7, 7, 8))
    assert np.array_equal(first.event_item, again.event_item)
    assert np.array_equal(first.label, again.label)
    assert not np.array_equal(first.event_item, other.event_item)


def test_the_smallest_world_exists() -> None:
    for name in WORLDS:
        log = world_log(name, events=1_000, seed=0)
        assert len(log.event_user) == 1_000
        assert len(log.label) == 400


@pytest.mark.slow
def test_a_world_of_ten_million_events_can_be_made() -> None:
    log = world_log("weekly_habit", events=10_000_000, seed=0)
    assert len(log.event_item) == 10_000_000


def test_impossible_sizes_are_refused() -> None:
    with pytest.raises(SpecError, match="Did you mean 'stable_taste'"):
        world_log("stable_tast", events=1_000, seed=0)
    with pytest.raises(SpecError, match="at least 100 per user"):
        world_log("long_range", events=1_000, users=50, seed=0)
    with pytest.raises(SpecError, match="items must be at least"):
        world_log("noise", events=1_000, items=10, seed=0)


@pytest.mark.parametrize("probability", [np.array([0.9, 0.2, 0.2, 0.6]), np.linspace(0.05, 0.95, 40)])
def test_expected_auc_is_the_mean_over_draws(probability: Array) -> None:
    rng = np.random.default_rng(0)
    many = np.tile(probability, 500)
    drawn = (rng.random(len(many)) < many).astype(float)
    assert expected_auc(probability) == pytest.approx(auc(drawn, many), abs=0.02)


def test_written_world_is_a_log_with_its_truth(tmp_path: Path) -> None:
    path = make_world("drift", tmp_path / "w", events=2_000, seed=4)
    assert path.name == "spec.toml"
    events = pl.read_parquet(path.parent / "events.parquet")
    exposures = pl.read_parquet(path.parent / "exposures.parquet")
    truth = pl.read_parquet(path.parent / "truth.parquet")
    items = pl.read_parquet(path.parent / "items.parquet")
    assert events.height == 2_000
    assert exposures.select("request", "item").equals(truth.select("request", "item"))
    assert set(exposures["item"]) <= set(items["item"])
    stated = json.loads((path.parent / "truth.json").read_text())["oracle_auc"]
    assert auc(exposures["label"].to_numpy(), truth["logit"].to_numpy()) == pytest.approx(stated, abs=0.03)


@pytest.mark.parametrize("name", sorted(WORLDS))
def test_prepared_world_keeps_the_truth(name: str, tmp_path: Path) -> None:
    data = world_prepared(name, tmp_path / name, events=4_000, seed=2)
    b = data.behaviours
    log = world_log(name, events=4_000, seed=2)
    assert len(b.item) == 4_000
    ids = data.vocabulary("item")
    assert [int(ids[i]) for i in b.item[:200]] == log.event_item[:200].tolist()
    kinds = data.item_category[:, 1]
    assert (kinds[b.item] == log.item_kind[log.event_item] + 2).all()
    for split in ("train", "valid", "test"):
        r = data.requests(split)
        logits = np.load(data.folder / "truth" / f"{split}.npy")
        assert len(logits) == len(r.item) == r.offsets[-1]
        for i in range(0, len(r), 50):
            times = b.time_ms[b.offsets[r.user[i]] : b.offsets[r.user[i] + 1]]
            assert r.prefix[i] == (times < r.time_ms[i]).sum()
    assert data.item_field("vector").shape == (data.features.num_items, 8)


def test_prepared_world_is_deterministic(tmp_path: Path) -> None:
    first = world_prepared("noise", tmp_path / "a", events=2_000, seed=2)
    again = world_prepared("noise", tmp_path / "b", events=2_000, seed=2)
    assert first.manifest.arrays_hash == again.manifest.arrays_hash
    assert isinstance(first, PreparedData)


@pytest.mark.parametrize("name", ["drift", "several_interests"])
def test_a_written_world_goes_through_prepare_and_keeps_its_truth(name: str, tmp_path: Path) -> None:
    spec = make_world(name, tmp_path / "world", events=2_000, seed=4)
    data = prepare(load_spec(spec), tmp_path / "out")
    exposures = pl.read_parquet(tmp_path / "world" / "exposures.parquet")
    truth = exposures.with_columns(pl.read_parquet(tmp_path / "world" / "truth.parquet")["logit"])
    logit = {
        (user, int(time.timestamp()) * 1000, item): value
        for user, time, item, value in truth.select("user", "time", "item", "logit").iter_rows()
    }
    items, users = data.vocabulary("item"), data.vocabulary("user")
    labels, logits = [], []
    for split in ("train", "valid", "test"):
        r = data.requests(split)
        row = np.repeat(np.arange(len(r)), np.diff(r.offsets))
        labels.append(r.label)
        logits += [
            logit[int(users[r.user[q]]), int(r.time_ms[q]), int(items[i])] for q, i in zip(row, r.item, strict=True)
        ]
    assert len(logits) == exposures.height
    stated = json.loads((tmp_path / "world" / "truth.json").read_text())["oracle_auc"]
    assert auc(np.concatenate(labels), np.array(logits)) == pytest.approx(stated, abs=0.03)
    assert data.item_field("vector").shape == (data.features.num_items, 8)
    assert [level.name for level in data.features.categories] == ["group", "kind"]
