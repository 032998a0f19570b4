"""The table of measurements. Each makes its data from a seed and returns the two calls that are timed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sostenuto.bench.timing import Timing, time_in_turns
from sostenuto.schema.errors import SpecError, did_you_mean

Call = Callable[[], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One named pair of calls."""

    name: str
    ours: str  # what is measured, sizes included
    plain: str  # what it is measured against
    make: Callable[[int], tuple[Call, Call]]  # seed -> ours, plain


def _gauc(seed: int) -> tuple[Call, Call]:
    import numpy as np
    from scipy.stats import rankdata

    from sostenuto.evaluation.gauc import gauc

    rng = np.random.default_rng(seed)
    rows, groups = 200_000, 4_000
    label = (rng.random(rows) < 0.2).astype(np.float32)
    score = np.round(rng.normal(size=rows) + label, 2)
    group = rng.integers(0, groups, rows)

    def plain() -> float:
        order = np.argsort(group, kind="stable")
        total = weight = 0.0
        for at in np.split(order, np.flatnonzero(np.diff(group[order])) + 1):
            y, positives = label[at], int(label[at].sum())
            if 0 < positives < len(at):
                wins = rankdata(score[at])[y > 0].sum() - positives * (positives + 1) / 2
                total += len(at) * wins / (positives * (len(at) - positives))
                weight += len(at)
        return total / weight

    return lambda: gauc(label, score, group), plain


def _match(seed: int) -> tuple[Call, Call]:
    import numpy as np

    from sostenuto.features.match import DAY_MS, HALF_LIVES_DAYS, MatchIndex

    rng = np.random.default_rng(seed)
    users, length, candidates = 32, 1_000, 60
    offsets = np.arange(users + 1) * length
    time_ms = np.sort(rng.integers(0, 300 * DAY_MS, (users, length)), axis=1).ravel()
    key = rng.integers(2, 5_000, users * length)
    row = np.repeat(np.arange(users), candidates)
    wanted = rng.integers(2, 5_000, users * candidates)
    moment = np.full(users, 301 * DAY_MS)

    def plain() -> object:
        answers = []
        for user in range(users):
            met: dict[int, list[int]] = {}
            for at in range(offsets[user], offsets[user + 1]):
                met.setdefault(int(key[at]), []).append(int(time_ms[at]))
            for item in wanted[row == user].tolist():
                ages = [(int(moment[user]) - t) / DAY_MS for t in met.get(item, [])]
                decayed = [sum(0.5 ** (age / half) for age in ages) for half in HALF_LIVES_DAYS]
                answers.append((len(ages), min(ages, default=-1.0), *decayed))
        return answers

    return lambda: MatchIndex.build(offsets, time_ms, [key]).features(row, moment, [wanted]), plain


def _attention(seed: int) -> tuple[Call, Call]:
    import torch

    from sostenuto.ops.target_attention import UnitWeights, factor, target_attention

    generator = torch.Generator().manual_seed(seed)
    requests, length, candidates, dim, units = 8, 1_000, 60, 32, 64
    key = torch.randn(requests * length, dim, generator=generator)
    query = torch.randn(requests * candidates, dim, generator=generator)
    weight = torch.randn(units, 4 * dim, generator=generator) / dim
    bias, out = torch.zeros(units), torch.randn(units, generator=generator) / units
    w_key, w_query, w_product = factor(weight)
    unit = UnitWeights(key=w_key, query=w_query, product=w_product, bias=bias, out=out, out_bias=torch.zeros(()))
    key_offsets = torch.arange(requests + 1) * length
    query_offsets = torch.arange(requests + 1) * candidates

    @torch.inference_mode()
    def plain() -> object:
        parts = []
        for b in range(requests):
            k = key[b * length : (b + 1) * length].expand(candidates, -1, -1)
            q = query[b * candidates : (b + 1) * candidates, None, :].expand(-1, length, -1)
            scores = torch.relu(torch.cat([q, k, q - k, q * k], 2) @ weight.T + bias) @ out
            parts.append((scores[..., None] * k).sum(1))
        return torch.cat(parts)

    @torch.inference_mode()
    def ours() -> object:
        return target_attention(query, query_offsets, key, key_offsets, key, unit)

    return ours, plain


def _touched_rows(seed: int) -> tuple[Call, Call]:
    import torch

    from sostenuto.training.touched_rows import TouchedRowOptimiser

    generator = torch.Generator().manual_seed(seed)
    rows, dim, touched = 200_000, 32, 4_000
    at = torch.randperm(rows, generator=generator)[:touched].sort().values
    values = torch.randn(touched, dim, generator=generator)
    table, dense_table = torch.nn.Parameter(torch.zeros(rows, dim)), torch.nn.Parameter(torch.zeros(rows, dim))
    optimiser, dense = TouchedRowOptimiser({"table": table}), torch.optim.Adam([dense_table], fused=True)
    sparse = torch.sparse_coo_tensor(at[None], values, (rows, dim), check_invariants=True).coalesce()
    dense_table.grad = sparse.to_dense()

    def ours() -> object:
        table.grad = sparse
        return optimiser.step(1e-3)

    return ours, dense.step


MEASUREMENTS = {
    measurement.name: measurement
    for measurement in (
        Measurement(
            name="gauc",
            ours="GAUC of 200,000 rows in 4,000 groups",
            plain="a loop over groups with scipy ranks",
            make=_gauc,
        ),
        Measurement(
            name="match_index",
            ours="build and look up one level: 32 users x 1,000 behaviours, 60 candidates each",
            plain="dictionaries and loops",
            make=_match,
        ),
        Measurement(
            name="target_attention",
            ours="factored unit, forward: 8 requests x 1,000 behaviours x 60 candidates, D 32, H 64",
            plain="the concatenated input [q, k, q - k, q * k]",
            make=_attention,
        ),
        Measurement(
            name="touched_rows",
            ours="Adam step, 4,000 of 200,000 rows touched, D 32",
            plain="torch's fused Adam over the whole table",
            make=_touched_rows,
        ),
    )
}


def measure(name: str, *, rounds: int = 7, seed: int = 0) -> Timing:
    """Run one measurement of the table."""
    if name not in MEASUREMENTS:
        known = ", ".join(MEASUREMENTS)
        raise SpecError(f"measurement must be one of {known}, got {name!r}.{did_you_mean(name, MEASUREMENTS)}")
    if rounds < 1:
        raise SpecError(f"rounds must be at least 1, got {rounds}; 7 is usual")
    ours, plain = MEASUREMENTS[name].make(seed)
    return time_in_turns(ours, plain, rounds=rounds)


__all__ = ["MEASUREMENTS", "Measurement", "measure"]
