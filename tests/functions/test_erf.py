"""The float64 error function against Python's own."""

from __future__ import annotations

import math

import numpy as np

from dynorm_onnx.functions.erf import erf


def test_agrees_with_the_standard_library_to_the_last_places() -> None:
    z = np.concatenate([np.linspace(-8, 8, 20001), [0.0, -0.0, 1e-300, 1e38, -np.inf]])
    expected = np.array([math.erf(value) for value in z])
    assert np.max(np.abs(erf(z) - expected)) < 3e-16
    tiny = z[np.abs(z) < 0.4]
    nonzero = tiny[tiny != 0]
    exact = np.array([math.erf(value) for value in nonzero])
    assert np.max(np.abs(erf(nonzero) / exact - 1)) < 3e-16


def test_nan_stays_nan_and_zeros_keep_their_sign() -> None:
    assert np.isnan(erf(np.array([np.nan, 1.0]))).tolist() == [True, False]
    assert np.signbit(erf(np.array([0.0, -0.0]))).tolist() == [False, True]


def test_any_shape_is_kept() -> None:
    assert erf(np.array(0.5)) == math.erf(0.5)
    assert erf(np.zeros((0, 3))).shape == (0, 3)
