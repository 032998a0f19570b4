"""The ten checkable claims on human-prior heads, the laws of their loss, and what they are for."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.contract.batches import PREPARED, make_batch, make_sequences, view_of
from torch.nn.functional import normalize

from sostenuto.data.worlds import world_prepared
from sostenuto.data.worlds.table import RARE_FROM
from sostenuto.evaluation import entropy
from sostenuto.evaluation.auc import auc
from sostenuto.evaluation.catalogue import rank_catalogue
from sostenuto.evaluation.predictions import predict, training_counts
from sostenuto.evaluation.steering import recall_of, shown, steering_curve, window_truth
from sostenuto.evaluation.top_rows import top_rows
from sostenuto.features.collation import Collator
from sostenuto.features.loading import RequestLoader
from sostenuto.features.negatives import NegativeSampler
from sostenuto.features.priors import priors_of
from sostenuto.features.sequences import SequenceLoader
from sostenuto.features.view import HistoryView
from sostenuto.features.windows import FutureWindows
from sostenuto.layers.adapter_heads import AdapterConfig
from sostenuto.models.hstu import HSTUConfig
from sostenuto.models.prior_heads import REFUSED, PriorHeads, PriorHeadsConfig, Steering
from sostenuto.models.sasrec import SASRecConfig
from sostenuto.models.saved import load_ranker, save_ranker
from sostenuto.models.table import build
from sostenuto.schema.errors import DataError, SpecError
from sostenuto.schema.features import FIRST_KNOWN
from sostenuto.schema.histories import Candidates, FutureWindow
from sostenuto.schema.priors import PriorConfig
from sostenuto.training.config import TrainingConfig
from sostenuto.training.loop import accumulate
from sostenuto.training.losses import objective_named
from sostenuto.training.optimiser import RankerOptimiser

SPEC = view_of(PREPARED, match=False)
S, C, P = 2, 3, 4
PLAIN = Steering(masks=False)  # nothing but the heads' own scores
BACKBONES = ("sasrec", "hstu")
COMPOSITIONS = ("additive", "multiplicative", "hierarchical")
each_backbone = pytest.mark.parametrize("backbone", BACKBONES)
each_composition = pytest.mark.parametrize("compose", COMPOSITIONS)


def heads(backbone="sasrec", compose="multiplicative", seed=0, fresh=False, **changes):
    """Return a small model whose items 2, 5, 8 .. are of group 0, 3, 6, 9 .. of group 1, and so on; item 1 of all."""
    torch.manual_seed(seed)
    prior = changes.pop("prior", PriorConfig(source="graph", groups=C, anchors=4))
    config = PriorHeadsConfig(
        backbone=backbone,
        sasrec=SASRecConfig(width=8, hidden=8, table_std=0.5),
        hstu=HSTUConfig(width=8, table_std=0.5),
        prior=prior,
        heads=AdapterConfig(compose=compose),
        segments=changes.pop("segments", S),
        window=changes.pop("window", P),
        **changes,
    )
    ranker = PriorHeads(config, SPEC)
    with torch.no_grad():
        if not fresh:
            for parameter in ranker.heads.parameters():
                parameter.normal_(0.0, 0.3)
        item = torch.arange(SPEC.num_items)
        ranker.items.copy_((item[:, None] % ranker.num_groups == torch.arange(ranker.num_groups)) | (item < 2)[:, None])
    return ranker.eval()


def few(*lengths, seed=0):
    return make_batch(SPEC, [(length, 4) for length in lengths], seed)


def along(seed=0, lengths=(6, 0, 4), drawn=20, windows=None):
    """Return a sequence batch with windows of the future and shared negatives; `windows` lists (item, step) each."""
    batch = make_sequences(SPEC, list(lengths), seed)
    rng = np.random.default_rng(seed)
    if windows is None:
        windows = [
            [(int(rng.integers(2, SPEC.num_items)), step) for step in range(int(rng.integers(0, P + 1)))]
            for _ in range(batch.num_requests)
        ]
    flat = list(itertools.chain.from_iterable(windows))
    sizes = torch.tensor([0, *(len(w) for w in windows)]).cumsum(0)
    future = FutureWindow(
        items=items_of([item for item, _ in flat], sizes),
        step=torch.tensor([step for _, step in flat], dtype=torch.int64),
        action=torch.from_numpy(rng.integers(0, SPEC.num_actions, len(flat))),
    )
    return replace(batch, future=future, negatives=items_of(rng.integers(2, SPEC.num_items, drawn).tolist()))


def items_of(item, offsets=None):
    """Return items with categories and fields that follow from the item."""
    item = torch.tensor(item, dtype=torch.int64)
    return Candidates(
        offsets=torch.tensor([0, len(item)]) if offsets is None else offsets,
        item=item,
        category=torch.stack([item % 5, item % 9], 1),
        match=torch.zeros(len(item), 0),
        fields={
            "brand": item % 6,
            "tags": torch.stack([item % 7, item % 3, item % 2], 1),
            "shape": torch.stack([torch.sin(item * k) for k in range(1, 5)], 1),
        },
    )


CATALOGUE = items_of(list(range(2, SPEC.num_items)))


# -- 1: fresh heads are the backbone ----------------------------------------------------------------------------------


@each_backbone
@pytest.mark.parametrize("compose", ["off", *COMPOSITIONS])
def test_fresh_heads_with_masks_off_equal_the_backbone_bit_for_bit(backbone, compose):
    ranker = heads(backbone, compose, fresh=True, similarity="inner", steering=PLAIN)
    batch = few(5, 0, 9)
    with torch.no_grad():
        state = ranker.encode(batch.histories)
        own = ranker.backbone.score(state.backbone, batch.candidates, batch.context).logits
        user = ranker.backbone.query(state.backbone, batch.context)
        read = ranker.read(state, batch.context).vectors
        assert torch.equal(read, user[:, None].expand_as(read))
        assert torch.equal(ranker.score(state, batch.candidates, batch.context).logits, own)
        top = ranker.recommend(state, CATALOGUE, batch.context, k=6)
        expected = user @ ranker.backbone.item_vectors(CATALOGUE).T
    assert torch.equal(top.item, expected.topk(6, 1).indices)


def test_fresh_cosine_heads_score_as_a_backbone_of_that_temperature():
    ranker = heads("hstu", fresh=True, steering=PLAIN)  # its temperature, 1 / 20, is where ours starts
    batch = few(5, 0, 9)
    with torch.no_grad():
        own = ranker.backbone(batch.histories, batch.candidates, batch.context).logits
        torch.testing.assert_close(ranker(batch.histories, batch.candidates, batch.context).logits, own)


@each_backbone
def test_a_fresh_prior_without_knowledge_only_shifts_the_scores_of_a_user(backbone):
    """Masks on and heads at one level, but every item in every group: the order of candidates is the backbone's."""
    ranker = heads(backbone, fresh=True, similarity="inner", steering=Steering(level=1.0))
    ranker.items.fill_(True)
    batch = few(5, 9)
    with torch.no_grad():
        state = ranker.encode(batch.histories)
        own = ranker.backbone.score(state.backbone, batch.candidates, batch.context).logits
        shift = ranker.score(state, batch.candidates, batch.context).logits - own
    for row in range(2):
        of_row = shift[batch.candidates.row == row]
        torch.testing.assert_close(of_row, of_row[:1].expand_as(of_row), atol=1e-4, rtol=1e-4)


# -- 2: merging -------------------------------------------------------------------------------------------------------


@each_backbone
@each_composition
@pytest.mark.parametrize("level", [0.0, 1.0])
def test_the_list_is_ranked_by_the_best_head_and_every_source_may_propose_its_item(backbone, compose, level):
    ranker = heads(backbone, compose, steering=Steering(level=level))
    batch = few(5, 0, 9)
    users = range(3)
    with torch.no_grad():
        state = ranker.encode(batch.histories)
        everything = items_of([*CATALOGUE.item.tolist()] * 3, torch.arange(4) * len(CATALOGUE.item))
        by_head = ranker.head_scores(state, everything, batch.context)
        logits = ranker.score(state, everything, batch.context).logits
        sources = ranker.sources(state, everything, batch.context)
        assert torch.equal(logits, by_head.amax(1))
        whole = ranker.catalogue_scores(state, CATALOGUE, batch.context)
        torch.testing.assert_close(whole.flatten(), logits)
        top = ranker.recommend(state, CATALOGUE, batch.context, k=10)
        torch.testing.assert_close(top.score, whole.topk(10, 1).values)
    for b in users:
        assert len(set(top.item[b].tolist())) == 10
        for place, head in zip(top.item[b].tolist(), top.head[b].tolist(), strict=True):
            group = int(ranker.group_of_head[head])
            assert group < 0 or ranker.items[CATALOGUE.item[place], group]
            assert head == sources[b * len(CATALOGUE.item) + place]


def test_the_average_is_the_mean_of_the_heads_that_may_speak():
    ranker = heads(steering=Steering(merge="average"))
    batch = few(5, 3)
    with torch.no_grad():
        state = ranker.encode(batch.histories)
        by_head = ranker.head_scores(state, batch.candidates, batch.context)
        logits = ranker.score(state, batch.candidates, batch.context).logits
    for row, logit in zip(by_head, logits, strict=True):
        spoken = [float(v) for v in row if v > -math.inf]
        assert 0 < len(spoken) <= S * C
        assert float(logit) == pytest.approx(sum(spoken) / len(spoken), rel=1e-4, abs=1e-5)


# -- 3: compatibility in the loss -------------------------------------------------------------------------------------


def loss_of(ranker, batch):
    return sum(ranker.loss_along(batch).aux_losses.values())


@each_backbone
@each_composition
def test_a_head_without_compatible_targets_gets_no_gradient(backbone, compose):
    ranker = heads(backbone, compose)
    batch = along()
    assert batch.num_requests >= 3
    windows = [[(3, 0), (6, 1), (2, 3)] for _ in range(batch.num_requests)]  # groups 0, 0, 2: never 1
    loss_of(ranker, along(windows=windows)).backward()
    moved = [block[0].linear.weight.grad.abs().sum() > 0 for block in ranker.heads.blocks]
    group = ranker.group_of_head.tolist()
    segment = ranker.segment_of_head.tolist()
    for h, has_moved in enumerate(moved):
        targets = {(0, 0), (1, 2), (-1, 0), (-1, 2), (0, -1), (1, -1)}
        assert bool(has_moved) == ((segment[h], group[h]) in targets), h
    if compose == "hierarchical":
        assert not ranker.heads.below[1][0].linear.weight.grad.abs().sum()


def test_tags_of_the_history_do_not_touch_the_loss_and_tags_of_a_target_do():
    ranker, batch = heads(), along()
    targets = set(batch.future.items.item.tolist()) | set(batch.negatives.item.tolist())
    in_history = next(i for i in batch.histories.item.tolist() if i not in targets and i > 1)
    with torch.no_grad():
        before = loss_of(ranker, batch)
        ranker.items[in_history] = ranker.items[in_history].roll(1)
        assert torch.equal(loss_of(ranker, batch), before)
        target = batch.future.items.item[0]
        ranker.items[target] = ranker.items[target].roll(1)
        assert not torch.equal(loss_of(ranker, batch), before)


# -- 4: index map -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compose", ["multiplicative", "hierarchical"])
@pytest.mark.parametrize("p", range(P))
@pytest.mark.parametrize("c", range(C))
def test_the_head_of_offset_p_and_value_c_is_p_div_2_times_3_plus_c(compose, p, c):
    ranker = heads(compose=compose)
    count = along().num_requests
    loss_of(ranker, along(windows=[[(3 + c, p)] for _ in range(count)])).backward()
    moved = [h for h, b in enumerate(ranker.heads.blocks) if b[0].linear.weight.grad.abs().sum() > 0]
    assert moved == [(p // 2) * 3 + c]


# -- 5: weights, and the plain loss as a special case -----------------------------------------------------------------


def slow_loss(ranker, batch):
    """The objective from its equation, target by target."""
    config = ranker.config
    with torch.no_grad():
        user = ranker.backbone.queries_along(batch)
        z = ranker.heads(user)
        v, n = ranker.backbone.item_vectors(batch.future.items), ranker.backbone.item_vectors(batch.negatives)
    tau = math.exp(-min(max(float(ranker.scale.detach()), 0.0), math.log(100)))
    z, v, n = (normalize(t, dim=-1).double() for t in (z, v, n))
    row, item = batch.future.items.row.tolist(), batch.future.items.item.tolist()
    step, drawn = batch.future.step.tolist(), batch.negatives.item.tolist()

    def nce(r, h, w, group):
        total = math.exp(float(z[r, h] @ v[w]) / tau)
        mine = {item[x] for x in range(len(item)) if row[x] == r}
        for m, other in enumerate(drawn):
            if float(v[w] @ n[m]) > 0.99 or other in mine or (group is not None and not ranker.items[other, group]):
                continue
            total += math.exp(float(z[r, h] @ n[m]) / tau)
        return -math.log(math.exp(float(z[r, h] @ v[w]) / tau) / total)

    decay = [config.decay**p for p in range(config.window)]
    horizon = [d / sum(decay) for d in decay]
    segment = [p // (config.window // config.segments) for p in range(config.window)]
    groups = ranker.num_groups
    has = [[bool(ranker.items[i, c]) for c in range(groups)] for i in item]

    def mean(p, c, h, group):
        terms = [nce(row[w], h, w, group) for w in range(len(item)) if step[w] == p and (c is None or has[w][c])]
        return sum(terms) / len(terms) if terms else 0.0

    counts = [sum(has[w][c] for w in range(len(item))) for c in range(groups)]
    weights = [count / sum(counts) for count in counts]
    steps = range(config.window)
    if config.heads.compose == "additive":
        first = sum(horizon[p] * mean(p, None, segment[p], None) for p in steps)
        second = sum(
            weights[c] * sum(horizon[p] * mean(p, c, config.segments + c, c) for p in steps) for c in range(groups)
        )
        return 0.5 * first + 0.5 * second
    return sum(
        weights[c] * sum(horizon[p] * mean(p, c, segment[p] * groups + c, c) for p in steps) for c in range(groups)
    )


@each_backbone
@each_composition
@pytest.mark.parametrize("seed", [0, 1])
def test_the_objective_equals_its_equation(backbone, compose, seed):
    ranker, batch = heads(backbone, compose, seed), along(seed)
    assert float(loss_of(ranker, batch).detach()) == pytest.approx(slow_loss(ranker, batch), rel=1e-4)


@pytest.mark.parametrize("window", [1, 4])
def test_one_group_one_segment_and_no_heads_is_plain_nce(window):
    """C = 1, S = 1: every composition of fresh heads gives the loss of no heads at all; P = 1 is the next moment."""
    batch = along(windows=[[(3 + r, p) for p in range(window)] for r in range(along().num_requests)])
    found = []
    for compose in ("off", "multiplicative", "hierarchical"):
        ranker = heads(compose=compose, fresh=True, prior=PriorConfig(source="none"), segments=1, window=window)
        ranker.items.fill_(True)
        found.append(loss_of(ranker, batch).detach())
        assert float(ranker.horizon.sum()) == pytest.approx(1.0)
        assert float(found[-1]) == pytest.approx(slow_loss(ranker, batch), rel=1e-4)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_groups_weigh_alike_when_asked():
    batch = along()
    frequency, uniform = (float(loss_of(heads(weighting=w), batch).detach()) for w in ("frequency", "uniform"))
    assert frequency != pytest.approx(uniform)


# -- 6: a prior that is given -----------------------------------------------------------------------------------------


@each_backbone
@each_composition
def test_a_given_prior_restricts_the_list_to_its_group(backbone, compose):
    ranker = heads(backbone, compose, steering=Steering(given=(1,)))
    batch = few(5, 0)
    with torch.no_grad():
        state = ranker.encode(batch.histories)
        top = ranker.recommend(state, CATALOGUE, batch.context, k=30)
        logits = ranker.score(state, batch.candidates, batch.context).logits
    listed = top.item[top.item >= 0]
    assert len(listed) == 2 * int(ranker.items[CATALOGUE.item, 1].sum())
    assert bool(ranker.items[CATALOGUE.item[listed], 1].all())
    assert torch.equal(logits > REFUSED, ranker.items[batch.candidates.item, 1])
    assert bool(torch.isfinite(logits).all())


def test_closing_every_head_is_refused():
    with pytest.raises(SpecError, match="must leave a head open"):
        Steering(given=())
    ranker, batch = heads(steering=Steering(given=(C,))), few(3)
    with pytest.raises(SpecError, match=r"given must be groups 0 \.\. 2"):
        ranker(batch.histories, batch.candidates, batch.context)


# -- 7: false negatives -----------------------------------------------------------------------------------------------


@each_backbone
def test_a_negative_equal_to_a_positive_never_enters(backbone):
    ranker = heads(backbone)
    count = along().num_requests
    batch = along(windows=[[(5, 0)] for _ in range(count)])
    other = [i for i in batch.negatives.item.tolist() if i != 5]
    with torch.no_grad():
        without = loss_of(ranker, replace(batch, negatives=items_of(other)))
        with_it = loss_of(ranker, replace(batch, negatives=items_of([*other, 5, 5])))
        harder = loss_of(ranker, replace(batch, negatives=items_of([*other, 8, 8])))  # of the same group
    torch.testing.assert_close(without, with_it)
    assert float(harder) > float(without)


# -- 8: entropy -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("groups", [1, 2, 8])
def test_entropy_is_0_for_one_group_and_log2_of_g_for_a_uniform_list(groups):
    rows = np.arange(2 * groups)
    top = top_rows(-rows.astype(float), np.zeros(len(rows), int), rows, len(rows))
    spread = np.eye(groups, dtype=bool)[rows % groups]
    assert entropy.value(entropy.state(top, spread)) == pytest.approx(math.log2(groups))
    single = np.zeros((len(rows), groups), bool)
    single[:, 0] = True
    assert entropy.value(entropy.state(top, single)) == 0


# -- 9: parameters ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("compose", "blocks"), [("additive", S + C), ("multiplicative", S * C), ("hierarchical", C + C * S)]
)
@each_backbone
def test_heads_cost_little(backbone, compose, blocks):
    config = PriorHeadsConfig(
        backbone=backbone,
        prior=PriorConfig(groups=C),
        heads=AdapterConfig(compose=compose),
        segments=S,
        window=P,
    )
    ranker = PriorHeads(config, replace(SPEC, num_items=20_000, num_item_rows=20_000))
    count = sum(p.numel() for p in ranker.heads.parameters())
    assert count == blocks * (64 * 64 + 64)
    assert count < 0.05 * sum(p.numel() for p in ranker.backbone.parameters())


# -- laws of the loss and of the state --------------------------------------------------------------------------------


@each_backbone
def test_what_follows_a_request_in_its_timeline_changes_no_loss(backbone):
    """Requests read their prefix alone: other items behind the last prefix of a row are unseen."""
    ranker, batch = heads(backbone), along(lengths=(6, 4))
    row, prefix = batch.row, batch.prefix
    last = torch.zeros(batch.histories.num_rows, dtype=torch.int64).scatter_reduce(0, row, prefix, "amax")
    kept = torch.tensor([int(p) < int(last[r]) for p, r in zip(prefix, row, strict=True)])
    assert kept.any()
    earlier = replace(
        batch,
        row=row[kept],
        prefix=prefix[kept],
        candidates=items_of([], torch.zeros(int(kept.sum()) + 1, dtype=torch.int64)),
        future=FutureWindow(
            items=items_of([5] * int(kept.sum()), torch.arange(int(kept.sum()) + 1)),
            step=torch.zeros(int(kept.sum()), dtype=torch.int64),
            action=torch.zeros(int(kept.sum()), dtype=torch.int64),
        ),
    )
    readable = torch.zeros(batch.histories.item.shape[0], dtype=torch.bool)
    for r, p in zip(earlier.row.tolist(), earlier.prefix.tolist(), strict=True):
        start = int(batch.histories.offsets[r])
        readable[start : start + p] = True
    assert not readable.all()
    item = torch.where(readable, batch.histories.item, 2 + (batch.histories.item + 7) % 20)
    changed = replace(earlier, histories=replace(batch.histories, item=item))
    with torch.no_grad():
        torch.testing.assert_close(loss_of(ranker, earlier), loss_of(ranker, changed))


@each_backbone
def test_user_groups_follow_from_the_behaviours_alike_along_and_alone(backbone):
    """The group that decides about a target is the one that decoding would see at the same moment."""
    ranker = heads(backbone, prior=PriorConfig(source="user", groups=C, anchors=4))
    ranker.items.fill_(True)
    ranker.evidence.normal_(generator=torch.Generator().manual_seed(1))
    count = along().num_requests
    batch = along(windows=[[(5, 0)] for _ in range(count)])
    found = ranker.target_groups(batch, batch.future)
    for r, end in enumerate(batch.ends.tolist()):
        mine = batch.histories.item[end - int(batch.prefix[r]) : end]
        if not len(mine):
            assert bool(found[r].all())  # nothing is known of the user
            continue
        best = int((ranker.evidence[mine].sum(0) + ranker.share.log()).argmax())
        assert found[r].tolist() == [c == best for c in range(C)]
    requests = few(5, 0, 9)
    with torch.no_grad():
        state = ranker.encode(requests.histories)
        offset = ranker.read(state, requests.context).offset
    open_groups = ranker.user_groups(state.evidence, state.count)
    assert torch.equal(offset.isfinite(), open_groups[:, ranker.group_of_head])


def test_actions_of_targets_choose_the_heads_and_candidates_are_free():
    ranker = heads(prior=PriorConfig(source="action", groups=2, anchors=4))
    ranker.items.fill_(True)
    ranker.actions.copy_(torch.tensor([[True, True], [True, True], [True, False], [False, True]]))
    batch = along()
    assert torch.equal(ranker.target_groups(batch, batch.future), ranker.actions[batch.future.action])
    requests = few(4)
    with torch.no_grad():
        free = ranker.head_scores(ranker.encode(requests.histories), requests.candidates, requests.context)
    assert bool(free.isfinite().all())


def test_a_saved_model_decodes_alike_with_its_priors(tmp_path):
    ranker, batch = heads(steering=Steering(level=1.0, habit=1.0)), few(5, 0, 9)
    ranker.share.copy_(torch.tensor([0.7, 0.2, 0.1]))
    ranker.anchor_item.random_(2, 40)
    ranker.size.fill_(9.0)
    save_ranker(tmp_path, "prior_heads", ranker.config, SPEC, ranker)
    loaded, _ = load_ranker(tmp_path)
    with torch.no_grad():
        a, b = (r(batch.histories, batch.candidates, batch.context).logits for r in (ranker, loaded))
    assert torch.equal(a, b)
    assert torch.equal(loaded.items, ranker.items)


def test_the_switch_learns_and_closes_heads_but_never_all():
    ranker = heads(switch=1.0)
    loss = ranker.loss_along(along()).aux_losses["switch"]
    loss.backward()
    assert bool(ranker.switch.weight.grad.abs().sum() > 0)
    batch = few(5, 9)
    with torch.no_grad():
        ranker.switch.weight.zero_()
        ranker.switch.bias.copy_(torch.tensor([1.0, -1.0, -1.0]))
        state = ranker.encode(batch.histories)
        assert ranker.read(state, batch.context).offset.isfinite().tolist() == [[True, False, False] * S] * 2
        ranker.switch.bias.fill_(-1.0)
        assert bool(ranker.read(state, batch.context).offset.isfinite().all())


def test_knobs_raise_the_heads_they_name():
    ranker, batch = heads(), few(9)
    ranker.share.copy_(torch.tensor([0.7, 0.2, 0.1]))

    def offsets(**knobs):
        ranker.steering = Steering(**knobs)
        with torch.no_grad():
            return ranker.read(ranker.encode(batch.histories), batch.context).offset[0]

    assert not offsets().any()
    torch.testing.assert_close(offsets(frequency=2.0), 2 * ranker.share.log()[ranker.group_of_head])
    torch.testing.assert_close(offsets(long_term=1.5), torch.tensor([-1.5] * C + [1.5] * C))
    met = ranker.items[batch.histories.item].float()
    used = (met / met.sum(1, keepdim=True)).sum(0)
    expected = ((used + 5 * ranker.share) / (len(batch.histories.item) + 5)).log()
    torch.testing.assert_close(offsets(habit=1.0), expected[ranker.group_of_head])


def test_a_head_is_levelled_by_what_it_may_propose():
    """With anchors that are the whole group, exp(score) sums to 1 over the group: a log-probability."""
    ranker = heads(prior=PriorConfig(source="graph", groups=C, anchors=13), steering=Steering(level=1.0))
    groups = [[i for i in range(2, 40) if i % C == c] for c in range(C)]
    with torch.no_grad():
        anchors = items_of([*itertools.chain.from_iterable(g[:12] + g[:1] for g in groups), *range(2, 15)])
        for name in ("item", "category"):
            getattr(ranker, f"anchor_{name}").copy_(getattr(anchors, name))
        for name, buffer in ranker.anchor_fields.items():
            getattr(ranker, buffer).copy_(anchors.fields[name])
        ranker.size.copy_(torch.tensor([13.0, 13.0, 13.0, 13.0]))
        batch = few(5)
        state = ranker.encode(batch.histories)
        for c in range(C):
            members = items_of(groups[c][:12] + groups[c][:1])
            scores = ranker.head_scores(state, members, batch.context)[:, ranker.group_of_head == c]
            torch.testing.assert_close(scores.exp().sum(0), torch.ones(S))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"window": 5, "segments": 2}, "window must be a multiple of segments, got 5 and 2"),
        ({"window_moment": 0}, "window_moment must be at least 1"),
        ({"decay": 0.0}, "decay must be in"),
        ({"switch": -1.0}, "switch must be 0 or more"),
    ],
)
def test_nonsense_is_refused(changes, message):
    with pytest.raises(SpecError, match=message):
        PriorHeadsConfig(**changes)


def test_batches_without_a_future_are_refused():
    with pytest.raises(DataError, match="must carry a future window"):
        heads().loss_along(make_sequences(SPEC, [4], 0))


# -- 10: what they are for --------------------------------------------------------------------------------------------

SMALL = HSTUConfig(width=32, blocks=1, heads=2, dropout=0.1, input_dropout=0.1)
BY_GROUP = PriorConfig(source="category", groups=6)
EVEN = Steering(level=1.0)  # exposures show the rare group as often as the others
RUNS = {
    "plain": PriorHeadsConfig(
        backbone="hstu", hstu=SMALL, prior=BY_GROUP, heads=AdapterConfig(compose="off"), segments=1, steering=PLAIN
    ),
    "heads": PriorHeadsConfig(backbone="hstu", hstu=SMALL, prior=BY_GROUP, segments=1, steering=EVEN),
    "random tags": PriorHeadsConfig(
        backbone="hstu", hstu=SMALL, prior=replace(BY_GROUP, scramble="shuffle"), segments=1, steering=EVEN
    ),
}


def trained(data, config, *, steps, seed):
    collator = Collator(data, HistoryView(match=False))
    priors = priors_of(data, config.prior)
    requests = data.requests("train")
    loader = SequenceLoader(
        collator,
        requests,
        np.arange(len(requests)),
        batch_requests=64,
        seed=seed,
        negatives=NegativeSampler(
            training_counts(data), count=128, power=0.0, log_q=False, groups=priors.items.numpy()
        ),
        windows=FutureWindows(data, moments=config.window, per_moment=config.window_moment),
    )
    ranker = build("prior_heads", config, collator.features, seed=seed)
    ranker.take_priors(priors, collator.assembler.items(priors.anchors.flatten().numpy()))
    training = TrainingConfig(learning_rate=1e-2, table_learning_rate=1e-2, table_decay=0.0)
    optimiser, objective = RankerOptimiser(ranker, training), objective_named("loss_along")
    batches = itertools.islice(itertools.chain.from_iterable(loader.epoch(n) for n in itertools.count()), steps)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for batch in batches:
            accumulate(ranker.train(), batch, objective, training)
            optimiser.step(1.0)
    return ranker.eval(), collator


def measured(ranker, collator):
    """Return recall@20 of targets in the rare group, Entropy@20, and the AUC of exposures that count for the rare one.

    The last holds every liked exposure of a rare item against all that were shown and not liked.
    """
    data = collator.data
    truth = window_truth(data, "test", window=8, segments=1, requests=2_000, seed=0)
    standing = rank_catalogue(ranker, collator, "test", rows=truth.rows, truth=truth.items, most=20)
    kind = data.item_category[:, 1]
    rare = [items[kind[items] >= RARE_FROM + FIRST_KNOWN] for items in truth.items]
    group = data.item_category[:, 0][standing.top_item]
    spread = entropy.value(entropy.state(shown(standing, 20), group[:, None] == np.arange(8)))
    requests = data.requests("test")
    scored = predict(ranker, RequestLoader(collator, requests, np.arange(len(requests)), batch_requests=64))
    counts = (scored.label == 0) | (kind[scored.item] >= RARE_FROM + FIRST_KNOWN)
    return recall_of(standing, rare, 20), spread, auc(scored.label[counts], scored.logit[counts])


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_rare_intent_is_found_by_heads_of_real_groups_only(tmp_path, seed):
    """At equal steps heads raise the recall of the rare group, Entropy@20 and the AUC of what is liked of the group.

    Heads with random tags are several readings of one user: they must keep less than half of each gain.
    """
    data = world_prepared(
        "prior_intents", tmp_path / "w", events=60_000, users=600, items=410, requests=6_000, seed=seed
    )
    found = {name: measured(*trained(data, config, steps=200, seed=seed)) for name, config in RUNS.items()}
    rare, spread, exposed = (
        {name: found[name][n] - found["plain"][n] for name in ("heads", "random tags")} for n in range(3)
    )
    assert found["heads"][0] > 2 * found["plain"][0]
    assert rare["random tags"] < rare["heads"] / 2
    assert spread["heads"] > 0.3
    assert spread["random tags"] < spread["heads"] / 2
    assert exposed["heads"] > 0.02
    assert exposed["random tags"] < exposed["heads"] / 2


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_decoding_steers_between_the_near_and_the_far_future(tmp_path, seed):
    """Where the next moments are of one group and later ones of the next, `long_term` trades one for the other."""
    data = world_prepared("phases", tmp_path / "w", events=60_000, users=600, items=410, requests=6_000, seed=seed)
    config = PriorHeadsConfig(backbone="hstu", hstu=SMALL, prior=PriorConfig(source="none"), window=8, segments=2)
    ranker, collator = trained(data, config, steps=400, seed=seed)
    near_first, even, far_first = steering_curve(ranker, collator, "long_term", (-1.0, 0.0, 1.0), requests=1_500)[
        "points"
    ]
    assert near_first["near"] > far_first["near"] + 0.03
    assert far_first["far"] > near_first["far"] + 0.01
    assert near_first["near"] >= even["near"] >= far_first["near"]
