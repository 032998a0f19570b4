"""Random feature specifications and request batches, and the changes to them that laws speak of."""

from __future__ import annotations

import itertools
from dataclasses import fields, replace

import numpy as np
import torch
from hypothesis import strategies as st
from tests.content.invented import content_arrays, last_layer_arrays

from sostenuto.features.view import HistoryView, view_features
from sostenuto.schema.content import ItemContent
from sostenuto.schema.features import CONTENT_KINDS, ContentField, FeatureSpec, Field
from sostenuto.schema.histories import Candidates, Context, History, RequestBatch, SequenceBatch

DAY_MS = 86_400_000
NOW_MS = 1_500_000_000_000

PREPARED = FeatureSpec(
    num_items=40,
    num_item_rows=30,
    categories=(
        Field(name="department", kind="categorical", size=5),
        Field(name="type", kind="categorical", size=9),
    ),
    num_actions=4,
    num_places=5,
    item_fields=(
        Field(name="brand", kind="categorical", size=6),
        Field(name="tags", kind="multi", size=7, width=3),
        Field(name="shape", kind="vector", width=4),
    ),
    behaviour_fields=(
        Field(name="channel", kind="categorical", size=4),
        Field(name="discount", kind="numeric", mean=1.0, std=2.0),
    ),
    candidate_fields=(
        Field(name="display", kind="categorical", size=5),
        Field(name="price", kind="numeric", mean=3.0, std=2.0),
    ),
    context_fields=(
        Field(name="device", kind="categorical", size=4),
        Field(name="age", kind="numeric", mean=40.0, std=10.0),
    ),
    has_value=True,
    value_mean=1.0,
    value_std=0.5,
    content=(
        ContentField(name="image", vector_dim=3),
        ContentField(name="text", vector_dim=6, num_tokens=4, num_token_ids=11, token_dim=6, has_states=True),
    ),
)
BARE = FeatureSpec(num_items=40, num_item_rows=30)


def view_of(prepared: FeatureSpec, *, match: bool) -> FeatureSpec:
    return view_features(prepared, HistoryView(match=match))


@st.composite
def specs(draw: st.DrawFn) -> FeatureSpec:
    """Draw which columns the data have."""
    some = {
        name: tuple(f for f in getattr(PREPARED, name) if draw(st.booleans()))
        for name in ("item_fields", "behaviour_fields", "candidate_fields", "context_fields")
    }
    spec = replace(
        PREPARED,
        **some,
        categories=PREPARED.categories[: draw(st.integers(0, 2))],
        num_actions=draw(st.sampled_from([2, 4])),
        num_places=draw(st.sampled_from([2, 5])),
        has_value=draw(st.booleans()),
        content=PREPARED.content[: draw(st.integers(0, 2))],
    )
    return view_of(spec, match=draw(st.booleans()))


def invented_content(
    spec: FeatureSpec, kinds: tuple[str, ...] = CONTENT_KINDS, seed: int = 0
) -> dict[str, ItemContent]:
    """Invent the content that a specification names; one kind as float16, the next as int8 codes, and so on."""
    invented = {}
    for at, field in enumerate(spec.content):
        arrays = content_arrays(field, spec.num_items, seed + at)
        there = field.kinds & set(kinds)
        if not there & {"tokens", "states"}:
            arrays = {name: arrays[name] for name in ("known", "vectors")}
        if "states" not in there:
            arrays.pop("states", None)
        if at % 2:
            scale = np.maximum(np.abs(arrays["vectors"]).max(1) / 127, 1e-6).astype(np.float32)
            codes = np.rint(arrays["vectors"] / scale[:, None]).astype(np.int8)
            arrays |= {"vectors": codes, "scale": scale}
        layer = last_layer_arrays(field.token_dim, np.random.default_rng(seed)) if "states" in there else {}
        invented[field.name] = ItemContent(
            name=field.name,
            arrays_hash=f"{seed}-{field.name}",
            **{name: torch.from_numpy(array) for name, array in arrays.items()},
            last_layer={name: torch.from_numpy(array) for name, array in layer.items()},
            heads=2 if layer else 0,
        )
    return invented


@st.composite
def row_lengths(draw: st.DrawFn) -> list[tuple[int, int]]:
    """Draw (behaviours, candidates) per request: an empty history, one behaviour and one candidate among them."""
    drawn = draw(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 5)), min_size=1, max_size=3))
    return [(0, 2), *drawn, (1, 1)]


def _columns(some: tuple[Field, ...], num: int, rng: np.random.Generator) -> dict[str, torch.Tensor]:
    columns = {}
    for f in some:
        shape = (num, f.width) if f.kind in {"multi", "vector"} else (num,)
        if f.kind in {"categorical", "multi"}:
            columns[f.name] = torch.from_numpy(rng.integers(0, f.size, shape))
        else:
            numbers = rng.normal(f.mean, f.std, shape).astype(np.float32)
            if f.kind == "numeric" and not f.name.startswith("popularity"):  # a view's own numbers are never missing
                numbers[rng.random(num) < 0.2] = np.nan
            columns[f.name] = torch.from_numpy(numbers)
    return columns


def make_batch(spec: FeatureSpec, lengths: list[tuple[int, int]], seed: int) -> RequestBatch:
    """Make a batch of requests with the given numbers of behaviours and candidates.

    Categories and item fields are functions of the item, as in prepared data. Times come in few distinct moments, so
    that ties are common; items reach beyond those that own a row, and the unknown item occurs.
    """
    rng = np.random.default_rng(seed)
    past = np.array([p for p, _ in lengths])
    asked = np.array([c for _, c in lengths])
    num_past, num_asked, num_rows = int(past.sum()), int(asked.sum()), len(lengths)
    item_category = torch.from_numpy(
        np.stack([rng.integers(0, f.size, spec.num_items) for f in spec.categories], 1)
        if spec.categories
        else np.zeros((spec.num_items, 0), np.int64)
    )
    item_columns = _columns(spec.item_fields, spec.num_items, rng)
    past_item = torch.from_numpy(rng.integers(1, spec.num_items, num_past))
    asked_item = torch.from_numpy(rng.integers(1, spec.num_items, num_asked))
    row = np.repeat(np.arange(num_rows), past)
    days = rng.integers(1, 6, num_past) ** 3
    time_ms = NOW_MS - days * DAY_MS - (days % 3) * 3_600_000
    order = np.lexsort((time_ms, row))

    def offsets(counts: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.concatenate(([0], np.cumsum(counts))).astype(np.int64))

    value = rng.gamma(1.0, 2.0, num_past).astype(np.float32)
    value[rng.random(num_past) < 0.2] = np.nan
    labels = (rng.random(num_asked) < 0.5).astype(np.float32)
    labels[:2] = [0.0, 1.0][:num_asked]
    return RequestBatch(
        histories=History(
            offsets=offsets(past),
            item=past_item,
            category=item_category[past_item],
            time_ms=torch.from_numpy(time_ms[order]),
            action=torch.from_numpy(rng.integers(0, spec.num_actions, num_past)),
            value=torch.from_numpy(value),
            place=torch.from_numpy(rng.integers(0, spec.num_places, num_past)),
            fields={name: column[past_item] for name, column in item_columns.items()}
            | _columns(spec.behaviour_fields, num_past, rng),
        ),
        candidates=Candidates(
            offsets=offsets(asked),
            item=asked_item,
            category=item_category[asked_item],
            match=torch.from_numpy(rng.gamma(0.5, 1.5, (num_asked, len(spec.match))).astype(np.float32)),
            fields={name: column[asked_item] for name, column in item_columns.items()}
            | _columns(spec.candidate_fields, num_asked, rng),
        ),
        context=Context(
            time_ms=torch.from_numpy(NOW_MS + rng.integers(0, DAY_MS, num_rows)),
            place=torch.from_numpy(rng.integers(0, spec.num_places, num_rows)),
            fields=_columns(spec.context_fields, num_rows, rng),
        ),
        labels=torch.from_numpy(labels),
        list_id=torch.from_numpy(rng.integers(0, 2, num_asked)),
        request=torch.arange(num_rows),
        user=torch.arange(num_rows) + 2,
    )


def make_sequences(spec: FeatureSpec, lengths: list[int], seed: int) -> SequenceBatch:
    """Make timelines of given lengths with a request at some of their moments, the first and the last among them."""
    rng = np.random.default_rng([seed, 1])
    histories = make_batch(spec, [(length, 1) for length in lengths], seed).histories
    row, prefix, time_ms = [], [], []
    for r, (a, z) in enumerate(itertools.pairwise(histories.offsets.tolist())):
        moments = histories.time_ms[a:z].tolist()
        bounds = [n for n in range(z - a) if n == 0 or moments[n] > moments[n - 1]] + [z - a]
        for n, bound in enumerate(bounds):
            if n in {0, len(bounds) - 1} or rng.random() < 0.5:
                row.append(r)
                prefix.append(bound)
                time_ms.append(moments[bound] if bound < z - a else NOW_MS)
    asked = make_batch(spec, [(0, int(count)) for count in rng.integers(1, 4, len(row))], seed + 1)
    return SequenceBatch(
        histories=histories,
        row=torch.tensor(row),
        prefix=torch.tensor(prefix),
        candidates=asked.candidates,
        context=replace(asked.context, time_ms=torch.tensor(time_ms)),
        labels=asked.labels,
        list_id=asked.list_id,
        request=asked.request,
        user=torch.tensor(row) + 2,
    )


def one_by_one(batch: SequenceBatch) -> RequestBatch:
    """Return the requests of timelines, each with a history of its own."""
    ends = batch.ends.tolist()
    positions = torch.cat([torch.arange(e - int(p), e) for e, p in zip(ends, batch.prefix, strict=True)])
    return RequestBatch(
        histories=take_history(batch.histories, positions, batch.prefix),
        candidates=batch.candidates,
        context=batch.context,
        labels=batch.labels,
        list_id=batch.list_id,
        request=batch.request,
        user=batch.user,
    )


@st.composite
def batches(draw: st.DrawFn, spec: FeatureSpec) -> RequestBatch:
    """Draw a small batch for a given specification."""
    return make_batch(spec, draw(row_lengths()), draw(st.integers(0, 2**20)))


def _taken(value, positions: torch.Tensor):
    """Take flat positions of every column of a history or of candidates (offsets left to the caller)."""
    changed = {}
    for f in fields(value):
        column = getattr(value, f.name)
        if f.name == "fields":
            changed["fields"] = {name: c[positions] for name, c in column.items()}
        elif f.name != "offsets":
            changed[f.name] = column[positions]
    return changed


def take_history(histories: History, positions: torch.Tensor, lengths: torch.Tensor) -> History:
    """Return a history of the behaviours at flat positions, in rows of the given lengths."""
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    return History(offsets=offsets, **_taken(histories, positions))


def _positions(offsets: torch.Tensor, rows: list[int]) -> torch.Tensor:
    return torch.cat([torch.arange(int(offsets[r]), int(offsets[r + 1])) for r in rows])


def _kept_candidates(batch: RequestBatch, positions: torch.Tensor, lengths: torch.Tensor) -> RequestBatch:
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    return replace(
        batch,
        candidates=Candidates(offsets=offsets, **_taken(batch.candidates, positions)),
        labels=batch.labels[positions],
        list_id=batch.list_id[positions],
    )


def take_rows(batch: RequestBatch, rows: list[int]) -> RequestBatch:
    """Return some requests of a batch, in the given order."""
    history, candidates, context = batch.histories, batch.candidates, batch.context
    at = torch.tensor(rows)
    smaller = _kept_candidates(batch, _positions(candidates.offsets, rows), candidates.lengths[at])
    return replace(
        smaller,
        histories=take_history(history, _positions(history.offsets, rows), history.lengths[at]),
        context=Context(
            time_ms=context.time_ms[at],
            place=context.place[at],
            fields={name: column[at] for name, column in context.fields.items()},
        ),
        request=batch.request[at],
        user=batch.user[at],
    )


def take_candidates(batch: RequestBatch, positions: torch.Tensor) -> RequestBatch:
    """Keep the candidates at flat positions, which rise row by row."""
    row = batch.candidates.row[positions]
    return _kept_candidates(batch, positions, torch.bincount(row, minlength=len(batch.user)))


def permute_candidates(batch: RequestBatch, seed: int) -> tuple[RequestBatch, torch.Tensor]:
    """Shuffle the candidates inside each request; also return where each one stood before."""
    generator = torch.Generator().manual_seed(seed)
    offsets = batch.candidates.offsets.tolist()
    parts = [a + torch.randperm(b - a, generator=generator) for a, b in itertools.pairwise(offsets)]
    positions = torch.cat(parts)
    return take_candidates(batch, positions), positions


def shuffle_moments(histories: History, seed: int) -> History:
    """Shuffle behaviours that share user and time."""
    rng = np.random.default_rng(seed)
    row = np.repeat(np.arange(histories.num_rows), histories.lengths.numpy())
    order = np.lexsort((rng.random(len(row)), histories.time_ms.numpy(), row))
    return take_history(histories, torch.from_numpy(order), histories.lengths)


def split_history(histories: History, share: float) -> tuple[History, History]:
    """Cut every row at a moment: what came before, and the later events."""
    early, late = [], []
    early_lengths, late_lengths = [], []
    for r in range(histories.num_rows):
        a, b = int(histories.offsets[r]), int(histories.offsets[r + 1])
        cut = a + int((b - a) * share)
        while a < cut < b and histories.time_ms[cut] == histories.time_ms[cut - 1]:
            cut += 1
        early.append(torch.arange(a, cut))
        late.append(torch.arange(cut, b))
        early_lengths.append(cut - a)
        late_lengths.append(b - cut)
    return (
        take_history(histories, torch.cat(early), torch.tensor(early_lengths)),
        take_history(histories, torch.cat(late), torch.tensor(late_lengths)),
    )


def padded_with_junk(histories: History, spec: FeatureSpec, seed: int) -> History:
    """Lay a history out as padded tensors, write junk behind the mask, and read it back."""
    rng = np.random.default_rng(seed)
    num_rows, longest = histories.num_rows, int(histories.lengths.max()) + 3
    mask = torch.zeros(num_rows, longest, dtype=torch.bool)
    for r, length in enumerate(histories.lengths.tolist()):
        mask[r, torch.from_numpy(np.sort(rng.permutation(longest)[:length]))] = True

    def laid_out(column: torch.Tensor) -> torch.Tensor:
        junk = torch.from_numpy(rng.integers(0, 4, (num_rows, longest, *column.shape[1:]))).to(column.dtype)
        junk[mask] = column
        return junk

    return History.from_padded(
        mask=mask,
        item=laid_out(histories.item),
        category=laid_out(histories.category),
        time_ms=laid_out(histories.time_ms),
        action=laid_out(histories.action),
        value=laid_out(histories.value),
        place=laid_out(histories.place),
        fields={name: laid_out(column) for name, column in histories.fields.items()},
    )
