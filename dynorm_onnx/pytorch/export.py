"""Export by torch.onnx: every DyT, DyISRU and Derf becomes one `dynorm` node with its function body in the file."""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import onnx_ir as ir
import torch
from onnx_ir.passes.common import ClearMetadataAndDocStringPass
from torch import nn

from dynorm_onnx.errors import UsageError
from dynorm_onnx.functions import DOMAIN, DOMAIN_VERSION, OPERATORS, Form
from dynorm_onnx.graph.edit.unique_names import Names
from dynorm_onnx.graph.files import model_io
from dynorm_onnx.graph.replace.rewrite import add_body
from dynorm_onnx.pytorch.foreign import Mappings, as_dynorm_module
from dynorm_onnx.pytorch.inherit import inherit_hooks
from dynorm_onnx.pytorch.modules import evaluating, swapped
from dynorm_onnx.pytorch.nn import NO_EPSILON, ElementwiseNorm

log = logging.getLogger(__name__)

OLDEST_OPSET = 18
"""The first that torch.onnx writes with dynamo=True; the body of a node is written for the file's opset."""

_TALKATIVE = ("torch.onnx._internal.exporter._registration", "onnxscript.version_converter")
_MODULE = "dynorm.module"  # the metadata that carries a module's path to its node


def export(
    model: nn.Module,
    args: tuple[Any, ...] | torch.Tensor,
    path: str | os.PathLike[str],
    *,
    kwargs: Mapping[str, Any] | None = None,
    opset: int | None = None,
    dynamic_shapes: Any = None,
    input_names: list[str] | None = None,
    output_names: list[str] | None = None,
    mappings: Mappings | None = None,
    **options: Any,
) -> ir.Model:
    """Write `model` as ONNX to `path`, whole or not at all, and return what was written.

    Args:
        model: any module that torch.export can trace. It is put into eval mode meanwhile and left as it was.
        args: example inputs; a single tensor may stand for a tuple of one.
        kwargs: those of them that go by name.
        opset: of the standard operators, 18 or newer; None leaves it to torch.
        dynamic_shapes: as torch.onnx.export takes them.
        input_names: the same.
        output_names: the same.
        mappings: how modules of other classes become ours, see as_dynorm(); those that compute one of the
            three functions on a probe need none.
        options: further keyword arguments of torch.onnx.export, such as custom_translation_table.

    Each module is one node, named after its path in the model, that carries weight and bias in its own type
    and the other parameters in float32. Weights above 1 GiB go to PATH.data.

    Raises:
        UsageError: the opset is none that torch writes, or `path` cannot be written.
    """
    if opset is not None and opset < OLDEST_OPSET:
        raise UsageError(f"opset {opset} is too old: torch.onnx writes {OLDEST_OPSET} and newer")
    inputs = (args,) if isinstance(args, torch.Tensor) else tuple(args)
    if as_dynorm_module(model, mappings) is not None:
        model = nn.Sequential(model)  # only what is inside a module can be swapped
    with evaluating(model), swapped(model, lambda name, module: _as_node(name, module, mappings)), _quiet():
        program = torch.onnx.export(
            model,
            inputs,
            kwargs=dict(kwargs or {}),
            opset_version=opset,
            dynamic_shapes=dynamic_shapes,
            input_names=input_names,
            output_names=output_names,
            **{"verbose": False, **options, "dynamo": True},
        )
        assert program is not None
        written = program.model
        _check_opset(written, opset)
        _finish(written)
        model_io.save(written, path)
    return written


class _Node(nn.Module):
    """Stands for a module while the model is traced: its forward is the ONNX operator itself."""

    eps = NO_EPSILON

    def __init__(self, name: str, module: ElementwiseNorm) -> None:
        super().__init__()
        self.op_type = module.function.node_type(Form(coupled=module.coupled_channels is not None))
        self.path = name
        self.weight, self.bias = module.weight, module.bias
        values = [module.scalars()[parameter] for parameter in module.function.parameter_names]
        values += [value for value in (module.coupled_channels, module.strengths()) if value is not None]
        self.names = tuple(f"input{place}" for place in range(len(values)))
        for parameter, value in zip(self.names, values, strict=True):
            self.register_buffer(parameter, value.detach().clone())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # X, weight and bias are of one type: the wider of the two, as the module computes.
        dtype = torch.promote_types(x.dtype, self.weight.dtype)
        wide = [tensor.to(dtype) for tensor in (x, self.weight, self.bias)]
        y = torch.onnx.ops.symbolic(
            f"{DOMAIN}::{self.op_type}",
            [*wide, *(getattr(self, name) for name in self.names)],
            dtype=dtype,
            shape=x.shape,
            version=DOMAIN_VERSION,
            metadata_props={_MODULE: self.path},
        )
        return y.to(x.dtype)


def _as_node(name: str, module: nn.Module, mappings: Mappings | None) -> nn.Module | None:
    ours = as_dynorm_module(module, mappings)
    if ours is None:
        return None
    node = _Node(name, ours)
    inherit_hooks(node, module)  # what they do to the output belongs to the model
    return node


def _check_opset(model: ir.Model, opset: int | None) -> None:
    """torch returns a model of another opset, with operators of two, where it cannot convert to the one asked for."""
    got = model.opset_imports[""]
    if opset is not None and got != opset:
        raise UsageError(f"torch {torch.__version__} cannot write this model at opset {opset}; try one before it")


def _finish(model: ir.Model) -> None:
    """Names and bodies for our nodes; what the exporter noted about this machine's files goes."""
    names = Names.of(model)
    for node in model.graph.all_nodes():
        if node.domain != DOMAIN:
            continue
        node.name = names.unique(node.metadata_props[_MODULE])  # a module that is called twice is two nodes
        y = node.outputs[0]
        if str(y.name).startswith("_symbolic"):  # neither the user's name nor one that says anything
            y.name = names.unique(f"{node.name}.y")
        dtype = y.dtype
        assert dtype is not None
        function, form = OPERATORS[node.op_type]
        add_body(model, function, dtype, form)
    ClearMetadataAndDocStringPass()(model)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's remarks on itself: packages it does not need, its own deprecations, its fallbacks."""
    loggers = [logging.getLogger(name) for name in _TALKATIVE]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
