"""One optimiser step on touched rows, number by number in double, from the equations of `ops/row_updates.py`."""

import math


def slow_update(table, state, rows, gradient, rule, learning_rate):
    """Return (table, state) after the step, as nested lists; `state` maps names to lists, `touches` among them."""
    table = [list(row) for row in table]
    state = {name: [list(x) if isinstance(x, list) else x for x in values] for name, values in state.items()}
    for row, g in zip(rows, gradient, strict=True):
        state["touches"][row] += 1
        k, dim = state["touches"][row], len(g)
        mean = sum(x * x for x in g) / dim
        if rule.kind == "rowwise_adam":
            state["second"][row][0] = rule.betas[1] * state["second"][row][0] + (1 - rule.betas[1]) * mean
        if rule.kind == "rowwise_adagrad":
            state["square_sum"][row][0] += mean
        for d in range(dim):
            w = table[row][d]
            w -= w * learning_rate * rule.decay / (k if rule.decay_by == "frequency" else 1)
            if rule.kind in ("adam", "rowwise_adam"):
                beta1, beta2 = rule.betas
                state["first"][row][d] = beta1 * state["first"][row][d] + (1 - beta1) * g[d]
                if rule.kind == "adam":
                    state["second"][row][d] = beta2 * state["second"][row][d] + (1 - beta2) * g[d] ** 2
                second = state["second"][row][d if rule.kind == "adam" else 0]
                up, root = state["first"][row][d] / (1 - beta1**k), math.sqrt(second / (1 - beta2**k))
            else:
                if rule.kind == "adagrad":
                    state["square_sum"][row][d] += g[d] ** 2
                up, root = g[d], math.sqrt(state["square_sum"][row][d if rule.kind == "adagrad" else 0])
            table[row][d] = w - learning_rate * up / (root + rule.eps)
    return table, state
