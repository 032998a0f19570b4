import json

import pytest
from tests.contract.batches import PREPARED, view_of

from sostenuto.models.din import DINConfig
from sostenuto.models.saved import config_from_dict, config_to_dict, load_ranker, read_meta, save_ranker
from sostenuto.models.table import build, default_config
from sostenuto.schema.errors import RunError, SpecError
from sostenuto.schema.features import FeatureSpec

SPEC = view_of(PREPARED, match=True)


@pytest.fixture
def saved(tmp_path):
    save_ranker(tmp_path, "din", default_config("din"), SPEC, build("din", default_config("din"), SPEC))
    return tmp_path


def test_configs_and_features_survive_json():
    config = DINConfig(attention_units=(80, 40), short_recent=7, normalise="none")
    assert config_from_dict(DINConfig, json.loads(json.dumps(config_to_dict(config)))) == config
    assert config_from_dict(FeatureSpec, json.loads(json.dumps(config_to_dict(SPEC)))) == SPEC


def test_unknown_and_wrong_fields_are_refused():
    with pytest.raises(SpecError, match=r"no field 'item_dimm'.*Did you mean 'item_dim'"):
        config_from_dict(DINConfig, {"item_dimm": 3})
    with pytest.raises(SpecError, match=r"DINConfig\.item_dim is refused"):
        config_from_dict(DINConfig, {"item_dim": "many"})
    with pytest.raises(SpecError, match="short_recent must be at least 1"):
        config_from_dict(DINConfig, {"short_recent": 0})


def test_nothing_in_the_folder_can_run_code(saved):
    assert {path.name for path in saved.iterdir()} == {"model.json", "weights.safetensors"}


def test_a_folder_without_model_json_does_not_count(tmp_path):
    with pytest.raises(RunError, match=r"must hold model\.json"):
        load_ranker(tmp_path)


def test_another_format_is_refused(saved):
    meta = json.loads((saved / "model.json").read_text())
    (saved / "model.json").write_text(json.dumps(meta | {"format_version": 99}))
    with pytest.raises(RunError, match=r"format_version of a saved ranker must be 1, .* has 99"):
        read_meta(saved)


@pytest.mark.parametrize("name", ["model.json", "weights.safetensors"])
@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe"])
def test_a_damaged_file_is_named(saved, name, content):
    (saved / name).write_bytes(content)
    with pytest.raises(RunError, match=rf"{name} is damaged"):
        load_ranker(saved)


def test_a_loaded_ranker_is_in_evaluation_mode(saved):
    ranker, meta = load_ranker(saved)
    assert not ranker.training
    assert meta["model"] == "din"
