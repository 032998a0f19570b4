import dataclasses
import subprocess
import sys

import pytest
from tests.contract.batches import PREPARED, view_of

from sostenuto.models import table
from sostenuto.models.table import MODELS, ModelEntry, build, config_class, default_config, entry_of, load_class
from sostenuto.schema.errors import MissingExtra, SpecError


def test_listing_the_table_imports_no_torch():
    code = "import sys, sostenuto.models.table as t; print(len(t.MODELS), 'torch' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.split() == [str(len(MODELS)), "False"]


@pytest.mark.parametrize("name", MODELS)
def test_every_entry_names_itself_and_its_config(name):
    entry = MODELS[name]
    assert entry.name == name
    assert entry.title
    assert dataclasses.is_dataclass(config_class(name))
    assert default_config(name) == config_class(name)()
    assert (entry.objective == "none") == (entry.kind == "rule")


@pytest.mark.parametrize("name", [n for n, e in MODELS.items() if e.kind == "neural"])
def test_every_neural_model_has_a_page_of_configuration_in_plain_values(name):
    parts = [default_config(name)]
    assert isinstance(parts[0], config_class(name))
    for part in parts:
        for field in dataclasses.fields(part):
            value = getattr(part, field.name)
            if dataclasses.is_dataclass(value):
                parts.append(value)
            else:
                assert value is None or isinstance(value, bool | int | float | str | tuple)


def test_an_unknown_name_is_refused_with_the_nearest_one():
    with pytest.raises(SpecError, match="Did you mean 'sdim'"):
        entry_of("sdimm")


def test_a_missing_extra_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(table.EXTRA_MODULES, "trees", "no_such_module_here")
    entry = dataclasses.replace(MODELS["din"], needs=("trees",))
    with pytest.raises(MissingExtra, match=r"pip install 'sostenuto\[trees\]'"):
        load_class(entry)


def test_an_entry_is_plain_data():
    assert dataclasses.asdict(MODELS["din"])["state"] == "growing"
    assert {f.name for f in dataclasses.fields(ModelEntry)} >= {"name", "paper", "kind", "state", "update", "needs"}


def test_a_model_of_another_specification_is_another_model():
    spec = view_of(PREPARED, match=False)
    with_match, without = (
        build("din", default_config("din"), view_of(PREPARED, match=True)),
        build("din", default_config("din"), spec),
    )
    assert with_match.requests.num_match > without.requests.num_match == 0
