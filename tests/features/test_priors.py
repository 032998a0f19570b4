"""Priors: groups as the tables and the training log say, and nothing of what came later."""

from __future__ import annotations

import dataclasses
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from sostenuto.data.prepared import PreparedData, write_arrays
from sostenuto.data.worlds import world_prepared
from sostenuto.data.worlds.table import KINDS
from sostenuto.features.cooccurrence import training_events
from sostenuto.features.priors import communities, priors_of
from sostenuto.schema.errors import MissingExtra, SpecError
from sostenuto.schema.features import FeatureSpec, Field
from sostenuto.schema.priors import PriorConfig, Priors, num_groups

SOURCES = {
    "category": PriorConfig(source="category", groups=4),
    "kind": PriorConfig(source="category", name="kind", groups=5),
    "action": PriorConfig(source="action", groups=2),
    "graph": PriorConfig(source="graph", groups=3),
    "user": PriorConfig(source="user", groups=3),
    "none": PriorConfig(source="none"),
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    return world_prepared("stable_taste", tmp_path_factory.mktemp("priors") / "w", events=4_000, items=410, seed=1)


def test_category_groups_are_the_most_frequent_values(world: PreparedData) -> None:
    priors = priors_of(world, SOURCES["kind"])
    lawful = training_events(world)
    kind = world.item_category[:, 1]
    met = np.bincount(kind[np.asarray(world.behaviours.item)[lawful]], minlength=KINDS + 2)
    chosen = [world.vocabulary("kind").index(name) for name in priors.names]
    assert sorted(met[chosen].tolist()) == sorted(met.tolist())[-5:]
    for item in range(len(kind)):
        expected = [kind[item] == value for value in chosen]
        assert priors.items[item].tolist() == (expected if any(expected) else [True] * 5)
    compatible = priors.items[np.asarray(world.behaviours.item, np.int64)[lawful]].sum(0)
    torch.testing.assert_close(priors.share, compatible / compatible.sum())


def test_an_item_of_several_tags_is_in_several_groups(world: PreparedData, monkeypatch: pytest.MonkeyPatch) -> None:
    tags = np.zeros((world.features.num_items, 2), np.int32)
    tags[2:, 0] = 2 + np.arange(world.features.num_items - 2) % 3
    tags[2::2, 1] = 5
    tags[10] = 0
    features = dataclasses.replace(world.features, item_fields=(Field(name="tags", kind="multi", size=6, width=2),))
    monkeypatch.setattr(PreparedData, "features", property(lambda self: features))
    monkeypatch.setattr(PreparedData, "item_field", lambda self, name: tags)
    priors = priors_of(world, PriorConfig(source="tags", groups=8))
    assert priors.items.shape[1] == 4
    at = {name: n for n, name in enumerate(priors.names)}
    assert priors.items[2].nonzero().flatten().tolist() == sorted([at["2"], at["5"]])
    assert priors.items[3].nonzero().flatten().tolist() == [at["3"]]
    assert bool(priors.items[10].all())  # nothing is known of it


def test_actions_say_which_targets_a_head_learns_from(world: PreparedData) -> None:
    priors = priors_of(world, SOURCES["action"])
    assert sorted(priors.names) == ["buy", "view"]
    assert bool(priors.items.all())
    vocabulary = world.vocabulary("action")
    for index in (2, 3):
        assert priors.names[int(priors.actions[index].int().argmax())] == vocabulary[index]
        assert int(priors.actions[index].sum()) == 1
    assert bool(priors.actions[0].all())  # an unknown action is compatible with all


def two_blocks(count: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """Users of the even half meet even nodes, those of the odd half odd ones, with a stray meeting now and then."""
    rng = np.random.default_rng(0)
    by = np.repeat(np.arange(40), 8)
    node = 2 * rng.integers(0, count // 2, len(by)) + by % 2
    node[::37] ^= 1
    return by, node


def test_planted_communities_are_found() -> None:
    by, node = two_blocks()
    found = communities(by, node, 14, 1.0)
    assert len(set(found[0:12:2])) == len(set(found[1:12:2])) == 1
    assert found[0] != found[1]
    assert found[12:].tolist() == [-1, -1]
    np.testing.assert_array_equal(found, communities(by, node, 14, 1.0))


def test_communities_of_users_are_told_from_what_they_met(world: PreparedData) -> None:
    """Users of one kind of taste: the evidence of a user's own behaviours names the community found in the graph."""
    priors = priors_of(world, SOURCES["user"])
    lawful = training_events(world)
    user = np.repeat(np.arange(len(world.behaviours.offsets) - 1), np.diff(world.behaviours.offsets))[lawful]
    item = np.asarray(world.behaviours.item, np.int64)[lawful]
    found = communities(item, user, len(world.behaviours.offsets) - 1, 1.0)
    told = np.zeros((len(found), 3))
    np.add.at(told, user, priors.evidence.numpy()[item])
    inside = (found >= 0) & (found < 3)
    guess = (told + np.log(priors.share.numpy())).argmax(1)
    assert (guess[inside] == found[inside]).mean() > 0.9  # three communities: chance is about .4


@pytest.mark.parametrize("name", SOURCES)
def test_only_training_time_is_used(world: PreparedData, tmp_path: Path, name: str) -> None:
    """Other items and actions at and after the first validation request leave every table as it was."""
    shutil.copytree(world.folder, tmp_path / "changed")
    late = ~training_events(world)
    assert late.any()
    item, action = np.array(world.behaviours.item), np.array(world.behaviours.action)
    item[late] = 2 + np.random.default_rng(0).integers(0, 5, int(late.sum()))
    action[late] = 3
    write_arrays(tmp_path / "changed" / "behaviours", {"item": item, "action": action})
    before, after = priors_of(world, SOURCES[name]), _made_anew(tmp_path / "changed", name)
    for field in dataclasses.fields(before):
        a, b = getattr(before, field.name), getattr(after, field.name)
        assert a == b if field.name == "names" else torch.equal(a, b)
    early = np.array(world.behaviours.item)
    early[~late] = 2 + np.random.default_rng(1).integers(0, 5, int((~late).sum()))
    write_arrays(tmp_path / "changed" / "behaviours", {"item": early, "action": np.where(late, action, 2)})
    if name != "none":  # and the test could have seen it
        moved = _made_anew(tmp_path / "changed", name)
        assert not torch.equal(before.share, moved.share)


def _made_anew(folder: Path, name: str) -> Priors:
    shutil.rmtree(folder / "cache", ignore_errors=True)  # the manifest still has the hash of the unchanged arrays
    return priors_of(PreparedData(folder), SOURCES[name])


def test_communities_are_looked_for_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = world_prepared("stable_taste", tmp_path / "w", events=4_000, items=410, seed=1)
    first = priors_of(data, SOURCES["graph"])
    monkeypatch.setattr("sostenuto.features.priors.communities", lambda *_: pytest.fail("looked for again"))
    assert torch.equal(priors_of(data, SOURCES["graph"]).items, first.items)


def test_scrambled_groups_keep_their_sizes(world: PreparedData) -> None:
    plain, shuffled, everything = (
        priors_of(world, PriorConfig(source="category", groups=4, scramble=how)) for how in ("no", "shuffle", "all")
    )
    assert torch.equal(plain.items.sum(0), shuffled.items.sum(0))
    assert not torch.equal(plain.items, shuffled.items)
    assert bool(everything.items.all())


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (PriorConfig(source="category"), "items have no category"),
        (PriorConfig(source="action"), "the log has no actions"),
        (PriorConfig(source="tags"), "no item field has several values"),
        (PriorConfig(source="tags", name="brnd"), "Did you mean 'brand'"),
    ],
)
def test_what_the_data_lack_is_said(config: PriorConfig, message: str) -> None:
    features = FeatureSpec(num_items=9, num_item_rows=9, item_fields=(Field(name="brand", kind="categorical", size=4),))
    with pytest.raises(SpecError, match=message):
        num_groups(config, features)


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.delitem(sys.modules, "networkx", raising=False)
    with pytest.raises(MissingExtra, match="extra 'graphs'"):
        communities(np.zeros(1, int), np.zeros(1, int), 2, 1.0)


@pytest.mark.parametrize("changes", [{"groups": 0}, {"resolution": 0.0}])
def test_nonsense_is_refused(changes: dict[str, float]) -> None:
    with pytest.raises(SpecError, match=next(iter(changes))):
        PriorConfig(**changes)  # type: ignore[arg-type]
