"""Causal attention, pair by pair, from the equations."""

import math

import torch


def bucket(gap_s):
    return max(0, min(128, math.floor(math.log(max(abs(int(gap_s)), 1)) / 0.301 + 1e-9)))


def slow_attention(query, key, value, query_offsets, key_offsets, visible, *, form, scale, normaliser, bias, own):
    """Return (Nq, H, E); arguments as in `ops.causal_attention`."""
    rows = []
    for b in range(len(query_offsets) - 1):
        start = int(key_offsets[b])
        for i in range(int(query_offsets[b]), int(query_offsets[b + 1])):
            heads = []
            for h in range(query.shape[1]):
                seen = [(key[j, h], value[j, h], _bias(bias, i, j)) for j in range(start, start + int(visible[i]))] + [
                    (one.key[i, h], one.value[i, h], _own_bias(bias, one)) for one in own
                ]
                scores = [scale * (query[i, h] @ k) + term for k, _, term in seen]
                if not seen:
                    heads.append(torch.zeros_like(value[0, 0]))
                    continue
                stacked = torch.stack(scores)
                weight = stacked * torch.sigmoid(stacked) / normaliser if form == "silu" else stacked.softmax(0)
                heads.append(sum(w * v for w, (_, v, _) in zip(weight, seen, strict=True)))
            rows.append(torch.stack(heads))
    return torch.stack(rows)


def _bias(bias, i, j):
    if bias is None:
        return 0.0
    far = min(max(int(bias.query_position[i] - bias.key_position[j]), 0), len(bias.position) - 1)
    return bias.position[far] + bias.time[bucket(bias.query_time_s[i] - bias.key_time_s[j])]


def _own_bias(bias, one):
    return 0.0 if bias is None else bias.position[min(one.distance, len(bias.position) - 1)] + bias.time[0]
