"""Small models of dynorm nodes, with and without function bodies, for the tests of the custom-op library."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from dynorm_onnx.functions import DOMAIN, DOMAIN_VERSION, OPERATORS, Coupling, Form, Function, onnx_function

OPSET = 18
IR_VERSION = 9
NUMPY_TYPE = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "double": np.dtype(np.float64),
}
ONNX_TYPE = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "bfloat16": TensorProto.BFLOAT16,
    "double": TensorProto.DOUBLE,
}
every_operator = pytest.mark.parametrize("op_type", OPERATORS)
every_coupled = pytest.mark.parametrize("op_type", [name for name, (_, form) in OPERATORS.items() if form.coupled])


@dataclasses.dataclass(frozen=True)
class Node:
    """One dynorm node: its operator, its type and its parameters' shape; `coupled` counts in the coupled forms only."""

    op_type: str
    dtype: str = "float32"
    channels: int = 48
    parameter_size: int = 1
    coupled: int = 4

    @property
    def kind(self) -> Function:
        return OPERATORS[self.op_type][0]

    @property
    def form(self) -> Form:
        return OPERATORS[self.op_type][1]

    @property
    def skip(self) -> bool:
        return self.form.skip

    @property
    def outer_type(self) -> str:
        """The type of the model's inputs and outputs, which numpy must know."""
        return "double" if self.dtype == "double" else "float32"

    def parameters(self) -> dict[str, np.ndarray]:
        """weight and bias [C] of the node's type, the function's own parameters in float32, then what is coupled."""
        random = np.random.default_rng(3)
        dtype = NUMPY_TYPE[self.dtype]
        values = {name: random.normal(size=self.channels).astype(dtype) for name in ("weight", "bias")}
        for name in self.kind.parameter_names:
            values[name] = random.uniform(0.3, 2.0, size=self.parameter_size).astype(np.float32)
        if self.form.coupled:
            chosen = random.choice(self.channels, min(self.coupled, self.channels), replace=False)
            values["channels"] = chosen.astype(np.int64)
            values["coupling"] = random.uniform(0, 1, chosen.size).astype(np.float32)
        return values

    def feeds(self, *leading: int) -> dict[str, np.ndarray]:
        """x (and skip) [*leading, C], on the grid of the node's type but in the model's outer type."""
        random = np.random.default_rng(5)
        names = ("x", "skip") if self.skip else ("x",)
        return {name: self.rounded(3 * random.normal(size=(*leading, self.channels))) for name in names}

    def rounded(self, values: np.ndarray) -> np.ndarray:
        """Values of the node's type, in the model's outer type."""
        return values.astype(NUMPY_TYPE[self.dtype]).astype(NUMPY_TYPE[self.outer_type])

    def expected(self, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        """Y (and residual) in float64, by the definition."""
        x = feeds["x"]
        if self.skip:
            x = self.rounded(x + feeds["skip"])
        y = self.function_of(x, self.parameters())
        return [y, x.astype(np.float64)] if self.skip else [y]

    def function_of(self, x: np.ndarray, parameters: dict[str, np.ndarray]) -> np.ndarray:
        """Y by the definition, in float64, with these parameters."""
        wide = {name: value.astype(np.float64) for name, value in parameters.items() if name != "channels"}
        x = x.astype(np.float64)
        if self.form.coupled:
            x = Coupling(parameters["channels"], wide.pop("coupling")).applied(x)
        return self.kind.reference(x, **wide)


def model_of(
    node: Node,
    *,
    with_body: bool = False,
    shape: tuple[int | str | None, ...] | None = None,
    constants: bool = True,
    casts: bool = True,
) -> onnx.ModelProto:
    """A model of this node alone, between casts from and to a type that numpy has.

    Args:
        node: what to build.
        with_body: carry the function body, so that the model also runs without the library.
        shape: the declared shape of x and skip; two symbolic axes and the channels where it is None.
        constants: the parameters are initializers; otherwise they are inputs of the model.
        casts: False leaves the casts out: inputs and outputs have the node's type.
    """
    inner = ONNX_TYPE[node.dtype]
    outer = ONNX_TYPE[node.outer_type] if casts else inner
    ending = "_inner" if casts else ""
    shape = shape or ("batch", "sequence", node.channels)
    streams = ["x", "skip"] if node.skip else ["x"]
    results = ["y", "residual"] if node.skip else ["y"]
    parameters = node.parameters()
    inputs = [helper.make_tensor_value_info(name, outer, shape) for name in streams]
    if not constants:
        inputs += [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), None)
            for name, value in parameters.items()
        ]
    into = [helper.make_node("Cast", [name], [f"{name}_inner"], to=inner) for name in streams]
    out = [helper.make_node("Cast", [f"{name}_inner"], [name], to=outer) for name in results]
    operands = [*(f"{name}{ending}" for name in streams), *parameters]
    one = helper.make_node(node.op_type, operands, [f"{name}{ending}" for name in results], domain=DOMAIN)
    graph = helper.make_graph(
        [*into, one, *out] if casts else [one],
        "one_node",
        inputs,
        [helper.make_tensor_value_info(name, outer, None) for name in results],
        [numpy_helper.from_array(value, name) for name, value in parameters.items()] if constants else [],
    )
    functions = [onnx_function(node.kind, OPSET, inner, node.form)] if with_body else []
    imports = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, DOMAIN_VERSION)]
    return helper.make_model(graph, functions=functions, opset_imports=imports, ir_version=IR_VERSION)


def chain_of(node: Node, length: int) -> onnx.ModelProto:
    """`length` Skip nodes in a row: each takes the last Y as skip and the last residual as X; float32."""
    assert node.skip and node.dtype == "float32"
    parameters = node.parameters()
    stream, last, nodes = "x", "skip", []
    for i in range(length):
        y, residual = (f"y{i}", f"residual{i}") if i < length - 1 else ("y", "residual")
        nodes.append(helper.make_node(node.op_type, [stream, last, *parameters], [y, residual], domain=DOMAIN))
        stream, last = residual, y
    shape = ["batch", "sequence", node.channels]
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("x", "skip")],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("y", "residual")],
        [numpy_helper.from_array(value, name) for name, value in parameters.items()],
    )
    imports = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, DOMAIN_VERSION)]
    return helper.make_model(graph, opset_imports=imports, ir_version=IR_VERSION)


def check_chain(op_type: str, session_of: Callable[[onnx.ModelProto], Any]) -> None:
    """Twelve Skip nodes, which may write over what they read, give the bits that they give one by one."""
    node = Node(op_type, channels=256)
    feeds = node.feeds(8, 64)
    alone = session_of(model_of(node))
    y, residual = feeds["skip"], feeds["x"]
    for _ in range(12):
        y, residual = alone.run(None, {"x": residual, "skip": y})
    outputs = session_of(chain_of(node, 12)).run(None, feeds)
    np.testing.assert_array_equal(outputs[0], y)
    np.testing.assert_array_equal(outputs[1], residual)


def model_of_all(length: int = 3) -> onnx.ModelProto:
    """Every operator in every type in one model, each `length` times in a row, so that those between write in place.

    The inputs are x_TYPE and skip_TYPE [rows, 48], the outputs y_OPERATOR_TYPE and residual_OPERATOR_TYPE.
    """
    nodes, parameters, inputs, outputs = [], [], [], []
    for dtype, code in ONNX_TYPE.items():
        inputs += [
            helper.make_tensor_value_info(f"{name}_{dtype}", code, ["rows", Node("DyT").channels])
            for name in ("x", "skip")
        ]
        for op_type in OPERATORS:
            node, ending = Node(op_type, dtype), f"{op_type}_{dtype}"
            results = [f"y_{ending}", f"residual_{ending}"][: 1 + node.skip]
            outputs += [helper.make_tensor_value_info(name, code, None) for name in results]
            named = {f"{name}_{ending}": value for name, value in node.parameters().items()}
            parameters += [numpy_helper.from_array(value, name) for name, value in named.items()]
            streams = [f"x_{dtype}", f"skip_{dtype}"][: 1 + node.skip]
            for i in range(length):
                made = [f"{name}_{i}" for name in results] if i < length - 1 else results
                nodes.append(helper.make_node(op_type, [*streams, *named], made, domain=DOMAIN))
                streams = made
    graph = helper.make_graph(nodes, "every_operator", inputs, outputs, parameters)
    imports = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, DOMAIN_VERSION)]
    return helper.make_model(graph, opset_imports=imports, ir_version=IR_VERSION)
