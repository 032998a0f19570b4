"""What a run is: model, view, training and budget, as one frozen tree that overrides and JSON can reach.

Values are read by the annotations of the dataclasses, never by `eval`; a key that does not exist is refused with the
nearest one that does. This module does not import torch.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from sostenuto.features.view import HistoryView
from sostenuto.schema.errors import SpecError, did_you_mean

T = TypeVar("T")


def _at_least(owner: str, name: str, value: float | None, lowest: float, unit: str = "") -> None:
    if value is not None and not value >= lowest:  # also refuses NaN
        raise SpecError(f"{owner}.{name} must be at least {lowest:g}{unit}, got {value}; raise it")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingConfig:
    """How gradient steps are made. Fitted and rule models read only the batch sizes, seed, device and threads."""

    learning_rate: float = 2e-3  # AdamW on everything that is not a table
    table_learning_rate: float = 2e-3  # touched-row optimiser on embedding tables
    table_optimiser: Literal["adam", "rowwise_adam", "adagrad", "rowwise_adagrad"] = "adam"  # see touched_rows.py
    # row: only touched rows move, each by its own clock; step: all rows at every step, plain Adam, for small tables
    table_clock: Literal["row", "step"] = "row"
    adam_betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 1e-2  # decoupled, on dense matrices only, never on biases and scales
    table_decay: float = 0.3  # decoupled, on touched rows only; see touched_rows.py
    table_decay_by: Literal["touch", "frequency"] = "touch"  # the same at every touch, or divided by the touches
    schedule: Literal["constant", "linear", "cosine"] = (
        "linear"  # after the warm-up, down to a fiftieth at the last step
    )
    warmup_steps: int = 20  # linear rise from 0
    max_grad_norm: float = 5.0  # over all gradients together; inf switches clipping off
    weighting: Literal["candidate", "request", "list"] = "list"  # what counts the same in the loss; see losses.py
    listwise: float = 0.0  # weight of a softmax cross-entropy inside each (request, list), added to the main loss
    batch_requests: int = 16
    # of models that train along timelines: most requests of one user in a batch (drawn anew every epoch); none = all
    requests_per_pass: int | None = None
    first_moments: bool = True  # of next_item: a user's first moment, which has no history, is a target too
    negatives: int = 512  # of next_item: items that each request of a batch is held against
    negative_draws: int = 1  # of next_item: draws of so many items in a batch; its requests take them in turn
    negative_power: float = 0.0  # they are drawn by training frequency to this power; 0 = all items alike
    log_q: bool = False  # divide each by how often it is to be expected; see losses.py
    evaluation_batch_requests: int = 32
    max_events: int = 524_288  # behaviours of one pass, and an eighth of its pairs; larger batches take several passes
    evaluations_per_epoch: int = 4  # on validation
    # what the weights are chosen and training is stopped by, on validation: GAUC by request over the protocol's lists,
    # or, of models that search (next_item), a rank measure over the whole catalogue
    metric: Literal["gauc", "ndcg@10", "recall@10"] = "gauc"
    exclude_seen: bool = False  # that rank leaves out what the user met before, as data without repeats are measured
    patience: int = 4  # evaluations in a row without a better value of it before the run stops; 0 = never
    precision: Literal["float32", "bfloat16"] = "float32"  # of matrix products in training; see docs/performance.md
    steps: int | None = None  # stop after so many steps even inside the budget's epochs
    save_every_s: float = 120.0  # wall-clock seconds between saves for resuming, beside those at evaluations
    save_every_steps: int | None = None
    log_every_steps: int = 10
    seed: int = 0  # initialisation, order of requests, dropout
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int | None = None  # torch intra-op threads; none = leave as the process has it
    prefetch: int = 2  # batches collated ahead
    tensorboard: bool = False  # also write event files; needs the extra `tensorboard`

    def __post_init__(self) -> None:
        for name in ("learning_rate", "table_learning_rate", "weight_decay", "table_decay", "listwise", "save_every_s"):
            _at_least("training", name, getattr(self, name), 0)
        _at_least("training", "negative_power", self.negative_power, 0)
        for name in ("warmup_steps", "patience", "prefetch", "seed"):
            _at_least("training", name, getattr(self, name), 0)
        for name in (
            "batch_requests",
            "requests_per_pass",
            "negatives",
            "negative_draws",
            "evaluation_batch_requests",
            "max_events",
            "evaluations_per_epoch",
            "steps",
            "save_every_steps",
            "log_every_steps",
            "threads",
        ):
            _at_least("training", name, getattr(self, name), 1)
        if self.table_clock == "step" and (self.table_optimiser, self.table_decay_by) != ("adam", "touch"):
            raise SpecError(
                f"training.table_optimiser must be adam, decay by touch, where all rows move at every step, got "
                f"{self.table_optimiser} and {self.table_decay_by}; leave them, or set table_clock=row"
            )
        if not self.max_grad_norm > 0:
            raise SpecError(f"training.max_grad_norm must be above 0, got {self.max_grad_norm}; inf means no clipping")
        if not all(0 <= beta < 1 for beta in self.adam_betas):
            raise SpecError(f"training.adam_betas must be in [0, 1), got {self.adam_betas}; the usual is 0.9,0.999")


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """How many requests a run may use; the same for every model of a comparison. None means all there are."""

    name: str
    train: int | None = None
    valid: int | None = None
    test: int | None = None
    epochs: int = 1  # at most
    seed: int = 0  # draws the requests; not the seed of training, so that seeds of one comparison share requests

    def __post_init__(self) -> None:
        for name in ("train", "valid", "test", "epochs"):
            _at_least("budget", name, getattr(self, name), 1)
        _at_least("budget", "seed", self.seed, 0)


BUDGETS = {
    budget.name: budget
    for budget in (
        Budget(name="smoke", train=200, valid=100, test=100, epochs=1),
        Budget(name="demo", train=4_000, valid=1_000, test=1_500, epochs=2),
        Budget(name="standard", train=20_000, valid=3_000, test=4_000, epochs=2),
        Budget(name="full", epochs=2),
    )
}


def budget_named(name: str) -> Budget:
    """Return a budget of the table; refuse unknown names."""
    if name not in BUDGETS:
        raise SpecError(f"budget must be one of {', '.join(BUDGETS)}, got {name!r}.{did_you_mean(name, BUDGETS)}")
    return BUDGETS[name]


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    """One complete run. Two equal configs on equal data at an equal thread count give equal weights."""

    name: str  # of the recipe; a row of a comparison
    model: str  # of the table of models
    model_config: Any  # the frozen dataclass of that model
    view: HistoryView = field(default_factory=HistoryView)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    budget: Budget = BUDGETS["demo"]


def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _annotations(config: Any) -> dict[str, Any]:
    """Field annotations of a config; a field typed Any takes the type of its value (`model_config`)."""
    hints = _hints(type(config))
    return {f.name: type(getattr(config, f.name)) if hints[f.name] is Any else hints[f.name] for f in _fields(config)}


def _fields(config: Any) -> tuple[dataclasses.Field[Any], ...]:
    return dataclasses.fields(config)


def known_paths(config: Any, prefix: str = "") -> Iterator[str]:
    """Yield the dotted path of every leaf that an override may set.

    >>> list(known_paths(HistoryView()))
    ['recent', 'match', 'content']
    """
    for f in _fields(config):
        value = getattr(config, f.name)
        if dataclasses.is_dataclass(value):
            yield from known_paths(value, f"{prefix}{f.name}.")
        else:
            yield prefix + f.name


def _refused(path: str, wanted: str, got: Any) -> SpecError:
    return SpecError(f"{path} must be {wanted}, got {got!r}; give a value of that type")


def _split(text: str) -> list[str]:
    inner = text.strip()
    if inner[:1] in "([" and inner[-1:] in ")]":
        inner = inner[1:-1]
    return [part.strip() for part in inner.split(",") if part.strip()]


def _optional(annotation: Any) -> tuple[Any, bool]:
    """Return (the one type beside None, whether None is allowed)."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        others = [part for part in typing.get_args(annotation) if part is not type(None)]
        if len(others) == 1:
            return others[0], True
    return annotation, False


def read_text(text: str, annotation: Any, path: str) -> Any:
    """Return the value that `text` of an override means under an annotation.

    >>> read_text("64, 32", tuple[int, ...], "model_config.units")
    (64, 32)
    >>> read_text("none", int | None, "view.recent") is None
    True
    """
    annotation, may_be_none = _optional(annotation)
    if may_be_none and text.strip().lower() in ("none", "null"):
        return None
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is tuple:
        parts = _split(text)
        kinds = [args[0]] * len(parts) if args[-1] is Ellipsis else list(args)
        if len(parts) != len(kinds):
            raise _refused(path, f"{len(kinds)} values with commas between", text)
        return tuple(read_text(part, kind, path) for part, kind in zip(parts, kinds, strict=True))
    if annotation is bool:
        if text.strip().lower() not in ("true", "false"):
            raise _refused(path, "true or false", text)
        return text.strip().lower() == "true"
    if annotation in (int, float):
        try:
            return check_value(annotation(text), annotation, path)
        except ValueError as error:
            if isinstance(error, SpecError):
                raise
            raise _refused(path, "a whole number" if annotation is int else "a number", text) from None
    if origin is Literal and not all(isinstance(choice, str) for choice in args):
        matching = [choice for choice in args if str(choice) == text.strip()]
        return check_value(matching[0] if matching else text, annotation, path)
    return check_value(text, annotation, path)


def check_value(value: Any, annotation: Any, path: str) -> Any:
    """Return a value of JSON as the annotation wants it (lists become tuples); refuse any other type."""
    annotation, may_be_none = _optional(annotation)
    if value is None and may_be_none:
        return None
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is Any:
        return value
    if origin is Literal:
        if value not in args:
            near = did_you_mean(str(value), [str(choice) for choice in args])
            raise SpecError(f"{path} must be one of {', '.join(map(str, args))}, got {value!r}.{near}")
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise _refused(path, "a list", value)
        kinds = [args[0]] * len(value) if args[-1] is Ellipsis else list(args)
        if len(value) != len(kinds):
            raise _refused(path, f"a list of {len(kinds)}", value)
        return tuple(check_value(part, kind, path) for part, kind in zip(value, kinds, strict=True))
    if dataclasses.is_dataclass(annotation):
        if isinstance(value, Mapping):
            return read_dict(typing.cast("type[Any]", annotation), value, path + ".")
        raise _refused(path, "an object", value)
    if annotation is float and isinstance(value, int | float | str) and not isinstance(value, bool):
        number = float(value) if not isinstance(value, str) or value in ("inf", "-inf") else math.nan
        if math.isnan(number):
            raise _refused(path, "a number", value)
        return number
    if annotation in (int, bool, str) and type(value) is annotation:
        return value
    names = {int: "a whole number", bool: "true or false", str: "a text", float: "a number"}
    raise _refused(path, names.get(annotation, str(annotation)), value)


def read_dict(cls: type[T], values: Mapping[str, Any], prefix: str = "") -> T:
    """Build a config dataclass from JSON; missing keys take their default, unknown ones are refused."""
    hints = _hints(cls)
    names = [f.name for f in dataclasses.fields(cls)]  # type: ignore[arg-type]
    for key in values:
        if key not in names:
            raise SpecError(f"{prefix}{key} must be a field of {cls.__name__}, it is none.{did_you_mean(key, names)}")
    missing = [
        f.name
        for f in dataclasses.fields(cls)  # type: ignore[arg-type]
        if f.name not in values and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise SpecError(f"{prefix}{missing[0]} must be given for {cls.__name__}, it is missing; add it")
    return cls(**{key: check_value(value, hints[key], prefix + key) for key, value in values.items()})


def plain(value: Any) -> Any:
    """Return a config as what JSON can hold: dataclasses become objects, tuples lists, infinities texts."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float) and math.isinf(value):
        return str(value)
    return value


def to_dict(config: RunConfig) -> dict[str, Any]:
    """Return a run config as a JSON-able tree."""
    return typing.cast("dict[str, Any]", plain(config))


def from_dict(values: Mapping[str, Any]) -> RunConfig:
    """Read what `to_dict` gave; the type of `model_config` comes from the table of models."""
    from sostenuto.models.table import default_config

    tree = dict(values)
    model = check_value(tree.get("model"), str, "model")
    wanted = type(default_config(model))
    given = check_value(tree.pop("model_config", {}), wanted, "model_config")
    config = read_dict(RunConfig, tree | {"model_config": None})
    return dataclasses.replace(config, model_config=given)


def _changed(config: Any, changes: Mapping[str, Any], prefix: str) -> Any:
    """Rebuild a config once with a tree of texts, so that a pair of overrides is checked together."""
    annotations = _annotations(config)
    new: dict[str, Any] = {}
    for name, change in changes.items():
        path = prefix + name
        value = getattr(config, name)
        if isinstance(change, dict):
            new[name] = _changed(value, change, path + ".")
        elif isinstance(value, Budget):
            new[name] = budget_named(change)
        elif dataclasses.is_dataclass(value):
            first = next(known_paths(value, path + "."))
            raise SpecError(f"{path} must be set field by field, got {change!r}; for example {first}=...")
        else:
            new[name] = read_text(change, annotations[name], path)
    return dataclasses.replace(config, **new)


def apply_overrides(config: RunConfig, overrides: Iterable[str]) -> RunConfig:
    """Return the config with dotted `path=value` overrides, types read from the annotations.

    `budget=standard` takes a whole named budget; fields of it can be set beside it (`budget.train=500`).

    Raises:
        SpecError: a text without `=`, an unknown path (with the nearest known one), a value of another type.
    """
    tree: dict[str, Any] = {}
    known = list(known_paths(config))
    for override in overrides:
        path, equals, text = override.partition("=")
        path = path.strip()
        if not equals:
            raise SpecError(f"an override must look like training.learning_rate=3e-4, got {override!r}; add =VALUE")
        if path == "model":
            raise SpecError(f"model must stay as the recipe {config.name!r} has it, got {text!r}; take another recipe")
        if path == "budget":
            config = dataclasses.replace(config, budget=budget_named(text.strip()))
            continue
        if path not in known and not any(name.startswith(path + ".") for name in known):
            raise SpecError(f"{path} must name a field of the run config, it does not.{_nearest(path, known)}")
        *folders, leaf = path.split(".")
        node = tree
        for part in folders:
            node = node.setdefault(part, {})
        node[leaf] = text
    return typing.cast("RunConfig", _changed(config, tree, ""))


def _nearest(path: str, known: list[str]) -> str:
    """Suggest by the whole path, or by its last part when the folder was left out."""
    leaf = path.rpartition(".")[2]
    same_leaf = [name for name in known if name.rpartition(".")[2] == leaf]
    return f" Did you mean '{same_leaf[0]}'?" if same_leaf else did_you_mean(path, known)


def differences(first: Any, second: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield (path, first, second) of every leaf in which two JSON trees differ.

    >>> list(differences({"a": {"b": 1}}, {"a": {"b": 2}}))
    [('a.b', 1, 2)]
    """
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        for key in sorted({*first, *second}):
            yield from differences(first.get(key), second.get(key), f"{prefix}.{key}" if prefix else str(key))
    elif first != second:
        yield prefix, first, second


__all__ = [
    "BUDGETS",
    "Budget",
    "RunConfig",
    "TrainingConfig",
    "apply_overrides",
    "budget_named",
    "check_value",
    "differences",
    "from_dict",
    "known_paths",
    "plain",
    "read_dict",
    "read_text",
    "to_dict",
]
