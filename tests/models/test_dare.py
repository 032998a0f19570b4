"""dare.md section 9, property by property; the planted world of 10 is `two_jobs` of data/worlds."""

import itertools
import math
from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.contract.batches import PREPARED, batches, make_batch, split_history, view_of
from tests.models.searching import check_laws, check_trains, logits, loss_of
from torch.nn.functional import binary_cross_entropy_with_logits

from sostenuto.data.worlds import expected_auc, world_prepared
from sostenuto.data.worlds.two_jobs import circle_of, relevant_events
from sostenuto.evaluation.information import ranking_ndcg
from sostenuto.features.loading import RequestLoader
from sostenuto.features.view import HistoryView
from sostenuto.layers.embedding import Table
from sostenuto.models.dare import DARE, TARGET_TIME, DAREConfig
from sostenuto.models.table import default_config
from sostenuto.ops.selected_attention import selected_attention
from sostenuto.ops.time_gaps import NUM_OCTAVES
from sostenuto.schema.errors import SpecError
from sostenuto.schema.features import FIRST_KNOWN
from sostenuto.schema.histories import Catalogue
from sostenuto.training.config import Budget, RunConfig, TrainingConfig
from sostenuto.training.gradient_conflict import SplitTables
from sostenuto.training.measuring import predictions_of
from sostenuto.training.optimiser import RankerOptimiser
from sostenuto.training.run import open_run, run_training

SPEC = view_of(PREPARED, match=True)
SMALL = {
    "item_dim": 6,
    "category_dim": 3,
    "field_dim": 3,
    "time_dim": 4,
    "attention_item_dim": 5,
    "attention_category_dim": 2,
    "attention_field_dim": 2,
    "attention_time_dim": 3,
    "attention_units": (8,),
    "tower_units": (8,),
    "full_units": (8,),
    "time_rows": 12,
    "table_std": 0.5,
    "attention_std": 0.5,
}
VARIANTS = {
    "separate": {},
    "two kept": {"kept": 2, "short_recent": 2},
    "gap": {"times": "gap"},
    "hard": {"search": "category", "kept": 3},
    "shared": {"tables": "shared"},
    "shared, hard": {"tables": "shared", "search": "category", "kept": 2},
    "shared, projections": {"tables": "shared", "projections": True},
    "projections": {"projections": True},
    "three": {"tables": "three"},
    "four": {"tables": "four"},
    "without TR": {"target_aware": False},
    "nothing of ours": {"gaps": False, "short": False, "wide": False, "bins": 0},
    "no times": {"time_dim": 0, "full_weight": 0.0},
}
PURE = {"gaps": False, "short": False}  # no part but the paper's reads a table


def dare(seed=0, spec=SPEC, **changes):
    torch.manual_seed(seed)
    ranker = DARE(DAREConfig(**{**SMALL, **changes}), spec)
    with torch.no_grad():
        if ranker.behaviour_bias.gap is not None:
            ranker.behaviour_bias.gap.weight.normal_()
    return ranker.eval()


def parts_of(ranker, batch):
    """Return everything between the tables and the tower."""
    state = ranker.encode(batch.histories)
    columns = ranker.of_items(state, batch.candidates)
    time = ranker.time_index(state, batch.context)
    bias = ranker.bias(state, time, None)
    chosen = ranker.search(state, batch.candidates, columns["asked"], bias)
    return state, columns, time, bias, chosen


def scores_of(ranker, batch):
    state = ranker.encode(batch.histories)
    return list(ranker.relevance(state, batch.candidates, batch.context))


def gradient(table):
    """Return the dense gradient of a table, zeros where nothing arrived."""
    return torch.zeros_like(table.weight) if table.weight.grad is None else table.weight.grad.to_dense()


def representation_tables(ranker):
    found = [m for m in ranker.items.modules() if isinstance(m, Table)]
    return [*found, ranker.time]


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
@settings(max_examples=8, deadline=None)
@given(batch=batches(SPEC), share=st.floats(0, 1), seed=st.integers(0, 99))
def test_every_variant_keeps_the_laws(changes, batch, share, seed):
    check_laws(dare(**changes), batch, share, seed)


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_every_variant_trains(changes):
    check_trains(dare(**changes), make_batch(SPEC, [(5, 3), (0, 2)], 0))


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_what_is_kept_of_items_changes_no_score(changes):
    ranker, batch = dare(**changes), make_batch(SPEC, [(7, 4), (0, 2)], 1)
    candidates = batch.candidates
    category = torch.zeros(SPEC.num_items, candidates.category.shape[1], dtype=torch.int64)
    category[candidates.item] = candidates.category
    fields = {}
    for field in SPEC.item_fields:
        column = candidates.fields[field.name]
        empty = column.new_zeros(SPEC.num_items, *column.shape[1:])
        fields[field.name] = empty.index_put((candidates.item,), column)
    made = logits(ranker, batch)
    assert ranker.keep_items(Catalogue(category=category, fields=fields)) > 0
    with torch.no_grad():
        assert ranker.head.kept.rows(candidates) is not None
    torch.testing.assert_close(logits(ranker, batch), made, rtol=1e-5, atol=1e-5)


# -- 1, 2: separation -------------------------------------------------------------------------------------------------


def test_1_no_score_sends_a_gradient_into_the_representation():
    ranker, batch = dare(), make_batch(SPEC, [(9, 3), (4, 2)], 1)
    torch.cat([s.flatten() for s in scores_of(ranker, batch)]).square().sum().backward()
    assert not any(gradient(table).any() for table in representation_tables(ranker))
    assert all(gradient(table).any() for table in ranker.attention_tables())


def test_1_with_scores_held_no_interest_sends_a_gradient_into_attention():
    ranker, batch = dare(**PURE), make_batch(SPEC, [(9, 3), (4, 2)], 1)
    state, columns, time, bias, chosen = parts_of(ranker, batch)
    held = replace(state, index=replace(state.index, rows=state.index.rows.detach()))
    interest, _ = ranker.exact(held, columns["asked"].detach(), bias.detach(), time, None, chosen)
    interest.square().sum().backward()
    assert not any(gradient(table).any() for table in ranker.attention_tables())
    assert all(gradient(table).any() for table in representation_tables(ranker))


def test_1_attention_over_one_behaviour_learns_nothing_from_the_main_head():
    ranker, batch = dare(kept=1, full_weight=0.0), make_batch(SPEC, [(9, 3), (4, 2)], 1)
    distinct = replace(batch.histories, time_ms=batch.histories.time_ms + torch.arange(13))  # one behaviour a moment
    ranker.train()(distinct, batch.candidates, batch.context).logits.square().sum().backward()
    for table in ranker.attention_tables():
        assert not gradient(table).any()


def test_2_the_representation_changes_no_score_and_no_selection():
    ranker, batch = dare(kept=3), make_batch(SPEC, [(30, 4), (5, 2)], 2)
    with torch.no_grad():
        before, chosen = scores_of(ranker, batch), parts_of(ranker, batch)[-1]
        for table in representation_tables(ranker):
            table.weight[1:] += torch.randn_like(table.weight[1:])
        after, again = scores_of(ranker, batch), parts_of(ranker, batch)[-1]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert torch.equal(chosen.taken.positions, again.taken.positions)


def test_2_attention_changes_no_vector_that_is_averaged():
    ranker, batch = dare(kept=3), make_batch(SPEC, [(30, 4), (5, 2)], 2)
    with torch.no_grad():
        before = parts_of(ranker, batch)
        for table in ranker.attention_tables():
            table.weight[1:] += torch.randn_like(table.weight[1:])
        after = parts_of(ranker, batch)
    assert torch.equal(before[0].history.key, after[0].history.key)
    assert torch.equal(before[1]["target"], after[1]["target"])
    assert not torch.equal(before[1]["asked"], after[1]["asked"])


# -- 3: equivalence ---------------------------------------------------------------------------------------------------


def twins(**changes):
    """Return a ranker with shared tables, and one with two copies of them."""
    shared = dare(tables="shared", **changes)
    torch.manual_seed(1)
    copies = DARE(shared.config.alike(), SPEC).eval()
    copies.take_shared(dict(shared.named_parameters()))
    return shared, copies


@pytest.mark.parametrize("changes", [{}, {"search": "category"}, {"target_aware": False}, {"times": "gap"}])
def test_3_with_tied_tables_it_is_the_ranker_with_shared_ones_and_the_gradients_add_up(changes):
    shared, copies = twins(kept=3, **changes)
    batch = make_batch(SPEC, [(30, 4), (5, 2), (0, 1)], 2)
    torch.testing.assert_close(logits(copies, batch), logits(shared, batch), rtol=1e-6, atol=1e-6)
    for ranker in (shared, copies):
        torch.manual_seed(0)  # of the dropout
        output = ranker.train()(batch.histories, batch.candidates, batch.context)
        loss_of(output, batch.labels).backward()
    for attention, representation in copies.table_pairs().values():
        name = next(n for n, m in copies.named_modules() if m is representation)
        whole = gradient(shared.get_submodule(name))
        torch.testing.assert_close(gradient(attention) + gradient(representation), whole, rtol=1e-4, atol=1e-6)


def test_3_summed_gradients_of_two_copies_repeat_the_training_of_shared_tables():
    shared, copies = twins(kept=3)
    both = {}
    for name, ranker in (("shared", shared), ("copies", copies)):
        torch.manual_seed(5)
        ranker.train()
        tables = [m.weight for m in ranker.modules() if isinstance(m, Table)]
        held = {id(t) for t in tables}
        optimisers = [
            torch.optim.SparseAdam(tables, lr=0.01),
            torch.optim.Adam([p for p in ranker.parameters() if id(p) not in held], lr=0.01),
        ]
        losses = []
        for step in range(20):
            batch = make_batch(SPEC, [(20, 4), (6, 3)], step)
            loss = loss_of(ranker(batch.histories, batch.candidates, batch.context), batch.labels)
            for optimiser in optimisers:
                optimiser.zero_grad()
            loss.backward()
            if ranker is copies:
                for attention, representation in copies.table_pairs().values():
                    summed = (attention.weight.grad + representation.weight.grad).coalesce()
                    attention.weight.grad, representation.weight.grad = summed, summed.clone()
            for optimiser in optimisers:
                optimiser.step()
            losses.append(float(loss.detach()))
        both[name] = losses
    np.testing.assert_allclose(both["copies"], both["shared"], rtol=1e-3)
    for attention, representation in copies.table_pairs().values():
        torch.testing.assert_close(attention.weight, representation.weight, rtol=1e-5, atol=1e-6)


# -- 4 - 6: the maths -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("projections", [False, True])
def test_the_hard_variant_compares_no_categories_in_scores(projections):
    ranker, batch = dare(search="category", kept=3, projections=projections), make_batch(SPEC, [(30, 4)], 2)
    with torch.no_grad():
        for projection in ranker.maps.values():
            projection.weight.normal_()
        before = scores_of(ranker, batch)
        for table in ranker.attention.tables.levels:
            table.weight.normal_(0.0, 5.0)
        after = scores_of(ranker, batch)
        ranker.attention.tables.fields.tables["brand"].weight.normal_(0.0, 5.0)
        assert not torch.allclose(torch.cat(scores_of(ranker, batch)), torch.cat(after))
    assert torch.equal(torch.cat(before), torch.cat(after))


def test_4_the_average_of_products_with_the_target_is_the_product_of_the_average():
    ranker, batch = dare(kept=3, **PURE), make_batch(SPEC, [(30, 4), (5, 2)], 2)
    with torch.no_grad():
        state, columns, time, bias, chosen = parts_of(ranker, batch)
        interest, _ = ranker.exact(state, columns["asked"], bias, time, None, chosen)
        v = ranker._targets(columns["target"])
        whole = torch.cat([state.history.key, ranker.time(time)], 1)
        bounds = itertools.pairwise(chosen.taken.offsets.tolist())
        for n, (a, b) in enumerate(bounds):
            at = chosen.taken.positions[a:b]
            weights = (state.index.rows[at] @ columns["asked"][n] + bias[at]).softmax(0)
            expected = (weights[:, None] * (whole[at] * v[n])).sum(0)
            torch.testing.assert_close(v[n] * interest[n], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("changes", [{}, {"search": "category", "kept": 3}, {"projections": True}])
def test_what_is_said_to_represent_candidates_is_what_the_tower_reads(changes, monkeypatch):
    ranker, batch, read = dare(**changes), make_batch(SPEC, [(30, 4), (0, 2)], 2), []
    monkeypatch.setattr(ranker, "_read", lambda v, interest: read.append((interest, v * interest)) or [v, interest])
    with torch.no_grad():
        state = ranker.encode(batch.histories)
        found = ranker.represented(state, batch.candidates, batch.context)
        monkeypatch.setattr(ranker.head, "forward", lambda *parts: parts[-1][0][:, 0])
        ranker.score(state, batch.candidates, batch.context)
    ((interest, product),) = read
    torch.testing.assert_close(found["interest"], interest, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found["product"], product, rtol=1e-6, atol=1e-6)
    assert found["interest"][:4].any()


def test_the_scores_are_those_of_the_page():
    """s_i = gain <e_i, v> / sqrt(d) + <t_i, t_0> / sqrt(d_t), semantic and time part scaled apart."""
    spec = replace(SPEC, item_fields=(), behaviour_fields=(), num_actions=2, has_value=False)
    ranker = dare(spec=spec, vector_dim=0, **PURE)
    batch = make_batch(spec, [(12, 3)], 4)
    space, candidates, history = ranker.attention.tables, batch.candidates, batch.histories
    with torch.no_grad():
        (found,) = scores_of(ranker, batch)
        e = space(history.item, history.category, {})
        v = space(candidates.item, candidates.category, {})
        moments = history.time_ms.unique().tolist()
        place = torch.tensor([len(moments) - 1 - moments.index(t) for t in history.time_ms.tolist()])
        t = ranker.attention_time(FIRST_KNOWN + place.clamp(max=11))
        t_0 = ranker.attention_time(torch.tensor([TARGET_TIME]))
        expected = 8.0 * v @ e.T / math.sqrt(e.shape[1]) + (t @ t_0.T).T / math.sqrt(3)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_distances_beyond_the_table_share_its_last_row_and_gaps_go_by_octaves():
    batch = make_batch(SPEC, [(60, 2)], 0)
    spread = replace(batch.histories, time_ms=batch.histories.time_ms.min() + torch.arange(60) * 60_000)
    ranker = dare(time_rows=12)
    index = ranker.time_index(ranker.encode(spread), batch.context)
    assert index.tolist() == [FIRST_KNOWN + min(59 - i, 11) for i in range(60)]
    ranker = dare(times="gap")
    index = ranker.time_index(ranker.encode(spread), batch.context)
    seconds = (batch.context.time_ms - spread.time_ms).double() / 1000
    assert index.tolist() == [FIRST_KNOWN + int(math.log2(1 + s)) for s in seconds.tolist()]
    assert int(index.max()) < FIRST_KNOWN + NUM_OCTAVES


@pytest.mark.parametrize("width", [2, 8])
def test_5_the_search_multiplies_rows_of_the_attentions_width_whatever_the_other_is(width, monkeypatch):
    ranker = dare(attention_category_dim=width, category_dim=16, item_dim=32, time_dim=16)
    batch, shapes = make_batch(SPEC, [(30, 4)], 2), []
    real = ranker.selector.select
    monkeypatch.setattr(
        ranker.selector,
        "select",
        lambda query, offsets, index: (
            shapes.append((query.shape[1], index.rows.shape[1])) or real(query, offsets, index)
        ),
    )
    logits(ranker, batch)
    assert shapes == [(ranker.attention.out_dim + 1,) * 2]
    assert ranker.attention.out_dim == 5 + 2 * width + 2 * 2 + 4  # item, category levels, two fields, what is fixed
    assert ranker.items.out_dim > 60


def test_6_permuted_triples_of_item_category_and_time_have_the_same_interest():
    ranker, batch = dare(kept=50, **PURE), make_batch(SPEC, [(30, 4)], 2)
    with torch.no_grad():
        state, columns, time, bias, chosen = parts_of(ranker, batch)
        interest, _ = ranker.exact(state, columns["asked"], bias, time, None, chosen)
        order = torch.randperm(30, generator=torch.Generator().manual_seed(0))
        history = replace(state.history, key=state.history.key[order])
        turned = replace(state, history=history, index=replace(state.index, rows=state.index.rows[order]))
        other, _ = ranker.exact(turned, columns["asked"], bias[order], time[order], None, chosen)
    torch.testing.assert_close(other, interest, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("search", ["attention", "category"])
def test_6_a_history_shorter_than_what_is_kept_is_taken_whole_and_an_empty_one_gives_nothing(search):
    ranker, batch = dare(kept=8, search=search, **PURE), make_batch(SPEC, [(5, 2), (0, 2)], 2)
    with torch.no_grad():
        state, columns, time, bias, chosen = parts_of(ranker, batch)
        interest, _ = ranker.exact(state, columns["asked"], bias, time, None, chosen)
    assert chosen.taken.offsets.diff().tolist() == [5, 5, 0, 0]
    assert not interest[2:].any()


# -- 7, 8: heads and widths -------------------------------------------------------------------------------------------


def test_7_only_the_head_over_the_whole_history_teaches_attention_about_what_was_not_found():
    ranker, batch = dare(kept=2, **PURE).train(), make_batch(SPEC, [(9, 1)], 3)
    batch = replace(batch, histories=replace(batch.histories, time_ms=batch.histories.time_ms + torch.arange(9)))
    seen = {}
    for head in ("main", "full"):
        state, columns, time, bias, chosen = parts_of(ranker, batch)
        rows = state.index.rows.detach().requires_grad_()
        state = replace(state, index=replace(state.index, rows=rows))
        if head == "main":
            found, _ = ranker.exact(state, columns["asked"], bias, time, None, chosen)
        else:
            found = ranker.full_interest(state, batch.candidates, columns["asked"], bias, time)
        (found * torch.randn(found.shape, generator=torch.Generator().manual_seed(0))).sum().backward()
        grad = torch.zeros_like(rows) if rows.grad is None else rows.grad.to_dense()
        seen[head] = grad.any(1)
    inside = torch.zeros(9, dtype=torch.bool)
    inside[chosen.taken.positions] = True
    assert torch.equal(seen["main"], inside)
    assert seen["full"].all()


def test_7_the_head_is_there_in_training_alone():
    ranker, batch = dare(full_weight=0.5), make_batch(SPEC, [(9, 2)], 3)
    assert not ranker(batch.histories, batch.candidates, batch.context).aux_heads
    head = ranker.train()(batch.histories, batch.candidates, batch.context).aux_heads["full"]
    assert head.weight == 0.5
    assert head.logits.shape == (2,)


def test_8_widths_of_the_two_spaces_may_differ_and_it_is_overfitted():
    ranker, batch = dare(attention_item_dim=3, item_dim=9, dropout=0.0).train(), make_batch(SPEC, [(6, 6)] * 3, 4)
    assert ranker.attention.out_dim != ranker.items.out_dim
    optimiser = RankerOptimiser(ranker, TrainingConfig(learning_rate=0.02, table_learning_rate=0.02))
    for _ in range(120):
        output = ranker(batch.histories, batch.candidates, batch.context)
        loss = binary_cross_entropy_with_logits(output.logits, batch.labels)
        loss_of(output, batch.labels).backward()
        optimiser.step(1.0)
        if float(loss.detach()) < 0.1:
            return
    pytest.fail(f"loss is {float(loss.detach()):.3f}")


def test_attention_tables_have_a_learning_rate_of_their_own():
    moved = {}
    for rate in (1.0, 0.25):
        ranker, batch = dare(attention_rate=rate).train(), make_batch(SPEC, [(9, 3)], 1)
        optimiser = RankerOptimiser(ranker, TrainingConfig(table_decay=0.0))
        tables = {"attention": ranker.attention_tables()[0], "representation": ranker.items.item}
        before = {name: table.weight.detach().clone() for name, table in tables.items()}
        torch.manual_seed(0)
        loss_of(ranker(batch.histories, batch.candidates, batch.context), batch.labels).backward()
        optimiser.step(1.0)
        moved[rate] = {name: float((t.weight - before[name]).abs().max().detach()) for name, t in tables.items()}
    assert moved[0.25]["attention"] == pytest.approx(0.25 * moved[1.0]["attention"], rel=1e-2)
    assert moved[0.25]["representation"] == pytest.approx(moved[1.0]["representation"], rel=1e-3)


def test_split_tables_share_one_memory():
    _, copies = twins()
    SplitTables(copies.table_pairs())
    for attention, representation in copies.table_pairs().values():
        assert attention.weight.data_ptr() == representation.weight.data_ptr()
        assert attention.weight is not representation.weight


def test_the_state_folds_a_hundred_events_in_one_by_one():
    ranker, batch = dare(kept=4), make_batch(SPEC, [(100, 3)], 6)
    apart = batch.context.time_ms - 1_000 * torch.arange(100, 0, -1)
    batch = replace(batch, histories=replace(batch.histories, time_ms=apart))
    early, later = split_history(batch.histories, 0.0)
    with torch.no_grad():
        state, moments = ranker.encode(early), 0
        while events := later.item.shape[0]:
            moment, later = split_history(later, 1.5 / events)
            state, moments = ranker.append(state, moment), moments + 1
        folded = ranker.score(state, batch.candidates, batch.context).logits
    torch.testing.assert_close(folded, logits(ranker, batch), rtol=1e-5, atol=1e-5)
    assert moments == 100


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tables": "two"}, "tables must be one of separate, shared, three, four"),
        ({"kept": 0}, "kept must be at least 1"),
        ({"times": "age"}, "times must be one of place, gap"),
        ({"search": "hash"}, "search must be one of"),
        ({"gain": 0.0}, "gain must be above 0"),
        ({"attention_rate": 0.0}, "attention_rate must be above 0"),
        ({"full_weight": -1.0}, "full_weight must be 0"),
        ({"full_weight": float("nan")}, "full_weight must be 0"),
        ({"full_units": ()}, "full_units must be one or more widths"),
    ],
)
def test_nonsense_is_refused(changes, message):
    with pytest.raises(SpecError, match=message):
        DAREConfig(**changes)


def test_tables_that_are_shared_cannot_be_told_apart():
    with pytest.raises(SpecError, match="must be separate to tell tables of two jobs apart"):
        dare(tables="shared").table_pairs()


# -- 10: the planted world --------------------------------------------------------------------------------------------

PLANTED = {"short": False, "gaps": False, "vector_dim": 0, "kept": 20, "table_std": 0.2, "attention_std": 0.2}


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """Train on a world once per table layout and seed."""
    folder = tmp_path_factory.mktemp("two_jobs")

    @lru_cache
    def data(seed):
        return world_prepared("two_jobs", folder / f"data{seed}", events=20_000, requests=4_000, seed=seed)

    @lru_cache
    def trained(tables, seed):
        config = RunConfig(
            name=tables,
            model="dare",
            model_config=replace(default_config("dare"), tables=tables, **PLANTED),
            view=HistoryView(match=False),
            training=TrainingConfig(
                seed=seed,
                batch_requests=32,
                threads=1,
                table_learning_rate=0.03,
                table_decay=0.0,
                evaluations_per_epoch=1,
                patience=0,
            ),
            budget=Budget(name="planted", epochs=4),
        )
        out = folder / f"{tables}{seed}"
        run_training(data(seed), out, config)
        return open_run(out, data(seed).folder)

    return trained


def planted_auc(run):
    truth = np.load(run.data.folder / "truth" / "test.npy").astype(np.float64)
    return expected_auc(1 / (1 + np.exp(-truth)), np.asarray(predictions_of(run, "test").logit))


def planted_ndcg(run):
    """Return NDCG@10 of behaviours ranked by score, against those that decide."""
    requests, found = run.data.requests("test"), []
    for batch in RequestLoader(run.collator, requests, np.arange(200), batch_requests=50):
        history = batch.histories
        with torch.no_grad():
            scores = scores_of(run.ranker, batch)
        at = 0
        for row, each in enumerate(scores):
            low, high = int(history.offsets[row]), int(history.offsets[row + 1])
            circle = circle_of(history.category[low:high, 1].numpy() - FIRST_KNOWN)
            asked = batch.candidates.category[at : at + len(each), 1].numpy() - FIRST_KNOWN
            gains = relevant_events(circle, circle_of(asked)).astype(np.float64)
            found += [ranking_ndcg(s[::-1], g[::-1], 10) for s, g in zip(each.numpy(), gains, strict=True)]
            at += len(each)
    return float(np.nanmean(found))


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_10_where_the_jobs_conflict_separate_tables_rank_better(planted, seed):
    separate, shared = planted_auc(planted("separate", seed)), planted_auc(planted("shared", seed))
    assert separate > shared + 0.02, f"separate {separate:.4f}, shared {shared:.4f}"


@pytest.mark.slow
def test_10_and_what_they_retrieve_is_what_decides(planted):
    """Retrieval NDCG against planted relevance, over three seeds."""
    separate = [planted_ndcg(planted("separate", seed)) for seed in range(3)]
    shared = [planted_ndcg(planted("shared", seed)) for seed in range(3)]
    assert np.mean(separate) > np.mean(shared) + 0.05, f"separate {separate}, shared {shared}"


def test_selected_attention_of_one_head_is_what_the_exact_unit_calls():
    """The exact unit adds nothing of its own to the operation that the other two-stage rankers share."""
    ranker, batch = dare(kept=4, **PURE), make_batch(SPEC, [(20, 3)], 8)
    with torch.no_grad():
        state, columns, time, bias, chosen = parts_of(ranker, batch)
        interest, _ = ranker.exact(state, columns["asked"], bias, time, None, chosen)
        at = chosen.taken.positions
        whole = torch.cat([state.history.key, ranker.time(time)], 1)
        direct = selected_attention(
            columns["asked"][:, None], state.index.rows, bias[:, None], whole, at, chosen.taken.offsets
        )
    torch.testing.assert_close(interest, direct.squeeze(1), rtol=1e-6, atol=1e-6)
