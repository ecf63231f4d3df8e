"""Names of norms: those of the modules they were, as their weights still tell, so that patterns select them."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Mapping, Sequence

import onnx_ir as ir

from dynorm_onnx.graph.edit.unique_names import Names
from dynorm_onnx.graph.norm_site import NearMiss, NormSite, Refusal, SitesFound
from dynorm_onnx.graph.values.index import GraphIndex
from dynorm_onnx.graph.values.node_kinds import is_op

# "model.layers.0.norm.weight" of PyTorch, "model/block_0/norm/gamma/read:0" of TensorFlow and Keras.
_OF_MODULE = re.compile(r"(.+)[./](?:weight|gamma|scale)(?:/read|/ReadVariableOp)?(?::0)?", re.IGNORECASE)
_PREPARATIONS = {"Cast", "Identity", "Transpose", "Reshape", "Unsqueeze", "Squeeze", "Flatten"}
_PREPARATIONS |= {"DequantizeLinear"}


def with_names(
    indices: Mapping[ir.Graph, GraphIndex],
    sites: Sequence[NormSite],
    refused: Sequence[Refusal],
    near_misses: Sequence[NearMiss],
) -> SitesFound:
    """The findings, every name once; `indices` are of all graphs that sites lie in.

    A site is called after the module that its weight belongs to, if no other site has the same weight
    (exporters merge equal weights); else it keeps its name. A name that is taken gets a number.
    """
    modules = [_module(indices[site.graph], site.weight) for site in sites]
    times = Counter(modules)
    names = [m if m and times[m] == 1 else site.name for m, site in zip(modules, sites, strict=True)]
    unique = Names(first=2).unique
    return SitesFound(
        tuple(dataclasses.replace(s, name=unique(n)) for n, s in zip(names, sites, strict=True)),
        tuple(dataclasses.replace(r, name=unique(r.name)) for r in refused),
        tuple(dataclasses.replace(n, name=unique(n.name)) for n in near_misses),
    )


def _module(index: GraphIndex, weight: ir.Value | None) -> str | None:
    """The path of the module that a weight belongs to, where its name is such a path."""
    while weight is not None and not weight.is_initializer():
        node = weight.producer()
        if is_op(node, "Add", "Mul") and node is not None:  # (1 + w)
            weight = next((i for i in node.inputs if i is not None and index.scalar(i) is None), None)
        elif is_op(node, *_PREPARATIONS) and node is not None:
            weight = node.inputs[0]
        else:
            break
    found = _OF_MODULE.fullmatch(weight.name) if weight is not None and weight.name else None
    return None if found is None else found[1]
