"""Exit codes, clean errors, and what goes to which stream."""

import json
import subprocess
import sys

import pytest

import sostenuto
from sostenuto.schema.errors import SpecError


def shell(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "sostenuto", *words], capture_output=True, text=True, check=False)


def test_the_version_is_said():
    done = shell("--version")
    assert done.returncode == 0
    assert done.stdout == f"sostenuto {sostenuto.__version__}\n"


@pytest.mark.parametrize(
    "words", [["trian"], ["models", "--jsno"], ["train"], ["rank", "x", "--user", "1", "--k", "0"]]
)
def test_a_wrong_command_line_ends_with_2_and_says_so_on_stderr(words):
    done = shell(*words)
    assert done.returncode == 2
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert done.stderr.strip()


def test_a_failure_is_one_line_on_stderr_and_ends_with_1(tmp_path):
    done = shell("data", "show", str(tmp_path / "nothing"))
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("error: prepared folder must hold manifest.json")
    assert done.stderr.count("\n") == 1


def test_a_refused_option_ends_with_2_and_names_the_nearest(call):
    answer = call("train", "x", "--recipe", "dinn", code=2)
    assert "Did you mean 'din'?" in answer.stderr
    answer = call("train", "x", "--recipe", "din", "--set", "training.learning_rat=1", "--print-config", code=2)
    assert "training.learning_rate" in answer.stderr


def test_debug_lets_the_error_through(call):
    from typer.testing import CliRunner

    from sostenuto.cli.main import app

    answer = CliRunner().invoke(app, ["--debug", "train", "x", "--recipe", "dinn"])
    assert isinstance(answer.exception, SpecError)


def test_models_as_json_is_the_table(call):
    from sostenuto.models.table import MODELS

    listed = json.loads(call("models", "--json").stdout)
    assert [row["name"] for row in listed] == list(MODELS)
    for key in ("paper", "kind", "objective", "state", "update", "needs", "installed"):
        assert all(key in row for row in listed)


def test_models_as_a_table_names_every_model(call):
    from sostenuto.models.table import MODELS

    shown = call("models").stdout
    assert all(name in shown for name in MODELS)


def test_a_file_where_a_folder_must_be_is_named_without_a_traceback(call, tmp_path):
    taken = tmp_path / "taken"
    taken.write_text("not a folder")
    answer = call("data", "synth", "noise", "--events", "1000", "--out", str(taken / "inside"), code=1)
    assert "taken" in answer.stderr
    assert "name another" in answer.stderr or "must" in answer.stderr
