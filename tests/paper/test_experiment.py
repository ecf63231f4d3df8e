"""The numbers of arXiv 2503.21708, to the digits in which it prints them, and what it does not print."""

from __future__ import annotations

import numpy as np
import pytest

from dynorm_onnx.paper import Experiment, OutlierFit, run_experiment


@pytest.fixture(scope="module")
def layer() -> Experiment:
    return run_experiment("layer")


@pytest.fixture(scope="module")
def rms() -> Experiment:
    return run_experiment("rms")


def fit_of(experiment: Experiment, name: str) -> OutlierFit:
    return next(fit for fit in experiment.fits if fit.function == name)


def test_dyt_is_as_printed(layer: Experiment) -> None:
    fit = fit_of(layer, "dyt")
    assert f"{fit.parameters['alpha']:.5f}" == "0.04861"
    assert f"{fit.residual:.4f}" == "0.3279"
    assert f"{fit.residual:.5f}" == "0.32788"


def test_dyisru_is_as_printed(layer: Experiment) -> None:
    fit = fit_of(layer, "dyisru")
    assert f"{fit.parameters['beta']:.2f}" == "301.06"
    assert f"{fit.residual:.6f}" == "0.004814"


def test_dyisru_is_rmsnorm_where_beta_is_the_other_squares(rms: Experiment) -> None:
    fit = fit_of(rms, "dyisru")
    assert f"{rms.exact_beta:.4f}" == "295.7618"
    assert fit.parameters["beta"] == pytest.approx(rms.exact_beta, rel=1e-9)
    assert fit.residual < 1e-9
    others = np.square(rms.tokens[:, :-1]).sum(axis=1)
    np.testing.assert_allclose(rms.normed[:, -1], 10 * rms.tokens[:, -1] / np.sqrt(others + rms.tokens[:, -1] ** 2))


@pytest.mark.parametrize("kind", ["layer", "rms"])
def test_the_order_of_the_functions(kind: str, layer: Experiment, rms: Experiment) -> None:
    experiment = layer if kind == "layer" else rms
    dyisru, dyt, derf = (fit_of(experiment, name) for name in ("dyisru", "dyt", "derf"))
    assert dyisru.residual < dyt.residual < derf.residual
    # and in return, on all other channels:
    assert dyisru.residual_others > dyt.residual_others > derf.residual_others


def test_the_fit_makes_the_other_channels_about_three_times_too_large(layer: Experiment, rms: Experiment) -> None:
    for experiment in (layer, rms):
        fit = fit_of(experiment, "dyisru")
        assert np.all(np.diff(fit.gains) > 0)
        assert 2.5 < fit.gains[-1] < 3.2
        given = fit.curve(experiment.tokens[-1, :-1])
        slope = np.polyfit(experiment.normed[-1, :-1], given, 1)[0]
        assert fit.gains[-1] == pytest.approx(slope, rel=1e-9)


def test_the_points_are_mirrored_outliers(layer: Experiment) -> None:
    assert layer.x.shape == (18,)
    np.testing.assert_array_equal(layer.x, -layer.x[::-1])
    np.testing.assert_array_equal(layer.y, -layer.y[::-1])
    np.testing.assert_allclose(np.diff(layer.x[9:]), 5.0)
