"""The numerical experiment of Stollenwerk, arXiv 2503.21708: which function follows a norm's outliers.

One token of 100 channels, drawn from N(0, 2^2) and sorted. Its largest value is raised by 5 S, S = 1 ... 9, which
makes it an outlier; what the norm gives for the outlier, together with the mirror image, makes 18 points. DyT and
DyISRU, one scalar parameter each and the prefactor with which they saturate where the norm does, are fitted to
these points by least squares.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from dynorm_onnx.calibration.norms.one_parameter import fit_steepness, gain, norm_core, prefactor, scalars
from dynorm_onnx.functions import FUNCTIONS, REGISTRY, Function
from dynorm_onnx.graph.norm_site import Kind

CHANNELS = 100
SEED = 1
DEVIATION = 2.0
STEP = 5.0
STEPS = tuple(range(1, 10))


@dataclasses.dataclass(frozen=True)
class OutlierFit:
    """One function fitted to the outliers alone, and what it then does to everything else.

    `gains`, one for each S, say how many times too large the function makes the other channels: the slope of
    its values against the norm's. `residual_others` is the mean absolute residual there, over all S.
    """

    function: str
    prefactor: float
    parameters: dict[str, float]
    residual: float  # mean |function - norm| over the outliers
    residual_others: float
    gains: tuple[float, ...]

    def curve(self, x: np.ndarray) -> np.ndarray:
        """The fitted function at x."""
        parameters = {name: np.array([value]) for name, value in self.parameters.items()}
        return self.prefactor * REGISTRY[self.function].core(x, **parameters)


@dataclasses.dataclass(frozen=True)
class Experiment:
    """The experiment for one kind of norm: its points, and a fit of each function.

    tokens: [9, 100] float64, the raised channel last; normed: the norm of each; x, y: the 18 outliers.
    """

    kind: Kind
    tokens: np.ndarray
    normed: np.ndarray
    x: np.ndarray
    y: np.ndarray
    fits: tuple[OutlierFit, ...]

    @property
    def exact_beta(self) -> float:
        """The sum of the squares of all channels but the raised one: RMSNorm's own beta, the same for all S."""
        return float(np.square(self.tokens[0, :-1]).sum())

    def as_dict(self) -> dict[str, Any]:
        """Plain Python values for JSON."""
        return {
            "norm": self.kind,
            "sum_of_other_squares": self.exact_beta,
            "points": {"x": self.x.tolist(), "y": self.y.tolist()},
            "fits": [dataclasses.asdict(fit) for fit in self.fits],
        }


def run_experiment(kind: Kind = "layer") -> Experiment:
    """The experiment for LayerNorm ("layer", as in the paper) or for RMSNorm ("rms", where DyISRU is exact)."""
    token = np.sort(np.random.RandomState(SEED).normal(0.0, DEVIATION, CHANNELS))
    tokens = np.tile(token, (len(STEPS), 1))
    tokens[:, -1] += STEP * np.array(STEPS)
    normed = norm_core(kind, tokens)
    x, y = (np.concatenate([-column[::-1], column]) for column in (tokens[:, -1], normed[:, -1]))
    fits = tuple(_fit(function, kind, tokens, normed, x, y) for function in FUNCTIONS)
    return Experiment(kind, tokens, normed, x, y, fits)


def _fit(
    function: Function, kind: Kind, tokens: np.ndarray, normed: np.ndarray, x: np.ndarray, y: np.ndarray
) -> OutlierFit:
    scale = prefactor(kind, CHANNELS)
    parameters = scalars(function, fit_steepness(function, x, y, scale))
    others, wanted = tokens[:, :-1], normed[:, :-1]
    given = scale * function.core(others, **parameters)
    return OutlierFit(
        function.name,
        scale,
        {name: float(value[0]) for name, value in parameters.items()},
        residual=float(np.abs(scale * function.core(x, **parameters) - y).mean()),
        residual_others=float(np.abs(given - wanted).mean()),
        gains=tuple(gain(*rows) for rows in zip(given, wanted, strict=True)),
    )
