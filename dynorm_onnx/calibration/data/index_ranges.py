"""How large integers may be drawn that a model computes with before they index a table: added, shifted, clipped.

Interval arithmetic: all drawn integers lie in 0..B-1, and what follows for an index is a range that grows with B. The
largest B with which every table is indexed within its rows is found by bisection.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from dynorm_onnx.calibration.data.embedding import table_indexed
from dynorm_onnx.calibration.data.signature import InputSpec
from dynorm_onnx.graph.values.fixed import fixed_tensor

Range = tuple[float, float]

_UNKNOWN: Range = (-math.inf, math.inf)
_LARGEST = 2**31
_READ = 2**20  # elements of a constant that are looked at
_ZERO_OR_ONE = frozenset(
    {"Equal", "Greater", "Less", "GreaterOrEqual", "LessOrEqual", "Not", "And", "Or", "Xor", "IsNaN", "IsInf"}
)
# their result holds elements of input 0 and no others, or rounds them
_ELEMENTS_KEPT = frozenset(
    {
        "Cast", "CastLike", "Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Slice", "Split",
        "Expand", "Tile", "Gather", "GatherElements", "GatherND", "Floor", "Round", "Compress", "Dropout", "Unique",
        "ReduceMax", "ReduceMin", "ReduceMean", "MaxPool", "ReverseSequence", "DepthToSpace", "SpaceToDepth",
    }
)  # fmt: skip
_SHAPE_KEPT = frozenset({"Cast", "Identity", "Add", "Sub", "Mul", "Div", "Mod", "Clip", "Min", "Max", "Neg", "Abs"})


def drawn_bounds(graph: ir.Graph, drawn: Sequence[InputSpec], sizes: Mapping[str, int]) -> dict[str, int]:
    """By name of an integer input: what its elements are to be drawn below; nothing for one that decides no index.

    `sizes` are those of free axes by their names. Tables whose index follows from anything else than the drawn
    inputs and constants, by operators that are not known here, bound nothing.
    """
    bounds = {spec.name: spec.bound for spec in drawn if spec.bound is not None and spec.dtype.kind in "iu"}
    values = {value: value.name or "" for value in graph.inputs}
    free = {spec.name for spec in drawn if spec.dtype.kind in "iu"}
    for index, rows in _lookups(graph):
        nodes, sources = _behind(index)
        reaching = [value for value in sources if values.get(value) in free]
        if not reaching:
            continue
        bound = _largest(functools.partial(_fits, index, rows, nodes, reaching, sizes), rows)
        for name in map(values.__getitem__, reaching) if bound is not None else ():
            bounds[name] = min(bounds.get(name, _LARGEST), bound or 1)
    return bounds


def _lookups(graph: ir.Graph) -> Iterator[tuple[ir.Value, int]]:
    """Every index with the number of rows of what it indexes."""
    for node in graph.all_nodes():
        for position, index in enumerate(node.inputs):
            rows = None if index is None else _rows(node, position)
            if index is not None and rows is not None:
                yield index, rows


def _rows(node: ir.Node, position: int) -> int | None:
    if node.op_type == "OneHot" and position == 0:
        depth = fixed_tensor(node.inputs[1])
        return int(depth.numpy().item()) if depth is not None and depth.size == 1 else None
    table, axis = table_indexed(node, position), 0
    if table is None and node.op_type in ("Gather", "GatherElements") and position == 1:
        table, axis = node.inputs[0], node.attributes.get_int("axis", 0)
    if table is None:
        return None
    shape = table.const_value.shape if table.const_value is not None else table.shape
    if shape is None or not -len(shape) <= axis < len(shape):
        return None
    size = shape[axis]
    return size if isinstance(size, int) else None


def _fits(
    index: ir.Value,
    rows: int,
    nodes: Sequence[ir.Node],
    drawn: Sequence[ir.Value],
    sizes: Mapping[str, int],
    limit: int,
) -> bool:
    """Whether all that is drawn below `limit` indexes a table of `rows` within it."""
    low, high = _ranges(nodes, dict.fromkeys(drawn, (0.0, limit - 1.0)), sizes)(index)
    return -rows <= low and high < rows  # from -rows on an index counts from the end, where something is taken off


def _largest(fits: Callable[[int], bool], rows: int) -> int | None:
    """The largest limit that fits; `rows` where any does, for then the model itself takes care. None where none is."""
    if not fits(1):
        return None
    if fits(_LARGEST):
        return rows
    low, high = 1, _LARGEST
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _behind(index: ir.Value) -> tuple[list[ir.Node], set[ir.Value]]:
    """The nodes whose ranges are known here and that `index` follows from, in order, and what they read beside."""
    ordered: dict[ir.Node, None] = {}
    sources: set[ir.Value] = set()
    pending: list[tuple[ir.Value, bool]] = [(index, False)]
    seen: set[ir.Value] = set()
    while pending:
        value, done = pending.pop()
        node = value.producer()
        if node is None or node.op_type not in _RANGES:
            sources.add(value)
        elif done:
            ordered.setdefault(node)
        elif value not in seen:
            seen.add(value)
            pending.append((value, True))
            pending += [(read, False) for read in node.inputs if read is not None]
    return list(ordered), sources


def _ranges(
    nodes: Sequence[ir.Node], known: dict[ir.Value, Range], sizes: Mapping[str, int]
) -> Callable[[ir.Value], Range]:
    """The ranges of what `nodes` give, from those of some inputs."""
    found = dict(known)

    def of(value: ir.Value) -> Range:
        if value not in found:
            found[value] = _constant(value)
        return found[value]

    for node in nodes:
        made = _RANGES[node.op_type](node, [None if value is None else of(value) for value in node.inputs], sizes)
        found.update(dict.fromkeys(node.outputs, _UNKNOWN if any(map(math.isnan, made)) else made))
    return of


def _constant(value: ir.Value) -> Range:
    if value.dtype == ir.DataType.BOOL:
        return 0.0, 1.0
    tensor = fixed_tensor(value)
    if tensor is None or not 0 < tensor.size <= _READ or tensor.dtype == ir.DataType.STRING:
        return _UNKNOWN
    array = tensor.numpy()
    return float(array.min()), float(array.max())


_Given = Sequence[Range | None]
_Rule = Callable[[ir.Node, _Given, Mapping[str, int]], Range]


def _hull(ranges: _Given) -> Range:
    known = [found for found in ranges if found is not None]
    return (min(low for low, _ in known), max(high for _, high in known)) if known else _UNKNOWN


def _pairs(combine: Callable[[float, float], float]) -> _Rule:
    """Of operators whose extremes lie where their operands' do."""

    def rule(node: ir.Node, given: _Given, sizes: Mapping[str, int]) -> Range:
        first, second = given[0] or _UNKNOWN, given[1] or _UNKNOWN
        ends = [combine(one, other) for one in first for other in second]
        return (math.nan, math.nan) if any(map(math.isnan, ends)) else (min(ends), max(ends))

    return rule


def _divided(node: ir.Node, given: _Given, sizes: Mapping[str, int]) -> Range:
    divisor = given[1] or _UNKNOWN
    return _pairs(lambda a, b: a / b)(node, given, sizes) if divisor[0] > 0 else _UNKNOWN


def _modulo(node: ir.Node, given: _Given, sizes: Mapping[str, int]) -> Range:
    (low, high), divisor = given[0] or _UNKNOWN, given[1] or _UNKNOWN
    if divisor[0] <= 0:
        return _UNKNOWN
    signed = node.attributes.get_int("fmod", 0) and low < 0
    return (1 - divisor[1] if signed else 0.0), min(high if low >= 0 else math.inf, divisor[1] - 1)


def _clipped(node: ir.Node, given: _Given, sizes: Mapping[str, int]) -> Range:
    low, high = given[0] or _UNKNOWN
    least, most = (
        given[place] if len(given) > place else _attribute(node, name) for place, name in ((1, "min"), (2, "max"))
    )
    if least is not None:
        low, high = max(low, least[0]), max(high, least[1])
    if most is not None:
        low, high = min(low, most[0]), min(high, most[1])
    return low, high


def _attribute(node: ir.Node, name: str) -> Range | None:
    attribute = node.attributes.get(name)
    return None if attribute is None else (attribute.as_float(), attribute.as_float())


def _total(node: ir.Node, given: _Given, sizes: Mapping[str, int]) -> Range:
    """Of a sum along axes, running or not: as many times the range as there are elements."""
    low, high = given[0] or _UNKNOWN
    count = _summed(node, sizes)
    if count is None:
        return _UNKNOWN if (low, high) != (0.0, 0.0) else (0.0, 0.0)
    return min(low, low * count), max(high, high * count)


def _summed(node: ir.Node, sizes: Mapping[str, int]) -> int | None:
    shape = _shape(node.inputs[0], sizes)
    if shape is None:
        return None
    axes: Sequence[int] | None = node.attributes.get_ints("axes", None)
    if len(node.inputs) > 1 and node.inputs[1] is not None:
        tensor = fixed_tensor(node.inputs[1])
        if tensor is None:
            return None
        axes = [int(axis) for axis in np.ravel(tensor.numpy())]
    elif axes is None and node.attributes.get_int("noop_with_empty_axes", 0) == 1:
        return 1
    if any(not -len(shape) <= axis < len(shape) for axis in axes or ()):
        return None
    counted = shape if axes is None else [shape[axis] for axis in axes]
    known = [size for size in counted if size is not None]
    return math.prod(known) if len(known) == len(counted) else None


def _shape(value: ir.Value | None, sizes: Mapping[str, int]) -> list[int | None] | None:
    """The sizes of a value, told by operators in front that keep them where the file does not state them."""
    while value is not None and value.shape is None:
        node = value.producer()
        if node is None or node.op_type not in _SHAPE_KEPT:
            return None
        shaped = [read for read in node.inputs if read is not None and not _is_scalar(read)]
        value = shaped[0] if shaped else None
    if value is None or value.shape is None:
        return None
    return [dim if isinstance(dim, int) else sizes.get(str(dim.value)) for dim in value.shape]


def _is_scalar(value: ir.Value) -> bool:
    tensor = fixed_tensor(value)
    return tensor is not None and tensor.size == 1


def _counted(node: ir.Node, given: _Given, sizes: Mapping[str, int]) -> Range:
    """Of Range, which stops before its limit."""
    start, limit = given[0] or _UNKNOWN, given[1] or _UNKNOWN
    return min(start[0], limit[0]), max(start[1], limit[1] - 1)


def _sizes_of(node: ir.Node, given: _Given, sizes: Mapping[str, int]) -> Range:
    shape = _shape(node.inputs[0], sizes)
    known = [size for size in shape or () if size is not None]
    return (float(min(known)), float(max(known))) if shape and len(known) == len(shape) else _UNKNOWN


def _filled(node: ir.Node, given: _Given, sizes: Mapping[str, int]) -> Range:
    attribute = node.attributes.get("value")
    value = float(attribute.as_tensor().numpy().item()) if attribute is not None else 0.0
    return value, value


_RANGES: dict[str, _Rule] = {
    **dict.fromkeys(_ELEMENTS_KEPT, lambda node, given, sizes: given[0] or _UNKNOWN),
    **dict.fromkeys(_ZERO_OR_ONE, lambda node, given, sizes: (0.0, 1.0)),
    "Concat": lambda node, given, sizes: _hull(given),
    "Where": lambda node, given, sizes: _hull(given[1:]),
    "Pad": lambda node, given, sizes: _hull([given[0], (given[2] if len(given) > 2 else None) or (0.0, 0.0)]),
    "Min": lambda node, given, sizes: (min(r[0] for r in given if r), min(r[1] for r in given if r)),
    "Max": lambda node, given, sizes: (max(r[0] for r in given if r), max(r[1] for r in given if r)),
    "Add": _pairs(lambda a, b: a + b),
    "Sub": _pairs(lambda a, b: a - b),
    "Mul": _pairs(lambda a, b: 0.0 if 0.0 in (a, b) else a * b),
    "Div": _divided,
    "Mod": _modulo,
    "Neg": lambda node, given, sizes: (-(given[0] or _UNKNOWN)[1], -(given[0] or _UNKNOWN)[0]),
    "Abs": lambda node, given, sizes: (0.0, max(map(abs, given[0] or _UNKNOWN))),
    "Relu": lambda node, given, sizes: (0.0, max(0.0, (given[0] or _UNKNOWN)[1])),
    "Clip": _clipped,
    "ReduceSum": _total,
    "CumSum": _total,
    "Range": _counted,
    "Shape": _sizes_of,
    "ConstantOfShape": _filled,
}
