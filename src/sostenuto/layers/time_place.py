"""When and where as vectors: local hour and weekday, places at several precisions, distances."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from sostenuto.layers.embedding import DEFAULT_STD, Table
from sostenuto.layers.initialise import xavier_linear
from sostenuto.ops.geohash import geohash_cells
from sostenuto.ops.great_circle import NUM_DISTANCE_OCTAVES, distance_octaves, great_circle_km
from sostenuto.ops.local_time import HOURS, WEEKDAYS, ZoneTable, day_of_week, hour_of_day, to_local_ms, zone_table
from sostenuto.ops.request_masks import FIRST_WEEKEND_DAY
from sostenuto.ops.table_rows import spread_rows
from sostenuto.schema.errors import SpecError
from sostenuto.schema.features import FIRST_KNOWN, FeatureSpec


class LocalTime(NamedTuple):
    """What clock and calendar on the wall show."""

    local_ms: Tensor  # (N,) int64
    hour: Tensor  # (N,) int64 in 0..23
    weekday: Tensor  # (N,) int64 in 0..6, Monday first


def read_clock(local_ms: Tensor) -> LocalTime:
    """Return hour and weekday beside local milliseconds."""
    return LocalTime(local_ms, hour_of_day(local_ms), day_of_week(local_ms))


class LocalClock(nn.Module):
    """Turn epoch milliseconds into local time of one zone, daylight saving included.

    The zone's table comes from the machine's zone database and is not part of a checkpoint: its rules may be amended.
    """

    starts_ms: Tensor
    offsets_ms: Tensor

    def __init__(self, time_zone: str) -> None:
        super().__init__()
        zone = zone_table(time_zone)
        self.register_buffer("starts_ms", zone.starts_ms, persistent=False)
        self.register_buffer("offsets_ms", zone.offsets_ms, persistent=False)

    def forward(self, time_ms: Tensor) -> LocalTime:
        """Read (N,) int64 epoch milliseconds."""
        return read_clock(to_local_ms(time_ms, ZoneTable(self.starts_ms, self.offsets_ms)))


class TimeEncoder(nn.Module):
    """The sum of a row of the hour, one of the weekday and one of weekend or not: (N, dim)."""

    hours: Tensor
    days: Tensor
    weekend_of: Tensor

    def __init__(self, dim: int, *, std: float = DEFAULT_STD) -> None:
        super().__init__()
        days = torch.arange(WEEKDAYS)
        self.register_buffer("hours", torch.arange(HOURS), persistent=False)
        self.register_buffer("days", days, persistent=False)
        self.register_buffer("weekend_of", FIRST_KNOWN + (days >= FIRST_WEEKEND_DAY).long(), persistent=False)
        self.hour = Table(FIRST_KNOWN + HOURS, dim, std=std)
        self.weekday = Table(FIRST_KNOWN + WEEKDAYS, dim, std=std)
        self.weekend = Table(FIRST_KNOWN + 2, dim, std=std)

    def forward(self, moment: LocalTime) -> Tensor:
        """Return (N, dim); the 168 hours of a week are made once and spread."""
        days = self.weekday(FIRST_KNOWN + self.days) + self.weekend(self.weekend_of)
        week = days[:, None] + self.hour(FIRST_KNOWN + self.hours)
        return spread_rows(week.flatten(0, 1), moment.weekday * HOURS + moment.hour)


class PlaceCells(nn.Module):
    """Cells around places at several precisions, as indices (0 missing, 1 unknown, 2.. known), and their coordinates.

    Where the data know where places are, a cell is a geohash of fewer characters than the place's own; where a place is
    only a name, it is its own and only cell.

    Args:
        features: sizes, and points of the places.
        precisions: characters, coarse to fine.
    """

    points: Tensor
    cells: Tensor

    def __init__(self, features: FeatureSpec, precisions: Sequence[int]) -> None:
        super().__init__()
        points = np.full((features.num_places, 2), np.nan)
        self.has_points = bool(features.place_points)
        columns = [np.arange(features.num_places)]
        if self.has_points:
            if len(features.place_points) != features.num_places - FIRST_KNOWN:
                raise SpecError(
                    f"place_points must have one entry per known place, {features.num_places - FIRST_KNOWN}, got "
                    f"{len(features.place_points)}; prepare the data again"
                )
            points[FIRST_KNOWN:] = features.place_points
            columns = [self._indexed(points, precision) for precision in precisions]
        self.sizes = tuple(int(column.max()) + 1 if len(column) else FIRST_KNOWN for column in columns)
        self.register_buffer("points", torch.from_numpy(points).float(), persistent=False)
        self.register_buffer("cells", torch.from_numpy(np.stack(columns, 1)), persistent=False)

    @staticmethod
    def _indexed(points: np.ndarray, precision: int) -> np.ndarray:
        codes = geohash_cells(points[FIRST_KNOWN:, 0], points[FIRST_KNOWN:, 1], precision)
        index = np.unique(codes, return_inverse=True)[1].reshape(-1)
        return np.concatenate([np.arange(FIRST_KNOWN), FIRST_KNOWN + index])

    @property
    def num_places(self) -> int:
        """Places, missing and unknown included."""
        return int(self.cells.shape[0])

    def forward(self, place: Tensor) -> Tensor:
        """Return (N, levels) int64 cells of (N,) places."""
        return self.cells[place]

    def where(self, place: Tensor) -> Tensor:
        """Return (N, 2) float32 latitude and longitude, NaN where not known."""
        return self.points[place]


class PlaceEncoder(nn.Module):
    """The sum of one row per cell around a place: (N, dim); zeros where the place is missing."""

    def __init__(self, cells: PlaceCells, dim: int, *, std: float = DEFAULT_STD) -> None:
        super().__init__()
        self.levels = nn.ModuleList(Table(size, dim, std=std) for size in cells.sizes)

    def forward(self, cells: Tensor) -> Tensor:
        """Return (N, dim) of (N, levels) cells."""
        rows: list[Tensor] = [table(cells[:, level]) for level, table in enumerate(self.levels)]
        return torch.stack(rows).sum(0)


class DistanceEncoder(nn.Module):
    """A piecewise linear function of log2(1 + km / 0.1) per column, with a value of its own for "not known"."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.linear = xavier_linear(NUM_DISTANCE_OCTAVES + 1, dim, bias=False)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Return (N, dim) of the distances between (N, 2) points in degrees."""
        encoded: Tensor = self.linear(distance_octaves(great_circle_km(first, second)))
        return encoded


__all__ = ["DistanceEncoder", "LocalClock", "LocalTime", "PlaceCells", "PlaceEncoder", "TimeEncoder", "read_clock"]
