"""The search finds a planted basis, leaves what must stay, and tells no more than it measured."""

from __future__ import annotations

import numpy as np
import pytest

from dynorm_onnx.calibration.norms.fit_rows import Leeway
from dynorm_onnx.calibration.rotation import Chosen, choose_rotation, tokens_of_streams
from dynorm_onnx.calibration.rotation.choose import error_in
from dynorm_onnx.calibration.rotation.imitation import Imitation
from dynorm_onnx.calibration.rotation.search import find_rotation
from dynorm_onnx.calibration.rotation.tokens import NormTokens
from dynorm_onnx.functions import REGISTRY
from dynorm_onnx.graph.streams.basis import find_bases
from tests.builders.convert import lowered
from tests.calibration.rotation import planted
from tests.calibration.rotation.planted import CHANNELS, orthogonal
from tests.tolerances import relative_error


def nothing(done: int, total: int) -> None: ...


def tokens(*, sinks: bool = False) -> list[NormTokens]:
    model, norms = lowered(planted.model(sinks=sinks))
    bases = find_bases(model.graph, norms)
    leeway = {norm.site_name: Leeway(0, sinks) for norm in norms}
    feeds = planted.samples(sinks=sinks)
    (found,) = tokens_of_streams(model, bases, feeds, leeway, np.random.default_rng(0), nothing).values()
    return found


@pytest.fixture(scope="module")
def seen() -> list[NormTokens]:
    return tokens()


def chosen(norms: list[NormTokens], seed: int = 0, axes: tuple[int, ...] = ()) -> Chosen:
    return choose_rotation(norms, REGISTRY["dyisru"], axes, np.random.default_rng(seed), nothing)


def test_a_planted_basis_is_found(seen: list[NormTokens]) -> None:
    found = chosen(seen)
    good = orthogonal(CHANNELS, 0).T
    least = error_in(seen, REGISTRY["dyisru"], good)
    assert least < 0.85 * found.before
    assert found.after - least < 0.3 * (found.before - least)


def test_the_same_seed_gives_the_same(seen: list[NormTokens]) -> None:
    first, again = (find_rotation(seen, np.zeros((CHANNELS, 0)), np.random.default_rng(3), nothing) for _ in range(2))
    assert np.array_equal(first, again)
    other = find_rotation(seen, np.zeros((CHANNELS, 0)), np.random.default_rng(4), nothing)
    assert not np.array_equal(first, other)


def test_it_is_orthogonal_and_leaves_fixed_directions(seen: list[NormTokens]) -> None:
    fixed = np.linalg.qr(np.random.default_rng(2).standard_normal((CHANNELS, 3)))[0]
    found = find_rotation(seen, fixed, np.random.default_rng(0), nothing)
    assert np.abs(found.T @ found - np.eye(CHANNELS)).max() < 1e-12
    assert np.abs(found @ fixed - fixed).max() < 1e-12
    assert np.abs(found - np.eye(CHANNELS)).max() > 0.1


def test_axes_stay_to_the_last_bit(seen: list[NormTokens]) -> None:
    found = chosen(seen, axes=(2, 7))
    rest = [channel for channel in range(CHANNELS) if channel not in (2, 7)]
    assert np.array_equal(found.rotation[np.ix_((2, 7), (2, 7))], np.eye(2))
    assert not found.rotation[np.ix_((2, 7), rest)].any() and not found.rotation[np.ix_(rest, (2, 7))].any()


def test_massive_channels_are_seen_and_massive_tokens_left_out() -> None:
    for one in tokens(sinks=True):
        assert np.flatnonzero(one.axes).tolist() == [CHANNELS - 1]
        assert np.abs(one.x).max() < 20


def test_the_metric_is_that_of_the_layers_behind(seen: list[NormTokens]) -> None:
    model, _ = lowered(planted.model())
    for one, name, gain in zip(seen, ("layer", "head"), ("gain", "other_gain"), strict=True):
        arrays = model.graph.initializers
        weight, scale = (np.float64(arrays[n].const_value.numpy()) for n in (name, gain))
        wanted = np.square((one.target * scale) @ weight).sum()
        assert one.metric.shape == (CHANNELS, CHANNELS)
        # in units in which the target has length 1 on average
        product = scale[:, None] * (weight @ weight.T) * scale
        assert relative_error(one.metric, product * len(one.target) / wanted) < 1e-5


def test_its_gradient_is_that_of_its_error(seen: list[NormTokens]) -> None:
    one, rng = Imitation(seen[0]), np.random.default_rng(0)
    x, target = one.sampled(64, 0.15, rng)
    rotation = orthogonal(CHANNELS, 5)
    one._metric = one._metric.astype(np.float64)
    one.parameters = one.parameters.astype(np.float64) + 0.1 * rng.standard_normal(one.parameters.shape)
    _, gradient = one.error(rotation, x, target)
    direction, step = rng.standard_normal(rotation.shape), 1e-5
    ends = [one.error(rotation + side * step * direction, x, target)[0] for side in (1, -1)]
    assert (ends[0] - ends[1]) / (2 * step) == pytest.approx(np.vdot(gradient.rotation, direction), rel=1e-4)
    start, moved = one.parameters, rng.standard_normal(one.parameters.shape)
    values = []
    for side in (1, -1):
        one.parameters = start + side * step * moved
        values.append(one.error(rotation, x, target)[0])
    assert (values[0] - values[1]) / (2 * step) == pytest.approx(np.vdot(gradient.parameters, moved), rel=1e-4)
