"""A LayerNorm of a centred input written as an RMSNorm; its bias moves into the layers behind it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from dynorm_onnx.graph.edit.emit import inherit, remove_dead, set_tensor, take_over
from dynorm_onnx.graph.fold.readers import layers_reading
from dynorm_onnx.graph.linear.linear_layer import LinearLayer
from dynorm_onnx.graph.lower import LoweredNorm
from dynorm_onnx.graph.lower.bodies import DOMAIN, add_norm_function


@dataclasses.dataclass(frozen=True, eq=False)
class BiasPlace:
    """A bias (of a linear layer) that can take in what another bias in front of the layer adds."""

    layer: LinearLayer
    bias: ir.Value

    @classmethod
    def of(cls, layer: LinearLayer) -> BiasPlace | None:
        """None where the layer has no bias of its own."""
        return None if layer.bias is None else cls(layer, layer.bias)

    def take_in(self, bias: np.ndarray) -> None:
        """Adds bias [in] x W to the layer's bias."""
        tensor = self.bias.const_value
        assert tensor is not None
        added = bias.astype(np.float64) @ self.layer.matrix() / self.layer.bias_scale
        stored = tensor.numpy()
        total = stored.astype(np.float64) + added.reshape(stored.shape)
        set_tensor(self.bias, ir.tensor(total.astype(stored.dtype), name=self.bias.name))


def bias_places(norm: LoweredNorm, layers: Sequence[LinearLayer]) -> tuple[BiasPlace, ...] | str:
    """Where the bias of a norm can go: nowhere if it is zero; or a sentence that says why it cannot."""
    bias = _bias(norm)
    if bias is None or not np.any(bias):
        return ()
    readers = layers_reading(norm.y, layers)
    if isinstance(readers, str):
        return f"its bias cannot move on: {readers}"
    places = [BiasPlace.of(layer) for layer in readers]
    without = next((layer for layer, place in zip(readers, places, strict=True) if place is None), None)
    if without is not None:
        return f"its bias cannot move on: the layer of '{without.name}' has no bias of its own"
    return tuple(place for place in places if place is not None)


def to_rms(
    model: ir.Model, norm: LoweredNorm, places: Sequence[BiasPlace], norms: Sequence[LoweredNorm]
) -> LoweredNorm:
    """Puts an RMSNorm in the place of a LayerNorm whose input is centred; `norms` are all of the model."""
    bias = _bias(norm)
    for place in places:
        assert bias is not None
        place.take_in(bias)
    old = norm.node
    if model.opset_imports[""] >= 23 and norm.dtype != ir.DataType.BFLOAT16:
        attributes = {"epsilon": norm.epsilon, "axis": -1}
        node = ir.node("RMSNormalization", old.inputs[:2], attributes, name=old.name)
    else:
        op_type = add_norm_function(model, "rms", {other.dtype for other in norms})
        node = ir.node(op_type, old.inputs[:2], {"epsilon": norm.epsilon}, domain=DOMAIN, name=old.name)
    inherit(node, [old])
    model.graph.insert_before(old, node)
    take_over(old.outputs[0], node.outputs[0])
    remove_dead([old])
    return dataclasses.replace(norm, kind="rms", node=node, y=node.outputs[0], bias=None)


def _bias(norm: LoweredNorm) -> np.ndarray | None:
    """As the model has it; LoweredNorm.bias is float32."""
    value = norm.node.inputs[2] if norm.bias is not None else None
    return None if value is None or value.const_value is None else value.const_value.numpy()
