"""What the installed onnx and ONNX Runtime know; tests of what they do not know are skipped, and say so."""

from __future__ import annotations

import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper


def _version(package: str) -> tuple[int, int]:
    major, minor, *_ = package.split(".")
    return int(major), int(minor)


def _newest_opset() -> int:
    """The newest opset that onnx and ONNX Runtime both know, as they are installed here."""
    for opset in range(onnx.defs.onnx_opset_version(), 11, -1):
        node = helper.make_node("Relu", ["x"], ["y"])
        values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y")]
        graph = helper.make_graph([node], "probe", values[:1], values[1:])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
        try:
            ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        except Exception:  # ONNX Runtime's exceptions have no common base class
            continue
        return opset
    raise AssertionError("no opset at all")


NEWEST = _newest_opset()
RUNTIME = _version(ort.__version__)
NEWEST_LP_NORMALIZATION = NEWEST if RUNTIME >= (1, 25) else 21
"""The newest opset that ONNX Runtime has LpNormalization of: opset 22 renewed it, and the kernel came later."""
ERF_KEEPS_NAN = RUNTIME >= (1, 27)
"""Before, ONNX Runtime's Erf is 1 of NaN, in the bodies of Derf too; our kernels keep it."""


def needs_opset(opset: int) -> pytest.MarkDecorator:
    """Skips a test of models of an opset that is newer than what is installed."""
    return pytest.mark.skipif(opset > NEWEST, reason=f"needs opset {opset}, and what is installed knows {NEWEST}")


def each_opset(*opsets: int) -> pytest.MarkDecorator:
    """Parametrises `opset`; those that are not known here are skipped."""
    return pytest.mark.parametrize("opset", [pytest.param(opset, marks=needs_opset(opset)) for opset in opsets])
