"""Weights that follow from constants: found, widened, and given up on where an input or chance is in them."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from dynorm_onnx.graph.values.constant_folding import constant_array
from tests.graph.test_lower import SCALE, model_of


def folded(body: str, **initializers: np.ndarray) -> np.ndarray | None:
    """The array of `w` in a model with this body."""
    model = ir.from_proto(model_of(f"{body} y = Mul(x, x)", **initializers))
    values = ir.convenience.create_value_mapping(model.graph)
    return constant_array(values["w"], 17)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("one = Constant<value_float = 1.0>() w = Add(scale, one)", SCALE + 1),
        ("w = Identity(scale)", SCALE),
        ("shape = Constant<value_ints = [2, 4]>() w = Reshape(scale, shape)", SCALE.reshape(2, 4)),
        ("half = Cast<to = 10>(scale) w = Cast<to = 1>(half)", SCALE),  # what the cast would lose is kept
    ],
)
def test_constants(body: str, expected: np.ndarray) -> None:
    np.testing.assert_allclose(folded(body, scale=SCALE), expected, rtol=1e-6)


def test_half_precision_is_widened() -> None:
    array = folded("w = Neg(scale)", scale=SCALE.astype(np.float16))
    assert array is not None and array.dtype == np.float32


@pytest.mark.parametrize("body", ["w = Neg(x)", "w = RandomNormal<shape = [8]>()", "n = Neg(x) w = Add(n, scale)"])
def test_no_constants(body: str) -> None:
    assert folded(body, scale=SCALE) is None
