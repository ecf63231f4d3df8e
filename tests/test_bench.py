"""The benchmarks: that what is measured computes what it should, and how it is shown. Never the numbers."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from dynorm_onnx.bench.__main__ import main
from dynorm_onnx.bench.models import _batches, make_untrained
from dynorm_onnx.bench.operators import COPY, LAYER_NORM, RMS_NORM, OperatorModel
from dynorm_onnx.bench.ops import BODY, OpsGrid, OpsRow, _is_whole, bench_ops
from dynorm_onnx.calibration.data.signature import signature
from dynorm_onnx.errors import UsageError
from dynorm_onnx.functions import DOMAIN, REGISTRY, Coupling, Form
from dynorm_onnx.graph.files import model_io
from dynorm_onnx.runtime.arrays import run
from dynorm_onnx.runtime.placement import placement
from dynorm_onnx.runtime.session import has_kernels, make_session
from tests.runtime.models import language_model
from tests.shipped import MODEL, NORMS
from tests.tolerances import TOLERANCE, relative_error

FAST = ["--seconds", "1e-6", "--threads", "1"]
OPS = ["ops", "--channels", "8", "--rows", "1x1", "2x3", *FAST]


def weights(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def outputs(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    return list(run(make_session(model, kernels=False), feeds).values())


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "double"])
@pytest.mark.parametrize("name", REGISTRY)
def test_a_chain_of_functions_is_what_it_says(name: str, dtype: str) -> None:
    spec = OperatorModel(channels=16, dtype=dtype, skip=False, chain=2)
    model, feeds = spec.function(name), spec.feeds(2, 3)
    constants, y = weights(model), feeds["x"].astype(np.float64)
    for i in range(2):
        parameters = {p: constants[f"{p}{i}"] for p in REGISTRY[name].parameter_names}
        y = REGISTRY[name].reference(y, constants[f"weight{i}"], constants[f"bias{i}"], **parameters)
    (out,) = outputs(model, feeds)
    assert out.dtype == feeds["x"].dtype
    assert relative_error(out, y) < 4 * TOLERANCE[dtype]


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("coupled", [1, 3, 16])
@pytest.mark.parametrize("name", REGISTRY)
def test_a_chain_of_coupled_forms_is_what_it_says(name: str, coupled: int, skip: bool) -> None:
    spec, function = OperatorModel(channels=16, dtype="float32", skip=skip, chain=2), REGISTRY[name]
    model, feeds = spec.function(name, coupled), spec.feeds(2, 3)
    assert {node.op_type for node in model.graph.node} == {function.node_type(Form(skip, True))}
    constants, y = weights(model), feeds["skip" if skip else "x"].astype(np.float64)
    residual = feeds["x"].astype(np.float64)
    for i in range(2):
        coupling = Coupling(constants[f"channels{i}"], constants[f"coupling{i}"].astype(np.float64))
        assert coupling.channels.size == coupled
        residual = residual + y
        x = residual if skip else y
        parameters = {p: constants[f"{p}{i}"] for p in function.parameter_names}
        y = function.reference(coupling.applied(x), constants[f"weight{i}"], constants[f"bias{i}"], **parameters)
    for got in (run(make_session(model, kernels=kernels), feeds) for kernels in {False, has_kernels("cpu")}):
        for out, expected in zip(got.values(), (y, residual) if skip else (y,), strict=True):
            assert relative_error(out, expected) < 4 * TOLERANCE["float32"]


def test_a_chain_of_skip_norms_carries_the_residual() -> None:
    spec = OperatorModel(channels=16, dtype="float32", skip=True, chain=3)
    feeds = spec.feeds(2, 3)
    for model, norm in ((spec.baseline(RMS_NORM), "rms"), (spec.function("dyisru"), "dyisru")):
        constants = {name: array.astype(np.float64) for name, array in weights(model).items()}
        residual, y = feeds["x"].astype(np.float64), feeds["skip"].astype(np.float64)
        for i in range(3):
            residual = residual + y
            if norm == "rms":
                y = residual / np.sqrt(np.square(residual).mean(-1, keepdims=True) + 1e-6) * constants[f"weight{i}"]
            else:
                y = REGISTRY[norm].reference(
                    residual, constants[f"weight{i}"], constants[f"bias{i}"], beta=constants[f"beta{i}"]
                )
        got_y, got_residual = outputs(model, feeds)
        assert relative_error(got_y, y) < 4 * TOLERANCE["float32"]
        assert relative_error(got_residual, residual) < 4 * TOLERANCE["float32"]


def test_the_baselines_are_norms_and_a_copy() -> None:
    spec = OperatorModel(channels=16, dtype="float32", skip=False, chain=1)
    x = spec.feeds(2, 3)["x"].astype(np.float64)
    centred = x - x.mean(-1, keepdims=True)
    for name, array in ((RMS_NORM, x), (LAYER_NORM, centred)):
        model = spec.baseline(name)
        constants = weights(model)
        normed = array / np.sqrt(np.square(array).mean(-1, keepdims=True) + 1e-6)
        expected = normed * constants["weight0"] + constants.get("bias0", 0.0)
        assert relative_error(outputs(model, spec.feeds(2, 3))[0], expected) < 4 * TOLERANCE["float32"]
    copy = spec.baseline(COPY)
    assert relative_error(outputs(copy, spec.feeds(2, 3))[0], x * weights(copy)["factor0"]) < TOLERANCE["float32"]


def test_inputs_are_never_zeros() -> None:
    feeds = OperatorModel(channels=16, dtype="float32", skip=True, chain=1).feeds(2, 3)
    assert set(feeds) == {"x", "skip"}
    assert all(np.count_nonzero(array) == array.size for array in feeds.values())
    assert all(array.ctypes.data % 64 == 0 for array in feeds.values()), "as ONNX Runtime's own lie"
    assert not np.array_equal(feeds["x"], feeds["skip"])
    large = OperatorModel(channels=1000, dtype="bfloat16", skip=False, chain=1).feeds(3, 500)["x"]
    assert large.shape == (3, 500, 1000) and np.count_nonzero(large) == large.size
    assert np.array_equal(large.reshape(-1)[2**20 :], large.reshape(-1)[: large.size - 2**20]), "drawn once, repeated"


def test_every_cell_of_the_grid_has_every_operator() -> None:
    grid = OpsGrid(rows=((1, 1), (2, 3)), channels=(8,), skips=(False, True), chains=(1, 2))
    rows = list(bench_ops(grid, threads=1, seconds=1e-6))
    speeds = 2 if has_kernels("cpu") else 1
    assert len(rows) == 2 * 2 * 2 * (3 + speeds * len(REGISTRY))
    for row in rows:
        assert row.speedup_over_rmsnorm is not None and row.speedup_over_rmsnorm > 0
        if row.operator == RMS_NORM:
            assert row.speedup_over_rmsnorm == 1
        if row.operator == COPY:
            assert row.speedup_over_copy == 1


@pytest.mark.parametrize("skip", [False, True])
def test_a_kernel_row_is_measured_on_the_kernel(skip: bool) -> None:
    if not has_kernels("cpu"):
        pytest.skip("the custom-op library is not installed")
    model = OperatorModel(8, "float32", skip, 2)
    fused, inlined = (placement(make_session(model.function("dyt"), kernels=kernels)) for kernels in (True, False))
    if fused is None or inlined is None:
        pytest.skip("this ONNX Runtime does not tell")
    assert [node.domain for node in fused] == ["dynorm"] * 2
    assert "dynorm" not in {node.domain for node in inlined}


def test_coupled_forms_have_rows_beside_the_plain_ones(capsys) -> None:
    assert main([*OPS, "--chain", "1", "--coupled", "2", "8", "2", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    operators = [row["operator"] for row in rows if row["rows"] == "1x1"]
    bodies = [name for name in operators if "DyT" in name and name.endswith(BODY)]
    plain, skip = (["DyT", "CoupledDyT k=2", "CoupledDyT k=8"], ["SkipDyT", "SkipCoupledDyT k=2", "SkipCoupledDyT k=8"])
    assert bodies == [f"{name} {BODY}" for name in (*plain, *skip)]
    assert ("SkipCoupledDerf k=8 kernel" in operators) == has_kernels("cpu")
    assert main([*OPS, "--coupled", "9"]) == 2
    assert "9 coupled channels are more than there are: 8" in capsys.readouterr().err


def test_a_norm_that_is_taken_apart_is_no_baseline() -> None:
    """LayerNormalization is a function of standard operators where a provider has no kernel for it."""
    model = OperatorModel(8, "float32", False, 2).baseline(LAYER_NORM)
    made = make_session(model)
    if placement(made) is None:
        pytest.skip("this ONNX Runtime does not tell")
    assert _is_whole(made, model)
    assert not _is_whole(make_session(OperatorModel(8, "float32", False, 2).baseline(COPY)), model)


def test_a_type_without_baseline_has_no_ratio() -> None:
    grid = OpsGrid(rows=((1, 1),), channels=(8,), dtypes=("bfloat16",), skips=(False,), chains=(1,))
    rows = {row.operator: row for row in bench_ops(grid, threads=1, seconds=1e-6)}
    assert "DyISRU body" in rows
    assert (rows["DyISRU body"].speedup_over_copy is None) == (COPY not in rows)


def test_an_unknown_function() -> None:
    with pytest.raises(UsageError, match="function 'gelu' is not one of"):
        OperatorModel(8, "float32", False, 1).function("gelu")


def test_ops_as_table_json_and_picture(capsys, tmp_path: Path) -> None:
    assert main([*OPS, "--json", "--plot", str(tmp_path / "ops.png")]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["benchmark"] == "ops"
    assert {"machine", "versions", "provider", "threads", "rows"} <= set(shown)
    assert {"operator", "rows", "median_ms", "p10_ms", "p90_ms", "speedup_over_copy"} <= set(shown["rows"][0])
    assert (tmp_path / "ops.png").read_bytes()[:4] == b"\x89PNG"
    assert main(OPS) == 0
    table = capsys.readouterr().out
    assert "vs RMSNorm" in table and "SkipDyISRU body" in table
    assert main([*OPS, "--chain", "3", "--json"]) == 0
    assert {row["chain"] for row in json.loads(capsys.readouterr().out)["rows"]} == {3}


def test_a_model_in_its_variants(capsys, tmp_path: Path) -> None:
    path = tmp_path / "lm.onnx"
    onnx.save(language_model(), path)
    converted = tmp_path / "other.onnx"
    onnx.save(language_model(bias=1.0), converted)
    command = ["model", str(path), "--converted", str(converted), "--rows", "2x5", *FAST]
    assert main([*command, "--json", "--plot", str(tmp_path / "lm.svg")]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [row["batch"] for row in rows if row["variant"] == "original"] == [
        "prefill 2x5",
        "decode 2x1, no cache",
    ]
    assert {"original", "original-fused", "converted"} <= {row["variant"] for row in rows}
    assert "<svg" in (tmp_path / "lm.svg").read_text()
    assert main(command) == 0
    assert "vs fused" in capsys.readouterr().out


def test_a_model_of_coupled_nodes(capsys, tmp_path: Path) -> None:
    """Such a file is timed as it is, with and without kernels, and its nodes are placed on them."""
    path = tmp_path / "coupled.onnx"
    proto = OperatorModel(16, "float32", False, 2).function("dyisru", 3)
    onnx.save(proto, path)
    assert main(["model", str(path), "--rows", "2x5", *FAST, "--json"]) == 0
    variants = {row["variant"] for row in json.loads(capsys.readouterr().out)["rows"]}
    assert ("converted-kernels" in variants) == has_kernels("cpu")
    placed = placement(make_session(proto))
    if placed is not None and has_kernels("cpu"):
        assert [(node.domain, node.op_type) for node in placed] == [(DOMAIN, "CoupledDyISRU")] * 2


def cached_model() -> onnx.ModelProto:
    """Logits of the mean over a cache of embeddings that grows by the new tokens."""
    model = parser.parse_model(
        """<ir_version: 10, opset_import: ["" : 21]>
        lm (int64[B, T] input_ids, float[B, 1, P, 8] past_0_key)
          => (float[B, T, 11] logits, float[B, 1, S, 8] present_0_key) {
          heads = Constant<value_ints = [1]>()
          axes = Constant<value_ints = [1, 2]>()
          e = Gather(table, input_ids)
          e4 = Unsqueeze(e, heads)
          present_0_key = Concat<axis = 2>(past_0_key, e4)
          mean = ReduceMean<keepdims = 0>(present_0_key, axes)
          mean3 = Unsqueeze(mean, heads)
          h = Add(e, mean3)
          logits = MatMul(h, head)
        }"""
    )
    rng = np.random.default_rng(0)
    for name, shape in {"table": (11, 8), "head": (8, 11)}.items():
        array = rng.standard_normal(shape).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    return model


def test_a_model_with_a_cache_decodes_from_it(tmp_path: Path) -> None:
    path = tmp_path / "cached.onnx"
    onnx.save(cached_model(), path)
    model = model_io.load(path)
    batches = dict(_batches(signature(model), model.graph, make_session(path), 2, 5))
    assert list(batches) == ["prefill 2x5", "decode 2x1 after 5"]
    prompt, step = batches.values()
    assert prompt["input_ids"].shape == (2, 5)
    assert prompt["past_0_key"].shape == (2, 1, 0, 8)
    assert step["input_ids"].shape == (2, 1)
    assert step["past_0_key"].shape == (2, 1, 5, 8)
    assert np.count_nonzero(step["past_0_key"])


def test_a_stand_in_has_every_norm_replaced(tmp_path: Path) -> None:
    path = tmp_path / "norm.onnx"
    onnx.save(OperatorModel(16, "float32", False, 2).baseline(RMS_NORM), path)
    model = make_untrained(path, "dyt")
    assert [(node.domain, node.op_type) for node in model.graph] == [("dynorm", "DyT")] * 2
    x = OperatorModel(16, "float32", False, 2).feeds(1, 3)
    assert np.isfinite(run(make_session(model), x)["y1"]).all()
    with pytest.raises(UsageError, match="--to"):
        make_untrained(path, "gelu")


def test_a_stand_in_is_fused_on_request() -> None:
    operators = [node.op_type for node in make_untrained(MODEL, "dyisru", optimize="ort").graph]
    assert "MultiHeadAttention" in operators and "Softmax" not in operators
    assert operators.count("SkipDyISRU") == NORMS - 1


def test_wrong_use(capsys, tmp_path: Path, monkeypatch) -> None:
    assert main(["model", str(tmp_path / "none.onnx")]) == 2
    assert "none.onnx" in capsys.readouterr().err
    path = tmp_path / "lm.onnx"
    onnx.save(language_model(), path)
    assert main(["model", str(path), *FAST]) == 3, "a model without a norm"
    assert main([*OPS, "--cuda-graph"]) == 2
    assert "--cuda-graph needs --provider cuda" in capsys.readouterr().err
    for bad in (["--rows", "8"], ["--seconds", "-1"], ["--channels", "0"], ["--dtype", "int8"]):
        with pytest.raises(SystemExit) as error:
            main(["ops", *bad])
        assert error.value.code == 2
    capsys.readouterr()
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    assert main([*OPS, "--plot", str(tmp_path / "x.png")]) == 2
    assert "dynorm-onnx[report]" in capsys.readouterr().err


def test_a_picture_that_cannot_be_written(capsys, tmp_path: Path) -> None:
    assert main([*OPS, "--plot", str(tmp_path / "none" / "x.png")]) == 2
    assert "--plot" in capsys.readouterr().err


def test_what_was_measured_before_ctrl_c_is_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*arguments: object, **options: object) -> Iterator[OpsRow]:
        yield from itertools.islice(bench_ops(OpsGrid(((1, 2),), (8,), chains=(1,)), seconds=0.01), 2)
        raise KeyboardInterrupt

    monkeypatch.setattr("dynorm_onnx.bench.__main__.bench_ops", interrupted)
    assert main(["ops", "--json"]) == 0
    shown = capsys.readouterr()
    assert len(json.loads(shown.out)["rows"]) == 2 and "interrupted: 2 rows" in shown.err
