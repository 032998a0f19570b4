"""A bundle opens to the ranker that was exported, or says clearly why not; nothing in it can run code."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tests.contract.test_contract import every
from tests.serving.small_bundles import VIEW, asked_batch, exported, logits_of, reseal, trained_on, write_whole

from sostenuto.data.prepared import PreparedData
from sostenuto.features.collation import Collator
from sostenuto.features.view import HistoryView
from sostenuto.models.table import MODELS
from sostenuto.schema.errors import BundleError, SpecError
from sostenuto.serving.bundle import Bundle, Vocabulary, open_bundle
from sostenuto.serving.bundle_manifest import read_manifest
from sostenuto.serving.exporting import export_bundle
from sostenuto.serving.labels import ItemLabels

FUZZED = ("repeat", "logistic", "muse")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    return write_whole(Path(tmp_path_factory.mktemp("whole")) / "prepared")


@pytest.fixture(scope="module")
def bundles(data: PreparedData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a bundle by model; never changed."""
    folder = Path(tmp_path_factory.mktemp("bundles"))
    for name in {*FUZZED, "din"}:
        exported(data, name, folder / name)
    return folder


@pytest.fixture
def copy(bundles: Path, tmp_path: Path) -> Any:
    def copied(name: str = "din") -> Path:
        return shutil.copytree(bundles / name, tmp_path / name)

    return copied


@pytest.fixture
def no_pickle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every door through which a pickle could be read fail loudly."""

    def refused(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("a pickle loader was called")

    for name in ("load", "loads", "_load", "_loads"):
        monkeypatch.setattr(pickle, name, refused)
    for name in ("Unpickler", "_Unpickler"):  # libraries make classes of these when they are imported
        monkeypatch.setattr(pickle, name, type(name, (getattr(pickle, name),), {"load": refused}))
    monkeypatch.setattr(torch, "load", refused)
    monkeypatch.setattr(torch.serialization, "load", refused)
    monkeypatch.setattr(torch.serialization, "_load", refused)
    monkeypatch.setattr(torch.serialization, "_legacy_load", refused)
    monkeypatch.setattr(torch.jit, "load", refused)
    load = np.load

    def without_objects(*args: Any, allow_pickle: bool = False, **kwargs: Any) -> Any:
        assert not allow_pickle
        return load(*args, allow_pickle=False, **kwargs)

    monkeypatch.setattr(np, "load", without_objects)


@every()
def test_a_bundle_scores_bit_for_bit_as_what_was_exported_and_no_pickle_is_read(name, data, tmp_path, no_pickle):
    trained = exported(data, name, tmp_path / "bundle")
    bundle = open_bundle(tmp_path / "bundle")
    batch = asked_batch(data)
    assert torch.equal(logits_of(bundle.ranker, batch), logits_of(trained.ranker, batch))
    assert bundle.entry is MODELS[name]
    assert bundle.config == trained.config
    assert bundle.features == trained.features
    assert bundle.view == VIEW
    assert not getattr(bundle.ranker, "training", False)


def test_the_guards_against_pickles_are_no_straw(tmp_path, no_pickle):
    with pytest.raises(AssertionError, match="pickle loader"):
        pickle.loads(b"")
    with pytest.raises(AssertionError, match="pickle loader"):
        pickle.Unpickler(io.BytesIO(b"")).load()
    with pytest.raises(AssertionError, match="pickle loader"):
        torch.load(tmp_path)
    with pytest.raises(AssertionError):
        np.load(tmp_path / "x.npy", allow_pickle=True)


def test_a_bundle_has_what_building_a_request_needs(data, bundles):
    bundle = open_bundle(bundles / "din")
    collator = Collator(data, VIEW)
    assert bundle.features == collator.features
    without_content = data.features
    assert {f.name for f in bundle.prepared_features.candidate_fields} == set()
    assert bundle.prepared_features.context_fields == without_content.context_fields
    assert bundle.prepared_features.categories == without_content.categories
    assert bundle.prepared_features.match == ()
    assert [f.name for f in bundle.user_fields] == ["age", "segment"]
    assert bundle.time_zone == data.manifest.time_zone
    np.testing.assert_array_equal(bundle.item_category, data.item_category)
    assert set(bundle.item_fields) == {f.name for f in data.features.item_fields}
    np.testing.assert_array_equal(bundle.candidate_items, np.arange(2, data.features.num_item_rows))
    ours, theirs = bundle.catalogue(), collator.assembler.catalogue()
    assert torch.equal(ours.category, theirs.category)
    assert ours.category.dtype == theirs.category.dtype
    for name in ("item", "kind", "place", "segment"):
        assert bundle.vocabulary(name) == data.vocabulary(name)
    label = ItemLabels(data)
    assert [bundle.label(n) for n in range(60)] == [label(n) for n in range(60)]


def test_a_vocabulary_knows_missing_unknown_and_known():
    words = Vocabulary(["", "?", "a", "b"])
    np.testing.assert_array_equal(words.indices(["b", None, "", "?", "c", "a"]), [3, 0, 0, 1, 1, 2])
    assert len(words) == 4


def test_a_bundle_holds_nothing_of_a_user(data, bundles):
    wanted = [raw.encode() for raw in data.vocabulary("user")[2:]]
    for path in sorted(p for p in bundles.rglob("*") if p.is_file()):
        assert path.name not in {"user.parquet", "users.parquet"}
        held = path.read_bytes()
        if path.suffix == ".parquet":  # compressed: look at the values
            held = pl.read_parquet(path).write_json().encode()
        assert not [raw for raw in wanted if raw in held], path
        assert path.suffix in {".json", ".safetensors", ".parquet", ".md"}, path


def test_a_pool_of_the_protocol_says_what_may_be_recommended(data, tmp_path):
    there = shutil.copytree(data.folder, tmp_path / "prepared")
    (there / "pools").mkdir()
    np.save(there / "pools" / "candidate_items.npy", np.array([9, 4, 7], np.int32))
    exported(PreparedData(there), "repeat", tmp_path / "bundle")
    assert open_bundle(tmp_path / "bundle").candidate_items.tolist() == [4, 7, 9]


def test_the_same_ranker_gives_the_same_version_and_another_gives_another(data, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        export_bundle(trained_on(data, "mean_pool", seed=seed), data, tmp_path / name)
    a, b, c = (open_bundle(tmp_path / name).version for name in "abc")
    assert a == b != c
    assert (tmp_path / "a" / "bundle.json").read_bytes() == (tmp_path / "b" / "bundle.json").read_bytes()


def test_the_view_travels_along(data, tmp_path):
    view = HistoryView(recent=3, match=False)
    export_bundle(trained_on(data, "mean_pool", view=view), data, tmp_path / "bundle")
    bundle = open_bundle(tmp_path / "bundle")
    assert bundle.view == view
    assert bundle.features.match == ()


def test_the_card_says_what_one_must_know(bundles):
    card = (bundles / "din" / "MODEL_CARD.md").read_text()
    for text in ("# small din", "synthetic \\| no terms", "fields of a user: age, segment", "gauc_request | 0.5000"):
        assert text in card, text


def test_an_export_over_something_is_refused_and_leaves_it(data, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(SpecError, match="must be a new or an empty folder"):
        export_bundle(trained_on(data, "repeat"), data, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


# -- what is no good bundle --------------------------------------------------------------------------------------------


def test_a_folder_that_is_no_bundle_is_refused(tmp_path):
    with pytest.raises(BundleError, match=r"must hold bundle\.json"):
        open_bundle(tmp_path)
    with pytest.raises(BundleError, match=r"must hold bundle\.json"):
        open_bundle(tmp_path / "nowhere")


def test_another_format_is_refused(copy):
    folder = copy()
    reseal(folder, lambda said: said.update(format_version=99))
    with pytest.raises(BundleError, match=r"format_version of a bundle must be 1, .* has 99"):
        open_bundle(folder)


def test_an_unknown_model_is_refused(copy):
    folder = copy()
    reseal(folder, lambda said: said.update(model="din_of_tomorrow"))
    with pytest.raises(BundleError, match=r"table of models, .* holds 'din_of_tomorrow'"):
        open_bundle(folder)


def test_another_model_than_the_weights_are_of_is_refused(copy):
    folder = copy()
    reseal(folder, lambda said: said.update(model="sdim"))
    with pytest.raises(BundleError, match=r"it holds 'din', bundle\.json says 'sdim'"):
        open_bundle(folder)


@pytest.mark.parametrize("content", ["", "{", "[]", "\xff", "[" * 100_000, '{"format_version": 1}', '{"a": NaN}'])
def test_a_manifest_that_is_none_is_refused(copy, content):
    folder = copy()
    (folder / "bundle.json").write_text(content, encoding="latin-1")
    with pytest.raises(BundleError, match=r"bundle\.json"):
        open_bundle(folder)


def test_a_manifest_with_a_key_too_many_is_refused(copy):
    folder = copy()
    reseal(folder, lambda said: said.update(run_this="please"))
    with pytest.raises(BundleError, match="run_this"):
        open_bundle(folder)


def test_a_changed_manifest_is_refused_although_it_is_json(copy):
    folder = copy()
    path = folder / "bundle.json"
    path.write_text(path.read_text().replace("small din", "large din"))
    with pytest.raises(BundleError, match="must agree with its own hash"):
        open_bundle(folder)


@pytest.mark.parametrize("name", ["../secret", "/etc/hostname", "model/../../secret", "c:secret", "a\\b", ""])
def test_a_path_that_leaves_the_folder_is_refused(copy, name):
    folder = copy()
    (folder.parent / "secret").write_text("x")
    reseal(folder, lambda said: said["files"].update({name: {"bytes": 1, "sha256": "0"}}))
    with pytest.raises(BundleError, match="must be named inside it"):
        open_bundle(folder)


def test_a_link_that_leaves_the_folder_is_refused(copy):
    folder = copy()
    outside = folder.parent / "elsewhere.parquet"
    shutil.move(folder / "items.parquet", outside)
    (folder / "items.parquet").symlink_to(outside)
    with pytest.raises(BundleError, match="must lie inside it"):
        open_bundle(folder)


def test_a_bundle_reached_through_a_link_opens(copy):
    folder = copy("repeat")
    link = folder.parent / "current"
    link.symlink_to(folder)
    assert open_bundle(link).version == open_bundle(folder).version


def test_weights_of_another_configuration_are_refused(copy):
    folder = copy()
    path = folder / "model" / "model.json"
    meta = json.loads(path.read_text())
    meta["config"]["item_dim"] = 4 + meta["config"]["item_dim"]
    path.write_text(json.dumps(meta))
    reseal(folder)
    with pytest.raises(BundleError, match="the ranker of a bundle must be as export wrote it"):
        open_bundle(folder)


def test_weights_without_one_tensor_are_refused(copy):
    folder = copy()
    tensors = load_file(folder / "model" / "weights.safetensors")
    tensors.pop(sorted(tensors)[0])
    save_file(tensors, folder / "model" / "weights.safetensors")
    reseal(folder)
    with pytest.raises(BundleError, match="the ranker of a bundle"):
        open_bundle(folder)


def test_features_that_do_not_fit_the_items_are_refused(copy):
    folder = copy("repeat")
    path = folder / "model" / "model.json"
    meta = json.loads(path.read_text())
    meta["features"]["num_items"] += 1
    path.write_text(json.dumps(meta))
    reseal(folder)
    with pytest.raises(BundleError, match=r"vocab/item\.parquet.*built for 61"):
        open_bundle(folder)


@pytest.mark.parametrize(
    ("value", "text"), [(8, "must lie in 0 .. 7, it reaches 1 .. 8"), (-1, "it reaches -1"), (None, "categorical")]
)
def test_categories_beyond_their_table_are_refused(copy, value, text):
    folder = copy("repeat")
    items = pl.read_parquet(folder / "items.parquet")
    kinds = [value, *items["category.kind"].to_list()[1:]]
    items.with_columns(pl.Series("category.kind", kinds, dtype=pl.Int32)).write_parquet(folder / "items.parquet")
    reseal(folder)
    with pytest.raises(BundleError, match=text):
        open_bundle(folder)


def test_an_item_table_in_another_order_is_refused(copy):
    folder = copy("repeat")
    items = pl.read_parquet(folder / "items.parquet")
    items.reverse().write_parquet(folder / "items.parquet")
    reseal(folder)
    with pytest.raises(BundleError, match="item_id is not the vocabulary of items"):
        open_bundle(folder)


@pytest.mark.parametrize("items", [[5, 4], [1, 2], [2, 60], [2, 2]])
def test_candidate_items_that_are_none_are_refused(copy, items):
    folder = copy("repeat")
    save_file({"item": torch.tensor(items)}, folder / "candidate_items.safetensors")
    reseal(folder)
    with pytest.raises(BundleError, match=r"candidate_items\.safetensors"):
        open_bundle(folder)


def test_missing_and_other_content_is_refused(copy):
    folder = copy("muse")
    reseal(folder, lambda said: said.update(content={}))
    with pytest.raises(BundleError, match=r"reads content 'text', bundle\.json does not have it"):
        open_bundle(folder)
    reseal(folder, lambda said: said.update(content={"text": {"arrays_hash": "0" * 64, "heads": 2}}))
    with pytest.raises(BundleError, match="content 'text' must be the"):
        open_bundle(folder)


def test_a_file_that_the_manifest_does_not_list_is_never_read(copy):
    folder = copy()
    reseal(folder, lambda said: said["files"].pop("items.parquet"))
    with pytest.raises(BundleError, match=r"must list items\.parquet"):
        open_bundle(folder)
    reseal(folder, lambda said: said["files"].pop("model/weights.safetensors"))
    with pytest.raises(BundleError, match="is not listed"):
        open_bundle(folder)


def test_without_verification_sizes_are_still_compared(copy):
    folder = copy("repeat")
    with (folder / "items.parquet").open("ab") as file:
        file.write(b"x")
    with pytest.raises(BundleError, match="must have"):
        open_bundle(folder, verify=False)


# -- damage of any kind ------------------------------------------------------------------------------------------------


def opened_or_refused(folder: Path) -> Bundle | None:
    """Open a bundle; whatever else than a BundleError comes up fails the test."""
    try:
        return open_bundle(folder)
    except BundleError:
        return None


@settings(max_examples=150)
@given(draw=st.data())
def test_a_changed_cut_removed_or_added_file_is_refused_or_changes_nothing(draw, data, bundles):
    name = draw.draw(st.sampled_from(FUZZED))
    with tempfile.TemporaryDirectory() as parent:
        # links are quick to make; only the file that changes is a copy
        folder = shutil.copytree(bundles / name, Path(parent) / name, copy_function=os.link)
        files = sorted(p for p in folder.rglob("*") if p.is_file())
        path = draw.draw(st.sampled_from(files), label="file")
        held = path.read_bytes()
        kind = draw.draw(st.sampled_from(["flip", "cut", "remove", "add", "swap"]))
        path.unlink()
        if kind == "flip":
            at, bit = draw.draw(st.integers(0, len(held) - 1)), draw.draw(st.integers(0, 7))
            path.write_bytes(held[:at] + bytes([held[at] ^ (1 << bit)]) + held[at + 1 :])
        elif kind == "cut":
            path.write_bytes(held[: draw.draw(st.integers(0, len(held) - 1))])
        elif kind == "swap":
            path.write_bytes(draw.draw(st.sampled_from([p for p in files if p != path])).read_bytes())
        elif kind == "add":
            path.write_bytes(held)
            (path.parent / draw.draw(st.sampled_from(["x.json", "y.pkl", ".hidden", "z.parquet"]))).write_bytes(held)
        bundle = opened_or_refused(folder)
        if bundle is None:
            return
        assert kind in {"flip", "add"}, (kind, path)
        whole = open_bundle(bundles / name)
        assert bundle.version == whole.version
        assert bundle.manifest == whole.manifest
        batch = asked_batch(data)
        assert torch.equal(logits_of(bundle.ranker, batch), logits_of(whole.ranker, batch))


def test_no_byte_of_the_manifest_can_change_what_it_says(bundles, tmp_path):
    folder = shutil.copytree(bundles / "repeat", tmp_path / "repeat")
    path = folder / "bundle.json"
    held, whole = path.read_bytes(), read_manifest(bundles / "repeat")
    refused, places = 0, range(0, len(held), 3)
    for at in places:
        path.write_bytes(held[:at] + bytes([held[at] ^ (1 << at % 8)]) + held[at + 1 :])
        try:
            assert read_manifest(folder) == whole
        except BundleError:
            refused += 1
    assert refused > len(places) // 2


@settings(max_examples=100)
@given(draw=st.data())
def test_a_stranger_who_makes_the_hashes_right_again_gets_no_further_than_an_error(draw, bundles):
    """Damage with right hashes reaches every reader; each must fail cleanly or read."""
    with tempfile.TemporaryDirectory() as parent:
        folder = shutil.copytree(bundles / "din", Path(parent) / "din")
        names = ["model/model.json", "model/weights.safetensors", "candidate_items.safetensors"]
        name = draw.draw(st.sampled_from(names))
        held = bytearray((folder / name).read_bytes())
        at = draw.draw(st.integers(0, min(len(held), 4000) - 1))
        held[at] = draw.draw(st.integers(0, 255))
        (folder / name).write_bytes(held)
        reseal(folder)
        opened_or_refused(folder)


SCORED_AFTER_CUT = """
import os, sys
from pathlib import Path
from tests.serving.small_bundles import asked_batch, logits_of
from sostenuto.data.prepared import PreparedData
from sostenuto.serving.bundle import open_bundle
folder = Path(sys.argv[1])
bundle = open_bundle(folder)
batch = asked_batch(PreparedData(Path(sys.argv[2])))
def told():
    logits = logits_of(bundle.ranker, batch)
    return [logits.tolist(), [one.vectors.float().sum().item() for one in bundle.content.values()]]
before = told()
for file in folder.rglob("*"):
    if file.is_file():
        os.truncate(file, 0)
assert told() == before, "what is ranked has changed"
assert before[1][0] != 0
"""


def test_an_open_bundle_reads_nothing_of_its_folder_any_more(data, bundles, tmp_path):
    folder = tmp_path / "cut"
    shutil.copytree(bundles / "muse", folder)
    command = [sys.executable, "-c", SCORED_AFTER_CUT, str(folder), str(data.folder)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr  # a mapped file that is cut ends the process
