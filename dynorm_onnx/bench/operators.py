"""Models that hold one operator, or a chain of it: ONNX Runtime's norms, a copy, and our functions.

All take x [B, T, C]; the Skip forms take skip [B, T, C] too and also give out the sum. B and T are free,
so that one session serves every number of rows.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import onnx
from onnx import helper, numpy_helper

from dynorm_onnx.errors import UsageError
from dynorm_onnx.functions import (
    DOMAIN,
    DOMAIN_VERSION,
    REGISTRY,
    Coupling,
    Form,
    Function,
    NormParameters,
    onnx_function,
)

OPSET = 17  # the first with LayerNormalization
_IR_VERSION = 8
_CACHE_LINE = 64  # bytes
_DRAWN = 2**20  # random numbers of an input; a larger one repeats them
_MICROSOFT = "com.microsoft"

RMS_NORM, LAYER_NORM, COPY = "RMSNorm", "LayerNorm", "copy"

ELEMENT_TYPES = {
    "float32": onnx.TensorProto.FLOAT,
    "float16": onnx.TensorProto.FLOAT16,
    "bfloat16": onnx.TensorProto.BFLOAT16,
    "double": onnx.TensorProto.DOUBLE,
}
"""The types that can be measured, by their name on the command line."""

# Appends one operator to the model: (step number, x, skip or None) -> (y, residual or None).
_Step = Callable[[int, str, str | None], tuple[str, str | None]]


@dataclasses.dataclass(frozen=True)
class OperatorModel:
    """What is measured in one cell of the grid, apart from the rows."""

    channels: int
    dtype: str  # a key of ELEMENT_TYPES
    skip: bool  # the Skip forms
    chain: int  # how many in a row, each on what the one before gave out

    def baseline(self, name: str) -> onnx.ModelProto:
        """ONNX Runtime's fused RMSNORM or LAYER_NORM, or COPY.

        A copy is one Mul by a number: every element is read once and written once. Of a Skip form it is
        one Add: two read, one written, where the operator itself must write a second one.
        """
        builder = _Builder(self)
        steps = {RMS_NORM: builder.rms_norm, LAYER_NORM: builder.layer_norm, COPY: builder.copy}
        return builder.model(steps[name])

    def function(self, name: str, coupled: int = 0) -> onnx.ModelProto:
        """One of our functions, by its name in the registry, with its body; parameters are random.

        `coupled` is how many channels stay in the sum; the plain forms without any.
        """
        if name not in REGISTRY:
            raise UsageError(f"function {name!r} is not one of {', '.join(REGISTRY)}")
        if coupled > self.channels:
            raise UsageError(f"{coupled} coupled channels are more than there are: {self.channels}")
        function, builder = REGISTRY[name], _Builder(self)
        model = builder.model(lambda *step: builder.ours(function, coupled, *step))
        form = Form(self.skip, coupled > 0)
        model.functions.append(onnx_function(function, OPSET, ELEMENT_TYPES[self.dtype], form))
        model.opset_import.append(helper.make_opsetid(DOMAIN, DOMAIN_VERSION))
        return model

    def feeds(self, batch: int, length: int, seed: int = 0) -> dict[str, np.ndarray]:
        """Normally distributed x, and skip, [batch, length, C]; never zeros, which some hardware favours.

        They lie where ONNX Runtime would put them, at whole cache lines; NumPy's own arrays do not.
        """
        rng = np.random.default_rng(seed)
        shape = (batch, length, self.channels)
        dtype = helper.tensor_dtype_to_np_dtype(ELEMENT_TYPES[self.dtype])
        names = ("x", "skip") if self.skip else ("x",)
        drawn = {name: rng.standard_normal(min(math.prod(shape), _DRAWN), np.float32).astype(dtype) for name in names}
        return {name: _at_cache_line(np.resize(values, shape)) for name, values in drawn.items()}


def _at_cache_line(array: np.ndarray) -> np.ndarray:
    """A copy of the array that begins at a whole cache line."""
    room = np.empty(array.nbytes + _CACHE_LINE, np.uint8)
    start = -room.ctypes.data % _CACHE_LINE
    aligned = room[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    aligned[...] = array
    return aligned


def random_parameters(function: Function, channels: int, rng: np.random.Generator, coupled: int = 0) -> NormParameters:
    """Parameters [C] of the size that a norm over C channels of unit variance asks for, so that a chain of
    functions keeps its scale: beta about C, alpha about 1 / sqrt(C), weight about sqrt(C). Each of the `coupled`
    channels, which lie anywhere, has its share of the norm's sum."""
    chosen = np.sort(rng.choice(channels, coupled, replace=False)) if coupled else None
    typical = {"beta": float(channels), "alpha": channels**-0.5}
    return NormParameters(
        weight=math.sqrt(channels) * (1 + 0.1 * rng.standard_normal(channels)),
        bias=0.1 * rng.standard_normal(channels),
        scalars={name: typical.get(name, 0.1) * rng.uniform(0.5, 1.5, channels) for name in function.parameter_names},
        coupling=None if chosen is None else Coupling(chosen, np.full(coupled, 1 / channels)),
    )


class _Builder:
    """A model in the making: nodes and initializers are appended, a chain step at a time."""

    def __init__(self, spec: OperatorModel) -> None:
        self.spec = spec
        self.element_type = ELEMENT_TYPES[spec.dtype]
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.rng = np.random.default_rng(0)

    def model(self, step: _Step) -> onnx.ModelProto:
        """The chain of steps. A Skip form adds its y to the residual stream of the step before."""
        x, y = "x", "skip" if self.spec.skip else None
        for i in range(self.spec.chain):
            if y is None:
                x, _ = step(i, x, None)
            else:
                y, residual = step(i, x, y)
                x = residual or y
        outputs = [x] if y is None or x == y else [y, x]
        inputs = ["x", "skip"] if self.spec.skip else ["x"]
        graph = helper.make_graph(
            self.nodes,
            "operators",
            [self._value(name) for name in inputs],
            [self._value(name) for name in outputs],
            self.initializers,
        )
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(_MICROSOFT, 1)]
        return helper.make_model(graph, ir_version=_IR_VERSION, opset_imports=opsets)

    def rms_norm(self, i: int, x: str, skip: str | None) -> tuple[str, str | None]:
        weight = self._near(f"weight{i}", 1.0)
        if skip is None:
            return self._node("SimplifiedLayerNormalization", [x, weight], i, axis=-1, epsilon=1e-6), None
        return self._skip("SkipSimplifiedLayerNormalization", [x, skip, weight], i, epsilon=1e-6)

    def layer_norm(self, i: int, x: str, skip: str | None) -> tuple[str, str | None]:
        weight, bias = self._near(f"weight{i}", 1.0), self._near(f"bias{i}", 0.0)
        if skip is None:
            return self._node("LayerNormalization", [x, weight, bias], i, axis=-1, epsilon=1e-6), None
        return self._skip("SkipLayerNormalization", [x, skip, weight, bias], i, epsilon=1e-6)

    def copy(self, i: int, x: str, skip: str | None) -> tuple[str, str | None]:
        if skip is not None:
            return self._node("Add", [x, skip], i), None
        return self._node("Mul", [x, self._constant(f"factor{i}", np.array(1 + 0.1 / (i + 1)))], i), None

    def ours(self, function: Function, coupled: int, i: int, x: str, skip: str | None) -> tuple[str, str | None]:
        parameters = random_parameters(function, self.spec.channels, self.rng, coupled)
        operands = [
            self._constant(f"weight{i}", parameters.weight),
            self._constant(f"bias{i}", parameters.bias),
            *(self._float32(f"{name}{i}", values) for name, values in parameters.scalars.items()),
        ]
        if parameters.coupling is not None:
            operands += [
                self._initializer(f"channels{i}", parameters.coupling.channels.astype(np.int64)),
                self._float32(f"coupling{i}", parameters.coupling.strengths),
            ]
        op_type = function.node_type(Form(self.spec.skip, coupled > 0))
        if skip is None:
            return self._node(op_type, [x, *operands], i, domain=DOMAIN), None
        y, residual = f"y{i}", f"residual{i}"
        self.nodes.append(helper.make_node(op_type, [x, skip, *operands], [y, residual], domain=DOMAIN))
        return y, residual

    def _skip(self, op_type: str, inputs: list[str], i: int, **attributes: float) -> tuple[str, str]:
        y, residual = f"y{i}", f"residual{i}"
        outputs = [y, "", "", residual]
        self.nodes.append(helper.make_node(op_type, inputs, outputs, domain=_MICROSOFT, **attributes))
        return y, residual

    def _node(self, op_type: str, inputs: list[str], i: int, **attributes: object) -> str:
        self.nodes.append(helper.make_node(op_type, inputs, [f"y{i}"], **attributes))
        return f"y{i}"

    def _near(self, name: str, centre: float) -> str:
        """A vector [C] of the model's type about `centre`."""
        return self._constant(name, centre + 0.1 * self.rng.standard_normal(self.spec.channels))

    def _float32(self, name: str, values: np.ndarray) -> str:
        return self._initializer(name, values.astype(np.float32))

    def _constant(self, name: str, values: np.ndarray) -> str:
        return self._initializer(name, values.astype(helper.tensor_dtype_to_np_dtype(self.element_type)))

    def _initializer(self, name: str, values: np.ndarray) -> str:
        self.initializers.append(numpy_helper.from_array(values, name))
        return name

    def _value(self, name: str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, self.element_type, ["B", "T", self.spec.channels])
