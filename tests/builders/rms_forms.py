"""B: RMSNorm in pieces, every spelling of FORMS' family B, each written out by itself."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import onnx
from onnx import helper

from tests.builders.cases import CHANNELS, FormCase, rms
from tests.builders.graph import ELEMENT, NUMPY, Graph
from tests.builders.installed import NEWEST_LP_NORMALIZATION
from tests.builders.reference import normalise, silu

EPS = 1e-3


def square(g: Graph, x: str, how: str = "Pow") -> str:
    return g.op("Mul", x, x) if how == "Mul" else g.op("Pow", x, g.scalar(2.0))


def mean_square(g: Graph, x: str, how: str = "Pow", eps: float = EPS, dtype: str | None = None) -> str:
    mean = g.reduce("ReduceMean", square_in(g, x, how, dtype), [-1])
    return g.op("Add", mean, g.scalar(eps, dtype))


def square_in(g: Graph, x: str, how: str, dtype: str | None) -> str:
    return g.op("Mul", x, x) if how == "Mul" else g.op("Pow", x, g.scalar(2.0, dtype))


def root(g: Graph, x: str, how: str = "Pow", eps: float = EPS, dtype: str | None = None) -> str:
    return g.op("Sqrt", mean_square(g, x, how, eps, dtype))


def divided(g: Graph, x: str, how: str) -> str:
    """B1: x / rms * weight."""
    return g.op("Mul", g.op("Div", x, root(g, x, how)), g.weight(CHANNELS))


def one_over(g: Graph, x: str, how: str) -> str:
    """B2: x * (1 / rms) * weight."""
    return g.op("Mul", g.weight(CHANNELS), g.op("Mul", x, g.op("Div", g.scalar(1.0), root(g, x, how))))


def reciprocal(g: Graph, x: str, swapped: bool = False) -> str:
    """B3: x * Reciprocal(rms) * weight."""
    factors = (x, g.op("Reciprocal", root(g, x)))
    return g.op("Mul", g.op("Mul", *(reversed(factors) if swapped else factors)), g.weight(CHANNELS))


def power(g: Graph, x: str, of_root: bool) -> str:
    """B4: x * (ms + eps)^-0.5, or rms^-1."""
    base, exponent = (root(g, x), -1.0) if of_root else (mean_square(g, x), -0.5)
    return g.op("Mul", g.op("Mul", x, g.op("Pow", base, g.scalar(exponent))), g.weight(CHANNELS))


def positive_axis(g: Graph, x: str) -> str:
    mean = g.op("Add", g.reduce("ReduceMean", square(g, x, "Mul"), [2]), g.scalar(EPS))
    return g.op("Mul", g.op("Div", x, g.op("Sqrt", mean)), g.weight(CHANNELS))


def integer_exponent(g: Graph, x: str) -> str:
    """torch.onnx writes x ** 2 with an int64 exponent."""
    mean = g.reduce("ReduceMean", g.op("Pow", x, g.initializer(np.array(2), dtype="int64")), [-1])
    rooted = g.op("Sqrt", g.op("Add", mean, g.scalar(EPS)))
    return g.op("Mul", g.op("Mul", x, g.op("Reciprocal", rooted)), g.weight(CHANNELS))


def scalar_pieces(g: Graph, x: str) -> str:
    """B1 as torch.onnx writes it: Constant nodes, and eps on the left of the Add."""
    total = g.op("Pow", x, g.constant(2.0))
    mean = g.op("Add", g.constant(EPS), g.reduce("ReduceMean", total, [-1]))
    return g.op("Mul", g.op("Div", x, g.op("Sqrt", mean)), g.constant(g.values("weight", [CHANNELS], 0.5, 1.5)))


def sandwich(g: Graph, x: str, weight_first: bool, weight_cast: bool = False, spelling: str = "B3") -> str:
    """B5: computed in float32; the Cast back before the weight (Llama) or after it (GPT-OSS)."""
    wide = g.cast(x, "float32")
    rooted = root(g, wide, dtype="float32")
    normal = g.op("Div", wide, rooted) if spelling == "B1" else g.op("Mul", wide, g.op("Reciprocal", rooted))
    if weight_first:
        weight = g.cast(g.weight(CHANNELS), "float32") if weight_cast else g.weight(CHANNELS, dtype="float32")
        return g.cast(g.op("Mul", normal, weight), g.dtype)
    if weight_cast:
        weight = g.cast(g.weight(CHANNELS, dtype="float32"), g.dtype)
        g.params["weight"] = g.params["weight"].astype(NUMPY[g.dtype])
    else:
        weight = g.weight(CHANNELS)
    return g.op("Mul", weight, g.cast(normal, g.dtype))


def weighted(g: Graph, x: str, weight: Callable[[Graph], str]) -> str:
    """B6, B7: the norm times a weight that comes from elsewhere."""
    normal = g.op("Div", x, root(g, x))
    return g.op("Mul", normal, weight(g))


def from_input(g: Graph) -> str:
    return g.input("gamma", g.values("weight", [CHANNELS], 0.5, 1.5))


def from_transpose(g: Graph) -> str:
    array = g.values("weight", [CHANNELS, 1], 0.5, 1.5)
    g.params["weight"] = array[:, 0]
    return g.op("Transpose", g.initializer(array), perm=[1, 0])


def from_dequantised(g: Graph) -> str:
    codes = g.rng.integers(40, 120, CHANNELS).astype(np.uint8)
    scale = np.array(0.0125, NUMPY[g.dtype])
    g.params["weight"] = codes.astype(np.float64) * scale.astype(np.float64)
    name = g.fresh("codes")
    g.initializers.append(onnx.numpy_helper.from_array(codes, name))
    return g.op("DequantizeLinear", name, g.scalar(scale))


def from_row(g: Graph) -> str:
    return g.weight(1, 1, CHANNELS)


def one_plus(g: Graph, in_float32: bool = False) -> str:
    dtype = "float32" if in_float32 else None
    array = g.values("weight", [CHANNELS], -0.5, 0.5, dtype)
    g.params["weight"] = (array.astype(np.float64) + 1.0).astype(NUMPY[dtype or g.dtype])
    total = g.op("Add", g.initializer(array, dtype=dtype), g.scalar(1.0, dtype))
    return g.cast(total, g.dtype) if in_float32 else total


def one_plus_wide(g: Graph, x: str) -> str:
    """B7, Gemma in low precision: x and 1 + w in float32, one Cast back."""
    wide = g.cast(x, "float32")
    normal = g.op("Mul", wide, g.op("Pow", mean_square(g, wide, dtype="float32"), g.scalar(-0.5, "float32")))
    array = g.values("weight", [CHANNELS], -0.5, 0.5)
    g.params["weight"] = array.astype(np.float32) + np.float32(1)
    total = g.op("Add", g.scalar(1.0, "float32"), g.cast(g.initializer(array), "float32"))
    return g.cast(g.op("Mul", normal, total), g.dtype)


def weightless(g: Graph, x: str, eps: float = EPS) -> str:
    return g.op("Div", x, root(g, x, eps=eps))


def weightless_scaled(g: Graph, x: str) -> str:
    normal = g.op("Mul", x, g.op("Reciprocal", root(g, x, eps=1.1920929e-07)))
    return g.op("Mul", normal, g.constant(g.values("weight", [1], 0.9, 1.1)))


def biased(g: Graph, x: str, swapped: bool) -> str:
    y = divided(g, x, "Mul")
    bias = g.bias(CHANNELS)
    return g.op("Add", bias, y) if swapped else g.op("Add", y, bias)


def function_body(g: Graph, x: str) -> str:
    """B10: what ONNX makes of RMSNormalization when it writes the function out."""
    to_float = ELEMENT["double" if g.dtype == "double" else "float32"]
    eps = g.op("Cast", g.op("Constant", value_float=EPS), to=to_float)
    rank = g.op("Size", g.op("Shape", x))
    axis = g.op("Add", rank, g.op("Constant", value=helper.make_tensor("", 7, [], [-1])))
    one = g.op("Constant", value=helper.make_tensor("", 7, [], [1]))
    axes = g.op("Range", axis, rank, one)
    wide = g.op("Cast", x, to=to_float)
    squared = g.op("Mul", wide, wide)
    rooted = g.op("Sqrt", g.op("Add", g.op("ReduceMean", squared, axes), eps))
    normal = g.op("Cast", g.op("Div", wide, rooted), to=ELEMENT[g.dtype])
    return g.op("Mul", normal, g.weight(CHANNELS))


def tflite(g: Graph, x: str) -> str:
    """B11: keepdims = 0, and a Reshape between the eps-Add and the Sqrt."""
    mean = g.reduce("ReduceMean", square(g, x, "Mul"), [-1], keepdims=0)
    total = g.op("Reshape", g.op("Add", mean, g.scalar(EPS)), g.ints(2, 3, 1))
    return g.op("Mul", g.op("Div", x, g.op("Sqrt", total)), g.weight(CHANNELS))


def unsqueezed(g: Graph, x: str) -> str:
    """B11 with the Unsqueeze that others write."""
    mean = g.reduce("ReduceMean", square(g, x, "Mul"), [-1], keepdims=0)
    rooted = g.unsqueeze(g.op("Sqrt", g.op("Add", mean, g.scalar(EPS))), -1)
    return g.op("Mul", g.op("Div", x, rooted), g.weight(CHANNELS))


def by_l2(g: Graph, x: str, how: str) -> str:
    """B12: sqrt(C) x / norm(x), by four ways to the norm."""
    scale = g.scalar(np.sqrt(CHANNELS))
    if how == "LpNormalization":
        normal = g.op("LpNormalization", x, axis=-1, p=2)
    elif how == "ReduceL2":
        normal = g.op("Div", x, g.reduce("ReduceL2", x, [-1]))
    elif how == "clipped":
        normal = g.op("Div", x, g.op("Max", g.reduce("ReduceL2", x, [-1]), g.scalar(1e-6)))
    else:
        normal = g.op("Div", x, g.op("Sqrt", g.reduce("ReduceSumSquare", x, [-1])))
    return g.op("Mul", g.op("Mul", normal, scale), g.weight(CHANNELS))


def sum_over_count(g: Graph, x: str) -> str:
    """B12's neighbour: the mean written as ReduceSum / C."""
    mean = g.op("Div", g.reduce("ReduceSum", square(g, x, "Mul"), [-1]), g.scalar(float(CHANNELS)))
    return g.op("Mul", g.op("Div", x, g.op("Sqrt", g.op("Add", mean, g.scalar(EPS)))), g.weight(CHANNELS))


def per_head(g: Graph, x: str, transposed: bool) -> str:
    """B13: [B, S, 8] -> [B, S, 2, 4] (-> [B, 2, S, 4]), norm, and back."""
    heads = g.op("Reshape", x, g.ints(0, 0, 2, 4), outputs=["heads"])
    if transposed:
        heads = g.op("Transpose", heads, perm=[0, 2, 1, 3], outputs=["turned"])
    y = g.op("Mul", g.op("Div", heads, root(g, heads)), g.weight(4))
    if transposed:
        y = g.op("Transpose", y, perm=[0, 2, 1, 3])
    return g.op("Reshape", y, g.ints(0, 0, 8))


def per_head_definition(x: np.ndarray, params: dict[str, np.ndarray]) -> np.ndarray:
    heads = x.reshape(*x.shape[:-1], 2, 4)
    return (normalise("rms", heads, eps=EPS) * params["weight"]).reshape(x.shape)


def rotated(g: Graph, x: str) -> str:
    """B13 after a rotary embedding: the rotated halves are what is normalised."""
    heads = g.op("Reshape", x, g.ints(0, 0, 2, 4))
    left, right = g.op("Split", heads, *([g.ints(2, 2)] if g.opset >= 13 else []), outputs=2, axis=-1)
    turned = g.op("Concat", g.op("Neg", right), left, axis=-1)
    cos, sin = (g.initializer(np.array(v)) for v in ([0.8] * 4, [0.6] * 4))
    x = g.op("Add", g.op("Mul", heads, cos), g.op("Mul", turned, sin), outputs=["rotated"])
    y = g.op("Mul", g.op("Div", x, root(g, x)), g.weight(4))
    return g.op("Reshape", y, g.ints(0, 0, 8))


def rotated_definition(x: np.ndarray, params: dict[str, np.ndarray]) -> np.ndarray:
    heads = x.reshape(*x.shape[:-1], 2, 4)
    turned = np.concatenate([-heads[..., 2:], heads[..., :2]], -1)
    return (normalise("rms", heads * 0.8 + turned * 0.6, eps=EPS) * params["weight"]).reshape(x.shape)


def gated(g: Graph, x: str, before: bool, flat_scale: bool = False) -> str:
    """B14: groups [.., 2, 4] with scale [2, 4]; times silu(gate) before or after."""
    gate = g.initializer(g.values("gate", [3, CHANNELS], -2, 2))
    gate = g.op("Mul", gate, g.op("Sigmoid", gate))
    if before:
        x = g.op("Mul", x, gate, outputs=["gated"])
    groups = g.op("Reshape", x, g.ints(0, 0, 2, 4), outputs=["groups"])
    normal = g.op("Mul", groups, g.op("Reciprocal", root(g, groups)))
    if flat_scale:
        y = g.op("Mul", g.op("Reshape", normal, g.ints(0, 0, 8)), g.weight(CHANNELS))
    else:
        y = g.op("Reshape", g.op("Mul", normal, g.weight(2, 4)), g.ints(0, 0, 8))
    return y if before else g.op("Mul", y, gate)


def gated_definition(x: np.ndarray, params: dict[str, np.ndarray], before: bool) -> np.ndarray:
    gate = silu(params["gate"])
    x = x * gate if before else x
    y = normalise("rms", x.reshape(*x.shape[:-1], 2, 4), eps=EPS).reshape(x.shape) * params["weight"].reshape(-1)
    return y if before else y * gate


def residual_sandwich(g: Graph, x: str) -> str:
    """B15: the residual Add inside the Cast sandwich."""
    skip = g.initializer(g.values("skip", [3, CHANNELS], -1, 1))
    total = g.op("Add", x, skip, outputs=["total"])
    wide = g.cast(total, "float32")
    inverse = g.op("Div", g.scalar(1.0, "float32"), root(g, wide, dtype="float32"))
    return g.op("Mul", g.weight(CHANNELS), g.cast(g.op("Mul", wide, inverse), g.dtype))


def residual_definition(x: np.ndarray, params: dict[str, np.ndarray]) -> np.ndarray:
    return normalise("rms", x + params["skip"], eps=EPS) * params["weight"]


LOW = ("float32", "float16", "bfloat16")
SWAPS = (False, True)

FORMS = [
    *(FormCase(f"B1-{how}", partial(divided, how=how), rms("B1")) for how in ("Pow", "Mul")),
    FormCase("B1-constants", scalar_pieces, rms("B1")),
    FormCase("B1-positive-axis", positive_axis, rms("B1")),
    FormCase("B3-integer-exponent", integer_exponent, rms("B3"), since=12),
    FormCase("B1-sum-over-count", sum_over_count, rms("B1|B12")),
    *(FormCase(f"B2-{how}", partial(one_over, how=how), rms("B2")) for how in ("Pow", "Mul")),
    FormCase("B3", reciprocal, rms("B3")),
    FormCase("B3-swapped", partial(reciprocal, swapped=True), rms("B3")),
    FormCase("B4", partial(power, of_root=False), rms("B4")),
    FormCase("B4-of-root", partial(power, of_root=True), rms("B4")),
    FormCase("B5-llama", partial(sandwich, weight_first=False), rms("B5"), dtypes=LOW),
    FormCase("B5-llama-div", partial(sandwich, weight_first=False, spelling="B1"), rms("B5"), dtypes=LOW),
    FormCase("B5-llama-weight-cast", partial(sandwich, weight_first=False, weight_cast=True), rms("B5"), dtypes=LOW),
    FormCase("B5-gpt-oss", partial(sandwich, weight_first=True), rms("B5"), dtypes=LOW),
    FormCase("B5-gpt-oss-weight-cast", partial(sandwich, weight_first=True, weight_cast=True), rms("B5"), dtypes=LOW),
    FormCase("B6-input", partial(weighted, weight=from_input), rms("B6|B1"), constant_weight=False),
    FormCase("B6-transpose", partial(weighted, weight=from_transpose), rms("B6|B1")),
    FormCase("B6-row", partial(weighted, weight=from_row), rms("B6|B1")),
    FormCase(
        "B6-dequantised",
        partial(weighted, weight=from_dequantised),
        rms("B6|B1"),
        dtypes=("float32",),
        until=27,  # ONNX Runtime 1.32 has no kernel of opset 28
    ),
    FormCase(
        "B6-dequantised-low",
        partial(weighted, weight=from_dequantised),
        rms("B6|B1"),
        dtypes=("float16",),
        since=19,
        until=27,
    ),
    FormCase("B7", partial(weighted, weight=one_plus), rms("B7")),
    FormCase("B7-float32", partial(weighted, weight=partial(one_plus, in_float32=True)), rms("B7|B1"), dtypes=LOW),
    FormCase("B7-gemma", one_plus_wide, rms("B7"), dtypes=LOW),
    FormCase("B8", weightless, rms("B8", weight=False)),
    FormCase(
        "B8-scale-of-one",
        weightless_scaled,
        rms("B8", eps=1.1920929e-07, weight=None),
        dtypes=("float32", "double"),
    ),
    *(FormCase(f"B9-{swap}", partial(biased, swapped=swap), rms("B9", bias=True)) for swap in SWAPS),
    FormCase("B10", function_body, rms("B10"), since=18),
    FormCase("B11-reshape", tflite, rms("B11")),
    FormCase("B11-unsqueeze", unsqueezed, rms("B11")),
    *(FormCase(f"B12-{how}", partial(by_l2, how=how), rms("B12", eps=0.0)) for how in ("ReduceL2", "ReduceSumSquare")),
    FormCase("B12-clipped", partial(by_l2, how="clipped"), rms("B12", eps=0.0)),
    FormCase(
        "B12-LpNormalization",
        partial(by_l2, how="LpNormalization"),
        rms("B12", eps=0.0),
        dtypes=("float32", "double"),
        until=NEWEST_LP_NORMALIZATION,
    ),
    FormCase(
        "B13",
        partial(per_head, transposed=False),
        rms("B13", channels=4, x="heads"),
        definition=per_head_definition,
    ),
    FormCase(
        "B13-transposed",
        partial(per_head, transposed=True),
        rms("B13", channels=4, x="turned"),
        definition=per_head_definition,
    ),
    FormCase("B13-rotated", rotated, rms("B13|B1", channels=4, x="rotated"), definition=rotated_definition),
    *(
        FormCase(
            f"B14-gate-{'before' if before else 'after'}{'-flat-scale' if flat else ''}",
            partial(gated, before=before, flat_scale=flat),
            rms("B14|B13" if flat else "B14", channels=4, x="groups", weight=None if flat else True),
            definition=partial(gated_definition, before=before),
        )
        for before in (True, False)
        for flat in SWAPS
    ),
    FormCase("B15", residual_sandwich, rms("B15|B5", x="total"), dtypes=LOW, definition=residual_definition),
]
