"""What a model takes and gives, as far as feeding it goes: inputs with their roles, the logits, the cache."""

from __future__ import annotations

import collections
import dataclasses
import re

import numpy as np
import onnx_ir as ir

from dynorm_onnx.calibration.data.cache_size import settled_sizes
from dynorm_onnx.calibration.data.embedding import index_bound, length_bound
from dynorm_onnx.calibration.data.fed_weights import read_as_weights
from dynorm_onnx.calibration.data.free_sizes import channels_read
from dynorm_onnx.calibration.data.roles import WHOLE_BATCH, Role, role_by_name
from dynorm_onnx.errors import DataError

_BATCH_NAME = re.compile(r"(batch|bs|bsz)(_?size|_?dim|_?\d+)?", re.IGNORECASE)

Dim = int | str | None
"""A size, the name of a size that is free, or None for a free size without a name."""


@dataclasses.dataclass(frozen=True)
class InputSpec:
    """One graph input."""

    name: str
    dtype: np.dtype  # ml_dtypes' where numpy has none; object for strings
    shape: tuple[Dim, ...] | None  # None: of unknown rank; of a sequence, that of its tensors
    role: Role
    bound: int | None  # elements must be below: the rows of the table that they index
    batch_axis: int | None = None  # counts samples; None for what belongs to the whole batch
    is_sequence: bool = False  # takes a list of tensors

    @property
    def holds_strings(self) -> bool:
        """Whether the elements are strings."""
        return self.dtype == np.dtype(object)

    def describe(self) -> str:
        """Type and shape for a sentence: "int64 [batch, sequence]"."""
        element = f"{'a sequence of ' * self.is_sequence}{'string' if self.holds_strings else self.dtype}"
        if self.shape is None:
            return f"{element} of any shape"
        return f"{element} [{', '.join('?' if dim is None else str(dim) for dim in self.shape)}]"


@dataclasses.dataclass(frozen=True)
class ModelSignature:
    """The inputs of a model with their roles, and those of its outputs that calibration reads."""

    inputs: tuple[InputSpec, ...]
    longest: int | None  # the most tokens that its table of positions has room for
    logits: str | None  # float output [batch, length, vocabulary] of the token ids
    presents: dict[str, str]  # past input -> the output that carries it to the next step

    def of_batches_of(self, size: int) -> ModelSignature:
        """The same with this number of samples in every batch."""
        inputs = [
            spec
            if spec.batch_axis is None or spec.shape is None
            else dataclasses.replace(
                spec, shape=(*spec.shape[: spec.batch_axis], size, *spec.shape[spec.batch_axis + 1 :])
            )
            for spec in self.inputs
        ]
        return dataclasses.replace(self, inputs=tuple(inputs))

    def with_role(self, role: Role) -> tuple[InputSpec, ...]:
        """The inputs that have this role, in the graph's order."""
        return tuple(spec for spec in self.inputs if spec.role == role)

    @property
    def tokens(self) -> InputSpec | None:
        """The input that text goes to."""
        return next(iter(self.with_role("token_ids")), None)

    @property
    def takes_feeds_whole(self) -> bool:
        """Whether feeds cannot be cut in samples: which of a sequence's tensors belong to a sample nothing says."""
        return any(spec.is_sequence for spec in self.inputs)

    @property
    def has_samples_outermost(self) -> bool:
        """Whether the first axis of an input counts samples, as far as the model says which does."""
        axes = [spec.batch_axis for spec in self.inputs if spec.batch_axis is not None]
        return not axes or 0 in axes

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

    Raises DataError for an input that is neither a tensor nor a sequence of tensors.
    """
    values = [value for value in model.graph.inputs if not value.is_initializer()]
    weights = read_as_weights(model.graph)
    specs = _with_sizes_read([_input_spec(value, value in weights) for value in values], values)
    inputs = [_as_it_is_shaped(spec) for spec in _with_batch_axes(_with_structural_roles(specs))]
    return ModelSignature(
        inputs=tuple(inputs),
        longest=length_bound(model.graph),
        logits=_logits(model, inputs),
        presents=_presents([spec.name for spec in inputs if spec.role == "past"], model),
    )


def _input_spec(value: ir.Value, is_weight: bool) -> InputSpec:
    name = value.name or ""
    is_sequence = isinstance(value.type, ir.SequenceType)
    element = value.type.elem_type if isinstance(value.type, ir.SequenceType) else value.type
    dtype = element.dtype if isinstance(element, ir.TensorType) else ir.DataType.UNDEFINED
    if dtype == ir.DataType.UNDEFINED:
        raise DataError(
            f"input {name!r} is {_kind(value.type)}: data can be given for tensors and for sequences of tensors alone"
        )
    role = "other" if is_sequence or dtype == ir.DataType.STRING else role_by_name(name, dtype)
    if not (value.uses() or value.is_graph_output()) and (role == "other" or value.shape is None):
        role = "unread"
    elif is_weight and role == "other":
        role = "weight"
    return InputSpec(
        name=name,
        dtype=np.dtype(object if dtype == ir.DataType.STRING else dtype.numpy()),
        shape=_shape(value, role),
        role=role,
        bound=index_bound(value) if dtype.is_integer() and not is_sequence else None,
        is_sequence=is_sequence,
    )


def _kind(kind: ir.TypeProtocol | None) -> str:
    """What ONNX calls the type of an input that takes no data here."""
    if isinstance(kind, ir.OptionalType):
        return f"an optional ({kind})"
    if isinstance(kind, ir.SparseTensorType):
        return f"a sparse tensor ({kind})"
    return "of no type that the model states" if kind is None else f"of the type {kind}"


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
    """Find the axis of samples: that of the token ids, or of the first input that has any, which is named as a batch
    is; where none is, the first.

    Lists of numbers whose length is fixed are passed over where something else is there, as are weights. A size whose
    name stands twice in one input counts no samples: the nodes of a graph, in its matrix of edges.
    """
    shapes = [spec.shape for spec in specs if spec.role == "token_ids"] + [
        spec.shape for spec in specs if spec.role not in ("weight", "unread") and not spec.is_sequence
    ]
    candidates = [shape for shape in shapes if shape]
    batch = next((_batch(shape) for shape in candidates if shape != (shape[0],) or not isinstance(shape[0], int)), None)
    if batch is None and candidates:
        batch = candidates[0][0]
    squares = [spec.shape for spec in specs if len(spec.shape or ()) in (2, 3) and spec.role == "other"]
    if isinstance(batch, str) and any(shape.count(batch) > 1 for shape in squares if shape):
        return specs
    return [dataclasses.replace(spec, batch_axis=_batch_axis(spec, batch)) for spec in specs]


def _batch(shape: tuple[Dim, ...]) -> Dim:
    """The size that counts samples. Recurrent layers have it behind time: [time, batch, channels]."""
    return next((dim for dim in shape if isinstance(dim, str) and _BATCH_NAME.fullmatch(dim)), shape[0])


def _batch_axis(spec: InputSpec, batch: Dim) -> int | None:
    shape = spec.shape or ()
    rank = len(shape)
    if spec.role in ("token_ids", "position_ids", "token_type_ids", "attention_mask") and rank == 1:
        return None  # the model takes one sample at a time
    if spec.role in WHOLE_BATCH or spec.role == "weight" or spec.is_sequence:
        return None
    if isinstance(batch, str) and batch in shape:
        return shape.index(batch)
    # keys and values of a layer in one tensor [2, batch, ...], rotary sections [3, batch, length]
    axis = 1 if (spec.role, rank) in (("past", 5), ("position_ids", 3)) else 0
    if axis >= rank:
        return None
    if spec.role == "past" and isinstance(batch, int) and isinstance(shape[axis], int) and shape[axis] != batch:
        return shape.index(batch) if shape.count(batch) == 1 else None  # [layers, batch, ...]
    # knobs among the inputs have a first axis of their own
    return axis if spec.role not in ("other", "unread") or shape[0] == batch else None


def _as_it_is_shaped(spec: InputSpec) -> InputSpec:
    """Positions of three axes are rotary sections, [3, batch, length]; others only have a name like positions, as those
    of masked words have, [batch, words, 1]."""
    is_other = spec.role == "position_ids" and len(spec.shape or ()) == 3 and spec.batch_axis == 0
    return dataclasses.replace(spec, role="other") if is_other else spec


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
