"""What a fit found is what its file computes: the function in the file's type, on ONNX Runtime, against float64."""

from __future__ import annotations

import functools
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from dynorm_onnx.calibration.norms.fit import REACH, Fit
from dynorm_onnx.calibration.norms.fit_rows import Leeway, fit_rows
from dynorm_onnx.calibration.norms.one_parameter import norm_core
from dynorm_onnx.calibration.norms.rows import Rows
from dynorm_onnx.functions import DOMAIN, FUNCTIONS, REGISTRY, Form, Function, onnx_function
from dynorm_onnx.runtime.arrays import run
from dynorm_onnx.runtime.session import make_session

C, TOKENS = 24, 96
TYPES = {
    "float32": (TensorProto.FLOAT, np.dtype(np.float32), 1e-3),
    "float16": (TensorProto.FLOAT16, np.dtype(np.float16), 1e-2),
    "bfloat16": (TensorProto.BFLOAT16, np.dtype(ml_dtypes.bfloat16), 1e-2),
}
KINDS = ("plain", "one sign", "offset", "constant", "constant but for rounding", "two values", "outliers", "zero")


@functools.cache
def node(function: Function, coupled: bool, dtype: str) -> Any:
    """A session of one function, all its parameters inputs."""
    element_type, form = TYPES[dtype][0], Form(coupled=coupled)
    types = {name: TensorProto.FLOAT for name in function.input_names(form)}
    types |= dict.fromkeys(("X", "weight", "bias"), element_type)
    types |= {"channels": TensorProto.INT64} if coupled else {}
    inputs = [
        helper.make_tensor_value_info(name, kind, ["tokens", C] if name == "X" else [None])
        for name, kind in types.items()
    ]
    graph = helper.make_graph(
        [helper.make_node(function.node_type(form), list(types), ["Y"], domain=DOMAIN)],
        "one_function", inputs, [helper.make_tensor_value_info("Y", element_type, ["tokens", C])],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid(DOMAIN, 1)]
    body = onnx_function(function, 18, element_type, form)
    made: onnx.ModelProto = helper.make_model(graph, ir_version=8, opset_imports=opsets, functions=[body])
    return make_session(made, kernels=False, threads=1)


def in_file(function: Function, fitted: Fit, x: np.ndarray, dtype: str) -> np.ndarray:
    """What the file gives for x, float64."""
    kept, parameters = TYPES[dtype][1], fitted.parameters
    feeds = {"X": x.astype(kept), "weight": parameters.weight.astype(kept), "bias": parameters.bias.astype(kept)}
    feeds |= {name: parameters.scalars[name].astype(np.float32) for name in function.parameter_names}
    coupling = parameters.coupling
    if coupling is not None:
        feeds |= {"channels": coupling.channels, "coupling": coupling.strengths.astype(np.float32)}
    return run(node(function, coupling is not None, dtype), feeds)["Y"].astype(np.float64)


def activations(kinds: list[str], size: float, offset: float, tokens: int, seed: int) -> np.ndarray:
    """[tokens, C] float64; channel i is of the kind kinds[i % len(kinds)]."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(tokens, C)) * np.exp(rng.normal(size=C))
    for channel in range(C):
        column, kind = x[:, channel], kinds[channel % len(kinds)]
        if kind == "one sign":
            column[:] = np.abs(column) + rng.uniform(0, 5)
        elif kind == "offset":
            column += offset
        elif kind == "constant":
            column[:] = offset
        elif kind == "constant but for rounding":
            column[:] = offset * (1 + 1e-7 * rng.normal(size=tokens))
        elif kind == "two values":
            column[:] = np.where(column > 0, offset, -1)
        elif kind == "outliers":
            column[::17] *= 1e3
        elif kind == "zero":
            column[:] = 0
    return x * size


def fit_of(function: Function, kind: str, x: np.ndarray, gain: np.ndarray, dtype: str, coupled: int) -> Fit:
    kept = TYPES[dtype][1]
    epsilon = 1e-6
    target = (norm_core(kind, x, epsilon) * gain).astype(kept)  # type: ignore[arg-type]
    held_out = np.arange(len(x)) % 8 == 7
    rows = Rows(x.astype(kept), target, np.ones(len(x), np.float32), held_out)
    return fit_rows(function, kind, epsilon, lambda: iter([rows]), Leeway(coupled), kept)


def beyond(x: np.ndarray, factor: float, dtype: str) -> np.ndarray:
    """x and its negative times `factor`, in the type and finite."""
    largest = float(ml_dtypes.finfo(TYPES[dtype][1]).max) / 2
    return np.clip(np.vstack([factor * x, -factor * x]), -largest, largest).astype(TYPES[dtype][1])


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("coupled", [0, 4], ids=["single", "coupled"])
@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.name)
@given(
    kinds=st.lists(st.sampled_from(KINDS), min_size=1, max_size=6),
    norm=st.sampled_from(["rms", "layer"]),
    size=st.sampled_from([1e-4, 1e-2, 1.0, 10.0, 1e4, 1e8]),
    offset=st.sampled_from([2.0, 30.0, 1e3, 1e4, 1e6]),
    gain=st.sampled_from([0.01, 1.0, 50.0]),
    tokens=st.sampled_from([1, 2, TOKENS]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=6, deadline=None)
def test_the_file_computes_what_was_fitted(
    function: Function, coupled: int, dtype: str, kinds: list[str], norm: str, size: float, offset: float,
    gain: float, tokens: int, seed: int,
) -> None:  # fmt: skip
    _, kept, allowed = TYPES[dtype]
    largest = float(ml_dtypes.finfo(kept).max) / 16
    x = np.clip(activations(kinds, size, offset, tokens, seed), -largest, largest).astype(kept).astype(np.float64)
    gains = gain * np.exp(np.random.default_rng(seed).normal(size=C))
    fitted = fit_of(function, norm, x, gains, dtype, coupled)
    seen = function(x, fitted.parameters)
    given = np.abs(seen).max(axis=0)
    floor = float(ml_dtypes.finfo(kept).smallest_subnormal)
    for points in (x.astype(kept), beyond(x, 1, dtype), beyond(x, 10, dtype), beyond(x, 1000, dtype)):
        wanted = function(points.astype(np.float64), fitted.parameters)
        found = in_file(function, fitted, points, dtype)
        scale = np.maximum(given, np.abs(wanted).max(axis=0))
        assert np.all(np.abs(found - wanted).max(axis=0) <= allowed * scale + floor)
        assert np.all(np.abs(wanted).max(axis=0) <= 1.5 * (REACH + 1) * given + floor)


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.name)
def test_a_channel_that_never_changes_sign_has_no_huge_weight(function: Function) -> None:
    """As in a speech model: least squares alone found a weight of 4,910,692 and a bias of -4,910,688."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, C))
    x[:, 3] = 4 + 0.5 * rng.uniform(-1, 1, 400)
    x[:, 5] = 700 + rng.normal(size=400)
    fitted = fit_of(function, "layer", x, np.ones(C), "float32", 0)
    assert np.abs(fitted.parameters.weight).max() < 200
    assert fitted.relative_error < 0.3


def test_a_straight_function_is_kept_straight() -> None:
    """Where x changes sign the bound takes nothing away: the least error is that of a line."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, C))
    rows = Rows(x, 3 * x, np.ones(400, np.float32), np.arange(400) % 8 == 7)
    for function in (REGISTRY["dyisru"], REGISTRY["dyt"]):
        fitted = fit_rows(function, "rms", 0.0, lambda: iter([rows]), Leeway(0, straight=True))
        assert fitted.relative_error < 0.01 and fitted.held_out_error is not None and fitted.held_out_error < 0.01
