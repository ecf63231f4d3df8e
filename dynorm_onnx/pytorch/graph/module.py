"""GraphModule: an ONNX graph as a PyTorch module, its weights as parameters."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from onnx_ir.passes.common import InlinePass
from torch import nn
from torch.utils.checkpoint import checkpoint

from dynorm_onnx.errors import DataError, ModelError
from dynorm_onnx.graph.files.model_io import clone
from dynorm_onnx.pytorch.graph.basis import GraphBasis
from dynorm_onnx.pytorch.graph.blocks import Block, blocks
from dynorm_onnx.pytorch.graph.functions import FunctionStep, function_steps, separate_sums
from dynorm_onnx.pytorch.graph.known import require_known
from dynorm_onnx.pytorch.graph.operators import OPERATORS
from dynorm_onnx.pytorch.graph.program import Step, Values, compile_graph
from dynorm_onnx.pytorch.graph.segments import Segment, segments
from dynorm_onnx.pytorch.graph.tail import Tail, cut_tail
from dynorm_onnx.pytorch.graph.tensors import to_array, to_torch
from dynorm_onnx.pytorch.graph.weights import find_weights


class GraphModule(nn.Module):
    """Computes what the graph computes, with autograd.

    Args:
        model: as dynorm_onnx.graph.files.model_io.load() gives it; not changed. Local functions that have an
            operator here (the functions of this package, ONNX Runtime's norms) run as that, others inlined.
        float_type: the type that all floats are computed in, whatever the graph says (constants and casts
            included); None leaves every value its own type.
        checkpointing: in training keep only what crosses the borders of blocks, and compute the rest again.
        tail: the output of logits, to be made by run_tail() from tail.source, which is given out in its place, if the
            graph has a tail (tail.py).

    Every float initializer is a parameter; those that are no weights (weights.py tells) need no gradient.
    Raises ModelError for operators or types that are not supported, naming all of them.
    """

    def __init__(
        self,
        model: ir.Model,
        *,
        float_type: torch.dtype | None = None,
        checkpointing: bool = False,
        tail: str | None = None,
    ) -> None:
        super().__init__()
        flat = _inlined(model)
        require_known(flat)
        graph = flat.graph
        self.float_type = float_type
        self.checkpointing = checkpointing
        self._weights = find_weights(graph)
        self._own_types: dict[str, np.dtype] = {}
        self._keys: dict[str, str] = {}  # initializer -> name of the parameter
        for name, value in graph.initializers.items():
            tensor = value.const_value
            if tensor is None:
                raise ModelError(f"The weight {name!r} holds no data.")
            if tensor.dtype in (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE):
                self._own_types[name] = tensor.dtype.numpy()
                self._add_parameter(name, to_torch(tensor, float_type))
        self._bases = nn.ModuleList()
        self._logarithms = frozenset(n for n in self._weights.positive if self._stored_by_logarithm(n))
        self.program = compile_graph(graph, flat.opset_imports, float_type, frozenset(self._keys))
        self.tail: Tail | None = None
        held = {name: self.parameter(name) for name in self._keys}
        if tail is not None and (parts := cut_tail(self.program, held, tail)) is not None:
            self.program, self.tail = parts
        self._segments: tuple[Segment, ...] = segments(self.program, self._weights.activations)

    @property
    def input_names(self) -> tuple[str, ...]:
        """Of the graph, in its order."""
        return self.program.inputs

    def forward(self, **inputs: torch.Tensor) -> dict[str, Any]:
        """The outputs by name, from the inputs by name: both of the shapes and types that the graph says, floats of
        `float_type` where that is given.

        Raises DataError for an input that is missing, ModelError, naming the node, for one that fails.
        """
        missing = [name for name in self.program.inputs if name not in inputs]
        if missing:
            raise DataError(f"the model takes {missing[0]!r}, which was not given")
        fixed: Values = {**self.program.constants, **self._values()}
        values: Values = {name: self._as_float_type(inputs[name]) for name in self.program.inputs}
        if self.checkpointing and torch.is_grad_enabled():
            self._run_in_segments(fixed, values)
        else:
            values = {**fixed, **values}
            self.program.run(values)
        return {name: values[name] if name in values else fixed[name] for name in self.program.outputs}

    def parameter(self, name: str) -> nn.Parameter:
        """What is stored for an initializer: its logarithm where it is one of the logarithms()."""
        parameter = self._parameters[self._keys[name]]
        assert isinstance(parameter, nn.Parameter)
        return parameter

    def learned(self) -> dict[str, nn.Parameter]:
        """The weights, parameters of norms included, by the names of their initializers."""
        return {name: self.parameter(name) for name in self._keys if name in self._weights.learned}

    def tables(self) -> list[nn.Parameter]:
        """Those of the weights that token ids index, [tokens, channels]."""
        return [self.parameter(name) for name in self._keys if name in self._weights.tables]

    def learn_basis(self, channels: int, writers: Mapping[str, int], readers: Mapping[str, int]) -> None:
        """Puts a basis that is learned, the identity at first, between parameters and what the graph computes with.

        `writers` and `readers` are initializers, each with its axis over the channels.
        """
        self._bases.append(GraphBasis(channels, writers, readers))

    def bases(self) -> dict[str, nn.Parameter]:
        """What is learned of each basis, by a name of its own."""
        return {f"basis {place}": found.basis.change for place, found in enumerate(self._learned_bases())}

    def changed(self) -> list[str]:
        """The initializers that training may change: those that are learned, and those that a basis moves."""
        moved = {name for basis in self._learned_bases() for name in (*basis.writers, *basis.readers)}
        return [name for name in self._keys if name in self._weights.learned or name in moved]

    def norm_parameters(self) -> list[nn.Parameter]:
        """The parameters of the functions that stand in for norms."""
        return [self.parameter(name) for name in self._keys if name in self._weights.norms]

    def logarithms(self) -> list[nn.Parameter]:
        """Those of the norm_parameters() that hold the logarithm of their initializer."""
        return [self.parameter(name) for name in self._logarithms]

    def tail_values(self) -> Values:
        """The weights that the tail computes with, to be got once for all of its rows."""
        assert self.tail is not None
        values: Values = {name: self._value(name) for name in self.tail.parameters}
        for basis in self._learned_bases():
            values.update(basis.changed(values))
        return values

    def run_tail(self, rows: torch.Tensor, values: Values) -> torch.Tensor:
        """Logits [..., V] of rows [..., C] of the tail's source, in their type; `values` are the tail_values()."""
        assert self.tail is not None
        local = {**self.tail.program.constants, **values, self.tail.source: rows}
        self.tail.program.run(local)
        logits: torch.Tensor = local[self.tail.output]
        return logits

    def blocks(self, borders: Collection[str]) -> tuple[Block, ...]:
        """The graph in blocks that end at values of these names."""
        return blocks(self.program, self._segments, self._weights, borders)

    def run_until(self, values: Mapping[str, Any], start: int, stop: int) -> Values:
        """What steps from `start` to before `stop` make of what was left before them, as far as later steps read it."""
        local = {**self.program.constants, **self._values(), **{n: self._as_float_type(v) for n, v in values.items()}}
        self.program.run(local, start, stop)
        later = {name for step in self.program.steps[stop:] for name in step.reads}
        return {name: local[name] for name in later if name in local and name not in self._keys}

    def place_of(self, value: str) -> int:
        """The place behind the step that makes a value. Raises StopIteration where none does."""
        return next(place for place, step in enumerate(self.program.steps, 1) if value in step.outputs)

    def functions(self) -> tuple[FunctionStep, ...]:
        """The functions that stand in for norms."""
        return function_steps(self.program)

    def constant(self, name: str) -> torch.Tensor:
        """An initializer `name` that holds no floats, in its own shape and type."""
        return self.program.constants[name]

    def run_functions(self, inputs: Mapping[str, torch.Tensor]) -> Iterator[tuple[FunctionStep, torch.Tensor]]:
        """Every function and its x [..., C], in its type, while the graph runs on a batch without gradients."""
        functions = {id(found.step): found for found in self.functions()}
        for step, values in self._run_steps(inputs):
            if id(step) in functions:
                found = functions[id(step)]
                yield found, values[found.inputs["X"]]

    def activation_bytes(self, inputs: Mapping[str, torch.Tensor]) -> int:
        """About what a training pass over one batch of inputs, of the graph's shapes and types, keeps, in bytes: all
        activations that the graph makes."""
        total = 0
        for step, values in self._run_steps(inputs):
            made = [values.get(name) for name in step.outputs if name in self._weights.activations]
            total += sum(tensor.numel() * tensor.element_size() for tensor in made if isinstance(tensor, torch.Tensor))
        return total

    @torch.no_grad()
    def _run_steps(self, inputs: Mapping[str, torch.Tensor]) -> Iterator[tuple[Step, Values]]:
        """Every step when it has run, with the values that are there then."""
        values: Values = {**self.program.constants, **self._values()}
        values.update({name: self._as_float_type(tensor) for name, tensor in inputs.items()})
        for step in self.program.steps:
            step.run(values)
            yield step, values
            for name in step.free:
                values.pop(name, None)

    @torch.no_grad()
    def wide_initializers(self, names: Collection[str]) -> dict[str, np.ndarray]:
        """The values of weights by initializer, float64, in their own shapes."""
        values = self._values()
        return {name: to_array(values[name], np.dtype(np.float64)) for name in names}

    def initializers(self, names: Collection[str] | None = None) -> dict[str, np.ndarray]:
        """The values of the weights by initializer, each in its own shape and type; of `names` only, if given."""
        wanted = self.changed() if names is None else names
        with torch.no_grad():
            values = self._values()
            return {name: to_array(values[name], self._own_types[name]) for name in wanted}

    def _add_parameter(self, name: str, tensor: torch.Tensor) -> None:
        key = name.replace(".", "/") or "/"
        while key in self._parameters or hasattr(self, key):
            key += "/"
        self._keys[name] = key
        self.register_parameter(key, nn.Parameter(tensor, requires_grad=name in self._weights.learned))

    @torch.no_grad()
    def _stored_by_logarithm(self, name: str) -> bool:
        """Makes a parameter that must stay positive its logarithm; one that is not positive stays as it is.

        Of a strength that is zero, and then stays so, that is -inf.
        """
        parameter = self.parameter(name)
        positive = parameter >= 0 if name in self._weights.couplings else parameter > 0
        if not bool(positive.all()):
            return False
        parameter.log_()
        return True

    def _learned_bases(self) -> list[GraphBasis]:
        return [basis for basis in self._bases if isinstance(basis, GraphBasis)]

    def _values(self) -> Values:
        """All float initializers, as the graph computes with them."""
        values: Values = {name: self._value(name) for name in self._keys}
        for basis in self._learned_bases():
            values.update(basis.changed(values))
        return values

    def _value(self, name: str) -> torch.Tensor:
        parameter = self.parameter(name)
        return parameter.exp() if name in self._logarithms else parameter

    def _as_float_type(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(self.float_type) if self.float_type is not None and tensor.is_floating_point() else tensor

    def _run_in_segments(self, fixed: Values, values: Values) -> None:
        def run(segment: Segment, given: Values) -> Values:
            local = {**fixed, **given}
            self.program.run(local, segment.start, segment.stop)
            return {name: local[name] for name in segment.outputs}

        for segment in self._segments:
            given = {name: values[name] for name in segment.inputs if name in values}
            values.update(checkpoint(run, segment, given, use_reentrant=False))
            for name in segment.free:
                values.pop(name, None)


def _inlined(model: ir.Model) -> ir.Model:
    """A clone without local functions but those that have an operator here, and without Skip forms of ours."""
    flat = clone(model)
    for function in flat.functions.values():
        for domain, version in function.opset_imports.items():
            flat.opset_imports.setdefault(domain, version)
            function.opset_imports[domain] = flat.opset_imports[domain]
    separate_sums(flat.graph)
    InlinePass(criteria=lambda function: (function.domain, function.name) not in OPERATORS)(flat)
    flat.graph.sort()
    return flat
