"""A world as a prepared folder, without the way through files and `prepare`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from sostenuto.data.content_folder import write_content
from sostenuto.data.prepared import (
    FORMAT_VERSION,
    Behaviours,
    Manifest,
    PreparedData,
    Protocol,
    Requests,
    arrays_hash,
    write_arrays,
    write_behaviours,
    write_manifest,
    write_requests,
)
from sostenuto.data.protocols.core import prefix_lengths
from sostenuto.data.vocabularies import with_specials, write_vocabulary
from sostenuto.data.worlds.drawing import world_log
from sostenuto.data.worlds.files import truth_of
from sostenuto.data.worlds.table import (
    BUY,
    CANDIDATES,
    GROUPS,
    KINDS,
    PLACES,
    TRAIN_SHARE,
    VALID_SHARE,
    VECTOR,
    VIEW,
)
from sostenuto.schema.features import FIRST_KNOWN, FeatureSpec, Field


def world_prepared(
    name: str,
    folder: str | Path,
    *,
    events: int = 20_000,
    users: int | None = None,
    items: int | None = None,
    requests: int | None = None,
    seed: int = 0,
) -> PreparedData:
    """Write a world straight into a prepared folder, without the way through files and `prepare`.

    Requests are split by time: the first 60 % train, then 20 % validation, 20 % test. `truth/<split>.npy` holds the
    true logit of every candidate, aligned with the split's flat candidates; of habits also `<split>.part.npy`.

    Args:
        name:     one of `WORLDS`.
        folder:   prepared folder to write.
        events:   behaviours.
        users:    see `world_log`; so are items and requests.
        items:    number of items.
        requests: number of exposed lists.
        seed:     the same seed gives the same folder.
    """
    log = world_log(name, events=events, users=users, items=items, requests=requests, seed=seed)
    folder = Path(folder)
    count = len(log.request_user)
    cuts = {
        "train": (0, int(count * TRAIN_SHARE)),
        "valid": (int(count * TRAIN_SHARE), int(count * (TRAIN_SHARE + VALID_SHARE))),
        "test": (int(count * (TRAIN_SHARE + VALID_SHARE)), count),
    }
    training = log.event_time_ms < log.request_time_ms[min(cuts["valid"][0], count - 1)]

    # vocabularies: items by training frequency, ties by id
    seen = np.bincount(log.event_item[training], minlength=len(log.item_kind))
    order = np.argsort(-seen, kind="stable")
    index_of = np.empty(len(order), np.int32)
    index_of[order] = np.arange(len(order), dtype=np.int32) + FIRST_KNOWN
    offsets = np.zeros(log.num_users + FIRST_KNOWN + 1, np.int64)
    offsets[FIRST_KNOWN + 1 :] = np.cumsum(np.bincount(log.event_user, minlength=log.num_users))
    behaviours = Behaviours(
        offsets=offsets,
        item=index_of[log.event_item],
        time_ms=log.event_time_ms,
        action=log.event_action.astype(np.int16) + FIRST_KNOWN,
        value=log.event_value,
        place=log.event_place.astype(np.int32) + FIRST_KNOWN,
    )
    write_behaviours(folder, behaviours)

    kind = np.append([0, 1], log.item_kind[order] + FIRST_KNOWN).astype(np.int32)
    group = np.append([0, 1], log.item_group[order] + FIRST_KNOWN).astype(np.int32)
    vector = np.concatenate([np.zeros((2, VECTOR), np.float32), log.item_vector[order]])
    ids = with_specials(pl.Series(order, dtype=pl.Int64))
    pl.DataFrame(
        {
            "item_id": ids,
            "category.group": group,
            "category.kind": kind,
            "field.vector": pl.Series(vector),
            "name": ["", "", *(f"kind {log.item_kind[i]} item {i}" for i in order.tolist())],
        }
    ).write_parquet(folder / "items.parquet")
    write_vocabulary(folder, "item", ids)
    words = {
        "user": map(str, range(log.num_users)),
        "place": map(str, range(PLACES)),
        "action": [VIEW, BUY],
        "group": (f"group {g}" for g in range(GROUPS)),
        "kind": (f"kind {k}" for k in range(KINDS)),
    }
    for word, values in words.items():
        write_vocabulary(folder, word, with_specials(pl.Series(list(values), dtype=pl.String)))

    truth = {}
    spans = {}
    counts = {"events": len(log.event_user), "users": log.num_users, "items": len(order)}
    for split, (begin, end) in cuts.items():
        user = log.request_user[begin:end] + FIRST_KNOWN
        time_ms = log.request_time_ms[begin:end]
        write_requests(
            folder,
            split,
            Requests(
                user=user,
                time_ms=time_ms,
                prefix=prefix_lengths(behaviours, user, time_ms),
                place=log.request_place[begin:end].astype(np.int32) + FIRST_KNOWN,
                offsets=np.arange(end - begin + 1, dtype=np.int64) * CANDIDATES,
                item=index_of[log.candidate_item[begin:end]].ravel(),
                label=log.label[begin:end].ravel(),
                list_id=np.zeros((end - begin) * CANDIDATES, np.uint8),
            ),
        )
        truth[split] = log.logit[begin:end].ravel()
        if name == "habits":
            truth[f"{split}.part"] = log.part[begin:end].ravel()
        counts[f"requests_{split}"] = end - begin
        if end > begin:
            spans[split] = (int(time_ms[0]), int(time_ms[-1]))
    write_arrays(folder / "truth", truth)

    spent = np.log1p(log.event_value[training].astype(np.float64))
    features = FeatureSpec(
        num_items=len(ids),
        num_item_rows=FIRST_KNOWN + int((seen >= 5).sum()),
        categories=(
            Field(name="group", kind="categorical", size=GROUPS + FIRST_KNOWN),
            Field(name="kind", kind="categorical", size=KINDS + FIRST_KNOWN),
        ),
        num_actions=4,
        num_places=PLACES + FIRST_KNOWN,
        item_fields=(Field(name="vector", kind="vector", width=VECTOR),),
        has_value=True,
        value_mean=float(spent.mean()),
        value_std=float(spent.std()),
    )
    write_manifest(
        folder,
        Manifest(
            format_version=FORMAT_VERSION,
            name=name.replace("_", "-"),
            source={"world": truth_of(log)},
            time_zone="UTC",
            seed=seed,
            counts=counts,
            features=features,
            protocol=Protocol(name="exposures", version=1, seed=seed, lists=("shown",), splits=spans),
            arrays_hash=arrays_hash(folder),
        ),
    )
    data = PreparedData(folder)
    for content, vectors in log.item_content.items():
        rows = np.concatenate([np.zeros((FIRST_KNOWN, vectors.shape[1]), np.float32), vectors[order]])
        known = np.arange(len(rows)) >= FIRST_KNOWN
        write_content(folder, content, vectors=rows, known=known, encoder="world")
    return data


__all__ = ["world_prepared"]
