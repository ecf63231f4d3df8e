"""What people call a layer: the path of the module that it was, as far as the file still tells."""

from __future__ import annotations

import ast
import re

import onnx_ir as ir

_SCOPES, _NAMESPACE = "pkg.torch.onnx.name_scopes", "namespace"  # what torch.onnx's exporter notes at each node
_OF_MODULE = re.compile(r"(.*[./].+)[./](?:weight|kernel)(?:/read|/ReadVariableOp)?(?::0)?", re.IGNORECASE)
_OF_EXPORTER = re.compile(r"(?:(?:val|onnx::\w+)_)?\d+")  # val_1130, onnx::MatMul_1582, 311
_NODES_SEARCHED = 64  # backwards, for a norm whose weight has kept its name


def layer_label(node: ir.Node, weight: ir.Value) -> str:
    """The module of a node and its weight (an initializer): by the weight's name, by what the exporter noted at the
    node, by the node's own path, by the nearest module before it; where nothing tells, the weight's name, or the node's
    where an exporter has numbered the weights."""
    of_weight = _OF_MODULE.fullmatch(weight.name or "")
    if of_weight is not None:
        return of_weight[1]
    noted = _noted(node)
    if noted:
        return noted
    name = node.name or ""
    if name.startswith("/") and name.count("/") > 1:  # TorchScript: /model/layers.0/mlp/down_proj/MatMul
        return name[1:].rpartition("/")[0].replace("/", ".")
    before = _module_before(node)
    if before:
        return f"{name or weight.name} after {before}"
    return name if name and _OF_EXPORTER.fullmatch(weight.name or "") else str(weight.name)


def _noted(node: ir.Node) -> str | None:
    """The innermost module in the exporter's notes: name_scopes ['', 'mlp.down_proj', 'linear'], or a namespace
    ": M/mlp.down_proj: torch.nn.modules.linear.Linear/linear: aten.linear.default"; the last entry is the operator."""
    if _SCOPES in node.metadata_props:
        try:
            scopes = ast.literal_eval(node.metadata_props[_SCOPES])
        except (ValueError, SyntaxError):
            return None
        modules = [str(scope) for scope in scopes[:-1]] if isinstance(scopes, list) else []
    else:
        parts = node.metadata_props.get(_NAMESPACE, "").split("/")
        modules = [part.partition(":")[0].strip() for part in parts[:-1]]
    return modules[-1] if modules and modules[-1] else None


def _module_before(node: ir.Node) -> str | None:
    """The module of the nearest weight upstream that has kept its name; not of an embedding, which is before all, and
    where the head shares it, would name each layer after the head."""
    pending, seen = [node], {node}
    for current in pending:  # grows meanwhile
        if current.op_type == "Gather":
            continue
        for value in current.inputs:
            found = _OF_MODULE.fullmatch(value.name or "") if value is not None and value.is_initializer() else None
            if found is not None:
                return found[1]
            producer = value.producer() if value is not None else None
            if producer is not None and producer not in seen and len(seen) < _NODES_SEARCHED:
                seen.add(producer)
                pending.append(producer)
    return None
