"""Searches by looking at every pair and sorting all of them."""

import math


def differing_bits(a, b):
    return sum(int(x) != int(y) for x, y in zip(a, b, strict=True))


def inner_product(a, b):
    return math.fsum(float(x) * float(y) for x, y in zip(a, b, strict=True))


def slow_top_k(query, query_offsets, key, key_offsets, k, *, distance):
    """Return per candidate the (value, position) of the `k` nearest, ties to the newer; `distance` is what is small."""
    found = []
    for b in range(len(query_offsets) - 1):
        behaviours = range(int(key_offsets[b]), int(key_offsets[b + 1]))
        for c in range(int(query_offsets[b]), int(query_offsets[b + 1])):
            pairs = [(distance(query[c], key[j]), -j) for j in behaviours]
            found.append([(value, -j) for value, j in sorted(pairs)[:k]])
    return found
