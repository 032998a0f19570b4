"""Small bundles over a store, for tests of what a running service does."""

from __future__ import annotations

from pathlib import Path

import torch
from tests.serving.small_bundles import trained_on

from sostenuto.data.prepared import PreparedData
from sostenuto.features.view import HistoryView
from sostenuto.layers.embedding import ItemEmbedding
from sostenuto.serving.bundle import open_bundle
from sostenuto.serving.deployed import Deployed
from sostenuto.serving.exporting import export_bundle
from sostenuto.serving.stores.store import Store

LATER_MS = 2_000_000_000_000  # after every event of the small data


def deployed(data: PreparedData, name: str, folder: Path, store: Store, view: HistoryView | None = None) -> Deployed:
    """Export a ranker, with fixed item vectors where it has room for some, and open it over a store."""
    trained = trained_on(data, name, view=HistoryView() if view is None else view)
    if isinstance(trained.ranker, torch.nn.Module):
        for module in trained.ranker.modules():
            if isinstance(module, ItemEmbedding) and module.vector_dim:
                module.vectors.normal_(generator=torch.Generator().manual_seed(5))
                module.vectors[:2] = 0.0
    export_bundle(trained, data, folder)
    return Deployed.of(open_bundle(folder), store)
