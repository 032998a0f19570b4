"""`score` of one request as a graph that runs without Python: `torch.export`, and an ONNX file made of it.

An extra beside the bundle, for rankers whose scoring has shapes that the number of candidates alone decides: rules,
pooled histories, and rankers whose score is an inner product with the user's state. All others size tensors by what is
in a history (moments, groups, the K kept), which a graph of fixed operators cannot; for them `export_score` says so.
The graph is made of the plain operators and equals their scores.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sostenuto.schema.errors import MissingExtra, SpecError
from sostenuto.schema.histories import Candidates
from sostenuto.serving.invented import invented_history, invented_request

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from sostenuto.schema.features import FeatureSpec
    from sostenuto.schema.histories import Context

SIZES = ((23, 7), (31, 11))  # behaviours and candidates of two requests: what differs between them may vary


class OneRequest(Candidates):
    """The candidates of a single request: all lie in row 0, whatever the offsets say."""

    __slots__ = ()

    @property
    def row(self) -> Tensor:
        """(N,) zeros."""
        import torch

        return torch.zeros_like(self.item)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreGraph:
    """`score` as an exported program; it takes the inputs by place, in the order of `names`."""

    program: torch.export.ExportedProgram
    names: tuple[str, ...]  # such as state.query, candidates.item, context.fields.hour_of_day


def graph_inputs(state: Any, candidates: Candidates, context: Context) -> dict[str, Tensor]:
    """Return the tensors of one request by the names that a graph gives them."""
    found: dict[str, Tensor] = {}
    for name, value in (("state", state), ("candidates", candidates), ("context", context)):
        _flatten(value, name, found)
    return found


def _children(value: Any) -> list[tuple[str, Any]] | None:
    """Return the named parts of a record, a mapping or a tuple; None of anything else."""
    if hasattr(value, "__dataclass_fields__"):
        return [(f.name, getattr(value, f.name)) for f in fields(value)]
    if hasattr(value, "_fields"):
        return [(name, getattr(value, name)) for name in value._fields]
    if isinstance(value, Mapping):
        return list(value.items())
    if isinstance(value, (tuple, list)):
        return [(str(n), part) for n, part in enumerate(value)]
    return None


def _flatten(value: Any, path: str, into: dict[str, Tensor]) -> None:
    import torch

    if isinstance(value, torch.Tensor):
        into[path] = value
    for name, part in _children(value) or []:
        _flatten(part, f"{path}.{name}", into)


def _rebuilt(like: Any, path: str, tensors: Mapping[str, Tensor]) -> Any:
    """Return `like` with the tensors of the same names in place of its own."""
    if path in tensors:
        return tensors[path]
    children = _children(like)
    if children is None:
        return like
    parts = {name: _rebuilt(part, f"{path}.{name}", tensors) for name, part in children}
    if hasattr(like, "__dataclass_fields__"):
        return replace(like, **parts)
    if hasattr(like, "_fields"):
        return like._replace(**parts)
    return parts if isinstance(like, Mapping) else type(like)(parts.values())


def export_score(ranker: Any, features: FeatureSpec) -> ScoreGraph:
    """Trace `score` of one request; histories and candidates of the graph may have any length.

    Args:
        ranker:   in evaluation mode, without kept items.
        features: it was built with.

    Raises:
        SpecError: its scoring cannot be written down as one graph.
    """
    import torch

    from sostenuto.ops.backend import using

    with using(None), torch.no_grad(), _quiet():
        made = []
        for behaviours, count in SIZES:
            candidates, context = invented_request(features, count)
            one = OneRequest(**{f.name: getattr(candidates, f.name) for f in fields(candidates)})
            made.append((ranker.encode(invented_history(features, [behaviours])), one, context))
        first, second = (graph_inputs(*parts) for parts in made)
        like, names = made[0], tuple(first)

        class Score(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.ranker = ranker

            def forward(self, *given: Tensor) -> Tensor:
                tensors = dict(zip(names, given, strict=True))
                places = zip(("state", "candidates", "context"), like, strict=True)
                logits: Tensor = self.ranker.score(*(_rebuilt(part, name, tensors) for name, part in places)).logits
                return logits

        varies = tuple(
            {n: torch.export.Dim.DYNAMIC for n in range(a.ndim) if a.shape[n] != second[name].shape[n]}
            for name, a in first.items()
        )
        try:
            program = torch.export.export(Score().eval(), tuple(first.values()), dynamic_shapes=(varies,), strict=False)
        except Exception as error:  # the tracer has many ways to say that it met a number it must not look at
            why = str(error).strip().partition("\n")[0]
            raise SpecError(
                f"a score graph needs scoring in torch whose shapes no history decides, {type(ranker).__name__} has other "
                f"({why}); serve the bundle instead"
            ) from error
    return ScoreGraph(program=program, names=names)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the tracer's pages of graphs off the terminal: what matters is in the error."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def save_onnx(graph: ScoreGraph, path: str | Path) -> None:
    """Write a score graph as an ONNX file: inputs named as `graph.names`, one output `logits`.

    Raises:
        MissingExtra: the converter is not installed.
    """
    import torch

    try:
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise MissingExtra(
            "an ONNX file needs onnxscript, it is not installed; run `pip install 'sostenuto[onnx]'`"
        ) from error
    with _quiet():
        made = torch.onnx.export(
            graph.program, (), input_names=list(graph.names), output_names=["logits"], dynamo=True, verbose=False
        )
    if made is None:
        raise SpecError(
            f"a score graph must be one that ONNX can say, {path} was not written; serve the bundle instead"
        )
    made.save(str(path))


__all__ = ["OneRequest", "ScoreGraph", "export_score", "graph_inputs", "save_onnx"]
