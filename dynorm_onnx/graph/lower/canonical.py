"""The canonical node: one exact fused norm over the last axis, and what standard operators it needs
around it for other axes, other types, and weights that are no constant vector."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx_ir as ir

from dynorm_onnx.errors import ModelError
from dynorm_onnx.graph.edit.emit import Emitter, take_over
from dynorm_onnx.graph.edit.unique_names import Names
from dynorm_onnx.graph.lower.bodies import CAST_LIKE_OPSET, add_norm_function
from dynorm_onnx.graph.lower.bodies import DOMAIN as BODY_DOMAIN
from dynorm_onnx.graph.lower.lowered_norm import LoweredNorm, sum_operands
from dynorm_onnx.graph.norm_site import NormSite
from dynorm_onnx.graph.values.constant_folding import constant_array
from dynorm_onnx.graph.values.fixed import is_fixed

_WIDTH = {ir.DataType.BFLOAT16: 0, ir.DataType.FLOAT16: 1, ir.DataType.FLOAT: 2, ir.DataType.DOUBLE: 3}


class Lowering:
    """One run of lower(): the model, its names, and which values stand in for replaced ones."""

    def __init__(self, model: ir.Model, x_dtypes: Mapping[NormSite, ir.DataType]) -> None:
        self.model = model
        self.opset = model.opset_imports[""]
        self.names = Names.of(model)
        self._x_dtypes = x_dtypes
        self._dtypes = _node_dtypes(x_dtypes, self.opset)
        self._replaced: dict[ir.Value, ir.Value] = {}

    def current(self, value: ir.Value | None) -> ir.Value | None:
        """The value that stands in for `value` now; sites were found before anything was lowered."""
        while value in self._replaced:
            value = self._replaced[value]
        return value

    def take_over(self, old: ir.Value, new: ir.Value) -> None:
        """As emit.take_over, and remembered for the sites yet to come."""
        take_over(old, new)
        self._replaced[old] = new

    def emitter(self, site: NormSite, place: ir.Node) -> Emitter:
        """Writes in front of `place`, under the site's name."""
        return Emitter(site.graph, self.names, place, site.name, site.nodes)

    def is_uniform(self, site: NormSite) -> bool:
        """Whether x, y and the canonical node are of one type, so that no Cast is needed."""
        return self._x_dtypes[site] == self._dtypes[site] == site.dtype

    def norm(
        self,
        site: NormSite,
        emit: Emitter,
        x: ir.Value,
        weight: ir.Value | None,
        bias: ir.Value | None,
        axes: tuple[int, ...] = (-1,),
    ) -> tuple[LoweredNorm, ir.Value]:
        """Writes the canonical node of `site` over `axes` of `x`; also returns what replaces the site's y.

        `weight` and `bias` broadcast against `x`. Raises ModelError if an inner axis is normalised and
        the rank of `x` is not known.
        """
        dtype = self._dtypes[site]
        if x.shape is None and site.rank is not None:
            x.shape = ir.Shape([None] * site.rank)
        if self._x_dtypes[site] != dtype:
            x = emit.op("Cast", [x], {"to": dtype.value}, output="wide", like=x, dtype=dtype)
        channels = _channels(site, x, weight, axes)
        gamma = _vector(weight, x, axes, channels, self.opset)
        folded = weight is None or gamma is not None
        beta = _vector(bias, x, axes, channels, self.opset) if folded and site.kind == "layer" else None
        tail, restore = _to_last_axis(emit, x, axes, channels)
        parameters = [_parameter(emit, weight if folded else None, gamma, 1, tail, channels, dtype)]
        if beta is not None or (site.kind == "layer" and self._is_function(site)):
            parameters.append(_parameter(emit, bias, beta, 0, tail, channels, dtype))
        node = self._node(site, emit, tail, parameters)
        lowered = LoweredNorm(
            site.name, site.kind, site.form, node, x=tail, y=node.outputs[0],
            weight=np.ones(channels or 1, np.float32) if gamma is None else gamma.astype(np.float32),
            bias=None if beta is None else beta.astype(np.float32),
            epsilon=site.epsilon, channels=channels, dtype=dtype, skip=sum_operands(tail),
        )  # fmt: skip
        y = _affine(emit, restore(node.outputs[0]), None if folded else weight, bias if beta is None else None)
        return lowered, emit.cast(y, site.dtype, "narrow")

    def _is_function(self, site: NormSite) -> bool:
        """Whether the opset lacks the standard operator, or ONNX Runtime a kernel for it."""
        if site.kind == "layer":
            return self.opset < 17
        # In bfloat16 RMSNormalization has no kernel for CPU (1.32), nor can its body be run.
        return self.opset < 23 or self._dtypes[site] == ir.DataType.BFLOAT16

    def _node(self, site: NormSite, emit: Emitter, x: ir.Value, parameters: list[ir.Value]) -> ir.Node:
        domain, attributes = "", {"epsilon": site.epsilon, "axis": -1}
        op_type = "LayerNormalization" if site.kind == "layer" else "RMSNormalization"
        if self._is_function(site):
            domain, attributes = BODY_DOMAIN, {"epsilon": site.epsilon}
            op_type = add_norm_function(self.model, site.kind, self._dtypes.values())
        node = emit.node(op_type, [x, *parameters], attributes, domain=domain, outputs=["norm"])
        node.outputs[0].shape = x.shape.copy() if x.shape is not None else None
        node.outputs[0].type = ir.TensorType(self._dtypes[site])
        return node


def _node_dtypes(x_dtypes: Mapping[NormSite, ir.DataType], opset: int) -> dict[NormSite, ir.DataType]:
    """The type each canonical node works in: the wider one of x and y.

    Below opset 15 a function body serves one type only, so there all nodes work in the widest.
    """
    dtypes = {site: max(dtype, site.dtype, key=_WIDTH.__getitem__) for site, dtype in x_dtypes.items()}
    if opset < CAST_LIKE_OPSET and len(set(dtypes.values())) > 1:
        return dict.fromkeys(dtypes, max(dtypes.values(), key=_WIDTH.__getitem__))
    return dtypes


def _affine(emit: Emitter, y: ir.Value, weight: ir.Value | None, bias: ir.Value | None) -> ir.Value:
    """y * weight + bias, in float32 where y is bfloat16: ONNX Runtime's CPU (1.32) has neither operator in that."""
    if weight is None and bias is None:
        return y
    dtype = ir.DataType.FLOAT if y.dtype == ir.DataType.BFLOAT16 else y.dtype
    assert dtype is not None  # of a canonical node
    y = emit.cast(y, dtype, "unweighted")
    if weight is not None:
        y = emit.op("Mul", [y, emit.cast(weight, dtype, "weight_cast")], output="weighted", like=y)
    if bias is not None:
        y = emit.op("Add", [y, emit.cast(bias, dtype, "bias_cast")], output="biased", like=y)
    return y


def _channels(site: NormSite, x: ir.Value, weight: ir.Value | None, axes: tuple[int, ...]) -> int | None:
    if site.channels is not None:
        return site.channels
    sizes = [x.shape[axis] for axis in axes] if x.shape is not None else []
    if sizes and all(isinstance(size, int) for size in sizes):
        return int(np.prod([size for size in sizes if isinstance(size, int)]))
    if axes == (-1,) and weight is not None and weight.shape is not None and len(weight.shape) > 0:
        last = weight.shape[-1]
        if isinstance(last, int) and last > 1:
            return last
    return None


def _vector(
    value: ir.Value | None, x: ir.Value, axes: tuple[int, ...], channels: int | None, opset: int
) -> np.ndarray | None:
    """A constant weight or bias as [C] in the order of the flattened axes; None if it is no such thing."""
    array = None if value is None or channels is None else constant_array(value, opset)
    if array is None or channels is None:
        return None
    rank = len(x.shape) if x.shape is not None else max(array.ndim, len(axes))
    if array.ndim > rank:
        return None
    array = array.reshape((1,) * (rank - array.ndim) + array.shape)
    array = np.moveaxis(array, axes, range(-len(axes), 0))
    lead, tail = array.shape[: -len(axes)], array.shape[-len(axes) :]
    if any(size != 1 for size in lead):
        return None
    sizes = [channels] if len(axes) == 1 else list(tail) if x.shape is None else [x.shape[a] for a in axes]
    if not all(isinstance(size, int) for size in sizes):
        sizes = list(tail)
    full = [int(size) for size in sizes if isinstance(size, int)]
    if np.prod(full) != channels:
        return None
    return np.broadcast_to(array.reshape(tail), full).reshape(channels)


def _parameter(
    emit: Emitter,
    value: ir.Value | None,
    array: np.ndarray | None,
    fill: int,
    x: ir.Value,
    channels: int | None,
    dtype: ir.DataType,
) -> ir.Value:
    """weight (`fill` 1) or bias (0) as [C]: the initializer that `array` came from if it can be read as
    it is, else a new one; without `array` all `fill`, written at run time if C is not known before."""
    name = "weight" if fill else "bias"
    if array is None and channels is None:
        shape = emit.op("Shape", [x], output=f"{name}_shape", dtype=ir.DataType.INT64)
        bounds = [emit.integers([end], f"{name}_end") for end in (-1, np.iinfo(np.int64).max)]
        size = emit.op("Slice", [shape, *bounds], output=f"{name}_size", dtype=ir.DataType.INT64)
        filled = ir.tensor(np.full(1, fill, dtype.numpy()))
        return emit.op("ConstantOfShape", [size], {"value": filled}, output=name, dtype=dtype)
    if array is None:
        array = np.full(channels or 1, fill)
    elif value is not None and is_fixed(value) and value.dtype == dtype and value.shape == array.shape:
        return value
    return emit.initializer(array.astype(dtype.numpy()), name)


def _to_last_axis(
    emit: Emitter, x: ir.Value, axes: tuple[int, ...], channels: int | None
) -> tuple[ir.Value, Callable[[ir.Value], ir.Value]]:
    """`x` with the normalised axes as its last one, and the way back."""
    moved, undo = x, None
    if axes != tuple(range(-len(axes), 0)):
        if x.shape is None:
            raise ModelError(f"{x.name}: is normalised over an inner axis, and its rank is not known.")
        rank = len(x.shape)
        last = [axis % rank for axis in axes]
        order = [axis for axis in range(rank) if axis not in last] + last
        undo = [order.index(axis) for axis in range(rank)]
        moved = emit.op("Transpose", [x], {"perm": order}, output="moved", like=x)
        moved.shape = ir.Shape([x.shape[axis] for axis in order])
    tail = moved
    if len(axes) > 1:
        axis = -len(axes) if moved.shape is None else len(moved.shape) - len(axes)
        tail = emit.op("Flatten", [moved], {"axis": axis}, output="flat", like=moved)
        tail.shape = ir.Shape([None, channels])

    def restore(y: ir.Value) -> ir.Value:
        if tail is not moved:
            shape = emit.op("Shape", [moved], output="shape", dtype=ir.DataType.INT64)
            y = emit.op("Reshape", [y, shape], output="unflat", like=moved, dtype=y.dtype)
        if undo is not None:
            y = emit.op("Transpose", [y], {"perm": undo}, output="unmoved", like=x, dtype=y.dtype)
        return y

    return tail, restore
