"""The paper's comparison on real activations: at every norm of a model, which function follows it better.

Each function is fitted three times to what the norm does to the model's own tokens: with one scalar on everything,
with one scalar on the outliers alone (the paper's way), and with its own parameters, weight and bias for every
channel; a fourth time, if asked for, behind the gain of a few channels that stay in the norm's sum. What is compared
is always the norm's output before its weight and bias.
"""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dynorm_onnx.calibration.data import load_calibration
from dynorm_onnx.calibration.norms.coupling import choose_coupling
from dynorm_onnx.calibration.norms.fit import fit
from dynorm_onnx.calibration.norms.moments import Range, moments_of
from dynorm_onnx.calibration.norms.observe import Observed, observe, sampled_rows
from dynorm_onnx.calibration.norms.one_parameter import (
    OUTLIERS,
    fit_steepness,
    fit_steepness_to_bins,
    gain,
    norm_core,
    pool,
    pooled_range,
    prefactor,
    scalars,
)
from dynorm_onnx.calibration.norms.rows import Rows
from dynorm_onnx.errors import NoSiteError
from dynorm_onnx.functions import FUNCTIONS, Coupling, Function
from dynorm_onnx.functions.coupling import applied
from dynorm_onnx.graph.files import model_io
from dynorm_onnx.graph.lower import LoweredNorm, lower
from dynorm_onnx.graph.norm_site import Kind
from dynorm_onnx.graph.sites.find import find_sites
from dynorm_onnx.graph.sites.select import select
from dynorm_onnx.runtime.session import make_session, runnable
from dynorm_onnx.runtime.value_types import value_types

MOST_ELEMENTS = 1 << 20
"""Elements of one site that are looked at; of more, a random choice of tokens."""

SAMPLES, MAX_LENGTH = 32, 256

How = Literal["scalar", "outliers", "channels", "coupled"]
HOWS: tuple[How, ...] = ("scalar", "outliers", "channels")
Measure = Literal["overall", "outliers"]
MEASURES: tuple[Measure, ...] = ("overall", "outliers")


@dataclasses.dataclass(frozen=True)
class SiteFit:
    """One function fitted in one way to one norm.

    overall and outliers are mean absolute residuals, in the units of the norm's output before its weight, whose root
    mean square is 1. gain_others: how many times too large the elements that are no outliers become, by the slope.
    """

    function: str
    how: How
    overall: float
    outliers: float
    gain_others: float
    parameters: dict[str, float]  # empty where there are some for every channel


@dataclasses.dataclass(frozen=True)
class SiteComparison:
    """All fits of one norm; `threshold` is the |y| from which on an element counts as an outlier."""

    name: str
    kind: Kind
    channels: int
    tokens: int
    threshold: float
    largest: float  # |y|
    coupled: tuple[int, ...]  # the channels that stay in the sum where fits are "coupled", the first one first
    fits: tuple[SiteFit, ...]

    def best(self, how: How, measure: Measure) -> str:
        """The name of the function with the smallest residual."""
        return min(self.fitted(how), key=lambda one: float(getattr(one, measure))).function

    def fitted(self, how: How) -> tuple[SiteFit, ...]:
        """The fits made in one way, a function each."""
        return tuple(one for one in self.fits if one.how == how)


@dataclasses.dataclass(frozen=True)
class ModelComparison:
    """Every norm of one model, in graph order."""

    model: str
    source: str  # of the data
    warnings: tuple[str, ...]
    coupled: int  # so many channels at most stay in the sum of a norm
    sites: tuple[SiteComparison, ...]

    @property
    def hows(self) -> tuple[How, ...]:
        """The ways in which every function was fitted."""
        return (*HOWS, "coupled") if self.coupled else HOWS

    def wins(self, how: How, measure: Measure) -> dict[str, int]:
        """By function, at how many sites it has the smallest residual."""
        return dict(Counter(site.best(how, measure) for site in self.sites))

    def as_dict(self) -> dict[str, Any]:
        """Plain Python values for JSON."""
        return {
            **dataclasses.asdict(self),
            "wins": {
                how: {"overall": self.wins(how, "overall"), "outliers": self.wins(how, "outliers")} for how in self.hows
            },
        }


def compare_on_model(
    model: str | os.PathLike[str],
    data: Any = None,
    *,
    tokenizer: Path | None = None,
    samples: int = SAMPLES,
    max_length: int = MAX_LENGTH,
    seed: int = 0,
    coupled: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> ModelComparison:
    """Compare the functions at every norm of an ONNX model, on activations of the model as it is.

    data, tokenizer, samples and max_length are those of convert_model(); `coupled` is how many channels of a norm may
    stay in its sum in a further fit of each function, 0 for none. Raises the errors of dynorm_onnx.errors.
    """
    path = Path(model)
    original = model_io.load(path)
    prepared = model_io.prepare(original, value_types)
    chosen, _ = select(find_sites(prepared, load=runnable), (), ())
    if all(site.graph is not prepared.graph for site in chosen):
        raise NoSiteError(f"{path}: all norms lie in bodies of If, Loop or Scan, where they are not compared")
    model_io.require_weights(original)
    given = load_calibration(
        prepared,
        data,
        session=lambda: make_session(path),
        tokenizer=tokenizer,
        samples=samples,
        max_length=max_length,
        seed=seed,
        folder=path.parent,
    )
    norms = lower(prepared, chosen)
    rng = np.random.default_rng(seed)
    seen = (_compare(observed, coupled, rng) for observed in observe(prepared, norms, given.calibration, progress))
    sites = tuple(site for site in seen if site is not None)
    return ModelComparison(path.name, given.source, given.warnings, coupled, sites)


def _compare(observed: Observed, coupled: int, rng: np.random.Generator) -> SiteComparison | None:
    """The comparison of one norm; None where no row of its input is of any use (all zero or not finite)."""
    norm, _ = observed
    x = sampled_rows(observed, MOST_ELEMENTS, rng)
    x = x[np.abs(x).max(axis=1, initial=0.0) > 0]
    if not len(x):
        return None
    y = norm_core(norm.kind, x, norm.epsilon)
    size = np.abs(y)
    threshold = float(np.quantile(size, 1 - OUTLIERS))
    outlier = size >= threshold
    coupling = _coupling(norm, x, y, coupled)
    fits = [
        _judge(function, how, core, parameters, y, outlier)
        for function in FUNCTIONS
        for how, core, parameters in _fitted(function, norm, x, y, outlier)
    ]
    if coupled:
        gained = applied(coupling, x)
        fits += [_judge(f, "coupled", _of_channels(f, gained, y), {}, y, outlier) for f in FUNCTIONS]
    channels = () if coupling is None else tuple(int(channel) for channel in coupling.channels)
    return SiteComparison(
        norm.site_name, norm.kind, x.shape[-1], len(x), threshold, float(size.max()), channels, tuple(fits)
    )


def _coupling(norm: LoweredNorm, x: np.ndarray, y: np.ndarray, most: int) -> Coupling | None:
    if not most:
        return None
    rows = Rows(x, y, np.ones(len(x), np.float32), np.zeros(len(x), bool))
    return choose_coupling(norm.kind, norm.epsilon, lambda: iter([rows]), most).coupling


Fitted = tuple[How, np.ndarray, dict[str, float]]


def _fitted(
    function: Function, norm: LoweredNorm, x: np.ndarray, y: np.ndarray, outlier: np.ndarray
) -> tuple[Fitted, ...]:
    """(how, the fitted function's values at x, its scalar parameters) for the three ways."""
    scale = prefactor(norm.kind, x.shape[-1])
    overall = fit_steepness_to_bins(function, pool([(x, y)], pooled_range([x])), scale)
    at_outliers = fit_steepness(function, x[outlier], y[outlier], scale)
    one: list[Fitted] = []
    for how, steepness in (("scalar", overall), ("outliers", at_outliers)):
        parameters = scalars(function, steepness)
        shown = {name: float(value[0]) for name, value in parameters.items()}
        one.append((how, scale * function.core(x, **parameters), shown))  # type: ignore[arg-type]
    return (*one, ("channels", _of_channels(function, x, y), {}))


def _of_channels(function: Function, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """What a function gives at x [tokens, C] whose parameters, weight and bias are fitted channel by channel."""
    extent = Range.of(x)
    return function(x, fit(function, moments_of(x, y, extent), extent).parameters)


def _judge(
    function: Function,
    how: How,
    given: np.ndarray,
    parameters: dict[str, float],
    y: np.ndarray,
    outlier: np.ndarray,
) -> SiteFit:
    residual = np.abs(given - y)
    too_large = gain(given[~outlier], y[~outlier])
    return SiteFit(function.name, how, float(residual.mean()), float(residual[outlier].mean()), too_large, parameters)
