"""DIN's weighted sum written from the paper: a loop over requests, candidates and behaviours, no factoring."""

import torch


def activation(x, slope):
    return x.clamp(min=0) if slope is None else torch.where(x > 0, x, slope * x)


def slow_target_attention(
    query, query_offsets, key, key_offsets, value, weight, bias, out, out_bias, *, slope=None, key_hidden, normalise
):
    """`weight` is (H, 4 D) over [q; k; q - k; q * k]; everything else as in ops.target_attention."""
    rows = []
    for b in range(len(query_offsets) - 1):
        for c in range(int(query_offsets[b]), int(query_offsets[b + 1])):
            behaviours = range(int(key_offsets[b]), int(key_offsets[b + 1]))
            scores = []
            for j in behaviours:
                q, k = query[c], key[j]
                hidden = weight @ torch.cat([q, k, q - k, q * k]) + bias
                if key_hidden is not None:
                    hidden = hidden + key_hidden[j]
                scores.append(out @ activation(hidden, slope) + out_bias)
            total = torch.zeros(value.shape[1], dtype=value.dtype)
            if scores:
                weights = torch.stack(scores)
                if normalise == "softmax":
                    weights = weights.softmax(0)
                elif normalise == "sqrt_length":
                    weights = weights / len(scores) ** 0.5
                for weight_j, j in zip(weights, behaviours, strict=True):
                    total = total + weight_j * value[j]
            rows.append(total)
    return torch.stack(rows) if rows else torch.zeros(0, value.shape[1], dtype=value.dtype)
