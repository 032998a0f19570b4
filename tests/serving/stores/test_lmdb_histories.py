"""Pieces of histories in LMDB against a sorted list."""

import lmdb
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sostenuto.serving.stores.lmdb_histories import Histories
from sostenuto.serving.stores.packing import EVENT_START

WIDTH = EVENT_START.size + 4


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    with lmdb.open(str(tmp_path_factory.mktemp("pieces")), max_dbs=1, sync=False) as env:
        yield env, env.open_db(b"events")


def record(time, sequence):
    return EVENT_START.pack(time, sequence, bytes(16)) + bytes(4)


BATCHES = st.lists(st.tuples(st.sampled_from([1, 2, 300]), st.lists(st.integers(0, 40), max_size=25)), max_size=12)


@given(
    batches=BATCHES, most=st.integers(1, 6), drops=st.lists(st.integers(0, 30), max_size=3), after=st.integers(0, 99)
)
def test_pieces_hold_a_sorted_list(database, batches, most, drops, after):
    env, db = database
    histories = Histories(WIDTH)
    histories._most = most
    wanted = {1: [], 2: [], 300: []}
    late = dict.fromkeys(wanted, 0)
    sequence = 0
    with env.begin(write=True, buffers=True) as txn:
        for user, times in batches:
            new = []
            for time in times:
                sequence += 1
                if wanted[user] and record(time, sequence) < max(wanted[user]):
                    late[user] = sequence
                wanted[user].append(record(time, sequence))
                new.append(wanted[user][-1])
            histories.insert(txn, db, user, new)
            wanted[user].sort()
            assert histories.read(txn, db, user) == b"".join(wanted[user])
        assert histories.count(txn, db) == sum(map(len, wanted.values()))
        for user, records in wanted.items():
            beyond = max(after, late[user])
            newest = histories.read_newest(txn, db, user, beyond)
            assert b"".join(records).endswith(newest)
            kept = [each for each in records if EVENT_START.unpack_from(each)[1] > beyond]
            assert newest.endswith(b"".join(kept))
            assert len(newest) <= (len(kept) + most) * WIDTH  # it costs what it returns, and a piece
        for drop in drops:
            for user, records in wanted.items():
                histories.drop_oldest(txn, db, user, drop)
                wanted[user] = records[drop:]
                assert histories.read(txn, db, user) == b"".join(wanted[user])
        sizes = [len(value) for _, value in txn.cursor(db)]
        assert all(0 < size <= most * WIDTH for size in sizes)
        txn.abort()


def test_a_history_in_order_fills_its_pieces(database):
    env, db = database
    histories = Histories(WIDTH)
    with env.begin(write=True, buffers=True) as txn:
        for at in range(1, 1_001):
            histories.insert(txn, db, 1, [record(at, at)])
        sizes = [len(value) // WIDTH for _, value in txn.cursor(db)]
        assert sizes[:-1] == [histories._most] * (len(sizes) - 1)
        txn.abort()
