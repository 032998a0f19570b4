"""What a report says of the data, read from a prepared folder."""

from __future__ import annotations

import numpy as np

from sostenuto.data.prepared import PreparedData
from sostenuto.reports.comparison import DataSummary

LENGTH_EDGES = (0, 1, 10, 30, 100, 300, 1000, 3000, 10_000, 30_000, 100_000)


def _words(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_words(one)}" for key, one in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(_words(one) for one in value)
    return str(value)


def summarise_data(data: PreparedData, *, split: str = "test") -> DataSummary:
    """Return counts, span, splits, histogram of history length at the requests of `split`, and the protocol."""
    manifest, behaviours = data.manifest, data.behaviours
    requests = data.requests(split)
    lengths = np.asarray(requests.prefix)
    edges = [e for e in LENGTH_EDGES if e <= int(lengths.max(initial=0))]
    edges.append(next((e for e in LENGTH_EDGES if e > edges[-1]), int(lengths.max(initial=0)) + 1))
    counts, _ = np.histogram(lengths, bins=np.array([*edges[:-1], edges[-1] + 1e-9]))
    protocol = manifest.protocol
    source = manifest.source
    lines = []
    if protocol is not None:
        lines.append(f"candidate lists: {', '.join(protocol.lists)}; sampled with seed {protocol.seed}")
        lines.extend(f"{name.replace('_', ' ')}: {_words(value)}" for name, value in protocol.settings.items())
    has_events = len(behaviours.time_ms) > 0
    return DataSummary(
        name=manifest.name,
        source=_words(source.get("title") or source.get("name") or source.get("files") or ""),
        terms=_words(source.get("terms") or ""),
        time_zone=manifest.time_zone,
        counts=manifest.counts,
        first_ms=int(behaviours.time_ms.min()) if has_events else None,
        last_ms=int(behaviours.time_ms.max()) if has_events else None,
        splits={} if protocol is None else protocol.splits,
        length_edges=tuple(float(e) for e in edges),
        length_counts=tuple(int(c) for c in counts),
        length_quantiles={
            name: float(np.quantile(lengths, q, method="lower"))
            for name, q in (("median", 0.5), ("90 %", 0.9), ("longest", 1.0))
        }
        if len(lengths)
        else {},
        protocol="" if protocol is None else f"{protocol.name} v{protocol.version}",
        protocol_text=tuple(lines),
    )


__all__ = ["LENGTH_EDGES", "summarise_data"]
