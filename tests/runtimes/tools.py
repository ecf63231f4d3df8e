"""The tools that converted files go through: each writes a file that ONNX Runtime then runs.

They are imported where they are used: most are there only in the environment of `make runtimes`.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from tests.runtimes.runtimes import INSTALL

Apply = Callable[[Path, Path, dict[str, np.ndarray]], None]


@dataclasses.dataclass(frozen=True)
class Tool:
    """One row of the table: apply(file, new file, feeds)."""

    name: str
    package: str  # whose version is told
    apply: Apply
    rounds: float = 1e-5  # the relative error that it may cost

    @property
    def title(self) -> str:
        return f"{self.name}, {self.package} {importlib.metadata.version(self.package)}"

    def require(self) -> None:
        try:
            importlib.metadata.version(self.package)
        except importlib.metadata.PackageNotFoundError:
            pytest.skip(f"needs {self.package}: {INSTALL}")


def _saved(change: Callable[[onnx.ModelProto], onnx.ModelProto]) -> Apply:
    """A tool that works on models in memory."""
    return lambda source, target, feeds: onnx.save(change(onnx.load(source)), target)


def _check(model: onnx.ModelProto) -> onnx.ModelProto:
    onnx.checker.check_model(model, full_check=True)
    return model


def _onnx_inliner(model: onnx.ModelProto) -> onnx.ModelProto:
    import onnx.inliner

    return onnx.inliner.inline_local_functions(model)


def _onnx_version(model: onnx.ModelProto) -> onnx.ModelProto:
    from onnx import version_converter

    return version_converter.convert_version(model, 21)


def _onnxslim(model: onnx.ModelProto) -> onnx.ModelProto:
    import onnxslim

    return onnxslim.slim(model)


def _onnxsim(model: onnx.ModelProto) -> onnx.ModelProto:
    import onnxsim

    simplified, valid = onnxsim.simplify(model)
    assert valid, "onnxsim says that its result is another"
    return simplified


def _onnxscript_optimizer(model: onnx.ModelProto) -> onnx.ModelProto:
    import onnxscript.optimizer

    return onnxscript.optimizer.optimize(model)


def _onnxscript_version(model: onnx.ModelProto) -> onnx.ModelProto:
    import onnx_ir as ir
    import onnxscript.version_converter

    loaded = ir.from_proto(model)
    onnxscript.version_converter.convert_version(loaded, 21)  # in place
    return ir.to_proto(loaded)


def _preprocess(source: Path, target: Path, feeds: dict[str, np.ndarray]) -> None:
    from onnxruntime.quantization.shape_inference import quant_pre_process

    quant_pre_process(str(source), str(target))


def _dynamic(source: Path, target: Path, feeds: dict[str, np.ndarray]) -> None:
    from onnxruntime.quantization import quantize_dynamic

    quantize_dynamic(str(source), str(target))


class _Reader:
    """onnxruntime.quantization.CalibrationDataReader, of one batch."""

    def __init__(self, feeds: dict[str, np.ndarray]) -> None:
        self._batches = iter([feeds])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._batches, None)


def _static(source: Path, target: Path, feeds: dict[str, np.ndarray]) -> None:
    from onnxruntime.quantization import quantize_static

    quantize_static(str(source), str(target), _Reader(feeds), per_channel=True)


def _four_bits(model: onnx.ModelProto) -> onnx.ModelProto:
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    quantizer = MatMulNBitsQuantizer(model, block_size=32, is_symmetric=True)
    quantizer.process()
    return quantizer.model.model


def _float16(model: onnx.ModelProto) -> onnx.ModelProto:
    from onnxruntime.transformers.float16 import convert_float_to_float16

    return convert_float_to_float16(model, keep_io_types=True)


def _transformers_optimizer(source: Path, target: Path, feeds: dict[str, np.ndarray]) -> None:
    from onnxruntime.transformers.optimizer import optimize_model

    optimize_model(str(source), model_type="gpt2", opt_level=0).save_model_to_file(str(target))


def _optimized_file(source: Path, target: Path, feeds: dict[str, np.ndarray]) -> None:
    import onnxruntime as ort

    options: Any = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(target)
    ort.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])


TOOLS = (
    Tool("`checker.check_model`, full", "onnx", _saved(_check)),
    Tool("`shape_inference`, strict", "onnx", _saved(lambda m: onnx.shape_inference.infer_shapes(m, True, True, True))),
    Tool("`inliner`", "onnx", _saved(_onnx_inliner)),
    Tool("`version_converter` to opset 21", "onnx", _saved(_onnx_version)),
    Tool("`optimizer.optimize`", "onnxscript", _saved(_onnxscript_optimizer)),
    Tool("`version_converter` to opset 21", "onnxscript", _saved(_onnxscript_version)),
    Tool("`slim`", "onnxslim", _saved(_onnxslim)),
    Tool("`simplify`", "onnxsim", _saved(_onnxsim)),
    Tool("`optimized_model_filepath`", "onnxruntime", _optimized_file),
    Tool("`transformers.optimizer`", "onnxruntime", _transformers_optimizer),
    Tool("`transformers.float16`", "onnxruntime", _saved(_float16), 2e-2),
    Tool("`quant_pre_process`", "onnxruntime", _preprocess),
    Tool("`quantize_dynamic`, 8 bits", "onnxruntime", _dynamic, 0.1),
    Tool("`quantize_static`, 8 bits", "onnxruntime", _static, 0.5),
    Tool("`MatMulNBitsQuantizer`, 4 bits", "onnxruntime", _saved(_four_bits), 0.1),
)
