"""How far a consumer is behind, as others see it: in changes, and in seconds since a change was first found waiting."""

from __future__ import annotations

from dataclasses import dataclass

from sostenuto.serving.backlog import MOST_LOOKS, Backlog


@dataclass
class Stream:
    """Where a consumer and the stream are, and what time it is: all that a backlog asks."""

    at: int = 0
    last: int = 0
    now: float = 100.0

    def cursor(self, name: str) -> int:
        assert name == "states-v1"
        return self.at

    def last_sequence(self) -> int:
        return self.last


def backlog() -> tuple[Stream, Backlog]:
    stream = Stream()
    return stream, Backlog(stream, "states-v1", clock=lambda: stream.now)


def test_who_has_seen_everything_is_not_behind():
    stream, looks = backlog()
    assert looks.look() == (0, 0.0)
    stream.at = stream.last = 7
    stream.now += 50
    assert looks.look() == (0, 0.0)


def test_seconds_are_those_of_the_oldest_change_that_waits():
    stream, looks = backlog()
    stream.last = 10
    assert looks.look() == (10, 0.0)  # it may have come this moment
    stream.last, stream.now = 30, 105.0
    assert looks.look() == (30, 5.0)
    stream.at, stream.now = 10, 108.0  # the first ten are done; what was found at 105 waits
    assert looks.look() == (20, 3.0)
    stream.at = 30
    assert looks.look() == (0, 0.0)


def test_a_busy_stream_with_a_consumer_close_behind_is_not_late():
    stream, looks = backlog()
    for n in range(1, 200):
        stream.now, stream.last, stream.at = 100.0 + n, 50 * n, 50 * n - 20
        assert looks.look() == (20, 0.0)


def test_a_consumer_that_never_comes_takes_no_memory_and_its_age_is_kept():
    stream, looks = backlog()
    for n in range(5 * MOST_LOOKS):
        stream.now, stream.last = 100.0 + n, n + 1
        changes, seconds = looks.look()
    assert (changes, seconds) == (5 * MOST_LOOKS, 5 * MOST_LOOKS - 1.0)
    assert len(looks._looks) <= MOST_LOOKS
