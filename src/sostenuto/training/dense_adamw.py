"""AdamW on dense parameters (Loshchilov and Hutter, ICLR 2019, arXiv:1711.05101): torch's step, state kept here.

The same numbers as `torch.optim.AdamW(..., fused=True)`, bit for bit. That class loads torch's compiler when it is
made, 70 MB that a process which compiles nothing would carry to its end; the function beneath it does not.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.autograd.graph import increment_version
from torch.optim.adamw import adamw

PARTS = ("step", "exp_avg", "exp_avg_sq")  # of a parameter's state: steps so far (), both moments like the parameter


class DenseAdamW:
    """Steps named parameters that have a gradient; state is made at a parameter's first one."""

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        *,
        decay: Mapping[str, float],
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        rates: Mapping[str, float] | None = None,
    ) -> None:
        """Take parameters.

        Args:
            parameters: by name.
            decay:      decoupled, times the learning rate, by name; none for the others.
            betas:      of the moments.
            eps:        added to the root.
            rates:      multiply the learning rate of a parameter, by name; 1 for the others.
        """
        self.parameters = dict(parameters)
        self.betas, self.eps = betas, eps
        self.groups: dict[tuple[float, float], list[str]] = {}  # (decay, rate) -> names, each stepped in one call
        for name in self.parameters:
            key = (decay.get(name, 0.0), (rates or {}).get(name, 1.0))
            self.groups.setdefault(key, []).append(name)
        self.state: dict[str, dict[str, Tensor]] = {}

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        """Update every parameter that has a gradient."""
        for (decay, rate), names in self.groups.items():
            held = {name: self.parameters[name] for name in names if self.parameters[name].grad is not None}
            if not held:
                continue
            states = [self._state(name) for name in held]
            step, first, second = ([state[part] for state in states] for part in PARTS)
            adamw(
                list(held.values()),
                [p.grad for p in held.values() if p.grad is not None],
                first,
                second,
                [],
                step,
                fused=True,
                amsgrad=False,
                beta1=self.betas[0],
                beta2=self.betas[1],
                lr=learning_rate * rate,
                weight_decay=decay,
                eps=self.eps,
                maximize=False,
            )
            increment_version(list(held.values()))  # the fused step leaves it; what was made of old weights must see it

    def _state(self, name: str) -> dict[str, Tensor]:
        """Return the live state of a parameter."""
        if name not in self.state:
            p = self.parameters[name]
            step = torch.zeros((), dtype=torch.float32, device=p.device)
            self.state[name] = dict(zip(PARTS, (step, torch.zeros_like(p), torch.zeros_like(p)), strict=True))
        return self.state[name]

    def tensors(self) -> dict[str, Tensor]:
        """Return the state as named live tensors, for a checkpoint."""
        return {f"{name}.{part}": value for name, state in self.state.items() for part, value in state.items()}

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Take the state over from what `tensors` gave; a parameter that is absent never had a gradient."""
        for name, p in self.parameters.items():
            parts = {part: tensors.get(f"{name}.{part}") for part in PARTS}
            if all(value is not None for value in parts.values()):
                self.state[name] = {
                    part: value.to(p.device).clone() for part, value in parts.items() if value is not None
                }


__all__ = ["PARTS", "DenseAdamW"]
