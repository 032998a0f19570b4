"""Negatives of behaviours, drawn from the batch: what was not done at the same moment."""

from __future__ import annotations

import torch
from torch import Tensor

TRIES = 4  # a draw that stands for an item of the moment is drawn again so many times


def negatives_of_moments(item: Tensor, moment: Tensor) -> tuple[Tensor, Tensor]:
    """Draw for every behaviour another behaviour of the batch whose item the user did not meet at that moment.

    Behaviours are drawn alike, so items come in proportion to how often they occur in the batch's histories, as in the
    released code of DIEN (Zhou et al. 2019, arXiv:1809.03672), which draws from all of the log. Randomness is torch's
    generator of the device.

    Args:
        item: (N,) int64.
        moment: (N,) int64 in [0, N), the same for behaviours of one user and time.

    Returns:
        (N,) int64 positions, and (N,) bool whether the drawn item is a negative: false where no try found one.
    """
    count = item.shape[0]
    if not count:
        return item.clone(), item.bool()
    width = int(item.max()) + 1
    met = moment * width + item

    def draw() -> tuple[Tensor, Tensor]:
        drawn = torch.randint(count, (count,), device=item.device)
        return drawn, ~torch.isin(moment * width + item[drawn], met)

    position, good = draw()
    for _ in range(TRIES - 1):
        if bool(good.all()):
            break
        again, better = draw()
        position, good = torch.where(good, position, again), good | better
    return position, good


__all__ = ["negatives_of_moments"]
