"""D: conventions in which files differ, and names that must not change (E9)."""

from __future__ import annotations

import dataclasses
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
from tests.builders import layer_forms, one_node_forms, rms_forms
from tests.builders.cases import CHANNELS, Built, FormCase
from tests.builders.convert import found_in, is_checked, lowered, replaced
from tests.builders.execute import run, run_model
from tests.builders.graph import CONTRIB, Graph
from tests.graph.forms.checks import same_outputs

CASES = [
    case
    for case in (*one_node_forms.FORMS, *rms_forms.FORMS, *layer_forms.FORMS)
    if "float32" in case.dtypes and not case.reference_only
]
EVERY_CASE = pytest.mark.parametrize("case", [pytest.param(c, id=c.id, marks=c.marks("float32")) for c in CASES])
TWO_FORMS = [case for case in CASES if case.id in ("B3", "C1-Pow")]


def unchanged(model: onnx.ModelProto, built: Built, sites: int = 1) -> ir.Model:
    """Lowering `model` finds the sites and changes neither outputs nor names."""
    prepared, norms = lowered(model)
    assert len(norms) == sites
    proto = ir.to_proto(prepared)
    same_outputs(run(model, built.feeds), run(proto, built.feeds), 1e-5, model.graph.name)
    for field in ("input", "output"):
        names = [[value.name for value in getattr(m.graph, field)] for m in (model, proto)]
        assert names[0] == names[1]
    return prepared


@EVERY_CASE
def test_norm_between_graph_input_and_graph_output(case: FormCase) -> None:
    built = case.build("float32", max(case.since, 17), bare=True)
    prepared = unchanged(built.model, built, len(case.expected))
    _, norms = lowered(built.model)
    assert prepared.graph.outputs[0].name == built.model.graph.output[0].name
    assert norms


@EVERY_CASE
def test_replaced_between_graph_input_and_graph_output(case: FormCase) -> None:
    built = case.build("float32", max(case.since, 17), bare=True)
    proto = replaced(*lowered(built.model))
    assert all(np.isfinite(output).all() for output in run(proto, built.feeds))
    assert [v.name for v in proto.graph.output] == [v.name for v in built.model.graph.output]


@EVERY_CASE
def test_normalised_value_is_a_graph_output_too(case: FormCase) -> None:
    built = case.build("float32", max(case.since, 17))
    model = onnx.ModelProto()
    model.CopyFrom(built.model)
    model.graph.output.append(helper.make_tensor_value_info("h", TensorProto.FLOAT, None))
    for output in run(replaced(*lowered(model)), built.feeds):
        assert np.isfinite(output).all()
    unchanged(model, built, len(case.expected))


def test_residual_sum_is_a_graph_output() -> None:
    """E6: the sum that a skip operator gives out includes the bias, under its own name."""
    case = next(c for c in CASES if c.id == "A5-residual-sum-bias")
    built = case.build("float32", 17)
    model = onnx.ModelProto()
    model.CopyFrom(built.model)
    model.graph.output.append(helper.make_tensor_value_info("residual_sum", TensorProto.FLOAT, None))
    prepared = unchanged(model, built)
    assert prepared.graph.outputs[1].name == "residual_sum"
    _, found = found_in(model)
    assert found.sites[0].residual is not None and found.sites[0].residual.name == "residual_sum"
    total, expected = run(replaced(*lowered(model)), built.feeds)[1], run(model, built.feeds)[1]
    np.testing.assert_allclose(total, expected, rtol=1e-5)


@pytest.mark.parametrize("case", TWO_FORMS, ids=lambda case: case.id)
class TestFiles:
    """What is odd about a file as a whole."""

    def test_ir_version_3_with_initializers_as_inputs(self, case: FormCase) -> None:
        built = case.build("float32", 11)
        model = onnx.ModelProto()
        model.CopyFrom(built.model)
        model.ir_version = 3
        for tensor in model.graph.initializer:
            info = helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            model.graph.input.append(info)
        prepared, norms = lowered(model)
        assert len(norms) == 1
        proto = ir.to_proto(prepared)
        same_outputs(run(model, built.feeds), run(proto, built.feeds), 1e-5, case.id)
        assert {v.name for v in proto.graph.input} >= {"x"}
        assert is_checked(proto)
        after = replaced(prepared, norms)
        assert is_checked(after)
        assert all(np.isfinite(output).all() for output in run(after, built.feeds))

    def test_all_nodes_of_one_name(self, case: FormCase) -> None:
        built = case.build("float32", 17)
        before = run(built.model, built.feeds)
        for node in built.model.graph.node:
            node.name = "node"  # which ONNX Runtime would not take
        prepared, norms = lowered(built.model)
        assert len(norms) == 1
        same_outputs(before, run(ir.to_proto(prepared), built.feeds), 1e-5, case.id)

    def test_default_domain_by_its_long_name(self, case: FormCase) -> None:
        built = case.build("float32", 17)
        built.model.opset_import[0].domain = "ai.onnx"
        unchanged(built.model, built)

    def test_no_shapes_at_all(self, case: FormCase) -> None:
        built = dataclasses.replace(case, declared=("a", "b", "c")).build("float32", 17)
        unchanged(built.model, built)

    def test_stale_value_infos(self, case: FormCase) -> None:
        built = case.build("float32", 17)
        for node in built.model.graph.node[:-1]:
            info = helper.make_tensor_value_info(node.output[0], TensorProto.FLOAT, None)
            built.model.graph.value_info.append(info)
        assert is_checked(replaced(*lowered(built.model)))

    def test_weights_are_missing(self, case: FormCase, tmp_path: Path) -> None:
        """The structure is decided without the data of the weights."""
        model = case.build("float32", 17).model
        # eps and the exponent stay in the file; the threshold counts 33 bytes of Python's own
        onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=60)
        (tmp_path / "m.data").unlink()
        prepared = prepare(load(tmp_path / "m.onnx"))
        found = find_sites(prepared, load=runnable)
        assert [site.kind for site in found.sites] == [case.expected[0].kind]

    def test_weights_are_external(self, case: FormCase, tmp_path: Path) -> None:
        built = case.build("float32", 17)
        before = run(built.model, built.feeds)
        onnx.save(built.model, tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
        prepared = prepare(load(tmp_path / "m.onnx"))
        lower(prepared, find_sites(prepared, load=runnable).sites)
        same_outputs(before, run_model(prepared, built.feeds), 1e-5, case.id)

    def test_twice_in_a_row(self, case: FormCase) -> None:
        """A lowered model has the same sites, and lowering it again changes nothing."""
        built = case.build("float32", 17)
        once, _ = lowered(built.model)
        again, norms = lowered(ir.to_proto(once))
        assert len(norms) == 1
        same_outputs(run(built.model, built.feeds), run(ir.to_proto(again), built.feeds), 1e-5, case.id)


def contrib_only() -> Graph:
    """One fused node of ONNX Runtime, and nothing of the default domain."""
    g = Graph("float32", 17, seed="contrib")
    x, skip = (g.normal_input(name, (2, 3, CHANNELS)) for name in ("x", "skip"))
    names = ["y", "", "", "total"]
    g.op("SkipSimplifiedLayerNormalization", x, skip, g.weight(CHANNELS), outputs=names, domain=CONTRIB)
    for name in ("y", "total"):
        g.output(name)
    return g


def test_no_default_opset_import() -> None:
    g = contrib_only()
    del g.imports[""]
    built = Built(g.model(), g.feeds, np.empty(0))
    unchanged(built.model, built)
    for output in run(replaced(*lowered(built.model)), g.feeds):
        assert np.isfinite(output).all()


def test_contrib_domain_is_not_imported() -> None:
    g = contrib_only()
    g.nodes.append(helper.make_node("Relu", ["y"], ["z"]))
    g.output("z")
    whole = g.model()
    del g.imports[CONTRIB]
    prepared, norms = lowered(g.model())
    assert len(norms) == 1
    same_outputs(run(whole, g.feeds), run(ir.to_proto(prepared), g.feeds), 1e-5, "contrib")


def test_axes_attribute_after_its_time() -> None:
    """Inlined bodies keep the attribute at opset 18: ONNX Runtime refuses such a file, we mend it."""
    case = next(c for c in CASES if c.id == "C1-Pow")
    valid, built = case.build("float32", 18), case.build("float32", 17)
    built.model.opset_import[0].version = 18
    prepared, norms = lowered(built.model)
    assert len(norms) == 1
    same_outputs(run(valid.model, valid.feeds), run(ir.to_proto(prepared), built.feeds), 1e-5, case.id)


def test_simplified_norm_of_the_contrib_domain() -> None:
    """A2: some files say com.microsoft; ONNX Runtime refuses them, the lowered model runs."""
    g = Graph("float32", 17, seed="A2")
    x = g.normal_input("x", (2, 3, CHANNELS), ("batch", "tokens", CHANNELS))
    y = g.op("SimplifiedLayerNormalization", x, g.weight(CHANNELS), domain=CONTRIB, epsilon=1e-3)
    g.output(y, "y")
    prepared, norms = lowered(g.model())
    assert [norm.form for norm in norms] == ["A2"]
    before = run(g.model(), g.feeds, reference=True)
    same_outputs(before, run(ir.to_proto(prepared), g.feeds), 1e-5, "A2")


def test_two_calls_of_one_function_are_two_sites() -> None:
    g = Graph("float32", 17, seed="calls")
    x = g.normal_input("x", (2, 3, CHANNELS), ("batch", "tokens", CHANNELS))
    g.functions.append(one_node_forms.skip_function(g, "Norm", "custom"))
    weight, bias, skip = g.weight(CHANNELS), g.bias(CHANNELS), g.bias(CHANNELS, name="skip")
    for eps in (1e-3, 1e-2):
        x = g.op("Norm", x, skip, weight, bias, domain="custom", epsilon=eps)
    g.output(x, "y")
    _, found = found_in(g.model())
    assert [site.epsilon for site in found.sites] == pytest.approx([1e-3, 1e-2])
    assert len({site.name for site in found.sites}) == 2
    built = Built(g.model(), g.feeds, np.empty(0))
    unchanged(built.model, built, sites=2)


def test_functions_without_norms_stay() -> None:
    case = next(c for c in CASES if c.id == "B3")
    built = case.build("float32", 17)
    body = [helper.make_node("Relu", ["a"], ["b"])]
    made = helper.make_function("custom", "Act", ["a"], ["b"], body, [helper.make_opsetid("", 17)])
    built.model.functions.append(made)
    built.model.opset_import.append(helper.make_opsetid("custom", 1))
    built.model.graph.node.append(helper.make_node("Act", ["out"], ["out2"], domain="custom"))
    built.model.graph.output.append(helper.make_tensor_value_info("out2", TensorProto.FLOAT, None))
    prepared = unchanged(built.model, built)
    assert "Act" in [function.name for function in prepared.functions.values()]


@pytest.mark.parametrize("function", ["dyisru", "dyt", "derf"])
def test_skip_form_where_sum_and_norm_are_both_read(function: str) -> None:
    g = Graph("float32", 17, seed="skip")
    x, skip = (g.normal_input(name, (2, 3, CHANNELS)) for name in ("x", "skip"))
    total = g.op("Add", x, skip, outputs=["total"])
    y = rms_forms.reciprocal(g, total)
    g.output(g.op("Add", total, g.op("Tanh", y)), "out")
    g.output("total")
    proto = replaced(*lowered(g.model()), function=function)
    skips = [node for node in proto.graph.node if node.op_type.startswith("Skip")]
    assert len(skips) == 1 and "total" in skips[0].output
    assert not [node for node in proto.graph.node if node.op_type == "Add" and "total" in node.output]
    outputs = run(proto, g.feeds)
    np.testing.assert_allclose(outputs[1], g.feeds["x"] + g.feeds["skip"], rtol=1e-6)
    assert np.isfinite(outputs[0]).all()
    assert is_checked(proto)
