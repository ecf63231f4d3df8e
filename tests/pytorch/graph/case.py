"""One operator as a test case: a model of one node, run in ONNX Runtime and in PyTorch."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch
from onnx import helper, numpy_helper

from dynorm_onnx.pytorch.graph import GraphModule
from dynorm_onnx.pytorch.graph.tensors import array_to_torch
from tests.builders.execute import run_ort

RNG = np.random.default_rng(7)
MS = "com.microsoft"
ONE_BY_ONE = 128  # elements of inputs whose gradients are checked one after the other


def floats(*shape: int, scale: float = 1.0, low: float | None = None) -> np.ndarray:
    """Standard normal, float32; with `low` uniform from there to low + 2, for functions of positive numbers."""
    drawn = RNG.standard_normal(shape) * scale if low is None else RNG.uniform(low, low + 2, shape)
    return drawn.astype(np.float32)


def ints(*values: int, shape: Sequence[int] | None = None) -> np.ndarray:
    """int64, a vector unless a shape is given."""
    array = np.array(values, np.int64)
    return array if shape is None else array.reshape(shape)


def scalar(value: Any) -> np.ndarray:
    """A tensor without axes, int64 or float32."""
    return np.array(value, np.float32 if isinstance(value, float) else np.int64)


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    """A node on inputs; None is an input left out."""

    op: str
    inputs: Sequence[np.ndarray | None]
    attributes: dict[str, Any] = dataclasses.field(default_factory=dict)
    domain: str = ""
    opset: int = 20
    outputs: int = 1
    compared: int | None = None  # outputs, if not all
    gradient: bool = True  # whether it is differentiable, where it takes floats
    tag: str = ""

    @property
    def name(self) -> str:
        return "-".join(part for part in (self.op, self.domain, str(self.opset), self.tag) if part)

    def feeds(self) -> dict[str, np.ndarray]:
        return {f"in{place}": array for place, array in enumerate(self.inputs) if array is not None}

    def model(self) -> onnx.ModelProto:
        names = ["" if array is None else f"in{place}" for place, array in enumerate(self.inputs)]
        outputs = [f"out{place}" for place in range(self.outputs)]
        node = helper.make_node(self.op, names, outputs, name="node", domain=self.domain, **self.attributes)
        graph = helper.make_graph(
            [node],
            "case",
            [
                helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
                for name, array in self.feeds().items()
            ],
            [onnx.ValueInfoProto(name=name) for name in outputs[: self.compared or self.outputs]],
        )
        imports = [helper.make_opsetid("", self.opset)]
        if self.domain:
            imports.append(helper.make_opsetid(self.domain, 1))
        return helper.make_model(graph, opset_imports=imports, ir_version=10)

    def in_onnxruntime(self) -> list[np.ndarray]:
        return run_ort(self.model(), self.feeds())

    def in_pytorch(self, float_type: torch.dtype | None = None) -> list[np.ndarray]:
        module = GraphModule(ir.from_proto(self.model()), float_type=float_type)
        with torch.no_grad():
            outputs = module(**{name: array_to_torch(array) for name, array in self.feeds().items()})
        return [tensor.numpy() for tensor in outputs.values()]

    def gradients_agree(self) -> bool:
        """torch.autograd.gradcheck in double, of every float output by every float input: element by element, or, where
        there are many, along random directions, as PyTorch checks its own operators."""
        module = GraphModule(ir.from_proto(self.model()), float_type=torch.float64)
        feeds = {name: array_to_torch(array) for name, array in self.feeds().items()}
        wide = {name: tensor.double().requires_grad_() for name, tensor in feeds.items() if _varies(tensor)}

        def function(*floats: torch.Tensor) -> tuple[torch.Tensor, ...]:
            outputs = module(**{**feeds, **dict(zip(wide, floats, strict=True))})
            return tuple(out for out in outputs.values() if out.is_floating_point() and out.requires_grad)

        many = sum(tensor.numel() for tensor in wide.values()) > ONE_BY_ONE
        return torch.autograd.gradcheck(function, tuple(wide.values()), eps=1e-6, atol=1e-5, rtol=1e-4, fast_mode=many)


def _varies(tensor: torch.Tensor) -> bool:
    return tensor.is_floating_point() and tensor.numel() > 0


def constant_tensor(array: np.ndarray) -> onnx.TensorProto:
    return numpy_helper.from_array(array)
