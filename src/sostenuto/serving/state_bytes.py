"""User states as flat bytes and back: what a store keeps of an encoded user. No code is in the bytes.

8 bytes    b"sostate" and the format version
4          length of the header
4          crc-32 of everything behind these 24 bytes
8          length of the payload
header     JSON: version of Sostenuto, byte order, table of arrays, tree of values
           padding, so that the payload starts at a multiple of 64
payload    the arrays, each at a multiple of 64, in the byte order of the machine

Classes are named in the bytes and never found by those names alone: `StateForm` knows the classes of one ranker's
states from a state that the ranker itself encoded, and nothing else is ever built.
"""

from __future__ import annotations

import dataclasses
import json
import struct
import sys
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

import sostenuto
from sostenuto.schema.errors import StateError
from sostenuto.serving.invented import invented_history

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from sostenuto.schema.features import FeatureSpec
    from sostenuto.schema.ranker import Ranker

MAGIC = b"sostate\x01"
PREAMBLE = struct.Struct("<8sIIQ")  # magic, header length, crc-32, payload length
ALIGNMENT = 64  # bytes: what torch gives its own tensors
NAMES = (  # of torch types; an allowlist
    *("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool"),
)
ARRAY_KINDS = "biuf"  # of numpy types
WRONG_HEADER = (AttributeError, IndexError, KeyError, OverflowError, RecursionError, RuntimeError, TypeError)
INVENTED = (0, 1, 3, 70)  # behaviours of the users that a form is learnt from


def state_num_bytes(value: Any) -> int:
    """Sum the bytes of all tensors and arrays inside a state."""
    if hasattr(value, "nbytes"):
        return int(value.nbytes)
    return sum(state_num_bytes(part) for part in _parts(value))


def _parts(value: Any) -> Iterator[Any]:
    if _is_record(value):
        for name in _field_names(type(value)):
            yield getattr(value, name)
    elif isinstance(value, Mapping):
        yield from value.values()
    elif isinstance(value, (list, tuple)):
        yield from value


def _is_record(value: Any) -> bool:
    return (dataclasses.is_dataclass(value) and not isinstance(value, type)) or hasattr(value, "_fields")


def _field_names(cls: type[Any]) -> tuple[str, ...]:
    """Return the fields of a dataclass or of a NamedTuple."""
    if dataclasses.is_dataclass(cls):
        return tuple(f.name for f in dataclasses.fields(cls))
    return tuple(cls._fields)


def _writer_of_states() -> list[str]:
    """Return what must be equal when a state is read: a class may change its meaning with the version."""
    return [sostenuto.__version__, sys.byteorder]


def _class_name(cls: type[Any]) -> str:
    return f"{cls.__module__}:{cls.__qualname__}"


# -- writing -----------------------------------------------------------------------------------------------------------


class _Writer:
    """Gathers the arrays of a state and the tree around them."""

    def __init__(self) -> None:
        self.table: list[list[Any]] = []  # kind, dtype, shape, offset
        self.pieces: list[Any] = []
        self.size = 0
        self._seen: dict[tuple[Any, ...], int] = {}

    def tree(self, value: Any) -> Any:
        import torch

        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        if isinstance(value, torch.Tensor):
            return {"t": self._tensor(value)}
        if isinstance(value, np.ndarray):
            return {"t": self._array(value)}
        if _is_record(value):
            names = _field_names(type(value))
            parts = {name: self.tree(getattr(value, name)) for name in names}
            return {"c": _class_name(type(value)), "f": parts}
        if isinstance(value, Mapping):
            if not all(isinstance(key, str) for key in value):
                raise StateError(f"keys of a mapping in a state must be text, got {list(value)!r}; name them")
            return {"m": {key: self.tree(item) for key, item in value.items()}}
        if isinstance(value, (tuple, list)):
            return {"l" if isinstance(value, list) else "u": [self.tree(item) for item in value]}
        raise StateError(
            f"a state must be made of tensors, arrays, numbers, text, tuples, mappings and dataclasses, got a "
            f"{type(value).__name__}; keep something else in it"
        )

    def _tensor(self, tensor: Tensor) -> int:
        import torch

        name = str(tensor.dtype).removeprefix("torch.")
        if tensor.layout != torch.strided or name not in NAMES:
            raise StateError(
                f"tensors of a state must be dense and of {', '.join(NAMES)}, got {tensor.layout} of {name}; convert it"
            )
        # several parts of a state often share one tensor, offsets and times above all: it is stored once
        key = (tensor.data_ptr(), name, tuple(tensor.shape), tensor.stride())
        if tensor.numel() and key in self._seen:
            return self._seen[key]
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        if flat.stride(0) != 1:  # one element of an expanded tensor counts as contiguous too
            flat = torch.empty_like(flat, memory_format=torch.contiguous_format).copy_(flat)
        self._seen[key] = at = self._add("t", name, tensor.shape, flat.view(torch.uint8).numpy())
        return at

    def _array(self, array: np.ndarray[Any, Any]) -> int:
        if array.dtype.kind not in ARRAY_KINDS:
            raise StateError(f"arrays of a state must hold numbers or bools, got {array.dtype}; convert it")
        flat = np.ascontiguousarray(array, array.dtype.newbyteorder("=")).reshape(-1)
        return self._add("a", flat.dtype.str, array.shape, flat.view(np.uint8))

    def _add(self, kind: str, dtype: str, shape: Any, data: np.ndarray[Any, Any]) -> int:
        gap = -self.size % ALIGNMENT
        self.pieces += [bytes(gap), data.data]
        self.table.append([kind, dtype, list(shape), self.size + gap])
        self.size += gap + data.nbytes
        return len(self.table) - 1


def state_to_bytes(state: Any) -> bytes:
    """Return a state as flat bytes; equal states give equal bytes.

    Raises:
        StateError: it holds something that is not a value, such as a module or an open file.
    """
    writer = _Writer()
    tree = writer.tree(state)
    header = json.dumps(
        {"by": _writer_of_states(), "arrays": writer.table, "tree": tree}, separators=(",", ":")
    ).encode()
    header += b" " * (-(PREAMBLE.size + len(header)) % ALIGNMENT)
    crc = zlib.crc32(header)
    for piece in writer.pieces:
        crc = zlib.crc32(piece, crc)
    return b"".join([PREAMBLE.pack(MAGIC, len(header), crc, writer.size), header, *writer.pieces])


# -- reading -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class StateForm:
    """What states of one ranker are made of: the only classes that reading will ever build."""

    root: str  # name of the outermost class; "" where a state is a bare tensor or tuple
    classes: Mapping[str, type[Any]]
    # class.field -> type and number of dimensions of the tensors that lie under it; none seen, none demanded
    leaves: Mapping[str, frozenset[tuple[str, int]]]

    @classmethod
    def of(cls, *states: Any) -> StateForm:
        """Learn the form from states; the more cases they show, the better."""
        classes: dict[str, type[Any]] = {}
        leaves: dict[str, set[tuple[str, int]]] = {}

        def learn(value: Any, owner: str) -> None:
            if hasattr(value, "nbytes"):
                leaves.setdefault(owner, set()).add((str(value.dtype).removeprefix("torch."), value.ndim))
            elif _is_record(value):
                name = _class_name(type(value))
                classes[name] = type(value)
                for field in _field_names(type(value)):
                    learn(getattr(value, field), f"{name}.{field}")
            else:
                for part in _parts(value):
                    learn(part, owner)

        for state in states:
            learn(state, "")
        roots = {_class_name(type(state)) if _is_record(state) else "" for state in states}
        if len(roots) != 1:
            raise StateError(f"states of one ranker must be of one class, got {sorted(roots)}; learn each form apart")
        return cls(root=roots.pop(), classes=classes, leaves={owner: frozenset(seen) for owner, seen in leaves.items()})

    @classmethod
    def of_ranker(cls, ranker: Ranker, features: FeatureSpec) -> StateForm:
        """Learn the form from what the ranker makes of a few invented users."""
        import torch

        with torch.inference_mode():
            return cls.of(ranker.encode(invented_history(features, INVENTED)))


def state_from_bytes(blob: bytes | bytearray | memoryview, like: StateForm) -> Any:
    """Read what `state_to_bytes` wrote.

    Tensors lie in one buffer: the blob itself, where it is writable memory whose payload starts at a multiple of 64
    bytes; otherwise one copy of the payload, so that the blob may go.

    Args:
        blob: the bytes.
        like: the form of the ranker's states.

    Raises:
        StateError: the bytes are damaged, of another version, or of another ranker; encode the user anew.
    """
    view = memoryview(blob).cast("B")
    if len(view) < PREAMBLE.size:
        raise StateError(f"a stored state must have {PREAMBLE.size} bytes at least, got {len(view)}; encode it anew")
    magic, header_length, crc, payload_length = PREAMBLE.unpack_from(view)
    if magic != MAGIC:
        raise StateError(f"a stored state must begin with {MAGIC!r}, got {magic!r}; encode it anew")
    body = view[PREAMBLE.size :]
    if len(body) != header_length + payload_length or zlib.crc32(body) != crc:
        raise StateError(f"a stored state must be whole, one of {len(view):,} bytes is damaged; encode it anew")
    try:
        header = json.loads(bytes(body[:header_length]))
        if header["by"] != _writer_of_states():
            raise ValueError(f"it was written by {header['by']}, this is {_writer_of_states()}")
        tree = header["tree"]
        root = tree.get("c", "") if isinstance(tree, dict) else ""
        if root != like.root:
            raise ValueError(f"it is a {root or 'bare value'}, not a {like.root or 'bare value'}")
        return _value(tree, _arrays(header["arrays"], body[header_length:]), like, "")
    except (*WRONG_HEADER, ValueError) as error:
        raise StateError(f"a stored state must be one of this ranker ({error}); encode the user anew") from error


def _arrays(table: list[Any], payload: memoryview) -> list[Any]:
    """Return all arrays as views of one buffer."""
    import torch

    raw = np.frombuffer(payload, np.uint8)
    if len(raw) and raw.flags.writeable and raw.ctypes.data % ALIGNMENT == 0:
        whole = torch.from_numpy(raw)
    else:
        whole = torch.empty(len(raw), dtype=torch.uint8)
        whole.numpy()[:] = raw
    types: dict[str, torch.dtype] = {name: getattr(torch, name) for name in NAMES}
    arrays: list[Any] = []
    for kind, dtype, shape, offset in table:
        if any(not isinstance(n, int) or n < 0 for n in (*shape, offset)) or offset % ALIGNMENT:
            raise ValueError(f"array of shape {shape} at {offset}")
        size = types[dtype].itemsize if kind == "t" else np.dtype(dtype).itemsize
        for n in shape:
            size *= n
        if offset + size > len(raw):
            raise ValueError(f"array of shape {shape} reaches beyond the end")
        part = whole[offset : offset + size]
        if kind == "t":
            arrays.append(part.view(types[dtype]).view(shape) if size else torch.empty(shape, dtype=types[dtype]))
        elif kind == "a" and np.dtype(dtype).kind in ARRAY_KINDS:
            arrays.append(part.numpy().view(dtype).reshape(shape))
        else:
            raise ValueError(f"array of {dtype}")
    return arrays


def _value(tree: Any, arrays: list[Any], like: StateForm, owner: str) -> Any:
    if tree is None or isinstance(tree, (bool, int, float, str)):
        return tree
    if "t" in tree:
        found = arrays[tree["t"]]
        leaf = (str(found.dtype).removeprefix("torch."), found.ndim)
        if owner in like.leaves and leaf not in like.leaves[owner]:
            raise ValueError(f"{owner or 'it'} is {leaf}, not one of {sorted(like.leaves[owner])}")
        return found
    if "c" in tree:
        cls = like.classes.get(tree["c"])
        if cls is None:
            raise ValueError(f"it holds a {tree['c']!r}, which is no class of the ranker's states")
        parts = tree["f"]
        if set(parts) != set(_field_names(cls)):
            raise ValueError(f"{tree['c']} has the fields {_field_names(cls)}, not {tuple(parts)}")
        return cls(**{name: _value(part, arrays, like, f"{tree['c']}.{name}") for name, part in parts.items()})
    if "m" in tree:
        return {key: _value(item, arrays, like, owner) for key, item in tree["m"].items()}
    if "l" in tree:
        return [_value(item, arrays, like, owner) for item in tree["l"]]
    return tuple(_value(item, arrays, like, owner) for item in tree["u"])


__all__ = ["INVENTED", "StateForm", "state_from_bytes", "state_num_bytes", "state_to_bytes"]
