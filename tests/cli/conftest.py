from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from sostenuto.cli.main import app


@pytest.fixture(scope="session")
def call() -> Callable[..., Any]:
    """Run a command line inside this process; the answer has exit_code, stdout and stderr."""

    def run(*words: object, code: int = 0) -> Any:
        answer = CliRunner().invoke(app, [str(word) for word in words])
        assert answer.exit_code == code, answer.output + repr(answer.exception)
        return answer

    return run


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from sostenuto.data.worlds import world_prepared

    folder = Path(tmp_path_factory.mktemp("world")) / "prepared"
    world_prepared("stable_taste", folder, events=4_000)
    return folder


@pytest.fixture(scope="session")
def runs(prepared: Path, call: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two small runs, `repeat` and `mean_pool`."""
    folder = Path(tmp_path_factory.mktemp("runs"))
    for recipe in ("repeat", "mean_pool"):
        call("train", prepared, "--recipe", recipe, "--budget", "smoke", "--out", folder / recipe)
    return folder
