"""Turn a stream: multiply a rotation R of its channels out into the weights that write it and read its norms.

RMSNorm(x R) = RMSNorm(x) R for every orthogonal R (Ashkboos et al., SliceGPT, arXiv 2401.15024), and of LayerNorm the
same holds where R leaves the mean over the channels alone, R 1 = 1. The weight of a norm has to move into the layers
behind it first, since it treats channels each in its own way.

A head that shares its weight E with the embedding, which becomes E R, reads what the norm gives through a matrix of its
own: R^T diag(w) R, of C^2 numbers for the V C of a copy.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from dynorm_onnx.graph.edit.emit import Emitter, add_initializer, set_tensor
from dynorm_onnx.graph.edit.unique_names import Names
from dynorm_onnx.graph.files.model_io import clone
from dynorm_onnx.graph.lower import LoweredNorm, sum_operands
from dynorm_onnx.graph.replace.rewrite import node_in
from dynorm_onnx.graph.streams.basis import StreamBasis, TiedHead
from dynorm_onnx.graph.values.mapped import let_go

SMALLEST_WEIGHT = 1e-3
"""Of a norm with a bias, relative to its largest weight: the bias is divided by the weight."""

_BLOCK = 1 << 22  # elements of a weight that are turned at a time, in float64

# What is kept of a weight's new values: the array, or a tensor of this name that is read when used.
Keep = Callable[[str, np.ndarray], np.ndarray | ir.TensorProtocol]


@dataclasses.dataclass(frozen=True)
class Turned:
    """A turned model, its norms, and the names of the initializers that are new or not what they were."""

    model: ir.Model
    norms: tuple[LoweredNorm, ...]
    changed: tuple[str, ...]


def why_not(basis: StreamBasis) -> str | None:
    """A sentence that says why a stream cannot be turned; None where it can."""
    for norm in basis.read:
        weight = np.abs(norm.weight)
        if norm.bias is not None and np.any(norm.bias) and weight.min() < SMALLEST_WEIGHT * weight.max():
            return f"some channels' weights of {norm.site_name} are too small to divide its bias by"
    return None


def turn(
    model: ir.Model, norms: Sequence[LoweredNorm], rotations: Mapping[StreamBasis, np.ndarray], keep: Keep
) -> Turned:
    """A clone of a lowered model with its streams x turned to x R, which computes the same up to rounding.

    Args:
        model: the lowered model; it stays as it is, and the clone shares the weights that are not turned.
        norms: all its norms.
        rotations: R [C, C] float64, orthogonal, by stream; R 1 = 1 where a LayerNorm reads it; why_not() is None.
        keep: what holds the new values of the weights, which are turned in float64 and rounded to their own types.
    """
    turned = clone(model)
    values = turned.graph.initializers
    changed: dict[str, None] = {}

    def change(name: str, axis: int, matrix: np.ndarray) -> None:
        array = _multiplied(values[name], axis, matrix)
        let_go(values[name])
        made = keep(name, array)
        set_tensor(values[name], ir.tensor(made, name=name) if isinstance(made, np.ndarray) else made)
        changed[name] = None

    for basis, rotation in rotations.items():
        for name, axis in basis.writers.items():
            change(name, axis, rotation)
        for norm, readers in basis.read.items():
            weight = _array(norm.node.inputs[1]) if len(norm.node.inputs) > 1 else np.ones(basis.channels)
            for name in readers:
                change(name, basis.readers[name], weight[:, None] * rotation)
            heads = [head for head in basis.heads if head.norm is norm]
            if heads and not np.all(weight == 1):
                changed |= dict.fromkeys(_give_heads(turned, heads, rotation.T @ (weight[:, None] * rotation)))
            changed |= dict.fromkeys(_give_weight(turned, norm, weight, rotation))
    return Turned(turned, tuple(_in_clone(norm, turned) for norm in norms), tuple(changed))


def _multiplied(value: ir.Value, axis: int, matrix: np.ndarray) -> np.ndarray:
    """The weight with its axis over the channels multiplied by matrix [C, C], in its own type and shape."""
    tensor = value.const_value
    assert tensor is not None
    stored = tensor.numpy()
    result = np.empty_like(stored)
    rows, new = (np.moveaxis(array, axis, -1) for array in (stored, result))
    if rows.ndim == 1:
        new[:] = (rows.astype(np.float64) @ matrix).astype(stored.dtype)
    else:
        step = max(_BLOCK * len(rows) // max(rows.size, 1), 1)
        for start in range(0, len(rows), step):
            block = rows[start : start + step].astype(np.float64)
            new[start : start + step] = (block @ matrix).astype(stored.dtype)
    return result


def _give_weight(model: ir.Model, norm: LoweredNorm, weight: np.ndarray, rotation: np.ndarray) -> list[str]:
    """Gives a norm in `model` a weight of ones, and a bias for that; the names of both."""
    node = node_in(model, norm)
    old = list(node.inputs[1:])
    arrays = {1: np.ones_like(weight)}
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        bias = _array(node.inputs[2])
        arrays[2] = (np.divide(bias, weight, out=np.zeros_like(bias), where=bias != 0)) @ rotation
    names, given = Names.of(model), []
    for position, array in arrays.items():
        name = names.unique(f"{norm.site_name}.turned.{('weight', 'bias')[position - 1]}")
        value = add_initializer(model.graph, name, array.astype(norm.dtype.numpy()))
        node.replace_input_with(position, value)
        given.append(name)
    for value in filter(None, old):
        if not value.uses() and not value.is_graph_output() and value.is_initializer():
            model.graph.initializers.pop(str(value.name), None)
    return given


def _give_heads(model: ir.Model, heads: Sequence[TiedHead], matrix: np.ndarray) -> list[str]:
    """Multiplies what heads read, behind one norm, by matrix [C, C], an initializer of the head's type; its name."""
    names, stem = Names.of(model), f"{heads[0].norm.site_name}.turned.head"
    dtype = model.graph.initializers[heads[0].weight].dtype
    assert dtype is not None
    value = add_initializer(model.graph, names.unique(f"{stem}.weight"), matrix.astype(dtype.numpy()))
    for head in heads:
        node = next(node for node in model.graph if node.name == head.node)
        x = node.inputs[head.position]
        assert x is not None
        product = Emitter(model.graph, names, node, stem, [node]).op("MatMul", [x, value], output="y", like=x)
        node.replace_input_with(head.position, product)
    return [str(value.name)]


def _array(value: ir.Value | None) -> np.ndarray:
    """A norm's weight or bias in float64."""
    assert value is not None and value.const_value is not None
    return value.const_value.numpy().astype(np.float64)


def _in_clone(norm: LoweredNorm, model: ir.Model) -> LoweredNorm:
    """The norm in a clone of its model, with the weight and bias that it has there."""
    node = node_in(model, norm)
    x = node.inputs[0]
    assert x is not None
    found = dataclasses.replace(norm, node=node, x=x, y=node.outputs[0], skip=sum_operands(x) if norm.skip else None)
    arrays = {}
    for position, name in ((1, "weight"), (2, "bias")):
        value = node.inputs[position] if len(node.inputs) > position else None
        if getattr(norm, name) is not None and value is not None and value.const_value is not None:
            arrays[name] = value.const_value.numpy().astype(np.float32)
    return dataclasses.replace(found, **arrays)  # type: ignore[arg-type]  # arrays alone
