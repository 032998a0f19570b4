"""Which behaviours belong to the moment and place of a request: of the same hour, the same weekday, the same place.

Every function takes one value per behaviour and the request's value beside it, and gives one bool, True = belongs.
"""

from __future__ import annotations

from torch import Tensor

from sostenuto.ops.local_time import HOURS

FIRST_CELL = 2  # 0 is missing, 1 unknown: two unknown places need not be one
FIRST_WEEKEND_DAY = 5  # Saturday, Monday counts 0


def circular_distance(first: Tensor, second: Tensor, period: int) -> Tensor:
    """Return the shorter way round a circle of `period` steps.

    >>> import torch
    >>> circular_distance(torch.tensor([23, 6]), torch.tensor([0, 0]), 24)
    tensor([1, 6])
    """
    ahead = (first - second) % period
    return ahead.minimum(period - ahead)


def same_hour(hour: Tensor, asked: Tensor, window: int) -> Tensor:
    """Return whether hours of the day lie at most `window` apart, midnight being no border."""
    return circular_distance(hour, asked, HOURS) <= window


def same_weekday(weekday: Tensor, asked: Tensor) -> Tensor:
    """Return whether days of the week are equal."""
    return weekday == asked


def same_part_of_week(weekday: Tensor, asked: Tensor) -> Tensor:
    """Return whether both lie on the weekend, or both not."""
    return (weekday >= FIRST_WEEKEND_DAY) == (asked >= FIRST_WEEKEND_DAY)


def same_cell(cell: Tensor, asked: Tensor) -> Tensor:
    """Return whether cells are equal and known."""
    return (cell == asked) & (asked >= FIRST_CELL)


def before(time_ms: Tensor, asked_ms: Tensor) -> Tensor:
    """Return whether a behaviour lies strictly before the request; all later masks are cut by it."""
    return time_ms < asked_ms


__all__ = [
    "FIRST_CELL",
    "FIRST_WEEKEND_DAY",
    "before",
    "circular_distance",
    "same_cell",
    "same_hour",
    "same_part_of_week",
    "same_weekday",
]
