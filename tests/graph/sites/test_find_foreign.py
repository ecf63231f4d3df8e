"""Norms as other people's files hold them: found where exact, named where none, refused where the file is broken."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from dynorm_onnx.convert import main
from dynorm_onnx.errors import ModelError
from dynorm_onnx.graph.files.model_io import load, prepare
from dynorm_onnx.graph.lower import lower
from dynorm_onnx.graph.norm_site import SitesFound
from dynorm_onnx.graph.sites.find import find_sites
from tests.builders.execute import run_ort
from tests.end_to_end.test_foreign_files import LIN, C, X, model
from tests.tolerances import relative_error

VECTOR = np.linspace(0.5, 1.5, C, dtype=np.float32)
EPS = np.array(1e-3, np.float32)


def found_in(proto: onnx.ModelProto) -> SitesFound:
    return find_sites(prepare(ir.from_proto(proto)))


def reasons(found: SitesFound) -> str:
    return "; ".join(miss.reason for miss in (*found.near_misses, *found.refused))


def check_exact(proto: onnx.ModelProto, **feeds: np.ndarray) -> None:
    """Lowering the sites leaves the outputs, and no reduction."""
    prepared = prepare(ir.from_proto(proto))
    lower(prepared, find_sites(prepared).sites)
    for old, new in zip(run_ort(proto, feeds), run_ort(ir.to_proto(prepared), feeds), strict=True):
        assert relative_error(new, old) < 1e-5
    assert not any(node.op_type.startswith("Reduce") and node.op_type != "ReduceProd" for node in prepared.graph)


# -- malformed nodes ---------------------------------------------------------------------------

#: the operators that are looked at, with inputs that they need
OPERANDS = {
    **dict.fromkeys(("RMSNormalization", "SimplifiedLayerNormalization", "LayerNormalization"), "xw"),
    **dict.fromkeys(("Pow", "Mul", "Add", "Sub", "Div", "CastLike"), "xw"),
    **dict.fromkeys(("ReduceMean", "ReduceSum", "ReduceL2", "ReduceSumSquare", "LpNormalization"), "x"),
    **dict.fromkeys(("Sqrt", "Reciprocal", "Neg", "Cast", "Identity", "Shape", "Size", "Flatten", "Transpose"), "x"),
    **dict.fromkeys(("Reshape", "Expand", "Gather"), "xw"),
    "BatchNormalization": "xwwww", "InstanceNormalization": "xww", "DequantizeLinear": "xw", "ConstantOfShape": "w",
    "com.microsoft::SimplifiedLayerNormalization": "xw", "com.microsoft::SkipLayerNormalization": "xxw",
    "com.microsoft::SkipSimplifiedLayerNormalization": "xxw", "com.microsoft::EmbedLayerNormalization": "xxwwwww",
    "com.microsoft::GatedRMSNorm": "xwx",
}  # fmt: skip


def around(op_type: str, inputs: list[str], opset: int) -> onnx.ModelProto:
    """A model in which a norm in pieces follows the node."""
    domain, _, name = op_type.rpartition("::")
    attributes = {"to": TensorProto.FLOAT} if name == "Cast" else {}
    text = """
    g (float[n,4,8] x, float[8] y) => (z) {
      squares = Mul(y, y)
      mean = ReduceMean(squares)
      root = Sqrt(mean)
      z = Div(y, root)
    }"""
    proto = model(text, {"w": VECTOR}, opset=opset)
    del proto.graph.input[1]
    proto.graph.node.insert(0, helper.make_node(name, inputs, ["y"], name="bad", domain=domain, **attributes))
    proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return proto


@pytest.mark.parametrize("opset", [11, 17, 23])
@pytest.mark.parametrize("op_type", OPERANDS)
def test_a_node_that_lacks_an_input_is_named(op_type: str, opset: int) -> None:
    operands = list(OPERANDS[op_type])
    lacking = [operands[:count] for count in range(len(operands))]
    if op_type != "com.microsoft::EmbedLayerNormalization":  # some of its are optional
        lacking += [[*operands[:i], "", *operands[i + 1 :]] for i in range(len(operands))]
    for inputs in [*lacking, ["x"] * 30]:
        with pytest.raises(ModelError, match=r"the node 'bad' \(.*\) has "):
            found_in(around(op_type, inputs, opset))


@pytest.mark.parametrize("op_type", ["com.microsoft::SkipLayerNormalization", "LayerNormalization", "ReduceMean"])
def test_a_node_without_outputs_is_named(op_type: str) -> None:
    proto = model("g (float[n,4,8] x) => (float[n,4,8] x) { y = Identity(x) }", {"w": VECTOR})
    domain, _, name = op_type.rpartition("::")
    proto.graph.node[0].CopyFrom(helper.make_node(name, list(OPERANDS[op_type]), [], name="bad", domain=domain))
    with pytest.raises(ModelError, match=r"'bad' .* has 0 outputs"):
        found_in(proto)


@pytest.mark.parametrize(("node", "said"), [
    ("LayerNormalization <epsilon: string = \"small\"> (x, w)", "'epsilon' of .* type STRING; .* wants FLOAT"),
    ("LayerNormalization <axis = 1.5> (x, w)", "'axis' of .* has type FLOAT; its operator wants INT"),
    ("ReduceMean <keepdims = [1, 0]> (x)", "'keepdims' of .* has type INTS; its operator wants INT"),
    ("ReduceMean (x, w)", "'axes' of .* is of type FLOAT; its operator wants integers"),
    ("Concat (x, x)", "lacks the attribute 'axis'"),
    ("com.microsoft.SkipLayerNormalization <epsilon = 1> (x, x, w)", "'epsilon' of .* type INT; .* wants FLOAT"),
    ("com.microsoft.MultiHeadAttention (x, x, x)", "lacks the attribute 'num_heads'"),
    ("com.microsoft.MatMulNBits <K = 8, N = 8> (x, w, w)", "lacks the attribute 'block_size'"),
])  # fmt: skip
def test_an_attribute_or_input_of_another_type_is_named(node: str, said: str) -> None:
    text = f"g (float[n,4,8] x) => (float[n,4,8] y) {{ y = {node} }}"
    proto = model(text, {"w": VECTOR}, opset=23)
    proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    with pytest.raises(ModelError, match=said):
        found_in(proto)


def test_a_malformed_node_in_a_body_or_a_function_is_named(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    function = helper.make_function(
        "own", "Norm", ["a"], ["b"], [helper.make_node("ReduceMean", [], ["b"], name="bad")],
        [helper.make_opsetid("", 17)],
    )  # fmt: skip
    proto = model("g (float[n,4,8] x) => (float[n,4,8] y) { y = Identity(x) }", {})
    proto.graph.node[0].op_type, proto.graph.node[0].domain = "Norm", "own"
    proto.functions.append(function)
    proto.opset_import.append(helper.make_opsetid("own", 1))
    onnx.save(proto, tmp_path / "model.onnx")
    assert main([str(tmp_path / "model.onnx"), "-q", "--to", "rmsnorm"]) == 2
    assert "'bad' (ReduceMean) has 0 inputs" in capsys.readouterr().err
    then = model("g () => (float[n,4,8] t) { t = Sqrt(x) }", {}).graph
    then.node[0].ClearField("input")
    proto = model("g (float[n,4,8] x, bool c) => (float[n,4,8] y) { y = Identity(x) }", {})
    proto.graph.node.insert(0, helper.make_node("If", ["c"], ["t"], then_branch=then, else_branch=then))
    with pytest.raises(ModelError, match=r"\(Sqrt\) has 0 inputs"):
        found_in(proto)


@pytest.mark.parametrize("node", [
    "RMSNormalization(x, w)", "LayerNormalization(x, w)", "LayerNormalization(x, ok, w)",
    "com.microsoft.SkipLayerNormalization(x, x, w)", "com.microsoft.SkipLayerNormalization(x, x, ok, w)",
    "com.microsoft.SkipSimplifiedLayerNormalization(x, x, w)", "com.microsoft.GatedRMSNorm(x, w, x)",
    "com.microsoft.EmbedLayerNormalization(ids, ids, table, table, table, w, ok)",
])  # fmt: skip
def test_a_weight_of_another_length_is_refused(node: str) -> None:
    text = f"g (float[n,4,8] x, int32[n,4] ids, float[9,8] table) => (float[n,4,8] y) {{ y = {node} }}"
    proto = model(text, {"w": np.ones(7, np.float32), "ok": VECTOR}, opset=23)
    proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    found = found_in(proto)
    assert not found.sites and [refusal.name for refusal in found.refused] == ["y"]
    assert "does not fit" in found.refused[0].reason


# -- quantised inside --------------------------------------------------------------------------

RMS = ["squares = Pow(x, two)", "mean = ReduceMean<axes = [-1]>(squares)", "stable = Add(mean, eps)",
       "root = Sqrt(stable)", "normal = Div(x, root)", "y = Mul(normal, w)"]  # fmt: skip
LAYER = ["centre = ReduceMean<axes = [-1]>(x)", "d = Sub(x, centre)", "squares = Mul(d, d)",
         "mean = ReduceMean<axes = [-1]>(squares)", "stable = Add(mean, eps)", "root = Sqrt(stable)",
         "normal = Div(d, root)", "scaled = Mul(normal, w)", "y = Add(scaled, b)"]  # fmt: skip
PIECES = {"two": np.array(2, np.float32), "eps": EPS, "w": VECTOR, "b": VECTOR, "lin": LIN,
          "scale": np.array(0.02, np.float32), "zero": np.array(3, np.int8)}  # fmt: skip


def quantised(lines: list[str], values: set[str], *, each: bool = False) -> onnx.ModelProto:
    """The norm with QuantizeLinear, DequantizeLinear behind `values`; each reader with a pair of its own, if asked."""
    out, made = [], {}
    for line in ["x = MatMul(given, lin)", *lines, "out = MatMul(y, lin)"]:
        target, _, call = line.partition(" = ")
        head, _, arguments = call.rpartition("(")
        operands = arguments.removesuffix(")").split(", ")
        for place, operand in enumerate(operands):
            if operand in values:
                pair = f"{operand}_{len(out) if each else 'q'}"
                if pair not in made:
                    out.append(f"{pair}_ = QuantizeLinear({operand}, scale, zero)")
                    out.append(f"{pair} = DequantizeLinear({pair}_, scale, zero)")
                made[pair] = operands[place] = pair
        out.append(f"{target} = {head}({', '.join(operands)})")
    text = "g (float[n,4,8] given) => (float[n,4,8] out) {\n" + "\n".join(out) + "\n}"
    return model(text, {name: array for name, array in PIECES.items() if name in text})


INSIDE = [{"squares"}, {"mean"}, {"root"}, {"normal"}, {"x", "squares", "mean", "stable", "root", "normal"}]


@pytest.mark.parametrize("each", [False, True], ids=["one pair", "a pair for each reader"])
@pytest.mark.parametrize("values", INSIDE, ids=lambda values: "-".join(sorted(values)))
@pytest.mark.parametrize("lines", [RMS, LAYER], ids=["rms", "layer"])
def test_a_norm_that_is_quantised_inside_is_named(lines: list[str], values: set[str], each: bool) -> None:
    proto = quantised(lines, values, each=each)
    found = found_in(proto)
    if values == {"normal"}:  # only the weight lies behind the rounding: the norm before it is whole
        assert len(found.sites) == 1 and found.sites[0].weight is None
        check_exact(proto, given=X)
        return
    assert not found.sites and len(found.near_misses) == 1
    assert "quantised inside" in found.near_misses[0].reason and "QuantizeLinear" in found.near_misses[0].reason


@pytest.mark.parametrize("value", ["d", "centre"])
def test_behind_a_mean_that_is_rounded_stands_an_rms_norm(value: str) -> None:
    """Of x less its rounded mean, or of the rounded difference: exactly, so that it can go and the rounding stays."""
    proto = quantised(LAYER, {value})
    assert [site.kind for site in found_in(proto).sites] == ["rms"]
    prepared = prepare(ir.from_proto(proto))
    lower(prepared, find_sites(prepared).sites)
    assert relative_error(run_ort(ir.to_proto(prepared), {"given": X})[0], run_ort(proto, {"given": X})[0]) < 1e-5


@pytest.mark.parametrize("lines", [RMS, LAYER], ids=["rms", "layer"])
def test_quantisation_around_a_norm_stays(lines: list[str]) -> None:
    proto = quantised(lines, {"x", "y", "w"})
    (site,) = found_in(proto).sites
    assert site.weight is not None
    check_exact(proto, given=X)


def test_constants_that_are_stored_quantised() -> None:
    proto = quantised(RMS, set())
    for name, number in (("eps", 1), ("two", 100)):
        stored = numpy_helper.from_array(np.array(number + 3, np.int8), f"{name}_stored")
        proto.graph.initializer.append(stored)
        (old,) = (tensor for tensor in proto.graph.initializer if tensor.name == name)
        proto.graph.initializer.remove(old)
        node = helper.make_node("DequantizeLinear", [stored.name, "scale", "zero"], [name])
        proto.graph.node.insert(0, node)
    proto.graph.initializer.extend(numpy_helper.from_array(PIECES[name], name) for name in ("scale", "zero"))
    (site,) = found_in(proto).sites
    assert site.epsilon == pytest.approx(0.02) and site.weight is not None
    check_exact(proto, given=X)


# -- ranks that nobody states ------------------------------------------------------------------

# As tf2onnx writes a dense layer (Tensordot): what it gives has the shape that Shape, Gather and Concat compute.
TENSORDOT = """
  {x}_shape = Shape({x})
  {x}_small = Cast<to = 6>({x}_shape)
  {x}_free = Gather({x}_small, places)
  {x}_rows = ReduceProd<axes = [0], keepdims = 1>({x}_free)
  {x}_flat32 = Concat<axis = 0>({x}_rows, width)
  {x}_flat = Cast<to = 7>({x}_flat32)
  {x}_2d = Reshape({x}, {x}_flat)
  {x}_product = MatMul({x}_2d, lin)
  {x}_back32 = Concat<axis = 0>({x}_free, width)
  {x}_back = Cast<to = 7>({x}_back32)
  {y} = Reshape({x}_product, {x}_back)
"""
KERAS = """
  {y}_mean = ReduceMean<axes = [2]>({x})
  {y}_d = Sub({x}, {y}_mean)
  {y}_squares = Mul({y}_d, {y}_d)
  {y}_variance = ReduceMean<axes = [2]>({y}_squares)
  {y}_stable = Add({y}_variance, eps)
  {y}_root = Sqrt({y}_stable)
  {y}_inverse = Reciprocal({y}_root)
  {y}_scale = Mul({y}_inverse, w)
  {y}_scaled = Mul({x}, {y}_scale)
  {y}_shift = Mul({y}_mean, {y}_scale)
  {y}_rest = Sub(b, {y}_shift)
  {y} = Add({y}_scaled, {y}_rest)
"""
COMPUTED = {"places": np.array([0, 1], np.int32), "width": np.array([C], np.int32), "lin": LIN, "eps": EPS,
            "w": VECTOR, "b": VECTOR}  # fmt: skip


def test_the_rank_follows_from_what_a_reshape_is_given() -> None:
    steps = [TENSORDOT.format(x="x", y="d1"), "s1 = Add(x, d1)", KERAS.format(x="s1", y="n1")]
    steps += [TENSORDOT.format(x="n1", y="d2"), "s2 = Add(n1, d2)", KERAS.format(x="s2", y="n2")]
    proto = model("g (float[N,T,W] x) => (float[N,T,W] n2) {" + "\n".join(steps) + "}", COMPUTED, opset=12)
    found = found_in(proto)
    assert [(s.kind, s.axes, s.channels) for s in found.sites] == [("layer", (-1,), C)] * 2, reasons(found)
    check_exact(proto, x=X)


@pytest.mark.parametrize("slices", [1, 2], ids=["two rounds", "three rounds"])
def test_the_rank_follows_through_slices_of_shapes_of_computed_rank(slices: int) -> None:
    """magika: rows = Shape(x)[:1]; Reshape(x, [rows, 8, -1]), whose mean runs over axis 1."""
    first = np.array([0], np.int64)
    text = "g (float[N,T,W] x) => (z) {" + TENSORDOT.format(x="x", y="v0")
    for i in range(slices):
        text += f"""
          shape{i} = Shape(v{i})
          rows{i} = Slice(shape{i}, first, one, first)
          to{i} = Concat<axis = 0>(rows{i}, eight, rest)
          v{i + 1} = Reshape(v{i}, to{i})
        """
    text += KERAS.format(x=f"v{slices}", y="z").replace("axes = [2]", "axes = [1]") + "}"
    weights = COMPUTED | {"first": first, "one": first + 1, "eight": first + C, "rest": first - 1}
    weights |= {"w": VECTOR.reshape(1, C, 1), "b": VECTOR.reshape(1, C, 1)}
    proto = model(text.replace("(z)", "(float[N,8,R] z)"), weights, opset=12)
    (site,) = found_in(proto).sites
    assert site.axes == (-2,) and site.channels == C
    check_exact(proto, x=X)


@pytest.mark.parametrize(("axis", "weight", "x", "axes"), [
    (2, (C,), (2, 4, C), (-1,)), (2, (1, 1, C), (2, 4, C), (-1,)), (1, (C, 1, 1), (2, C, 3, 5), (-3,)),
    (1, (1, C, 1), (2, C, 5), (-2,)),
])  # fmt: skip
def test_the_rank_follows_from_the_weight(
    axis: int, weight: tuple[int, ...], x: tuple[int, ...], axes: tuple[int, ...]
) -> None:
    """Nothing states the rank of x; positive axes and where the weight lies do."""
    text = "g (float x) => (float y) {" + KERAS.format(x="x", y="y").replace("[2]", f"[{axis}]") + "}"
    vectors = {name: VECTOR.reshape(weight) for name in ("w", "b")}
    proto = model(text, {"eps": EPS, **vectors}, opset=12)
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.ClearField("shape")
    found = found_in(proto)
    assert [(s.axes, s.channels, s.rank) for s in found.sites] == [(axes, C, len(x))], reasons(found)
    check_exact(proto, x=np.random.default_rng(0).normal(size=x).astype(np.float32))


def test_where_nothing_tells_the_rank_the_norm_is_named() -> None:
    lines = "\n".join(LAYER[:-2]).replace("[-1]", "[2]").replace("normal =", "y =")
    proto = model("g (float x) => (float y) {" + lines + "}", {"eps": EPS})
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.ClearField("shape")
    found = found_in(proto)
    assert not found.sites and "positive where the rank is not known" in reasons(found)


# -- Keras's fused LayerNormalization ----------------------------------------------------------

FUSED = """
g (float[N,8] x) => (float[N,8] y) {
  shape = Shape(x)
  first = Slice(shape, zero, one, zero)
  ones = Expand(number, first)
  zeros = Expand(nought, first)
  rows = Reshape(x, apart)
  mean = ReduceMean<axes = [0, 2, 3]>(rows)
  d = Sub(rows, mean)
  VARIANCE
  flat_mean = Squeeze(mean, dropped)
  whole = BatchNormalization<epsilon = 0.001>(rows, ones, zeros, flat_mean, variance)
  normal = Reshape(whole, shape)
  scaled = Mul(normal, w)
  y = Add(scaled, b)
}"""
BY_COUNT = """
  total = ReduceSumSquare<axes = [0, 2, 3], keepdims = 0>(d)
  sizes = Shape(rows)
  counted = Gather(sizes, dropped)
  product = ReduceProd<axes = [0], keepdims = 0>(counted)
  count = Cast<to = 1>(product)
  variance = Div(total, count)
"""
BY_MEAN = """
  squares = Mul(d, d)
  variance = ReduceMean<axes = [0, 2, 3], keepdims = 0>(squares)
"""
BATCH = {"zero": np.array([0]), "one": np.array([1]), "w": VECTOR, "b": VECTOR,
         "number": np.array(1, np.float32), "nought": np.array(0, np.float32),
         "apart": np.array([1, -1, C, 1]), "dropped": np.array([0, 2, 3])}  # fmt: skip


@pytest.mark.parametrize("variance", [BY_COUNT, BY_MEAN], ids=["sum over count", "mean of squares"])
def test_a_layer_norm_by_batch_normalization_for_inference(variance: str) -> None:
    proto = model(FUSED.replace("VARIANCE", variance), BATCH, opset=13)
    found = found_in(proto)
    assert [(s.form, s.kind, s.axes, s.epsilon) for s in found.sites] == [("C6", "layer", (-1,), pytest.approx(1e-3))]
    assert found.sites[0].weight is not None and found.sites[0].bias is not None and not found.near_misses
    check_exact(proto, x=X[0])


@pytest.mark.parametrize(("what", "instead"), [
    ("[1, -1, 8, 1]", [-1, C, 1, 1]),  # statistics of a channel over the batch
    ("zeros, flat_mean, variance", "zeros, variance, variance"),
    ("variance = Div(total, count)", "variance = Mul(total, count)"),
])  # fmt: skip
def test_other_statistics_are_no_layer_norm(what: str, instead: object) -> None:
    text = FUSED.replace("VARIANCE", BY_COUNT)
    weights = dict(BATCH)
    if isinstance(instead, str):
        assert what in text
        text = text.replace(what, instead)
    else:
        weights["apart"] = np.array(instead)
        text = text.replace("first = Slice(shape, zero, one, zero)", "first = Slice(shape, one, two, zero)")
        weights["two"] = np.array([2])
    assert not found_in(model(text, weights, opset=13)).sites


# -- names given twice -------------------------------------------------------------------------

NORM = "n = LayerNormalization<axis = -1>(x, w)"
TWICE = {
    "two nodes": ("a = Sqrt(x)\na = Neg(x)", "'a' is given twice, by an unnamed Sqrt and by an unnamed Neg"),
    "one node": ("a, a = Split<axis = -1>(x)", "'a' is given twice, by an unnamed Split and by an unnamed Split"),
    "an input": ("x = Sqrt(x)", "'x' is given twice, by an input and by an unnamed Sqrt"),
    "an initializer": ("w = Sqrt(x)", "'w' is given twice, by an initializer and by an unnamed Sqrt"),
}


@pytest.mark.parametrize("case", TWICE)
def test_a_name_that_is_given_twice_is_named(case: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    lines, said = TWICE[case]
    proto = model(f"g (float[n,4,8] x) => (float[n,4,8] n) {{\n{lines}\n{NORM}\n}}", {"w": VECTOR})
    onnx.save(proto, tmp_path / "model.onnx")
    assert main([str(tmp_path / "model.onnx"), "-q"]) == 2
    assert said in capsys.readouterr().err


def test_a_name_that_is_given_twice_elsewhere_is_named(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"

    def refused(proto: onnx.ModelProto, said: str) -> None:
        onnx.save(proto, path)
        with pytest.raises(ModelError, match=said):
            load(path)

    plain = f"g (float[n,4,8] x) => (float[n,4,8] n) {{ {NORM} }}"
    proto = model(plain, {"w": VECTOR})
    proto.graph.initializer.append(numpy_helper.from_array(2 * VECTOR, "w"))
    refused(proto, "'w' is given twice, by an initializer and by an initializer")
    proto = model(plain, {"w": VECTOR})
    proto.graph.input.append(proto.graph.input[0])
    refused(proto, "'x' is given twice, by an input and by an input")
    branch = model("g () => (float[n,4,8] t) { t = Sqrt(x)\n s = Neg(x)\n s = Neg(t) }", {}).graph
    proto = model(plain.replace("x)", "x, bool c)", 1), {"w": VECTOR})
    proto.graph.node.append(helper.make_node("If", ["c"], ["t"], name="if", then_branch=branch, else_branch=branch))
    refused(proto, "'s' is given twice in the (then|else)_branch of If 'if', by an unnamed Neg and by an unnamed Neg")
    nodes = [helper.make_node(op, ["a"], ["b"]) for op in ("Sqrt", "Neg")]
    proto = model(plain, {"w": VECTOR})
    proto.functions.append(helper.make_function("own", "F", ["a"], ["b"], nodes, [helper.make_opsetid("", 17)]))
    refused(proto, "'b' is given twice in the function 'F', by an unnamed Sqrt and by an unnamed Neg")


@pytest.mark.parametrize(("text", "said"), [
    ("(float[n,4,8] y) { q = Add(x, z) y = LayerNormalization(q, w) }", "'z' is read by an unnamed Add"),
    ("(float[n,4,8] y, float[n] z) { y = LayerNormalization(x, w) }", "'z' is an output, and nothing gives it"),
    ("(float[n,4,8] y) { y = If (c) <then_branch = t () => (float t1) { t1 = Sqrt(z) }, "
     "else_branch = e () => (float e1) { e1 = Sqrt(x) }> }",
     "'z' is read in the then_branch of an unnamed If by an unnamed Sqrt"),
])  # fmt: skip
def test_a_name_that_nothing_gives_is_named(
    text: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    onnx.save(model(f"g (float[n,4,8] x, bool c) => {text}", {"w": VECTOR}), tmp_path / "model.onnx")
    assert main([str(tmp_path / "model.onnx"), "-q", "--to", "rmsnorm"]) == 2
    assert said in capsys.readouterr().err


def test_an_initializer_that_is_there_twice_and_equal_is_one(tmp_path: Path) -> None:
    proto = model(f"g (float[n,4,8] x, float[8] w) => (float[n,4,8] n) {{ {NORM} }}", {"w": VECTOR})
    proto.graph.initializer.append(proto.graph.initializer[0])
    onnx.save(proto, tmp_path / "model.onnx")
    assert len(found_in(ir.to_proto(load(tmp_path / "model.onnx"))).sites) == 1


# -- instance norms ----------------------------------------------------------------------------


def instance(kind: str, shape: str, axes: list[int], scale: str = "normal", after: str = "") -> onnx.ModelProto:
    """A norm over `axes`, and what scales it."""
    lines = "\n".join(LAYER[:-2] if kind == "layer" else RMS[:-1]).replace("[-1]", str(axes))
    text = f"g (float{shape} x, float[n,16] style) => (float{shape} y) {{\n{lines}\n{after}\ny = {scale}\n}}"
    return model(text, {"two": PIECES["two"], "eps": EPS})


CASES = {
    # places of free number: whatever scales the channels
    "time": ("[n,16,T]", [2], (16, 1), True), "time and batch": ("[n,16,T]", [-1], (1, 16, 1), True),
    "image": ("[n,16,H,W]", [2, 3], (1, 16, 1, 1), True), "channels last": ("[n,T,16]", [1], (16,), True),
    # places of known number: weights
    "fixed time": ("[n,16,10]", [2], (16, 1), True), "fixed image": ("[n,16,5,6]", [-2, -1], (16, 1, 1), True),
    "fixed channels last": ("[n,10,16]", [1], (1, 1, 16), True),
    # norms of channels
    "its own weight": ("[n,10,16]", [2], (16,), False), "a gain per head": ("[n,16,T,12]", [-1], (16, 1, 1), False),
    "channels first": ("[n,16,T]", [1], (16, 1), False),
}  # fmt: skip


@pytest.mark.parametrize("kind", ["rms", "layer"])
@pytest.mark.parametrize("case", CASES)
def test_a_scale_that_does_not_lie_along_the_norm(case: str, kind: str) -> None:
    shape, axes, weight, is_instance = CASES[case]
    proto = instance(kind, shape, axes, "Mul(gain, normal)")
    proto.graph.initializer.append(numpy_helper.from_array(np.ones(weight, np.float32), "gain"))
    found = found_in(proto)
    assert len(found.sites) == (not is_instance), reasons(found)
    assert ("InstanceNormalization" in reasons(found)) == is_instance


@pytest.mark.parametrize("kind", ["rms", "layer"])
@pytest.mark.parametrize("op_type", ["Mul", "Add"])
def test_a_style_scales_the_channels_of_an_instance_norm(op_type: str, kind: str) -> None:
    """kokoro: AdaIN. A mask of tokens, of free number themselves, is no such scale."""
    gain = "gain = Reshape(style, to)"
    for to, free, is_instance in (([1, 16, 1], "[n,16,T]", True), ([0, -1, 1], "[n,T,W]", False)):
        proto = instance(kind, free, [2], f"{op_type}(normal, gain)", gain)
        proto.graph.initializer.append(numpy_helper.from_array(np.array(to), "to"))
        found = found_in(proto)
        assert len(found.sites) == (not is_instance), reasons(found)
        assert ("whose number varies" in reasons(found)) == is_instance
