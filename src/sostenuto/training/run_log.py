"""log.jsonl: one JSON object a line, `kind` first; a resumed run cuts off what came after the saved state.

{"kind": "fit", ...}    numbers of a fitted ranker
{"kind": "train", "step", "epoch", "loss", "learning_rate", "grad_norm", "touched_rows", "requests_per_s", ...}
{"kind": "valid", "step", "epoch", "gauc", "gauc.<list>", "logloss", "best", ...}
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from sostenuto.schema.errors import MissingExtra


def _plain_number(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


class RunLog:
    """Appends lines to log.jsonl, and the same numbers to TensorBoard when asked."""

    def __init__(self, path: Path, *, keep_bytes: int = 0, tensorboard: bool = False) -> None:
        """Open the log and keep its first `keep_bytes` bytes."""
        self._board: Any = _summary_writer(path.parent / "tensorboard") if tensorboard else None
        self._file = path.open("ab")
        self._file.truncate(keep_bytes)
        self._file.seek(0, 2)

    @property
    def size(self) -> int:
        """Bytes written so far; a checkpoint remembers it."""
        return self._file.tell()

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one line; NaN and infinity become null."""
        line = {name: _plain_number(value) for name, value in record.items()}
        self._file.write((json.dumps(line, allow_nan=False) + "\n").encode())
        self._file.flush()
        if self._board is not None and "step" in record:
            for name, value in record.items():
                if isinstance(value, int | float) and name not in ("step", "best"):
                    self._board.add_scalar(f"{record['kind']}/{name}", value, record["step"])

    def close(self) -> None:
        """Close the files."""
        self._file.close()
        if self._board is not None:
            self._board.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def _summary_writer(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise MissingExtra(
            "training.tensorboard needs the extra 'tensorboard', which is not installed; "
            "run `pip install 'sostenuto[tensorboard]'` or leave the option out"
        ) from error
    return SummaryWriter(str(folder))


def read_log(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the records of a log; a last line that a kill cut short is left out."""
    with path.open(encoding="utf-8") as file:
        for line in file:
            if line.endswith("\n"):
                yield json.loads(line)


__all__ = ["RunLog", "read_log"]
