"""stim.md section 8, property by property; the planted world of section 7 is `habits` of data/worlds."""

import math
from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.contract.batches import (
    BARE,
    PREPARED,
    batches,
    make_batch,
    padded_with_junk,
    shuffle_moments,
    split_history,
    view_of,
)
from tests.reference.slow_masks import slow_alive

from sostenuto.data.worlds import expected_auc, world_prepared
from sostenuto.features.collation import Collator
from sostenuto.features.view import HistoryView
from sostenuto.layers.expert_gate import QueryGate, UniformGate
from sostenuto.layers.layered_interests import LayeredInterests
from sostenuto.layers.time_place import read_clock
from sostenuto.models.stim import EXPERTS, FORGOTTEN, STIM, Asked, Moments, STIMConfig
from sostenuto.ops.geohash import geohash_text
from sostenuto.recipes import recipe_named
from sostenuto.schema.errors import SpecError
from sostenuto.schema.features import Field
from sostenuto.schema.histories import Context, History
from sostenuto.training.config import Budget
from sostenuto.training.measuring import predictions_of
from sostenuto.training.run import open_run, run_training, with_seed

HOUR_MS, DAY_MS = 3_600_000, 86_400_000
SPEC = view_of(PREPARED, match=True)
POINTS = ((40.7565, -73.987), (40.7562, -73.975), (40.9, -73.5))  # the first two share five characters, not six
COORDINATES = tuple(Field(name=name, kind="numeric", mean=40.0, std=1.0) for name in ("lat", "lon"))
LOCATED = view_of(
    replace(
        PREPARED, place_points=POINTS, time_zone="America/New_York", item_fields=PREPARED.item_fields + COORDINATES
    ),
    match=True,
)
SMALL = {"item_dim": 6, "category_dim": 3, "field_dim": 3, "width": 8, "attention_units": (8,), "tower_units": (8,)}
DENSE = {"interests": 2, "interest_depth": 1, "recent_at_least": 2}


def stim(seed=0, spec=SPEC, **changes):
    torch.manual_seed(seed)
    ranker = STIM(STIMConfig(**{**SMALL, "table_std": 0.5, "field_std": 0.5, **changes}), spec)
    with torch.no_grad():
        if ranker.wide is not None:
            ranker.wide.weight.normal_()
    return ranker.eval()


def logits(ranker, batch, histories=None):
    with torch.no_grad():
        return ranker(batch.histories if histories is None else histories, batch.candidates, batch.context).logits


VARIANTS = {
    "all experts": {"experts": EXPERTS, **DENSE},
    "hard": {"forgetting": "hard"},
    "nothing forgotten": {"forgetting": "none"},
    "no reinforcement": {"reinforcement": False},
    "one expert": {"experts": ("week",), "week_match": "weekend"},
    "newest 3": {"kept": 3, "short_recent": 3, "interest_recent": 3},
    "ungathered": {"kept": None, "gathered": False},
    "two experts": {"gate_top_k": 2},
    "uniform gate": {"gate": "uniform"},
    "no interests": {"interests": 0},
    "shallow": {"interest_levels": "shallow"},
    "deep": {"interest_levels": "deep"},
    "no gaps": {"gaps": False, "wide": False},
}


@pytest.mark.parametrize("spec", [SPEC, LOCATED], ids=["names", "located"])
@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
@settings(max_examples=5, deadline=None)
@given(data=st.data(), share=st.floats(0, 1), seed=st.integers(0, 99))
def test_every_variant_keeps_the_laws(changes, spec, data, share, seed):
    ranker, batch = stim(spec=spec, **changes), data.draw(batches(spec))
    whole = logits(ranker, batch)
    assert torch.isfinite(whole).all()
    torch.testing.assert_close(
        logits(ranker, batch, shuffle_moments(batch.histories, seed)), whole, rtol=1e-5, atol=1e-5
    )
    early, later = split_history(batch.histories, share)
    with torch.no_grad():
        state = ranker.append(ranker.encode(early), later)
        folded = ranker.score(state, batch.candidates, batch.context).logits
    torch.testing.assert_close(folded, whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_every_variant_trains(changes):
    ranker, batch = stim(spec=LOCATED, **changes).train(), make_batch(LOCATED, [(5, 3), (0, 2)], 0)
    output = ranker(batch.histories, batch.candidates, batch.context)
    (output.logits.square().sum() + sum(output.aux_losses.values())).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad.to_dense()).all() for p in ranker.parameters())


def test_data_without_places_have_no_place_expert():
    assert stim(spec=view_of(BARE, match=True)).experts == ("recent", "hour", "week")
    with pytest.raises(SpecError, match="experts must hold one beside place"):
        stim(spec=view_of(BARE, match=True), experts=("place",))


def test_a_moment_that_the_cut_would_split_is_kept_whole():
    ranker, batch = stim(kept=2, experts=("recent",)), make_batch(SPEC, [(9, 2)], 3)
    history = replace(batch.histories, time_ms=torch.full((9,), int(batch.context.time_ms[0]) - DAY_MS))
    state = ranker.encode(history)
    (alive,) = ranker.alive(state, batch.context)
    assert ranker.attended(alive, state).held.positions.tolist() == list(range(9))


def test_1_retention_starts_where_the_config_says_and_follows_its_curve():
    ranker = stim(recent_days=3.0, periodic_days=30.0, reinforcement_start=2.0)
    retention = ranker.masks.retention
    age, again = torch.tensor([0.0, 1.0, 2.0, 2.0]), torch.tensor([0, 0, 0, 5])
    for expert, days in (("recent", 3.0), ("week", 30.0)):
        found = retention(expert, age, again).exp()
        expected = [math.exp(-a / (days * (1 + 2 * math.log1p(n)))) for a, n in zip(age, again, strict=True)]
        torch.testing.assert_close(found, torch.tensor(expected))
        assert found[0] == 1
        assert found[1] > found[2]
        assert found[3] > found[2]
    plain = stim(recent_days=3.0, reinforcement=False).masks.retention
    torch.testing.assert_close(plain("recent", age, again * 7).exp(), torch.exp(-age / 3.0))


def random_past(rng, users, *, zone_changes):
    """Draw histories of up to 14 behaviours before a request each, many of them around midnight and clock changes."""
    times, kinds, cells, offsets = [], [], [], [0]
    asked_ms = (
        1_478_412_000_000 + rng.integers(-40, 40, users) * DAY_MS + rng.integers(0, 24, users) * HOUR_MS
    ).tolist()
    for user in range(users):
        count = int(rng.integers(0, 15))
        gaps = rng.integers(1, 40, count) * DAY_MS * (rng.random(count) < 0.8) + rng.integers(-3, 4, count) * HOUR_MS
        mine = asked_ms[user] - np.abs(gaps) - rng.integers(1, 90, count) * 60_000
        if zone_changes:
            mine = np.where(rng.random(count) < 0.2, 1_457_852_400_000 + rng.integers(-2, 3, count) * 1_800_000, mine)
        mine = np.sort(np.where(rng.random(count) < 0.2, mine[:1], mine) if count else mine)
        times += mine.tolist()
        kinds += rng.integers(2, 6, count).tolist()
        cells += rng.integers(0, 5, count).tolist()
        offsets.append(len(times))
    return times, kinds, cells, offsets, asked_ms, rng.integers(0, 5, users).tolist()


@pytest.mark.parametrize("forgetting", ["soft", "hard"])
@pytest.mark.parametrize("week_match", ["weekday", "weekend"])
def test_2_masks_equal_a_loop_over_events_on_1000_histories(forgetting, week_match):
    rng = np.random.default_rng(len(forgetting + week_match))
    times, kinds, places, offsets, asked_ms, asked_place = random_past(rng, 1000, zone_changes=True)
    ranker = stim(spec=LOCATED, forgetting=forgetting, week_match=week_match, recent_at_least=2)
    # the loop's cells: five characters of the geohash, by text
    texts = ["", "?", *(geohash_text(*point, 5) for point in POINTS)]
    assert texts[2] == texts[3] != texts[4]
    cell_of = [texts.index(text) for text in texts]
    history = History(
        offsets=torch.tensor(offsets),
        item=torch.tensor(kinds),
        category=torch.stack([torch.full((len(kinds),), 2), torch.tensor(kinds)], 1),
        time_ms=torch.tensor(times),
        action=torch.zeros(len(kinds), dtype=torch.int64),
        value=torch.zeros(len(kinds)),
        place=torch.tensor(places),
        fields=make_batch(LOCATED, [(len(kinds), 1)], 0).histories.fields,
    )
    context = Context(time_ms=torch.tensor(asked_ms), place=torch.tensor(asked_place))
    with torch.no_grad():
        found = dict(zip(ranker.experts, ranker.alive(ranker.encode(history), context), strict=True))
    config = ranker.config
    for expert, alive in found.items():
        threshold = config.recent_threshold if expert == "recent" else config.periodic_threshold
        mask = torch.zeros(len(times), dtype=torch.bool)
        mask[alive.held.positions] = True
        retained = dict(zip(alive.held.positions.tolist(), alive.retained.tolist(), strict=True))
        for user in range(1000):
            a, b = offsets[user], offsets[user + 1]
            expected = slow_alive(
                expert,
                times=times[a:b],
                kinds=kinds[a:b],
                cells=[cell_of[p] for p in places[a:b]],
                asked_ms=asked_ms[user],
                asked_cell=cell_of[asked_place[user]],
                zone="America/New_York",
                days=7.0 if expert == "recent" else 60.0,
                alpha=1.0,
                weekend=week_match == "weekend",
                at_least=2,
                log_threshold=FORGOTTEN if forgetting == "soft" else math.log(threshold),
            )
            assert mask[a:b].tolist() == [held for held, _ in expected], (expert, user)
            for i, (held, log_r) in enumerate(expected):
                if held and forgetting == "soft":
                    assert retained[a + i] == pytest.approx(log_r, rel=1e-4, abs=1e-5)
    assert all(len(alive.held.positions) > 100 for alive in found.values())


def test_2_the_same_hour_on_the_wall_is_the_same_hour_over_a_clock_change():
    """Behaviour at 9:30 in summer time, request at 9:30 in winter time: in elapsed time they are an hour off."""
    ranker = stim(spec=LOCATED, experts=("hour",), hour_window=0)
    batch = make_batch(LOCATED, [(1, 1)], 0)
    summer, winter = 1_478_298_600_000, 1_478_298_600_000 + 7 * DAY_MS + HOUR_MS  # Fridays, 4 and 11 November 2016
    history = replace(batch.histories, time_ms=torch.tensor([summer]))
    for asked, held in ((winter, 1), (winter - HOUR_MS, 0)):
        context = replace(batch.context, time_ms=torch.tensor([asked]))
        (alive,) = ranker.alive(ranker.encode(history), context)
        assert len(alive.held.positions) == held


def test_3_behaviours_at_or_after_the_request_are_in_no_mask():
    ranker, batch = stim(experts=EXPERTS, recent_at_least=50), make_batch(SPEC, [(9, 3)], 4)
    asked = int(batch.histories.time_ms[4])
    context = replace(batch.context, time_ms=torch.tensor([asked]))
    state = ranker.encode(batch.histories)
    for alive in ranker.alive(state, context):
        assert (batch.histories.time_ms[alive.held.positions] < asked).all()


def test_3_a_batch_holds_and_counts_nothing_that_is_not_past(tmp_path):
    data = world_prepared("habits", tmp_path / "w", events=1_200, seed=0)
    collator = Collator(data, HistoryView())
    requests = data.requests("test")
    batch = collator.batch(requests, np.arange(len(requests)))
    history = batch.histories
    row = torch.repeat_interleave(torch.arange(history.num_rows), history.lengths)
    assert (history.time_ms < batch.context.time_ms[row]).all()
    ranker = stim(spec=collator.features)
    counts = ranker.encode(history).repeated[:, 0]
    kind = history.category[:, 1]
    for b in range(0, history.num_rows, 7):
        mine = slice(int(history.offsets[b]), int(history.offsets[b + 1]))
        assert counts[mine].tolist() == [int((kind[mine] == k).sum()) - 1 for k in kind[mine]]


def test_3_the_order_of_rows_means_nothing_where_time_is_explicit():
    ranker, batch = stim(experts=("hour", "week", "place")), make_batch(SPEC, [(9, 3)], 4)
    masks, context, state = ranker.masks, batch.context, ranker.encode(batch.histories)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(0))
    asked = Asked(context.time_ms, ranker.clock(context.time_ms), context.place)

    def held(some):
        local = read_clock(state.local_ms[some])
        again = masks.repeated(state.kind[some], local, state.place[some], state.offsets)
        past = Moments(state.offsets, state.time_ms[some], local, state.place[some], again)
        return [
            dict(zip(some[alive.held.positions].tolist(), alive.retained.tolist(), strict=True))
            for alive in masks(past, asked)
        ]

    assert held(torch.arange(9)) == held(order)


def test_4_a_week_later_everything_is_the_same():
    ranker, batch = stim(experts=EXPERTS), make_batch(SPEC, [(9, 3), (5, 2)], 5)
    moved = replace(
        batch,
        histories=replace(batch.histories, time_ms=batch.histories.time_ms + 7 * DAY_MS),
        context=replace(batch.context, time_ms=batch.context.time_ms + 7 * DAY_MS),
    )
    torch.testing.assert_close(logits(ranker, moved), logits(ranker, batch), rtol=1e-5, atol=1e-5)


def test_4_a_request_a_week_later_has_the_same_hours_and_weekdays_a_day_later_not():
    ranker, batch = stim(forgetting="none", experts=("hour", "week")), make_batch(SPEC, [(60, 1)], 5)
    state = ranker.encode(batch.histories)

    def held(days):
        context = replace(batch.context, time_ms=batch.context.time_ms + days * DAY_MS)
        return [alive.held.positions.tolist() for alive in ranker.alive(state, context)]

    now, next_week, tomorrow = held(0), held(7), held(1)
    assert now == next_week
    assert now[0] == tomorrow[0]
    assert now[1] != tomorrow[1]


def expert_outputs(ranker, state, batch, vectors):
    items = ranker.histories.items
    target = items(batch.candidates.item, batch.candidates.category, batch.candidates.fields)
    query = ranker.item_part(target)
    padded = torch.nn.functional.pad(vectors, (0, 0, 0, 1))
    out = []
    for alive, expert in zip(ranker.alive(state, batch.context), ranker.attend, strict=True):
        taken, bias = ranker.attended(alive, state)
        found = expert(query, batch.candidates.offsets, padded, taken, bias)
        out.append(torch.cat([part.view(len(query), -1) for part in found], 1))
    return out


@pytest.mark.parametrize("path", [{"kept": 100}, {"kept": None, "gathered": False}], ids=["gathered", "full"])
def test_5_what_a_mask_leaves_out_has_no_influence_on_its_expert(path):
    ranker, batch = stim(**path), make_batch(SPEC, [(12, 3), (7, 2)], 6)
    with torch.no_grad():
        state = ranker.encode(batch.histories)
        before = expert_outputs(ranker, state, batch, state.vectors)
        moved = 0
        for e, alive in enumerate(ranker.alive(state, batch.context)):
            outside = torch.ones(len(state.kind), dtype=torch.bool)
            outside[alive.held.positions] = False
            other = state.vectors + 3.0 * outside[:, None]
            after = expert_outputs(ranker, state, batch, other)
            torch.testing.assert_close(after[e], before[e], rtol=0, atol=1e-30)  # the compiled exp ends at 1e-38
            moved += sum(not torch.equal(a, b) for a, b in zip(after, before, strict=True))
        assert moved > 2  # the others do see them


def test_5_the_score_changes_only_through_experts_that_hold_the_behaviour():
    ranker, batch = stim(experts=("hour", "week")), make_batch(SPEC, [(40, 3)], 6)
    spread = batch.context.time_ms - torch.arange(40, 0, -1) * 5 * HOUR_MS
    with torch.no_grad():
        state = ranker.encode(replace(batch.histories, time_ms=spread))
        held = torch.cat([alive.held.positions for alive in ranker.alive(state, batch.context)]).unique()
        outside = torch.ones(40, dtype=torch.bool)
        outside[held] = False
        assert 0 < int(outside.sum()) < 40
        base = ranker.score(state, batch.candidates, batch.context).logits
        unseen = replace(state, vectors=state.vectors + 3.0 * outside[:, None])
        assert torch.equal(ranker.score(unseen, batch.candidates, batch.context).logits, base)
        seen = replace(state, vectors=state.vectors + 3.0 * ~outside[:, None])
        assert not torch.allclose(ranker.score(seen, batch.candidates, batch.context).logits, base)


@pytest.mark.parametrize("top_k", [None, 1, 2, 9])
def test_6_the_gate_shares_one_among_the_experts_that_have_something_to_say(top_k):
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(200, 5, generator=generator, requires_grad=True)
    present = torch.rand(200, 4, generator=generator) < 0.6
    present[0] = False
    gate = QueryGate(5, 4, top_k=top_k)
    outputs = torch.randn(200, 4, 3, generator=generator)
    mixed = gate(query, outputs, present)
    some = present.any(1)
    torch.testing.assert_close(mixed.weights.sum(1), some.float())
    assert not mixed.weights[~present].any()
    expected = present.sum(1).clamp(max=4 if top_k is None else top_k)
    assert ((mixed.weights > 0).sum(1) == expected).all()
    assert not mixed.values[~some].any()
    (mixed.values.sum() + mixed.balance).backward()
    assert torch.isfinite(query.grad).all()
    assert torch.isfinite(gate.logits.weight.grad).all()


def test_6_the_uniform_gate_takes_the_mean_of_what_is_there():
    outputs = torch.tensor([[[1.0], [3.0]], [[5.0], [7.0]], [[1.0], [1.0]]])
    present = torch.tensor([[True, True], [False, True], [False, False]])
    assert UniformGate()(outputs[:, 0], outputs, present).values.flatten().tolist() == [2.0, 7.0, 0.0]


def test_6_balance_is_1_when_experts_are_used_alike_and_grows_with_preference():
    gate = QueryGate(2, 2, top_k=1)
    with torch.no_grad():
        gate.logits.weight.copy_(torch.tensor([[50.0, 0.0], [0.0, 50.0]]))
        outputs, present = torch.zeros(2, 2, 1), torch.ones(2, 2, dtype=torch.bool)
        assert gate(torch.eye(2), outputs, present).balance == pytest.approx(1.0)
        assert gate(torch.eye(2)[[0, 0]], outputs, present).balance == pytest.approx(2.0)


@pytest.mark.parametrize("forgetting", ["soft", "hard", "none"])
def test_6_a_user_without_behaviours_has_finite_scores_and_gradients(forgetting):
    ranker, batch = stim(forgetting=forgetting).train(), make_batch(SPEC, [(0, 3), (0, 1)], 6)
    output = ranker(batch.histories, batch.candidates, batch.context)
    (output.logits.sum() + sum(output.aux_losses.values())).backward()
    assert torch.isfinite(output.logits).all()
    assert all(p.grad is None or torch.isfinite(p.grad.to_dense()).all() for p in ranker.parameters())
    state = ranker.encode(batch.histories)
    for alive, expert in zip(ranker.alive(state, batch.context), ranker.attend, strict=True):
        seen = {}
        handle = expert.units.register_forward_pre_hook(lambda _, args, seen=seen: seen.update(read=args[0]))
        expert(torch.randn(4, 8), batch.candidates.offsets, torch.zeros(1, 8), *ranker.attended(alive, state))
        handle.remove()
        assert not seen["read"][:, :9].any()  # o = 0, and no weight on anything


def test_8_soft_masks_teach_the_curve_and_hard_ones_leave_it():
    batch = make_batch(SPEC, [(12, 6), (9, 5)], 8)
    soft = stim().train()
    soft(batch.histories, batch.candidates, batch.context).logits.square().sum().backward()
    for parameter in (soft.masks.retention.raw_days, soft.masks.retention.raw_reinforcement):
        assert torch.isfinite(parameter.grad).all()
        assert (parameter.grad != 0).any()
    assert soft.masks.retention.raw_days.grad[0] != 0  # the recent mask's
    assert not list(stim(forgetting="hard").masks.parameters())
    assert not list(stim(forgetting="none").masks.parameters())
    assert [name for name, _ in stim(reinforcement=False).masks.named_parameters()] == ["retention.raw_days"]


def test_10_one_interest_without_depth_is_one_cross_attention():
    torch.manual_seed(0)
    unit = LayeredInterests(8, interests=1, depth=0)
    vectors, mask = torch.randn(3, 5, 8), torch.tensor([[True] * 5, [True, True, False, False, False], [False] * 5])
    found = unit(vectors, mask)
    query, reading = unit.queries.vectors[0], unit.readings[0]
    for b in range(3):
        real = vectors[b][mask[b]]
        expected = query.clone()
        if len(real):
            scores = reading.key(real) @ reading.query(query) / math.sqrt(8)
            expected = expected + reading.out(scores.softmax(0) @ reading.value(real))
        torch.testing.assert_close(found[b, 0], expected)
    assert unit.gate is None


def test_10_levels_read_what_they_say():
    torch.manual_seed(0)
    vectors, mask = torch.randn(2, 5, 8), torch.ones(2, 5, dtype=torch.bool)
    shallow = LayeredInterests(8, interests=3, depth=2, levels="shallow")
    deep = LayeredInterests(8, interests=3, depth=2, levels="deep")
    both = LayeredInterests(8, interests=3, depth=2)
    assert len(shallow.blocks) == 0
    assert len(deep.blocks) == len(both.blocks) == 2
    assert deep.gate is None
    both.load_state_dict(both.state_dict() | deep.state_dict())
    with torch.no_grad():
        both.gate.weight.zero_()
        both.gate.bias.fill_(-1e4)  # all deep
        torch.testing.assert_close(both(vectors, mask), deep(vectors, mask))
        both.gate.bias.fill_(1e4)
        shallow.load_state_dict({k: v for k, v in both.state_dict().items() if k in shallow.state_dict()})
        torch.testing.assert_close(both(vectors, mask), shallow(vectors, mask))


@settings(max_examples=20, deadline=None)
@given(batch=batches(SPEC))
def test_11_the_gathered_path_equals_the_full_one(batch):
    changes = {"experts": EXPERTS, "recent_at_least": 2}
    gathered = logits(stim(**changes, kept=100), batch)
    full = logits(stim(**changes, kept=None, gathered=False), batch)
    torch.testing.assert_close(gathered, full, rtol=1e-6, atol=1e-5)


def test_11_what_a_candidate_meets_does_not_grow_with_the_history():
    ranker = stim(kept=20, short_recent=20, interest_recent=20, forgetting="none", experts=EXPERTS)
    met = []
    for length in (500, 8000):
        batch = make_batch(SPEC, [(length, 1)], 11)
        spread = batch.context.time_ms - torch.arange(length, 0, -1) * HOUR_MS // 8  # one behaviour a moment
        with torch.no_grad():
            state = ranker.encode(replace(batch.histories, time_ms=spread))
            taken = [ranker.attended(alive, state) for alive in ranker.alive(state, batch.context)]
        met.append([len(t.held.positions) for t in taken] + [len(state.recent.time_ms), state.interests.shape[1]])
    assert met[0] == met[1]
    assert max(met[0]) <= 20


@settings(max_examples=10, deadline=None)
@given(batch=batches(LOCATED), seed=st.integers(0, 99))
def test_12_padding_changes_no_score(batch, seed):
    ranker = stim(spec=LOCATED)
    history = padded_with_junk(batch.histories, LOCATED, seed)
    torch.testing.assert_close(logits(ranker, batch, history), logits(ranker, batch), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"experts": ()}, "experts must be one or more of recent, hour, week, place, global"),
        ({"experts": ("hour", "hour")}, "each once"),
        ({"forgetting": "weak"}, "forgetting must be one of soft, hard, none, got 'weak'"),
        ({"gate": "open"}, "gate must be query or uniform"),
        ({"gate_top_k": 0}, "gate_top_k must be at least 1"),
        ({"periodic_threshold": 1.0}, "periodic_threshold must be between 0 and 1"),
        ({"recent_days": 0.0}, "recent_days must be above 0"),
        ({"mask_precision": 7}, r"mask_precision must be one of place_precisions \(5, 6\)"),
        ({"gathered": False}, "kept must be none where gathered is false"),
        ({"interest_levels": "middle"}, "interest_levels must be one of both, shallow, deep"),
        ({"week_match": "month"}, "week_match must be weekday or weekend"),
        ({"width": 7}, "width must be even"),
        ({"interests": -1}, "interests must be 0 or more"),
    ],
)
def test_nonsense_is_refused(changes, message):
    with pytest.raises(SpecError, match=message):
        STIMConfig(**changes)


TRAINED = {
    "full": {},
    "no periodic": {"experts": ("recent",)},
    "no place": {"experts": ("recent", "hour", "week")},
}
MARGIN = 0.02


@pytest.fixture(scope="module")
def habits(tmp_path_factory):
    """Return a function that trains a variant on the planted world of a seed, once, and says what it found."""
    folder = tmp_path_factory.mktemp("habits")

    @lru_cache
    def world(seed):
        return world_prepared("habits", folder / f"world{seed}", events=24_000, requests=5_000, seed=seed)

    @lru_cache
    def trained(name, seed):
        data = world(seed)
        config = recipe_named("din_recent50" if name == "din" else "stim")
        changes = TRAINED.get(name, {})
        config = replace(
            config,
            model_config=replace(config.model_config, **changes),
            view=replace(config.view, match=False),
            training=replace(config.training, threads=1, evaluations_per_epoch=2),
            budget=Budget(name="planted", epochs=3),
        )
        out = folder / f"{name}{seed}"
        run_training(data, out, with_seed(config, seed))
        run = open_run(out, data.folder)
        predictions = predictions_of(run, "test")
        truth = [np.load(data.folder / "truth" / f"test{suffix}.npy") for suffix in ("", ".part")]
        return run, predictions.logit, 1 / (1 + np.exp(-truth[0].astype(np.float64))), truth[1]

    return trained


TASTE, WEEKDAY, PLACE = 1, 2, 3


def planted_auc(found, part=None):
    """Return the expected AUC of a run, over all candidates or those drawn for one structure and its decoys."""
    _, logit, probability, parts = found
    some = parts >= 0 if part is None else parts == part
    return expected_auc(probability[some], np.asarray(logit)[some])


@pytest.mark.long
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_9_habits_are_seen_by_their_masks_and_by_nothing_else(habits, seed):
    full, no_periodic, no_place, din = (habits(name, seed) for name in ("full", "no periodic", "no place", "din"))
    assert planted_auc(full) > planted_auc(no_periodic) + MARGIN
    assert planted_auc(full) > planted_auc(no_place) + MARGIN
    assert planted_auc(full) > planted_auc(din) + MARGIN
    assert planted_auc(full, PLACE) > planted_auc(no_place, PLACE) + MARGIN
    assert planted_auc(full, WEEKDAY) > planted_auc(no_periodic, WEEKDAY) + MARGIN
    # without periodic masks the weekly part is as dark as for attention over the newest
    assert abs(planted_auc(no_periodic, WEEKDAY) - planted_auc(din, WEEKDAY)) < 2 * MARGIN


@pytest.mark.long
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_7_the_gate_follows_the_request(habits, seed):
    """One user, one history: the mixture of a Tuesday noon at one place is not that of a Saturday evening elsewhere."""
    run, *_ = habits("full", seed)
    requests = run.data.requests("test")
    batch = run.collator.batch(requests, np.array([len(requests) - 1]))
    ranker, history = run.ranker, batch.histories
    midnight = (int(batch.context.time_ms[0]) // DAY_MS + 1) * DAY_MS
    weekday = int(read_clock(torch.tensor([midnight])).weekday[0])
    places = history.place.unique()[:2]
    gates = []
    hook = ranker.gate.register_forward_hook(lambda _module, _inputs, mixed: gates.append(mixed.weights))
    for day, hour, place in ((1, 12, places[0]), (5, 20, places[1])):
        moment = midnight + ((day - weekday) % 7) * DAY_MS + hour * HOUR_MS
        context = replace(batch.context, time_ms=torch.tensor([moment]), place=place[None])
        with torch.no_grad():
            ranker.score(ranker.encode(history), batch.candidates, context)
    hook.remove()
    assert float((gates[0] - gates[1]).abs().mean()) > 0.01


@pytest.mark.long
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_10_interests_stay_apart_in_training(habits, seed):
    run, *_ = habits("full", seed)
    requests = run.data.requests("test")
    batch = run.collator.batch(requests, np.arange(0, len(requests), 20))
    with torch.no_grad():
        interests = torch.nn.functional.normalize(run.ranker.encode(batch.histories).interests, dim=-1)
    cosine = (interests @ interests.mT).abs()
    pairs = ~torch.eye(cosine.shape[1], dtype=torch.bool)
    assert float(cosine[:, pairs].mean()) < 0.95
