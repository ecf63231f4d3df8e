"""The way from a model to its converted forms, as the command line goes it, for one model in memory."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx
import onnx_ir as ir

from dynorm_onnx.functions import REGISTRY, NormParameters
from dynorm_onnx.graph.files.model_io import prepare
from dynorm_onnx.graph.lower import LoweredNorm, lower
from dynorm_onnx.graph.norm_site import SitesFound
from dynorm_onnx.graph.replace.rewrite import replace
from dynorm_onnx.graph.sites.find import find_sites
from dynorm_onnx.runtime.session import runnable

CANONICAL = {"LayerNormalization", "SimplifiedLayerNormalization", "RMSNormalization"}


def found_in(model: onnx.ModelProto) -> tuple[ir.Model, SitesFound]:
    """The model prepared, and what was found in it."""
    prepared = prepare(ir.from_proto(model))
    return prepared, find_sites(prepared, load=runnable)


def lowered(model: onnx.ModelProto) -> tuple[ir.Model, tuple[LoweredNorm, ...]]:
    """`--to rmsnorm`."""
    prepared, found = found_in(model)
    return prepared, lower(prepared, found.sites)


def replaced(prepared: ir.Model, norms: Iterable[LoweredNorm], function: str = "dyisru") -> onnx.ModelProto:
    """`--to dyisru` with parameters that are not fitted; `prepared` is what lowered() gave."""
    for norm in norms:
        zeros = np.zeros_like(norm.weight)
        scalars = {name: np.full_like(norm.weight, 2.0) for name in REGISTRY[function].parameter_names}
        parameters = NormParameters(norm.weight, zeros if norm.bias is None else norm.bias, scalars)
        replace(prepared, norm, function, parameters)
    return ir.to_proto(prepared)


def reasons(found: SitesFound) -> str:
    """All that find_sites() says of what it did not take, in lower case."""
    said = [*found.refused, *found.near_misses]
    return " | ".join(f"{item.name}: {item.reason}" for item in said).lower()


def is_checked(model: onnx.ModelProto) -> bool:
    """Whether onnx.checker accepts the model."""
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError:
        return False
    return True
