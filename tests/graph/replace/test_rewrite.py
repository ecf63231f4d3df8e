"""One dynorm node a norm: its form, its parameters, the names around it, and what it computes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from dynorm_onnx.errors import UsageError
from dynorm_onnx.functions import REGISTRY, NormParameters
from dynorm_onnx.graph.files.model_io import clone
from dynorm_onnx.graph.lower import LoweredNorm
from dynorm_onnx.graph.replace.rewrite import replace, set_parameters
from tests.builders.convert import is_checked, lowered
from tests.builders.execute import run, run_ort
from tests.graph.test_lower import BIAS, CHANNELS, SCALE, X, model_of, only
from tests.tolerances import TOLERANCE, relative_error

RNG = np.random.default_rng(7)
RESIDUAL = """total = Add(x, other)
    y = LayerNormalization<epsilon = 0.001>(total, scale, bias)
    z = Mul(total, y)"""
TWO_INPUTS = "(float[B, S, 8] x, float[{}] other) => (float[B, S, 8] z)"
FEEDS = {"x": X, "other": X[::-1].copy()}
ELEMENT = {"float32": "float", "float16": "float16", "bfloat16": "bfloat16", "double": "double"}


def parameters(function: str, size: int = CHANNELS) -> NormParameters:
    """Some parameters; those of the function alone have `size` elements."""
    scalars = {name: RNG.uniform(0.5, 1.5, size) for name in REGISTRY[function].parameter_names}
    return NormParameters(RNG.uniform(0.5, 1.5, CHANNELS), RNG.uniform(-1, 1, CHANNELS), scalars)


def residual_model(other: str = "B, S, 8", body: str = RESIDUAL, outputs: str = "") -> onnx.ModelProto:
    signature = TWO_INPUTS.format(other).replace("z)", f"z{outputs})")
    return model_of(body, signature=signature, scale=SCALE, bias=BIAS)


def node_types(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def expected(x: np.ndarray, function: str, given: NormParameters) -> np.ndarray:
    return REGISTRY[function].reference(x, given.weight, given.bias, **given.scalars)


def rewritten(source: onnx.ModelProto, function: str = "dyisru") -> tuple[ir.Model, Sequence[NormParameters]]:
    model, norms = lowered(source)
    given = [parameters(function) for _ in norms]
    for norm, values in zip(norms, given, strict=True):
        replace(model, norm, function, values)
    return model, given


class TestPlain:
    SOURCE = model_of("y = LayerNormalization(x, scale, bias)", scale=SCALE, bias=BIAS)

    @pytest.mark.parametrize("function", sorted(REGISTRY))
    @pytest.mark.parametrize("size", [1, CHANNELS])
    def test_one_node(self, function: str, size: int) -> None:
        model, norms = lowered(self.SOURCE)
        given = parameters(function, size)
        node = replace(model, only(norms), REGISTRY[function].op_type, given)
        proto = ir.to_proto(model)
        assert node_types(model) == [REGISTRY[function].op_type]
        assert node.domain == "dynorm" and model.opset_imports["dynorm"] == 1
        assert node.name == only(norms).node.name
        assert [function.name for function in proto.functions] == [REGISTRY[function].op_type]
        assert proto.ir_version >= 8
        assert is_checked(proto)
        onnx.checker.check_model(proto, full_check=True)
        assert relative_error(run_ort(proto, {"x": X})[0], expected(X, function, given)) < TOLERANCE["float32"]

    def test_parameters_are_initializers_named_after_the_site(self) -> None:
        model, norms = lowered(self.SOURCE)
        node = replace(model, only(norms), "Derf", parameters("derf", 1))
        names = [str(value.name) for value in node.inputs[1:] if value is not None]
        site = only(norms).site_name
        assert names == [f"{site}.derf.{name}" for name in ("weight", "bias", "alpha", "shift")]
        assert list(model.graph.initializers) == names

    @pytest.mark.parametrize("dtype", sorted(ELEMENT))
    @pytest.mark.parametrize("opset", [13, 17])
    def test_types(self, dtype: str, opset: int) -> None:
        """weight and bias have the type of x; what the function needs besides is float32 always."""
        element = ELEMENT[dtype]
        source = model_of(
            "scale = CastLike(wide, x) y = LayerNormalization(x, scale)"
            if opset > 13
            else "square = Mul(x, x) m = ReduceMean<axes = [-1]>(square) r = Sqrt(m) y = Div(x, r)",
            opset=opset,
            signature=f"({element}[2, 3, 8] x) => ({element}[2, 3, 8] y)",
            **({"wide": SCALE} if opset > 13 else {}),
        )
        model, norms = lowered(source)
        given = parameters("dyisru")
        node = replace(model, only(norms), "DyISRU", given)
        types = [value.dtype for value in node.inputs[1:] if value is not None]
        assert types == [only(norms).dtype, only(norms).dtype, ir.DataType.FLOAT]
        proto = ir.to_proto(model)
        assert is_checked(proto)
        x = X.astype(only(norms).dtype.numpy())
        (y,) = run(proto, {"x": x})
        assert y.dtype == x.dtype
        rounding = 2e-7 if dtype == "double" else 2 * TOLERANCE[dtype]  # beta is float32
        assert relative_error(y, expected(x, "dyisru", given)) < rounding

    def test_a_body_in_double_serves_every_type(self) -> None:
        source = model_of(
            "y = LayerNormalization(x, scale) w = Cast<to = 11>(x) v = LayerNormalization(w, gamma)",
            signature="(float[2, 3, 8] x) => (float[2, 3, 8] y, double[2, 3, 8] v)",
            scale=SCALE,
            gamma=SCALE.astype(np.float64),
        )
        model, given = rewritten(source)
        y, v = run_ort(ir.to_proto(model), {"x": X})
        assert len(model.functions) == 1
        assert relative_error(y, expected(X, "dyisru", given[0])) < TOLERANCE["float32"]
        assert relative_error(v, expected(X, "dyisru", given[1])) < 2e-7

    def test_unknown_function(self) -> None:
        model, norms = lowered(self.SOURCE)
        with pytest.raises(UsageError, match="no function 'tanh'"):
            replace(model, only(norms), "tanh", parameters("dyt"))

    def test_in_a_clone(self) -> None:
        """The norms of a model say where to replace in its clones; the model itself stays."""
        model, norms = lowered(self.SOURCE)
        copy = clone(model)
        replace(copy, only(norms), "DyT", parameters("dyt"))
        assert (node_types(model), node_types(copy)) == (["LayerNormalization"], ["DyT"])
        assert not model.functions and "dynorm" not in model.opset_imports

    def test_names_of_inputs_and_outputs_stay(self) -> None:
        model, _ = rewritten(self.SOURCE)
        assert [value.name for value in (*model.graph.inputs, *model.graph.outputs)] == ["x", "y"]


class TestSkip:
    @pytest.mark.parametrize("function", sorted(REGISTRY))
    def test_the_sum_goes_into_the_node(self, function: str) -> None:
        model, (given,) = rewritten(residual_model(), function)
        proto = ir.to_proto(model)
        assert node_types(model) == [REGISTRY[function].skip_op_type, "Mul"]
        assert [value.name for value in model.graph[0].outputs] == ["y", "total"]
        assert is_checked(proto)
        total = (FEEDS["x"] + FEEDS["other"]).astype(np.float64)
        reference = total * expected(total, function, given)
        assert relative_error(run_ort(proto, FEEDS)[0], reference) < TOLERANCE["float32"]

    def test_a_sum_that_is_an_output_keeps_its_name(self) -> None:
        model, _ = rewritten(residual_model(outputs=", float[B, S, 8] total"))
        proto = ir.to_proto(model)
        assert [value.name for value in proto.graph.output] == ["z", "total"]
        assert np.array_equal(run_ort(proto, FEEDS)[1], FEEDS["x"] + FEEDS["other"])

    def test_a_sum_that_is_read_before_the_norm(self) -> None:
        body = """total = Add(x, other)
            early = Neg(total)
            y = LayerNormalization(total, scale, bias)
            z = Mul(early, y)"""
        model, _ = rewritten(residual_model(body=body))
        assert node_types(model) == ["SkipDyISRU", "Neg", "Mul"]
        assert is_checked(ir.to_proto(model))

    def test_where_only_the_norm_reads_the_sum_a_pass_is_saved_too(self) -> None:
        body = "total = Add(x, other) z = LayerNormalization(total, scale, bias)"
        model, _ = rewritten(residual_model(body=body))
        assert node_types(model) == ["SkipDyISRU"]
        assert is_checked(ir.to_proto(model))

    @pytest.mark.parametrize("other", ["8", "S, 8", "1, S, 8"])
    def test_a_sum_that_broadcasts(self, other: str) -> None:
        assert node_types(rewritten(residual_model(other))[0]) == ["Add", "DyISRU", "Mul"]

    def test_two_norms_of_one_sum(self) -> None:
        body = """total = Add(x, other)
            a = LayerNormalization(total, scale, bias)
            b = LayerNormalization(total, scale)
            z = Mul(a, b)"""
        model, given = rewritten(residual_model(body=body), "dyt")
        assert node_types(model) == ["SkipDyT", "DyT", "Mul"]
        total = (FEEDS["x"] + FEEDS["other"]).astype(np.float64)
        reference = expected(total, "dyt", given[0]) * expected(total, "dyt", given[1])
        assert relative_error(run_ort(ir.to_proto(model), FEEDS)[0], reference) < TOLERANCE["float32"]

    def test_without_skip_the_add_stays(self) -> None:
        """As calibration asks for: every value keeps its producer."""
        model, norms = lowered(residual_model())
        norm = only(norms)
        plain = LoweredNorm(**{**vars(norm), "skip": None})
        replace(model, plain, "DyISRU", parameters("dyisru"))
        assert node_types(model) == ["Add", "DyISRU", "Mul"]


class TestSetParameters:
    @pytest.mark.parametrize("skip", [False, True])
    def test_overwritten(self, skip: bool) -> None:
        source = residual_model() if skip else TestPlain.SOURCE
        model, norms = lowered(source)
        node = replace(model, only(norms), "Derf", parameters("derf", 1))
        later = parameters("derf")
        set_parameters(node, later)
        proto = ir.to_proto(model)
        assert is_checked(proto)
        total = FEEDS["x"] + FEEDS["other"] if skip else X
        reference = expected(total, "derf", later) * (total if skip else 1)
        out = run_ort(proto, FEEDS if skip else {"x": X})[0]
        assert relative_error(out, reference) < TOLERANCE["float32"]

    def test_shape_and_type(self) -> None:
        model, norms = lowered(TestPlain.SOURCE)
        node = replace(model, only(norms), "DyT", parameters("dyt", 1))
        set_parameters(node, parameters("dyt"))
        assert [value.shape for value in node.inputs[1:] if value is not None] == [(CHANNELS,)] * 3
