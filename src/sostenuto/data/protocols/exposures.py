"""Protocol `exposures`: true impressions with their true labels, split by one calendar. Nothing is sampled.

A request is one exposure log entry: its candidates are what was shown, its labels what was taken. Requests in which
nothing, or everything, was taken are kept: calibration needs them; ranking metrics leave them out and say so.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from pydantic import Field as Setting

from sostenuto.data.prepared import SPLITS, Array, Protocol, Requests
from sostenuto.data.protocols.core import Core, MadeRequests, prefix_lengths
from sostenuto.data.protocols.split_times import (
    Settings,
    SplitStart,
    chosen_rows,
    read_settings,
    span,
    split_of,
    split_starts,
)
from sostenuto.data.side_tables import weighted_moments
from sostenuto.data.vocabularies import with_specials, write_vocabulary
from sostenuto.schema.errors import SpecError
from sostenuto.schema.features import FIRST_KNOWN, UNKNOWN, Field


class ExposuresSettings(Settings):
    """Settings of `exposures`."""

    valid_from: SplitStart = 0.8  # a share of all requests, or a time
    test_from: SplitStart = 0.9
    min_candidates: int = Setting(default=2, ge=1)  # fewer cannot be ranked
    train_requests: int | None = Setting(default=None, ge=1)  # at most so many, drawn by the seed
    valid_requests: int | None = Setting(default=None, ge=1)
    test_requests: int | None = Setting(default=None, ge=1)

    def most(self, split: int) -> int | None:
        """Return how many requests of a split are kept at most."""
        return (self.train_requests, self.valid_requests, self.test_requests)[split]


def _index_by_training(texts: pl.Series, training: Array) -> tuple[pl.Series, Array]:
    """Index texts by training frequency; what training never saw is unknown, missing is 0."""
    frame = pl.DataFrame({"id": texts, "training": training})
    counts = frame.filter(pl.col("training")).drop_nulls("id").group_by("id").agg(pl.len().alias("count"))
    ids = counts.sort(pl.col("count"), "id", descending=[True, False])["id"]
    places = pl.DataFrame({"id": ids, "index": np.arange(FIRST_KNOWN, FIRST_KNOWN + len(ids), dtype=np.int32)})
    found = frame.select("id").join(places, on="id", how="left", maintain_order="left")
    index = found["index"].fill_null(UNKNOWN).to_numpy().astype(np.int32)
    return with_specials(ids), np.where(texts.is_null().to_numpy(), 0, index).astype(np.int32)


class Exposures:
    """Requests as they were shown. Training is what lies before `valid_from`."""

    name = "exposures"
    version = 1

    def _log(self, core: Core) -> pl.DataFrame:
        if core.exposures is None:
            raise SpecError("protocol 'exposures' needs the table [exposures], there is none; add it to the spec")
        return pl.read_parquet(core.exposures)

    def _starts(self, core: Core, log: pl.DataFrame, settings: ExposuresSettings) -> tuple[int, int]:
        times = log.select(pl.col("time_ms").filter(pl.col("request").is_first_distinct())).to_series().to_numpy()
        return split_starts(settings.valid_from, settings.test_from, times, core.time_zone)

    def is_training(self, core: Core, *, settings: Mapping[str, Any]) -> Array:
        """Return (N,) bool: events before `valid_from`."""
        given = read_settings(ExposuresSettings, self.name, settings)
        return np.asarray(core.behaviours.time_ms) < self._starts(core, self._log(core), given)[0]

    def make_requests(self, core: Core, folder: Path, *, seed: int, settings: Mapping[str, Any]) -> MadeRequests:
        """Return the requests of every split; writes the vocabularies of candidate and context fields."""
        given = read_settings(ExposuresSettings, self.name, settings)
        log = self._log(core)
        valid_ms, test_ms = self._starts(core, log, given)
        size = pl.len().over("request")
        few = int(log.select((size < given.min_candidates).sum()).item())
        log = log.filter(size >= given.min_candidates)
        candidate_split = split_of(log["time_ms"].to_numpy(), valid_ms, test_ms)
        training = candidate_split == 0
        first = log["request"].is_first_distinct().to_numpy()

        fields: dict[str, list[Field]] = {"candidate": [], "context": []}
        columns: dict[str, Array] = {}
        for name in log.columns:
            kind, _, field_name = name.partition(".")
            if kind not in fields:
                continue
            seen = training if kind == "candidate" else training & first
            if log[name].dtype == pl.String:
                ids, columns[name] = _index_by_training(log[name], seen)
                write_vocabulary(folder, field_name, ids)
                fields[kind].append(Field(name=field_name, kind="categorical", size=len(ids)))
            else:
                columns[name] = log[name].to_numpy().astype(np.float32)
                mean, std = weighted_moments(columns[name], seen.astype(np.float64))
                fields[kind].append(Field(name=field_name, kind="numeric", mean=mean, std=std))

        starts = np.flatnonzero(first)
        lengths = np.diff(np.append(starts, len(log)))
        request_split = candidate_split[starts]
        plain = {name: log[name].to_numpy() for name in ("user", "time_ms", "place", "item", "label")}
        made, counts = {}, {"candidates_in_too_small_requests": few}
        for number, split in enumerate(SPLITS):
            all_rows = np.flatnonzero(request_split == number)
            rows = chosen_rows(all_rows, given.most(number), seed, number)
            length = lengths[rows]
            owner = np.repeat(np.arange(len(rows)), length)
            offsets = np.concatenate(([0], np.cumsum(length))).astype(np.int64)
            inside = starts[rows][owner] + np.arange(len(owner)) - offsets[owner]
            at = starts[rows]
            user, time_ms = plain["user"][at].astype(np.int32), plain["time_ms"][at]
            made[split] = Requests(
                user=user,
                time_ms=time_ms,
                prefix=prefix_lengths(core.behaviours, user, time_ms),
                place=plain["place"][at].astype(np.int32),
                context={f.name: columns[f"context.{f.name}"][at] for f in fields["context"]},
                offsets=offsets,
                item=plain["item"][inside].astype(np.int32),
                label=plain["label"][inside].astype(np.float32),
                list_id=np.zeros(len(inside), np.uint8),
                candidate={f.name: columns[f"candidate.{f.name}"][inside] for f in fields["candidate"]},
            )
            counts[f"{split}_moments"] = len(all_rows)
            counts[f"{split}_requests"] = len(rows)
            counts[f"{split}_candidates"] = len(inside)
        protocol = Protocol(
            name=self.name,
            version=self.version,
            seed=seed,
            lists=("shown",),
            settings=given.model_dump(mode="json") | {"valid_from_ms": valid_ms, "test_from_ms": test_ms},
            splits={name: span(requests.time_ms) for name, requests in made.items()},
        )
        return MadeRequests(
            protocol=protocol,
            requests=made,
            candidate_fields=tuple(fields["candidate"]),
            context_fields=tuple(fields["context"]),
            counts=counts,
        )


__all__ = ["Exposures", "ExposuresSettings"]
