"""The search finds planted directions that tell lengths, and leaves massive channels to the last bit."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from dynorm_onnx.calibration.rotation import ChosenDirections, choose_directions, directions, length_tokens_of
from dynorm_onnx.calibration.rotation.directions import Estimate, find_directions
from dynorm_onnx.calibration.rotation.length_tokens import LengthTokens
from dynorm_onnx.calibration.rotation.lengths import length_error, rotation_to
from dynorm_onnx.graph.streams.basis import find_bases
from tests.builders.convert import lowered
from tests.calibration.rotation import planted
from tests.calibration.rotation.planted import CHANNELS, TELLING, orthogonal


def nothing(done: int, total: int) -> None: ...


def tokens(*, sinks: bool = False) -> list[LengthTokens]:
    model, norms = lowered(planted.model(sinks=sinks, words=planted.telling))
    bases = find_bases(model.graph, norms)
    coupled = {norm.site_name: TELLING + sinks for norm in norms}
    feeds = planted.samples(sinks=sinks)
    (found,) = length_tokens_of(model, bases, feeds, coupled, np.random.default_rng(0), nothing).values()
    return found


@pytest.fixture(scope="module")
def seen() -> list[LengthTokens]:
    return tokens()


def test_tokens_are_in_units_of_the_median(seen: list[LengthTokens]) -> None:
    for one in seen:
        assert np.median(one.squares) == pytest.approx(1.0, rel=0.05)
        wide = one.x.read(0, len(one.x)).astype(np.float64)
        assert np.allclose(np.square(wide).sum(1) + one.epsilon * CHANNELS, one.squares, rtol=2e-3)
        assert 0 < one.held_out.mean() < 0.3
        assert np.array_equal(one.held_out, np.arange(len(one.x)) >= one.sought_on)


def test_massive_tokens_lie_behind_those_that_directions_are_sought_on() -> None:
    for one in tokens(sinks=True):
        massive = one.squares > 25
        assert massive.any() and not massive[: one.sought_on].any()
        assert (massive | one.held_out)[one.sought_on :].all()


@pytest.fixture
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it does not matter how good the directions are."""
    monkeypatch.setattr(directions, "STEPS", 200)


def test_planted_directions_are_found(seen: list[LengthTokens]) -> None:
    found = choose_directions(seen, np.random.default_rng(0), nothing)
    assert isinstance(found, ChosenDirections) and found.count == TELLING
    assert found.before == pytest.approx(length_error(seen, np.eye(CHANNELS)))
    least = length_error(seen, rotation_to(orthogonal(CHANNELS, 0).T[:, :TELLING]))
    assert least < 0.3 * found.before
    assert found.after < least + 0.1 * (found.before - least)


def test_massive_channels_come_first_to_the_last_bit() -> None:
    found = choose_directions(tokens(sinks=True), np.random.default_rng(0), nothing)
    assert isinstance(found, ChosenDirections)
    axis = np.eye(CHANNELS)[:, CHANNELS - 1]
    assert np.array_equal(found.rotation[:, 0], axis)
    assert not found.rotation[CHANNELS - 1, 1:].any()
    assert found.after < 0.3 * found.before


def test_one_massive_channel_alone_leaves_nothing_to_seek() -> None:
    norms = [dataclasses.replace(one, coupled=1) for one in tokens(sinks=True)]
    told = choose_directions(norms, np.random.default_rng(0), nothing)
    assert told == "the one channel that may be coupled is the massive one"


@pytest.mark.usefixtures("few_steps")
@pytest.mark.parametrize(("coupled", "fixed"), [(2, 1), (4, 1), (8, 2)])
def test_most_directions_are_sought_however_many_channels_are_massive(coupled: int, fixed: int) -> None:
    massive = np.linspace(0.1, 0.5, CHANNELS)  # the last the most
    norms = [dataclasses.replace(one, coupled=coupled, massive=massive) for one in tokens()]
    found = choose_directions(norms, np.random.default_rng(0), nothing)
    assert isinstance(found, ChosenDirections) and found.count == coupled
    assert np.array_equal(found.rotation[:, :fixed], np.eye(CHANNELS)[:, ::-1][:, :fixed])
    assert np.count_nonzero(found.rotation[:, fixed]) > 1


@pytest.mark.usefixtures("few_steps")
def test_the_same_seed_gives_the_same(seen: list[LengthTokens]) -> None:
    first, again, other = (find_directions(seen, [], 3, np.random.default_rng(seed), nothing) for seed in (3, 3, 4))
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    assert np.abs(first.T @ first - np.eye(3)).max() < 1e-12


def test_a_rotation_begins_with_its_directions_and_is_near_the_axes_behind() -> None:
    first = np.linalg.qr(np.eye(CHANNELS)[:, :3] + 1e-6 * np.random.default_rng(0).standard_normal((CHANNELS, 3)))[0]
    found = rotation_to(first)
    assert np.array_equal(found[:, :3], first)
    assert np.abs(found.T @ found - np.eye(CHANNELS)).max() < 1e-12
    assert np.abs(found[:, 3:] - np.eye(CHANNELS)[:, 3:]).max() < 1e-4


def test_its_gradients_are_those_of_its_error(seen: list[LengthTokens]) -> None:
    one, rng = Estimate(seen[0], 3), np.random.default_rng(0)
    x, squares = (array.astype(np.float64) for array in one.sampled(rng))
    one.logarithms = one.logarithms.astype(np.float64) + 0.3 * rng.standard_normal(4)
    first, step = rng.standard_normal((CHANNELS, 3)) / CHANNELS**0.5, 1e-6
    _, by_directions, by_logarithms = one.error(first, x, squares)
    moved = rng.standard_normal(first.shape)
    ends = [one.error(first + side * step * moved, x, squares)[0] for side in (1, -1)]
    assert (ends[0] - ends[1]) / (2 * step) == pytest.approx(np.vdot(by_directions, moved), rel=1e-5)
    start, moved = one.logarithms, rng.standard_normal(4)
    values = []
    for side in (1, -1):
        one.logarithms = start + side * step * moved
        values.append(one.error(first, x, squares)[0])
    assert (values[0] - values[1]) / (2 * step) == pytest.approx(np.vdot(by_logarithms, moved), rel=1e-5)
