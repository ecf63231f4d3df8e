"""Files as nobody should write them: models with a few nodes, tensors and names changed, and bytes with a few of them.

Every change is legal protobuf; whether it is still a model, the tool has to find out.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from onnx import TensorProto, helper

Mutation = Callable[[onnx.ModelProto, np.random.Generator], None]

_OPERATORS = (
    "Add", "Mul", "Div", "Sub", "MatMul", "Gemm", "Cast", "Reshape", "Transpose", "Identity", "ReduceMean", "Pow",
    "Sqrt", "LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization", "Softmax", "Gather", "Concat",
    "Split", "If", "Loop", "Constant", "Shape", "Unsqueeze", "Where", "Nope", "",
)  # fmt: skip
_SIZES = (0, 1, 2, 3, 7, 8, -1, 1 << 12, 1 << 40, (1 << 63) - 1)


def mutate(model: onnx.ModelProto, rng: np.random.Generator) -> onnx.ModelProto:
    """A copy with one to four changes."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    for _ in range(rng.integers(1, 5)):
        MUTATIONS[rng.integers(len(MUTATIONS))](changed, rng)
    return changed


def mutate_bytes(data: bytes, rng: np.random.Generator) -> bytes:
    """Bits turned, bytes cut off, taken out, or written twice."""
    changed = bytearray(data)
    for _ in range(rng.integers(1, 9)):
        if not changed:
            break
        at, length = int(rng.integers(len(changed))), int(rng.integers(1, 33))
        match rng.integers(5):
            case 0 | 1:
                changed[at] ^= 1 << int(rng.integers(8))
            case 2:
                del changed[at : at + length]
            case 3:
                changed[at:at] = changed[at : at + length]
            case 4:
                changed[at : at + length] = rng.bytes(length)
    if rng.random() < 0.1:
        del changed[int(rng.integers(len(changed) + 1)) :]
    return bytes(changed)


def _node(model: onnx.ModelProto, rng: np.random.Generator) -> onnx.NodeProto | None:
    nodes = [*model.graph.node, *(node for function in model.functions for node in function.node)]
    return nodes[rng.integers(len(nodes))] if nodes else None


def _tensor(model: onnx.ModelProto, rng: np.random.Generator) -> onnx.TensorProto | None:
    tensors = [*model.graph.initializer]
    return tensors[rng.integers(len(tensors))] if tensors else None


def _name(model: onnx.ModelProto, rng: np.random.Generator) -> str:
    """One that the graph has, or none."""
    names = [value.name for value in (*model.graph.input, *model.graph.output, *model.graph.initializer)]
    names += [name for node in model.graph.node for name in (*node.input, *node.output)] + ["", "nowhere"]
    return names[rng.integers(len(names))]


def _reread(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    node = _node(model, rng)
    if node is not None and node.input:
        node.input[rng.integers(len(node.input))] = _name(model, rng)


def _inputs(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    if (node := _node(model, rng)) is None:
        return
    if rng.random() < 0.5 and node.input:
        del node.input[int(rng.integers(len(node.input)))]
    else:
        node.input.append(_name(model, rng))


def _outputs(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    if (node := _node(model, rng)) is None:
        return
    if rng.random() < 0.5 and node.output:
        node.output[rng.integers(len(node.output))] = _name(model, rng)
    else:
        node.output.append(f"spare{rng.integers(9)}")


def _operator(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    if (node := _node(model, rng)) is not None:
        node.op_type = _OPERATORS[rng.integers(len(_OPERATORS))]


def _domain(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    if (node := _node(model, rng)) is not None:
        node.domain = ("", "com.microsoft", "ai.onnx", "nobody", "dynorm")[rng.integers(5)]


def _attribute(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    node = _node(model, rng)
    if node is None or not node.attribute or rng.random() < 0.2:
        if node is not None:
            node.attribute.append(
                helper.make_attribute(("axis", "epsilon", "to", "perm")[rng.integers(4)], int(rng.integers(-9, 99)))
            )
        return
    attribute = node.attribute[rng.integers(len(node.attribute))]
    match rng.integers(4):
        case 0:
            node.attribute.remove(attribute)
        case 1:
            attribute.i = int(_SIZES[rng.integers(len(_SIZES))])
        case 2:
            attribute.f = float((0.0, -1.0, np.nan, np.inf, 1e30)[rng.integers(5)])
        case 3:
            attribute.type = int(rng.integers(15))


def _node_gone(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    if model.graph.node:
        del model.graph.node[int(rng.integers(len(model.graph.node)))]


def _node_twice(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    if model.graph.node:
        model.graph.node.add().CopyFrom(model.graph.node[rng.integers(len(model.graph.node))])


def _order(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend([nodes[place] for place in rng.permutation(len(nodes))])


def _dims(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    tensor = _tensor(model, rng)
    if tensor is not None and tensor.dims:
        tensor.dims[rng.integers(len(tensor.dims))] = _SIZES[rng.integers(len(_SIZES))]


def _type(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    if (tensor := _tensor(model, rng)) is not None:
        tensor.data_type = int(rng.integers(25))


def _numbers(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    """Weights that are not finite, or huge, or zero, or noise."""
    tensor = _tensor(model, rng)
    if tensor is not None and tensor.raw_data:
        size = len(tensor.raw_data)
        fills = (
            b"\xff" * size,
            bytes(size),
            rng.bytes(size),
            np.resize(np.float32([np.inf, 1e38]), size).tobytes()[:size],
        )
        tensor.raw_data = fills[rng.integers(len(fills))]


def _weight_gone(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    if model.graph.initializer:
        del model.graph.initializer[int(rng.integers(len(model.graph.initializer)))]


def _external(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    if (tensor := _tensor(model, rng)) is None:
        return
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    places = ("../x", "/dev/zero", "/etc/hostname", "w.bin", "", ".")
    tensor.external_data.add(key="location", value=places[rng.integers(len(places))])
    tensor.external_data.add(key="offset", value=str(_SIZES[rng.integers(len(_SIZES))]))


def _shape(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    values = [*model.graph.input, *model.graph.output, *model.graph.value_info]
    value = values[rng.integers(len(values))] if values else None
    if value is None:
        return
    sizes = value.type.tensor_type.shape.dim
    if rng.random() < 0.3 or not sizes:
        value.type.tensor_type.elem_type = int(rng.integers(25))
    elif rng.random() < 0.3:
        del sizes[int(rng.integers(len(sizes)))]
    else:
        sizes[rng.integers(len(sizes))].dim_value = _SIZES[rng.integers(len(_SIZES))]


def _opset(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    if model.opset_import and rng.random() < 0.8:
        model.opset_import[rng.integers(len(model.opset_import))].version = int(
            (0, 1, 6, 9, 12, 17, 18, 21, 23, 99)[rng.integers(10)]
        )
    else:
        model.ir_version = int(rng.integers(0, 20))


def _body(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    """The whole graph as the branch of an If in it."""
    graph = onnx.GraphProto.FromString(model.graph.SerializeToString())
    node = helper.make_node(
        "If", [_name(model, rng)], [f"branch{rng.integers(9)}"], then_branch=graph, else_branch=graph
    )
    if model.ByteSize() < 1 << 18:
        model.graph.node.append(node)


def _function(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    """A node as the call of a function, which may call itself."""
    if (node := _node(model, rng)) is None:
        return
    inner = onnx.NodeProto.FromString(node.SerializeToString())
    if rng.random() < 0.3:
        inner.domain, inner.op_type = "local", "F"
    function = helper.make_function(
        "local", "F", list(dict.fromkeys(node.input)), list(node.output), [inner], [helper.make_opsetid("", 18)]
    )
    model.functions.append(function)
    node.domain, node.op_type = "local", "F"
    if rng.random() < 0.7:
        model.opset_import.append(helper.make_opsetid("local", 1))


MUTATIONS: tuple[Mutation, ...] = (
    _reread, _reread, _inputs, _outputs, _operator, _domain, _attribute, _attribute, _node_gone, _node_twice, _order,
    _dims, _type, _numbers, _weight_gone, _external, _shape, _shape, _opset, _body, _function,
)  # fmt: skip
