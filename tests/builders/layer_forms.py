"""C: LayerNorm in pieces, every spelling of FORMS' family C, each written out by itself."""

from __future__ import annotations

from functools import partial

import numpy as np
from onnx import helper

from tests.builders.cases import CHANNELS, FormCase, Params, layer
from tests.builders.graph import ELEMENT, Graph
from tests.builders.reference import normalise

EPS = 1e-3
LOW = ("float32", "float16", "bfloat16")


def affine(g: Graph, normal: str, *, weight: bool = True, bias: bool = True, shape: tuple[int, ...] = ()) -> str:
    shape = shape or (CHANNELS,)
    y = g.op("Mul", normal, g.weight(*shape)) if weight else normal
    return g.op("Add", y, g.bias(*shape)) if bias else y


def textbook(
    g: Graph,
    x: str,
    *,
    how: str = "Pow",
    twice: bool = False,
    axes: tuple[int, ...] = (-1,),
    shape: tuple[int, ...] = (),
    weight: bool = True,
    bias: bool = True,
    inverse: str = "Div",
) -> str:
    """C1 (and C5, C7, C8): ReduceMean, Sub, sq, ReduceMean, Add, Sqrt, Div, Mul, Add."""
    mean = g.reduce("ReduceMean", x, axes)
    centred = g.op("Sub", x, mean)
    again = g.op("Sub", x, mean) if twice else centred
    squared = g.op("Mul", centred, centred) if how == "Mul" else g.op("Pow", centred, g.scalar(2.0))
    rooted = g.op("Sqrt", g.op("Add", g.reduce("ReduceMean", squared, axes), g.scalar(EPS)))
    inverted = inverse == "Reciprocal"
    normal = g.op("Mul", again, g.op("Reciprocal", rooted)) if inverted else g.op("Div", again, rooted)
    return affine(g, normal, weight=weight, bias=bias, shape=shape)


def with_casts(g: Graph, x: str, where: str) -> str:
    """C2: the Casts that mixed precision leaves at one of four places."""
    wide = g.cast(x, "float32") if where == "around" else x
    centred = g.op("Sub", wide, g.reduce("ReduceMean", wide, [-1]))
    if where == "pow":
        squared = g.op("Pow", g.cast(centred, "float32"), g.scalar(2.0, "float32"))
    elif where == "exponent":
        squared = g.op("Pow", centred, g.cast(g.scalar(2.0, "float32"), g.dtype))
    elif where == "reduce":
        squared = g.cast(g.op("Pow", centred, g.scalar(2.0)), "float32")
    else:
        squared = g.op("Pow", centred, g.scalar(2.0, "float32" if where == "around" else None))
    narrow = where == "exponent"
    eps = g.scalar(EPS, None if narrow else "float32")
    rooted = g.op("Sqrt", g.op("Add", g.reduce("ReduceMean", squared, [-1]), eps))
    if where == "around":
        normal = g.cast(g.op("Div", centred, rooted), g.dtype)
    elif narrow:
        normal = g.op("Div", centred, rooted)
    else:
        normal = g.cast(g.op("Div", g.cast(centred, "float32"), rooted), g.dtype)
    return affine(g, normal)


def keras(g: Graph, x: str, beta: bool = True) -> str:
    """C3: s = Reciprocal(Sqrt(var + eps)) * gamma; x * s + (beta - mean * s)."""
    mean = g.reduce("ReduceMean", x, [-1])
    centred = g.op("Sub", x, mean)
    variance = g.reduce("ReduceMean", g.op("Mul", centred, centred), [-1])
    scale = g.op("Reciprocal", g.op("Sqrt", g.op("Add", variance, g.scalar(EPS))))
    scale = g.op("Mul", scale, g.weight(CHANNELS))
    if not beta:
        return g.op("Sub", g.op("Mul", x, scale), g.op("Mul", mean, scale))
    return g.op("Add", g.op("Mul", x, scale), g.op("Sub", g.bias(CHANNELS), g.op("Mul", mean, scale)))


def moments(g: Graph, x: str, scale_first: bool = False) -> str:
    """C4: variance as E[x^2] - E[x]^2 (Flax)."""
    mean = g.reduce("ReduceMean", x, [-1])
    squares = g.reduce("ReduceMean", g.op("Mul", x, x), [-1])
    variance = g.op("Sub", squares, g.op("Mul", mean, mean))
    inverse = g.op("Reciprocal", g.op("Sqrt", g.op("Add", variance, g.scalar(EPS))))
    if scale_first:
        factor = g.op("Mul", inverse, g.weight(CHANNELS))
        return g.op("Add", g.op("Mul", g.op("Sub", x, mean), factor), g.bias(CHANNELS))
    return affine(g, g.op("Mul", g.op("Sub", x, mean), inverse))


def clamped_moments(g: Graph, x: str) -> str:
    """C4 as Flax's use_fast_variance writes it: Max(0, E[x^2] - E[x]^2)."""
    mean = g.reduce("ReduceMean", x, [-1])
    squares = g.reduce("ReduceMean", g.op("Mul", x, x), [-1])
    variance = g.op("Max", g.scalar(0.0), g.op("Sub", squares, g.op("Mul", mean, mean)))
    inverse = g.op("Div", g.scalar(1.0), g.op("Sqrt", g.op("Add", variance, g.scalar(EPS))))
    factor = g.op("Mul", inverse, g.weight(CHANNELS))
    return g.op("Add", g.op("Mul", g.op("Sub", x, mean), factor), g.bias(CHANNELS))


def function_body(g: Graph, x: str, axis: int = -1) -> str:
    """C4: what ONNX makes of LayerNormalization when it writes the function out."""
    wide_type = ELEMENT["double" if g.dtype == "double" else "float32"]

    def constant(*values: int) -> str:
        return g.op("Constant", value=helper.make_tensor("", 7, [len(values)], values))

    def flat(value: str) -> str:
        return g.op("Flatten", value, axis=axis)

    def mean_of(value: str) -> str:
        if g.opset >= 18:
            return g.op("ReduceMean", value, constant(1))
        return g.op("ReduceMean", value, axes=[1])

    eps = g.op("Cast", g.op("Constant", value_float=EPS), to=wide_type)
    shape = g.op("Shape", x)
    prefix = g.op("Slice", shape, constant(0), constant(axis))
    suffix = g.op("ConstantOfShape", constant(-axis), value=helper.make_tensor("", 7, [1], [1]))
    reduced = g.op("Concat", prefix, suffix, axis=0)
    flat_x = g.op("Cast", flat(x), to=wide_type)
    mean = mean_of(flat_x)
    variance = g.op("Sub", mean_of(g.op("Mul", flat_x, flat_x)), g.op("Mul", mean, mean))
    deviation = g.op("Sqrt", g.op("Add", variance, eps))
    inverse = g.op("Reciprocal", deviation)
    normal = g.op("Cast", g.op("Div", g.op("Sub", flat_x, mean), deviation), to=ELEMENT[g.dtype])
    width = (CHANNELS,) if axis == -1 else (3, CHANNELS)
    scaled = g.op("Mul", normal, g.op("Flatten", g.weight(*width), axis=0))
    y = g.op("Reshape", g.op("Add", scaled, g.op("Flatten", g.bias(*width), axis=0)), shape)
    # the body computes Mean and InvStdDev too; nobody reads them
    g.op("Reshape", mean, reduced)
    g.op("Reshape", inverse, reduced)
    return y


def keras2(g: Graph, x: str) -> str:
    """C6: Reshape to [1, tokens, C, 1], BatchNormalization in training mode, Reshape, Mul, Add."""
    rows = g.op("Reshape", x, g.ints(1, 6, CHANNELS, 1))
    ones, zeros = g.initializer(np.ones(6)), g.initializer(np.zeros(6))
    attrs = {"training_mode": 1} if g.opset >= 14 else {}
    outputs = 3 if g.opset >= 14 else 5
    mean, variance = g.initializer(np.zeros(6)), g.initializer(np.ones(6))
    normal = g.op("BatchNormalization", rows, ones, zeros, mean, variance, outputs=outputs, epsilon=EPS, **attrs)
    return affine(g, g.op("Reshape", normal[0], g.op("Shape", x)))


def expanded_scale(g: Graph, x: str) -> str:
    """C7: the scale is ones, expanded to the shape of x."""
    normal = textbook(g, x, weight=False, bias=False)
    return g.op("Mul", normal, g.op("Expand", g.scalar(1.0), g.op("Shape", x)))


def two_branches(g: Graph, x: str) -> str:
    """C9: one normalised value, two modulations with scales that come from a conditioning input."""
    normal = textbook(g, x, weight=False, bias=False)
    condition = g.input("condition", g.values("condition", [2, 1, CHANNELS], -1, 1), ["dim0", 1, CHANNELS])
    one = g.op("Add", g.op("Mul", normal, g.op("Add", condition, g.scalar(1.0))), g.bias(CHANNELS))
    two = g.op("Add", g.op("Mul", normal, g.weight(CHANNELS)), condition)
    return g.op("Mul", one, two)


def two_branches_definition(x: np.ndarray, params: Params) -> np.ndarray:
    normal, condition = normalise("layer", x, eps=EPS), params["condition"]
    return (normal * (1 + condition) + params["bias"]) * (normal * params["weight"] + condition)


FORMS = [
    FormCase("C1-Pow", textbook, layer("C1")),
    FormCase("C1-Mul", partial(textbook, how="Mul"), layer("C1")),
    FormCase("C1-two-Subs", partial(textbook, twice=True), layer("C1")),
    FormCase("C1-Reciprocal", partial(textbook, inverse="Reciprocal"), layer("C1")),
    *(
        FormCase(f"C2-{where}", partial(with_casts, where=where), layer("C2|C1"), dtypes=LOW)
        for where in ("pow", "exponent", "reduce", "around")
    ),
    FormCase("C3", keras, layer("C3")),
    FormCase("C3-no-beta", partial(keras, beta=False), layer("C3", bias=False)),
    FormCase("C4", moments, layer("C4")),
    FormCase("C4-scale-first", partial(moments, scale_first=True), layer("C4")),
    FormCase("C4-clamped", clamped_moments, layer("C4")),
    FormCase("C4-function-body", function_body, layer("C4"), since=13),
    FormCase(
        "C4-function-body-two-axes",
        partial(function_body, axis=-2),
        layer("C4", axes=(-2, -1), channels=24),
        since=13,
        declared=("batch", 3, CHANNELS),
    ),
    FormCase(
        "C5",
        partial(textbook, axes=(1,), shape=(CHANNELS, 1, 1)),
        layer("C5", axes=(-3,)),
        shape=(2, CHANNELS, 4, 5),
        declared=("batch", CHANNELS, "height", 5),
    ),
    FormCase(
        "C5-one-dimension",
        partial(textbook, axes=(1,), shape=(CHANNELS, 1), how="Mul"),
        layer("C5", axes=(-2,)),
        shape=(2, CHANNELS, 5),
        declared=("batch", CHANNELS, 5),
    ),
    FormCase("C6", keras2, layer("C6"), dtypes=("float32", "double"), declared=(2, 3, CHANNELS)),
    FormCase("C7-no-weight", partial(textbook, weight=False), layer("C7", weight=False)),
    FormCase("C7-no-bias", partial(textbook, bias=False), layer("C7", bias=False)),
    FormCase("C7-neither", partial(textbook, weight=False, bias=False), layer("C7", weight=False, bias=False)),
    FormCase("C7-expanded-scale", expanded_scale, layer("C7", weight=None, bias=False)),
    FormCase(
        "C8",
        partial(textbook, axes=(-2, -1), shape=(3, CHANNELS)),
        layer("C8", axes=(-2, -1), channels=24),
        declared=("batch", 3, CHANNELS),
    ),
    FormCase(
        "C8-positive-axes",
        partial(textbook, axes=(2, 1), shape=(3, CHANNELS)),
        layer("C8", axes=(-2, -1), channels=24),
        declared=("batch", 3, CHANNELS),
    ),
    FormCase(
        "C8-weight-of-last-axis",
        partial(textbook, axes=(-2, -1)),
        layer("C8", axes=(-2, -1), channels=24),
        declared=("batch", 3, CHANNELS),
    ),
    FormCase("C9", two_branches, layer("C9", weight=False, bias=False), definition=two_branches_definition),
]
