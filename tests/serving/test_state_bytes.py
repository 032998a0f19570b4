"""States survive their way through bytes bit for bit, and no other bytes become a state."""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.contract.batches import batches, make_batch, split_history
from tests.contract.test_contract import every, logits_of, ready, specs_of
from torch import Tensor, nn

from sostenuto.models.table import MODELS
from sostenuto.schema.errors import StateError
from sostenuto.serving.state_bytes import (
    ALIGNMENT,
    NAMES,
    PREAMBLE,
    StateForm,
    state_from_bytes,
    state_num_bytes,
    state_to_bytes,
)


class Pair(NamedTuple):
    first: Tensor
    second: Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Inner:
    rows: Tensor
    parts: Any


@dataclass(frozen=True, slots=True)
class Outer:
    inner: Inner | None
    pairs: tuple[Pair, ...]
    named: dict[str, Any]
    others: list[Any]


@dataclass(frozen=True, slots=True)
class Stranger:
    rows: Tensor


def whole() -> Outer:
    """A state with everything that a state may hold."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(5, 3, generator=generator)
    every_type = {name: (torch.arange(4) % 2).to(getattr(torch, name)) for name in NAMES}
    numbers = {"nan": float("nan"), "huge": 1e300, "count": 2**60, "text": "ä\n", "yes": True, "none": None}
    return Outer(
        inner=Inner(rows=rows, parts=(rows[1:], torch.tensor(3.5), torch.empty(0, 7), rows.t())),
        pairs=(Pair(rows, None), Pair(torch.ones(1, 1).expand(1, 1), np.arange(6, dtype=np.int16).reshape(2, 3))),
        named=every_type | numbers | {"array": np.float64(2.0) * np.ones((0, 2))},
        others=[[], (), {}, rows],
    )


def assert_equal(a: Any, b: Any) -> None:
    """Hold values, types and shapes equal to the bit."""
    assert type(a) is type(b)
    if isinstance(a, Tensor):
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        assert torch.equal(a, b)
    elif isinstance(a, np.ndarray):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    elif isinstance(a, float):
        assert a == b or (a != a and b != b)
    elif isinstance(a, dict):
        assert list(a) == list(b)
        for key in a:
            assert_equal(a[key], b[key])
    elif isinstance(a, (tuple, list)):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_equal(x, y)
    elif hasattr(a, "__slots__"):
        for name in a.__slots__:
            assert_equal(getattr(a, name), getattr(b, name))
    else:
        assert a == b


@every()
@settings(max_examples=6)
@given(data=st.data())
def test_a_state_from_bytes_scores_bit_for_bit_the_same(name, data):
    spec = data.draw(st.sampled_from(specs_of(name)))
    ranker, batch = ready(name, spec), data.draw(batches(spec))
    like = StateForm.of_ranker(ranker, spec)
    with torch.inference_mode():
        blob = state_to_bytes(ranker.encode(batch.histories))
        logits = ranker.score(state_from_bytes(blob, like), batch.candidates, batch.context).logits
    assert torch.equal(logits, logits_of(ranker, batch))


@every()
def test_a_state_from_bytes_takes_later_events_in(name):
    if MODELS[name].update == "none":
        pytest.skip(f"{name} cannot fold events in")
    spec = specs_of(name)[-1]
    ranker, batch = ready(name, spec), make_batch(spec, [(0, 2), (9, 3), (40, 2)], 3)
    like = StateForm.of_ranker(ranker, spec)
    early, later = split_history(batch.histories, 0.6)
    with torch.inference_mode():
        kept = ranker.encode(early)
        read = state_from_bytes(state_to_bytes(kept), like)
        states = [ranker.append(kept, later), ranker.append(read, later)]
        a, b = (ranker.score(state, batch.candidates, batch.context).logits for state in states)
    assert torch.equal(a, b)


def test_everything_that_a_state_may_hold_comes_back():
    state = whole()
    blob = state_to_bytes(state)
    assert_equal(state_from_bytes(blob, StateForm.of(state)), state)
    assert blob == state_to_bytes(whole())


def test_the_bytes_of_a_state_are_counted():
    state = Outer(inner=None, pairs=(Pair(torch.ones(3), np.ones(2)),), named={"x": torch.ones(1)}, others=[1, "a"])
    assert state_num_bytes(state) == 3 * 4 + 2 * 8 + 4


def test_a_tensor_that_a_state_holds_twice_is_stored_once():
    rows = torch.randn(100, 100)
    one, two = (len(state_to_bytes(Pair(rows, other))) for other in (None, rows))
    assert two - one < 100
    assert len(state_to_bytes(Pair(rows, rows.clone()))) > one + 40_000


def test_tensors_of_writable_aligned_memory_are_not_copied():
    state = Pair(torch.arange(8), None)
    blob = state_to_bytes(state)
    memory = np.zeros(len(blob) + ALIGNMENT, np.uint8)
    skip = -memory.ctypes.data % ALIGNMENT
    memory[skip : skip + len(blob)] = np.frombuffer(blob, np.uint8)
    read = state_from_bytes(memory.data[skip : skip + len(blob)], StateForm.of(state))
    assert memory.ctypes.data <= read.first.data_ptr() < memory.ctypes.data + len(memory)
    copied = state_from_bytes(blob, StateForm.of(state))
    assert copied.first.data_ptr() % ALIGNMENT == 0
    copied.first.add_(1)  # of its own memory: the bytes stay
    assert_equal(state_from_bytes(blob, StateForm.of(state)), state)


@pytest.mark.parametrize(
    ("state", "text"),
    [
        (nn.Linear(1, 1), "got a Linear"),
        ({1: torch.ones(1)}, "keys of a mapping"),
        (torch.eye(2).to_sparse(), "must be dense"),
        (torch.ones(1, dtype=torch.complex64), "got torch.strided of complex64"),
        (np.array([object()]), "got object"),
    ],
)
def test_what_is_no_value_is_refused(state, text):
    with pytest.raises(StateError, match=text):
        state_to_bytes(state)


# -- bytes that are no state -------------------------------------------------------------------------------------------


def forged(tree: Any, arrays: Any = (), payload: bytes = b"", by: Any = None) -> bytes:
    """Return bytes with a right checksum around any header."""
    good = json.loads(state_to_bytes(torch.ones(1))[PREAMBLE.size :].partition(b" ")[0].partition(b"\x00")[0])
    header = json.dumps({"by": by or good["by"], "arrays": arrays, "tree": tree}).encode()
    return PREAMBLE.pack(b"sostate\x01", len(header), zlib.crc32(header + payload), len(payload)) + header + payload


LIKE = StateForm.of(Pair(torch.ones(2), None))
PAIR = f"{__name__}:Pair"
ONE = ["t", "float32", [2], 0]


def test_a_forged_state_that_is_right_is_read():
    tree = {"c": PAIR, "f": {"first": {"t": 0}, "second": 7}}
    assert_equal(state_from_bytes(forged(tree, [ONE], bytes(8)), LIKE), Pair(torch.zeros(2), 7))


@pytest.mark.parametrize(
    ("tree", "arrays", "text"),
    [
        ({"c": "os:system", "f": {}}, [], "it is a os:system, not a"),
        ({"c": "builtins:eval", "f": {"source": "1"}}, [], "it is a builtins:eval"),
        ({"c": PAIR, "f": {"first": {"c": "os:system", "f": {"command": "id"}}, "second": 1}}, [], "no class of the"),
        ({"c": PAIR, "f": {"first": {"c": f"{__name__}:Stranger", "f": {"rows": 1}}, "second": 1}}, [], "no class of"),
        ({"c": PAIR, "f": {"first": 1}}, [], "has the fields"),
        ({"c": PAIR, "f": {"first": 1, "second": 1, "third": 1}}, [], "has the fields"),
        ({"c": PAIR, "f": {"first": {"t": 5}, "second": 1}}, [], "index out of range"),
        ({"c": PAIR, "f": {"first": {"t": 0}, "second": 1}}, [["t", "float64", [1], 0]], "is \\('float64', 1\\)"),
        ({"c": PAIR, "f": {"first": {"t": 0}, "second": 1}}, [["t", "float32", [1, 2], 0]], "is \\('float32', 2\\)"),
        ({"c": PAIR, "f": {"first": {"t": 0}, "second": 1}}, [["t", "float32", [3], 0]], "beyond the end"),
        ({"c": PAIR, "f": {"first": {"t": 0}, "second": 1}}, [["t", "float32", [2**62, 2**62], 0]], "beyond the end"),
        ({"c": PAIR, "f": {"first": {"t": 0}, "second": 1}}, [["t", "float32", [-2], 0]], "array of shape"),
        ({"c": PAIR, "f": {"first": {"t": 0}, "second": 1}}, [["t", "float32", [1], 4]], "array of shape"),
        ({"c": PAIR, "f": {"first": {"t": 0}, "second": 1}}, [["t", "load", [1], 0]], "load"),
        ({"c": PAIR, "f": {"first": {"t": 0}, "second": 1}}, [["a", "O", [1], 0]], "array of O"),
        ({"c": PAIR, "f": {"first": {"q": 0}, "second": 1}}, [], "u"),
        ([1], [], "it is a bare value"),
        ({"c": PAIR, "f": {"first": [1], "second": 1}}, [], "must be one of this ranker"),
    ],
)
def test_a_header_that_is_not_of_this_ranker_builds_nothing(tree, arrays, text):
    with pytest.raises(StateError, match=text):
        state_from_bytes(forged(tree, arrays, bytes(8)), LIKE)


def test_a_state_of_another_version_or_byte_order_is_refused():
    tree = {"c": PAIR, "f": {"first": {"t": 0}, "second": 7}}
    with pytest.raises(StateError, match="it was written by"):
        state_from_bytes(forged(tree, [ONE], bytes(8), by=["0.0.0", "little"]), LIKE)


def test_a_state_of_another_ranker_is_refused():
    spec = specs_of("din")[0]
    histories = make_batch(spec, [(3, 1)], 0).histories
    blob = state_to_bytes(ready("din", spec).encode(histories))
    for name in ("sdim", "dien", "repeat"):
        with pytest.raises(StateError, match="one of this ranker"):
            state_from_bytes(blob, StateForm.of_ranker(ready(name, spec), spec))


def test_forms_of_two_rankers_do_not_mix():
    with pytest.raises(StateError, match="must be of one class"):
        StateForm.of(Pair(torch.ones(1), 1), Stranger(torch.ones(1)))


@settings(max_examples=300)
@given(data=st.data())
def test_any_damage_is_seen(data):
    blob = state_to_bytes(Pair(torch.arange(40.0)[:2], {"x": torch.arange(9)}))
    kind = data.draw(st.sampled_from(["flip", "cut", "longer", "noise"]))
    if kind == "flip":
        at, bit = data.draw(st.integers(0, len(blob) - 1)), data.draw(st.integers(0, 7))
        damaged = blob[:at] + bytes([blob[at] ^ (1 << bit)]) + blob[at + 1 :]
    elif kind == "cut":
        damaged = blob[: data.draw(st.integers(0, len(blob) - 1))]
    elif kind == "longer":
        damaged = blob + data.draw(st.binary(min_size=1, max_size=9))
    else:
        damaged = data.draw(st.binary(max_size=200))
    with pytest.raises(StateError):
        state_from_bytes(damaged, LIKE)


@settings(max_examples=100)
@given(data=st.data())
def test_no_header_raises_anything_else(data):
    values = st.recursive(
        st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from(["t", "a", PAIR, "float32", "O", "x"]),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(st.sampled_from(["c", "f", "t", "m", "l", "u", "first", "second"]), inner, max_size=4)
        ),
    )
    arrays = st.lists(st.tuples(values, values, values, values).map(list) | st.just(ONE) | values, max_size=3)
    first, second = data.draw(values), data.draw(values)
    tree = data.draw(st.sampled_from([first, {"c": PAIR, "f": {"first": first, "second": second}}]))
    try:
        read = state_from_bytes(forged(tree, data.draw(arrays), bytes(8)), LIKE)
    except StateError:
        return
    assert isinstance(read, Pair)
