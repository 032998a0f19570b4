import torch
from hypothesis import given
from hypothesis import strategies as st

from sostenuto.ops.time_gaps import DAY_MS, NUM_GAP_FEATURES, NUM_OCTAVES, gap_features, octave_weights

gaps = st.lists(st.integers(0, 40 * 365 * DAY_MS), min_size=1, max_size=5)


@given(gaps)
def test_octave_weights_are_a_partition_that_gives_the_logarithm_back(values):
    gap_ms = torch.tensor(values)
    weights = octave_weights(gap_ms)
    assert (weights >= 0).all()
    assert ((weights > 0).sum(1) <= 2).all()
    torch.testing.assert_close(weights.sum(1), torch.ones(len(values)))
    octave = torch.log2(1 + gap_ms.double() / 1000).clamp(max=NUM_OCTAVES - 1).float()
    torch.testing.assert_close(weights @ torch.arange(NUM_OCTAVES).float(), octave, rtol=1e-5, atol=1e-5)


@given(st.integers(1, 500))
def test_the_same_hour_and_the_same_weekday_are_seen(weeks):
    same_moment, half_a_day_off = weeks * 7 * DAY_MS, weeks * 7 * DAY_MS + DAY_MS // 2
    features = gap_features(torch.tensor([same_moment, half_a_day_off]))
    assert features.shape == (2, NUM_GAP_FEATURES)
    torch.testing.assert_close(features[0, -2:], torch.ones(2))
    torch.testing.assert_close(features[1, -2], torch.tensor(-1.0))


def test_a_request_before_its_behaviour_counts_as_no_gap():
    assert torch.equal(octave_weights(torch.tensor([-5000])), octave_weights(torch.tensor([0])))
