"""A small builder of ONNX graphs that knows the dtype and the opset which a test asks for.

It hides what changes with the opset (the axes of ReduceMean), names every value, and keeps the
arrays of the parameters, so that a definition in float64 can be computed beside the graph.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper

ELEMENT = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "bfloat16": TensorProto.BFLOAT16,
    "double": TensorProto.DOUBLE,
    "int64": TensorProto.INT64,
    "int32": TensorProto.INT32,
}
NUMPY = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "double": np.dtype(np.float64),
    "int64": np.dtype(np.int64),
    "int32": np.dtype(np.int32),
}
CONTRIB = "com.microsoft"


#: since when the axes of a reduction are an input
_AXES_INPUT_SINCE = {"ReduceSum": 13}


def tensor(name: str, array: np.ndarray) -> TensorProto:
    """The array as a TensorProto; bfloat16 comes as ml_dtypes' type."""
    array = np.asarray(array)
    element = TensorProto.BFLOAT16 if array.dtype == ml_dtypes.bfloat16 else None
    element = element or helper.np_dtype_to_tensor_dtype(array.dtype)
    return helper.make_tensor(name, element, array.shape, array.tobytes(), raw=True)


class Graph:
    """Nodes, initializers, inputs and outputs in the order in which a form writes them."""

    def __init__(self, dtype: str, opset: int, *, named: bool = True, seed: str = "") -> None:
        self.dtype, self.opset, self.named = dtype, opset, named
        self.rng = np.random.default_rng(zlib.crc32(seed.encode()))
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[TensorProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []
        self.functions: list[onnx.FunctionProto] = []
        self.imports: dict[str, int] = {"": opset}
        self.feeds: dict[str, np.ndarray] = {}
        self.params: dict[str, np.ndarray] = {}
        self.ir_version = 10 if opset > 20 else 8
        self._count = 0

    def fresh(self, stem: str) -> str:
        self._count += 1
        return f"{stem.lower()}_{self._count}"

    def op(self, op_type: str, *inputs: str, outputs: int | Sequence[str] = 1, domain: str = "", **attrs: Any) -> Any:
        """Add a node; the name of its output, or the list of names where `outputs` is not 1."""
        names = [self.fresh(op_type) for _ in range(outputs)] if isinstance(outputs, int) else list(outputs)
        name = f"/{self.fresh(op_type)}" if self.named else ""
        self.nodes.append(helper.make_node(op_type, inputs, names, name=name, domain=domain, **attrs))
        if domain:
            self.imports.setdefault(domain, 1)
        return names[0] if len(names) == 1 else names

    def initializer(self, array: Any, name: str = "", dtype: str | None = None) -> str:
        name = name or self.fresh("const")
        self.initializers.append(tensor(name, np.asarray(array).astype(NUMPY[dtype or self.dtype])))
        return name

    def ints(self, *values: int) -> str:
        return self.initializer(np.array(values, np.int64), dtype="int64")

    def scalar(self, value: float, dtype: str | None = None) -> str:
        return self.initializer(np.array(value), dtype=dtype)

    def constant(self, array: Any, dtype: str | None = None) -> str:
        """The same as a Constant node."""
        value = tensor("", np.asarray(array).astype(NUMPY[dtype or self.dtype]))
        return self.op("Constant", value=value)

    def values(self, name: str, shape: Sequence[int], low: float, high: float, dtype: str | None = None) -> Any:
        """Random values, rounded to the type, kept in `params[name]`."""
        array = np.asarray(self.rng.uniform(low, high, shape)).astype(NUMPY[dtype or self.dtype])
        self.params[name] = array
        return array

    def weight(self, *shape: int, dtype: str | None = None, name: str = "weight") -> str:
        return self.initializer(self.values(name, shape, 0.5, 1.5, dtype), name=name, dtype=dtype)

    def bias(self, *shape: int, dtype: str | None = None, name: str = "bias") -> str:
        return self.initializer(self.values(name, shape, -0.5, 0.5, dtype), name=name, dtype=dtype)

    def cast(self, x: str, dtype: str) -> str:
        return self.op("Cast", x, to=ELEMENT[dtype])

    def reduce(self, op_type: str, x: str, axes: Sequence[int] | None, keepdims: int = 1) -> str:
        """A reduction with its axes where this opset wants them; None means that none are given."""
        attrs = {} if keepdims else {"keepdims": 0}
        if axes is None:
            return self.op(op_type, x, **attrs)
        if self.opset >= _AXES_INPUT_SINCE.get(op_type, 18):
            return self.op(op_type, x, self.ints(*axes), **attrs)
        return self.op(op_type, x, axes=list(axes), **attrs)

    def unsqueeze(self, x: str, axis: int) -> str:
        if self.opset >= 13:
            return self.op("Unsqueeze", x, self.ints(axis))
        return self.op("Unsqueeze", x, axes=[axis])

    def input(self, name: str, array: np.ndarray, shape: Sequence[int | str] | None = None) -> str:
        """A graph input that is fed with `array`; `shape` may have symbolic dimensions."""
        array = np.asarray(array)
        dtype = next(key for key, value in NUMPY.items() if value == array.dtype)
        declared = array.shape if shape is None else shape
        self.inputs.append(helper.make_tensor_value_info(name, ELEMENT[dtype], declared))
        self.feeds[name] = array
        return name

    def normal_input(self, name: str, shape: Sequence[int], declared: Sequence[int | str] | None = None) -> str:
        array = self.rng.normal(0.0, 1.0, shape).astype(NUMPY[self.dtype])
        return self.input(name, array, declared)

    def output(self, value: str, name: str = "", dtype: str | None = None) -> str:
        """Make `value` a graph output, through an Identity where it shall have another name."""
        name = name or value
        if name != value:
            self.op("Identity", value, outputs=[name])
        self.outputs.append(helper.make_tensor_value_info(name, ELEMENT[dtype or self.dtype], None))
        return name

    def model(self) -> onnx.ModelProto:
        graph = helper.make_graph(self.nodes, "graph", self.inputs, self.outputs, self.initializers)
        imports = [helper.make_opsetid(domain, version) for domain, version in self.imports.items()]
        return helper.make_model(graph, opset_imports=imports, ir_version=self.ir_version, functions=self.functions)
