"""GraphIndex: what the finders of norms ask about a graph, answered once and remembered.

One index covers one graph (the model's, or a body of If / Loop / Scan). Finders walk `index.nodes`,
never `model.graph`, so that the same code searches bodies. The graph is never changed, and an index
is of no use after it was.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from dynorm_onnx.graph.values import small_constants as constants
from dynorm_onnx.graph.values.fixed import RANDOM, is_fixed
from dynorm_onnx.graph.values.node_kinds import FLOATS, SHAPE_ONLY, TOLD_A_SHAPE, data_inputs, is_op
from dynorm_onnx.graph.values.reads import bodies_of

Shape = tuple[int | None, ...]

# Random, or with attributes that are too large to compare: tensors and bodies.
_NEVER_EQUAL = RANDOM | {"Constant", "If", "Loop", "Scan"}
_TYPE_INPUT = {"Where": 1, "CastLike": 1, "DequantizeLinear": 1}
_SAME_SHAPE = {"Sqrt", "Reciprocal", "Neg", "Tanh", "Sigmoid", "Relu", "Erf", "LayerNormalization"}


def graph_indices(model: ir.Model) -> dict[ir.Graph, GraphIndex]:
    """An index of the main graph, then of every body below it, after that of the graph around it."""
    indices = {model.graph: GraphIndex(model.graph, model.opset_imports)}
    pending = [model.graph]
    while pending:
        around = indices[pending.pop(0)]
        for node in around.nodes:
            for attribute, body in bodies_of(node):
                indices[body] = GraphIndex(body, model.opset_imports, parent=around, holder=(node, attribute))
                pending.append(body)
    return indices


class GraphIndex:
    """Constants, shapes, consumers and sameness of the values of one graph.

    `parent` is the index of the graph around a body: values from outside are looked up there. `holder` is
    the node of the body, with the name of its attribute.
    """

    across_quantisation = False  # whether rounding counts for nothing

    def __init__(
        self,
        graph: ir.Graph,
        opset_imports: Mapping[str, int],
        parent: GraphIndex | None = None,
        holder: tuple[ir.Node, str] | None = None,
    ) -> None:
        self.graph = graph
        self.parent = parent
        self.holder = holder
        self.nodes: tuple[ir.Node, ...] = tuple(graph)
        self.opset_imports = opset_imports
        self._opsets = {("" if k == "ai.onnx" else k): v for k, v in opset_imports.items()}
        self._position = {node: i for i, node in enumerate(self.nodes)}
        self._live = self._find_live()
        self._constants: dict[ir.Value, np.ndarray | None] = {}
        self._numbers: dict[ir.Value, int] = {}
        self._keys: dict[tuple, int] = {}
        self._input_dependent = self._find_input_dependent()
        self._sizes: dict[ir.Value, np.ndarray] = {}
        self._follow_sizes()

    # -- the graph ------------------------------------------------------------------------------

    def holders(self) -> list[tuple[ir.Node, str]]:
        """The nodes that a body lies in, with their attributes, from the inside out; none for the main graph."""
        return [] if self.holder is None or self.parent is None else [self.holder, *self.parent.holders()]

    def opset(self, domain: str = "") -> int | None:
        """The version that the model imports of a domain; None where it imports none."""
        return self._opsets.get(domain)

    def __contains__(self, node: ir.Node | None) -> bool:
        """Whether the node lies in this graph itself (not in a body within it)."""
        return node in self._position

    def position(self, node: ir.Node) -> int:
        """The node's place in the graph's order."""
        return self._position[node]

    def consumers(self, value: ir.Value) -> list[ir.Node]:
        """The nodes that read the value, without dead ones; a reader in a body counts as itself."""
        return [node for node in value.consumers() if node not in self._position or node in self._live]

    def is_output(self, value: ir.Value) -> bool:
        """Whether the graph (or body) gives the value out."""
        return value.is_graph_output()

    def used_outside(self, value: ir.Value, nodes: set[ir.Node]) -> bool:
        """Whether anything but these nodes needs the value."""
        return self.is_output(value) or any(node not in nodes for node in self.consumers(value))

    def _find_live(self) -> set[ir.Node]:
        live: set[ir.Node] = set()
        for node in reversed(self.nodes):
            for output in node.outputs:
                readers = output.consumers()
                if output.is_graph_output() or any(r in live or r not in self._position for r in readers):
                    live.add(node)
                    break
        return live

    # -- constants ------------------------------------------------------------------------------

    def constant(self, value: ir.Value | None) -> np.ndarray | None:
        """The data of a small constant, folded through shape arithmetic; None if not known.

        At most constants.LARGEST elements; use `is_constant` to ask about weights, whose data may
        be missing.
        """
        if value is None or not self.is_constant(value):
            return None
        if value not in self._constants:
            with np.errstate(all="ignore"):
                self._fold_with_operands(value)
        return self._constants[value]

    def _fold_with_operands(self, value: ir.Value) -> None:
        """Operands first, without recursion: files hold chains of constants longer than Python's stack."""
        pending = [value]
        while pending:
            node = pending[-1].producer()
            folded = node is not None and (node.op_type in constants.FOLDS or node.op_type == "CastLike")
            operands = node.inputs if node is not None and folded else ()
            unknown = [v for v in operands if v is not None and v not in self._constants and self.is_constant(v)]
            if unknown:
                pending += unknown
            elif (done := pending.pop()) not in self._constants:
                self._constants[done] = self._fold(done)

    def scalar(self, value: ir.Value | None) -> float | None:
        """The number that a constant of one element holds, also when it is expanded to a shape."""
        if value is None:
            return None
        data = self.constant(value)
        if data is not None:
            return float(data.item()) if data.size == 1 else None
        node = value.producer()
        if is_op(node, "Expand", "Reshape", "Unsqueeze", "Squeeze", "Identity") and node is not None:
            return self.scalar(node.inputs[0])
        if is_op(node, "Cast") and node is not None:
            number = self.scalar(node.inputs[0])
            kind = constants.numpy_type(constants.integer(node, "to", 1))
            return None if number is None or kind is None else float(np.asarray(number).astype(kind))
        if is_op(node, "ConstantOfShape") and node is not None:
            fill = node.attributes.get("value")
            data = np.zeros(1) if fill is None else constants.read_tensor(fill.as_tensor())
            return None if data is None else float(data.item())
        return None

    def is_constant(self, value: ir.Value) -> bool:
        """Whether the value is the same for every input of the model; shapes count as the same."""
        if value.is_initializer():
            return is_fixed(value)
        if value.producer() in self._position:
            return value not in self._input_dependent
        return self.parent.is_constant(value) if self.parent is not None else False

    def _fold(self, value: ir.Value) -> np.ndarray | None:
        if value.is_initializer():
            return constants.read_tensor(value.const_value) if is_fixed(value) else None
        node = value.producer()
        if node is None or node.domain not in ("", "ai.onnx"):
            return None
        if node.op_type == "Constant":
            return constants.constant_node(node)
        if node.op_type == "Shape":
            return self._fold_shape(node)
        if node.op_type == "Size":
            return self._fold_size(node)
        if node.op_type == "CastLike":
            data, dtype = self.constant(node.inputs[0]), self.dtype(node.inputs[1])
            kind = None if dtype is None else constants.numpy_type(dtype.value)
            return data if data is None or kind is None else data.astype(kind)
        data = _folded(constants.FOLDS, node, [self.constant(i) for i in node.inputs])
        sizes = self._sizes.get(value)
        if data is None and sizes is not None and not np.isnan(sizes).any():
            return sizes.astype(np.int64)
        return data

    def _fold_shape(self, node: ir.Node) -> np.ndarray | None:
        shape = self.shape(node.inputs[0])
        wanted = None if shape is None else _sliced_shape(node, shape)
        return None if wanted is None or np.isnan(wanted).any() else wanted.astype(np.int64)

    def _fold_size(self, node: ir.Node) -> np.ndarray | None:
        shape = self.shape(node.inputs[0])
        inner = node.inputs[0].producer() if node.inputs[0] is not None else None
        if is_op(inner, "Shape") and inner is not None and not inner.attributes:
            rank = self.rank(inner.inputs[0])  # Size(Shape(x)): known even where the shape is not
            return None if rank is None else np.asarray(rank, np.int64)
        if shape is None or any(d is None for d in shape):
            return None
        return np.asarray(np.prod([d for d in shape if d is not None]), np.int64)

    def _follow_sizes(self) -> None:
        """What follows from the shapes of values, element by element: NaN for a size that is not known."""
        for node in self.nodes:
            if is_op(node, "Shape"):
                shape = self.shape(node.inputs[0])
                found = None if shape is None else _sliced_shape(node, shape)
            elif is_op(node, *constants.SIZE_FOLDS) and self._reads_sizes(node):
                found = _folded(constants.SIZE_FOLDS, node, [self.sizes(i) for i in node.inputs])
            else:
                continue
            if found is not None:
                self._sizes[node.outputs[0]] = found

    def _reads_sizes(self, node: ir.Node) -> bool:
        joins = node.op_type == "Concat" and self.dtype(node.outputs[0]) in (ir.DataType.INT64, ir.DataType.INT32)
        return joins or any(i in self._sizes for i in node.inputs)

    def sizes(self, value: ir.Value | None) -> np.ndarray | None:
        """A tensor of sizes (float64, NaN for one that is not known), at most one-dimensional; None if its length
        is not known either."""
        if value is None or value in self._sizes:
            return None if value is None else self._sizes[value]
        data, shape = self.constant(value), self.shape(value)
        if data is not None:
            return data.astype(np.float64) if data.ndim < 2 and data.dtype.kind in "iu" else None
        if shape is None or len(shape) > 1 or any(d is None or d > constants.LARGEST for d in shape):
            return None
        return np.full([d or 0 for d in shape], np.nan)

    def _find_input_dependent(self) -> set[ir.Value]:
        dependent: set[ir.Value] = set()
        for node in self.nodes:
            varies = is_op(node, *RANDOM) or any(
                value in dependent or (value.producer() not in self._position and not self.is_constant(value))
                for value in data_inputs(node)
            )
            if varies:
                dependent.update(node.outputs)
        return dependent

    # -- types and shapes -----------------------------------------------------------------------

    def shape(self, value: ir.Value | None) -> Shape | None:
        """The static shape, None for each dimension (or all of it) that is not known."""
        if value is None:
            return None
        shape = value.const_value.shape if value.shape is None and value.const_value else value.shape
        known = None if shape is None else tuple(d if isinstance(d, int) else None for d in shape)
        node = value.producer()
        if is_op(node, *TOLD_A_SHAPE) and node is not None and (known is None or None in known):
            asked = self._asked_shape(node)
            if known is None or asked is None or len(asked) != len(known):
                return asked if known is None else known
            return tuple(t if k is None else k for k, t in zip(known, asked, strict=True))
        if known is not None:
            return known
        if is_op(node, "Constant") and node is not None:
            data = constants.constant_node(node)
            tensor = node.attributes.get("value")
            if tensor is not None:
                return tuple(tensor.as_tensor().shape.numpy())
            return None if data is None else data.shape
        if is_op(node, "Cast", "Identity", *_SAME_SHAPE) and node is not None:
            return self.shape(node.inputs[0])
        return None

    def _asked_shape(self, node: ir.Node) -> Shape | None:
        """The shape that a node is told to give, as far as its operand of sizes is known."""
        place = 0 if node.op_type == "ConstantOfShape" else 1  # a Reshape of opset 1 has an attribute instead
        sizes = self.sizes(node.inputs[place]) if place < len(node.inputs) else None
        if sizes is None or sizes.ndim != 1:
            return None
        dims = tuple(None if np.isnan(d) or d <= 0 else int(d) for d in sizes)
        if node.op_type != "Expand":
            return dims
        shape = self.shape(node.inputs[0])
        if shape is None:
            return None
        rank = max(len(dims), len(shape))
        pairs = zip(*((1,) * (rank - len(s)) + s for s in (shape, dims)), strict=True)
        return tuple(next((d for d in pair if d not in (None, 1)), 1 if pair == (1, 1) else None) for pair in pairs)

    def rank(self, value: ir.Value | None) -> int | None:
        """The number of dimensions, where anything tells it."""
        shape = self.shape(value)
        if shape is not None:
            return len(shape)
        node = value.producer() if value is not None else None
        if is_op(node, "Flatten"):
            return 2
        return None

    def dtype(self, value: ir.Value | None) -> ir.DataType | None:
        """The element type, also where no value info says it but a Cast or an input's type does."""
        while value is not None and value.dtype is None and value.const_value is None:
            node = value.producer()
            if node is None or node.domain not in ("", "ai.onnx") or node.op_type in SHAPE_ONLY:
                return None
            if node.op_type == "Cast":
                return ir.DataType(constants.integer(node, "to", 1))
            # The operators of the finders' algebra give the type of one of their inputs.
            place = _TYPE_INPUT.get(node.op_type, 0)
            value = node.inputs[place] if place < len(node.inputs) else None
        if value is None:
            return None
        return value.dtype if value.const_value is None or value.dtype is not None else value.const_value.dtype

    # -- sameness -------------------------------------------------------------------------------

    def peel(self, value: ir.Value) -> ir.Value:
        """The value before all Casts between float types and Identities."""
        node = value.producer()
        while is_op(node, "Cast", "Identity") and node is not None and node.inputs[0] is not None:
            source = node.inputs[0]
            if node.op_type == "Cast" and self.dtype(source) not in FLOATS | {None}:
                break
            value, node = source, source.producer()
        return value

    def same(self, a: ir.Value, b: ir.Value) -> bool:
        """Whether two values hold the same numbers but for Casts: equal nodes give equal values."""
        return self.number(a) == self.number(b)

    def number(self, value: ir.Value) -> int:
        """The value's number; values with one number are computed alike from the same sources."""
        pending = [value]
        while pending:
            top = pending[-1]
            source = self.peel(top)
            node = source.producer()
            missing = []
            if node in self._position and node is not None:
                missing = [i for i in node.inputs if i is not None and i not in self._numbers]
            if missing and top not in self._numbers:
                pending.extend(missing)
                continue
            pending.pop()
            if top not in self._numbers:
                self._numbers[top] = self._keys.setdefault(self._key(source), len(self._keys))
        return self._numbers[value]

    def _key(self, value: ir.Value) -> tuple:
        data = self.constant(value)
        if data is not None and data.size == 1:
            return ("scalar", float(data.item()))
        node = value.producer()
        if node is None or node not in self._position or node.op_type in _NEVER_EQUAL:
            return ("source", id(value))
        attributes = tuple(sorted((k, str(v)) for k, v in node.attributes.items()))
        inputs = tuple(-1 if i is None else self._numbers[i] for i in node.inputs)
        return (node.domain, node.op_type, value.index(), attributes, inputs)

    def depends_on(self, value: ir.Value, source: ir.Value) -> bool:
        """Whether the value's numbers need the source's numbers; a shape alone does not count."""
        if value is source:
            return True
        first = source.producer()
        start = self._position.get(first, -1) if first is not None else -1
        seen: set[ir.Node] = set()
        stack = [value]
        while stack:
            node = stack.pop().producer()
            if node is None or node in seen or self._position.get(node, -1) <= start:
                continue
            seen.add(node)
            for i in data_inputs(node):
                if i is source:
                    return True
                stack.append(i)
        return False


def _sliced_shape(node: ir.Node, shape: Shape) -> np.ndarray:
    """What a Shape node gives, NaN for what is not known."""
    start, end = constants.integer(node, "start", 0), constants.integer(node, "end", len(shape))
    return np.asarray([np.nan if d is None else d for d in shape[start:end]], np.float64)


def _folded(
    folds: Mapping[str, constants.Fold], node: ir.Node, inputs: Sequence[np.ndarray | None]
) -> np.ndarray | None:
    fold = folds.get(node.op_type)
    try:
        data = None if fold is None else fold(node, inputs)
    except (ValueError, IndexError, TypeError, ArithmeticError):  # a malformed file: then it is no constant of ours
        return None
    return data if data is None or data.size <= constants.LARGEST else None
