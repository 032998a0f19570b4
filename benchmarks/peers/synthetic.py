"""Make the data that both systems are measured on: histories stored once per user, requests that point into them.

    python benchmarks/peers/synthetic.py DATA --kind plain --length 1000

A user has a few interest categories with weights; a behaviour follows them or, now and then, what everybody does.
Items of a category are drawn head-heavy. A candidate is liked with a probability that rises with the weight of its
category in the user's taste and with the item's quality, so a longer history knows the taste better. The oracle AUC
in the manifest is that of the true probabilities.

A request sees the first `prefix` behaviours of its user, prefix = round(fill * length) with fill uniform in
[0.38, 1]: 0.69 on average. Item 0 is padding and 1 is unknown in both systems; neither occurs.

    manifest.json        sizes, seed, oracle AUC
    item_category.npy    (num_items,) int32, index 2.. like items
    history_offsets.npy  (users + 1,) int64
    history_item.npy     (events,) int32, oldest first
    {train,test}_{single,shared}_{user,prefix}.npy  (requests,) int32
    {train,test}_{single,shared}_{item,label}.npy   (requests, candidates); 1 candidate, or 20 of one history
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from measuring import auc

Array = npt.NDArray[np.generic]

FIRST = 2  # 0 padding, 1 unknown
INTERESTS = 8  # categories of a user's taste
FOLLOWED = 0.85  # share of behaviours that follow the taste
FILL = (0.38, 1.0)
USERS_AT_ONCE = 500
SHARED = 20  # candidates of a request that shares its history
KINDS = {
    # slope of the taste and spread of the quality in the logit of a like
    "plain": {"num_items": 50_000, "num_categories": 500, "slope": 1.5, "quality": 0.5},
    "easy": {"num_items": 20_000, "num_categories": 100, "slope": 5.0, "quality": 1.0},
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    """What is made."""

    kind: str
    length: int  # L, behaviours stored per user
    users: int
    num_items: int  # real ones; the vocabulary has two more
    num_categories: int
    train: int  # samples, candidates counted
    test: int
    slope: float
    quality: float
    seed: int


class World:
    """Tastes of users, categories and qualities of items."""

    def __init__(self, sizes: Sizes) -> None:
        self.sizes = sizes
        rng = np.random.default_rng([sizes.seed, 0])
        self.per_category = sizes.num_items // sizes.num_categories
        self.item_of = rng.permutation(sizes.num_items).reshape(sizes.num_categories, -1)  # head first in each row
        self.category_of = np.empty(sizes.num_items, np.int64)
        self.category_of[self.item_of] = np.arange(sizes.num_categories)[:, None]
        self.quality_of = rng.normal(size=sizes.num_items)
        popularity = 1.0 / np.arange(1, sizes.num_categories + 1)
        self.popular = np.cumsum(popularity / popularity.sum())
        self.interests = np.stack(
            [rng.choice(sizes.num_categories, INTERESTS, replace=False) for _ in range(sizes.users)]
        )
        self.weights = rng.dirichlet(np.ones(INTERESTS), sizes.users)
        self.cumulative = np.cumsum(self.weights, axis=1)

    def items(self, rng: np.random.Generator, user: Array, count: int, followed: float) -> Array:
        """Draw (len(user), count) items of the users' tastes, or of everybody's with 1 - `followed`."""
        shape = (len(user), count)
        place = (rng.random(shape)[:, :, None] > self.cumulative[user][:, None, :-1]).sum(2)
        own = np.take_along_axis(self.interests[user], place, 1)
        common = np.searchsorted(self.popular, rng.random(shape)).clip(max=self.sizes.num_categories - 1)
        category = np.where(rng.random(shape) < followed, own, common)
        return self.item_of[category, (self.per_category * rng.random(shape) ** 3).astype(np.int64)]

    def probability(self, user: Array, item: Array) -> Array:
        """Return the (len(user), C) probability that the users like the items."""
        same = self.category_of[item][:, :, None] == self.interests[user][:, None, :]
        weight = (same * self.weights[user][:, None, :]).sum(2)
        taste = np.log1p(INTERESTS * weight) - 0.5
        return 1.0 / (1.0 + np.exp(-self.sizes.slope * taste - self.sizes.quality * self.quality_of[item]))


def make(folder: Path, sizes: Sizes) -> dict[str, object]:
    """Write the folder and return its manifest; the manifest is written last, so a folder with one is whole."""
    folder.mkdir(parents=True, exist_ok=True)
    world = World(sizes)
    category = np.zeros(sizes.num_items + FIRST, np.int32)
    category[FIRST:] = world.category_of + FIRST
    np.save(folder / "item_category.npy", category)
    np.save(folder / "history_offsets.npy", np.arange(sizes.users + 1, dtype=np.int64) * sizes.length)
    events = np.lib.format.open_memmap(
        folder / "history_item.npy", mode="w+", dtype=np.int32, shape=(sizes.users * sizes.length,)
    )
    rng = np.random.default_rng([sizes.seed, 1])
    for start in range(0, sizes.users, USERS_AT_ONCE):
        user = np.arange(start, min(start + USERS_AT_ONCE, sizes.users))
        drawn = world.items(rng, user, sizes.length, FOLLOWED)
        events[start * sizes.length :][: drawn.size] = (drawn + FIRST).ravel()
    events.flush()
    oracle = {}
    for number, (split, samples) in enumerate((("train", sizes.train), ("test", sizes.test))):
        for shape, count in (("single", 1), ("shared", SHARED)):
            rng = np.random.default_rng([sizes.seed, 2, number, count])
            user = rng.integers(0, sizes.users, samples // count)
            fill = rng.uniform(*FILL, len(user))
            item = world.items(rng, user, count, 0.5)
            probability = world.probability(user, item)
            label = rng.random(probability.shape) < probability
            oracle[f"{split}_{shape}"] = round(auc(label.ravel(), probability.ravel()), 4)
            columns = {
                "user": user.astype(np.int32),
                "prefix": np.maximum(1, np.round(fill * sizes.length)).astype(np.int32),
                "item": (item + FIRST).astype(np.int32),
                "label": label.astype(np.int8),
            }
            for name, column in columns.items():
                np.save(folder / f"{split}_{shape}_{name}.npy", column)
    manifest = asdict(sizes) | {"item_rows": sizes.num_items + FIRST, "category_rows": sizes.num_categories + FIRST}
    manifest |= {"oracle_auc": oracle}
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    return manifest


def sizes_of(kind: str, length: int, *, users: int, train: int, test: int, seed: int) -> Sizes:
    """Return the sizes of one of the `KINDS`."""
    return Sizes(kind=kind, length=length, users=users, train=train, test=test, seed=seed, **KINDS[kind])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kind", choices=sorted(KINDS), default="plain")
    parser.add_argument("--length", type=int, default=1_000)
    parser.add_argument("--users", type=int, default=20_000)
    parser.add_argument("--train", type=int, default=160_000)
    parser.add_argument("--test", type=int, default=40_000)
    parser.add_argument("--seed", type=int, default=0)
    given = vars(parser.parse_args())
    folder = given.pop("folder")
    print(json.dumps(make(folder, sizes_of(given.pop("kind"), given.pop("length"), **given)), indent=2))


if __name__ == "__main__":
    main()
