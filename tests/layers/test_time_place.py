import dataclasses

import pytest
import torch

from sostenuto.layers.time_place import DistanceEncoder, LocalClock, PlaceCells, PlaceEncoder, TimeEncoder
from sostenuto.ops.geohash import geohash_text
from sostenuto.schema.errors import SpecError
from sostenuto.schema.features import FeatureSpec

POINTS = ((40.7565, -73.987), (40.7562, -73.975), (40.9, -73.5), (40.7565, -73.987))
SPEC = FeatureSpec(num_items=3, num_item_rows=3, num_places=6, place_points=POINTS)


def test_a_moment_is_the_sum_of_its_hour_its_weekday_and_its_part_of_the_week():
    clock, encode = LocalClock("America/New_York"), TimeEncoder(3, std=1.0)
    # Saturday 5 November 2016 23:30 and Sunday 6 November 1:30 (twice) in New York
    times = torch.tensor([1_478_403_000_000, 1_478_410_200_000, 1_478_413_800_000])
    moment = clock(times)
    assert moment.hour.tolist() == [23, 1, 1]
    assert moment.weekday.tolist() == [5, 6, 6]
    expected = (
        encode.hour.weight[2 + moment.hour] + encode.weekday.weight[2 + moment.weekday] + encode.weekend.weight[3]
    )
    torch.testing.assert_close(encode(moment), expected)
    encode(moment).sum().backward()
    assert encode.hour.weight.grad.to_dense()[2 + 23].any()
    assert not encode.hour.weight.grad.to_dense()[2 + 12].any()


def test_cells_are_geohash_prefixes_and_0_and_1_stay_what_they_are():
    cells = PlaceCells(SPEC, (5, 6))
    found = cells(torch.arange(6)).tolist()
    assert found[:2] == [[0, 0], [1, 1]]
    for level, precision in enumerate((5, 6)):
        texts = [geohash_text(*point, precision) for point in POINTS]
        same = [[a == b for b in texts] for a in texts]
        assert [[a[level] == b[level] for b in found[2:]] for a in found[2:]] == same
    assert cells.sizes == (4, 5)
    assert torch.isnan(cells.where(torch.tensor([0, 1]))).all()


def test_places_that_are_only_names_are_their_own_cells():
    cells = PlaceCells(dataclasses.replace(SPEC, place_points=()), (5, 6))
    assert cells(torch.arange(6)).tolist() == [[i] for i in range(6)]
    assert cells.sizes == (6,)
    assert not cells.has_points


def test_a_missing_place_is_nothing():
    encode = PlaceEncoder(PlaceCells(SPEC, (5, 6)), 4, std=1.0)
    cells = PlaceCells(SPEC, (5, 6))
    assert not encode(cells(torch.tensor([0]))).any()
    first, again = encode(cells(torch.tensor([2, 5])))
    torch.testing.assert_close(first, again)  # one point, two places


def test_points_must_match_the_places():
    with pytest.raises(SpecError, match="one entry per known place, 4, got 1"):
        PlaceCells(dataclasses.replace(SPEC, place_points=POINTS[:1]), (5,))


def test_distances_have_a_value_of_their_own_where_they_are_not_known():
    encode, cells = DistanceEncoder(3), PlaceCells(SPEC, (5,))
    near, far, unknown = encode(cells.where(torch.tensor([2, 2, 2])), cells.where(torch.tensor([5, 4, 0])))
    torch.testing.assert_close(unknown, encode.linear.weight[:, -1])
    torch.testing.assert_close(near, encode.linear.weight[:, 0])
    assert not torch.allclose(near, far)
