"""Whether ONNX Runtime knows the opset of a model: asked first, for without it no norm can be proven to be one."""

from __future__ import annotations

import os
import re

import onnx
from onnx import TensorProto, helper

from dynorm_onnx.errors import ModelError
from dynorm_onnx.runtime.library import onnxruntime
from dynorm_onnx.runtime.session import make_session

_NEWEST = re.compile(r"support for domain ai\.onnx is till opset (\d+)")
_FATAL = 4  # what is wrong is said here, so ONNX Runtime need not


def require_opset(opset: int, model: str | os.PathLike[str]) -> None:
    """Raises ModelError, naming the model, where its opset is newer than the installed ONNX Runtime."""
    try:
        make_session(_of_one_node(opset), optimization="none", threads=1, log_severity=_FATAL)
    except ModelError as error:
        if (newest := _NEWEST.search(str(error))) is None:
            return  # whatever it is shows again where the model itself is opened
        raise ModelError(
            f"{model} is of opset {opset}, and ONNX Runtime {onnxruntime().__version__} knows none above "
            f"{newest[1]}; install a newer one"
        ) from error


def _of_one_node(opset: int) -> onnx.ModelProto:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y"))
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "opset", [x], [y])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
