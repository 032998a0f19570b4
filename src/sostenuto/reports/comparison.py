"""What a comparison found, as one JSON document: `compare` fills it, `write_report` and `markdown_table` read it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, model_validator

FORMAT_VERSION = 1


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Score(_Record):
    """One metric of one row: mean over seeds, spread between them, interval over users and seeds."""

    mean: float | None
    per_seed: tuple[float | None, ...] = ()
    spread: float | None = None  # standard deviation between seeds
    low: float | None = None  # 95 % interval
    high: float | None = None


class Difference(_Record):
    """A - B on the headline metric, larger is better, tested over users and seeds."""

    difference: float
    low: float
    high: float
    p_holm: float
    seeds_agree: bool
    beats: bool
    loses: bool


class LengthQuality(_Record):
    """Headline metric by length of history."""

    parts: tuple[str, ...]  # ranges of behaviours before the request
    requests: tuple[int, ...]
    value: tuple[float | None, ...]
    low: tuple[float | None, ...]
    high: tuple[float | None, ...]


class Calibration(_Record):
    """Reliability curve over bins of equal mass."""

    probability: tuple[float, ...]
    observed: tuple[float, ...]
    rows: tuple[int, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


class ListResult(_Record):
    """One row on one candidate list."""

    metrics: dict[str, Score]  # gauc_request, gauc_user, auc, ndcg@10, logloss, pcoc, ece ...
    versus_baseline: Difference | None = None  # None for the baseline itself
    by_length: LengthQuality | None = None
    calibration: Calibration | None = None


class TrainingCurve(_Record):
    """One run's way: training loss and validation GAUC by step."""

    seed: int
    loss_step: tuple[float, ...] = ()
    loss: tuple[float, ...] = ()
    valid_step: tuple[float, ...] = ()
    valid_gauc: tuple[float, ...] = ()


class Cost(_Record):
    """What a row costs to make and to run."""

    parameters: int | None = None
    training_s: float | None = None  # mean over seeds, wall clock
    training_samples_s: float | None = None  # candidates that a second of training steps gets through
    serving_ms: float | None = None  # median per request with `candidates` candidates, user state at hand
    encode_ms: float | None = None  # median to encode one user's history of `length` behaviours
    length: int | None = None  # behaviours in the history of the measurement
    candidates: int | None = None
    state_bytes: int | None = None  # of one user at that length, match index left out
    match_bytes: int | None = None  # of the match index beside it


class Row(_Record):
    """One model in one variant."""

    key: str  # unique in the table
    model: str  # name in the table of models
    title: str
    kind: Literal["neural", "fitted", "rule"]
    history: str = "full"  # "full" or "newest 50"
    match: bool = True  # match features on
    lists: dict[str, ListResult]
    cost: Cost = Cost()
    training: tuple[TrainingCurve, ...] = ()
    note: str = ""


class Contrast(_Record):
    """A question that two rows answer, on one list: A against B."""

    question: str  # "full history against newest 50"
    list_name: str
    a: str  # row keys
    b: str
    result: Difference


class DataSummary(_Record):
    """What was ranked, from the prepared folder."""

    name: str
    source: str = ""
    terms: str = ""
    time_zone: str = "UTC"
    counts: dict[str, int] = {}
    first_ms: int | None = None
    last_ms: int | None = None
    splits: dict[str, tuple[int, int]] = {}  # first and last request, ms
    length_edges: tuple[float, ...] = ()  # histogram of history length at test requests; one edge more than counts
    length_counts: tuple[int, ...] = ()
    length_quantiles: dict[str, float] = {}  # "median", "90 %", "longest"
    protocol: str = ""  # name and version
    protocol_text: tuple[str, ...] = ()


class ComparisonResult(_Record):
    """Everything that the report shows."""

    format_version: int = FORMAT_VERSION
    title: str
    headline: str = "gauc_request"  # metric that decides
    lists: tuple[str, ...]
    baseline: str  # row key that marks refer to
    rows: tuple[Row, ...]
    contrasts: tuple[Contrast, ...] = ()
    data: DataSummary
    budget: str = ""
    seeds: tuple[int, ...] = ()
    draws: int = 2000
    settings: dict[str, str] = {}  # further lines of the method section: tuning, early stopping ...
    caveats: tuple[str, ...] = ()
    versions: dict[str, str] = {}
    command: str = ""
    made_at: str = ""  # ISO 8601, for people

    @model_validator(mode="after")
    def _names_agree(self) -> ComparisonResult:
        keys = [row.key for row in self.rows]
        if len(set(keys)) != len(keys):
            raise ValueError(f"rows must have distinct keys, {sorted({k for k in keys if keys.count(k) > 1})} repeat")
        if self.baseline not in keys:
            raise ValueError(f"baseline must be a row key, got {self.baseline!r}; rows are {', '.join(keys)}")
        for contrast in self.contrasts:
            if not {contrast.a, contrast.b} <= set(keys):
                raise ValueError(f"contrasts must name row keys, got {contrast.a!r} and {contrast.b!r}")
        return self

    def row(self, key: str) -> Row:
        """Return a row by its key."""
        return next(row for row in self.rows if row.key == key)

    def ranked(self, list_name: str) -> list[Row]:
        """Rows measured on a list, best headline first; rows without a value last."""

        def place(row: Row) -> float:
            mean = row.lists[list_name].metrics[self.headline].mean
            return float("inf") if mean is None else -mean

        measured = (r for r in self.rows if list_name in r.lists and self.headline in r.lists[list_name].metrics)
        return sorted(measured, key=place)

    def save(self, path: str | Path) -> None:
        """Write as JSON."""
        Path(path).write_text(self.model_dump_json(indent=1) + "\n", encoding="utf-8")


def load_comparison(path: str | Path) -> ComparisonResult:
    """Read what `ComparisonResult.save` wrote."""
    return ComparisonResult.model_validate_json(Path(path).read_text(encoding="utf-8"))


__all__ = [
    "FORMAT_VERSION",
    "Calibration",
    "ComparisonResult",
    "Contrast",
    "Cost",
    "DataSummary",
    "Difference",
    "LengthQuality",
    "ListResult",
    "Row",
    "Score",
    "TrainingCurve",
    "load_comparison",
]
