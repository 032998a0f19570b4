"""Geohash cells: a place on earth as a text whose beginnings name ever larger cells. On numpy arrays, without torch.

The scheme is Niemeyer's (2008): longitude and latitude are halved in turn, five bits make one character.
A cell of 5 characters is about 4.9 km x 4.9 km at the equator, one of 6 about 1.2 km x 0.6 km.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

ALPHABET = "0123456789bcdefghjkmnpqrstuvwxyz"
BITS = 5  # per character
MOST_CHARACTERS = 12  # 60 bits fit an int64


def _check(precision: int) -> None:
    if not 1 <= precision <= MOST_CHARACTERS:
        raise ValueError(f"precision must be in 1..{MOST_CHARACTERS} characters, got {precision}; 5 is a district")


def geohash_cells(latitude: Array, longitude: Array, precision: int) -> Array:
    """Return the (N,) int64 cells of points in degrees; -1 where a coordinate is missing or outside the earth.

    The bits of a cell are those of its text, so `cell >> 5` is the cell around it with one character less.
    """
    _check(precision)
    bits = BITS * precision
    latitude, longitude = np.asarray(latitude, np.float64), np.asarray(longitude, np.float64)
    known = (np.abs(latitude) <= 90) & (np.abs(longitude) <= 180)
    cell = np.zeros(latitude.shape, np.int64)
    for degrees, reach, count, even in (
        (longitude, 180.0, (bits + 1) // 2, True),
        (latitude, 90.0, bits // 2, False),
    ):
        share = np.where(known, (degrees + reach) / (2 * reach), 0.0)
        step = np.minimum((share * 2.0**count).astype(np.int64), 2**count - 1)  # the last cell holds its far edge
        for bit in range(count):  # from the finest; the longest bit sequence starts with a longitude
            place = bits - 1 - (2 * (count - 1 - bit) + (0 if even else 1))
            cell |= ((step >> bit) & 1) << place
    return np.where(known, cell, -1)


def geohash_text(latitude: float, longitude: float, precision: int) -> str:
    """Return the text of one point's cell, "" where a coordinate is missing.

    >>> geohash_text(57.64911, 10.40744, 11)
    'u4pruydqqvj'
    """
    cell = int(geohash_cells(np.array([latitude]), np.array([longitude]), precision)[0])
    if cell < 0:
        return ""
    return "".join(ALPHABET[(cell >> (BITS * at)) & 31] for at in reversed(range(precision)))


def geohash_centres(texts: Iterable[str]) -> Array:
    """Return the (N, 2) float64 latitude and longitude of the centres of cells.

    Raises:
        ValueError: a text that is no geohash.
    """
    return np.array([_centre(text) for text in texts], np.float64).reshape(-1, 2)


def _centre(text: str) -> tuple[float, float]:
    low, high = [-180.0, -90.0], [180.0, 90.0]  # longitude, latitude
    if not 1 <= len(text) <= MOST_CHARACTERS or any(letter not in ALPHABET for letter in text):
        raise ValueError(
            f"a place must be a geohash of 1..{MOST_CHARACTERS} of {ALPHABET}, got {text!r}; leave it empty if unknown"
        )
    for at in range(BITS * len(text)):
        side = at % 2
        middle = (low[side] + high[side]) / 2
        if (ALPHABET.index(text[at // BITS]) >> (BITS - 1 - at % BITS)) & 1:
            low[side] = middle
        else:
            high[side] = middle
    return (low[1] + high[1]) / 2, (low[0] + high[0]) / 2


__all__ = ["ALPHABET", "geohash_cells", "geohash_centres", "geohash_text"]
