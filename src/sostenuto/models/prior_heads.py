"""Human-prior heads (Meta AI, arXiv:2511.10492, WWW 2026): structured knowledge steers a sequence backbone.

Every value of a prior (kind of item, action, community, near or far future) owns a light adapter head on the user
vector. A head is trained on the targets compatible with its value, and may only propose compatible items; a list is the
best that any head says. Differs from the paper: docs/models/prior_heads.md lists every choice of ours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sostenuto.layers.adapter_heads import AdapterConfig, AdapterHeads
from sostenuto.models.hstu import HSTU, HSTUConfig
from sostenuto.models.sasrec import SASRec, SASRecConfig
from sostenuto.ops.guarded_nce import false_negatives, guarded_nce, horizon_weights
from sostenuto.ops.head_merge import Merged, merge_heads
from sostenuto.ops.jagged import segment_sum
from sostenuto.schema.errors import DataError, SpecError
from sostenuto.schema.features import FeatureSpec
from sostenuto.schema.histories import Candidates, Context, FutureWindow, History, RankerOutput, SequenceBatch
from sostenuto.schema.priors import ITEM_SOURCES, FutureTargets, PriorConfig, Priors, num_groups

REFUSED = -1e9  # logit of a candidate that no open head may propose; finite, because scores must be
FIRST_SCALE, LAST_SCALE = math.log(20.0), math.log(100.0)  # log of 1 / temperature: at the start, and at most
HABIT_DOUBT = 5.0  # behaviours' worth of doubt about what a user is used to
FEWEST = 1e-3  # smallest share that steering takes a logarithm of


@dataclass(frozen=True, kw_only=True, slots=True)
class Steering:
    """How the heads are weighed when a list is made. It changes no parameter: one trained model gives a whole curve.

    A head's scores are raised or lowered as a whole, so that a candidate's score still depends on no other candidate.
    """

    # 0 is published: scores as the heads give them. 1: log-probabilities among the items that a head may propose, so
    # that heads can be compared: one held against its own group alone leaves open how high all its scores lie. Ours
    level: float = 0.0
    masks: bool = True  # heads propose compatible items only, and user groups close the other groups' heads
    merge: Literal["combine", "average"] = "combine"  # the best head's score, or the mean of the open heads'
    given: tuple[int, ...] | None = None  # groups whose heads may speak; None = all. An action: "predict the purchase"
    habit: float = 0.0  # times log of a group's share in the user's own history: > 0 accuracy, < 0 exploration. Ours
    frequency: float = 0.0  # times log of the group's share in training: < 0 raises rare groups. Ours
    long_term: float = 0.0  # -1 .. 1 and beyond: raises heads of the far future against those of the near one. Ours

    def __post_init__(self) -> None:
        if self.given is not None and not self.given:
            raise SpecError("Steering.given must leave a head open, got no group at all; name one, or leave it out")


@dataclass(frozen=True, kw_only=True, slots=True)
class PriorHeadsConfig:
    """Backbone, priors, heads and objective."""

    backbone: Literal["sasrec", "hstu"] = "sasrec"
    sasrec: SASRecConfig = field(default_factory=SASRecConfig)  # read when it is the backbone
    hstu: HSTUConfig = field(default_factory=HSTUConfig)  # read when it is the backbone
    prior: PriorConfig = field(default_factory=PriorConfig)
    heads: AdapterConfig = field(default_factory=AdapterConfig)
    segments: int = 2  # S parts of the window; the first is short-term, the last long-term
    window: int = 8  # P distinct moments that are foretold, a multiple of the segments
    window_moment: int = 8  # behaviours of one moment that are targets, at most
    decay: float = 0.99  # weight of a moment against the one before it
    similarity: Literal["cosine", "inner"] = "cosine"  # inner: the backbone's own, without a temperature of ours
    temperature: Literal["learned", "fixed"] = "learned"  # 1 / 20 at the start, 1 / 100 at least; of cosine
    weighting: Literal["frequency", "uniform"] = "frequency"  # of groups in the loss
    negatives: Literal["group", "all"] = "group"  # a head of an item group is held against items of it alone
    switch: float = 0.0  # weight of the loss of classifiers that close heads; 0 leaves them out
    steering: Steering = field(default_factory=Steering)

    def __post_init__(self) -> None:
        if self.segments < 1 or self.window < 1 or self.window % self.segments:
            raise SpecError(
                f"PriorHeadsConfig.window must be a multiple of segments, got {self.window} and {self.segments}; "
                f"set it to {max(1, self.segments) * max(1, round(self.window / max(1, self.segments)))}"
            )
        if self.window_moment < 1:
            raise SpecError(f"PriorHeadsConfig.window_moment must be at least 1, got {self.window_moment}; raise it")
        if not 0 < self.decay <= 1:
            raise SpecError(f"PriorHeadsConfig.decay must be in (0, 1], got {self.decay}; 0.99 is the published one")
        if self.switch < 0:
            raise SpecError(f"PriorHeadsConfig.switch must be 0 or more, got {self.switch}; 0 leaves it out")

    @property
    def targets(self) -> FutureTargets:
        """What its batches carry."""
        return FutureTargets(moments=self.window, per_moment=self.window_moment, prior=self.prior)


@dataclass(frozen=True, kw_only=True, slots=True)
class PriorHeadsState:
    """What the backbone keeps of B users, and how their behaviours spread over the groups."""

    backbone: Any
    met: Tensor  # (B, C) behaviours by item group, those of several groups shared out
    evidence: Tensor  # (B, C) log of how much more the behaviours speak for a user group than against it
    count: Tensor  # (B,) behaviours


class Reading(NamedTuple):
    """What the heads make of B users."""

    vectors: Tensor  # (B, heads, D), of the scale that scores have
    offset: Tensor  # (B, heads) by which steering raises a head; -inf where the user's head is closed


def _backbone(config: PriorHeadsConfig, features: FeatureSpec) -> tuple[Any, int]:
    if config.backbone == "sasrec":
        return SASRec(config.sasrec, features), config.sasrec.width
    return HSTU(config.hstu, features), config.hstu.width


class PriorHeads(nn.Module):
    """Adapter heads for prior values on a sequence backbone."""

    items: Tensor
    actions: Tensor
    evidence: Tensor
    share: Tensor
    size: Tensor
    anchor_item: Tensor
    anchor_category: Tensor
    segment_of_head: Tensor
    group_of_head: Tensor
    horizon: Tensor

    def __init__(self, config: PriorHeadsConfig, features: FeatureSpec) -> None:
        super().__init__()
        self.config = config
        self.steering = config.steering
        self.backbone, dim = _backbone(config, features)
        self.num_groups = num_groups(config.prior, features)
        self.heads = AdapterHeads(config.heads, dim, segments=config.segments, groups=self.num_groups)
        segment, group = self.heads.axes()
        self.register_buffer("segment_of_head", segment, persistent=False)
        self.register_buffer("group_of_head", group, persistent=False)
        self.register_buffer("horizon", horizon_weights(config.window, config.decay), persistent=False)
        # the prior: saved with the weights, so that a loaded model decodes alike
        self.register_buffer("items", torch.ones(features.num_items, self.num_groups, dtype=torch.bool))
        self.register_buffer("actions", torch.ones(features.num_actions, self.num_groups, dtype=torch.bool))
        self.register_buffer("evidence", torch.zeros(features.num_items, self.num_groups))
        self.register_buffer("share", torch.full((self.num_groups,), 1.0 / self.num_groups))
        self.register_buffer("size", torch.ones(self.num_groups + 1))
        count = (self.num_groups + 1) * config.prior.anchors
        self.register_buffer("anchor_item", torch.zeros(count, dtype=torch.int64))
        self.register_buffer("anchor_category", torch.zeros(count, len(features.categories), dtype=torch.int64))
        self.anchor_fields = {f.name: f"anchor_field_{n}" for n, f in enumerate(features.item_fields)}
        for f in features.item_fields:
            wide = (count, f.width) if f.kind in {"multi", "vector"} else (count,)
            dtype = torch.int64 if f.kind in {"categorical", "multi"} else torch.float32
            self.register_buffer(self.anchor_fields[f.name], torch.zeros(wide, dtype=dtype))
        self.scale: nn.Parameter | None = None
        if config.similarity == "cosine":
            learned = config.temperature == "learned"
            self.scale = nn.Parameter(torch.tensor(FIRST_SCALE), requires_grad=learned)
        self.switch = nn.Linear(dim, self.num_groups) if config.switch else None

    def take_priors(self, priors: Priors, anchors: Candidates) -> None:
        """Take over what is known of items, actions and users; `anchors` are the items of `priors.anchors`, flat."""
        for name in ("items", "actions", "evidence", "share", "size"):
            getattr(self, name).copy_(getattr(priors, name))
        self.anchor_item.copy_(anchors.item)
        self.anchor_category.copy_(anchors.category)
        for name, buffer in self.anchor_fields.items():
            getattr(self, buffer).copy_(anchors.fields[name])

    # -- user side -----------------------------------------------------------------------------------------------

    def encode(self, histories: History) -> PriorHeadsState:
        """Encode the behaviours as the backbone does, and count them by group."""
        met, evidence = self._of_behaviours(histories)
        return PriorHeadsState(
            backbone=self.backbone.encode(histories),
            met=segment_sum(met, histories.offsets, exact=True),
            evidence=segment_sum(evidence, histories.offsets, exact=True),
            count=histories.lengths,
        )

    def append(self, state: PriorHeadsState, events: History) -> PriorHeadsState:
        """Fold later events in, where the backbone can."""
        later_met, later_evidence = self._of_behaviours(events)
        return PriorHeadsState(
            backbone=self.backbone.append(state.backbone, events),
            met=state.met + segment_sum(later_met, events.offsets, exact=True),
            evidence=state.evidence + segment_sum(later_evidence, events.offsets, exact=True),
            count=state.count + events.lengths,
        )

    def _of_behaviours(self, histories: History) -> tuple[Tensor, Tensor]:
        groups = self.items[histories.item].float()
        return groups / groups.sum(1, keepdim=True), self.evidence[histories.item]

    def user_groups(self, evidence: Tensor, count: Tensor) -> Tensor:
        """Return (R, C) bool: the one group that behaviours speak for most; all for a user without behaviours.

        The posterior of a naive Bayes classifier over the communities of users, so that new users have a group too.
        """
        posterior = evidence + self.share.clamp(min=FEWEST).log()
        best = F.one_hot(posterior.argmax(1), self.num_groups).bool()
        return best | (count == 0)[:, None]

    # -- decoding ------------------------------------------------------------------------------------------------

    def read(self, state: PriorHeadsState, context: Context) -> Reading:
        """Return what every head asks for, and how steering weighs it."""
        user = self.backbone.query(state.backbone, context)
        vectors, offset = self._scaled(self.heads(user)), self._offsets(state, user)
        if self.steering.level:
            offset = offset - self.steering.level * self._level(vectors)
        return Reading(vectors, offset)

    def _level(self, vectors: Tensor) -> Tensor:
        """Return (B, heads) log of the sum of exp(score) over the items that a head may propose, by its anchors."""
        anchors = Candidates(
            offsets=torch.tensor([0, len(self.anchor_item)], device=vectors.device),
            item=self.anchor_item,
            category=self.anchor_category,
            match=vectors.new_zeros(len(self.anchor_item), 0),
            fields={name: getattr(self, buffer) for name, buffer in self.anchor_fields.items()},
        )
        targets = self._targets(anchors)
        targets = targets.view(self.num_groups + 1, -1, targets.shape[1])[self.group_of_head]
        scores = torch.einsum("bhd,had->bha", vectors, targets)
        mean = torch.logsumexp(scores, 2) - math.log(scores.shape[2])
        return mean + self.size.clamp(min=1.0).log()[self.group_of_head]

    def _scaled(self, vectors: Tensor) -> Tensor:
        if self.scale is None:
            return vectors
        return F.normalize(vectors, dim=-1) * self.scale.clamp(0.0, LAST_SCALE).exp()

    def _targets(self, items: Candidates) -> Tensor:
        vectors: Tensor = self.backbone.item_vectors(items)
        return vectors if self.scale is None else F.normalize(vectors, dim=-1)

    def _offsets(self, state: PriorHeadsState, user: Tensor) -> Tensor:
        steering, group, segment = self.steering, self.group_of_head, self.segment_of_head
        by_group = user.new_zeros(user.shape[0], self.num_groups)
        if steering.frequency:
            by_group = by_group + steering.frequency * self.share.clamp(min=FEWEST).log()
        if steering.habit:
            used_to = (state.met + HABIT_DOUBT * self.share) / (state.count[:, None] + HABIT_DOUBT)
            by_group = by_group + steering.habit * used_to.clamp(min=FEWEST).log()
        open_groups = torch.ones_like(by_group, dtype=torch.bool)
        if steering.given is not None:
            if not bool((group >= 0).any()):
                raise SpecError("Steering.given must be none for a model without heads of groups; compose them first")
            given = torch.tensor(steering.given, device=user.device)
            if int(given.min()) < 0 or int(given.max()) >= self.num_groups:
                raise SpecError(
                    f"Steering.given must be groups 0 .. {self.num_groups - 1}, got {steering.given}; take some of them"
                )
            open_groups = torch.zeros_like(open_groups).index_fill(1, given, True)
        if steering.masks and self.config.prior.source == "user":
            narrowed = open_groups & self.user_groups(state.evidence, state.count)
            open_groups = torch.where(narrowed.any(1, keepdim=True), narrowed, open_groups)  # what is given comes first
        if steering.masks and self.switch is not None:
            narrowed = open_groups & (self.switch(user) >= 0)
            open_groups = torch.where(narrowed.any(1, keepdim=True), narrowed, open_groups)  # one must speak
        by_group = by_group.masked_fill(~open_groups, -torch.inf)
        everyone = by_group.new_zeros(by_group.shape[0], 1)
        if steering.given is not None:  # heads that stand for all groups are not among the given ones
            everyone = everyone - torch.inf
        offset = torch.cat([by_group, everyone], 1)[:, group]  # group -1 is the last column
        if steering.long_term and self.config.segments > 1:
            far = 2.0 * segment / (self.config.segments - 1) - 1.0
            offset = offset + steering.long_term * torch.where(segment >= 0, far, 0.0)
        return offset

    def head_scores(self, state: PriorHeadsState, candidates: Candidates, context: Context) -> Tensor:
        """Return (N, heads) what every head says of every candidate, -inf where it may not propose it."""
        vectors, offset = self.read(state, context)
        targets = self._targets(candidates)
        row = candidates.row
        heads = range(self.heads.num_heads)
        scores = torch.stack([(vectors[:, h].index_select(0, row) * targets).sum(1) for h in heads], 1)
        scores = scores + offset[row]
        if self.steering.masks:
            scores = scores.masked_fill(~self._proposes(candidates.item), -torch.inf)
        return scores

    def _proposes(self, item: Tensor) -> Tensor:
        """Return (N, heads) bool: may a head propose an item."""
        groups = self.items[item]
        return torch.cat([groups, groups.new_ones(groups.shape[0], 1)], 1)[:, self.group_of_head]

    def score(self, state: PriorHeadsState, candidates: Candidates, context: Context) -> RankerOutput:
        """Return the best of what the open heads say of each candidate, or the mean of it."""
        return RankerOutput(logits=self._merged(self.head_scores(state, candidates, context), 1))

    def _merged(self, scores: Tensor, dim: int) -> Tensor:
        """Reduce the axis of heads."""
        if self.steering.merge == "combine":
            return scores.amax(dim).clamp(min=REFUSED)
        allowed = scores.isfinite()
        mean = scores.masked_fill(~allowed, 0.0).sum(dim) / allowed.sum(dim).clamp(min=1)
        return torch.where(allowed.any(dim), mean, REFUSED)

    def sources(self, state: PriorHeadsState, candidates: Candidates, context: Context) -> Tensor:
        """Return (N,) the head that speaks loudest for each candidate, -1 where none may: why it is recommended."""
        best = self.head_scores(state, candidates, context).max(1)
        return torch.where(best.values.isfinite(), best.indices, -1)

    def catalogue_scores(self, state: PriorHeadsState, catalogue: Candidates, context: Context) -> Tensor:
        """Return (B, I): the logits that `score` gives every item of a catalogue, which is one row of I items."""
        scores = self._catalogue_heads(state, catalogue, context)
        return self._merged(scores, 1)

    def _catalogue_heads(self, state: PriorHeadsState, catalogue: Candidates, context: Context) -> Tensor:
        """Return (B, heads, I) what every head says of every item, -inf where it may not propose it."""
        vectors, offset = self.read(state, context)
        scores = torch.einsum("bhd,id->bhi", vectors, self._targets(catalogue)) + offset[:, :, None]
        return scores.masked_fill(~self._proposes(catalogue.item).T, -torch.inf) if self.steering.masks else scores

    def recommend(self, state: PriorHeadsState, catalogue: Candidates, context: Context, *, k: int) -> Merged:
        """Return the top `k` of a catalogue for each user, by a search per head; `catalogue` is one row of I items."""
        return merge_heads(self._catalogue_heads(state, catalogue, context), k)

    def forward(self, histories: History, candidates: Candidates, context: Context) -> RankerOutput:
        """Score candidates against histories."""
        return self.score(self.encode(histories), candidates, context)

    # -- training ------------------------------------------------------------------------------------------------

    def loss_along(self, batch: SequenceBatch) -> RankerOutput:
        """Return the losses of all heads over the windows of all requests."""
        future, negatives = batch.future, batch.negatives
        if future is None or negatives is None:
            raise DataError("batches of prior heads must carry a future window and negatives; load them with both")
        if batch.log_q is not None:
            raise SpecError("training.log_q must be false for prior heads, got true; leave it out")
        user = self.backbone.queries_along(batch)
        # scores of all heads, targets and negatives
        vectors = self._scaled(self.heads(user))
        targets, drawn = self._targets(future.items), self._targets(negatives)
        excluded = false_negatives(targets, drawn) | self._own(future, negatives.item)
        groups = self.target_groups(batch, future)
        losses: dict[str, Tensor] = {}
        scored = _Scored(vectors, targets, drawn, excluded, future.items.row)
        segment = future.step * self.config.segments // self.config.window
        heads = range(self.heads.num_heads)
        by_head = [self._terms(scored, future, h, segment, groups, batch) for h in heads]
        additive = self.config.heads.compose == "additive"
        zero = vectors.sum() * 0.0 + drawn.sum() * 0.0  # a batch without targets still gives every part a gradient
        if additive:
            count = self.config.segments
            losses["segments"] = zero + 0.5 * torch.stack(by_head[:count]).sum()
            losses["groups"] = zero + 0.5 * self._over_groups(by_head[count:], self.group_of_head[count:], groups)
        else:
            losses["heads"] = zero + self._over_groups(by_head, self.group_of_head, groups)
        if self.switch is not None:
            losses["switch"] = self.config.switch * self._switch_loss(user, future, groups)
        return RankerOutput(logits=user.new_zeros(0), aux_losses=losses)

    def target_groups(self, batch: SequenceBatch, future: FutureWindow) -> Tensor:
        """Return (W, C) bool: with which groups each target is compatible."""
        source = self.config.prior.source
        if source == "action":
            return self.actions[future.action]
        if source == "user":
            met = torch.cat([self.evidence.new_zeros(1, self.num_groups), self.evidence[batch.histories.item]])
            total = met.double().cumsum(0)
            seen = (total[batch.ends] - total[batch.histories.offsets[batch.row]]).to(met.dtype)
            return self.user_groups(seen, batch.prefix)[future.items.row]
        return self.items[future.items.item]

    def _own(self, future: FutureWindow, negative: Tensor) -> Tensor:
        """Return (W, M) bool: negatives that stand in the same window."""
        same = (future.items.item[:, None] == negative[None, :]).int()
        of_request = same.new_zeros(future.items.offsets.shape[0] - 1, negative.shape[0])
        return of_request.index_add(0, future.items.row, same)[future.items.row] > 0

    def _pool(self, group: int, batch: SequenceBatch) -> Tensor:
        """Return (M,) bool: negatives that heads of a group are held against."""
        assert batch.negatives is not None
        item = batch.negatives.item
        shared = torch.ones_like(item, dtype=torch.bool) if batch.pool is None else batch.pool < 0
        in_group = self.config.negatives == "group" and self.config.prior.source in ITEM_SOURCES
        if group < 0 or not in_group:
            return shared
        drawn_here = shared if batch.pool is None else shared | (batch.pool == group)
        return drawn_here & self.items[item, group]

    def _terms(
        self, scored: _Scored, future: FutureWindow, head: int, segment: Tensor, groups: Tensor, batch: SequenceBatch
    ) -> Tensor:
        """Return sum over p of lambda_p times the mean loss of a head over its targets at p."""
        s, c = int(self.segment_of_head[head]), int(self.group_of_head[head])
        mine = torch.ones_like(segment, dtype=torch.bool) if s < 0 else segment == s
        if c >= 0:
            mine = mine & groups[:, c]
        rows, pool = mine.nonzero().squeeze(1), self._pool(c, batch).nonzero().squeeze(1)
        request = scored.request[rows]
        asked = scored.vectors[:, head]
        positive = (asked.index_select(0, request) * scored.targets.index_select(0, rows)).sum(1)
        negative = (asked @ scored.negatives.index_select(0, pool).T).index_select(0, request)
        each = guarded_nce(positive, negative, scored.excluded[rows[:, None], pool[None, :]])
        step = future.step[rows]
        size = torch.bincount(step, minlength=self.config.window).clamp(min=1)
        return (each * (self.horizon / size)[step]).sum()

    def _over_groups(self, terms: list[Tensor], group: Tensor, targets: Tensor) -> Tensor:
        """Weigh the heads' losses by how many targets are compatible with their group."""
        if self.config.weighting == "frequency":
            count = targets.sum(0).float()
            weight = count / count.sum().clamp(min=1)
        else:
            weight = self.share.new_full((self.num_groups,), 1.0 / self.num_groups)
        weight = torch.cat([weight, weight.new_ones(1)])[group]  # a head of all groups counts once
        return (torch.stack(terms) * weight).sum()

    def _switch_loss(self, user: Tensor, future: FutureWindow, groups: Tensor) -> Tensor:
        """Teach which groups occur in the window at all; rare groups weigh as much as frequent ones."""
        assert self.switch is not None
        occurs = torch.zeros(user.shape[0], self.num_groups, device=user.device)
        occurs = (occurs.index_add(0, future.items.row, groups.float()) > 0).float()
        share = self.share.clamp(FEWEST, 1 - FEWEST)
        return F.binary_cross_entropy_with_logits(self.switch(user), occurs, pos_weight=(1 - share) / share)


class _Scored(NamedTuple):
    """Vectors that the heads of a batch are scored with."""

    vectors: Tensor  # (R, heads, D)
    targets: Tensor  # (W, D)
    negatives: Tensor  # (M, D)
    excluded: Tensor  # (W, M) bool
    request: Tensor  # (W,) int64


__all__ = ["PriorHeads", "PriorHeadsConfig", "PriorHeadsState", "Reading", "Steering"]
