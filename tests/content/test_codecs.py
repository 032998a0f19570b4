import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sostenuto.content.codecs import decoded, encoded
from sostenuto.data.content_folder import cosine_errors
from sostenuto.schema.errors import SpecError


def unit_rows(num, dim, seed):
    rows = np.random.default_rng(seed).normal(size=(num, dim)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


# Rounding moves each entry by at most half a step s. Against a unit vector that is an error of at most s / 2 * sqrt(W)
# in length, so 1 - cosine <= (s / 2 * sqrt(W)) ** 2 / 2 roughly; s = largest / 127 for int8, 2 ** -11 relative for
# float16 (then the length of the error is at most 2 ** -12 * sqrt(1) of the vector's own).
@pytest.mark.parametrize("dim", [8, 128, 384, 1280])
def test_the_error_of_int8_stays_within_its_rounding(dim):
    rows = unit_rows(2_000, dim, 0)
    error = cosine_errors(rows, decoded(*encoded(rows, "int8")))
    step = np.abs(rows).max(1) / 127
    assert (error <= (step / 2) ** 2 * dim / 2 * 1.1 + 1e-7).all()
    assert error.max() < 1e-4  # measured: 2.7e-5 at width 8, 5.7e-5 at 384, 7.4e-5 at 1280
    assert error.mean() > 1e-7  # it is not the identity


@pytest.mark.parametrize("dim", [8, 384])
def test_the_error_of_float16_is_below_a_millionth(dim):
    rows = unit_rows(2_000, dim, 1)
    error = cosine_errors(rows, decoded(*encoded(rows, "float16")))
    assert error.max() <= (2**-11) ** 2 / 2 * 1.1
    assert error.max() > 0


@given(st.integers(0, 1000), st.floats(-12, 12))
def test_int8_does_not_depend_on_the_length_of_a_row(seed, power):
    rows = unit_rows(3, 16, seed)
    codes, scale = encoded(rows, "int8")
    longer, its_scale = encoded((rows * 10.0**power).astype(np.float32), "int8")
    assert np.abs(codes.astype(int) - longer).max() <= 1  # a tie may round the other way
    np.testing.assert_allclose(its_scale, scale * 10.0**power, rtol=1e-5)


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_a_zero_row_stays_zero(dtype):
    rows = np.zeros((2, 4), np.float32)
    rows[1] = 1.0
    again = decoded(*encoded(rows, dtype))
    assert not again[0].any()
    np.testing.assert_allclose(again[1], 1.0, atol=1e-3)


def test_numbers_beyond_half_precision_are_refused_for_float16_and_kept_by_int8():
    rows = np.array([[1e6, -5e5]], np.float32)
    with pytest.raises(SpecError, match="take --dtype int8"):
        encoded(rows, "float16")
    np.testing.assert_allclose(decoded(*encoded(rows, "int8")), rows, rtol=0.01)
