from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from sostenuto.schema.errors import RunError
from sostenuto.training.checkpoint import load_state, random_state, restore_random_state, save_state, write_text_whole


def test_a_state_comes_back_with_its_tensors(tmp_path: Path) -> None:
    assert load_state(tmp_path) is None
    save_state(tmp_path, {"a": torch.arange(3)}, {"step": 1, "best_value": 0.25})
    save_state(tmp_path, {"a": torch.arange(4)}, {"step": 2, "best_value": None})
    state = load_state(tmp_path)
    assert state is not None
    assert state[0]["a"].tolist() == [0, 1, 2, 3]
    assert state[1] == {"step": 2, "best_value": None}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["state-000000002.safetensors", "state.json"]


def test_half_a_save_leaves_the_state_before_it(tmp_path: Path) -> None:
    save_state(tmp_path, {"a": torch.arange(3)}, {"step": 1})
    (tmp_path / "state-000000002.safetensors.partial").write_bytes(b"half")  # killed while writing tensors
    (tmp_path / "state-000000002.safetensors").write_bytes(b"whole, but not named yet")  # killed before state.json
    (tmp_path / "state.json.partial").write_text("{")
    state = load_state(tmp_path)
    assert state is not None
    assert state[1] == {"step": 1}
    save_state(tmp_path, {"a": torch.arange(3)}, {"step": 2})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["state-000000002.safetensors", "state.json"]


def test_a_state_of_another_format_is_refused(tmp_path: Path) -> None:
    write_text_whole(tmp_path / "state.json", json.dumps({"format_version": 99}))
    with pytest.raises(RunError, match="format_version"):
        load_state(tmp_path)


def test_random_state_is_put_back() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        torch.rand(5)
        state = random_state()
        first = torch.rand(4)
        torch.rand(7)
        restore_random_state(state)
        assert torch.equal(torch.rand(4), first)
