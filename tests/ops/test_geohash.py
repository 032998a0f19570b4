"""Geohash codes against published ones, and their nesting."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sostenuto.ops.geohash import ALPHABET, geohash_cells, geohash_centres, geohash_text

# well-known examples: the one of geohash.org, and those of the encyclopaedia's article
KNOWN = [
    (57.64911, 10.40744, "u4pruydqqvj"),
    (42.605, -5.603, "ezs42"),
    (48.858, 2.294, "u09tun"),
    (-25.382708, -49.265506, "6gkzwgjzn820"),
    (0.0, 0.0, "s0000"),
    (90.0, 180.0, "zzzzz"),
]
LATITUDES, LONGITUDES = st.floats(-90, 90), st.floats(-180, 180)


@pytest.mark.parametrize(("latitude", "longitude", "text"), KNOWN)
def test_known_codes(latitude: float, longitude: float, text: str) -> None:
    assert geohash_text(latitude, longitude, len(text)) == text


@given(LATITUDES, LONGITUDES, st.integers(2, 12))
def test_a_shorter_code_is_the_beginning_of_a_longer_one(latitude: float, longitude: float, precision: int) -> None:
    longer, shorter = (geohash_text(latitude, longitude, p) for p in (precision, precision - 1))
    assert longer[:-1] == shorter
    cells = [int(geohash_cells(np.array([latitude]), np.array([longitude]), p)[0]) for p in (precision, precision - 1)]
    assert cells[0] >> 5 == cells[1]


@given(LATITUDES, LONGITUDES, st.integers(1, 12))
def test_the_centre_of_a_cell_lies_in_it_and_near_the_point(latitude: float, longitude: float, precision: int) -> None:
    text = geohash_text(latitude, longitude, precision)
    (centre,) = geohash_centres([text])
    assert geohash_text(*centre, precision) == text
    width, height = 360 / 2 ** ((5 * precision + 1) // 2), 180 / 2 ** (5 * precision // 2)
    assert abs(centre[0] - latitude) <= height / 2 + 1e-9
    assert abs(centre[1] - longitude) <= width / 2 + 1e-9


def test_what_is_no_point_has_no_cell() -> None:
    latitude, longitude = np.array([np.nan, 91.0, 0.0]), np.array([0.0, 0.0, -180.1])
    assert geohash_cells(latitude, longitude, 5).tolist() == [-1, -1, -1]
    assert geohash_text(float("nan"), 0.0, 6) == ""


def test_nonsense_is_refused() -> None:
    with pytest.raises(ValueError, match=r"precision must be in 1\.\.12 characters, got 13"):
        geohash_cells(np.zeros(1), np.zeros(1), 13)
    assert "a" not in ALPHABET
    with pytest.raises(ValueError, match=r"a place must be a geohash of .* got 'dr5a'"):
        geohash_centres(["dr5a"])
    with pytest.raises(ValueError, match="got ''"):
        geohash_centres([""])
