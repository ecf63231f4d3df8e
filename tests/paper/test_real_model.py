"""The comparison on a model's own activations."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from dynorm_onnx.calibration.data import load_calibration
from dynorm_onnx.calibration.norms.one_parameter import OUTLIERS
from dynorm_onnx.errors import NoSiteError
from dynorm_onnx.functions import FUNCTIONS
from dynorm_onnx.graph.files import model_io
from dynorm_onnx.paper import ModelComparison, compare_on_model
from dynorm_onnx.paper.real_model import HOWS, SiteComparison
from tests.shipped import MODEL, NORMS, TEXT

OF_THE_PAPERS = ("dyisru", "dyt", "derf")


@pytest.fixture(scope="module")
def comparison() -> ModelComparison:
    return compare_on_model(MODEL, TEXT, samples=6, max_length=64)


def test_every_norm_is_compared_in_every_way(comparison: ModelComparison) -> None:
    assert len(comparison.sites) == NORMS
    for site in comparison.sites:
        assert site.tokens == 6 * 64 and site.channels == 160 and site.kind == "rms"
        assert {(fit.function, fit.how) for fit in site.fits} == {(f.name, how) for f in FUNCTIONS for how in HOWS}
        assert 2 < site.threshold <= site.largest <= np.sqrt(160)


def test_each_way_is_best_at_what_it_was_fitted_to(comparison: ModelComparison) -> None:
    for site in comparison.sites:
        ways = {(fit.function, fit.how): fit for fit in site.fits}
        for function in FUNCTIONS:
            everything, outliers, channels = (ways[function.name, how] for how in HOWS)
            assert outliers.outliers < 1.05 * everything.outliers  # least squares are not least absolute values
            assert channels.overall < 1.01 * everything.overall
            assert everything.overall < 1.01 * outliers.overall
            assert everything.gain_others == pytest.approx(1, abs=0.06)


def test_fitted_to_outliers_dyisru_follows_them_best_and_costs_the_others_most(comparison: ModelComparison) -> None:
    def outliers(site: SiteComparison) -> dict[str, float]:
        return {fit.function: fit.outliers for fit in site.fitted("outliers") if fit.function in OF_THE_PAPERS}

    assert sum(min(found := outliers(site), key=found.get) == "dyisru" for site in comparison.sites) > NORMS / 2
    for site in comparison.sites[1:]:  # all outliers of the first are one value, that of the most frequent byte
        gains = {fit.function: fit.gain_others for fit in site.fitted("outliers") if fit.function in OF_THE_PAPERS}
        assert gains["dyisru"] == max(gains.values())


def test_the_numbers_are_those_of_the_definition(comparison: ModelComparison) -> None:
    site = comparison.sites[0]
    embeddings = _first_norm_input(6, 64)
    y = embeddings / np.sqrt(np.square(embeddings).mean(axis=1, keepdims=True) + 1e-6)
    size = np.abs(y)
    assert site.largest == pytest.approx(size.max(), rel=1e-4)
    outlier = size >= np.quantile(size, 1 - OUTLIERS)
    fit = next(fit for fit in site.fitted("scalar") if fit.function == "dyt")
    residual = np.abs(np.sqrt(160) * np.tanh(fit.parameters["alpha"] * embeddings) - y)
    assert fit.overall == pytest.approx(residual.mean(), rel=1e-3)
    assert fit.outliers == pytest.approx(residual[outlier].mean(), rel=1e-3)


def test_channels_that_stay_in_the_sum_tell_the_length(comparison: ModelComparison) -> None:
    """The norm sees all channels, a function one: behind the gain of a few, every function is nearer to it."""
    coupled = compare_on_model(MODEL, TEXT, samples=6, max_length=64, coupled=8)
    assert coupled.hows == (*HOWS, "coupled") and set(coupled.as_dict()["wins"]) == set(coupled.hows)
    for site, alone in zip(coupled.sites, comparison.sites, strict=True):
        assert 1 <= len(site.coupled) <= 8 and not alone.coupled
        assert site.fitted("channels") == alone.fitted("channels")
        for near, far in zip(site.fitted("coupled"), site.fitted("channels"), strict=True):
            assert near.overall < far.overall


def _first_norm_input(samples: int, length: int) -> np.ndarray:
    """The embeddings of the tokens that the comparison is made on, [tokens, C] float64."""
    data = load_calibration(
        model_io.load(MODEL),
        TEXT,
        session=lambda: None,
        samples=samples,
        max_length=length,
        seed=0,
        folder=MODEL.parent,
    )
    ids = np.concatenate([feeds["input_ids"].ravel() for feeds in data.calibration])
    weights = {tensor.name: tensor for tensor in onnx.load(MODEL).graph.initializer}
    table = next(tensor for name, tensor in weights.items() if "embed_tokens" in name)
    return onnx.numpy_helper.to_array(table)[ids].astype(np.float64)


def test_a_model_without_norms_is_told_so(tmp_path: Path) -> None:
    path = tmp_path / "plain.onnx"
    text = '<ir_version: 8, opset_import: ["" : 18]> g (float[2, 3] x) => (float[2, 3] y) { y = Relu(x) }'
    onnx.save(onnx.parser.parse_model(text), path)
    with pytest.raises(NoSiteError):
        compare_on_model(path)
