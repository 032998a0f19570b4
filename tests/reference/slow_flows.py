"""The flows of generative rankers as one dense masked sequence, block by block: no skipping, no cache, no tiles."""

import torch
from torch.nn import functional as F

from sostenuto.ops.causal_attention import time_bucket


def dense_blocks(blocks, token, mask, position, time_s):
    """Run (T, D) tokens through all blocks under a (T, T) mask; return (T, D)."""
    for block in blocks:
        config = block.config
        mapped = F.linear(block.norm(token), block.weight, block.bias)
        if config.silu_on == "all":
            mapped = F.silu(mapped)
        value_dim, key_dim = config.heads * config.value_dim, config.heads * config.key_dim
        gate, query, value, key = mapped.split([value_dim, key_dim, value_dim, key_dim], 1)
        if config.silu_on == "u":
            gate = F.silu(gate)
        query, value, key = (t.unflatten(1, (config.heads, -1)) for t in (query, value, key))
        score = torch.einsum("qhd,khd->hqk", query, key) * (key_dim // config.heads) ** (-0.5 * config.scaled)
        if block.relative is not None:
            distance = (position[:, None] - position[None, :]).clamp(0, config.num_positions - 1)
            score = score + block.relative.position[distance]
            if block.relative.time is not None:
                score = score + block.relative.time[time_bucket((time_s[:, None] - time_s[None, :]).to(torch.int32))]
        weight = F.silu(score) / config.normaliser * mask
        read = torch.einsum("hqk,khd->qhd", weight, value).flatten(1)
        gated = gate * block.out_norm(read)
        token = token + block.out(torch.cat([gate, read, gated], 1) if config.concat else gated)
    return token
