"""Loading, preparing and saving: whole or not at all, and never at the input's cost."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper, parser

from dynorm_onnx.errors import ModelError, UsageError
from dynorm_onnx.graph.files import model_io
from tests.builders.convert import is_checked, lowered
from tests.builders.execute import run_model, run_ort
from tests.tolerances import relative_error

CHANNELS = 64
WEIGHT = np.random.default_rng(0).standard_normal((CHANNELS, CHANNELS)).astype(np.float32)
FEEDS = {"x": np.random.default_rng(1).standard_normal((2, CHANNELS)).astype(np.float32)}


def matmul_model() -> onnx.ModelProto:
    """y = LayerNormalization(x @ w); w is large enough to be external."""
    model = parser.parse_model(
        f"""<ir_version: 8, opset_import: ["": 17]>
        matmul (float[N, {CHANNELS}] x) => (float[N, {CHANNELS}] y) {{
            h = MatMul(x, w)
            y = LayerNormalization<epsilon: float = 0.001>(h, scale)
        }}"""
    )
    scale = np.linspace(0.5, 1.5, CHANNELS, dtype=np.float32)
    model.graph.initializer.extend([numpy_helper.from_array(WEIGHT, "w"), numpy_helper.from_array(scale, "scale")])
    return model


@pytest.fixture
def external(tmp_path: Path) -> Path:
    """The model with w in weights.bin beside it."""
    path = tmp_path / "model.onnx"
    onnx.save(matmul_model(), path, save_as_external_data=True, location="weights.bin", size_threshold=1000)
    return path


def outputs_of(path: Path) -> np.ndarray:
    return run_ort(onnx.load(path), FEEDS)[0]


def leftovers(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


class TestLoad:
    def test_missing_file(self, tmp_path: Path) -> None:
        with pytest.raises(ModelError, match="there is no such file"):
            model_io.load(tmp_path / "none.onnx")

    def test_folder(self, tmp_path: Path) -> None:
        with pytest.raises(ModelError, match="cannot be read"):
            model_io.load(tmp_path)

    @pytest.mark.parametrize("content", [b"", b"just some text\n" * 40, b"\x00\xff" * 100, b'{"a": 1}', b"PK\x03\x04"])
    def test_not_onnx(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "text.onnx").write_bytes(content)
        with pytest.raises(ModelError, match="not an ONNX model"):
            model_io.load(tmp_path / "text.onnx")

    @pytest.mark.parametrize("part", [0.02, 0.3, 0.6, 0.99])
    def test_truncated(self, tmp_path: Path, part: float) -> None:
        whole = matmul_model().SerializeToString()
        (tmp_path / "cut.onnx").write_bytes(whole[: int(len(whole) * part)])
        with pytest.raises(ModelError, match=r"cut\.onnx"):
            model_io.load(tmp_path / "cut.onnx")

    def test_graph_of_a_cycle(self, tmp_path: Path) -> None:
        model = parser.parse_model(
            '<ir_version: 8, opset_import: ["": 17]> g (float[2] x) => (float[2] y) { y = Add(x, z)  z = Neg(y) }'
        )
        onnx.save(model, tmp_path / "cycle.onnx")
        with pytest.raises(ModelError, match="not a valid ONNX model"):
            model_io.load(tmp_path / "cycle.onnx")

    def test_unsorted_nodes_are_sorted(self, tmp_path: Path) -> None:
        model = matmul_model()
        nodes = list(model.graph.node)[::-1]
        del model.graph.node[:]
        model.graph.node.extend(nodes)
        onnx.save(model, tmp_path / "unsorted.onnx")
        assert [node.op_type for node in model_io.load(tmp_path / "unsorted.onnx").graph] == [
            "MatMul",
            "LayerNormalization",
        ]


class TestWeights:
    def test_external_weights_are_there(self, external: Path) -> None:
        model_io.require_weights(model_io.load(external))

    def test_structure_without_weights(self, external: Path) -> None:
        (external.parent / "weights.bin").unlink()
        model = model_io.prepare(model_io.load(external))
        assert [node.op_type for node in model.graph] == ["MatMul", "LayerNormalization"]
        with pytest.raises(ModelError, match=r"'w' lies in .*weights\.bin"):
            model_io.require_weights(model)

    def test_short_file(self, external: Path) -> None:
        with open(external.parent / "weights.bin", "r+b") as file:
            file.truncate(100)
        with pytest.raises(ModelError, match="has only 100"):
            model_io.require_weights(model_io.load(external))

    def test_links_as_in_the_cache_of_a_model_hub(self, external: Path) -> None:
        """Model and weights are links to files elsewhere, of other names."""
        snapshot = external.parent / "snapshots" / "main"
        snapshot.mkdir(parents=True)
        for name in ("model.onnx", "weights.bin"):
            blob = external.with_name(f"blob-of-{name}")
            (external.parent / name).rename(blob)
            (snapshot / name).symlink_to(blob)
        model = model_io.prepare(model_io.load(snapshot / "model.onnx"))
        model_io.require_weights(model)
        assert np.array_equal(run_model(model, FEEDS)[0], run_ort(matmul_model(), FEEDS)[0])
        model_io.save(model, snapshot / "out.onnx")
        assert np.array_equal(outputs_of(snapshot / "out.onnx"), run_ort(matmul_model(), FEEDS)[0])

    def test_weights_outside_the_folder(self, external: Path) -> None:
        model = onnx.load(external, load_external_data=False)
        next(
            entry for entry in model.graph.initializer[0].external_data if entry.key == "location"
        ).value = "../weights.bin"
        (external.parent / "inner").mkdir()
        onnx.save(model, external.parent / "inner" / "model.onnx")
        with pytest.raises(ModelError, match="'w' cannot be read"):
            model_io.require_weights(model_io.load(external.parent / "inner" / "model.onnx"))

    def test_stripped_weights(self, tmp_path: Path) -> None:
        model = matmul_model()
        model.graph.initializer[0].ClearField("raw_data")
        onnx.save(model, tmp_path / "stripped.onnx")
        loaded = model_io.load(tmp_path / "stripped.onnx")
        model_io.prepare(loaded)
        with pytest.raises(ModelError, match="'w' holds no data"):
            model_io.require_weights(loaded)


class TestSave:
    def test_small_models_stay_one_file(self, tmp_path: Path) -> None:
        onnx.save(matmul_model(), tmp_path / "in.onnx")
        model_io.save(model_io.load(tmp_path / "in.onnx"), tmp_path / "out.onnx")
        assert leftovers(tmp_path) == {"in.onnx", "out.onnx"}
        assert np.array_equal(outputs_of(tmp_path / "out.onnx"), outputs_of(tmp_path / "in.onnx"))

    def test_large_weights_go_beside(self, tmp_path: Path) -> None:
        model_io.save(ir.from_proto(matmul_model()), tmp_path / "out.onnx", external_above=1000)
        assert leftovers(tmp_path) == {"out.onnx", "out.onnx.data"}
        assert relative_error(outputs_of(tmp_path / "out.onnx"), run_ort(matmul_model(), FEEDS)[0]) == 0

    def test_external_weights_stay_external_and_the_input_whole(self, external: Path) -> None:
        before = outputs_of(external), (external.parent / "weights.bin").read_bytes()
        model = model_io.prepare(model_io.load(external))
        model_io.save(model, external.with_name("out.onnx"))
        assert leftovers(external.parent) == {"model.onnx", "weights.bin", "out.onnx", "out.onnx.data"}
        assert np.array_equal(outputs_of(external.with_name("out.onnx")), before[0])
        assert (external.parent / "weights.bin").read_bytes() == before[1]
        assert np.array_equal(outputs_of(external), before[0])

    def test_twice_over_itself(self, external: Path) -> None:
        for _ in range(2):
            model_io.save(model_io.load(external), external.with_name("out.onnx"))
        assert np.array_equal(outputs_of(external.with_name("out.onnx")), outputs_of(external))

    @pytest.mark.parametrize("name", ["model.onnx", "./model.onnx", "link.onnx"])
    def test_output_is_the_input(self, external: Path, name: str) -> None:
        (external.parent / "link.onnx").symlink_to(external)
        before = external.read_bytes()
        for model in (model_io.load(external), model_io.prepare(model_io.load(external))):
            with pytest.raises(UsageError, match="is the input model itself"):
                model_io.save(model, external.parent / name)
        assert external.read_bytes() == before

    def test_output_holds_the_inputs_weights(self, tmp_path: Path) -> None:
        onnx.save(matmul_model(), tmp_path / "a.onnx", save_as_external_data=True, location="b.onnx.data")
        before = (tmp_path / "b.onnx.data").read_bytes()
        for name in ("b.onnx", "b.onnx.data"):
            with pytest.raises(UsageError, match="holds weights of the input model"):
                model_io.save(model_io.load(tmp_path / "a.onnx"), tmp_path / name)
        assert (tmp_path / "b.onnx.data").read_bytes() == before

    @pytest.mark.parametrize("target", ["no_such_folder/out.onnx", "folder"])
    def test_cannot_be_written(self, external: Path, target: str) -> None:
        (external.parent / "folder").mkdir()
        before = leftovers(external.parent)
        with pytest.raises(UsageError, match="cannot be written"):
            model_io.save(model_io.load(external), external.parent / target)
        assert leftovers(external.parent) - {"folder.data"} == before

    def test_weights_lost_in_between(self, external: Path) -> None:
        model = model_io.load(external)
        (external.parent / "weights.bin").unlink()
        with pytest.raises(ModelError, match="there is no such file"):
            model_io.save(model, external.with_name("out.onnx"))
        assert leftovers(external.parent) == {"model.onnx"}

    def test_external_constants_in_nodes(self, tmp_path: Path) -> None:
        model = matmul_model()
        constant = helper.make_node("Constant", [], ["w"], value=model.graph.initializer[0])
        del model.graph.initializer[0]
        model.graph.node.insert(0, constant)
        expected = run_ort(model, FEEDS)[0]
        onnx.save(model, tmp_path / "in.onnx", save_as_external_data=True, location="w.bin", convert_attribute=True)
        (tmp_path / "out").mkdir()
        model_io.save(model_io.load(tmp_path / "in.onnx"), tmp_path / "out" / "out.onnx")
        assert np.array_equal(outputs_of(tmp_path / "out" / "out.onnx"), expected)


class TestPrepare:
    def test_clones(self) -> None:
        model = ir.from_proto(matmul_model())
        prepared = model_io.prepare(model)
        prepared.graph.remove(prepared.graph[-1], safe=False)
        assert len(list(model.graph)) == 2

    def test_names_and_shapes(self) -> None:
        model = model_io.prepare(ir.from_proto(matmul_model()))
        assert all(node.name for node in model.graph)
        assert len({node.name for node in model.graph}) == 2
        assert [value.name for value in (*model.graph.inputs, *model.graph.outputs)] == ["x", "y"]
        assert model.graph[0].outputs[0].shape == ("N", CHANNELS)

    def test_missing_imports(self) -> None:
        model = matmul_model()
        model.graph.node.append(helper.make_node("Gelu", ["y"], ["z"], domain="com.microsoft"))
        model.opset_import[0].domain = "ai.onnx"
        assert model_io.prepare(ir.from_proto(model)).opset_imports == {"": 17, "com.microsoft": 1}
        del model.opset_import[:]
        model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
        assert "" in model_io.prepare(ir.from_proto(model)).opset_imports

    def test_shapes_behind_operators_of_onnx_runtime(self) -> None:
        model = parser.parse_model(
            """<ir_version: 8, opset_import: ["": 17, "com.microsoft": 1]>
            g (float[N, S, 8] x, float[8] scale) => (float[N, S, 8] y) {
                a, m, d, s = com.microsoft.SkipSimplifiedLayerNormalization(x, x, scale)
                b = Mul(a, s)
                y = com.microsoft.FastGelu(b)
            }"""
        )
        values = {value.name: value for node in model_io.prepare(ir.from_proto(model)).graph for value in node.outputs}
        assert values["s"].shape == values["b"].shape == ("N", "S", 8)
        assert values["s"].dtype == ir.DataType.FLOAT
        assert values["m"].shape is None

    def test_unfinished_bodies_are_mended(self) -> None:
        """An inlined body of opset 17 in a model of opset 18: `axes` has moved to an input."""
        model = parser.parse_model(
            """<ir_version: 8, opset_import: ["": 18, "local": 1]>
            g (float[2, 8] x) => (float[2, 8] y) { y = local.Norm(x) }
            <domain: "local", opset_import: ["": 17]>
            Norm (x) => (y) {
                square = Mul(x, x)
                mean = ReduceMean<axes = [-1], keepdims = 1>(square)
                root = Sqrt(mean)
                y = Div(x, root)
            }"""
        )
        prepared = ir.to_proto(model_io.prepare(ir.from_proto(model)))
        assert not prepared.functions
        onnx.checker.check_model(prepared, full_check=True)
        x = np.random.default_rng(0).standard_normal((2, 8)).astype(np.float32)
        expected = x / np.sqrt((x * x).mean(-1, keepdims=True))
        assert relative_error(run_ort(prepared, {"x": x})[0], expected) < 1e-6

    def test_other_functions_stay(self) -> None:
        model = parser.parse_model(
            """<ir_version: 8, opset_import: ["": 18, "local": 1]>
            g (float[2, 8] x) => (float[2, 8] y) { a = local.Twice(x) y = local.Block(a) }
            <domain: "local", opset_import: ["": 18]> Twice (x) => (y) { y = Add(x, x) }
            <domain: "local", opset_import: ["": 18, "local": 1]> Block (x) => (y) { y = local.Centre(x) }
            <domain: "local", opset_import: ["": 18]> Centre (x) => (y) { m = ReduceMean(x) y = Sub(x, m) }"""
        )
        prepared = model_io.prepare(ir.from_proto(model))
        assert [key[1] for key in prepared.functions] == ["Twice"]
        assert [node.op_type for node in prepared.graph] == ["Twice", "ReduceMean", "Sub"]

    def test_initializers_that_are_inputs(self) -> None:
        """Before IR version 4 every initializer is an input too, and a constant all the same."""
        model = matmul_model()
        model.ir_version = 3
        for tensor in model.graph.initializer:
            model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
        prepared, norms = lowered(model)
        proto = ir.to_proto(prepared)
        assert len(norms) == 1 and norms[0].weight[0] == 0.5
        assert [value.name for value in proto.graph.input] == ["x"] and proto.ir_version == 4
        assert is_checked(model) and is_checked(proto)
        assert np.array_equal(run_ort(proto, FEEDS)[0], run_ort(model, FEEDS)[0])

    def test_weights_are_not_read(self, external: Path) -> None:
        """A large external model costs nothing: its file is not even opened."""
        (external.parent / "weights.bin").write_bytes(b"")
        model_io.prepare(model_io.load(external))
