"""Invented content of items: arrays of every kind, as `content build` would leave them."""

from __future__ import annotations

import numpy as np

from sostenuto.schema.content import LAST_LAYER
from sostenuto.schema.features import FIRST_KNOWN, ContentField


def last_layer_arrays(dim: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Invent the weights of an encoder's last layer of width `dim`, twice as wide inside."""
    wide = {"inner.weight": (2 * dim, dim), "inner.bias": (2 * dim,), "outer.weight": (dim, 2 * dim)}
    arrays = {}
    for name in LAST_LAYER:
        shape = wide.get(name, (dim, dim) if name.endswith("weight") and "norm" not in name else (dim,))
        offset = 1.0 if name.endswith("norm.weight") else 0.0
        arrays[name] = (offset + 0.3 * rng.normal(size=shape)).astype(np.float32)
    return arrays


def content_arrays(field: ContentField, num_items: int, seed: int) -> dict[str, np.ndarray]:
    """Invent the arrays of one kind of content: a third of the items have none, some share their text."""
    rng = np.random.default_rng(seed)
    known = rng.random(num_items) < 2 / 3
    known[:FIRST_KNOWN] = False
    text_row = np.where(known, rng.integers(1, num_items // 2, num_items), 0)
    of_text = rng.normal(size=(num_items // 2, field.vector_dim))
    of_text[0] = 0.0
    arrays = {"known": known, "vectors": of_text[text_row].astype(np.float16)}
    if field.num_tokens:
        lengths = rng.integers(1, field.num_tokens + 1, num_items // 2)
        lengths[0] = 0
        behind = np.arange(field.num_tokens) >= lengths[:, None]
        tokens = rng.integers(1, field.num_token_ids, (num_items // 2, field.num_tokens)).astype(np.int32)
        tokens[behind] = 0
        arrays |= {"text_row": text_row.astype(np.int32), "tokens": tokens[text_row]}
        arrays["token_vectors"] = rng.normal(size=(field.num_token_ids, field.token_dim)).astype(np.float16)
        if field.has_states:
            states = rng.normal(size=(*tokens.shape, field.token_dim)).astype(np.float16)
            states[behind] = 0.0
            arrays["states"] = states
    return arrays
