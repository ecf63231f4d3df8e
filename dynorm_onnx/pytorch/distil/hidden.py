"""Hidden values: what linear layers give inside the original and inside the student, compared layer by layer.

The logits tell a student only how its last layer is wrong; these tell every layer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import onnx_ir as ir
from torch import Tensor, nn
from torch.nn.utils import parametrize

from dynorm_onnx.graph.edit.emit import add_initializer
from dynorm_onnx.graph.files.model_io import clone
from dynorm_onnx.graph.linear.find import find_linear_layers
from dynorm_onnx.pytorch.distil.losses import named_outputs

PREFIX = "hidden:"
"""Before the path of a layer, where its value is among a module's outputs."""


def shared_layers(student: nn.Module, teacher: Any, leave: Collection[str] = ()) -> list[str]:
    """Paths of the modules with a weight matrix that both have, of one shape; none if the teacher is no module.

    `leave` are paths that are left out.
    """
    if not isinstance(teacher, nn.Module):
        return []
    matrices = {path: _matrix_shape(module) for path, module in teacher.named_modules()}
    return [path for path, module in student.named_modules() if (found := _matrix_shape(module)) is not None
            and matrices.get(path) == found and path not in leave]  # fmt: skip


def _matrix_shape(module: nn.Module) -> tuple[int, ...] | None:
    weight = module._parameters.get("weight")
    if parametrize.is_parametrized(module, "weight"):
        weight = module.parametrizations.weight.original  # type: ignore[union-attr]
    if isinstance(module, nn.Embedding) or weight is None or weight.ndim < 2:
        return None
    return tuple(weight.shape)


@contextmanager
def told(model: Callable[..., Any], paths: Sequence[str]) -> Iterator[Callable[..., dict[str, Tensor]]]:
    """The model as a callable that returns its float outputs by name and, as PREFIX + path, what these layers gave.

    A layer that is called several times in one pass is told of the last.
    """
    values: dict[str, Tensor] = {}

    def remember(path: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                values[PREFIX + path] = output

        return hook

    def call(*arguments: Any, **keywords: Any) -> dict[str, Tensor]:
        values.clear()
        outputs = named_outputs(model(*arguments, **keywords))
        return {**outputs, **values}

    with ExitStack() as hooks:
        if isinstance(model, nn.Module):
            for path in paths:
                hooks.callback(model.get_submodule(path).register_forward_hook(remember(path)).remove)
        yield call


POSITIONS = "dynorm.positions"
"""The input of sampled models: int64 [batch, n], the tokens of each text whose hidden values are compared."""


_OLDEST_SAMPLED = 13  # the opset since which Unsqueeze takes its axes as an input


@dataclasses.dataclass(frozen=True)
class Compared:
    """Two models that also give out hidden values, and what those outputs are called."""

    original: ir.Model
    converted: ir.Model
    names: tuple[str, ...]


def with_hidden_outputs(original: ir.Model, converted: ir.Model, leave: Collection[str] = ()) -> Compared:
    """Clones of both that also give out what the linear layers that they share give.

    Only values whose type is known and that are no outputs already are taken. `leave` are weights of layers that
    are left out.
    """
    given = {value.name for value in original.graph.outputs}
    given |= {layer.y.name for layer in find_linear_layers(original.graph).layers if layer.y and layer.name in leave}
    there = _layer_values(converted)
    names = [name for name in _layer_values(original) if name in there and name not in given]
    models = []
    for model in (original, converted):
        copied = clone(model)
        values = _layer_values(copied)
        copied.graph.outputs.extend(values[name] for name in names)
        models.append(copied)
    return Compared(models[0], models[1], tuple(names))


def sampled(compared: Compared, ids: str) -> Compared:
    """The same for the tokens that a further input of both models names, POSITIONS; the models are changed.

    Taken are values [batch, length, C] with the first two axes of the input `ids`; others are no longer given out, nor
    is any before opset 13.
    """
    shape = next(value.shape for value in compared.original.graph.inputs if value.name == ids)
    values = {value.name: value for value in compared.original.graph.outputs}
    known = compared.original.opset_imports[""] >= _OLDEST_SAMPLED
    taken = [name for name in compared.names if known and _is_by_token(values[name], shape)]
    for model in (compared.original, compared.converted):
        _sample(model, compared.names, taken)
    return Compared(compared.original, compared.converted, tuple(_sampled_name(name) for name in taken))


def _sample(model: ir.Model, names: Collection[str], taken: Collection[str]) -> None:
    graph = model.graph
    positions = ir.val(POSITIONS, ir.DataType.INT64, ["batch", "sampled"])
    graph.inputs.append(positions)
    axis = add_initializer(graph, f"{POSITIONS}.axis", np.array([-1]))
    rows = ir.node("Unsqueeze", [positions, axis], name=f"{POSITIONS}.rows")
    rows.outputs[0].name = f"{POSITIONS}.rows"
    graph.insert_before(graph[0], rows)
    values = {str(value.name): value for value in graph.outputs}
    kept = [value for value in graph.outputs if value.name not in names]
    for name in taken:
        gather = ir.node("GatherND", [values[name], rows.outputs[0]], {"batch_dims": 1}, name=_sampled_name(name))
        y = gather.outputs[0]
        y.name, y.type = _sampled_name(name), values[name].type
        producer = values[name].producer()
        assert producer is not None
        graph.insert_after(producer, gather)  # not at the end: the whole value must not live until then
        kept.append(y)
    graph.outputs.clear()
    graph.outputs.extend(kept)


def _sampled_name(name: str) -> str:
    return f"{name}.sampled"


def _is_by_token(value: ir.Value, shape: ir.Shape | None) -> bool:
    if value.shape is None or shape is None or len(value.shape) != 3 or len(shape) != 2:
        return False
    return all(one == other and one != ir.SymbolicDim(None) for one, other in zip(value.shape, shape, strict=False))


def _layer_values(model: ir.Model) -> Mapping[str, ir.Value]:
    layers = find_linear_layers(model.graph).layers
    return {str(layer.y.name): layer.y for layer in layers if layer.y is not None and layer.y.type is not None}
