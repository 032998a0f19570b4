"""Data flows one way: who may import whom, held by reading every import statement of the package."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "sostenuto"
ROOMS = [
    *("schema", "ops", "native", "data", "features", "content", "layers", "models", "baselines", "evaluation"),
    *("training", "reports", "bench", "serving", "exploration", "outcomes", "memory", "creative", "recipes", "cli"),
]
WINGS = {"exploration", "outcomes", "memory", "creative"}
TENSOR_ROOMS = {"ops", "layers", "models", "baselines", "training"}  # these may import torch when they are imported


def before(room: str) -> set[str]:
    """Return the rooms to the left of `room`."""
    return set(ROOMS[: ROOMS.index(room)])


ALLOWED = {
    "schema": set(),
    "ops": {"native"},  # the C++ twins are called from ops only
    "native": {"schema"},  # its errors
    "data": {"schema", "ops"},
    "features": {"schema", "ops", "data"},
    "content": {"schema", "ops", "data"},
    "layers": {"schema", "ops"},
    "models": {"schema", "ops", "layers"},
    "baselines": {"schema", "ops", "layers"},
    "evaluation": before("evaluation") - {"native"},
    "training": before("training") - {"native"},
    "reports": before("reports") - {"native"},
    "bench": set(ROOMS) - {"native", "cli", "recipes"},
    "serving": before("serving") - {"native", "training", "bench"},
    **{wing: before("exploration") - {"native", "bench"} for wing in WINGS},
    "recipes": before("recipes") - {"native"},
    "cli": set(ROOMS) - {"native"},
}


def imported_modules(tree: ast.AST, module: str) -> Iterator[str]:
    """Yield the absolute name of every imported module, inside functions and type-checking blocks too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = module.split(".")[: -node.level] if node.level else []
            start = ".".join([*parts, *([node.module] if node.module else [])])
            yield from ([f"{start}.{alias.name}" for alias in node.names] if start == "sostenuto" else [start])


def room_of(module: str) -> str | None:
    """Return the room of one of our modules, None for another's and for the package itself."""
    parts = module.split(".")
    return parts[1] if parts[0] == "sostenuto" and len(parts) > 1 and parts[1] in ROOMS else None


def sources() -> list[Path]:
    return sorted(SOURCE.rglob("*.py"))


def breaches(source: str, module: str) -> list[str]:
    """Return the imports of a module that its room may not make."""
    room = room_of(module)
    if room is None:
        return []
    wanted = {room_of(name) for name in imported_modules(ast.parse(source), module)} - {None, room}
    return sorted(f"{module} imports {other}" for other in wanted - ALLOWED[room])


def module_name(path: Path) -> str:
    parts = ("sostenuto", *path.relative_to(SOURCE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def test_every_room_of_the_package_has_a_rule():
    rooms = {path.parent.name for path in SOURCE.glob("*/__init__.py")}
    assert rooms <= set(ROOMS)
    assert set(ALLOWED) == set(ROOMS)


def test_imports_go_one_way():
    assert [line for path in sources() for line in breaches(path.read_text(encoding="utf-8"), module_name(path))] == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("sostenuto.schema.x", "from sostenuto.data import spec"),
        ("sostenuto.models.x", "def f():\n    import sostenuto.data.prepared"),
        ("sostenuto.models.x", "from sostenuto import evaluation"),
        ("sostenuto.serving.x", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from ..training import loop"),
        ("sostenuto.memory.x", "from sostenuto.outcomes.survival import fit"),
        ("sostenuto.bench.x", "from sostenuto.cli.main import app"),
        ("sostenuto.training.x", "from sostenuto.recipes import compare"),
    ],
)
def test_a_forbidden_import_is_seen(module, source):
    assert len(breaches(source, module)) == 1


def loaded_after(code: str) -> set[str]:
    """Run `code` in a fresh interpreter and return the top-level modules that are loaded afterwards."""
    script = f"{code}\nimport sys\nsys.__stdout__.write(' '.join(sorted({{n.split('.')[0] for n in sys.modules}})))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.rsplit("\n", 1)[-1].split())


def test_importing_the_package_loads_nothing_heavy():
    assert not {"torch", "polars", "numpy", "scipy"} & loaded_after("import sostenuto")


def test_importing_a_room_without_tensors_does_not_load_torch():
    names = [module_name(path) for path in sources() if room_of(module_name(path)) not in TENSOR_ROOMS]
    wanted = [name for name in names if not name.endswith("__main__")]
    assert "torch" not in loaded_after("\n".join(f"import {name}" for name in wanted))


@pytest.mark.parametrize("arguments", [["--help"], ["data", "--help"], ["train", "--help"], ["models", "--help"]])
def test_help_does_not_load_torch(arguments):
    code = (
        "import sys\nfrom sostenuto.cli.main import main\n"
        f"sys.argv = ['sostenuto', *{arguments!r}]\n"
        "try:\n    main()\nexcept SystemExit as done:\n    assert not done.code, done.code"
    )
    assert "torch" not in loaded_after(code)
