"""What every encoder gives, and how the packages that hold the weights are found."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol

import numpy.typing as npt

from sostenuto.schema.errors import MissingExtra

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """What an encoder makes of n texts or images."""

    vectors: Array  # (n, dim) float32
    good: Array  # (n,) bool; False: nothing could be read, the vector is zero
    states: Array | None = None  # (n, T, token width) float16


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenParts:
    """What an encoder hands on for training on top of its lower layers."""

    tokens: Array  # (n, T) int32
    token_vectors: Array  # (ids, token width) float16
    last_layer: Mapping[str, Array] = field(default_factory=dict)
    heads: int = 0


class Encoder(Protocol):
    """Turns texts (or names of image files) into vectors; the same input gives the same bits in any batch of inputs."""

    name: str
    dim: int
    settings: Mapping[str, Any]  # what the vectors depend on beside the input
    packages: tuple[str, ...]  # distributions that hold code and weights

    def encode(self, units: Sequence[str]) -> Encoded:
        """Encode some."""
        ...

    def token_parts(self, units: Sequence[str]) -> TokenParts | None:
        """Return tokens of all units, for encoders that have them."""
        ...


def package_folder(module: str, extra: str) -> Path:
    """Return the folder of an installed package, without importing it.

    Raises:
        MissingExtra: it is not installed.
    """
    found = importlib.util.find_spec(module)
    if found is None or not found.submodule_search_locations:
        raise MissingExtra(
            f"this encoder needs the package {module}, which is not installed; run `pip install 'sostenuto[{extra}]'`"
        )
    return Path(next(iter(found.submodule_search_locations)))


def state_bytes(distinct: int, num_tokens: int, width: int) -> int:
    """Return the bytes of hidden states of so many different texts, the empty one included."""
    return (distinct + 1) * num_tokens * width * 2


def versions_of(packages: Sequence[str]) -> dict[str, str]:
    """Return the installed versions of some distributions."""
    found = {}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


__all__ = ["Encoded", "Encoder", "TokenParts", "package_folder", "state_bytes", "versions_of"]
