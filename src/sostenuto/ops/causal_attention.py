"""Attention of tokens to what came before them, over jagged rows and without a matrix of all pairs.

Every mask of the causal and generative rankers has one form: query i of row b reads the first `visible[i]` keys of
that row and, apart from the row, a few keys of its own. Inclusive causal attention is visible = place + 1; a fake
token or a candidate reads the strictly earlier moments and itself. `masks` holds the same rules as dense matrices, as
definitions that tests compare with.

How it is computed: rows of like size are laid side by side, queries are cut into strips, and a strip meets only the
keys that some query of it may see, so the upper triangle is never touched. Scores exist for one tile at a time; the
backward pass makes them again. Memory is that of queries, keys and values, plus `TILE` scores per head (pointwise) or
one strip of scores (softmax).

This form is for long timelines and the generative rankers (SFGR, MetaGR, DFGR) and HSTU. Where softmax needs neither
biases nor own keys and windows are short, `bucketed_attention` is torch's own kernel; candidates that ask about
behaviours take `biased_attention` or `target_attention`.

Letters: B rows, N tokens, H heads, D and E widths of a key and of a value, G rows side by side.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from sostenuto.ops.jagged import lengths_to_offsets

Form = Literal["silu", "softmax"]
Mode = Literal["metagr", "sfgr", "dfgr", "dfgr_infer"]

TILE = 131_072  # scores of one tile per head: half a MiB each, so a few of them stay in the cache
MOST_QUERIES = 128  # of a strip; half of it is wasted above the diagonal
LEAST_QUERIES = 32
MOST_ROWS = 256  # side by side
BUCKET_WIDTH = 0.301  # of ln(seconds), published
NUM_BUCKETS = 129
LOWEST = -1e30  # a score of nothing; finite, so an empty row stays finite


class RelativeBias(NamedTuple):
    """An additive term of every score, from how far apart query and key are. Shared by all heads.

    score += position[clamp(query_position - key_position)] + time[bucket(query_time - key_time)]
    """

    position: Tensor  # (P,) entry of a distance in tokens; larger ones share the last
    time: Tensor | None  # (T,) entry of a bucket of seconds; None = order only
    query_position: Tensor  # (Nq,) int64
    key_position: Tensor  # (Nk,) int64
    query_time_s: Tensor  # (Nq,) int64
    key_time_s: Tensor  # (Nk,) int64

    def of_own(self, distance: int = 0) -> Tensor:
        """Return the term of a key of the query's own time, `distance` positions away."""
        term = self.position[min(distance, self.position.shape[0] - 1)]
        return term if self.time is None else term + self.time[0]


class OwnKey(NamedTuple):
    """One further key per query: the query's own token, or its neighbour's."""

    key: Tensor  # (Nq, H, D)
    value: Tensor  # (Nq, H, E)
    distance: int = 0  # positions between the query and it; it has the query's time


class _Strip(NamedTuple):
    first: int  # queries first .. last of every row of the group
    last: int
    full: int  # every query of the strip sees the first `full` keys
    end: int  # and none sees more than `end`


@dataclass(frozen=True, slots=True)
class _Group:
    query: Tensor  # (G, Lq) int64 positions in the flat queries; padding repeats a real one
    key: Tensor  # (G, Lk)
    visible: Tensor  # (G, Lq) int64; 0 for padding
    query_mask: Tensor | None  # (G, Lq) True = real; None = all
    key_mask: Tensor | None
    strips: tuple[_Strip, ...]


@dataclass(frozen=True, slots=True)
class AttentionPlan:
    """Who sees whom, arranged for the work; made once and shared by all layers and both passes."""

    num_queries: int
    num_keys: int
    groups: tuple[_Group, ...]

    @property
    def num_pairs(self) -> int:
        """Pairs of query and key that are allowed, own keys apart."""
        return sum(int(group.visible.sum()) for group in self.groups)

    @property
    def num_scores(self) -> int:
        """Scores that are computed: the allowed pairs, and what tiles and padding add."""
        return sum(len(g.query) * sum((s.last - s.first) * s.end for s in g.strips) for g in self.groups)


def plan_attention(query_offsets: Tensor, key_offsets: Tensor, visible: Tensor) -> AttentionPlan:
    """Arrange rows side by side and cut their queries into strips.

    Args:
        query_offsets: (B + 1,).
        key_offsets: (B + 1,).
        visible: (Nq,) int64, keys of its row that a query sees, counted from the row's first; best if rising.

    Raises:
        ValueError: a query would see more keys than its row has.
    """
    device = visible.device
    query_lengths = query_offsets[1:] - query_offsets[:-1]
    key_lengths = key_offsets[1:] - key_offsets[:-1]
    if visible.numel():
        limit = key_lengths
        if len(key_lengths) > 1:
            limit = torch.repeat_interleave(key_lengths, query_lengths, output_size=visible.shape[0])
        if bool(((visible > limit) | (visible < 0)).any()):
            raise ValueError(
                "visible must lie between 0 and the keys of the query's row, got "
                f"{int(visible.min())} .. {int(visible.max())}; count the keys before the query inside its own row"
            )
    asked, known = query_lengths.tolist(), key_lengths.tolist()
    rows = [b for b in range(len(asked)) if asked[b] and known[b]]
    rows.sort(key=lambda b: (known[b].bit_length(), asked[b]), reverse=True)
    groups, at = [], 0
    while at < len(rows):
        asked_most, known_most = asked[rows[at]], known[rows[at]]
        end = at + 1
        while end < len(rows) and end - at < MOST_ROWS:
            taller, wider = max(asked_most, asked[rows[end]]), max(known_most, known[rows[end]])
            if (end + 1 - at) * _strip_height(taller) * wider > TILE // 2 or 2 * asked[rows[end]] < taller:
                break
            asked_most, known_most, end = taller, wider, end + 1
        some = torch.tensor(rows[at:end], device=device)
        groups.append(_group(some, query_offsets, key_offsets, visible, asked_most, known_most))
        at = end
    return AttentionPlan(int(visible.shape[0]), int(key_offsets[-1]), tuple(groups))


def _strip_height(queries: int) -> int:
    """Low strips waste less above the diagonal, high ones do more at once: an eighth of the row, within limits."""
    return min(MOST_QUERIES, max(LEAST_QUERIES, LEAST_QUERIES * math.ceil(queries / (8 * LEAST_QUERIES))))


def _group(rows: Tensor, query_offsets: Tensor, key_offsets: Tensor, visible: Tensor, asked: int, known: int) -> _Group:
    def laid_out(offsets: Tensor, width: int) -> tuple[Tensor, Tensor | None]:
        place, first = torch.arange(width, device=rows.device), offsets[rows][:, None]
        if len(rows) == 1:  # nothing is padded
            return first + place, None
        length = offsets[rows + 1][:, None] - first
        mask = place < length
        index = first + torch.minimum(place, length - 1)
        return index, None if bool(mask.all()) else mask

    query, query_mask = laid_out(query_offsets, asked)
    key, key_mask = laid_out(key_offsets, known)
    sees = visible[query]
    least = most = sees
    if query_mask is not None:
        least, most = sees.masked_fill(~query_mask, known), sees.masked_fill(~query_mask, 0)
        sees = most
    height = _strip_height(asked)
    if 4 * (int(most.max()) - int(least.min())) <= known:  # no diagonal to speak of
        height = MOST_QUERIES
    firsts = range(0, asked, height)
    spare = -asked % height  # strips are of one height, the last one filled up
    lowest = torch.nn.functional.pad(least.amin(0), (0, spare), value=known).view(-1, height).amin(1).tolist()
    highest = torch.nn.functional.pad(most.amax(0), (0, spare)).view(-1, height).amax(1).tolist()
    strips = tuple(
        _Strip(first, min(first + height, asked), low, high)
        for first, low, high in zip(firsts, lowest, highest, strict=True)
        if high > 0
    )
    return _Group(query, key, sees, query_mask, key_mask, strips)


def causal_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    plan: AttentionPlan,
    *,
    form: Form = "silu",
    scale: float = 1.0,
    normaliser: float = 1.0,
    bias: RelativeBias | None = None,
    own: Sequence[OwnKey] = (),
) -> Tensor:
    """Sum the values of what each query sees.

    silu:    o_i = sum_j silu(scale q_i k_j + bias_ij) v_j / normaliser
    softmax: o_i = sum_j softmax_j(scale q_i k_j + bias_ij) v_j

    over the first `visible[i]` keys of its row and its own keys. A query that sees nothing gives zeros. The
    normaliser must not depend on the row: a score would change with what it cannot see.

    Args:
        query: (Nq, H, D).
        key: (Nk, H, D).
        value: (Nk, H, E).
        plan: of `plan_attention`.
        form: pointwise (HSTU) or softmax.
        scale: factor of the products.
        normaliser: constant divisor of the pointwise form.
        bias: additive term of the scores.
        own: further keys, one per query each.

    Returns:
        (Nq, H, E).
    """
    tables = (None, None) if bias is None else (bias.position, bias.time)
    out, total = _Blocked.apply(query, key, value, *tables, plan, form, scale, bias)  # type: ignore[no-untyped-call]
    if form == "silu":
        for one in own:
            weight = torch.nn.functional.silu(_own_score(query, one, scale, bias))
            out = out + weight[..., None] * one.value
        result: Tensor = out / normaliser
        return result
    if own:
        scores = torch.stack([total, *(_own_score(query, one, scale, bias) for one in own)], 2)
        share = scores.softmax(2)
        out = out * share[:, :, :1]
        for number, one in enumerate(own, 1):
            out = out + share[:, :, number : number + 1] * one.value
    whole: Tensor = out
    return whole


def _own_score(query: Tensor, one: OwnKey, scale: float, bias: RelativeBias | None) -> Tensor:
    score = (query * one.key).sum(2) * scale
    return score if bias is None else score + bias.of_own(one.distance)


def time_bucket(gap_s: Tensor) -> Tensor:
    """Return floor(ln(max(gap, 1)) / 0.301) of int32 seconds as int32; what lies ahead counts as now.

    The published bucket takes |gap| and stops at 128; here no key lies ahead, and 2^31 seconds are bucket 71.
    """
    return gap_s.clamp(min=1).float().log_().mul_(1.0 / BUCKET_WIDTH).int()


class _Biases:
    """The bias of one group, a tile at a time, and the sums of its gradients.

    Neighbouring queries of one place and time (a request's candidates, a fake token and its real twin) share a row.
    """

    def __init__(self, bias: RelativeBias, group: _Group) -> None:
        self.position, self.time = bias.position, bias.time
        position, time = bias.query_position[group.query], bias.query_time_s[group.query]
        self.row: Tensor | None = None  # (Lq,) of each query; None = one each
        if len(group.query) == 1:
            opens = (position[0, 1:] != position[0, :-1]) | (time[0, 1:] != time[0, :-1])
            if int(opens.sum()) < 3 * position.shape[1] // 4:
                self.row = torch.cat([opens.new_zeros(1), opens]).cumsum(0)
                self.rows = self.row.tolist()
                first = torch.cat([opens.new_ones(1), opens]).nonzero().squeeze(1)
                position, time = position[:, first], time[:, first]
        self.query_position = position[:, :, None].to(torch.int32)  # half the bytes of int64, and tiles are many
        self.key_position = bias.key_position[group.key][:, None, :].to(torch.int32)
        if bias.time is not None:
            key_time = bias.key_time_s[group.key]
            since = key_time[:, :1]  # seconds from the row's first key fit int32
            self.query_time = (time - since)[:, :, None].to(torch.int32)
            self.key_time = (key_time - since)[:, None, :].to(torch.int32)

    def _rows(self, strip: _Strip) -> slice:
        if self.row is None:
            return slice(strip.first, strip.last)
        return slice(self.rows[strip.first], self.rows[strip.last - 1] + 1)

    def places(self, strip: _Strip, first: int, last: int) -> list[Tensor]:
        """Return the flat entries of each table."""
        rows, columns = self._rows(strip), slice(first, last)
        distance = self.query_position[:, rows] - self.key_position[:, :, columns]
        found = [distance.clamp_(0, self.position.shape[0] - 1).view(-1)]
        if self.time is not None:
            bucket = time_bucket(self.query_time[:, rows] - self.key_time[:, :, columns])
            found.append(bucket.clamp_(max=self.time.shape[0] - 1).view(-1) if len(self.time) < NUM_BUCKETS else bucket)
        return found

    def values(self, places: list[Tensor], strip: _Strip, keys: int) -> Tensor:
        """Return the (G, 1, queries or 1, keys) bias of a tile."""
        term = self.position.index_select(0, places[0])
        if self.time is not None:
            term += self.time.index_select(0, places[1].view(-1))
        if self.row is None or term.shape[0] == keys:  # a row each, or one for the whole strip
            return term.view(len(self.query_position), 1, -1, keys)
        shared = self.row[strip.first : strip.last] - self.rows[strip.first]
        return term.view(-1, keys).index_select(0, shared)[None, None]

    def add_gradients(self, tables: Sequence[Tensor | None], places: list[Tensor], strip: _Strip, grad: Tensor) -> None:
        """Add what a (G, H, queries, keys) gradient of scores says of the tables."""
        by_pair = grad.sum(1)
        if self.row is not None:
            rows = self._rows(strip)
            shared = self.row[strip.first : strip.last] - rows.start
            by_pair = by_pair.new_zeros(rows.stop - rows.start, grad.shape[3]).index_add_(0, shared, by_pair[0])
        for table, place in zip(tables, places, strict=False):  # no table of times, no places in it
            assert table is not None
            table.scatter_add_(0, place.view(-1).long(), by_pair.view(-1).to(table.dtype))


class _Tile(NamedTuple):
    strip: _Strip
    first: int  # keys first .. last
    last: int


def _tiles(group: _Group, strip: _Strip, form: Form) -> list[_Tile]:
    """Cut the keys of a strip so that a tile stays in the cache; a softmax needs its whole strip at once."""
    wanted = strip.end
    if form == "silu":
        wanted = max(64, TILE // (len(group.query) * (strip.last - strip.first)))
    pieces = math.ceil(strip.end / wanted)
    edges = [strip.end * piece // pieces for piece in range(pieces + 1)]
    return [_Tile(strip, a, b) for a, b in itertools.pairwise(edges)]


def _laid(flat: Tensor, index: Tensor) -> Tensor:
    """Take (G, L) places of a flat (N, H, D) tensor, as (G * H, L, D); of a single row nothing is copied."""
    rows, width = index.shape
    if rows == 1:
        return flat.narrow(0, int(index[0, 0]), width).transpose(0, 1)
    return flat[index].permute(0, 2, 1, 3).reshape(rows * flat.shape[1], width, flat.shape[2])


def _put_back(laid: Tensor, flat: Tensor, index: Tensor, mask: Tensor | None) -> None:
    """Write (G * H, L, D) to the places of `flat` that it came from."""
    rows, width = index.shape
    if rows == 1:
        flat[int(index[0, 0]) :][:width] = laid.transpose(0, 1)
        return
    values = laid.reshape(rows, flat.shape[1], width, flat.shape[2]).permute(0, 2, 1, 3)
    if mask is None:
        flat[index] = values
    else:
        flat[index[mask]] = values[mask]


class _Hidden(NamedTuple):
    """The pairs of a tile that are not seen; they lie in its last columns."""

    first: int  # column
    seen: Tensor  # (G, 1, queries, keys from `first` on)

    def fill(self, by_head: Tensor, nothing: float) -> None:
        """Put `nothing` in their places of a (G, H, queries, keys) tile."""
        corner = by_head[..., self.first :]
        if nothing:
            corner.masked_fill_(~self.seen, nothing)
        else:
            corner.mul_(self.seen.to(corner.dtype))  # several times quicker than a fill through a broadcast mask


class _Scores:
    """Scores of one tile at a time, in one buffer."""

    def __init__(self, group: _Group, query: Tensor, key: Tensor, bias: RelativeBias | None, form: Form) -> None:
        self.group, self.heads = group, query.shape[0] // len(group.query)
        key_t = key.transpose(1, 2)
        self.query, self.key_t = query, key_t if len(group.strips) == 1 else key_t.contiguous()
        self.biases = None if bias is None else _Biases(bias, group)
        self.nothing = 0.0 if form == "silu" else LOWEST

    def of(self, tile: _Tile) -> tuple[Tensor, _Hidden | None, list[Tensor] | None]:
        """Return (G * H, queries, keys) scores, the pairs that are not seen, and the bias' places."""
        strip, rows = tile.strip, len(self.group.query)
        score = torch.bmm(self.query[:, strip.first : strip.last], self.key_t[:, :, tile.first : tile.last])
        by_head = score.view(rows, self.heads, *score.shape[1:])
        places = None
        if self.biases is not None:
            places = self.biases.places(strip, tile.first, tile.last)
            by_head += self.biases.values(places, strip, score.shape[2]).to(score.dtype)
        hidden = None
        if tile.last > strip.full:  # the tile reaches the diagonal
            first = max(strip.full, tile.first)
            at = torch.arange(first, tile.last, device=score.device)
            seen = at < self.group.visible[:, strip.first : strip.last, None]
            hidden = _Hidden(first - tile.first, seen[:, None])
            hidden.fill(by_head, self.nothing)
        return score, hidden, places


class _Blocked(torch.autograd.Function):
    """Both forms, tile by tile; the backward pass makes every tile anew."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        position: Tensor | None,
        time: Tensor | None,
        plan: AttentionPlan,
        form: Form,
        scale: float,
        bias: RelativeBias | None,
    ) -> tuple[Tensor, Tensor]:
        heads, wide = query.shape[1], value.shape[2]
        out = query.new_zeros(query.shape[0], heads, wide)
        total = query.new_full((query.shape[0], heads) if form == "softmax" else (0, heads), LOWEST)
        for group in plan.groups:
            laid = _laid(query, group.query) * scale
            values = _laid(value, group.key)
            scores = _Scores(group, laid, _laid(key, group.key), bias, form)
            summed = values.new_zeros(laid.shape[0], laid.shape[1], wide)
            logs = values.new_full((laid.shape[0], laid.shape[1], 1), LOWEST)
            for strip in group.strips:
                rows = slice(strip.first, strip.last)
                for tile in _tiles(group, strip, form):
                    score, _, _ = scores.of(tile)
                    if form == "silu":
                        torch.nn.functional.silu(score, inplace=True)
                    else:
                        logs[:, rows] = score.logsumexp(2, keepdim=True)
                        score = score.sub_(logs[:, rows]).exp_()
                    summed[:, rows].baddbmm_(score, values[:, tile.first : tile.last])
            if form == "softmax":
                # a query that sees nothing is not uniform over what it cannot see
                unseen = (group.visible == 0)[:, None, :, None].expand(-1, heads, -1, -1).reshape(logs.shape)
                logs.masked_fill_(unseen, LOWEST)
                summed.masked_fill_(unseen, 0.0)
                _put_back(logs, total[:, :, None], group.query, group.query_mask)
            _put_back(summed, out, group.query, group.query_mask)
        ctx.save_for_backward(query, key, value, position, time, *((out, total) if form == "softmax" else ()))
        ctx.plan, ctx.form, ctx.scale = plan, form, scale
        ctx.places = None if bias is None else bias[2:]
        return out, total

    @staticmethod
    def backward(ctx: Any, out_grad: Tensor, total_grad: Tensor) -> Any:
        query, key, value, position, time, *rest = ctx.saved_tensors
        form: Form = ctx.form
        bias = None if position is None else RelativeBias(position, time, *ctx.places)
        query_grad, key_grad, value_grad = (torch.zeros_like(t) for t in (query, key, value))
        table_grads = [None if table is None else torch.zeros_like(table) for table in (position, time)]
        for group in ctx.plan.groups:
            laid = _laid(query, group.query) * ctx.scale
            keys, values = _laid(key, group.key), _laid(value, group.key)
            values_t = values.transpose(1, 2).contiguous()
            scores = _Scores(group, laid, keys, bias, form)
            from_out = _laid(out_grad, group.query)
            if group.query_mask is not None:  # padding repeats a real query: its gradient counts once
                padded = ~group.query_mask[:, None].expand(-1, scores.heads, -1).reshape(from_out.shape[:2])
                from_out[padded] = 0.0
            laid_grad, keys_grad, values_grad = torch.zeros_like(laid), *map(torch.zeros_like, (keys, values))
            keys_grad_t, values_grad_t = (t.transpose(1, 2).contiguous() for t in (keys_grad, values_grad))
            laid_t, from_out_t = laid.transpose(1, 2).contiguous(), from_out.transpose(1, 2).contiguous()
            if form == "softmax":
                logs = _laid(rest[1][:, :, None], group.query)
                level = (from_out * _laid(rest[0], group.query)).sum(2, keepdim=True)
                level -= _laid(total_grad[:, :, None], group.query)
                unseen = (group.visible == 0)[:, None, :, None].expand(-1, scores.heads, -1, -1).reshape(logs.shape)
                logs.masked_fill_(unseen, -LOWEST)  # weights become 0
            for strip in group.strips:
                rows = slice(strip.first, strip.last)
                for tile in _tiles(group, strip, form):
                    columns = slice(tile.first, tile.last)
                    score, hidden, places = scores.of(tile)
                    grad = torch.bmm(from_out[:, rows], values_t[:, :, columns])
                    if form == "silu":
                        weight = torch.nn.functional.silu(score)
                        grad = torch.ops.aten.silu_backward(grad, score)
                        if hidden is not None:
                            hidden.fill(grad.view(len(group.query), scores.heads, *grad.shape[1:]), 0.0)
                    else:
                        weight = score.sub_(logs[:, rows]).exp_()
                        grad = grad.sub_(level[:, rows]).mul_(weight)
                    values_grad_t[:, :, columns].baddbmm_(from_out_t[:, :, rows], weight)
                    keys_grad_t[:, :, columns].baddbmm_(laid_t[:, :, rows], grad)
                    laid_grad[:, rows].baddbmm_(grad, keys[:, columns])
                    if scores.biases is not None and places is not None:
                        by_head = grad.view(len(group.query), scores.heads, *grad.shape[1:])
                        scores.biases.add_gradients(table_grads, places, strip, by_head)
            _put_back(laid_grad.mul_(ctx.scale), query_grad, group.query, group.query_mask)
            _put_back(keys_grad_t.transpose(1, 2), key_grad, group.key, group.key_mask)
            _put_back(values_grad_t.transpose(1, 2), value_grad, group.key, group.key_mask)
        return query_grad, key_grad, value_grad, *table_grads, None, None, None, None


def masks(
    mode: Mode, lengths: Tensor, *, sessions: Tensor | None = None, num_history: int, num_candidates: int = 0
) -> Tensor:
    """Return who may see whom as a dense matrix: the definition, for tests and small sizes.

    Tokens, in order:
        dfgr:        real tokens of the history, then its fake tokens
        sfgr:        real tokens of the history, then candidates; `dfgr_infer` is the same
        metagr:      item and action of every behaviour in turn, then candidates

    A real token sees the real ones of strictly earlier sessions, and itself. A fake token, and a candidate, sees the
    same, and itself in place of its real twin. In the interleaved form an item sees all tokens of strictly earlier
    sessions and itself, an action its own item too. Without sessions every behaviour is one of its own, and this is
    the plain causal mask.

    Args:
        mode: which ranker.
        lengths: (B,) real behaviours.
        sessions: (B, num_history) rising numbers; behaviours of one session have no order.
        num_history: padded length.
        num_candidates: of every row.

    Returns:
        (B, tokens, tokens) bool, True = query (row) may see key (column). Padding sees and is seen by nothing.
    """
    if mode not in {"metagr", "sfgr", "dfgr", "dfgr_infer"}:
        raise ValueError(f"mode must be one of metagr, sfgr, dfgr, dfgr_infer, got {mode!r}; name one of them")
    rows = lengths.shape[0]
    place = torch.arange(num_history, device=lengths.device)
    session = place.expand(rows, -1) if sessions is None else sessions
    real = place < lengths[:, None]  # (B, N)
    both = real[:, :, None] & real[:, None, :]
    earlier = (session[:, None, :] < session[:, :, None]) & both
    itself = torch.eye(num_history, dtype=torch.bool, device=lengths.device) & both
    none = torch.zeros_like(both)
    asks = torch.ones(rows, num_candidates, 1, dtype=torch.bool, device=lengths.device)
    alone = torch.eye(num_candidates, dtype=torch.bool, device=lengths.device).expand(rows, -1, -1)
    unseen = torch.zeros(rows, 1, num_candidates, dtype=torch.bool, device=lengths.device)
    if mode == "dfgr":
        return torch.cat([torch.cat([earlier | itself, none], 2), torch.cat([earlier, itself], 2)], 1)
    history, known = earlier | itself, real
    if mode == "metagr":
        item = torch.stack([earlier | itself, earlier], 3).flatten(2)  # keys item, action in turn
        action = torch.stack([earlier | itself, earlier | itself], 3).flatten(2)
        history = torch.stack([item, action], 2).flatten(1, 2)
        known = real.repeat_interleave(2, 1)
    whole = torch.cat([history, unseen.expand(-1, history.shape[1], -1)], 2)
    return torch.cat([whole, torch.cat([asks & known[:, None, :], alone], 2)], 1)


def offsets_of_rows(row: Tensor, num_rows: int) -> Tensor:
    """Return (num_rows + 1,) row starts of tokens whose rows never decrease."""
    return lengths_to_offsets(torch.bincount(row, minlength=num_rows))


__all__ = [
    "AttentionPlan",
    "Form",
    "Mode",
    "OwnKey",
    "RelativeBias",
    "causal_attention",
    "masks",
    "offsets_of_rows",
    "plan_attention",
    "time_bucket",
]
