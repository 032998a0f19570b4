"""A memory plan before the run: what the process will need at its peak, and for what.

Nothing is guessed that can be known. The heaviest batches of the run are found beforehand (the order of every epoch
is fixed by the seed), one of each kind is run forward and backward in a throw-away way while the bytes of all live
tensors are counted, and the rest is arithmetic. A batch that would not fit is never tried: its need is scaled up from
a light one, and the plan says what to lower.
"""

from __future__ import annotations

import contextlib
import tracemalloc
import weakref
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sostenuto.data.prepared import PreparedData, Requests
from sostenuto.evaluation.catalogue import REQUESTS_AT_ONCE, rank_catalogue
from sostenuto.evaluation.predictions import SCORED_EVENTS
from sostenuto.features.batch_parts import PAIRS_PER_EVENT, batch_parts
from sostenuto.features.loading import RequestLoader
from sostenuto.features.sequences import SequenceLoader
from sostenuto.schema.histories import RequestBatch
from sostenuto.training.config import RunConfig, TrainingConfig
from sostenuto.training.loop import accumulate
from sostenuto.training.losses import Batch, Objective
from sostenuto.training.optimiser import dense_parameters, table_parameters
from sostenuto.training.process_memory import available_bytes, peak_bytes, release_freed, resident_bytes
from sostenuto.training.touched_rows import state_bytes_per_row

Array = npt.NDArray[Any]
Loader = RequestLoader | SequenceLoader

FAULT_BYTES = 1 << 16  # the kernel maps files around a first touch in pieces of this size
PREDICTION_BYTES = 3 * 96  # per scored candidate: parts, joined columns, and sorting for the metric
LIGHT_REQUESTS = 2  # of the heaviest batch, run first to see what the whole one would take
HOLES_SHARE = 0.6  # of what comes and goes: freed pieces that the C library keeps because the next one does not fit
HOLES_MOST = 128 << 20  # pieces above some 32 MB are given back at once, so holes stop growing (two threads allocate)


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPlan:
    """Bytes by purpose. `peak` is what the process holds at most, libraries and opened data included."""

    process: int  # resident without the ranker: interpreter, libraries, opened data, popularity index
    data_pages: int = 0  # of memory-mapped files, still to be read
    tables: int = 0
    dense: int = 0
    gradients: int = 0  # of dense weights; those of touched rows count as activations
    optimiser: int = 0
    batches: int = 0  # collated ahead, and collating
    activations: int = 0  # of the heaviest training batch
    evaluation: int = 0  # of the heaviest validation batch, and predictions
    fitting: int = 0  # design matrix and what the library makes of it
    restoring: int = 0  # state read when a run is resumed
    highest_so_far: int = 0  # peak of the process when the plan was made, trials included
    heaviest: Mapping[str, int] = field(default_factory=dict)  # requests, events, candidates, pairs of that batch
    tried: bool = True  # False: the heaviest batch would not fit and was only scaled up
    available: int = 0  # bytes the machine had left when the plan was made; 0 = unknown
    advice: str = ""

    @property
    def passing(self) -> int:
        """What comes and goes with every batch, at its highest."""
        return self.batches + max(self.gradients + self.activations, self.evaluation, self.restoring)

    @property
    def holes(self) -> int:
        """Freed memory that is kept in the heap."""
        return min(int(HOLES_SHARE * self.passing), HOLES_MOST)

    @property
    def peak(self) -> int:
        """The plan: resident bytes at the highest moment."""
        standing = self.process + self.data_pages + self.tables + self.dense + self.optimiser
        moment = max(self.passing, self.batches + self.fitting)
        return max(standing + moment + self.holes, self.highest_so_far)

    def lines(self) -> Iterator[tuple[str, int]]:
        """Yield (words, bytes) of every part that is not empty."""
        words = {
            "process": "process, libraries, opened data",
            "data_pages": "data still to be read",
            "tables": "embedding tables",
            "dense": "dense weights",
            "gradients": "gradients",
            "optimiser": "optimiser state",
            "batches": "batches collated ahead",
            "activations": "activations, heaviest batch",
            "evaluation": "evaluation (instead of activations)",
            "fitting": "fitting",
            "restoring": "reading the saved state",
            "holes": "freed and kept in the heap",
        }
        for name, text in words.items():
            if size := getattr(self, name):
                yield text, size

    def as_json(self) -> dict[str, Any]:
        """Return the fields and the peak as JSON values, bytes."""
        return {**asdict(self), "heaviest": dict(self.heaviest), "holes": self.holes, "peak": self.peak}


def _mapped(folder: Path) -> dict[str, tuple[int, int]]:
    """Return (size, resident) of the files under `folder` that are memory-mapped now."""
    found: dict[str, tuple[int, int]] = {}
    root = str(folder.resolve())
    with contextlib.suppress(OSError), Path("/proc/self/smaps").open(encoding="utf-8") as file:
        name, size = "", 0
        for line in file:
            head = line.split(None, 5)
            if "-" in head[0] and not head[0].endswith(":"):
                name = head[5].strip() if len(head) > 5 else ""
            elif name.startswith(root) and head[0] == "Size:":
                size = int(head[1]) * 1024
            elif name.startswith(root) and head[0] == "Rss:":
                old = found.get(name, (0, 0))
                found[name] = (old[0] + size, old[1] + int(head[1]) * 1024)
    return found


def pages_to_read(data: PreparedData, parts: Sequence[tuple[Requests, Array]]) -> int:
    """Return the bytes of mapped arrays that requests will touch and that are not resident yet."""
    longest: dict[int, int] = {}
    for requests, rows in parts:
        users, prefix = np.asarray(requests.user)[rows], np.asarray(requests.prefix)[rows]
        for user, length in zip(users.tolist(), prefix.tolist(), strict=True):
            longest[user] = max(longest.get(user, 0), length)
    events, slices = sum(longest.values()), len(longest)
    total = len(data.behaviours.item)
    missing = 0
    for name, (size, resident) in _mapped(data.folder).items():
        is_event_column = Path(name).parent.name == "behaviours" and total
        wanted = min(size, size * events // total + slices * FAULT_BYTES) if is_event_column else size
        missing += max(wanted - resident, 0)
    return missing


# -- how heavy the batches are ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What B batches hold."""

    events: Array  # (B,) behaviours
    candidates: Array  # (B,)
    pairs: Array  # (B,) behaviours x candidates, summed over requests
    rows: tuple[Array, ...]  # request rows of each batch

    def at(self, index: int) -> dict[str, int]:
        """Return the sizes of one batch."""
        return {
            "requests": len(self.rows[index]),
            "events": int(self.events[index]),
            "candidates": int(self.candidates[index]),
            "pairs": int(self.pairs[index]),
        }

    def heaviest(self) -> list[int]:
        """Return the batches to try: that with most pairs, and that with most events unless the first is close."""
        by_pairs, by_events = int(np.argmax(self.pairs)), int(np.argmax(self.events))
        close = self.events[by_pairs] >= 0.95 * self.events[by_events]
        return [by_pairs] if close else [by_pairs, by_events]


def load_of(loader: Loader, epochs: Iterable[int]) -> Load:
    """Weigh every batch of some epochs without collating any."""
    length = loader.events
    candidates = np.diff(np.asarray(loader.requests.offsets))
    rows = tuple(batch for epoch in epochs for batch in loader.batch_rows(epoch))
    return Load(
        events=np.array([loader.batch_events(r) for r in rows]),
        candidates=np.array([int(candidates[r].sum()) for r in rows]),
        pairs=np.array([int((length[r] * candidates[r]).sum()) for r in rows]),
        rows=rows,
    )


def tensor_bytes(value: Any) -> int:
    """Return the bytes of all tensors inside dataclasses and mappings."""
    if isinstance(value, Tensor):
        return int(value.nbytes)
    if isinstance(value, Mapping):
        return sum(tensor_bytes(item) for item in value.values())
    if is_dataclass(value) and not isinstance(value, type):
        return sum(tensor_bytes(getattr(value, f.name)) for f in fields(value))
    return 0


def collating_bytes(loader: Loader, rows: Array) -> tuple[Batch, int]:
    """Return a batch, and the bytes that making it took beyond the batch itself."""
    was_tracing = tracemalloc.is_tracing()
    if not was_tracing:
        tracemalloc.start()
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    try:
        batch = loader.batch_of(rows)
        peak = tracemalloc.get_traced_memory()[1] - before
    finally:
        if not was_tracing:
            tracemalloc.stop()
    return batch, max(peak - tensor_bytes(batch), 0)


def batches_ahead(load: Load, event_bytes: float, candidate_bytes: float, at_once: int) -> int:
    """Return the bytes of the heaviest `at_once` batches in a row."""
    each = load.events * event_bytes + load.candidates * candidate_bytes
    window = min(at_once, len(each))
    if not window:
        return 0
    sums = np.concatenate(([0.0], np.cumsum(each)))
    return int((sums[window:] - sums[:-window]).max())


# -- what a ranker needs ----------------------------------------------------------------------------------------------


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of all tensor storages made while it is active and still alive; remembers the most."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now: int = 0
        self.most: int = 0
        self._known: dict[int, int] = {}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Say that nothing is compiled here: torch would load its compiler, 70 MB, to keep it away."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._count(leaf)
        return out

    def _count(self, tensor: Tensor) -> None:
        if tensor.is_sparse:
            self._count(tensor._indices())
            self._count(tensor._values())
            return
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        size = storage.nbytes()
        self._known[key] = size
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._freed, key)

    def _freed(self, key: int) -> None:
        self.now -= self._known.pop(key, 0)

    def ignore(self, tensors: Iterable[Tensor]) -> None:
        """Leave storages out that were there before."""
        for tensor in tensors:
            self._known.setdefault(tensor.untyped_storage()._cdata, 0)


@contextlib.contextmanager
def thrown_away(ranker: nn.Module) -> Generator[None]:
    """Undo what a trial step leaves behind: gradients, running statistics, random state."""
    changing = ranker.state_dict().keys()  # what is not saved is constant, and may be large
    buffers = {name: value.clone() for name, value in ranker.named_buffers() if name in changing}
    was_training = ranker.training
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        for p in ranker.parameters():
            p.grad = None
        with torch.no_grad():
            for name, value in ranker.named_buffers():
                if name in buffers:
                    value.copy_(buffers[name])
        ranker.train(was_training)


def training_bytes(ranker: nn.Module, batch: Batch, objective: Objective, config: TrainingConfig) -> int:
    """Return the most bytes that one step's forward and backward hold beyond weights and batch."""
    with thrown_away(ranker), LiveBytes() as live:
        live.ignore([*ranker.parameters(), *ranker.buffers()])
        ranker.train()
        accumulate(ranker, batch, objective, config)
    return int(live.most)


def scoring_bytes(ranker: Any, batch: RequestBatch) -> int:
    """Return the most bytes that scoring a batch without gradients holds."""
    with torch.no_grad(), LiveBytes() as live:
        if isinstance(ranker, nn.Module):
            live.ignore([*ranker.parameters(), *ranker.buffers()])
            was_training = ranker.training
            ranker.eval()
        for part in batch_parts(batch, SCORED_EVENTS):
            output = ranker.score(ranker.encode(part.batch.histories), part.batch.candidates, part.batch.context)
            del output
        if isinstance(ranker, nn.Module):
            ranker.train(was_training)
    return int(live.most)


def searching_bytes(ranker: Any, loader: RequestLoader, device: torch.device) -> int:
    """Return the most bytes that ranking the catalogue for one chunk of a loader's requests holds.

    Raises:
        DataError: the catalogue holds no item; better before the first step than after an epoch.
    """
    rows = loader.rows[:REQUESTS_AT_ONCE]
    with LiveBytes() as live:
        live.ignore([*ranker.parameters(), *ranker.buffers()])
        rank_catalogue(
            ranker, loader.collator, "valid", rows=rows, truth=[rows[:0]] * len(rows), most=10, device=device
        )
    return int(live.most)


def optimiser_bytes(ranker: nn.Module, config: TrainingConfig) -> int:
    """Return the bytes of optimiser state that training will hold, before any of it is made."""
    dense = sum(2 * p.nbytes for p in dense_parameters(ranker).values())
    if config.table_clock == "step":  # both moments and a gradient of every row
        return dense + sum(3 * p.nbytes for p in table_parameters(ranker).values())
    kind = config.table_optimiser
    tables = sum(
        p.shape[0] * state_bytes_per_row(kind, p.shape[1], number_bytes=p.element_size())
        for p in table_parameters(ranker).values()
    )
    return dense + tables


@dataclass(frozen=True, slots=True, kw_only=True)
class _Batches:
    """What the batches of a loader need."""

    load: Load
    ahead: int


def _weigh(loader: Loader, epochs: Iterable[int]) -> _Batches | None:
    load = load_of(loader, epochs)
    if not load.rows:
        return None
    index = int(np.argmax(load.events + load.candidates))
    batch, extra = collating_bytes(loader, load.rows[index])
    events, candidates = max(int(load.events[index]), 1), max(int(load.candidates[index]), 1)
    of_events = tensor_bytes(batch.histories)
    of_candidates = tensor_bytes(batch) - of_events
    ahead = batches_ahead(load, of_events / events, of_candidates / candidates, loader.prefetch + 2)
    return _Batches(load=load, ahead=ahead + extra)


def plan_memory(
    ranker: Any,
    config: RunConfig,
    *,
    data: PreparedData,
    train_loader: Loader,
    valid_loader: RequestLoader,
    objective: Objective | None,
    device: torch.device,
    restoring: int = 0,
) -> MemoryPlan:
    """Plan the memory of a run.

    A fitted ranker is asked for `fit_bytes(train_candidates, valid_candidates)`, the bytes its `fit` holds at most.

    Args:
        ranker:       built, on its device; left as it was.
        objective:    of a neural ranker; None for fitted and rule ones.
        restoring:    bytes of the saved state that a resume will read.
    """
    available = available_bytes()
    fit_bytes = getattr(ranker, "fit_bytes", None)
    trains = objective is not None or hasattr(ranker, "fit")
    loaders = [valid_loader, train_loader] if trains else [valid_loader]
    pages = pages_to_read(data, [(loader.requests, loader.rows) for loader in loaders])
    valid = _weigh(valid_loader, (0,))
    epochs = range(config.budget.epochs) if objective is not None else (0,)
    train = _weigh(train_loader, epochs) if trains else None
    weighed = [w for w in (valid, train) if w is not None]
    plan = MemoryPlan(
        process=0,
        data_pages=pages,
        batches=max((w.ahead for w in weighed), default=0),
        restoring=restoring,
        available=available,
    )
    if train is not None:
        plan = replace(plan, heaviest=train.load.at(train.load.heaviest()[0]))
    if fit_bytes is not None and train is not None:
        rows = int(train.load.candidates.sum()), int(valid.load.candidates.sum()) if valid else 0
        plan = replace(plan, fitting=int(fit_bytes(*rows)))
    if objective is not None and train is not None:
        tables = sum(p.nbytes for p in table_parameters(ranker).values())
        plan = replace(
            plan,
            tables=tables,
            dense=sum(p.nbytes for p in ranker.parameters()) + sum(b.nbytes for b in ranker.buffers()) - tables,
            gradients=sum(p.nbytes for p in dense_parameters(ranker).values()),
            optimiser=optimiser_bytes(ranker, config.training),
        )
        plan = _with_activations(plan, ranker, train, train_loader, objective, config, device)
    if valid is not None:
        scoring = int(valid.load.candidates.sum()) * PREDICTION_BYTES
        if plan.tried and not hasattr(ranker, "fit"):
            heaviest = int(np.argmax(valid.load.pairs + valid.load.events))
            batch = valid_loader.batch_of(valid.load.rows[heaviest])
            scoring += scoring_bytes(ranker, batch.to(device))
            del batch
        if config.training.metric != "gauc":
            scoring = max(scoring, searching_bytes(ranker, valid_loader, device))
        plan = replace(plan, evaluation=scoring)
    # after the trials: what they made the system load of libraries stays, what they allocated is given back
    release_freed()
    process = resident_bytes() - (plan.tables + plan.dense if device.type == "cpu" else 0)
    return _advised(replace(plan, process=max(process, 0), highest_so_far=peak_bytes()), config)


def _with_activations(
    plan: MemoryPlan,
    ranker: nn.Module,
    train: _Batches,
    loader: Loader,
    objective: Objective,
    config: RunConfig,
    device: torch.device,
) -> MemoryPlan:
    """Run the heaviest batches; scale up from a light one when they would not fit."""
    load = train.load
    by_pairs = int(np.argmax(load.pairs))
    light_rows = load.rows[by_pairs][:LIGHT_REQUESTS]
    light = loader.batch_of(light_rows).to(device)
    per_request = loader.events[light_rows] * np.diff(np.asarray(loader.requests.offsets))[light_rows]
    light_pairs, light_events = max(int(per_request.sum()), 1), max(int(light.histories.item.shape[0]), 1)
    light_bytes = training_bytes(ranker, light, objective, config.training)
    most_events = config.training.max_events  # of a pass; a batch may take several
    pairs = min(int(load.pairs[by_pairs]), most_events * PAIRS_PER_EVENT)
    events = min(int(load.events[by_pairs]), most_events)
    grown = max(pairs / light_pairs, events / light_events, 1.0)
    if objective.needs_negatives:  # candidates meet no behaviours, but a query and the shared negatives
        grown = max(len(load.rows[by_pairs]) / max(len(light_rows), 1), events / light_events, 1.0)
    whole = int(light_bytes * grown)
    if plan.available and whole > 0.9 * plan.available:
        return replace(plan, activations=whole, heaviest=load.at(by_pairs), tried=False)
    most, at = 0, by_pairs
    for index in load.heaviest():
        batch = loader.batch_of(load.rows[index]).to(device)
        used = training_bytes(ranker, batch, objective, config.training)
        if used > most:
            most, at = used, index
    held = max(most - plan.gradients, 0)
    return replace(plan, activations=held, heaviest=load.at(at))


def _advised(plan: MemoryPlan, config: RunConfig) -> MemoryPlan:
    """Say what to lower when the plan does not fit."""
    room = plan.available + plan.process
    if not plan.available or plan.peak <= room:
        return plan
    each = config.training.batch_requests
    fits = max(1, int(each * (room - (plan.peak - plan.activations)) / max(plan.activations, 1)))
    lower = f"training.batch_requests={min(fits, each - 1)}" if each > 1 and plan.activations else "view.recent=1000"
    return replace(
        plan,
        advice=(
            f"the plan needs {plan.peak / 2**20:,.0f} MB but only {room / 2**20:,.0f} MB are there; try {lower}, "
            "a shorter view.recent, or a model of bounded state such as sdim"
        ),
    )


__all__ = [
    "LiveBytes",
    "Load",
    "MemoryPlan",
    "load_of",
    "optimiser_bytes",
    "plan_memory",
    "scoring_bytes",
    "tensor_bytes",
    "training_bytes",
]
