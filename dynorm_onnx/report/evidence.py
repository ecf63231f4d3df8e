"""What the pictures of a report show: what the norms did to held-out tokens, and what stands there now.

Gathered in one more pass over a few batches, stage by stage; of every site a few hundred numbers are kept.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Sequence

import numpy as np
import onnx_ir as ir

from dynorm_onnx.calibration.norms.calibrate import Calibrated, put_in_place
from dynorm_onnx.calibration.norms.observe import Observed, observe, sampled_rows, usable_rows
from dynorm_onnx.calibration.norms.one_parameter import (
    OUTLIERS,
    fit_steepness_to_bins,
    norm_core,
    pool,
    pooled_range,
    prefactor,
    scalars,
)
from dynorm_onnx.functions import DYISRU, DYT, Function, NormParameters
from dynorm_onnx.graph.files.model_io import clone
from dynorm_onnx.graph.lower import LoweredNorm
from dynorm_onnx.graph.replace.rewrite import set_initializers
from dynorm_onnx.runtime.arrays import Feeds
from dynorm_onnx.runtime.logits import token_input

TOKENS, MOST_BATCHES = 2048, 16  # of held-out data, whichever is reached first
MOST_ELEMENTS = 1 << 22  # of one site that a picture is made of; of more, a random choice of tokens
POINTS, OUTLIER_POINTS = 320, 40
MOST_PICTURES = 24
GRID = 72
_BAND = (0.1, 0.5, 0.9)
_LEAST_IN_BIN = 20  # elements that a quantile of the band is over
_LEAST_WEIGHT = 0.05  # of the median |weight|: channels below it are not divided by their weight


@dataclasses.dataclass(frozen=True)
class Picture:
    """One site, before weight and bias: y is x / rms(x) of the original, for RMSNorm.

    Attributes:
        x, y, outlier: [n], sampled elements (token, channel), and which of them are outliers.
        replaced: [n], what the replacement gives for them, on the same scale; NaN where the norm's weight is near 0.
        grid, band: [k] and [3, k]; in bins of x, the 10, 50 and 90 % quantiles over elements of what the replacement
            gives there. NaN where elements are too few.
        scale: the factor before the curves' cores.
        curves: the parameters of the one-parameter functions with the least squared error over all elements.
    """

    x: np.ndarray
    y: np.ndarray
    outlier: np.ndarray
    replaced: np.ndarray
    grid: np.ndarray
    band: np.ndarray
    scale: float
    curves: dict[str, dict[str, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Evidence:
    """Of one conversion: relative errors of the norms' outputs in the converted model, and some pictures."""

    errors: dict[str, float]  # by site, ||y converted - y original|| / ||y original|| over the held-out tokens
    pictures: dict[str, Picture]


def gather_evidence(
    lowered: ir.Model,
    norms: Sequence[LoweredNorm],
    function: Function,
    calibrated: Calibrated,
    batches: Sequence[Feeds],
    progress: Callable[[int, int], None],
) -> Evidence:
    """Run original and converted model once more on the first batches; `lowered` is not changed.

    Only norms that have a fit and lie in no body are looked at, and at most MOST_PICTURES of them get a picture: the
    first, the last, those of the largest error, and others spread over the depth.
    """
    replaced = [norm for norm in norms if norm.site_name in calibrated.fits]
    if not replaced:
        return Evidence({}, {})
    converted = clone(lowered)
    for norm in replaced:
        put_in_place(converted, norm, function, calibrated.fits[norm.site_name])
    set_initializers(converted, calibrated.initializers)
    outside = [norm for norm in replaced if norm.node.graph is lowered.graph]
    shown = choose_pictures([(n.site_name, calibrated.fits[n.site_name].relative_error) for n in outside])
    errors: dict[str, float] = {}
    pictures: dict[str, Picture] = {}
    rng = np.random.default_rng(0)
    for observed in observe(lowered, replaced, _first(batches), progress, converted):
        site = observed[0].site_name
        parameters = calibrated.fits[site].parameters
        errors[site] = _error(observed, function, parameters)
        if site in shown:
            picture = _picture(observed, function, parameters, rng)
            if picture is not None:
                pictures[site] = picture
    return Evidence(errors, pictures)


def _first(batches: Sequence[Feeds]) -> list[Feeds]:
    """As many of the first batches as give TOKENS tokens; two of a model that has no tokens."""
    chosen: list[Feeds] = []
    tokens = 0
    for feeds in batches[:MOST_BATCHES]:
        if tokens >= TOKENS:
            break
        chosen.append(feeds)
        name = token_input(feeds)
        tokens += feeds[name].size if name else TOKENS // 2
    return chosen


def choose_pictures(errors: Sequence[tuple[str, float]], most: int = MOST_PICTURES) -> Collection[str]:
    """Of sites in graph order with their errors: which to show."""
    names = [name for name, _ in errors]
    if len(names) <= most:
        return set(names)
    worst = [name for name, _ in sorted(errors, key=lambda pair: -pair[1])][: most // 3]
    chosen = {names[0], names[-1], *worst}
    spread = (names[int(place)] for place in np.linspace(0, len(names) - 1, most).round())
    for name in spread:
        if len(chosen) < most:
            chosen.add(name)
    return chosen


def _error(observed: Observed, function: Function, parameters: NormParameters) -> float:
    norm, activations = observed
    name = str(norm.x.name)
    difference = target = 0.0
    for batch in activations():
        usable = usable_rows(batch.original[name], batch.token_weights)
        before, after = (_rows(values[name])[usable] for values in (batch.original, batch.converted))
        wanted = norm_core(norm.kind, before, norm.epsilon) * norm.weight + (0 if norm.bias is None else norm.bias)
        given = function(after, parameters)
        difference += float(np.square(given - wanted).sum())
        target += float(np.square(wanted).sum())
    return float(np.sqrt(difference / target)) if target else 0.0


def _picture(
    observed: Observed, function: Function, parameters: NormParameters, rng: np.random.Generator
) -> Picture | None:
    """The picture of one site; None where its input holds nothing but zeros."""
    norm, _ = observed
    x = sampled_rows(observed, MOST_ELEMENTS, rng)
    if not np.any(x):
        return None
    y = norm_core(norm.kind, x, norm.epsilon)
    pooled = pool([(x, y)], pooled_range([x]))
    scale = prefactor(norm.kind, x.shape[-1])
    curves = {f.name: scalars(f, fit_steepness_to_bins(f, pooled, scale)) for f in (DYISRU, DYT)}
    chosen, outlier = _sample(y.reshape(-1), rng)
    replaced = _replaced(norm, function, parameters, x)
    grid, band = _band(x, replaced)
    x, y, replaced = (array.reshape(-1)[chosen] for array in (x, y, replaced))
    return Picture(x, y, outlier, replaced, grid, band, scale, curves)


def _sample(y: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(indices, whether each is an outlier): elements evenly over their size, and outliers, the largest among them."""
    size = np.abs(y)
    beyond = size >= np.quantile(size, 1 - OUTLIERS)
    inside = np.flatnonzero(~beyond)
    order = inside[np.argsort(size[inside])]
    wanted = rng.uniform(size[inside].min(initial=np.inf), size[inside].max(initial=-np.inf), POINTS)
    some = np.unique(order[np.minimum(np.searchsorted(size[order], wanted), len(order) - 1)])
    far = np.flatnonzero(beyond)
    far = rng.choice(far, min(OUTLIER_POINTS - 1, len(far)), replace=False)
    chosen = np.concatenate([some, np.union1d(far, [size.argmax()])])
    return chosen, beyond[chosen]


def _replaced(norm: LoweredNorm, function: Function, parameters: NormParameters, x: np.ndarray) -> np.ndarray:
    """What the replacement gives for x [tokens, C], with the norm's weight and bias taken off; NaN without a weight.

    What remains can be compared with the norm before its own weight and bias.
    """
    weight = np.broadcast_to(np.asarray(norm.weight, np.float64), x.shape[-1:])
    bias = np.broadcast_to(np.asarray(0.0 if norm.bias is None else norm.bias, np.float64), x.shape[-1:])
    used = np.abs(weight) > _LEAST_WEIGHT * np.median(np.abs(weight))
    y = function(x, parameters)
    return (y - bias) / np.where(used, weight, np.nan)


def _band(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(grid [k], quantiles of y [3, k]) over bins of x, both [tokens, C]; NaN in bins of few elements."""
    at, values = x[np.isfinite(y)], y[np.isfinite(y)]
    unit = np.arcsinh(at / np.sqrt(np.square(at).mean()))
    edges = np.linspace(unit.min(), unit.max(), GRID + 1)
    bins = np.clip(np.digitize(unit, edges) - 1, 0, GRID - 1)
    order = np.argsort(bins, kind="stable")
    parts = np.split(order, np.searchsorted(bins[order], np.arange(1, GRID)))
    grid, band = np.full(GRID, np.nan), np.full((len(_BAND), GRID), np.nan)
    for place, part in enumerate(parts):
        if len(part) >= _LEAST_IN_BIN:
            grid[place], band[:, place] = at[part].mean(), np.quantile(values[part], _BAND)
    return grid, band


def _rows(x: np.ndarray) -> np.ndarray:
    """[rows, C] float64."""
    return np.asarray(x, np.float64).reshape(-1, x.shape[-1])
