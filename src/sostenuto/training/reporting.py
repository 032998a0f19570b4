"""What a person sees while a run goes on. The loop knows only `Reporter`; nothing here changes a number."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any, Protocol, TextIO

if TYPE_CHECKING:
    from sostenuto.training.loop import Progress
    from sostenuto.training.memory import MemoryPlan
    from sostenuto.training.validation import Validation


class Reporter(Protocol):
    """Told about a run as it happens."""

    def note(self, text: str) -> None:
        """One remark."""
        ...

    def plan(self, plan: MemoryPlan) -> None:
        """The memory plan, before the first step."""
        ...

    def started(self, name: str, total_steps: int, progress: Progress) -> None:
        """The first (or next, after a resume) step comes now."""
        ...

    def stepped(self, progress: Progress, loss: float, events_per_s: float) -> None:
        """A step is done."""
        ...

    def evaluated(self, validation: Validation, is_best: bool, progress: Progress | None) -> None:
        """Validation was measured."""
        ...

    def finished(self) -> None:
        """No more steps; also called when the run fails."""
        ...


class SilentReporter:
    """Says nothing."""

    def note(self, text: str) -> None:
        """Ignored."""

    def plan(self, plan: MemoryPlan) -> None:
        """Ignored."""

    def started(self, name: str, total_steps: int, progress: Progress) -> None:
        """Ignored."""

    def stepped(self, progress: Progress, loss: float, events_per_s: float) -> None:
        """Ignored."""

    def evaluated(self, validation: Validation, is_best: bool, progress: Progress | None) -> None:
        """Ignored."""

    def finished(self) -> None:
        """Ignored."""


class RichReporter:
    """A live bar with loss, validation GAUC, speed and time left on a terminal; plain lines anywhere else.

    Everything goes to `stream` (stderr by default), so stdout stays free for results.
    """

    LINE_EVERY_S = 30.0  # without a terminal

    def __init__(self, stream: TextIO | None = None) -> None:
        from rich.console import Console

        self.console = Console(file=stream or sys.stderr)
        self._bar: Any = None
        self._task: Any = None
        self._metric = ""
        self._total = 0
        self._first = (0, 0.0)
        self._last_line = 0.0

    def note(self, text: str) -> None:
        """Print one line."""
        self.console.print(text, highlight=False)

    def plan(self, plan: MemoryPlan) -> None:
        """Print the plan as a table."""
        from rich.table import Table

        table = Table(title="Memory plan", title_justify="left", box=None, show_header=False, pad_edge=False)
        table.add_column()
        table.add_column(justify="right")
        for name, size in plan.lines():
            table.add_row(name, f"{size / 2**20:,.0f} MB")
        table.add_row("peak", f"{plan.peak / 2**20:,.0f} MB", style="bold")
        self.console.print(table)
        if plan.advice:
            self.console.print(plan.advice, style="yellow", highlight=False)

    def started(self, name: str, total_steps: int, progress: Progress) -> None:
        """Open the bar."""
        self._total = total_steps
        self._first = (progress.step, time.monotonic())
        self._last_line = time.monotonic()
        if not self.console.is_terminal:
            return
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        self._bar = Bar(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[told]}"),
            console=self.console,
            transient=True,
        )
        self._task = self._bar.add_task(name, total=total_steps, completed=progress.step, told="")
        self._bar.start()

    def stepped(self, progress: Progress, loss: float, events_per_s: float) -> None:
        """Move the bar, or print a line now and then."""
        told = f"loss {loss:.4f}  {self._metric}{events_per_s:,.0f} events/s"
        if self._bar is not None:
            self._bar.update(self._task, completed=progress.step, told=told)
        elif time.monotonic() - self._last_line >= self.LINE_EVERY_S:
            self._last_line = time.monotonic()
            self.note(f"step {progress.step}/{self._total}  {told}  {self._left(progress.step)}")

    def _left(self, step: int) -> str:
        first_step, start = self._first
        each = (time.monotonic() - start) / max(step - first_step, 1)
        return f"about {each * (self._total - step):,.0f} s left"

    def evaluated(self, validation: Validation, is_best: bool, progress: Progress | None) -> None:
        """Show the validation metric."""
        over_all = "".join(f"  {name} {value:.4f}" for name, value in validation.catalogue.items())
        self._metric = f"{'GAUC' if validation.metric == 'gauc' else validation.metric} {validation.value:.4f}  "
        where = f"step {progress.step}: " if progress is not None else ""
        lists = "".join(f"  {name} {value:.4f}" for name, value in validation.by_list.items())
        several = lists if len(validation.by_list) > 1 else ""
        best = "  (best so far)" if is_best and progress is not None else ""
        self.note(
            f"{where}validation GAUC by request {validation.gauc:.4f}{several}  logloss {validation.logloss:.4f}"
            f"{over_all}{best}"
        )

    def finished(self) -> None:
        """Close the bar."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


__all__ = ["Reporter", "RichReporter", "SilentReporter"]
