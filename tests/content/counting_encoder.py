"""A stand-in encoder whose vectors are a function of the text alone; counts what it is asked, and may take its time."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence

import numpy as np

from sostenuto.content.encoders import Encoded, TokenParts

DIM = 8


class CountingEncoder:
    name = "counting"
    dim = DIM
    packages = ()

    def __init__(self, *, pause_s: float = 0.0, states: bool = False, unreadable: Sequence[str] = ()) -> None:
        self.settings = {"num_tokens": 3, "states": states}
        self.asked: list[str] = []
        self.pause_s, self.unreadable = pause_s, unreadable

    def vector(self, text: str) -> np.ndarray:
        seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")
        return np.random.default_rng(seed).normal(size=DIM).astype(np.float32)

    def encode(self, units: Sequence[str]) -> Encoded:
        time.sleep(self.pause_s)
        self.asked += units
        good = np.array([unit not in self.unreadable for unit in units])
        vectors = np.stack([self.vector(unit) for unit in units]) * good[:, None]
        states = None
        if self.settings["states"]:
            states = np.repeat(vectors[:, None, :], 3, 1).astype(np.float16)
        return Encoded(vectors=vectors, good=good, states=states)

    def token_parts(self, units: Sequence[str]) -> TokenParts | None:
        if not self.settings["states"]:
            return None
        tokens = np.array([[1, 1 + len(unit) % 5, 0] for unit in units], np.int32)
        table = np.ones((7, DIM), np.float16)
        layer = {"query.weight": np.ones((DIM, DIM), np.float32)}
        return TokenParts(tokens=tokens, token_vectors=table, last_layer=layer, heads=2)
