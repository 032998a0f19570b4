"""Recurrent states written from the equations: a loop over requests, candidates and steps."""

import torch


def slow_step(x, h, weight, bias, cell, a):
    """One step of one row: x (3 H,), h (H,), a () or None."""
    units = len(h)
    w_u, w_r, w_c = weight[:units], weight[units : 2 * units], weight[2 * units :]
    b_u, b_r, b_c = bias[:units], bias[units : 2 * units], bias[2 * units :]
    if cell == "aigru":
        x = a * x
    u = torch.sigmoid(x[:units] + w_u @ h + b_u)
    r = torch.sigmoid(x[units : 2 * units] + w_r @ h + b_r)
    c = torch.tanh(x[2 * units :] + r * (w_c @ h) + b_c)
    if cell == "augru":
        u = a * u
    elif cell == "released":  # the released code weighs the old state: z = 1 - u, then z <- (1 - a) z
        u = 1 - (1 - a) * (1 - u)
    elif cell == "agru":
        return (1 - a) * h + a * c
    return (1 - u) * h + u * c


def slow_states(inputs, offsets, attention, query_offsets, weight, bias, initial, cell):
    """Return the states behind every step of every candidate, and the last ones (the initial one without steps)."""
    every, last, pair = [], [], 0
    for b in range(len(offsets) - 1):
        for c in range(int(query_offsets[b]), int(query_offsets[b + 1])):
            h = initial[c]
            for t in range(int(offsets[b]), int(offsets[b + 1])):
                h = slow_step(inputs[t], h, weight, bias, cell, None if attention is None else attention[pair])
                every.append(h)
                pair += 1
            last.append(h)
    empty = inputs.new_zeros(0, weight.shape[1])
    return torch.stack(every) if every else empty, torch.stack(last) if last else empty
