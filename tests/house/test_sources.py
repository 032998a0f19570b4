"""Small promises about the text of the repository itself."""

import ast
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "src").rglob("*.py"))
DRAWERS = {"utils", "util", "helpers", "helper", "common", "misc", "base"}


def tracked_files() -> list[Path]:
    """Return the files of the repository; outside a checkout (an unpacked sdist) those of its known folders."""
    try:
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
        found = [ROOT / name for name in listed.decode().split("\0") if name]
    except (OSError, subprocess.CalledProcessError):
        found = [p for folder in ("src", "tests", "docs") for p in (ROOT / folder).rglob("*") if p.suffix != ".pyc"]
    return [path for path in found if path.is_file()]


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT / "src")))
def test_public_names_are_sorted_and_exist(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and [getattr(t, "id", None) for t in node.targets] == ["__all__"]:
            names = ast.literal_eval(node.value)
            # ruff's order (RUF022): CONSTANTS, then Classes, then the rest
            assert list(names) == sorted(names, key=lambda n: (0 if n.isupper() else 1 if n[0].isupper() else 2, n))
            assert len(set(names)) == len(names)


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT / "src")))
def test_nothing_can_run_a_strangers_code_or_hide_a_failure(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        where = f"{path.name}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Import):
            assert not {"pickle", "cloudpickle", "dill", "joblib"} & {a.name.split(".")[0] for a in node.names}, where
        elif isinstance(node, ast.ImportFrom):
            assert (node.module or "").split(".")[0] not in {"pickle", "cloudpickle", "dill", "joblib"}, where
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in {"eval", "exec"}, where
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            owner = getattr(node.func.value, "id", None)
            assert (owner, node.func.attr) not in {("torch", "load"), ("torch", "save"), ("np", "load_pickle")}, where
            if node.func.attr == "load" and owner == "np":
                assert all(k.arg != "allow_pickle" for k in node.keywords), where
        elif isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"{where}: a bare except"
        elif isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            assert getattr(node.exc.func, "id", None) != "Exception", where


def test_no_module_is_a_drawer():
    assert [path for path in SOURCES if path.stem in DRAWERS or path.parent.name in DRAWERS] == []


def test_no_file_names_a_machine_or_a_workplace():
    machine_path = re.compile(rb"(?<![\w.])/(?:work|root|opt/wheels|opt/pypi)(?:/|\b(?!-))|/home/\w+/")
    named = []
    for path in tracked_files():
        if path == Path(__file__) or path.suffix in {".png", ".npy", ".parquet", ".gz", ".zst"}:
            continue
        for number, line in enumerate(path.read_bytes().splitlines(), 1):
            if machine_path.search(line):
                named.append(f"{path.relative_to(ROOT)}:{number}")
    assert named == []


def test_no_data_set_is_committed():
    assert [path for path in tracked_files() if path.stat().st_size > 2_000_000] == []


@pytest.mark.slow
def test_the_wheel_holds_the_package_and_its_typing_mark(tmp_path):
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("sostenuto-*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert "sostenuto/py.typed" in names
    assert "sostenuto/schema/errors.py" in names
    assert not [name for name in names if name.startswith(("tests/", "docs/"))]
