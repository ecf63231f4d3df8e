"""GraphIndex: constants, shapes, sameness and dependence, as finders ask for them."""

from __future__ import annotations

import onnx.parser
import onnx_ir as ir
import pytest

from dynorm_onnx.graph.forms.layout import why_not_last_axis
from dynorm_onnx.graph.values.index import GraphIndex

HEADER = '<ir_version: 9, opset_import: ["": 18]>'


def index_of(body: str, outputs: str = "float y") -> tuple[GraphIndex, dict[str, ir.Value]]:
    """The index of a graph of x [b, 6, 8] and w [8], and its values by name."""
    text = f"{HEADER} g (float[b,6,8] x, float[8] w) => ({outputs}) {{ {body} }}"
    model = ir.from_proto(onnx.parser.parse_model(text))
    graph = model.graph
    values = {str(v.name): v for v in [*graph.inputs, *(o for node in graph for o in node.outputs)]}
    return GraphIndex(graph, model.opset_imports), values


def test_scalars_are_folded_with_the_rounding_of_their_casts() -> None:
    index, values = index_of(
        """e = Constant <value_float = 1e-8> ()
        half = Cast <to = 10> (e)
        one = Constant <value_float = 1.0> ()
        shape = Shape (x)
        ones = Expand (one, shape)
        like = CastLike (e, x)
        y = Add (x, ones)"""
    )
    assert index.scalar(values["e"]) == pytest.approx(1e-8)
    assert index.scalar(values["half"]) == 0.0
    assert index.scalar(values["ones"]) == 1.0
    assert index.scalar(values["like"]) == pytest.approx(1e-8)
    assert index.scalar(values["x"]) is None


def test_axes_are_folded_through_the_rank() -> None:
    index, values = index_of(
        """shape = Shape (x)
        rank = Size (shape)
        minus = Constant <value_int = -2> ()
        first = Add (rank, minus)
        step = Constant <value_int = 1> ()
        axes = Range (first, rank, step)
        y = ReduceMean (x, axes)"""
    )
    assert index.constant(values["axes"]).tolist() == [1, 2]
    assert index.constant(values["shape"]) is None  # b is not known


def test_shapes_are_no_dependence() -> None:
    index, values = index_of(
        """shape = Shape (x)
        one = Constant <value_float = 1.0> ()
        ones = Expand (one, shape)
        like = CastLike (one, x)
        twice = Add (x, x)
        noise = RandomNormalLike (x)
        y = Mul (twice, ones)"""
    )
    assert index.is_constant(values["ones"]) and index.is_constant(values["like"])
    assert not index.is_constant(values["twice"]) and not index.is_constant(values["noise"])
    assert index.depends_on(values["y"], values["x"]) and index.depends_on(values["twice"], values["x"])
    assert not index.depends_on(values["ones"], values["x"])
    assert not index.depends_on(values["w"], values["x"])


def test_equal_nodes_give_the_same_value() -> None:
    index, values = index_of(
        """a = Cast <to = 1> (x)
        b = Identity (x)
        one = Sub (a, w)
        other = Sub (b, w)
        third = Sub (w, b)
        y = Mul (one, other)"""
    )
    assert index.peel(values["a"]) is values["x"]
    assert index.same(values["one"], values["other"])
    assert not index.same(values["one"], values["third"])


def test_a_cast_to_integers_is_not_peeled() -> None:
    index, values = index_of("i = Cast <to = 7> (x) \n f = Cast <to = 1> (i) \n y = Add (f, w)")
    assert index.peel(values["f"]) is values["f"]
    assert index.dtype(values["i"]) == ir.DataType.INT64


def test_reshape_targets_tell_shapes_in_part() -> None:
    index, values = index_of(
        """shape = Shape <end = 1> (x)
        rest = Constant <value_ints = [6, 2, 4]> ()
        target = Concat <axis = 0> (shape, rest)
        h = Reshape (x, target)
        f = Flatten (x)
        y = Add (h, h)"""
    )
    assert index.shape(values["x"]) == (None, 6, 8)
    assert index.constant(values["rest"]).tolist() == [6, 2, 4]
    assert index.rank(values["f"]) == 2


def test_dead_nodes_are_no_readers() -> None:
    index, values = index_of("s = Sqrt (x) \n unused = Neg (s) \n y = Add (s, w)")
    assert [node.op_type for node in index.consumers(values["s"])] == ["Add"]
    assert not index.used_outside(values["s"], set(index.consumers(values["s"])))
    assert index.used_outside(values["y"], set())


def test_large_or_missing_weights_are_never_read() -> None:
    index, _ = index_of("y = Add (x, w)")
    missing = ir.ExternalTensor("gone.bin", 0, 4, ir.DataType.FLOAT, name="m", shape=ir.Shape([1]), base_dir="nowhere")
    value = ir.Value(name="m", const_value=missing)
    index.graph.register_initializer(value)
    assert index.scalar(value) is None
    assert index.is_constant(value) and index.shape(value) == (1,)


def test_a_number_that_is_given_a_shape_has_no_axis_to_be_grouped() -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 18]>
        g (float x) => (float[1, 8] y) <int64[2] shape = {1, 8}> { y = Reshape(x, shape) }"""
    )
    graph = ir.from_proto(model).graph
    assert why_not_last_axis(GraphIndex(graph, {"": 18}), graph.outputs[0], 8) is None
