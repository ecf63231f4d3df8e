"""Error messages that no test of their part provokes: what does, a function (folder, monkeypatch).

Rows of the table in error_messages.py, by file and by a fragment of the message.
"""

from __future__ import annotations

import importlib
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from dynorm_onnx import convert_model, custom_ops
from dynorm_onnx.bench import __main__ as bench
from dynorm_onnx.bench.models import make_untrained
from dynorm_onnx.calibration.data import records, signature
from dynorm_onnx.config import ConvertConfig
from dynorm_onnx.graph.files import model_io, prepare
from dynorm_onnx.graph.lower import canonical
from dynorm_onnx.graph.replace import rewrite
from dynorm_onnx.report import html
from dynorm_onnx.runtime import arrays, placement, session, timing
from dynorm_onnx.runtime.library import onnxruntime
from dynorm_onnx.serving import __main__ as serving
from dynorm_onnx.serving import genai, load, model_files, speed, triton
from dynorm_onnx.serving.folders import new_folder
from dynorm_onnx.serving.kubernetes import Deployment
from dynorm_onnx.serving.tensors import ServedSignature, ServedTensor
from tests.end_to_end.test_foreign_files import DATA, LIN, C, model
from tests.shipped import FOLDER

Provocation = Callable[[Path, pytest.MonkeyPatch], object]

NORMED = "g (float[n,4,8] x) => (float[n,4,8] y) { y = LayerNormalization<axis = -1>(x, w) }"


def normed() -> onnx.ModelProto:
    return model(NORMED, {"w": np.ones(C, np.float32)})


def normed_ir() -> ir.Model:
    return ir.from_proto(normed())


def written(folder: Path) -> Path:
    onnx.save(normed(), folder / "model.onnx")
    return folder / "model.onnx"


def failing() -> object:
    """A session of a model that fails in a run: it is asked for a shape that its input has not."""
    return session.make_session(model("g (float[4] x, int64[1] s) => (float[k] y) { y = Reshape(x, s) }", {}))


FAILING = {"x": np.ones(4, np.float32), "s": np.array([3])}


def drawn_without_shape(folder: Path, _: pytest.MonkeyPatch) -> object:
    proto = model("g (float[n,4,8] x, float[n] other) => (float[n,4,8] y) { y = LayerNormalization<axis = -1>(x, w) }",
                  {"w": np.ones(C, np.float32)})  # fmt: skip
    proto.graph.node.add(op_type="Identity", input=["other"], output=["o"])
    proto.graph.output.append(onnx.helper.make_tensor_value_info("o", 1, None))
    proto.graph.input[1].type.tensor_type.ClearField("shape")
    onnx.save(proto, folder / "model.onnx")
    return convert_model(folder / "model.onnx", data="random")


def without_torch(_: Path, patch: pytest.MonkeyPatch) -> object:
    patch.setitem(sys.modules, "torch", None)
    for name in [name for name in sys.modules if name.startswith("dynorm_onnx.pytorch")]:
        patch.delitem(sys.modules, name)
    return importlib.import_module("dynorm_onnx.pytorch")


def with_folder(folder: Path, under_a_file: bool) -> None:
    target = folder / "file" / "new" if under_a_file else folder / "new"
    (folder / "file").write_text("")
    with new_folder(target):
        target.mkdir()  # somebody else was faster
        (target / "theirs").write_text("")


def genai_folder(folder: Path, config: str) -> Path:
    (folder / "genai_config.json").write_text(config)
    return folder


def manifest(folder: Path, _: pytest.MonkeyPatch) -> object:
    (folder / "models" / "m" / "1").mkdir(parents=True)
    (folder / "models" / "m" / "config.pbtxt").write_text('name: "m"\nbackend: "onnxruntime"\n')
    asked = ["kubernetes", str(folder / "models"), "--name", "m", "-o", str(folder)]
    options = vars(serving._parser("serving").parse_args(asked))
    return options.pop("command")(options, None)


def cut_short(folder: Path) -> Path:
    np.savez(folder / "whole.npz", x=np.ones(1000))
    (folder / "cut.npz").write_bytes((folder / "whole.npz").read_bytes()[:500])
    return folder / "cut.npz"


def drawn_text(*_: object) -> object:
    pytest.importorskip("tritonclient", reason="needs tritonclient: pip install 'dynorm-onnx[serving]'")
    return load._drawn([("text", "BYTES", [1])], (1, 1), 2, np.random.default_rng(0))


def without_kernels(*_: object) -> None:
    if session.has_kernels("cuda"):
        pytest.skip("the library has kernels for CUDA here")
    session._register_kernels(None, "cuda", True)


def without_genai(_: Path, patch: pytest.MonkeyPatch) -> object:
    patch.setitem(sys.modules, "onnxruntime_genai", None)
    return speed.onnxruntime_genai()


def one_token(folder: Path, _: pytest.MonkeyPatch) -> object:
    pytest.importorskip("onnxruntime_genai", reason="needs onnxruntime-genai: pip install 'dynorm-onnx[serving]'")
    runpy.run_path(str(FOLDER / "genai.py"))["write"](folder / "lm")
    return speed.measure_speed([folder / "lm"], "def", tokens=1, runs=1)


def given_by_nothing(folder: Path, _: pytest.MonkeyPatch) -> object:
    proto = normed()
    proto.graph.output.append(onnx.helper.make_tensor_value_info("z", onnx.TensorProto.FLOAT, None))
    onnx.save(proto, folder / "model.onnx")
    return model_io.load(folder / "model.onnx")


def malformed(**change: list[str]) -> object:
    proto = normed()
    for field, names in change.items():
        del getattr(proto.graph.node[0], field)[:]
        getattr(proto.graph.node[0], field).extend(names)
    return prepare.prepare(ir.from_proto(proto))


def recorded(folder: Path, content: str) -> object:
    (folder / "data.jsonl").write_text(content)
    return convert_model(written(folder), data=folder / "data.jsonl")


def lines_of(folder: Path, content: bytes) -> object:
    (folder / "data.txt").write_bytes(content)
    return records.read_lines(folder / "data.txt", signature(normed_ir()).inputs[0], signature(normed_ir()), 1)


def of_other_shapes(*_: object) -> None:
    torch = pytest.importorskip("torch", reason="needs PyTorch: pip install dynorm-onnx[torch]")
    losses = importlib.import_module("dynorm_onnx.pytorch.distil.losses")
    losses.require_shapes({"y": torch.ones(2)}, {"y": torch.ones(3)}, ["y"])


def without_norm(folder: Path) -> Path:
    onnx.save(model("g (float[n] x) => (float[n] y) { y = Neg(x) }", {}), folder / "model.onnx")
    return folder / "model.onnx"


def unloadable(folder: Path, patch: pytest.MonkeyPatch) -> Path:
    (folder / "library.so").write_text("no library")
    patch.setenv("DYNORM_LIBRARY", str(folder / "library.so"))
    return folder


def registered(folder: Path, patch: pytest.MonkeyPatch) -> object:
    unloadable(folder, patch)
    return custom_ops.register(onnxruntime().SessionOptions())


def elsewhere(*_: object) -> object:
    made = session.make_session(model("g (float[n,8] x) => (float[n,8] y) { y = MatMul(x, lin) }", {"lin": LIN}))
    if placement.placement(made) is None:
        pytest.skip("this ONNX Runtime does not tell")
    return placement.check_placement(made, "CUDAExecutionProvider")


def page_in_no_folder(folder: Path, _: pytest.MonkeyPatch) -> object:
    with html._cannot_be_written(folder / "r.html"):
        return (folder / "none" / "r.html").write_text("")


def without_bound(folder: Path, _: pytest.MonkeyPatch) -> object:
    return convert_model(written(folder), data=DATA, max_error=1e-12)


PROVOKED: dict[str, dict[str, Provocation]] = {
    "serving/kubernetes.py": {
        "a name in Kubernetes is": lambda *_: Deployment(name="A B"),
        "is no quantity such as": lambda *_: Deployment(name="a", cpu="much"),
    },
    "calibration/data/arrays.py": {
        ", which is no array:": lambda folder, _: convert_model(written(folder), data=[{"x": [[1], [1, 2]]}]),
    },
    "calibration/data/records.py": {
        "holds no samples": lambda folder, _: recorded(folder, "\n"),
        "must be an object of the model's": lambda folder, _: recorded(folder, '{"z": 1}'),
        "is not JSON": lambda folder, _: recorded(folder, "{"),
        "is no array": lambda folder, _: recorded(folder, '{"x": [[1], [1, 2]]}'),
        "holds no text": lambda folder, _: lines_of(folder, b"\n"),
        "is not UTF-8 text": lambda folder, _: lines_of(folder, b"\xff"),
    },
    "graph/files/malformed.py": {
        "where its operator has": lambda *_: malformed(input=["x"]),
        "which its operator needs": lambda *_: malformed(input=["x", "", "w"]),
    },
    "graph/files/value_names.py": {"is not a valid ONNX model: the name": given_by_nothing},
    "pytorch/distil/losses.py": {"as in the original, so that they": of_other_shapes},
    "runtime/placement.py": {
        "nodes that it should run were placed elsewhere": elsewhere,
    },
    "report/html/__init__.py": {
        ": cannot be written": page_in_no_folder,
    },
    "graph/sites/select.py": {
        "the model has no norm that could": lambda folder, _: convert_model(without_norm(folder), data=DATA),
        "matches none of the": lambda folder, _: convert_model(written(folder), data=DATA, only="nothing"),
    },
    "custom_ops.py": {
        "is not dynorm-onnx's custom-op library": lambda *given: unloadable(*given) and custom_ops.library_providers(),
        "ONNX Runtime cannot load": registered,
    },
    "calibration/data/load.py": {
        "writes no text that it could be calibrated on": lambda folder, _: convert_model(written(folder)),
    },
    "bench/models.py": {
        "--to": lambda folder, _: make_untrained(written(folder), "dyx"),
        "no norm was found that could": lambda folder, _: make_untrained(without_norm(folder), "dyt"),
    },
    "bench/__main__.py": {
        "is not a whole number above 0": lambda *_: bench._positive("0"),
        "is not a number of seconds above 0": lambda *_: bench._seconds("soon"),
        "is not a batch x length": lambda *_: bench._size("8"),
    },
    "calibration/data/drawn_inputs.py": {"can be drawn: ": drawn_without_shape},
    "config.py": {
        "has no argument": lambda *_: ConvertConfig.of("m.onnx", speed=1),
        "must be positive, not": lambda *_: ConvertConfig.of("m.onnx", learning_rate=0),
        "--inline writes standard operators": lambda *_: ConvertConfig.of("m.onnx", inline=True, optimize="ort"),
        "needs validation: leave out": lambda *_: ConvertConfig.of("m.onnx", max_kl=1.0, validate=False),
    },
    "graph/lower/canonical.py": {
        "is normalised over an inner axis": lambda *_: canonical._to_last_axis(None, ir.Value(name="h"), (1,), 8),
    },
    "graph/files/model_io.py": {
        "cannot be written: the folder": lambda folder, _: model_io.save(normed_ir(), folder / "none" / "m.onnx"),
        "…: cannot be written: ….": lambda folder, _: model_io.save(normed_ir(), folder / f"{'long' * 80}.onnx"),
    },
    "graph/replace/rewrite.py": {"There is no function": lambda *_: rewrite._function("DyNorm")},
    "pytorch/__init__.py": {"needs PyTorch, which is not installed": without_torch},
    "runtime/arrays.py": {
        "the feeds do not fit": lambda *_: arrays.run(failing(), {"x": np.ones(4)}),
"ONNX Runtime failed while running": lambda *_: arrays.run(failing(), FAILING)},
    "runtime/session.py": {
        "provider …": lambda *_: session.make_session(normed(), provider="tpu"),
        "threads must be at least": lambda *_: session.make_session(normed(), threads=0),
"kernels were asked for, but": without_kernels},
    "runtime/timing.py": {
        "seconds must be above 0": lambda *_: timing.time_variants({"a": failing()}, FAILING, seconds=0),
        "of the model to be timed has no feed": lambda *_: timing.bind(failing(), {"x": FAILING["x"]}),
"the model cannot be timed, for it fails": lambda *_: timing.bind(failing(), FAILING)},
    "serving/__main__.py": {
        "is not HOST:PORT": lambda *_: serving._address("8000"),
        "is not a whole number above 0": lambda *_: serving._positive("-1"),
        ": cannot be written": manifest,
        "cannot be read as an .npz of arrays": lambda folder, _: serving._feeds(cut_short(folder)),
    },
    "serving/folders.py": {": cannot be written": lambda folder, _: with_folder(folder, under_a_file=True)},
    "serving/genai.py": {
        "a dry run writes no folder": lambda folder, _: genai.convert_genai_folder(folder, folder / "o", dry_run=True),
        "has no object 'model'": lambda folder, _: genai._read_config(genai_folder(folder, "[]")),
        "is not JSON": lambda folder, _: genai._read_config(genai_folder(folder, "{")),
    },
    "serving/load.py": {
        "--protocol": lambda *_: load.measure_latency(["m"], protocol="ftp"),
        "which is not drawn": drawn_text,
    },
    "serving/speed.py": {"generating needs onnxruntime-genai": without_genai, "the text ends after": one_token},
    "serving/tensors.py": {
        "--max-batch-size": lambda *_: ServedSignature((ServedTensor("x", "FP32", (2,), 2),), ()).check_batch(4),
    },
    "serving/model_files.py": {"a model's name is the name": lambda *_: model_files.checked_name("a/b")},
    "serving/triton.py": {"must be an absolute path": lambda *_: triton._host_paths("models", "m", ["lib.so"])},
    "conversion/within_bounds.py": {
        "cannot be met, even with only": without_bound,
        "has no output of logits": lambda folder, _: convert_model(written(folder), data=DATA, max_kl=1.0),
    },
}  # fmt: skip
