"""What lowering leaves behind: one canonical node a norm, valid files, and no dead weight. (That it changes no
output is tested form by form in forms/.)"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import numpy_helper, parser

from dynorm_onnx.graph.files.model_io import prepare
from dynorm_onnx.graph.lower import LoweredNorm, lower
from dynorm_onnx.graph.sites.find import find_sites
from dynorm_onnx.runtime.session import runnable
from tests.builders.convert import is_checked, lowered
from tests.builders.execute import run_ort
from tests.builders.installed import each_opset
from tests.tolerances import TOLERANCE, relative_error

CHANNELS = 8
RNG = np.random.default_rng(0)
SCALE = RNG.uniform(0.5, 1.5, CHANNELS).astype(np.float32)
BIAS = RNG.uniform(-1, 1, CHANNELS).astype(np.float32)
X = RNG.standard_normal((2, 3, CHANNELS)).astype(np.float32)


def model_of(
    body: str,
    *,
    opset: int = 17,
    signature: str = "(float[B, S, 8] x) => (float[B, S, 8] y)",
    **initializers: np.ndarray,
) -> onnx.ModelProto:
    """A model in onnx's text form; `initializers` by name."""
    imports = f'"": {opset}, "com.microsoft": 1'
    model = parser.parse_model(
        f"<ir_version: {10 if opset > 20 else 8}, opset_import: [{imports}]> g {signature} {{ {body} }}"
    )
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in initializers.items())
    return model


def rms_in_pieces(opset: int) -> onnx.ModelProto:
    axes = "" if opset >= 18 else "axes = [-1], "
    operands = "square, axes" if opset >= 18 else "square"
    arrays = {"scale": SCALE, "epsilon": np.float32(1e-3), **({"axes": np.array([-1])} if opset >= 18 else {})}
    return model_of(
        f"""square = Mul(x, x)
        mean = ReduceMean<{axes}keepdims = 1>({operands})
        shifted = Add(mean, epsilon)
        root = Sqrt(shifted)
        normal = Div(x, root)
        y = Mul(normal, scale)""",
        opset=opset,
        **arrays,
    )


def layer_in_pieces(opset: int) -> onnx.ModelProto:
    return model_of(
        """mean = ReduceMean<axes = [-1], keepdims = 1>(x)
        centred = Sub(x, mean)
        square = Mul(centred, centred)
        variance = ReduceMean<axes = [-1], keepdims = 1>(square)
        shifted = Add(variance, epsilon)
        root = Sqrt(shifted)
        normal = Div(centred, root)
        scaled = Mul(normal, scale)
        y = Add(scaled, bias)""",
        opset=opset,
        scale=SCALE,
        bias=BIAS,
        epsilon=np.float32(1e-3),
    )


def operators(model: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph)


def only(norms: tuple[LoweredNorm, ...]) -> LoweredNorm:
    (norm,) = norms
    return norm


class TestCanonicalNode:
    @pytest.mark.parametrize("opset", [11, 12, 13, 15, 17, 18, 22])
    def test_rms_as_a_function(self, opset: int) -> None:
        source = rms_in_pieces(opset)
        model, norms = lowered(source)
        proto = ir.to_proto(model)
        assert [(node.domain, node.op_type) for node in model.graph] == [
            ("com.microsoft", "SimplifiedLayerNormalization")
        ]
        assert is_checked(source) and is_checked(proto)
        assert relative_error(run_ort(proto, {"x": X})[0], run_ort(source, {"x": X})[0]) < TOLERANCE["float32"]
        assert only(norms).epsilon == pytest.approx(1e-3)

    @each_opset(23, 24)
    def test_rms_as_the_standard_operator(self, opset: int) -> None:
        model, _ = lowered(rms_in_pieces(opset))
        assert [(node.domain, node.op_type) for node in model.graph] == [("", "RMSNormalization")]
        assert not model.functions

    @pytest.mark.parametrize(("opset", "domain"), [(11, "com.microsoft"), (16, "com.microsoft"), (17, "")])
    def test_layer(self, opset: int, domain: str) -> None:
        source = layer_in_pieces(opset)
        model, norms = lowered(source)
        proto = ir.to_proto(model)
        assert [(node.domain, node.op_type) for node in model.graph] == [(domain, "LayerNormalization")]
        assert is_checked(source) and is_checked(proto)
        assert relative_error(run_ort(proto, {"x": X})[0], run_ort(source, {"x": X})[0]) < TOLERANCE["float32"]
        assert np.array_equal(only(norms).weight, SCALE)
        assert only(norms).bias is not None and np.array_equal(only(norms).bias, BIAS)

    @pytest.mark.parametrize(
        ("source", "kernel"),
        [(rms_in_pieces(17), "SimplifiedLayerNormalization"), (layer_in_pieces(13), "LayerNormalization")],
    )
    def test_onnx_runtime_fuses_the_function_again(self, source: onnx.ModelProto, kernel: str, tmp_path: Path) -> None:
        model, _ = lowered(source)
        options = ort.SessionOptions()
        options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
        ort.InferenceSession(ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"])
        assert [node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node] == [kernel]

    @pytest.mark.parametrize("op_type", ["LayerNormalization", "SimplifiedLayerNormalization"])
    def test_a_canonical_node_is_kept(self, op_type: str) -> None:
        source = model_of(f"y = {op_type}<axis = -1>(x, scale)", scale=SCALE)
        model, norms = lowered(source)
        assert [node.op_type for node in model.graph] == [op_type]
        assert not model.functions
        assert list(model.graph.initializers) == ["scale"]
        assert only(norms).node is model.graph[0]

    def test_bfloat16_has_no_rms_kernel(self) -> None:
        source = model_of(
            "scale = Cast<to = 16>(wide) y = RMSNormalization(x, scale)",
            opset=23,
            signature="(bfloat16[2, 8] x) => (bfloat16[2, 8] y)",
            wide=SCALE,
        )
        model, norms = lowered(source)
        assert only(norms).node.domain == "com.microsoft"
        assert only(norms).dtype == ir.DataType.BFLOAT16
        assert is_checked(ir.to_proto(model))


class TestWeights:
    def test_one_plus_weight_is_folded(self) -> None:
        source = model_of(
            "gain = Add(w, one) normal = LayerNormalization(x, ones) y = Mul(normal, gain)",
            w=SCALE - 1, one=np.float32(1), ones=np.ones(CHANNELS, np.float32),
        )  # fmt: skip
        prepared = prepare(ir.from_proto(source))
        (site,) = find_sites(prepared, load=runnable).sites
        norm = only(lower(prepared, [site]))
        assert norm.weight.dtype == np.float32 and norm.weight.shape == (CHANNELS,)

    def test_a_weight_from_the_input_follows_the_node(self) -> None:
        source = model_of(
            "y = LayerNormalization(x, scale, bias)",
            signature="(float[B, S, 8] x, float[8] scale, float[8] bias) => (float[B, S, 8] y)",
        )
        model, norms = lowered(source)
        assert operators(model) == {"LayerNormalization": 1, "Mul": 1, "Add": 1}
        assert np.array_equal(only(norms).weight, np.ones(CHANNELS)) and only(norms).bias is None
        feeds = {"x": X, "scale": SCALE, "bias": BIAS}
        out, reference = (run_ort(proto, feeds)[0] for proto in (ir.to_proto(model), source))
        assert relative_error(out, reference) < TOLERANCE["float32"]

    @pytest.mark.parametrize("opset", [12, 17])
    def test_channels_that_only_the_data_tells(self, opset: int) -> None:
        source = model_of(
            "y = LayerNormalization(x, scale, bias)",
            opset=opset,
            signature="(float[B, S, C] x, float[C] scale, float[C] bias) => (float[B, S, C] y)",
        )
        model, norms = lowered(source)
        assert only(norms).channels is None and only(norms).weight.shape == (1,)
        feeds = {"x": X, "scale": SCALE, "bias": BIAS}
        out, reference = (run_ort(proto, feeds)[0] for proto in (ir.to_proto(model), source))
        assert relative_error(out, reference) < TOLERANCE["float32"]

    def test_nothing_dead_is_left(self) -> None:
        model, _ = lowered(layer_in_pieces(13))
        read = {value.name for node in model.graph for value in node.inputs if value is not None}
        assert set(model.graph.initializers) <= read
        assert all(value.uses() or value.is_graph_output() for node in model.graph for value in node.outputs)


class TestAxes:
    def test_several_axes_are_flattened(self) -> None:
        weight = RNG.uniform(0.5, 1.5, (3, CHANNELS)).astype(np.float32)
        source = model_of(
            "y = LayerNormalization<axis = -2>(x, scale)",
            signature="(float[B, 3, 8] x) => (float[B, 3, 8] y)",
            scale=weight,
        )
        model, norms = lowered(source)
        assert operators(model) == {"Flatten": 1, "LayerNormalization": 1, "Shape": 1, "Reshape": 1}
        assert only(norms).channels == 24 and np.array_equal(only(norms).weight, weight.reshape(-1))
        out, reference = (run_ort(proto, {"x": X})[0] for proto in (ir.to_proto(model), source))
        assert relative_error(out, reference) < TOLERANCE["float32"]

    def test_types_of_x_and_y(self) -> None:
        source = model_of(
            "wide = Cast<to = 1>(x) y = LayerNormalization(wide, scale)",
            signature="(float16[B, S, 8] x) => (float[B, S, 8] y)",
            scale=SCALE,
        )
        model, norms = lowered(source)
        assert operators(model) == {"Cast": 1, "LayerNormalization": 1}
        assert only(norms).dtype == ir.DataType.FLOAT

    def test_one_body_serves_one_type_below_opset_15(self) -> None:
        pieces = """{0}square = Mul({0}, {0})
            {0}mean = ReduceMean<axes = [-1], keepdims = 1>({0}square)
            {0}root = Sqrt({0}mean)
            {0}y = Div({0}, {0}root)
        """
        source = model_of(
            pieces.format("x") + pieces.format("h"),
            opset=13,
            signature="(float[2, 8] x, float16[2, 8] h) => (float[2, 8] xy, float16[2, 8] hy)",
        )
        model, norms = lowered(source)
        assert {norm.dtype for norm in norms} == {ir.DataType.FLOAT}
        assert len(model.functions) == 1 and operators(model)["Cast"] == 2
        feeds = {"x": X[0, :2], "h": X[1, :2].astype(np.float16)}
        for out, reference in zip(run_ort(ir.to_proto(model), feeds), run_ort(source, feeds), strict=True):
            assert out.dtype == reference.dtype
            assert relative_error(out, reference) < 2 * TOLERANCE["float16"]


class TestSums:
    def source(self, shape: str = "B, S, 8") -> onnx.ModelProto:
        return model_of(
            "y, m, d, total = com.microsoft.SkipSimplifiedLayerNormalization(x, other, scale, bias)",
            signature=f"(float[B, S, 8] x, float[{shape}] other) => (float[B, S, 8] y, float[B, S, 8] total)",
            scale=SCALE,
            bias=BIAS,
        )

    def test_the_sum_includes_its_bias_and_keeps_its_name(self) -> None:
        model, norms = lowered(self.source())
        assert [value.name for value in model.graph.outputs] == ["y", "total"]
        assert only(norms).x is model.graph.outputs[1]
        assert only(norms).skip is not None
        feeds = {"x": X, "other": X[::-1].copy()}
        for out, reference in zip(run_ort(ir.to_proto(model), feeds), run_ort(self.source(), feeds), strict=True):
            assert relative_error(out, reference) < TOLERANCE["float32"]

    @pytest.mark.parametrize("shape", ["S, 8", "1, S, 8"])
    def test_a_sum_that_broadcasts_is_no_skip(self, shape: str) -> None:
        _, norms = lowered(self.source(shape))
        assert only(norms).skip is None


class TestSubsets:
    SOURCE = model_of(
        """a = LayerNormalization(x, scale)
        normal = SimplifiedLayerNormalization(a, scale)
        b = Mul(normal, scale)
        y = com.microsoft.SkipLayerNormalization(b, x, scale, bias)""",
        scale=SCALE,
        bias=BIAS,
    )

    def test_norms_of_norms_read_what_is_in_the_graph(self) -> None:
        model, norms = lowered(self.SOURCE)
        assert len(norms) == 3
        in_graph = {value for node in model.graph for value in node.outputs} | set(model.graph.inputs)
        assert all({norm.x, norm.y} <= in_graph for norm in norms)
        assert [norm.node for norm in norms] == [n for n in model.graph if "Normalization" in n.op_type]

    def test_the_rest_stays(self) -> None:
        prepared = prepare(ir.from_proto(self.SOURCE))
        sites = find_sites(prepared, load=runnable).sites
        assert len(lower(prepared, sites[:1])) == 1
        assert operators(prepared)["SkipLayerNormalization"] == 1


class TestAttention:
    HEADS, KV_HEADS, SIZE = 2, 1, 16

    def source(self, packed: bool) -> onnx.ModelProto:
        operands = "qkv, , , , , lengths, total, , , , , , , , q_scale, k_scale"
        if not packed:
            operands = operands.replace("qkv, , ", "q, k, v")
        width = (self.HEADS + 2 * self.KV_HEADS) * self.SIZE
        attributes = (
            f"num_heads = {self.HEADS}, kv_num_heads = {self.KV_HEADS}, qk_norm_epsilon = 0.5, q_norm_epsilon = 0.25"
        )
        split = "" if packed else "q, k, v = Split<axis = -1>(qkv, sizes)"
        sizes = np.array([self.HEADS, self.KV_HEADS, self.KV_HEADS]) * self.SIZE
        return model_of(
            f"{split} y, pk, pv = com.microsoft.GroupQueryAttention<{attributes}>({operands})",
            signature=f"(float[2, 3, {width}] qkv) => (float[2, 3, {self.HEADS * self.SIZE}] y)",
            lengths=np.array([2, 2], np.int32),
            total=np.array(3, np.int32),
            q_scale=np.linspace(0.5, 1.5, self.SIZE, dtype=np.float32),
            k_scale=np.linspace(2, 1, self.SIZE, dtype=np.float32),
            **({} if packed else {"sizes": sizes}),
        )

    @pytest.mark.parametrize("packed", [True, False])
    def test_norms_go_in_front(self, packed: bool) -> None:
        model, norms = lowered(self.source(packed))
        (attention,) = (node for node in model.graph if node.op_type == "GroupQueryAttention")
        assert [norm.epsilon for norm in norms] == [0.25, 0.5]
        assert len(attention.inputs) == 7
        assert set(attention.attributes) == {"num_heads", "kv_num_heads"}
        assert is_checked(ir.to_proto(model))

    def test_packed_and_unpacked_agree(self) -> None:
        """ONNX Runtime runs these norms on CUDA only, so that the originals cannot be run here."""
        width = (self.HEADS + 2 * self.KV_HEADS) * self.SIZE
        feeds = {"qkv": RNG.standard_normal((2, 3, width)).astype(np.float32)}
        outputs = [run_ort(ir.to_proto(lowered(self.source(packed))[0]), feeds)[0] for packed in (True, False)]
        assert np.array_equal(*outputs)

    def test_one_of_the_two(self) -> None:
        prepared = prepare(ir.from_proto(self.source(True)))
        sites = find_sites(prepared, load=runnable).sites
        assert [norm.site_name for norm in lower(prepared, sites[1:])] == [sites[1].name]
        assert operators(prepared)["SimplifiedLayerNormalization"] == 2
