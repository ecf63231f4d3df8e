"""Folding of the small constants that decide a norm's structure: exponents, epsilons, axes, shapes.

Only tensors of at most `LARGEST` elements are read, so weights, external or missing, are never
touched. Every function gives None where the answer is not certain.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

LARGEST = 64  # elements: more than any list of axes or shape, less than any weight worth its name

Array = np.ndarray
Fold = Callable[[ir.Node, Sequence[Array | None]], Array | None]


def read_tensor(tensor: ir.TensorProtocol | None) -> Array | None:
    """The data of a small numeric tensor; None if it is large, textual or its file is missing."""
    if tensor is None or tensor.size > LARGEST or tensor.dtype == ir.DataType.STRING:
        return None
    try:
        return np.asarray(tensor.numpy())
    except (OSError, ValueError):
        return None


def constant_node(node: ir.Node) -> Array | None:
    """The value of a Constant node in any of its attribute spellings."""
    for name, attribute in node.attributes.items():
        if attribute.is_ref():
            return None
        if name == "value":
            return read_tensor(attribute.as_tensor())
        if name == "value_float":
            return np.asarray(attribute.as_float(), np.float32)
        if name == "value_int":
            return np.asarray(attribute.as_int(), np.int64)
        if name == "value_floats":
            return np.asarray(attribute.as_floats(), np.float32)
        if name == "value_ints":
            return np.asarray(attribute.as_ints(), np.int64)
    return None


def integer(node: ir.Node, name: str, default: int) -> int:
    """An integer attribute; the default where it is omitted."""
    attribute = node.attributes.get(name)
    return default if attribute is None or attribute.is_ref() else int(attribute.value)


def real(node: ir.Node, name: str, default: float) -> float:
    """A float attribute; the default where it is omitted."""
    attribute = node.attributes.get(name)
    return default if attribute is None or attribute.is_ref() else float(attribute.value)


def integers(node: ir.Node, name: str) -> tuple[int, ...] | None:
    """A list attribute, or None where it is omitted."""
    attribute = node.attributes.get(name)
    return None if attribute is None or attribute.is_ref() else tuple(int(i) for i in attribute.value)


def numpy_type(number: int) -> np.dtype | None:
    """Of a type as TensorProto numbers them; None for strings and for what is no type."""
    try:
        return np.dtype(ir.DataType(number).numpy())
    except (ValueError, TypeError):
        return None


def _cast(node: ir.Node, inputs: Sequence[Array | None]) -> Array | None:
    (x,) = inputs
    kind = numpy_type(integer(node, "to", 1))
    return None if x is None or kind is None else x.astype(kind)


def _constant_of_shape(node: ir.Node, inputs: Sequence[Array | None]) -> Array | None:
    (shape,) = inputs
    if shape is None or np.prod(shape) > LARGEST:
        return None
    value = node.attributes.get("value")
    fill = np.zeros(1, np.float32) if value is None else read_tensor(value.as_tensor())
    return None if fill is None else np.full(tuple(shape), fill.flat[0], fill.dtype)


def _slice(node: ir.Node, inputs: Sequence[Array | None]) -> Array | None:
    """Slice of a vector: what exporters do to shapes."""
    x, attributes = inputs[0], [integers(node, k) for k in ("starts", "ends")]
    starts, ends = attributes if attributes[0] is not None else inputs[1:3]
    step = 1 if len(inputs) < 5 or inputs[4] is None else int(inputs[4].item())
    if x is None or starts is None or ends is None or x.ndim != 1 or len(starts) != 1:
        return None
    return x[int(starts[0]) : int(ends[0]) : step]


def _squeeze(node: ir.Node, inputs: Sequence[Array | None]) -> Array | None:
    """Of a vector of one element: the only kind that shapes need."""
    x = inputs[0]
    return x.reshape(()) if x is not None and x.size == 1 else None


def _unsqueeze(node: ir.Node, inputs: Sequence[Array | None]) -> Array | None:
    x = inputs[0]
    return x.reshape(1) if x is not None and x.ndim == 0 else None


def _reshape(node: ir.Node, inputs: Sequence[Array | None]) -> Array | None:
    x, shape = inputs[0], inputs[1] if len(inputs) > 1 else None
    return None if x is None or shape is None or 0 in shape else x.reshape(tuple(shape))


def _dequantize(node: ir.Node, inputs: Sequence[Array | None]) -> Array | None:
    """With one scale for all elements."""
    x, scale, *rest = inputs
    zero = rest[0] if rest else np.zeros(1, np.int8)
    if x is None or scale is None or zero is None or scale.size != 1:
        return None
    return np.asarray((x.astype(np.int64) - zero.astype(np.int64).item()) * scale.reshape(()), scale.dtype)


def _product(node: ir.Node, inputs: Sequence[Array | None]) -> Array | None:
    """ReduceProd of a vector: the size of some axes together."""
    x = inputs[0]
    if x is None or x.ndim > 1:
        return None
    return np.prod(x, keepdims=bool(integer(node, "keepdims", 1)))


def _all_known(function: Callable[..., Array | np.generic]) -> Fold:
    def fold(node: ir.Node, inputs: Sequence[Array | None]) -> Array | None:
        return None if any(i is None for i in inputs) else np.asarray(function(*inputs))

    return fold


def _divide(a: Array, b: Array) -> Array:
    return np.asarray(a // b if np.issubdtype(a.dtype, np.integer) else a / b, a.dtype)


def _range(node: ir.Node, inputs: Sequence[Array | None]) -> Array | None:
    start, limit, step = inputs
    if start is None or limit is None or step is None:
        return None
    if (limit.item() - start.item()) / step.item() > LARGEST:
        return None
    return np.arange(start.item(), limit.item(), step.item(), dtype=start.dtype)


def _gather(node: ir.Node, inputs: Sequence[Array | None]) -> Array | None:
    x, where = inputs
    return None if x is None or where is None or x.ndim != 1 else np.asarray(x[where])


FOLDS: dict[str, Fold] = {
    "Identity": _all_known(lambda x: x),
    "Cast": _cast,
    "ConstantOfShape": _constant_of_shape,
    "Slice": _slice,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Reshape": _reshape,
    "Gather": _gather,
    "Concat": _all_known(lambda *parts: np.concatenate(parts)),
    "Size": _all_known(lambda x: np.int64(x.size)),
    "Range": _range,
    "DequantizeLinear": _dequantize,
    "ReduceProd": _product,
    "Add": _all_known(np.add),
    "Sub": _all_known(np.subtract),
    "Mul": _all_known(np.multiply),
    "Div": _all_known(_divide),
    "Neg": _all_known(np.negative),
    "Sqrt": _all_known(np.sqrt),
    "Reciprocal": _all_known(np.reciprocal),
    "Pow": _all_known(lambda x, e: np.asarray(np.power(x, e), x.dtype)),
}


def _placed(fold: Fold) -> Fold:
    """For sizes: the other operand says where, in whole numbers."""

    def placed(node: ir.Node, inputs: Sequence[Array | None]) -> Array | None:
        x, where = inputs
        return None if where is None or np.isnan(where).any() else fold(node, [x, where.astype(np.int64)])

    return placed


def _cast_sizes(node: ir.Node, inputs: Sequence[Array | None]) -> Array | None:
    return inputs[0] if ir.DataType(integer(node, "to", 1)).is_integer() else None


# What is done to sizes: on float64, with NaN for a size that is not known.
SIZE_FOLDS: dict[str, Fold] = {
    **{name: FOLDS[name] for name in ("Identity", "Slice", "Squeeze", "Unsqueeze", "Concat", "ReduceProd")},
    **{name: FOLDS[name] for name in ("Add", "Sub", "Mul")},
    **{name: _placed(FOLDS[name]) for name in ("Gather", "Reshape")},
    "Cast": _cast_sizes,
    "Div": _all_known(np.floor_divide),
}
