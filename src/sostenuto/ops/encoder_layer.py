"""One post-norm transformer layer as a pure function, with the names of `schema.content.LAST_LAYER` for its weights.

Letters: N texts, T tokens, D width.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor
from torch.nn import functional as F

EPS = 1e-12  # of both layer norms, as BERT has it


def encoder_layer(states: Tensor, mask: Tensor, weights: Mapping[str, Tensor], *, heads: int) -> Tensor:
    """Return what a BERT layer (Devlin et al. 2019, arXiv:1810.04805) makes of hidden states, without dropout.

    Args:
        states:  (N, T, D).
        mask:    (N, T) bool, True = real token. A text without tokens gives zeros.
        weights: `query.weight` (D, D), `query.bias` (D,) and so on.
        heads:   number of attention heads; divides D.

    Returns:
        (N, T, D); zero at padding.
    """
    num, length, dim = states.shape
    if heads < 1 or dim % heads:
        raise ValueError(f"heads must divide the width {dim}, got {heads}; take the number the layer was made with")

    def linear(name: str, x: Tensor) -> Tensor:
        return F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    def split(x: Tensor) -> Tensor:
        return x.view(num, length, heads, dim // heads).transpose(1, 2)

    seen = mask | ~mask.any(1, keepdim=True)  # a row without tokens sees all of its zeros: softmax stays finite
    query, key, value = (split(linear(name, states)) for name in ("query", "key", "value"))
    read = F.scaled_dot_product_attention(query, key, value, attn_mask=seen[:, None, None, :])
    read = linear("attention", read.transpose(1, 2).reshape(num, length, dim))
    norm = weights["attention_norm.weight"], weights["attention_norm.bias"]
    middle = F.layer_norm(read + states, (dim,), *norm, EPS)
    outer = linear("outer", F.gelu(linear("inner", middle)))
    norm = weights["outer_norm.weight"], weights["outer_norm.bias"]
    return F.layer_norm(outer + middle, (dim,), *norm, EPS) * mask[..., None]


def text_vectors(states: Tensor, mask: Tensor) -> Tensor:
    """Return (N, D): the mean over real tokens of (N, T, D), scaled to length 1; zero for a text without tokens."""
    total = (states * mask[..., None]).sum(1)
    return F.normalize(total / mask.sum(1, keepdim=True).clamp(min=1), dim=-1)


__all__ = ["EPS", "encoder_layer", "text_vectors"]
