"""The comparisons as figures; needs matplotlib, which comes with the [report] extra."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from dynorm_onnx.functions import REGISTRY
from dynorm_onnx.paper.experiment import STEPS, Experiment
from dynorm_onnx.paper.real_model import ModelComparison
from dynorm_onnx.paper.show import NORMS, TITLES, op_type, parameter_text
from dynorm_onnx.plotting import require_matplotlib

_STYLES = (("#0a7d4f", (1, 0)), ("#8a3ffc", (4, 1.5)), ("#d9730d", (1, 1)), ("#0f62fe", (3, 1, 1, 1)))
COLOURS = {name: colour for name, (colour, _) in zip(REGISTRY, itertools.cycle(_STYLES), strict=False)}
_DASHES = {name: dashes for name, (_, dashes) in zip(REGISTRY, itertools.cycle(_STYLES), strict=False)}
_MOST_NAMES = 32


def plot_experiment(experiments: Sequence[Experiment]) -> Any:
    """A row of three panels per norm: the points and curves, the residuals, and the gain on the other channels."""
    figure = require_matplotlib("--plot")(figsize=(12, 3.4 * len(experiments)), layout="constrained")
    rows = figure.subplots(len(experiments), 3, squeeze=False)
    for (curves, residuals, gains), experiment in zip(rows, experiments, strict=True):
        _curves(curves, experiment)
        _residuals(residuals, experiment)
        _gains(gains, experiment)
    return figure


def _curves(axes: Any, experiment: Experiment) -> None:
    line = np.linspace(1.15 * experiment.x.min(), 1.15 * experiment.x.max(), 400)
    axes.plot(experiment.tokens[:, :-1].ravel(), experiment.normed[:, :-1].ravel(), ".", color="0.7", ms=2,
              label="the other channels")  # fmt: skip
    axes.plot(experiment.x, experiment.y, "o", color="black", ms=4, label="outliers")
    for fit in experiment.fits:
        label = f"{op_type(fit.function)}, {parameter_text(fit)}"
        axes.plot(line, fit.curve(line), color=COLOURS[fit.function], dashes=_DASHES[fit.function], label=label)
    axes.set_title(f"{NORMS[experiment.kind]}, and the functions fitted to its outliers", fontsize=10)
    axes.set_xlabel("x")
    axes.set_ylabel("y")
    axes.legend(fontsize=7)


def _residuals(axes: Any, experiment: Experiment) -> None:
    for fit in experiment.fits:
        residual = fit.curve(experiment.x) - experiment.y
        label = f"{op_type(fit.function)}, mean |residual| {fit.residual:.2g}"
        axes.plot(experiment.x, residual, "o-", color=COLOURS[fit.function], ms=3, lw=1, label=label)
    axes.axhline(0, color="0.5", lw=0.8)
    axes.set_title("residuals at the outliers", fontsize=10)
    axes.set_xlabel("x")
    axes.set_ylabel("function - norm")
    axes.margins(y=0.35)  # room for the legend
    axes.legend(fontsize=7, loc="upper center")


def _gains(axes: Any, experiment: Experiment) -> None:
    for fit in experiment.fits:
        axes.plot(STEPS, fit.gains, "o-", color=COLOURS[fit.function], ms=3, lw=1, label=op_type(fit.function))
    axes.axhline(1, color="0.5", lw=0.8)
    axes.set_title("the other 99 channels: times too large", fontsize=10)
    axes.set_xlabel("S, the outlier's size (raised by 5 S)")
    axes.set_ylabel("slope against the norm")
    axes.legend(fontsize=7)


def plot_model(comparison: ModelComparison) -> Any:
    """A panel per way of fitting and measure: the residual of every function, site by site."""
    hows = comparison.hows
    figure = require_matplotlib("--plot")(figsize=(11, 2.8 * len(hows)), layout="constrained")
    rows = figure.subplots(len(hows), 2, sharex=True)
    place = np.arange(1, len(comparison.sites) + 1)
    for how, panels in zip(hows, rows, strict=True):
        for axes, measure in zip(panels, ("overall", "outliers"), strict=True):
            for name in REGISTRY:
                values = [getattr(fit, measure) for site in comparison.sites for fit in site.fitted(how)
                          if fit.function == name]  # fmt: skip
                axes.plot(place, values, "o-", color=COLOURS[name], ms=3, lw=1, label=op_type(name))
            axes.set_title(f"{TITLES[how]}: {measure}", fontsize=9)
            axes.set_ylim(bottom=0)
            axes.grid(True, alpha=0.3)
        panels[0].set_ylabel("mean |residual|")
    rows[0][0].legend(fontsize=8)
    for axes in rows[-1]:
        axes.set_xlabel(f"norm of {comparison.model}, in the order in which the model runs them")
        if len(place) <= _MOST_NAMES:
            axes.set_xticks(place)
    return figure
