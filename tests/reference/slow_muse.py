"""Search by cosine, one candidate and one behaviour at a time; attention with fused scores from its equation."""

import math


def slow_cosine(first, second):
    """Return the cosine of two lists of numbers, 0 where either has no length."""
    lengths = [math.sqrt(sum(x * x for x in v)) for v in (first, second)]
    if not all(lengths):
        return 0.0
    return sum(a * b for a, b in zip(first, second, strict=True)) / (lengths[0] * lengths[1])


def slow_fused(query, keys, biases, values, similarities, factors):
    """Return the average of values of one candidate and head.

    Args:
        query: numbers.
        keys, values: lists of numbers, one per behaviour.
        biases, similarities: a number per behaviour.
        factors: of the product, of the similarity, and of both together.
    """
    scores = []
    for key, bias, r in zip(keys, biases, similarities, strict=True):
        alpha = sum(a * b for a, b in zip(query, key, strict=True))
        scores.append(factors[0] * alpha + factors[1] * r + factors[2] * alpha * r + bias)
    top = max(scores)
    weights = [math.exp(score - top) for score in scores]
    return [sum(w * v[d] for w, v in zip(weights, values, strict=True)) / sum(weights) for d in range(len(values[0]))]
