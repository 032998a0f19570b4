"""The log of served lists: nothing is lost, nothing of the deleted stays."""

import json
import multiprocessing
import os
import threading
import time

import pytest

from sostenuto.schema.errors import SpecError, StoreFull
from sostenuto.serving.served_log import ServedList, ServedLog, ServedLogSettings, read_served


def line(user="u1", n=0, logged_ms=None) -> ServedList:
    return ServedList(
        user_id=user,
        request_id=f"r{n}",
        time_ms=1_000 + n,
        logged_ms=time.time_ns() // 1_000_000 if logged_ms is None else logged_ms,
        operation="rank",
        place="",
        context={"device": "phone"},
        model="din",
        version="v1",
        arm="main",
        policy="deterministic",
        history_length=3,
        candidates=["a", "b", "ü"],
        candidate_fields={"price": [1.0, None, 2.0]},
        order=[2, 0],
        scores=[1.5, 0.25],
        propensities=[1.0, 1.0],
    )


def logged(folder) -> list[tuple[str, str]]:
    return sorted((entry["user_id"], entry["request_id"]) for entry in read_served(folder))


def everything(folder) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


def test_what_is_written_is_read_back(tmp_path):
    log = ServedLog(ServedLogSettings(folder=tmp_path))
    log.write(line())
    log.close()
    (entry,) = read_served(tmp_path)
    assert next(iter(entry)) == "user_id"
    assert entry["candidates"] == ["a", "b", "ü"]
    assert entry["order"] == [2, 0]
    assert entry["candidate_fields"] == {"price": [1.0, None, 2.0]}


def test_many_threads_lose_nothing_over_many_files(tmp_path):
    log = ServedLog(ServedLogSettings(folder=tmp_path, max_bytes=5_000, queue=16))

    def write(worker: int) -> None:
        for n in range(100):
            log.write(line(f"u{worker}", n))

    threads = [threading.Thread(target=write, args=(worker,)) for worker in range(8)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    log.close()
    assert logged(tmp_path) == sorted((f"u{w}", f"r{n}") for w in range(8) for n in range(100))
    assert len(list(tmp_path.glob("served-*.jsonl"))) > 3
    assert log.written == 800


def test_always_means_on_disk_before_the_answer(tmp_path):
    log = ServedLog(ServedLogSettings(folder=tmp_path, fsync="always"))
    log.write(line())
    assert logged(tmp_path) == [("u1", "r0")]
    log.close()


def test_a_user_leaves_no_trace_in_finished_and_open_files(tmp_path):
    log = ServedLog(ServedLogSettings(folder=tmp_path, max_bytes=1_500))
    for n in range(12):
        log.write(line("alice" if n % 3 else "bob", n))
    assert log.forget("alice") == 8
    log.write(line("carol", 12))
    log.close()
    assert {user for user, _ in logged(tmp_path)} == {"bob", "carol"}
    assert b"alice" not in everything(tmp_path)
    assert log._hash("alice") not in b"".join(path.read_bytes() for path in tmp_path.glob("*.users"))


def test_a_user_who_comes_back_is_logged_and_can_be_deleted_again(tmp_path):
    log = ServedLog(ServedLogSettings(folder=tmp_path))
    log.write(line("alice", 1))
    assert log.forget("alice") == 1
    time.sleep(0.005)
    log.write(line("alice", 2))
    log.flush()
    assert logged(tmp_path) == [("alice", "r2")]
    log.close()
    again = ServedLog(ServedLogSettings(folder=tmp_path), start=False)
    assert again.forget("alice") == 1
    again.close()
    assert logged(tmp_path) == []


def test_a_list_from_before_the_deletion_is_not_written_after_it(tmp_path):
    writer = ServedLog(ServedLogSettings(folder=tmp_path))
    other = ServedLog(ServedLogSettings(folder=tmp_path), start=False)
    before = time.time_ns() // 1_000_000
    writer.write(line("alice", 0))
    writer.flush()
    other.forget("alice")
    writer.write(line("alice", 1, logged_ms=before))  # its request came before the deletion
    writer.write(line("bob", 2))
    writer.close()
    other.close()
    assert logged(tmp_path) == [("bob", "r2")]


def test_one_user_is_not_another_whose_id_begins_alike(tmp_path):
    log = ServedLog(ServedLogSettings(folder=tmp_path))
    for user in ("a", "ab", 'a"', "a\\", "ü", "a\n"):
        log.write(line(user))
    assert log.forget("a") == 1
    assert log.forget('a"') == 1
    assert log.forget("a\n") == 1
    log.close()
    assert {user for user, _ in logged(tmp_path)} == {"ab", "a\\", "ü"}


def test_lines_of_a_user_are_found_in_all_files(tmp_path):
    log = ServedLog(ServedLogSettings(folder=tmp_path, max_bytes=1_000))
    for n in range(9):
        log.write(line(f"u{n % 3}", n))
    assert [json.loads(one)["request_id"] for one in log.lines_of("u1")] == ["r1", "r4", "r7"]
    log.close()


def _write_for_a_while(folder, name, count) -> None:
    log = ServedLog(ServedLogSettings(folder=folder, max_bytes=20_000))
    for n in range(count):
        log.write(line("alice" if n % 5 == 0 else name, n))
    log.close()


@pytest.mark.filterwarnings("ignore:This process")
def test_processes_write_and_forget_at_once(tmp_path):
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_write_for_a_while, args=(tmp_path, f"w{n}", 400)) for n in range(2)]
    [writer.start() for writer in writers]
    log = ServedLog(ServedLogSettings(folder=tmp_path), start=False)
    while any(writer.is_alive() for writer in writers):
        log.forget("alice")
        time.sleep(0.01)
    [writer.join() for writer in writers]
    assert [writer.exitcode for writer in writers] == [0, 0]
    log.forget("alice")
    log.close()
    assert logged(tmp_path) == sorted((f"w{w}", f"r{n}") for w in range(2) for n in range(400) if n % 5)


def test_a_line_cut_off_by_a_crash_is_skipped(tmp_path):
    log = ServedLog(ServedLogSettings(folder=tmp_path))
    log.write(line("u1", 0))
    log.write(line("u1", 1))
    log.close()
    (path,) = tmp_path.glob("served-*.jsonl")
    path.write_bytes(path.read_bytes()[:-20])
    assert logged(tmp_path) == [("u1", "r0")]


def test_a_rewrite_that_a_crash_ended_leaves_nothing(tmp_path):
    log = ServedLog(ServedLogSettings(folder=tmp_path))
    log.write(line("alice"))
    log.flush()
    (path,) = tmp_path.glob("served-*.jsonl")
    path.with_suffix(".new").write_bytes(path.read_bytes())
    log.forget("alice")
    log.close()
    assert b"alice" not in everything(tmp_path)


def test_old_files_are_deleted(tmp_path):
    log = ServedLog(ServedLogSettings(folder=tmp_path, max_bytes=100, keep_days=1))
    log.write(line("u1", 0))
    log.flush()
    time.sleep(0.05)
    (old,) = tmp_path.glob("served-*.jsonl")
    os.utime(old, (time.time() - 90_000,) * 2)
    log.write(line("u1", 1))
    log.close()
    assert logged(tmp_path) == [("u1", "r1")]


def test_a_disk_without_room_is_told_where_the_policy_says_so_and_leaves_no_half_line(tmp_path, monkeypatch):
    import sostenuto.serving.served_log as module

    log = ServedLog(ServedLogSettings(folder=tmp_path, fsync="always"))
    log.write(line("u1", 0))
    real, full = os.write, [True]

    def no_room(fd, data):
        if full[0] and fd == log._fd:
            real(fd, bytes(data[:10]))
            raise OSError(28, "No space left on device")
        return real(fd, data)

    monkeypatch.setattr(module.os, "write", no_room)
    with pytest.raises(StoreFull):
        log.write(line("u1", 1))
    full[0] = False
    log.write(line("u1", 2))
    assert log.lost == 1
    log.close()
    assert logged(tmp_path) == [("u1", "r0"), ("u1", "r2")]


@pytest.mark.parametrize("given", [{"max_bytes": 0}, {"queue": 0}, {"keep_days": 0}, {"fsync": "sometimes"}])
def test_settings_that_cannot_be_are_refused(tmp_path, given):
    with pytest.raises(SpecError):
        ServedLogSettings(folder=tmp_path, **given)


def test_another_format_is_refused(tmp_path):
    (tmp_path / "served-x.jsonl").write_text('{"user_id":"u","format":99}\n')
    with pytest.raises(SpecError, match="format"):
        list(read_served(tmp_path))
