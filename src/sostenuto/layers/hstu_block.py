"""One layer of HSTU (Zhai et al., arXiv:2402.17152): gated pointwise attention, in its two released variants.

    research   [U V Q K] = SiLU(LN(X) W);  Y = X + W_o (U * LN(A V)) + b;  A = SiLU(Q K' + bias) / C
    stu        [U V Q K] = LN(X) W + b with SiLU on U alone;  Y = X + W_o [U, A V, U * LN(A V)];
               A = SiLU(Q K' / sqrt(d)) / C, no bias on the scores, LN with weights

C is a constant of the configuration: with the length in its place, a score would change with what it cannot see.
A block does not decide who sees whom. Its parts are called one by one, so that one set of weights serves real tokens,
fake tokens, candidates and cached keys alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sostenuto.layers.dropout import Dropout
from sostenuto.layers.relative_bias import RelativeBiasTables, TokenPlaces
from sostenuto.ops.causal_attention import AttentionPlan, OwnKey, causal_attention
from sostenuto.schema.errors import SpecError

Variant = Literal["research", "stu"]
VARIANTS: tuple[Variant, ...] = ("research", "stu")
EPS = 1e-6
INITIAL_STD = 0.02  # published


@dataclass(frozen=True, kw_only=True, slots=True)
class HSTUBlockConfig:
    """Sizes and switches of one layer."""

    dim: int = 64  # D, width of a token
    heads: int = 2  # H
    key_dim: int = 32  # width of a query and a key, per head
    value_dim: int = 32  # width of a value and of the gate, per head
    silu_on: Literal["all", "u"] = "all"
    relative_bias: bool = True
    time_bias: bool = True  # the relative bias reads times too
    num_positions: int = 1024  # entries of its table of distances
    scaled: bool = False  # scores are divided by sqrt(key_dim)
    concat: bool = False  # the output map reads [u, a, u * LN(a)], not u * LN(a) alone
    affine: bool = False  # layer norms have weights, the first map a bias, and the last one none
    dropout: float = 0.1  # before the output map
    normaliser: float = 32.0  # C
    initial_std: float = INITIAL_STD  # of the first map
    aligned: bool = False  # keys start as queries: at first, tokens read what is like them. Ours

    def __post_init__(self) -> None:
        for name in ("dim", "heads", "key_dim", "value_dim", "num_positions"):
            if getattr(self, name) < 1:
                raise SpecError(f"HSTUBlockConfig.{name} must be at least 1, got {getattr(self, name)}; set it so")
        if not self.normaliser > 0:
            raise SpecError(f"HSTUBlockConfig.normaliser must be above 0, got {self.normaliser}; set it so")

    @classmethod
    def of_variant(
        cls,
        variant: Variant,
        *,
        dim: int,
        heads: int,
        num_positions: int,
        relative_bias: bool | None = None,
        time_bias: bool = True,
        dropout: float = 0.1,
        normaliser: float = 32.0,
        initial_std: float = INITIAL_STD,
        aligned: bool = False,
    ) -> HSTUBlockConfig:
        """Return the switches of a released variant, keys and values as wide as dim / heads.

        `relative_bias` None is the variant's own choice: research has it, stu has not.
        """
        if variant not in VARIANTS:
            raise SpecError(f"variant must be one of {', '.join(VARIANTS)}, got {variant!r}; name one of them")
        if dim % heads:
            raise SpecError(f"dim must be a multiple of heads, got {dim} and {heads}; set it to {dim // heads * heads}")
        stu = variant == "stu"
        return cls(
            dim=dim,
            heads=heads,
            key_dim=dim // heads,
            value_dim=dim // heads,
            silu_on="u" if stu else "all",
            relative_bias=not stu if relative_bias is None else relative_bias,
            time_bias=time_bias,
            num_positions=num_positions,
            scaled=stu,
            concat=stu,
            affine=stu,
            dropout=dropout,
            normaliser=normaliser,
            initial_std=initial_std,
            aligned=aligned,
        )


class KeysValues(NamedTuple):
    """What other tokens read of N tokens; cached per layer."""

    key: Tensor  # (N, H, key_dim)
    value: Tensor  # (N, H, value_dim)


class Projected(NamedTuple):
    """All that a layer makes of N tokens."""

    gate: Tensor  # (N, H * value_dim)
    query: Tensor  # (N, H, key_dim)
    seen: KeysValues


class HSTUBlock(nn.Module):
    """The parts of a layer: project, attend, mix."""

    def __init__(self, config: HSTUBlockConfig) -> None:
        super().__init__()
        self.config = config
        values, keys = config.heads * config.value_dim, config.heads * config.key_dim
        self.norm = nn.LayerNorm(config.dim, eps=EPS, elementwise_affine=config.affine)
        self.split = values + keys  # gate and query come first, so that keys and values can be made without them
        self.weight = nn.Parameter(torch.empty(2 * self.split, config.dim).normal_(0.0, config.initial_std))
        if config.aligned:  # rows are gate, query, value, key
            with torch.no_grad():
                self.weight[-keys:] = self.weight[values : self.split]
        self.bias = nn.Parameter(torch.zeros(2 * self.split)) if config.affine else None
        self.out_norm = nn.LayerNorm(values, eps=EPS, elementwise_affine=config.affine)
        self.out = nn.Linear(3 * values if config.concat else values, config.dim, bias=not config.affine)
        nn.init.xavier_uniform_(self.out.weight)
        if self.out.bias is not None:
            nn.init.zeros_(self.out.bias)
        self.dropout = Dropout(config.dropout)
        tables = config.relative_bias
        self.relative = RelativeBiasTables(config.num_positions, use_time=config.time_bias) if tables else None
        self.scale = config.key_dim**-0.5 if config.scaled else 1.0

    def _mapped(self, tokens: Tensor, rows: slice) -> Tensor:
        bias = None if self.bias is None else self.bias[rows]
        mapped = F.linear(self.norm(tokens), self.weight[rows], bias)
        return F.silu(mapped) if self.config.silu_on == "all" else mapped

    def _keys_values(self, mapped: Tensor) -> KeysValues:
        config = self.config
        value, key = torch.split(mapped, [config.heads * config.value_dim, config.heads * config.key_dim], 1)
        return KeysValues(
            torch.unflatten(key, 1, (config.heads, config.key_dim)),
            torch.unflatten(value, 1, (config.heads, config.value_dim)),
        )

    def keys_values(self, tokens: Tensor) -> KeysValues:
        """Return what others read of (N, D) tokens, alone: a last layer whose outputs nobody reads."""
        return self._keys_values(self._mapped(tokens, slice(self.split, None)))

    def project(self, tokens: Tensor) -> Projected:
        """Return gate, query, key and value of (N, D) tokens."""
        config = self.config
        mapped = self._mapped(tokens, slice(None))
        values, keys = config.heads * config.value_dim, config.heads * config.key_dim
        gate, query = torch.split(mapped[:, : self.split], [values, keys], 1)
        if config.silu_on == "u":
            gate = F.silu(gate)
        seen = self._keys_values(mapped[:, self.split :])
        return Projected(gate, torch.unflatten(query, 1, (config.heads, config.key_dim)), seen)

    def attend(
        self,
        query: Tensor,
        seen: KeysValues,
        plan: AttentionPlan,
        *,
        queries_at: TokenPlaces,
        keys_at: TokenPlaces,
        own: Sequence[OwnKey] = (),
    ) -> Tensor:
        """Return (Nq, H * value_dim), what queries read of the keys that the plan lets them see."""
        return causal_attention(
            query,
            seen.key,
            seen.value,
            plan,
            form="silu",
            scale=self.scale,
            normaliser=self.config.normaliser,
            bias=None if self.relative is None else self.relative(queries_at, keys_at),
            own=own,
        ).flatten(1)

    def mix(self, tokens: Tensor, gate: Tensor, read: Tensor) -> Tensor:
        """Return the next layer's (N, D) tokens of what they read."""
        gated = gate * self.out_norm(read)
        mixed = torch.cat([gate, read, gated], 1) if self.config.concat else gated
        result: Tensor = tokens + self.out(self.dropout(mixed))
        return result


__all__ = ["VARIANTS", "HSTUBlock", "HSTUBlockConfig", "KeysValues", "Projected", "Variant"]
