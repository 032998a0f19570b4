"""A linear map whose last bits do not depend on what else stands in the batch."""

from __future__ import annotations

import torch
from torch import Tensor


def steady_product(values: Tensor, weight: Tensor) -> Tensor:
    """Return (N, H), values times weight transposed, the same for a row wherever it stands.

    A product in float32 adds up in an order that follows from the shape of the batch. Where results are ranked and the
    best K taken, two rows that are equal but for such rounding would change places between a batch and a single
    request; sums in float64 that are rounded to the type of `values` at the end do not. Without a gradient: while one
    is wanted it is the plain product.

    Args:
        values: (N, D).
        weight: (H, D).
    """
    if torch.is_grad_enabled() and (values.requires_grad or weight.requires_grad):
        return values @ weight.T
    return (values.double() @ weight.double().T).to(values.dtype)


__all__ = ["steady_product"]
