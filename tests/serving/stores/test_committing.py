"""Group commit: who waits for whom, and who hears of whose error."""

import threading
import time

import pytest
from tests.serving.stores.events import event, outcomes

from sostenuto.schema.errors import DataError, StoreBusy, StoreFull, StoreGone
from sostenuto.serving.stores.committing import GroupCommitter, GroupConfig


class Held:
    """A store whose appends wait until they are let go, and fail as they are told to."""

    def __init__(self, store):
        self.store = store
        self.check = store.check
        self.begun = threading.Event()
        self.let_go = threading.Event()
        self.groups = []
        self.fails = lambda events: None

    def append(self, events):
        self.begun.set()
        assert self.let_go.wait(30)
        self.groups.append(len(events))
        error = self.fails(events)
        if error is not None:
            raise error
        return self.store.append(events)


@pytest.fixture
def held(store):
    return Held(store)


def submit_behind(committer, held, batches):
    """Hold the store by one batch, queue others behind it, then let go."""
    first = committer.submit([event(0)])
    assert held.begun.wait(30)
    futures = [committer.submit(batch) for batch in batches]
    held.let_go.set()
    return [first, *futures]


def test_those_who_wait_share_one_transaction_and_get_their_own_answers(held):
    with GroupCommitter(held) as committer:
        batches = [[event(10 * at), event(10 * at + 1, user=f"u{at}")] for at in range(1, 9)]
        futures = submit_behind(committer, held, batches)
        answers = [future.result(30) for future in futures]
    assert held.groups == [1, 16]
    assert [[answer.sequence for answer in each] for each in answers[1:]] == [
        [2 * at, 2 * at + 1] for at in range(1, 9)
    ]
    counts = committer.counts()
    assert (counts.groups, counts.batches, counts.events, counts.waiting) == (2, 9, 17, 0)


def test_a_group_has_a_limit_and_keeps_the_order(held):
    with GroupCommitter(held, GroupConfig(most_events=5)) as committer:
        batches = [[event(100 * at + each) for each in range(2)] for at in range(1, 6)]
        batches.insert(2, [event(1_000 + at) for at in range(20)])
        futures = submit_behind(committer, held, batches)
        sequences = [answer.sequence for future in futures for answer in future.result(30)]
    assert held.groups == [1, 4, 20, 4, 2]
    assert sequences == list(range(1, 32))


def test_what_is_wrong_with_a_batch_is_told_to_its_sender_at_once(store):
    with GroupCommitter(store) as committer:
        with pytest.raises(DataError, match="fields"):
            committer.submit([event(1, fields={"nope": 1.0})])
        assert outcomes(committer.append([event(2)])) == ["new"]


def test_a_batch_for_which_there_is_no_room_fails_alone(held):
    held.fails = lambda events: StoreFull("full") if any(e.user_id == "big" for e in events) else None
    with GroupCommitter(held) as committer:
        futures = submit_behind(committer, held, [[event(1)], [event(2, user="big")], [event(3)]])
        assert outcomes(futures[1].result(30)) == outcomes(futures[3].result(30)) == ["new"]
        with pytest.raises(StoreFull):
            futures[2].result(30)


def test_when_the_store_is_gone_all_who_wait_hear_it_and_later_ones_may_succeed(held):
    held.fails = lambda events: StoreGone("gone") if len(held.groups) == 2 else None
    with GroupCommitter(held) as committer:
        futures = submit_behind(committer, held, [[event(1)], [event(2)]])
        for future in futures[1:]:
            with pytest.raises(StoreGone):
                future.result(30)
        assert outcomes(committer.append([event(1), event(2)])) == ["new", "new"]


def test_an_error_of_ours_ends_no_thread(held):
    held.fails = lambda events: ZeroDivisionError() if len(held.groups) == 1 else None
    held.let_go.set()
    with GroupCommitter(held) as committer:
        with pytest.raises(ZeroDivisionError):
            committer.append([event(1)])
        assert outcomes(committer.append([event(1)])) == ["new"]


def test_too_many_who_wait_are_sent_away(held):
    with GroupCommitter(held, GroupConfig(most_waiting=10_000)) as committer:
        first = committer.submit([event(0)])
        assert held.begun.wait(30)
        waiting = committer.submit([event(at) for at in range(1, 9_991)])
        with pytest.raises(StoreBusy, match="come again"):
            committer.submit([event(10_000 + at) for at in range(11)])
        last = committer.submit([event(20_000 + at) for at in range(10)])
        held.let_go.set()
        assert len(first.result(60)) + len(waiting.result(60)) + len(last.result(60)) == 10_001


def test_closing_writes_what_waits_and_refuses_what_comes(held):
    committer = GroupCommitter(held)
    futures = submit_behind(committer, held, [[event(at)] for at in range(1, 5)])
    committer.close()
    assert all(future.done() for future in futures)
    assert held.store.head("ann").count == 5
    with pytest.raises(StoreGone, match="closed"):
        committer.submit([event(9)])


def test_a_group_lingers_for_company_when_told_to(held):
    held.let_go.set()
    with GroupCommitter(held, GroupConfig(linger_ms=400)) as committer:
        futures = [committer.submit([event(at)]) for at in range(3)]
        start = time.monotonic()
        assert [future.result(30)[0].sequence for future in futures] == [1, 2, 3]
        assert time.monotonic() - start > 0.2
    assert held.groups == [3]


@pytest.mark.parametrize("wrong", [{"most_events": 0}, {"most_waiting": 1}, {"linger_ms": -1.0}])
def test_nonsense_is_refused(wrong):
    with pytest.raises(ValueError, match="GroupConfig"):
        GroupConfig(**wrong)
