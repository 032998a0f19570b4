"""What a prepared folder must say of a small log, computed with dictionaries and sorted()."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any

from sostenuto.data.prepared import PreparedData

Event = dict[str, Any]  # user, item, time_ms, action, value, place: text or number, None missing


def expected_histories(events: list[Event]) -> dict[str, list[tuple[int, Counter[tuple[Any, ...]]]]]:
    """Return per user, in order of time, what happened at each moment."""
    moments: dict[str, dict[int, Counter[tuple[Any, ...]]]] = defaultdict(lambda: defaultdict(Counter))
    for event in events:
        content = (event["item"], event.get("action"), event.get("value"), event.get("place"))
        moments[event["user"]][event["time_ms"]][content] += 1
    return {user: sorted(times.items()) for user, times in moments.items()}


def expected_order(events: list[Event], name: str, is_training: Callable[[Event], bool]) -> list[tuple[str, int]]:
    """Return (text, training count) by descending count, ties by text."""
    counts = Counter({event[name]: 0 for event in events if event.get(name) is not None})
    counts.update(event[name] for event in events if event.get(name) is not None and is_training(event))
    return sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))


def read_histories(data: PreparedData) -> dict[str, list[tuple[int, Counter[tuple[Any, ...]]]]]:
    """Read a prepared folder back into the shape of `expected_histories`; asserts that times never decrease."""
    users, items = data.vocabulary("user"), data.vocabulary("item")
    named = {
        name: data.vocabulary(name)
        for name in ("action", "place")
        if (data.folder / "vocab" / f"{name}.parquet").is_file()
    }
    b = data.behaviours
    found: dict[str, list[tuple[int, Counter[tuple[Any, ...]]]]] = {}
    for user in range(len(users)):
        rows: list[tuple[int, Counter[tuple[Any, ...]]]] = []
        for at in range(int(b.offsets[user]), int(b.offsets[user + 1])):
            time_ms, value = int(b.time_ms[at]), float(b.value[at])
            action = named["action"][b.action[at]] if "action" in named and b.action[at] else None
            place = named["place"][b.place[at]] if "place" in named and b.place[at] else None
            content = (items[b.item[at]], action, None if value != value else value, place)
            if rows and rows[-1][0] == time_ms:
                rows[-1][1][content] += 1
            else:
                assert not rows or rows[-1][0] < time_ms
                rows.append((time_ms, Counter({content: 1})))
        if rows:
            found[users[user]] = rows
    return found
