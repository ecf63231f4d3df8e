"""What a model takes and gives, as far as feeding it goes: inputs with their roles, the logits, the cache."""

from __future__ import annotations

import collections
import dataclasses
import re

import numpy as np
import onnx_ir as ir

from dynorm_onnx.calibration.data.cache_size import settled_sizes
from dynorm_onnx.calibration.data.embedding import index_bound, length_bound
from dynorm_onnx.calibration.data.free_sizes import channels_read
from dynorm_onnx.calibration.data.roles import WHOLE_BATCH, Role, role_by_name
from dynorm_onnx.errors import ModelError

Dim = int | str | None
"""A size, the name of a size that is free, or None for a free size without a name."""


@dataclasses.dataclass(frozen=True)
class InputSpec:
    """One graph input."""

    name: str
    dtype: np.dtype  # ml_dtypes' where numpy has none
    shape: tuple[Dim, ...] | None  # None: of unknown rank
    role: Role
    bound: int | None  # elements must be below: the rows of the table that they index
    batch_axis: int | None = None  # counts samples; None for what belongs to the whole batch

    def describe(self) -> str:
        """Type and shape for a sentence: "int64 [batch, sequence]"."""
        if self.shape is None:
            return f"{self.dtype} of any shape"
        return f"{self.dtype} [{', '.join('?' if dim is None else str(dim) for dim in self.shape)}]"


@dataclasses.dataclass(frozen=True)
class ModelSignature:
    """The inputs of a model with their roles, and those of its outputs that calibration reads."""

    inputs: tuple[InputSpec, ...]
    longest: int | None  # the most tokens that its table of positions has room for
    logits: str | None  # float output [batch, length, vocabulary] of the token ids
    presents: dict[str, str]  # past input -> the output that carries it to the next step

    def with_role(self, role: Role) -> tuple[InputSpec, ...]:
        """The inputs that have this role, in the graph's order."""
        return tuple(spec for spec in self.inputs if spec.role == role)

    @property
    def tokens(self) -> InputSpec | None:
        """The input that text goes to."""
        return next(iter(self.with_role("token_ids")), None)

    @property
    def fixed_batch(self) -> int | None:
        """The number of samples that every batch must have, where the model fixes it."""
        sizes = [(spec.shape or ())[spec.batch_axis] for spec in self.inputs if spec.batch_axis is not None]
        return next((size for size in sizes if isinstance(size, int)), None)

    @property
    def fixed_length(self) -> int | None:
        """The number of tokens that every sample must have, where the model fixes it."""
        specs = [
            *self.with_role("token_ids"),
            *self.with_role("position_ids"),
            *self.with_role("token_type_ids"),
        ]
        if not self.with_role("past"):
            specs += self.with_role("attention_mask")
        sizes = [spec.shape[-1] for spec in specs if spec.shape]
        return next((size for size in sizes if isinstance(size, int)), None)


def signature(model: ir.Model) -> ModelSignature:
    """Read the signature of a model.

    Roles come from names first. An integer input whose name says nothing is the token ids if it
    indexes the largest table of those, and a further one with a table of at most 16 rows the token types.

    Raises ModelError for an input that is no tensor of numbers.
    """
    values = [value for value in model.graph.inputs if not value.is_initializer()]
    specs = _with_sizes_read([_input_spec(value) for value in values], values)
    inputs = _with_batch_axes(_with_structural_roles(specs))
    return ModelSignature(
        inputs=tuple(inputs),
        longest=length_bound(model.graph),
        logits=_logits(model, inputs),
        presents=_presents([spec.name for spec in inputs if spec.role == "past"], model),
    )


def _input_spec(value: ir.Value) -> InputSpec:
    name = value.name or ""
    if not isinstance(value.type, ir.TensorType) or value.dtype is None:
        raise ModelError(f"input {name!r} is not a tensor ({value.type}): such a model cannot be calibrated")
    if value.dtype in (ir.DataType.STRING, ir.DataType.UNDEFINED):
        raise ModelError(f"input {name!r} holds {value.dtype.name.lower()} elements, not numbers")
    role = role_by_name(name, value.dtype)
    return InputSpec(
        name=name,
        dtype=np.dtype(value.dtype.numpy()),
        shape=_shape(value, role),
        role=role,
        bound=index_bound(value) if value.dtype.is_integer() else None,
    )


def _shape(value: ir.Value, role: Role) -> tuple[Dim, ...] | None:
    """The sizes as the model gives them, and as the reader of a cache settles them."""
    if value.shape is None:
        return None
    settled = settled_sizes(value) if role == "past" else {}
    dims = [_dim(dim) for dim in value.shape]
    return tuple(dim if isinstance(dim, int) else settled.get(axis, dim) for axis, dim in enumerate(dims))


def _dim(dim: int | ir.SymbolicDim) -> Dim:
    if isinstance(dim, int):
        # exporters that know no names write -1 or 0 for a free size
        return dim if dim > 0 else None
    return dim.value


def _with_sizes_read(specs: list[InputSpec], values: list[ir.Value]) -> list[InputSpec]:
    """With the number of channels where it is free by the input's type alone; a name stands for one size everywhere."""
    known: dict[str, int] = {}
    made = []
    for spec, value in zip(specs, values, strict=True):
        last = spec.shape[-1] if spec.shape else 0
        size = None
        if spec.shape and len(spec.shape) > 1 and spec.role == "other" and not isinstance(last, int):
            size = channels_read(value) if value.dtype is not None and value.dtype.is_floating_point() else None
        if size is not None and spec.shape:
            spec = dataclasses.replace(spec, shape=(*spec.shape[:-1], size))
            if isinstance(last, str):
                known[last] = size
        made.append(spec)
    return [
        dataclasses.replace(
            spec, shape=tuple(known.get(dim, dim) if isinstance(dim, str) else dim for dim in spec.shape)
        )
        if spec.shape
        else spec
        for spec in made
    ]


def _with_structural_roles(specs: list[InputSpec]) -> list[InputSpec]:
    """Give roles to the integer inputs whose names say nothing and that index a table."""
    nameless = [spec for spec in specs if spec.role == "other" and spec.bound is not None]
    nameless.sort(key=lambda spec: -(spec.bound or 0))
    roles: dict[str, Role] = {}
    if nameless and not any(spec.role == "token_ids" for spec in specs):
        roles[nameless.pop(0).name] = "token_ids"
    for spec in nameless:
        if spec.bound is not None and spec.bound <= 16:
            roles[spec.name] = "token_type_ids"
    return [dataclasses.replace(spec, role=roles.get(spec.name, spec.role)) for spec in specs]


def _with_batch_axes(specs: list[InputSpec]) -> list[InputSpec]:
    """Find the axis of samples: the first axis of the token ids, or of the first input that has any."""
    shapes = [spec.shape for spec in specs if spec.role == "token_ids"] + [spec.shape for spec in specs]
    batch = next((shape[0] for shape in shapes if shape), None)
    return [dataclasses.replace(spec, batch_axis=_batch_axis(spec, batch)) for spec in specs]


def _batch_axis(spec: InputSpec, batch: Dim) -> int | None:
    rank = len(spec.shape or ())
    if spec.role in ("token_ids", "position_ids", "token_type_ids", "attention_mask") and rank == 1:
        return None  # the model takes one sample at a time
    # keys and values of a layer in one tensor [2, batch, ...], rotary sections [3, batch, length]
    axis = 1 if (spec.role, rank) in (("past", 5), ("position_ids", 3)) else 0
    if spec.role in WHOLE_BATCH or axis >= rank:
        return None
    # weights and knobs among the inputs have a first axis of their own
    return axis if spec.role != "other" or (spec.shape or ())[0] == batch else None


def _logits(model: ir.Model, inputs: list[InputSpec]) -> str | None:
    tokens = next((spec for spec in inputs if spec.role == "token_ids"), None)
    if tokens is None or any(spec.role == "decoder_token_ids" for spec in inputs):
        return None
    for output in model.graph.outputs:
        if output.dtype is None or not output.dtype.is_floating_point() or output.shape is None:
            continue
        size = output.shape[-1] if len(output.shape) in (2, 3) else None
        named = "logits" in (output.name or "") and not isinstance(size, int) and len(output.shape) == 3
        if named or (isinstance(size, int) and size == tokens.bound):
            return output.name
    return None


def _presents(pasts: list[str], model: ir.Model) -> dict[str, str]:
    """Match present outputs to past inputs: by name without past / present, else by order."""
    outputs = [output.name or "" for output in model.graph.outputs]
    by_stem = {_cache_stem(name): name for name in outputs}
    matched = {name: by_stem[_cache_stem(name)] for name in pasts if _cache_stem(name) in by_stem}
    if len(matched) == len(pasts):
        return matched
    shapes = collections.Counter(_is_cache_name(name) for name in outputs)
    if shapes[True] == len(pasts):
        return dict(zip(pasts, filter(_is_cache_name, outputs), strict=True))
    return {}


def _is_cache_name(name: str) -> bool:
    return re.search(r"present|past|cache|state", name) is not None and "hidden" not in name


def _cache_stem(name: str) -> str:
    return re.sub(r"past|present|_key_values|_in\b|_out\b", "", name)
