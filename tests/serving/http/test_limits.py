"""Back-pressure: rates, full lanes, slow work."""

import asyncio
import contextlib
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.serving.http.conftest import bearer
from tests.serving.http.stand_in import StandInService

from sostenuto.serving.http.limits import Lane, RateLimiter
from sostenuto.serving.http.problems import Problem

RANK = ("POST", "/v1/rank", {"json": {"user_id": "u1", "candidates": ["a"]}})


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.floats(0, 2), max_size=60),
    st.floats(0.5, 20),
    st.integers(1, 10),
)
def test_no_key_gets_more_than_its_burst_and_its_rate(gaps, rate, burst):
    now = [0.0]
    limiter = RateLimiter(rate, burst, clock=lambda: now[0])
    passed = 0
    for gap in gaps:
        now[0] += gap
        with contextlib.suppress(Problem):
            limiter.check("k")
            passed += 1
    assert passed <= burst + now[0] * rate + 1e-6


def test_waiting_as_told_is_enough():
    now = [0.0]
    limiter = RateLimiter(0.5, 1, clock=lambda: now[0])
    limiter.check("k")
    with pytest.raises(Problem) as refused:
        limiter.check("k")
    now[0] += int(refused.value.headers["retry-after"])
    limiter.check("k")


def test_a_clock_that_goes_back_gives_nothing_away_and_blocks_nobody():
    now = [100.0]
    limiter = RateLimiter(1.0, 1, clock=lambda: now[0])
    limiter.check("k")
    now[0] = 50.0
    with pytest.raises(Problem):
        limiter.check("k")
    now[0] = 51.1
    limiter.check("k")


def test_one_key_does_not_use_up_anothers_rate(open_client, keys, tmp_path):
    first, second, third = keys("models"), keys("models"), keys("models", requests_per_s=1_000_000.0)
    client = open_client(keys=tmp_path / "keys.json", requests_per_s=0.001, burst=2)

    def ask(key):
        return client("GET", "/v1/models", headers=bearer(key))

    assert [ask(first).status_code for _ in range(3)] == [200, 200, 429]
    assert ask(first).headers["retry-after"].isdigit()
    assert ask(second).status_code == 200
    assert [ask(third).status_code for _ in range(5)] == [200] * 5


def test_a_full_lane_refuses_at_once_and_recovers(open_client):
    client = open_client(StandInService(delay_s=0.2), scoring_queue=1)
    start = time.monotonic()
    answers = client.many([RANK] * 6)
    statuses = sorted(answer.status_code for answer in answers)
    assert statuses == [200, 200, 503, 503, 503, 503]
    assert all(answer.headers["retry-after"] == "1" for answer in answers if answer.status_code == 503)
    assert time.monotonic() - start < 2
    assert client(*RANK[:2], **RANK[2]).status_code == 200


def test_events_are_taken_while_rankings_wait(open_client):
    client = open_client(StandInService(delay_s=0.5), scoring_queue=1)
    event = ("POST", "/v1/events", {"json": {"user_id": "u", "item_id": "a"}})
    ranked, rejected, stored, health = client.many([RANK, RANK, event, ("GET", "/healthz", {})])
    assert stored.status_code == health.status_code == 200
    assert ranked.elapsed > stored.elapsed
    assert rejected.status_code == 200


def test_slow_work_is_answered_in_time_and_keeps_its_place_until_it_ends(open_client):
    client = open_client(StandInService(delay_s=0.5), request_timeout_s=0.1, scoring_queue=1)
    edge = client.app.edge
    late = client.many([RANK, RANK])
    assert [answer.status_code for answer in late] == [503, 503]
    assert edge.lanes["score"].under_way == 1  # one has begun; the other was given up in the queue
    time.sleep(1.2)
    client.service.delay_s = 0.0
    assert client(*RANK[:2], **RANK[2]).status_code == 200
    assert edge.lanes["score"].under_way == 0


def test_a_refused_request_gives_its_place_back(open_client):
    client = open_client(scoring_queue=1)
    for _ in range(10):
        assert client("POST", "/v1/rank", json={}).status_code == 422
        assert client("POST", "/v1/rank", content=b"{", headers={"content-type": "application/json"}).status_code == 400
        assert client("POST", "/v1/rank", content=b"{}").status_code == 415
        client.service.failure = ZeroDivisionError()
        assert client(*RANK[:2], **RANK[2]).status_code == 500
        client.service.failure = None
    assert client(*RANK[:2], **RANK[2]).status_code == 200
    assert client.app.edge.lanes["score"].under_way == 0


def test_what_waits_in_a_lane_and_is_given_up_never_runs():
    lane = Lane("x", 1, 5)
    ran = []

    async def main() -> None:
        async def one(n: int) -> None:
            lane.enter()
            with contextlib.suppress(Problem):
                await lane.run(lambda: (time.sleep(0.2), ran.append(n)), timeout_s=0.05)

        await asyncio.gather(*(one(n) for n in range(4)))
        await asyncio.sleep(0.4)

    asyncio.run(main())
    lane.close()
    assert ran == [0]
    assert lane.under_way == 0
