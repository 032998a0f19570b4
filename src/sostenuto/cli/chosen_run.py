"""Which run folder a path means: a run itself, or the best run of a comparison."""

from __future__ import annotations

from pathlib import Path

from sostenuto.schema.errors import RunError


def chosen_run(path: Path) -> Path:
    """Return `path` if it is a run, or the run with the best headline metric if it is a comparison."""
    if (path / "config.json").is_file():
        return path
    if (path / "comparison.json").is_file():
        from sostenuto.recipes.comparison import best_run

        return best_run(path)
    raise RunError(
        f"RUN must be the folder of a run or of a comparison, {path} is neither; make one with `sostenuto train`"
    )


__all__ = ["chosen_run"]
