"""`sostenuto content` on a small folder; the encoders that need packages have their own tests."""

import json
from importlib.util import find_spec

import numpy as np
import polars as pl
import pytest
from tests.content.conftest import write_shop


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    return write_shop(tmp_path_factory.mktemp("cli") / "shop").folder


@pytest.fixture(scope="module")
def mine(shop, tmp_path_factory):
    path = tmp_path_factory.mktemp("vectors") / "mine.parquet"
    rows = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
    ids = [f"i{k}" for k in range(2, 21)] + ["stranger"]
    pl.DataFrame({"item_id": ids, "vector": rows.tolist()}).write_parquet(path)
    return path


def test_own_vectors_are_built_listed_and_compared(call, shop, mine):
    answer = call("content", "build", shop, "--vectors", mine, "--name", "mine", "--dtype", "int8", "--json")
    built = json.loads(answer.stdout)
    assert built["known_items"] == 19
    assert built["dtype"] == "int8"
    assert built["kinds"] == ["vectors"]
    assert 0 < built["cosine_error_max"] < 1e-3
    assert "1 ids of mine.parquet are not in the data" in answer.stderr
    listed = json.loads(call("content", "list", shop, "--json").stdout)
    assert listed["mine"]["bytes"] == built["bytes"]
    near = json.loads(call("content", "near", shop, "i5", "--name", "mine", "--k", "3", "--json").stdout)
    assert len(near) == 3
    assert near[0]["cosine"] >= near[1]["cosine"]
    assert "mine" in call("content", "list", shop).stdout
    assert "cosine" in call("content", "near", shop, "i5", "--name", "mine").stdout


def test_collaborative_vectors_come_from_the_log(call, shop):
    built = json.loads(call("content", "build", shop, "--encoder", "collaborative", "--dim", "8", "--json").stdout)
    assert built["sizes"]["vector_dim"] == 8
    assert built["sizes"]["name"] == "collaborative"
    assert built["known_items"] > 30


@pytest.mark.skipif(
    not (find_spec("wordllama") and find_spec("tokenizers")), reason="needs the extra 'content-light' (wordllama)"
)
def test_texts_are_encoded_by_the_light_encoder_and_kept(call, shop):
    words = ("content", "build", shop, "--text", "name,detail", "--encoder", "static", "--name", "light")
    shown = call(*words).stdout
    assert "static" in shown
    first = (shop / "content" / "light" / "vectors.npy").stat().st_mtime_ns
    call(*words)
    assert (shop / "content" / "light" / "vectors.npy").stat().st_mtime_ns == first
    assert "--overwrite" in call(*words, "--dtype", "int8", code=2).stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "must be given, got 0"),
        (("--text", "name", "--vectors", "x.parquet"), "got 2"),
        (("--encoder", "minilmm", "--text", "name"), "Did you mean 'minilm'"),
        (("--encoder", "static"), "its own input"),
        (("--encoder", "collaborative", "--text", "name"), "its own input"),
        (("--encoder", "collaborative", "--dtype", "float8"), "--dtype must be one of float16, int8"),
        (("--vectors", "nothing.parquet"), "nothing.parquet is none"),
        (("--vectors", "nothing.xlsx", "--name", "Bad Name"), "nothing.xlsx is none"),
    ],
)
def test_a_wrong_command_says_what_to_do(call, shop, words, said):
    assert said in call("content", "build", shop, *words, code=2).stderr


def test_an_unknown_item_is_named(call, shop, mine):
    call("content", "build", shop, "--vectors", mine, "--name", "mine", "--dtype", "int8")
    assert "must be an item of the log" in call("content", "near", shop, "nobody", "--name", "mine", code=1).stderr
    assert "content build" in call("content", "near", shop, "i5", "--name", "nothing", code=1).stderr
