"""Progress of a long verb on stderr: a bar with time left on a terminal, a line a stage anywhere else."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Any, Self


class StageProgress:
    """Call it with (stage, done, total); the unit of `done` is the caller's."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            Progress,
            TaskProgressColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        self._console = Console(file=sys.stderr, highlight=False)
        self._bars: Any = None
        if self._console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
            self._bars = Progress(*columns, TimeRemainingColumn(), console=self._console)
        self._tasks: dict[str, Any] = {}

    def __enter__(self) -> Self:
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._bars is not None:
            self._bars.stop()

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Show how far a stage is."""
        if self._bars is None:
            if stage not in self._tasks:
                self._tasks[stage] = None
                self._console.print(stage)
            return
        if stage not in self._tasks:
            self._tasks[stage] = self._bars.add_task(stage, total=max(total, 1))
        self._bars.update(self._tasks[stage], completed=done, total=max(total, 1))


__all__ = ["StageProgress"]
