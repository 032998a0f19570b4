"""The light text encoder: the mean of fixed token vectors, without torch.

Vectors and vocabulary come from the package wordllama (Llama's vocabulary, 256 numbers a token), read as files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from sostenuto.content.encoders import Encoded, package_folder

Array = npt.NDArray[Any]

DIM = 256
LONGEST = 512  # tokens read of a text


class StaticVectors:
    """Mean of token vectors, scaled to length 1. The order of words does not matter.

    The vocabulary knows capitals, but few words written in capitals alone: a text without any small letter is put in
    small letters first. Ours.
    """

    name = "static"
    dim = DIM
    packages = ("wordllama",)

    def __init__(self) -> None:
        folder = package_folder("wordllama", "content-light")
        package_folder("tokenizers", "content-light")
        from safetensors.numpy import load_file
        from tokenizers import Tokenizer

        self.settings: Mapping[str, Any] = {"longest": LONGEST}
        path = folder / "tokenizers" / "l2_supercat_tokenizer_config.json"
        self._tokenizer = Tokenizer.from_file(str(path))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(LONGEST)
        self._table = load_file(folder / "weights" / "l2_supercat_256.safetensors")["embedding.weight"]

    def encode(self, units: Sequence[str]) -> Encoded:
        """Encode texts."""
        texts = [text.lower() if text.isupper() else text for text in units]
        found = self._tokenizer.encode_batch(texts, add_special_tokens=False)
        vectors = np.zeros((len(units), DIM), np.float32)
        for row, tokens in enumerate(found):
            if tokens.ids:
                vectors[row] = self._table[tokens.ids].astype(np.float32).mean(0)
        length = np.linalg.norm(vectors, axis=1)
        vectors /= np.where(length > 0, length, 1.0)[:, None]
        return Encoded(vectors=vectors, good=length > 0)

    def token_parts(self, units: Sequence[str]) -> None:
        """Return nothing: there is no layer to train on."""


__all__ = ["DIM", "LONGEST", "StaticVectors"]
