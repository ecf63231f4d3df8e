"""The minimiser minimises."""

from __future__ import annotations

import itertools

import numpy as np

from dynorm_onnx.calibration.tail.lbfgs import minimise


def test_lbfgs_solves_a_badly_scaled_quadratic() -> None:
    scales = np.logspace(0, 3, 12)
    target = np.random.default_rng(0).normal(size=12)

    def objective(x: np.ndarray) -> tuple[float, np.ndarray]:
        return float(np.sum(scales * (x - target) ** 2) / 2), scales * (x - target)

    values = [objective(x)[0] for x in itertools.islice(minimise(objective, np.zeros(12), np.copy), 60)]
    assert all(later <= earlier for earlier, later in itertools.pairwise(values))
    assert values[-1] < 1e-6 * objective(np.zeros(12))[0]
