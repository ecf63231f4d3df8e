"""Models in and out: load, clone and save a file without ever losing what is there."""

from __future__ import annotations

import contextlib
import logging
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from dynorm_onnx.errors import ModelError, UsageError
from dynorm_onnx.graph.prepare import clone, prepare

__all__ = ["clone", "load", "prepare", "require_weights", "save"]

logger = logging.getLogger(__name__)

EXTERNAL_ABOVE = 1 << 30  # bytes of weights; well under protobuf's own limit of 2 GiB
_SMALL = 256  # bytes; smaller tensors (shapes, axes) stay in the graph even if the weights do not
_SOURCE = "dynorm.source"  # where a model was loaded from, in ir.Model.meta


def load(path: str | os.PathLike[str]) -> ir.Model:
    """The model in `path`; its external weights stay on disk until they are read.

    Raises ModelError if the file is not there, cannot be read or is no whole ONNX model. External
    weights may be missing: the structure can be looked at without them, see `require_weights`.
    """
    source = pathlib.Path(path).absolute()
    try:
        proto = onnx.load(source, format="protobuf", load_external_data=False)
    except FileNotFoundError:
        raise ModelError(f"{path}: there is no such file.") from None
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror or error}.") from None
    except DecodeError:
        raise ModelError(f"{path}: is not an ONNX model, or is cut short.") from None
    if not proto.HasField("graph") or not (proto.graph.node or proto.graph.output):
        raise ModelError(f"{path}: is not an ONNX model: it holds no graph.")
    try:
        model = ir.serde.deserialize_model(proto)
        model.graph.sort()  # ONNX Runtime takes unsorted files; everything here relies on the order
    except Exception as error:  # the deserialiser raises whatever the damage leads to
        logger.debug("deserialising %s failed", path, exc_info=error)
        raise ModelError(f"{path}: is not a valid ONNX model: {_first_line(error)}") from error
    for graph in model.graphs():
        ir.external_data.set_base_dir(graph, source.parent)
    model.meta[_SOURCE] = str(source)
    return model


def require_weights(model: ir.Model) -> None:
    """Raises ModelError, naming tensor and file, if the data of any weight is not there in full."""
    for value in _initializers(model):
        tensor = value.const_value
        if tensor is None or (isinstance(tensor, ir.TensorProtoTensor) and _is_hollow(tensor)):
            raise ModelError(f"The weight {value.name!r} holds no data.")
        if isinstance(tensor, ir.ExternalTensor):
            _require_file(tensor)


def save(model: ir.Model, path: str | os.PathLike[str], external_above: int = EXTERNAL_ABOVE) -> None:
    """Writes `model` to `path`, whole or not at all.

    Weights go to PATH.data if they are above `external_above` bytes together or were external
    before. Both files are written in a temporary folder beside `path` and then moved into place.
    Raises UsageError if `path` is the model's own file, if PATH.data holds weights that the model
    reads, or if nothing can be written there.
    """
    target = pathlib.Path(path).absolute()
    data = target.with_name(target.name + ".data")
    _refuse_to_overwrite(model, target, data)
    tensors = [value.const_value for value in _initializers(model) if value.const_value is not None]
    external = any(isinstance(tensor, ir.ExternalTensor) for tensor in tensors)
    external = external or sum(tensor.nbytes for tensor in tensors) > external_above
    try:
        with _folder_beside(target) as folder:
            if external:
                ir.save(model, folder / target.name, external_data=data.name, size_threshold_bytes=_SMALL)
            else:
                ir.save(model, folder / target.name)
            if (folder / data.name).exists():
                os.replace(folder / data.name, data)  # first: a model must find its weights
            os.replace(folder / target.name, target)
    except OSError as error:
        raise UsageError(f"{path}: cannot be written: {error.strerror or error}.") from error


@contextlib.contextmanager
def _folder_beside(target: pathlib.Path) -> Iterator[pathlib.Path]:
    """A temporary folder on the target's file system, so that os.replace is atomic."""
    folder = pathlib.Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _refuse_to_overwrite(model: ir.Model, target: pathlib.Path, data: pathlib.Path) -> None:
    source = model.meta.get(_SOURCE)
    if source is not None and _same_file(target, source):
        raise UsageError(f"{target}: is the input model itself; choose another output path.")
    for value in _initializers(model):
        tensor = value.const_value
        if isinstance(tensor, ir.ExternalTensor) and any(
            _same_file(written, tensor.path) for written in (target, data)
        ):
            raise UsageError(f"{tensor.path}: holds weights of the input model; choose another output path.")


def _same_file(one: str | os.PathLike[str], other: str | os.PathLike[str]) -> bool:
    try:
        return os.path.samefile(one, other)
    except OSError:  # one of them is not there
        return False


def _initializers(model: ir.Model) -> Iterator[ir.Value]:
    for graph in model.graphs():
        yield from graph.initializers.values()


def _is_hollow(tensor: ir.TensorProtoTensor) -> bool:
    """Whether a tensor that should have elements has none: weights that were stripped from a file."""
    proto = tensor.raw
    fields = (
        "raw_data",
        "float_data",
        "int32_data",
        "int64_data",
        "double_data",
        "uint64_data",
        "string_data",
    )
    return tensor.size > 0 and not any(len(getattr(proto, field)) for field in fields)


def _require_file(tensor: ir.ExternalTensor) -> None:
    try:
        available = os.path.getsize(tensor.path)
    except OSError:
        raise ModelError(f"The weight {tensor.name!r} lies in {tensor.path}, and there is no such file.") from None
    length = tensor.length if tensor.length is not None else tensor.nbytes
    if (tensor.offset or 0) + length > available:
        raise ModelError(
            f"The weight {tensor.name!r} ends at byte {(tensor.offset or 0) + length} of {tensor.path}, "
            f"which has only {available}."
        )


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
