"""What was found at one place of a calibration, and the same as a checkpoint keeps it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from dynorm_onnx.calibration.checkpoint import Checkpoint, Tree
from dynorm_onnx.calibration.norms.fit import Fit
from dynorm_onnx.functions import Coupling, NormParameters


@dataclasses.dataclass(frozen=True)
class Solved:
    """Fits by site, and new values of initializers by name, in their own types."""

    fits: Mapping[str, Fit] = dataclasses.field(default_factory=dict)
    weights: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def tree(self) -> Tree:
        """For a checkpoint."""
        return {"fits": {name: fit_tree(fit) for name, fit in self.fits.items()}, "weights": self.weights}

    @classmethod
    def of(cls, tree: Tree) -> Solved:
        """What tree() gave."""
        return cls({name: fit_of(fit) for name, fit in tree["fits"].items()}, tree["weights"])


class Known:
    """What is known of the points of one calibration, by their names: the part of a checkpoint that is called `part`.
    Without one nothing is, and nothing is kept."""

    def __init__(self, checkpoint: Checkpoint | None = None, part: str = "") -> None:
        self._checkpoint, self._part = checkpoint, part

    def has(self, point: str) -> bool:
        """Whether something is recorded there, whole or damaged."""
        return self._checkpoint is not None and self._checkpoint.has(f"{self._part} {point}")

    def get(self, point: str) -> Solved | None:
        """What was found there by a run that was cut."""
        tree = None if self._checkpoint is None else self._checkpoint.get(f"{self._part} {point}")
        return None if tree is None else Solved.of(tree)

    def put(self, point: str, solved: Solved) -> None:
        """Keeps what was found there."""
        if self._checkpoint is not None:
            self._checkpoint.put(f"{self._part} {point}", solved.tree())


def fit_tree(fit: Fit) -> Tree:
    """A Fit for a checkpoint."""
    own = fit.parameters
    coupling = own.coupling and {"channels": own.coupling.channels, "strengths": own.coupling.strengths}
    return {
        "weight": own.weight,
        "bias": own.bias,
        "scalars": own.scalars,
        "coupling": coupling,
        "relative_error": fit.relative_error,
        "per_channel": fit.per_channel,
        "held_out_error": fit.held_out_error,
        "length_errors": fit.length_errors,
    }


def fit_of(tree: Tree) -> Fit:
    """What fit_tree() gave."""
    coupling = tree["coupling"] and Coupling(**tree["coupling"])
    parameters = NormParameters(tree["weight"], tree["bias"], tree["scalars"], coupling)
    return Fit(
        parameters, tree["relative_error"], tree["per_channel"], tree["held_out_error"], tuple(tree["length_errors"])
    )
