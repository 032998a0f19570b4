"""The masks and the forgetting curve of STIM, one behaviour after another, from the text of the page."""

from __future__ import annotations

import datetime as dt
import math
from zoneinfo import ZoneInfo

DAY_MS = 86_400_000


def wall(time_ms: int, zone: str) -> dt.datetime:
    """What clock and calendar on the wall show, without a zone."""
    return dt.datetime.fromtimestamp(time_ms // 1000, ZoneInfo(zone)).replace(tzinfo=None)


def hours_apart(a: int, b: int) -> int:
    return min((a - b) % 24, (b - a) % 24)


def slow_alive(
    expert: str,
    *,
    times: list[int],
    kinds: list[int],
    cells: list[int],
    asked_ms: int,
    asked_cell: int,
    zone: str,
    days: float,
    alpha: float,
    window: int = 1,
    weekend: bool = False,
    at_least: int = 0,
    log_threshold: float,
) -> list[tuple[bool, float]]:
    """Return (is in the mask, ln R) of every behaviour of one user; only what comes before the request is looked at."""
    asked = wall(asked_ms, zone)

    def day_of(moment: dt.datetime) -> int:
        return int(moment.weekday() >= 5) if weekend else moment.weekday()

    def key(i: int) -> tuple[int, ...]:
        moment = wall(times[i], zone)
        return {
            "recent": (kinds[i],),
            "hour": (kinds[i], moment.hour),
            "week": (kinds[i], day_of(moment)),
            "place": (kinds[i], cells[i]),
        }[expert]

    past = [i for i in range(len(times)) if times[i] < asked_ms]
    newest = sorted((times[i] for i in past), reverse=True)[:at_least]
    found = []
    for i in range(len(times)):
        if i not in past:
            found.append((False, 0.0))
            continue
        moment = wall(times[i], zone)
        structure = {
            "recent": True,
            "hour": hours_apart(moment.hour, asked.hour) <= window,
            "week": day_of(moment) == day_of(asked),
            "place": cells[i] == asked_cell and asked_cell >= 2,
        }[expert]
        again = sum(key(j) == key(i) for j in past) - 1
        age = (asked_ms - times[i]) / DAY_MS
        if expert in ("hour", "week"):
            period = 1 if expert == "hour" else 7
            between = (asked - moment) // dt.timedelta(days=period)
            age = max(0, between) * period
        log_r = -age / (days * (1 + alpha * math.log(1 + again)))
        alive = log_r >= log_threshold or (expert == "recent" and bool(newest) and times[i] >= newest[-1])
        found.append((structure and alive, log_r))
    return found
