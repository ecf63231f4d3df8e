"""Proof that a change of weights changed no output: the model before and after, on the same input."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from dynorm_onnx.graph.values.outputs import largest_difference

logger = logging.getLogger(__name__)

# A model and the outputs, arrays or what else ONNX Runtime gives, for some fixed random input.
Outputs = Callable[[ir.Model], Sequence[Any]]

# Relative errors of whole models. A fold that is wrong by its idea moves outputs by 1e-2 and more; one that
# is right rounds weights once more, which counts as much as any other rounding of the type does.
TOLERANCE = {"float64": 1e-9, "float32": 1e-4, "float16": 2e-2, "bfloat16": 1e-1}


_PIECE = 1 << 20  # elements that are compared at a time


@dataclasses.dataclass(frozen=True)
class Parity:
    """`outputs` runs a whole model on what is `given`; the narrowest float type among its outputs and weights sets the
    tolerance."""

    outputs: Outputs
    given: str = "random input"

    def compare(self, before: ir.Model, after: ir.Model) -> tuple[float, str | None]:
        """(the largest relative error of a float output, why the two differ or None)."""
        try:
            expected, got = self.outputs(before), self.outputs(after)
        except Exception as problem:  # a runtime raises what it likes
            first = (str(problem).strip().splitlines() or [repr(problem)])[0]
            return math.inf, f"it could not be run to prove it: {first}"
        tolerance = TOLERANCE[_narrowest(before)]
        pairs = zip(expected, got, strict=True)
        error = max((largest_difference(one, other, _error) for one, other in pairs), default=0.0)
        logger.info("the outputs then differ by %.2g; %.2g is allowed", error, tolerance)
        if error <= tolerance:
            return error, None
        return error, f"it would move the outputs by {error:.2g} on {self.given}, where {tolerance:g} is allowed"


def _narrowest(model: ir.Model) -> str:
    values = [*model.graph.outputs, *model.graph.initializers.values()]
    types = {value.dtype for value in values}
    for dtype in (ir.DataType.BFLOAT16, ir.DataType.FLOAT16, ir.DataType.FLOAT):
        if dtype in types:
            return str(dtype.numpy())
    return "float64"


def _error(expected: np.ndarray, got: np.ndarray) -> float:
    """Relative error of arrays of one shape, in float64; infinite where integers or the places of what is not finite
    differ. Logits may fill gigabytes, so it is a piece at a time that is widened."""
    flat, other = expected.reshape(-1), got.reshape(-1)
    difference = size = 0.0
    for start in range(0, flat.size, _PIECE):
        try:
            wanted, found = (array[start : start + _PIECE].astype(np.float64) for array in (flat, other))
        except (TypeError, ValueError):  # strings
            return 0.0 if np.array_equal(expected, got) else math.inf
        finite = np.isfinite(wanted)
        if not np.array_equal(finite, np.isfinite(found)):
            return math.inf
        difference += float(np.square(wanted[finite] - found[finite]).sum())
        size += float(np.square(wanted[finite]).sum())
    if np.issubdtype(expected.dtype, np.integer) or expected.dtype == bool:
        return 0.0 if np.array_equal(expected, got) else math.inf
    return math.sqrt(difference) / (math.sqrt(size) or 1.0)
