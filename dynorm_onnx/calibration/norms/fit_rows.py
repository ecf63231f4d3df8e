"""Fit one norm's replacement on its tokens: which channels stay coupled, then the function behind the gain."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from dynorm_onnx.calibration.norms.coupling import UNCOUPLED, Chosen, choose_coupling
from dynorm_onnx.calibration.norms.fit import Fit, error_on, fit
from dynorm_onnx.calibration.norms.moments import Moments, Range, moments_of
from dynorm_onnx.calibration.norms.rows import Rows
from dynorm_onnx.errors import DataError
from dynorm_onnx.functions import Coupling, Function
from dynorm_onnx.functions.coupling import applied
from dynorm_onnx.graph.lower import LoweredNorm

log = logging.getLogger(__name__)

STEEPEST = 3.0
STEEPER_BY_ERROR = 8.0


@dataclasses.dataclass(frozen=True)
class Leeway:
    """What the fit of one norm may do: couple at most so many channels; make the function steeper than least squares
    asks, or not (`straight`), as where a stream has sinks.
    """

    most_coupled: int = 0
    straight: bool = False


def steeper(chosen: Chosen) -> float:
    """How much steeper than least squares asks a function is made: STEEPEST; where channels are coupled 1 +
    STEEPER_BY_ERROR e, if that is less, e being the relative error to which they tell a held-out token's S.

    A norm takes no notice of its input's length; a function of single channels does, the less the more it saturates.
    Least squares sees one norm at a time and chooses nearly straight lines, through which an error in length runs on
    and grows from layer to layer. What a gain takes out of the lengths needs no saturation. Not for a stream with
    sinks: what a norm mutes in them is small, and a steep function enlarges what is small. (docs/quality.md has the
    measurements.)
    """
    if chosen.coupling is None:
        return STEEPEST
    return min(1 + STEEPER_BY_ERROR * chosen.ordinary_error, STEEPEST)


def fit_norm(
    norm: LoweredNorm, function: Function, batches: Callable[[], Iterator[Rows]], leeway: Mapping[str, Leeway]
) -> Fit:
    """fit_rows() of one norm of a lowered model, told to the log. Raises DataError, naming the site, where it does."""
    own, dtype = leeway[norm.site_name], norm.dtype.numpy()
    try:
        fitted = fit_rows(function, norm.kind, norm.epsilon, batches, own, dtype)
    except DataError as error:
        raise DataError(f"{norm.site_name}: {error}") from error
    log.info("%s: %s", norm.site_name, told(fitted))
    return fitted


def fit_rows(
    function: Function,
    kind: str,
    epsilon: float,
    batches: Callable[[], Iterator[Rows]],
    leeway: Leeway,
    dtype: np.dtype | type = np.float32,
) -> Fit:
    """The fit of one norm of `kind` over all batches, read once for each statistic; `dtype` is the model's.

    Raises DataError where no token is finite.
    """
    chosen = choose_coupling(kind, epsilon, batches, leeway.most_coupled) if leeway.most_coupled else UNCOUPLED
    coupling = chosen.coupling
    extent = functools.reduce(Range.merge, (Range.of(rows.x) for rows in _gained(coupling, batches, held_out=False)))
    moments = _moments(_gained(coupling, batches, held_out=False), extent)
    if not moments.count.any():
        raise DataError("no token of the calibration data is finite there, in the norm's input and in what it gives")
    found = fit(function, moments, extent, 1.0 if leeway.straight else steeper(chosen), dtype)
    others = _moments(_gained(coupling, batches, held_out=True), extent)
    return dataclasses.replace(
        found,
        parameters=dataclasses.replace(found.parameters, coupling=coupling),
        held_out_error=error_on(function, found.parameters, others) if others.target_squares.any() else None,
        length_errors=chosen.length_errors,
    )


def told(fitted: Fit) -> str:
    """A fit in a line of the log."""
    line = f"error {fitted.relative_error:.3f}"
    if fitted.held_out_error is not None:
        line += f", held out {fitted.held_out_error:.3f}"
    if fitted.parameters.coupling is not None:
        first, last = fitted.length_errors[0], fitted.length_errors[-1]
        line += f"; {len(fitted.parameters.coupling.channels)} channels coupled, error of S {first:.3f} -> {last:.3f}"
    return line


def _gained(coupling: Coupling | None, batches: Callable[[], Iterator[Rows]], *, held_out: bool) -> Iterator[Rows]:
    for rows in batches():
        part = rows.part(held_out=held_out)
        wide = np.asarray(part.x, np.float32 if part.x.dtype.itemsize < 8 else np.float64)
        yield dataclasses.replace(part, x=applied(coupling, wide))


def _moments(parts: Iterator[Rows], extent: Range) -> Moments:
    return functools.reduce(Moments.merge, (moments_of(rows.x, rows.target, extent, rows.weights) for rows in parts))
