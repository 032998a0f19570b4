"""Selections by sorting all behaviours of a history by score and age, one candidate at a time."""

import math


def slow_selection(scores, times, kept):
    """Return the places, best first, that a selector with `kept` takes.

    Args:
        scores: of every behaviour of one history, oldest first; minus infinity is never taken.
        times: of the behaviours.
        kept: K, or None for all.
    """
    allowed = [j for j, score in enumerate(scores) if score > -math.inf]
    ordered = sorted(allowed, key=lambda j: (-scores[j], -j))
    if kept is None or len(ordered) <= kept:
        return ordered
    chosen, last = ordered[:kept], ordered[kept - 1]
    return chosen + [j for j in ordered[kept:] if scores[j] == scores[last] and times[j] == times[last]]
