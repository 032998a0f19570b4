"""Builds: once each, resumed as straight, refused where something else is there."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from tests.content.counting_encoder import CountingEncoder

from sostenuto.content import building
from sostenuto.content.building import build_encoded, build_vectors
from sostenuto.content.store import ContentStore
from sostenuto.content.texts import item_texts
from sostenuto.data.prepared import PreparedData, arrays_hash
from sostenuto.schema.errors import DataError, SpecError

COLUMNS = ["name", "detail"]
BUILD = """
import sys
from sostenuto.content import building
from sostenuto.content.texts import item_texts
from sostenuto.data.prepared import PreparedData
from tests.content.counting_encoder import CountingEncoder

building.SHARD = 4
data = PreparedData(sys.argv[1])
building.build_encoded(
    data, "text", item_texts(data, ["name", "detail"]), CountingEncoder(pause_s=0.3), settings={"columns": 2}
)
"""


def build(data, encoder=None, name="text", **more):
    encoder = encoder or CountingEncoder()
    return build_encoded(data, name, item_texts(data, COLUMNS), encoder, settings={"columns": 2}, **more)


def test_rows_are_item_indices_and_what_is_not_known_is_zero(shop):
    encoder = CountingEncoder()
    manifest = build(shop, encoder)
    store = ContentStore(shop.folder / "content" / "text")
    texts = item_texts(shop, COLUMNS)
    for item, text in enumerate(texts):
        assert store.known[item] == (text is not None)
        wanted = np.zeros(8) if text is None else encoder.vector(text)
        np.testing.assert_allclose(store.rows(np.array([item]))[0], wanted, atol=2e-3)
    assert not store.vectors[:2].any()
    assert manifest.known_items == sum(text is not None for text in texts)
    assert 0 < manifest.cosine_error_mean <= manifest.cosine_error_max < 1e-6
    assert manifest.bytes == sum(p.stat().st_size for p in store.folder.glob("*.npy"))


def test_equal_texts_are_encoded_once(shop):
    encoder = CountingEncoder()
    manifest = build(shop, encoder)
    texts = {text for text in item_texts(shop, COLUMNS) if text is not None}
    assert sorted(encoder.asked) == sorted(texts)
    assert manifest.distinct == len(texts) < manifest.known_items


def test_content_does_not_disturb_the_hash_of_the_data(shop):
    before = arrays_hash(shop.folder)
    build(shop)
    assert arrays_hash(shop.folder) == before


def test_what_is_there_is_not_built_again(shop):
    first = build(shop)
    encoder = CountingEncoder()
    assert build(shop, encoder) == first
    assert encoder.asked == []


def test_other_settings_are_refused_by_name_until_told_to_overwrite(shop):
    build(shop)
    with pytest.raises(SpecError, match=r"dtype must be 'float16' .* got 'int8'.*--overwrite"):
        build(shop, dtype="int8")
    assert build(shop, dtype="int8", overwrite=True).dtype == "int8"
    assert ContentStore(shop.folder / "content" / "text").vectors.dtype == np.int8
    assert [p.name for p in (shop.folder / "content").iterdir()] == ["text"]


def test_content_of_other_data_is_refused(shop, of_other_data):
    build(shop)
    of_other_data(shop.folder)
    again = PreparedData(shop.folder)
    with pytest.raises(DataError, match="made of data"):
        again.content()
    with pytest.raises(SpecError, match="data_hash must be"):
        build(again)


def test_an_unfinished_build_of_other_settings_is_refused(shop, monkeypatch):
    monkeypatch.setattr(building, "SHARD", 4)

    class Failing(CountingEncoder):
        def encode(self, units):
            if len(self.asked) >= 8:
                raise KeyboardInterrupt
            return super().encode(units)

    with pytest.raises(KeyboardInterrupt):
        build(shop, Failing())
    assert shop.content() == {}
    with pytest.raises(SpecError, match="dtype must be"):
        build(shop, dtype="int8")
    encoder = CountingEncoder()
    build(shop, encoder)
    assert len(encoder.asked) == shop.content()["text"].distinct - 8


def test_a_shard_cut_short_is_made_again(shop, monkeypatch):
    monkeypatch.setattr(building, "SHARD", 4)
    straight = build(shop, name="straight")
    folder = shop.folder / "content" / "text.building"

    class Failing(CountingEncoder):
        def encode(self, units):
            if len(self.asked) >= 8:
                raise KeyboardInterrupt
            return super().encode(units)

    with pytest.raises(KeyboardInterrupt):
        build(shop, Failing())
    shard = folder / "shard-000001.npz"
    shard.write_bytes(shard.read_bytes()[:100])
    resumed = build(shop)
    assert resumed.arrays_hash == straight.arrays_hash


def test_a_killed_build_goes_on_to_the_same_arrays(shop):
    """A real process, killed hard between two shards."""
    straight = build(shop, name="straight")
    root = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(root), *sys.path])}
    command = [sys.executable, "-c", BUILD, str(shop.folder)]
    folder = shop.folder / "content" / "text.building"
    process = subprocess.Popen(command, env=environment, cwd=root)
    deadline = time.monotonic() + 120
    while len(list(folder.glob("shard-*.npz"))) < 2 and time.monotonic() < deadline:
        assert process.poll() is None, "the build ended before it was killed"
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    made = {path.name: path.stat().st_mtime_ns for path in folder.glob("shard-*.npz")}
    assert len(made) >= 2
    assert shop.content().keys() == {"straight"}
    subprocess.run(command, env=environment, cwd=root, check=True, timeout=120)
    resumed = shop.content()["text"]
    assert resumed.arrays_hash == straight.arrays_hash
    assert resumed.seconds >= 0.3 * len(made)
    assert not folder.exists()


def test_an_overwrite_killed_between_its_two_moves_loses_nothing(shop):
    built = build(shop)
    folder = shop.folder / "content" / "text"
    folder.rename(folder.with_name("text.replaced"))
    assert shop.content() == {}
    encoder = CountingEncoder()
    assert build(shop, encoder) == built
    assert encoder.asked == []


def test_arrays_without_a_plan_do_not_stay(shop):
    folder = shop.folder / "content" / "text.building"
    folder.mkdir(parents=True)
    np.save(folder / "states.npy", np.zeros(3))
    build(shop)
    assert not (shop.folder / "content" / "text" / "states.npy").exists()


def test_two_builders_do_not_mix(shop):
    import fcntl

    folder = shop.folder / "content" / "text.building"
    folder.mkdir(parents=True)
    with (folder / ".lock").open("wb") as mark:
        fcntl.flock(mark, fcntl.LOCK_EX)
        with pytest.raises(DataError, match="one process at a time"):
            build(shop)


def test_states_and_tokens_are_written_by_text_and_by_item(shop):
    manifest = build(shop, CountingEncoder(states=True))
    assert manifest.sizes.kinds == {"vectors", "tokens", "states"}
    content = ContentStore(shop.folder / "content" / "text").content()
    texts = item_texts(shop, COLUMNS)
    assert content.states.shape == (manifest.distinct + 1, 3, 8)
    assert not content.states[0].any()
    for item, text in enumerate(texts):
        if text is None:
            assert content.text_row[item] == 0
            assert not content.tokens[item].any()
        else:
            assert content.tokens[item].tolist() == [1, 1 + len(text) % 5, 0]
            np.testing.assert_allclose(content.states[content.text_row[item], 0], content.vectors[item], atol=2e-3)
    assert content.heads == 2
    assert set(content.last_layer) == {"query.weight"}


def test_states_beyond_the_bound_are_refused_before_anything_is_encoded(shop, monkeypatch):
    monkeypatch.setattr(building, "MOST_STATE_BYTES", 100)
    encoder = CountingEncoder(states=True)
    with pytest.raises(SpecError, match="leave --states out"):
        build(shop, encoder)
    assert encoder.asked == []
    assert not (shop.folder / "content").exists()


def test_what_cannot_be_read_is_not_known_and_counted(shop):
    manifest = build(shop, CountingEncoder(unreadable=["Bread"]))
    store = ContentStore(shop.folder / "content" / "text")
    of_bread = [row for row, text in enumerate(item_texts(shop, COLUMNS)) if text == "Bread"]
    assert of_bread
    assert not store.known[of_bread].any()
    assert manifest.unreadable == 1


def test_no_content_at_all_is_refused(shop):
    with pytest.raises(DataError, match="none of 58 has any"):
        build_encoded(shop, "text", [None] * 60, CountingEncoder(), settings={})


@pytest.mark.parametrize("name", ["Text", "a/b", "", "1x", "x.building"])
def test_a_name_that_is_no_folder_is_refused(shop, name):
    with pytest.raises(SpecError, match="content name"):
        build(shop, name=name)


def test_vectors_that_are_there_are_written_the_same_way(shop):
    rng = np.random.default_rng(0)
    vectors, known = rng.normal(size=(60, 5)).astype(np.float32), np.arange(60) % 2 == 0
    manifest = build_vectors(shop, "mine", vectors, known, encoder="vectors", settings={"inputs": "x"}, dtype="int8")
    store = ContentStore(shop.folder / "content" / "mine")
    np.testing.assert_allclose(store.rows(np.arange(4, 60, 2)), vectors[4::2], atol=0.02)
    assert not store.rows(np.array([0, 1, 3])).any()
    assert manifest.known_items == 29  # row 0 is padding
    assert store.nbytes == 60 * 5 + 60 * 4 + 60 + 3 * 128


def test_a_damaged_manifest_or_array_is_refused(shop):
    build(shop)
    folder = shop.folder / "content" / "text"
    np.save(folder / "vectors.npy", np.zeros((3, 3), np.float16))
    with pytest.raises(DataError, match="build the content again"):
        _ = ContentStore(folder).vectors
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"format_version": 99}))
    with pytest.raises(DataError, match="format_version of content must be 1"):
        shop.content()
    (folder / "manifest.json").write_text("{")
    with pytest.raises(DataError, match="damaged"):
        shop.content()
