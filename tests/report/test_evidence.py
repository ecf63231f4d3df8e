"""What the pictures show is what the two models compute."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from dynorm_onnx.calibration.data import load_calibration
from dynorm_onnx.graph.files import model_io
from dynorm_onnx.report.evidence import MOST_PICTURES, OUTLIER_POINTS, POINTS, choose_pictures
from dynorm_onnx.runtime.session import make_session
from tests.report.conftest import KEPT, Page
from tests.shipped import MODEL, NORMS, TEXT
from tests.tolerances import relative_error


def held_out() -> list[dict[str, np.ndarray]]:
    """The batches that the fixture's conversion was validated on."""
    data = load_calibration(model_io.load(MODEL), TEXT, session=lambda: None, samples=10, max_length=48, seed=0,
                            folder=MODEL.parent)  # fmt: skip
    return list(data.validation)


def values(path: object, names: list[str]) -> dict[str, np.ndarray]:
    """Inner values of a model file on all held-out tokens, [tokens, C]."""
    model = onnx.load(path)
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    session = make_session(model)
    runs = [dict(zip(names, session.run(names, feeds), strict=True)) for feeds in held_out()]
    return {name: np.concatenate([run[name].reshape(-1, run[name].shape[-1]) for run in runs]) for name in names}


def outputs_of(page: Page) -> tuple[np.ndarray, np.ndarray]:
    """The final norm's output before and after, by whole models and not by stages."""
    nodes = onnx.load(page.report.output).graph.node
    name = next(node for node in nodes if any("model.norm.dyisru" in source for source in node.input)).output[0]
    return values(MODEL, [name])[name], values(page.report.output, [name])[name]


def test_the_error_is_that_of_the_converted_file(page: Page) -> None:
    before, after = outputs_of(page)
    assert page.evidence.errors["model.norm"] == pytest.approx(relative_error(after, before), rel=2e-3)


def test_every_replaced_norm_was_looked_at(page: Page) -> None:
    names = {site.name for site in page.report.sites} - {KEPT}
    assert set(page.evidence.errors) == set(page.evidence.pictures) == names
    assert len(names) == NORMS - 1


def test_a_picture_holds_few_points_and_the_largest(page: Page) -> None:
    before, _ = outputs_of(page)
    picture = page.evidence.pictures["model.norm"]
    assert 30 < len(picture.x) <= POINTS + OUTLIER_POINTS
    assert picture.outlier.any() and not picture.outlier.all()
    assert np.abs(picture.y[picture.outlier]).min() > np.abs(picture.y[~picture.outlier]).max()
    weights = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(MODEL).graph.initializer}
    core = before / weights["model.norm.weight"]
    assert np.abs(picture.y).max() == pytest.approx(np.abs(core).max(), rel=1e-4)


def test_the_band_is_ordered_and_follows_the_norm(page: Page) -> None:
    for picture in page.evidence.pictures.values():
        low, middle, high = picture.band[:, np.isfinite(picture.grid)]
        assert len(middle) > 10
        assert np.all(low <= middle) and np.all(middle <= high)
        grid = picture.grid[np.isfinite(picture.grid)]
        near = np.interp(grid, np.sort(picture.x), picture.y[np.argsort(picture.x)])
        assert np.corrcoef(middle, near)[0, 1] > 0.9


def test_the_choice_has_the_first_the_last_and_the_worst() -> None:
    rng = np.random.default_rng(3)
    errors = [(f"n{i}", float(error)) for i, error in enumerate(rng.uniform(0.1, 0.2, 500))]
    errors[250] = ("n250", 0.9)
    chosen = choose_pictures(errors)
    assert len(chosen) == MOST_PICTURES
    assert {"n0", "n499", "n250"} <= set(chosen)
    places = sorted(int(name[1:]) for name in chosen)
    assert max(np.diff(places)) < 150  # spread over the depth
    assert set(choose_pictures(errors[:5])) == {f"n{i}" for i in range(5)}
