"""`sostenuto export`: a run as a bundle, one folder that a server opens without the data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sostenuto.cli.chosen_run import chosen_run
from sostenuto.cli.output import JsonOption, note, print_json, print_lines

if TYPE_CHECKING:
    from sostenuto.serving.bundle import Bundle
    from sostenuto.serving.drift import Reference
    from sostenuto.training.run import Run

CHECKED = 64  # requests that are scored by the run and by the bundle
REFERENCE = 256  # held-out requests that live ones are compared with


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder, or a comparison: then its best run.")],
    out: Annotated[Path, typer.Option(help="Folder of the bundle; new or empty.")],
    data: Annotated[Path | None, typer.Option(help="Prepared folder. Default: the one of the run.")] = None,
    onnx: Annotated[
        Path | None, typer.Option(help="Also write the scoring of one request as this ONNX file, where it has one.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Write a bundle: the ranker, vocabularies, item table and model card; no users, no behaviours, no code.

    The bundle is opened again, and must give the run's own logits bit for bit.
    """
    from sostenuto.serving.bundle import open_bundle
    from sostenuto.serving.exporting import export_bundle
    from sostenuto.training.run import open_run

    opened = open_run(chosen_run(run), data)
    if opened.finished is None:
        note(f"the run {opened.folder} is not over; its best weights so far are exported")
    if onnx is not None:  # first: where it cannot be had, nothing is written; and items are not kept yet
        from sostenuto.serving.score_graph import export_score, save_onnx

        save_onnx(export_score(opened.ranker, opened.collator.features), onnx)
    manifest = export_bundle(trained(opened), opened.data, out)
    bundle = open_bundle(out)
    requests = check_scores(opened, bundle)
    size = sum(file.bytes for file in manifest.files.values())
    if as_json:
        print_json(
            {
                "bundle": str(out),
                "name": bundle.name,
                "version": bundle.version,
                "model": manifest.model,
                "files": len(manifest.files) + 1,
                "bytes": size,
                "checked_requests": requests,
            }
        )
    else:
        print_lines(
            f"Bundle {bundle.name} {bundle.version}: {manifest.model} on {manifest.data.name}, "
            f"{len(manifest.files) + 1} files, {size / 2**20:.1f} MB, in {out}",
            f"Opened again: equal logits on {requests} requests",
        )


def trained(run: Run) -> Any:
    """Return what is exported of an opened run."""
    from sostenuto.models.table import entry_of
    from sostenuto.serving.exporting import Trained
    from sostenuto.training.run import content_of
    from sostenuto.training.run_folder import read_run

    features = run.collator.features
    return Trained(
        name=run.config.name,
        model=run.config.model,
        config=run.config.model_config,
        features=features,
        view=run.config.view,
        ranker=run.ranker,
        content=content_of(run.config.model, run.data, features) if entry_of(run.config.model).content else {},
        metrics=metrics_of(run),
        versions=read_run(run.folder)["versions"],
        reference=reference_of(run),
    )


def reference_of(run: Run) -> Reference:
    """Measure what live requests will be held against: scores and numbers of candidates of some held-out requests."""
    import numpy as np
    import torch

    from sostenuto.serving.drift import Reference, numbers, numbers_of

    split = next(name for name in ("valid", "test", "train") if len(run.data.requests(name)))
    requests = run.data.requests(split)
    rows = np.unique(np.linspace(0, len(requests) - 1, REFERENCE).astype(np.int64))
    features, scored = run.collator.features, []
    with torch.inference_mode():
        for part in np.array_split(rows, max(1, len(rows) // 16)):
            batch = run.collator.batch(requests, part)
            logits = run.ranker.score(run.ranker.encode(batch.histories), batch.candidates, batch.context).logits
            scored.append((logits.double().numpy(force=True), numbers(features, batch.candidates)))
    return Reference.of(numbers_of(features), scored)


def metrics_of(run: Run) -> dict[str, Any]:
    """Return split -> candidate list -> metric -> value (and interval): what was measured of a run, else validation."""
    import json

    found: dict[str, Any] = {}
    if run.finished is not None:
        done = run.finished
        values = {"all": {done.metric: done.best_value} | {"gauc": done.gauc, "logloss": done.logloss}}
        if len(done.by_list) > 1:
            values |= {name: {"gauc": value} for name, value in done.by_list.items()}
        found["valid"] = {
            name: {metric: {"value": value} for metric, value in measured.items() if value is not None}
            for name, measured in values.items()
        }
    path = run.folder / "metrics.json"
    if path.is_file():
        for split, measured in json.loads(path.read_text(encoding="utf-8")).items():
            found[split] = {name: block["metrics"] for name, block in measured["lists"].items()}
    return found


def check_scores(run: Run, bundle: Bundle) -> int:
    """Score some requests with the run and with its bundle, and refuse a difference. Returns how many were scored."""
    import numpy as np
    import torch

    from sostenuto.schema.errors import BundleError
    from sostenuto.schema.ranker import ItemKeeper

    if isinstance(run.ranker, ItemKeeper):
        run.ranker.keep_items(run.collator.assembler.catalogue())
    split = next(name for name in ("test", "valid", "train") if len(run.data.requests(name)))
    requests = run.data.requests(split)
    rows = np.unique(np.linspace(0, len(requests) - 1, CHECKED).astype(np.int64))
    batch = run.collator.batch(requests, rows)
    with torch.inference_mode():
        logits = [
            ranker.score(ranker.encode(batch.histories), batch.candidates, batch.context).logits
            for ranker in (run.ranker, bundle.ranker)
        ]
    if not torch.equal(*logits):
        worst = float((logits[0] - logits[1]).abs().max())
        raise BundleError(
            f"a bundle must score like its run, {bundle.folder} differs by up to {worst:.3g} on {split} requests; "
            "do not serve it, and report how it was made"
        )
    return len(rows)


__all__ = ["check_scores", "export", "metrics_of", "reference_of", "trained"]
