"""Models with several norms: names, a choice among them, several types, and a real model as torch exports it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from dynorm_onnx.graph.files.model_io import load, prepare
from dynorm_onnx.graph.lower import lower
from dynorm_onnx.graph.sites.find import find_sites
from dynorm_onnx.runtime.session import runnable
from tests.builders.cases import CHANNELS
from tests.builders.convert import CANONICAL, found_in, is_checked, lowered, replaced
from tests.builders.execute import run
from tests.builders.graph import CONTRIB, Graph
from tests.builders.installed import NEWEST, each_opset
from tests.builders.layer_forms import textbook
from tests.builders.rms_forms import divided, reciprocal, root
from tests.graph.forms.checks import UNCHANGED, same_outputs

SHIPPED = Path(__file__).parents[3] / "models" / "byte_llama" / "byte_llama.onnx"


def three_norms(opset: int = 17, *, named: bool = True) -> Graph:
    """A stack of three norms with a Tanh between, the weights called as exporters call them."""
    g = Graph("float32", opset, named=named, seed="three")
    x = g.normal_input("x", (2, 3, CHANNELS), ("batch", "tokens", CHANNELS))
    for layer in range(3):
        weight = g.weight(CHANNELS, name=f"model.layers.{layer}.norm.weight")
        x = g.op("Tanh", g.op("Mul", weight, g.op("Div", x, root(g, x))))
    g.output(x, "y")
    return g


@pytest.mark.parametrize("named", [True, False])
def test_sites_are_named_after_their_weights(named: bool) -> None:
    """So that `--keep "*layers.0*"` means what it says."""
    _, found = found_in(three_norms(named=named).model())
    assert [site.name for site in found.sites] == [f"model.layers.{layer}.norm" for layer in range(3)]


@pytest.mark.parametrize("chosen", [(0,), (1,), (2,), (0, 2), (0, 1, 2)])
def test_any_choice_of_sites_can_be_converted(chosen: tuple[int, ...]) -> None:
    g = three_norms()
    model = g.model()
    prepared, found = found_in(model)
    norms = lower(prepared, [found.sites[index] for index in chosen])
    assert [norm.site_name for norm in norms] == [found.sites[index].name for index in chosen]
    proto = ir.to_proto(prepared)
    same_outputs(run(model, g.feeds), run(proto, g.feeds), 1e-5, str(chosen))
    assert sum(node.op_type in CANONICAL for node in proto.graph.node) == len(chosen)
    converted = replaced(prepared, norms)
    assert is_checked(converted)
    assert sum(node.domain == "dynorm" for node in converted.graph.node) == len(chosen)
    assert np.isfinite(run(converted, g.feeds)[0]).all()


@pytest.mark.parametrize("function", ["dyisru", "dyt", "derf"])
def test_one_body_for_many_nodes(function: str) -> None:
    g = three_norms()
    converted = replaced(*lowered(g.model()), function=function)
    assert len([body for body in converted.functions if body.domain == "dynorm"]) == 1
    assert [entry.version for entry in converted.opset_import if entry.domain == "dynorm"] == [1]


@each_opset(11, 14, 15, 17, 23, NEWEST)
@pytest.mark.parametrize("other", ["float16", "double"])
def test_norms_of_two_types_in_one_model(opset: int, other: str) -> None:
    """A body below opset 15 serves one type only; every node must get one that serves it."""
    g = Graph("float32", opset, seed="types")
    x = g.normal_input("x", (2, 3, CHANNELS), ("batch", "tokens", CHANNELS))
    y = divided(g, x, "Mul")
    narrow = Graph(other, opset, seed="other")
    narrow.nodes, narrow.initializers = g.nodes, g.initializers
    narrow._count = 900
    z = textbook(narrow, narrow.cast(y, other), weight=False)
    g.output(g.op("Add", y, narrow.cast(z, "float32")), "out")
    model = g.model()
    prepared, norms = lowered(model)
    assert [norm.kind for norm in norms] == ["rms", "layer"]
    bound = 1e-2 if other == "float16" else 1e-5
    same_outputs(run(model, g.feeds), run(ir.to_proto(prepared), g.feeds), bound, f"opset {opset}")
    converted = replaced(prepared, norms)
    assert is_checked(converted)
    assert np.isfinite(run(converted, g.feeds)[0]).all()


def pre_norm_stack(g: Graph, x: str) -> str:
    """Llama's: the sums between the norms are read twice, the last one once."""
    for layer in range(3):
        weight = g.weight(CHANNELS, name=f"weight_{layer}")
        x = g.op("Add", x, g.op("Tanh", g.op("Mul", weight, g.op("Div", x, root(g, x)))))
    return divided(g, x, "Mul")


def post_norm_stack(g: Graph, x: str) -> str:
    """BERT's: the norm's output is the residual stream."""
    for _ in range(3):
        x = textbook(g, g.op("Add", g.op("Tanh", x), x), weight=False, bias=False)
    return x


def fused_stack(g: Graph, x: str) -> str:
    """As ONNX Runtime saves it: every skip operator hands its sum to the next."""
    weight, bias, total = g.weight(CHANNELS), g.bias(CHANNELS), x
    for layer in range(3):
        names = [f"normed_{layer}", "", "", f"sum_{layer}"]
        operands = [g.op("Tanh", x), total, weight, bias]
        x, _, _, total = g.op("SkipSimplifiedLayerNormalization", *operands, outputs=names, domain=CONTRIB)
    return g.op("Add", x, total)


def two_norms_of_one_mean(g: Graph, x: str) -> str:
    centred = g.op("Sub", x, g.reduce("ReduceMean", x, [-1]))
    one = g.op("Div", centred, root(g, centred))
    two = g.op("Mul", g.op("Mul", centred, g.op("Reciprocal", root(g, centred, "Mul"))), g.weight(CHANNELS))
    return g.op("Sub", one, two)


def weight_made_of_x(g: Graph, x: str) -> str:
    return g.op("LayerNormalization", x, g.reduce("ReduceMean", x, [0, 1], keepdims=0), g.bias(CHANNELS))


STACKS = {
    pre_norm_stack: (4, ["DyISRU", "SkipDyISRU", "SkipDyISRU", "SkipDyISRU"]),
    post_norm_stack: (3, ["SkipDyISRU"] * 3),
    fused_stack: (3, ["SkipDyISRU"] * 3),
    two_norms_of_one_mean: (2, ["DyISRU"] * 2),
    weight_made_of_x: (1, ["DyISRU"]),
}


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("stack", STACKS, ids=lambda stack: stack.__name__)
def test_norms_that_lean_on_each_other(stack: Callable[[Graph, str], str], dtype: str) -> None:
    for opset in (opset for opset in (11, 14, 17, 18, 23, NEWEST) if opset <= NEWEST):
        g = Graph(dtype, opset, seed=stack.__name__)
        x = g.normal_input("x", (2, 3, CHANNELS), ("batch", "tokens", CHANNELS))
        g.output(stack(g, g.op("Tanh", x)), "y")
        model, (sites, nodes) = g.model(), STACKS[stack]
        prepared, norms = lowered(model)
        assert len(norms) == sites
        same_outputs(run(model, g.feeds), run(ir.to_proto(prepared), g.feeds), UNCHANGED[dtype], f"opset {opset}")
        converted = replaced(prepared, norms)
        assert [node.op_type for node in converted.graph.node if node.domain == "dynorm"] == nodes
        assert np.isfinite(run(converted, g.feeds)[0].astype(np.float64)).all()


def test_input_of_unknown_rank() -> None:
    """Axis -1 is the last one whatever the rank is; the weight tells the channels."""
    g = Graph("float32", 17, seed="rank")
    x = g.normal_input("x", (2, 3, CHANNELS))
    g.inputs[0].type.tensor_type.ClearField("shape")
    g.output(g.op("Tanh", reciprocal(g, g.op("Relu", x))), "y")
    model = g.model()
    prepared, norms = lowered(model)
    assert len(norms) == 1 and norms[0].channels == CHANNELS
    same_outputs(run(model, g.feeds), run(ir.to_proto(prepared), g.feeds), 1e-5, "rank")
    assert np.isfinite(run(replaced(prepared, norms), g.feeds)[0]).all()


def test_weight_and_channels_known_at_run_time_only() -> None:
    g = Graph("float32", 17, seed="run time")
    x = g.normal_input("x", (2, 3, CHANNELS), ("batch", "tokens", "width"))
    weight = g.input("gamma", g.values("gamma", [CHANNELS], 0.5, 1.5), ["width"])
    g.output(g.op("Mul", weight, g.op("Div", x, root(g, x))), "y")
    model = g.model()
    prepared, norms = lowered(model)
    assert len(norms) == 1 and norms[0].channels is None
    same_outputs(run(model, g.feeds), run(ir.to_proto(prepared), g.feeds), 1e-5, "run time")


def test_nodes_out_of_order(tmp_path: Path) -> None:
    """ONNX Runtime sorts nodes by itself, so such files exist."""
    g = three_norms()
    model = g.model()
    before = run(model, g.feeds)
    nodes = list(model.graph.node)[::-1]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.save(model, tmp_path / "m.onnx")
    prepared = prepare(load(tmp_path / "m.onnx"))
    found = find_sites(prepared, load=runnable)
    assert [site.name for site in found.sites] == [f"model.layers.{layer}.norm" for layer in range(3)]
    lower(prepared, found.sites)
    same_outputs(before, run(ir.to_proto(prepared), g.feeds), 1e-5, "order")


def test_find_sites_changes_nothing() -> None:
    prepared = prepare(ir.from_proto(three_norms().model()))
    before = ir.to_proto(prepared).SerializeToString(deterministic=True)
    find_sites(prepared, load=runnable)
    assert ir.to_proto(prepared).SerializeToString(deterministic=True) == before


def test_prepare_leaves_the_original_alone() -> None:
    original = ir.from_proto(three_norms().model())
    before = ir.to_proto(original).SerializeToString(deterministic=True)
    prepared = prepare(original)
    replaced(prepared, lower(prepared, find_sites(prepared, load=runnable).sites))
    assert ir.to_proto(original).SerializeToString(deterministic=True) == before


def test_without_a_runtime_sites_are_proved_all_the_same() -> None:
    """onnx's reference evaluator does it where no `run` is given."""
    found = find_sites(prepare(ir.from_proto(three_norms().model())))
    assert len(found.sites) == 3


def test_weights_shared_with_other_nodes_stay() -> None:
    g = Graph("float32", 17, seed="shared")
    x = g.normal_input("x", (2, 3, CHANNELS), ("batch", "tokens", CHANNELS))
    weight = g.weight(CHANNELS)
    y = g.op("Mul", g.op("Div", x, root(g, x)), weight)
    g.output(g.op("Add", y, g.op("Softmax", weight)), "y")
    model = g.model()
    prepared, norms = lowered(model)
    same_outputs(run(model, g.feeds), run(ir.to_proto(prepared), g.feeds), 1e-5, "shared")
    converted = replaced(prepared, norms)
    assert is_checked(converted) and np.isfinite(run(converted, g.feeds)[0]).all()


def test_norm_in_a_function_that_a_body_calls_is_found() -> None:
    g = Graph("float32", 17, seed="call in body")
    x = g.normal_input("x", (2, 3, CHANNELS), ("batch", "tokens", CHANNELS))
    body = [
        helper.make_node("ReduceMean", ["s"], ["m"], axes=[-1]),
        helper.make_node("Mul", ["a", "a"], ["s"]),
        helper.make_node("Constant", [], ["eps"], value_float=1e-3),
        helper.make_node("Add", ["m", "eps"], ["e"]),
        helper.make_node("Sqrt", ["e"], ["r"]),
        helper.make_node("Div", ["a", "r"], ["b"]),
    ]
    body[0], body[1] = body[1], body[0]
    g.functions.append(helper.make_function("own", "Norm", ["a"], ["b"], body, [helper.make_opsetid("", 17)]))
    g.imports["own"] = 1
    branches = []
    for name, op, domain in (("then_out", "Norm", "own"), ("else_out", "Neg", "")):
        node = helper.make_node(op, [x], [name], domain=domain)
        info = helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
        branches.append(helper.make_graph([node], name, [], [info]))
    flag = g.op("Cast", g.input("flag", np.array(1, np.int32)), to=TensorProto.BOOL)
    g.output(g.op("If", flag, then_branch=branches[0], else_branch=branches[1]), "y")
    prepared, found = found_in(g.model())
    assert [site.channels for site in found.sites] == [CHANNELS] and not found.refused
    same_outputs(run(g.model(), g.feeds), run(ir.to_proto(prepared), g.feeds), 1e-5, "If")


@pytest.mark.skipif(not SHIPPED.is_file(), reason="the shipped model has not been trained yet")
def test_shipped_model() -> None:
    """A Llama as torch.onnx writes it: every norm is found, under the name of its module."""
    model = load(SHIPPED)
    prepared = prepare(model)
    found = find_sites(prepared, load=runnable)
    names = [site.name for site in found.sites]
    assert len(names) >= 9 and not found.refused and not found.near_misses
    assert {"model.norm", "model.layers.0.input_layernorm"} <= set(names)
    assert all(site.kind == "rms" and site.weight is not None for site in found.sites)
    feeds = {value.name or "": np.arange(32, dtype=np.int64)[None] % 7 for value in model.graph.inputs}
    before = run(ir.to_proto(model), feeds)
    lower(prepared, found.sites)
    same_outputs(before, run(ir.to_proto(prepared), feeds), 1e-2, "shipped")
