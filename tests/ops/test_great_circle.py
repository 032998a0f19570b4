import math

import torch

from sostenuto.ops.great_circle import EARTH_KM, NUM_DISTANCE_OCTAVES, distance_octaves, great_circle_km


def test_a_degree_of_latitude_is_111_km_and_a_quarter_of_the_earth_a_quarter() -> None:
    first = torch.tensor([[0.0, 0.0], [0.0, 0.0], [90.0, 50.0], [40.7, -74.0]])
    second = torch.tensor([[1.0, 0.0], [0.0, 90.0], [-90.0, 10.0], [40.7, -74.0]])
    expected = [EARTH_KM * math.pi / 180, EARTH_KM * math.pi / 2, EARTH_KM * math.pi, 0.0]
    torch.testing.assert_close(great_circle_km(first, second), torch.tensor(expected), rtol=1e-5, atol=1e-4)


def test_new_york_to_london_is_5570_km_either_way() -> None:
    a, b = torch.tensor([[40.7128, -74.006]]), torch.tensor([[51.5074, -0.1278]])
    assert abs(great_circle_km(a, b).item() - 5570) < 3
    torch.testing.assert_close(great_circle_km(a, b), great_circle_km(b, a))


def test_octaves_sum_to_one_and_a_missing_distance_has_its_own() -> None:
    km = torch.tensor([0.0, 0.1, 0.2, 5.0, 1e5, math.nan])
    weights = distance_octaves(km)
    assert weights.shape == (6, NUM_DISTANCE_OCTAVES + 1)
    torch.testing.assert_close(weights.sum(1), torch.ones(6))
    assert weights[0, 0] == 1
    torch.testing.assert_close(weights[1, 1], torch.tensor(1.0))
    assert weights[4, -2] == 1
    assert weights[5, -1] == 1
    assert not weights[:5, -1].any()
