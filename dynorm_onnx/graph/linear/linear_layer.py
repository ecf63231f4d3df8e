"""One linear layer, y = x W + b, whatever the file's spelling of it."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir

from dynorm_onnx.graph.linear.layer_label import layer_label
from dynorm_onnx.graph.quantised import Grid, QuantisedWeight


@dataclasses.dataclass(frozen=True, eq=False)
class Residual:
    """Where a layer's output is added to the stream: total = output + stream."""

    stream: ir.Value
    total: ir.Value


@dataclasses.dataclass(frozen=True)
class FloatWeight:
    """A weight as an initializer of floats: [K, N], or [N, K] where `transposed` (and more ones behind, for Conv)."""

    value: ir.Value
    transposed: bool

    @property
    def shape(self) -> tuple[int, int]:
        """[K, N]."""
        assert self.value.shape is not None  # that of an initializer is always known
        sizes = [size for size in self.value.shape if isinstance(size, int)]
        return (sizes[1], sizes[0]) if self.transposed else (sizes[0], sizes[1])

    @property
    def values(self) -> tuple[ir.Value, ...]:
        """The initializers that a new matrix changes."""
        return (self.value,)

    def matrix(self) -> np.ndarray:
        """[K, N] float64."""
        assert self.value.const_value is not None
        array = self.value.const_value.numpy().astype(np.float64)
        array = array.reshape(array.shape[:2])
        return array.T if self.transposed else array

    def stored(self, matrix: np.ndarray) -> dict[str, np.ndarray]:
        """The initializer, by name, for a matrix [K, N]."""
        assert self.value.const_value is not None
        return {str(self.value.name): _like(self.value.const_value, matrix.T if self.transposed else matrix)}


@dataclasses.dataclass(frozen=True, eq=False)
class LinearLayer:
    """One layer; its weight is stored in initializers that nothing else reads.

    `feature_axis` is the axis of x that is summed over and of y that is made; y = scale x W + b.
    """

    node: ir.Node
    x: ir.Value
    feature_axis: int
    stored: FloatWeight | QuantisedWeight  # W
    scale: float
    bias: ir.Value | None  # an initializer [out] that nothing else reads
    bias_scale: float
    nodes: tuple[ir.Node, ...]  # the node, what else reads what may change, and the Add of the bias
    y: ir.Value | None  # behind the bias; None where it stays inside the operator
    residual: Residual | None

    @property
    def weight(self) -> ir.Value:
        """The initializer of the weight, of its whole numbers where it is quantised."""
        return self.stored.value

    @property
    def transposed(self) -> bool:
        """Whether the weight's data is [out, in]."""
        return self.stored.transposed

    @property
    def name(self) -> str:
        """The weight's."""
        return str(self.weight.name)

    @property
    def label(self) -> str:
        """What people call it; `name` is the key."""
        return layer_label(self.node, self.weight)

    @property
    def inputs(self) -> int:
        """How many features x has."""
        return self.stored.shape[0]

    @property
    def outputs(self) -> int:
        """How many features y has."""
        return self.stored.shape[1]

    @property
    def parts(self) -> tuple[slice, ...]:
        """The outputs of each matrix that the weight holds side by side: of queries, keys and values in Attention."""
        if self.node.op_type != "Attention" or self.is_quantised:
            return (slice(0, self.outputs),)
        sizes = self.node.attributes.get("qkv_hidden_sizes")
        ends = np.cumsum(sizes.as_ints() if sizes is not None else 3 * [self.outputs // 3]).tolist()
        return tuple(slice(start, end) for start, end in zip([0, *ends], ends, strict=False))

    @property
    def initializers(self) -> tuple[ir.Value, ...]:
        """All that a re-fit may change."""
        return self.stored.values if self.bias is None else (*self.stored.values, self.bias)

    @property
    def is_quantised(self) -> bool:
        """Whether matrix() can only have the values of a grid."""
        return isinstance(self.stored, QuantisedWeight)

    @property
    def has_free_scales(self) -> bool:
        """Whether the scales of that grid may change."""
        return isinstance(self.stored, QuantisedWeight) and self.stored.scales is not None

    def matrix(self) -> np.ndarray:
        """The weight as [in, out] float64, scale included."""
        return self.scale * self.stored.matrix()

    def grid(self) -> Grid | None:
        """The values that matrix() may have; None where they may be any."""
        return self.stored.grid(self.scale) if isinstance(self.stored, QuantisedWeight) else None

    def offset(self) -> np.ndarray:
        """The bias as [out] float64, scale included; zeros where there is none."""
        if self.bias is None:
            return np.zeros(self.outputs)
        assert self.bias.const_value is not None
        return self.bias_scale * self.bias.const_value.numpy().astype(np.float64).reshape(-1)

    def parameters(self) -> np.ndarray:
        """matrix(), and offset() as a last row if the layer has a bias: [in (+ 1), out]."""
        return np.vstack([self.matrix(), self.offset()]) if self.bias is not None else self.matrix()

    def stored_parameters(self, parameters: np.ndarray, grid: Grid | None = None) -> dict[str, np.ndarray]:
        """What parameters() gave (changed), by initializer, each in its own type and shape. A quantised weight is
        rounded to `grid`, by default to its own."""
        matrix = parameters[: self.inputs]
        if isinstance(self.stored, QuantisedWeight):
            arrays = self.stored.stored(matrix, self.stored.grid(self.scale) if grid is None else grid)
        else:
            arrays = self.stored.stored(matrix / self.scale)
        if self.bias is not None and self.bias.const_value is not None:
            offset = parameters[self.inputs] / self.bias_scale
            arrays[str(self.bias.name)] = _like(self.bias.const_value, offset)
        return arrays


def _like(tensor: ir.TensorProtocol, array: np.ndarray) -> np.ndarray:
    return array.reshape(tensor.shape.numpy()).astype(tensor.dtype.numpy())
