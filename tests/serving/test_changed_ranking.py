"""The example that `make demo` ends with: it shows what it says, leaves the store as it was and no server behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from tests.serving.server_process import ROOT
from tests.serving.small_bundles import exported, write_whole

from sostenuto.serving.stores.layout import RecordLayout
from sostenuto.serving.stores.opening import open_store
from sostenuto.serving.warming import warm_up

USER = "household-7"


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a bundle and a store."""
    folder = Path(tmp_path_factory.mktemp("shop"))
    data = write_whole(folder / "prepared")
    exported(data, "repeat", folder / "bundle")
    with open_store(folder / "store", RecordLayout.of(data.features.behaviour_fields)) as store:
        warm_up(store, data)
    return folder


def begun(shop: Path, *, path: Path | None = None, bundle: str = "bundle") -> subprocess.Popen[str]:
    """Start the example in a session of its own, whose processes can be counted."""
    found = os.pathsep.join([*([str(path)] if path else []), str(ROOT / "src")])
    command = [sys.executable, str(ROOT / "examples" / "changed_ranking.py"), str(shop / bundle), str(shop / "store")]
    return subprocess.Popen(
        [*command, "--user", USER],
        env={**os.environ, "PYTHONPATH": found},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def session(leader: int) -> list[psutil.Process]:
    """Return the processes of a session."""
    found = []
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == leader and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
    return found


def left(shop: Path) -> set[str]:
    return {path.name for path in shop.iterdir()} - {"prepared", "bundle", "store", "broken"}


def test_an_event_changes_the_ranking_and_a_second_run_shows_the_same(shop):
    told = []
    with open_store(shop / "store") as store:
        before = store.stats()
    for _ in range(2):
        example = begun(shop)
        output, errors = example.communicate(timeout=300)
        assert example.returncode == 0, errors
        assert session(example.pid) == []
        told.append(output)
    assert told[0] == told[1]
    rows = re.findall(r"^ +(\d+) +(-?[\d.]+) +(\d+) +(-?[\d.]+) +(\S+) .*$", told[0], re.MULTILINE)
    assert [int(row[2]) for row in rows] == list(range(1, len(rows) + 1))
    (bought,) = (row for row in rows if f"of {row[4]} " in told[0])
    assert int(bought[0]) == len(rows)  # it stood last; repeat counts it once more now
    assert float(bought[3]) > float(bought[1])
    assert int(bought[2]) < int(bought[0])
    assert told[0].count("<- bought") == 1
    with open_store(shop / "store") as store:
        assert store.stats() == before
    assert left(shop) == set()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_server_too(shop, number):
    example = begun(shop)
    until = time.monotonic() + 120
    while len(session(example.pid)) < 2:
        assert example.poll() is None
        assert time.monotonic() < until
        time.sleep(0.02)
    time.sleep(0.3)  # in the middle of its start
    example.send_signal(number)
    example.communicate(timeout=120)
    assert example.returncode == 128 + number
    assert session(example.pid) == []
    assert left(shop) == set()


def test_a_server_that_does_not_come_up_is_quoted(shop):
    (shop / "broken").mkdir(exist_ok=True)
    example = begun(shop, bundle="broken")
    _, errors = example.communicate(timeout=120)
    assert example.returncode == 1
    assert "did not come up" in errors
    assert "bundle.json" in errors
    assert session(example.pid) == []
    assert left(shop) == set()


def test_what_is_not_installed_is_named_with_the_extra(shop, tmp_path):
    for missing, says in (
        ("lmdb", "lmdb is not installed"),
        ("uvicorn", "needs uvicorn"),
        ("prometheus_client", "needs prom"),
    ):
        folder = tmp_path / missing
        folder.mkdir()
        refusal = f'raise ModuleNotFoundError("No module named {missing}", name="{missing}")'
        (folder / f"{missing}.py").write_text(refusal)
        example = begun(shop, path=folder)
        _, errors = example.communicate(timeout=120)
        assert example.returncode == 1
        assert says in errors
        assert "pip install 'sostenuto[serve]'" in errors


def test_a_folder_that_is_no_store_is_said(shop, tmp_path):
    (tmp_path / "bundle").mkdir()
    example = begun(tmp_path)
    _, errors = example.communicate(timeout=120)
    assert example.returncode == 1
    assert "is no store" in errors
