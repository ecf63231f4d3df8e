"""The one table of tolerances, and the one measure of error that every test uses.

relative error = ||out - ref|| / ||ref||, ref in float64. The bounds are a few units in the last
place of the type: what rounding input, output and one intermediate costs.
"""

from __future__ import annotations

import numpy as np

TOLERANCE = {
    "double": 1e-13,  # 53 bits; a handful of roundings, and libm's own last place
    "float32": 1e-6,  # 24 bits: 6e-8 a rounding, a dozen of them in a norm
    "float16": 1e-3,  # 11 bits: 5e-4 for the rounding of the result alone
    "bfloat16": 8e-3,  # 8 bits: 4e-3 for the rounding of the result alone
}


def relative_error(out: np.ndarray, ref: np.ndarray) -> float:
    """||out - ref|| / ||ref|| in float64; the absolute norm where ref is all zero."""
    out64, ref64 = np.asarray(out, np.float64), np.asarray(ref, np.float64)
    scale = float(np.linalg.norm(ref64))
    return float(np.linalg.norm(out64 - ref64)) / (scale or 1.0)
