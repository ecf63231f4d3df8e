"""Bodies lose what keeps squares finite where the graph bounds what they are of, and nowhere else."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper

from dynorm_onnx.functions import DOMAIN, REGISTRY, Form, onnx_function
from dynorm_onnx.graph.replace.trim_bodies import trimmed
from dynorm_onnx.runtime.session import make_session

CHANNELS = 6
X = np.random.default_rng(0).normal(0, 3, (2, 5, CHANNELS)).astype(np.float32)


def model_of(name: str, form: Form, *, bounded: bool) -> ir.Model:
    """A node of the function, behind a Tanh where it is to be bounded."""
    function = REGISTRY[name]
    rng = np.random.default_rng(1)
    arrays = {
        "weight": rng.normal(size=CHANNELS), "bias": rng.normal(size=CHANNELS), "beta": rng.uniform(1, 2, CHANNELS),
        "alpha": rng.uniform(1, 2, CHANNELS), "shift": rng.normal(size=CHANNELS), "coupling": np.array([0.5, 0.1]),
        "channels": np.array([1, 4]),
    }  # fmt: skip
    x = "Tanh(X)" if bounded else "Identity(X)"
    names = function.input_names(form)
    inputs = ", ".join("s" if name == "X" else name for name in names)
    outputs = "Y, residual" if form.skip else "Y"
    model = onnx.parser.parse_model(
        f"""<ir_version: 10, opset_import: ["" : 18, "{DOMAIN}" : 1]>
        g (float[2, 5, {CHANNELS}] X) => (float[2, 5, {CHANNELS}] Y) {{
            s = {x} skip = Identity(s) {outputs} = {DOMAIN}.{function.node_type(form)}({inputs}) }}"""
    )
    for name in names:
        if name in arrays:
            dtype = np.int64 if name == "channels" else np.float32
            model.graph.initializer.append(numpy_helper.from_array(arrays[name].astype(dtype), name))
    model.functions.append(onnx_function(function, 18, onnx.TensorProto.FLOAT, form))
    return ir.from_proto(model)


def operators(model: ir.Model) -> list[str]:
    (function,) = model.functions.values()
    return [node.op_type for node in function]


@pytest.mark.parametrize("form", [Form(), Form(skip=True), Form(coupled=True)], ids=str)
@pytest.mark.parametrize("name", REGISTRY)
def test_a_bounded_node_has_no_clip(name: str, form: Form) -> None:
    model = model_of(name, form, bounded=True)
    short = trimmed(model)
    left_out = {"Clip", "Max", "Min"}
    assert left_out.isdisjoint(operators(short))
    assert [op for op in operators(model) if op not in {*left_out, "Constant"}] == [
        op for op in operators(short) if op != "Constant"
    ]
    runs = [make_session(one, kernels=False).run(None, {"X": X})[0] for one in (model, short)]
    assert np.array_equal(*runs)


def test_where_nothing_bounds_it_the_body_stays() -> None:
    model = model_of("dyisru", Form(), bounded=False)
    assert operators(trimmed(model)) == operators(model)
    large = np.full_like(X, 1e30)
    assert np.all(np.isfinite(make_session(trimmed(model), kernels=False).run(None, {"X": large})[0]))


def test_one_node_that_is_not_bounded_keeps_the_clip_for_all() -> None:
    model = model_of("dyisru", Form(), bounded=True)
    (node,) = (node for node in model.graph if node.domain == DOMAIN)
    again = ir.Node(DOMAIN, "DyISRU", [model.graph.inputs[0], *node.inputs[1:]])
    model.graph.append(again)
    assert operators(trimmed(model)) == operators(model)
