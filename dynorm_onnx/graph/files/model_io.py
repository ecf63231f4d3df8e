"""Models in and out: load, clone and save a file without ever losing what is there."""

from __future__ import annotations

import contextlib
import logging
import os
import pathlib
from collections.abc import Callable, Iterator

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from dynorm_onnx.errors import ModelError, UsageError
from dynorm_onnx.graph.edit.emit import set_tensor
from dynorm_onnx.graph.files.damage import refuse_damaged
from dynorm_onnx.graph.files.data_in_file import read_without_data, write_with_data
from dynorm_onnx.graph.files.placing import data_files, folder_beside, put_in_place
from dynorm_onnx.graph.files.prepare import clone, prepare
from dynorm_onnx.graph.files.sparse import make_dense
from dynorm_onnx.graph.files.value_names import refuse_ambiguous
from dynorm_onnx.graph.values.fixed import without_constant_inputs

__all__ = ["clone", "left_out", "load", "prepare", "require_output", "require_weights", "save", "staged"]

logger = logging.getLogger(__name__)

EXTERNAL_ABOVE = 1 << 30  # bytes of weights; well under protobuf's own limit of 2 GiB
LEFT_IN_FILE_ABOVE = 64 << 20  # bytes of a file whose weights are read where they lie, not all at once
_SMALL = 256  # bytes; smaller tensors (shapes, axes) stay in the graph even if the weights do not
_SOURCE = "dynorm.source"  # where a model was loaded from, in ir.Model.meta
_LEFT_OUT = "dynorm.left_out"  # in ir.Model.meta
_TRAINING = (
    "the model's training_info, which says how to train it, is left out: it names weights and values of the norms "
    "that are gone"
)
_INSIDE = "dynorm.inside"  # of a tensor: its data lies in the model's own file


def load(path: str | os.PathLike[str]) -> ir.Model:
    """The model in `path`; its external weights, and those in a large file, stay on disk until they are read.

    Raises ModelError if the file is not there, cannot be read or is no whole ONNX model. External
    weights may be missing: the structure can be looked at without them, see `require_weights`.
    """
    source = pathlib.Path(path).absolute()
    try:
        status = source.stat()
        # onnx-ir takes a second hard link to a file of weights for an attack.
        leave = status.st_size > LEFT_IN_FILE_ABOVE and status.st_nlink == 1
        proto = read_without_data(source) if leave else onnx.load(source, "protobuf", load_external_data=False)
    except FileNotFoundError:
        raise ModelError(f"{path}: there is no such file.") from None
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror or error}.") from None
    except DecodeError:
        raise ModelError(f"{path}: is not an ONNX model, or is cut short.") from None
    if not proto.HasField("graph") or not (proto.graph.node or proto.graph.output):
        raise ModelError(f"{path}: is not an ONNX model: it holds no graph.")
    refuse_damaged(proto, path)
    make_dense(proto)
    refuse_ambiguous(proto, path)
    _refuse_maps(proto, path)
    try:
        model = ir.serde.deserialize_model(proto)
        without_constant_inputs(model)
        model.graph.sort()  # ONNX Runtime takes unsorted files; everything here relies on the order
    except Exception as error:  # the deserialiser raises whatever the damage leads to
        logger.debug("deserialising %s failed", path, exc_info=error)
        raise ModelError(f"{path}: is not a valid ONNX model: {_first_line(_innermost(error))}") from error
    for graph in model.graphs():
        ir.external_data.set_base_dir(graph, source.parent)
    for value in _initializers(model):
        if isinstance(value.const_value, ir.ExternalTensor):
            inside = value.const_value.location == source.name
            set_tensor(value, _within_reach(value.const_value, source.parent))
            value.const_value.meta[_INSIDE] = inside
    _read_once(model)
    model.meta[_SOURCE] = str(source)
    if proto.training_info:
        model.meta[_LEFT_OUT] = (_TRAINING,)
    return model


def _read_once(model: ir.Model) -> None:
    """Of a tensor that is read, onnx-ir writes its own metadata and those of the proto: they doubled each time."""
    nodes = [*model.graph.all_nodes(), *(node for body in model.functions.values() for node in body.all_nodes())]
    attributes = (attribute.value for node in nodes for attribute in node.attributes.values())
    for tensor in (*(value.const_value for value in _initializers(model)), *attributes):
        if isinstance(tensor, ir.TensorProtoTensor):
            tensor.raw.ClearField("metadata_props")


def left_out(model: ir.Model) -> tuple[str, ...]:
    """What a loaded model's file holds and save() does not write, in sentences."""
    sentences: tuple[str, ...] = model.meta.get(_LEFT_OUT, ())
    return sentences


def _refuse_maps(proto: onnx.ModelProto, path: str | os.PathLike[str]) -> None:
    """onnx-ir has no type for maps, which classifiers of scikit-learn give out."""
    for value in (*proto.graph.input, *proto.graph.output, *proto.graph.value_info):
        kind = value.type
        while kind.WhichOneof("value") in ("sequence_type", "optional_type"):
            kind = getattr(kind, kind.WhichOneof("value")).elem_type
        if kind.WhichOneof("value") == "map_type":
            raise ModelError(
                f"{path}: {value.name!r} is a map or holds maps, which cannot be written back: export the model "
                "without ZipMap (skl2onnx: options={'zipmap': False}), or cut it off"
            )


def require_weights(model: ir.Model) -> None:
    """Raises ModelError, naming tensor and file, if the data of any weight of `model` is not there in full."""
    smallest: dict[str, ir.ExternalTensor] = {}
    for value in _initializers(model):
        tensor = value.const_value
        if tensor is None or (isinstance(tensor, ir.TensorProtoTensor) and _is_hollow(tensor)):
            raise ModelError(f"The weight {value.name!r} holds no data.")
        if isinstance(tensor, ir.ExternalTensor):
            _require_file(tensor)
            if tensor.nbytes < smallest.setdefault(tensor.path, tensor).nbytes:
                smallest[tensor.path] = tensor
    for tensor in smallest.values():
        try:
            tensor.numpy()  # onnx-ir refuses files outside the model's folder, and only here
        except (OSError, ValueError) as error:
            raise ModelError(f"The weight {tensor.name!r} cannot be read: {_first_line(error)}") from error


def save(model: ir.Model, path: str | os.PathLike[str], external_above: int = EXTERNAL_ABOVE) -> None:
    """Writes `model` to `path`, whole or not at all.

    Weights go to PATH.data, or to PATH.1.data where the model in place reads that, if they are above `external_above`
    bytes together or were external before. Both files are written in a temporary folder beside `path` and then moved
    into place, so that whenever the process is killed the old output is there or the new one.
    Raises UsageError if `path` is the model's own file, if PATH.data holds weights that the model
    reads, or if nothing can be written there; ModelError if weights are missing.
    """
    with staged(model, path, external_above) as place:
        place()


@contextlib.contextmanager
def staged(
    model: ir.Model, path: str | os.PathLike[str], external_above: int = EXTERNAL_ABOVE
) -> Iterator[Callable[[], None]]:
    """The files that save(model, path, external_above) writes, in full but not yet in their place, and what moves them.

    For whoever has something to do that may fail before anything is to be seen. Raises what save() raises.
    """
    require_weights(model)
    require_output(model, path)
    target, data = _files(path)
    tensors = [value.const_value for value in _initializers(model) if value.const_value is not None]
    external = any(isinstance(t, ir.ExternalTensor) and not t.meta.get(_INSIDE) for t in tensors)
    external = external or sum(tensor.nbytes for tensor in tensors) > external_above
    with contextlib.ExitStack() as stack:
        with _cannot_be_written(path):
            folder = stack.enter_context(folder_beside(target))
            _read_external_attributes(model)
            if external:
                _save_external(model, folder / target.name, data.name)
            else:
                with (folder / target.name).open("wb") as file:
                    write_with_data(model, file)

        def place() -> None:
            with _cannot_be_written(path):
                put_in_place(folder / target.name, target, {os.path.realpath(file) for file in _weight_files(model)})

        yield place


def _save_external(model: ir.Model, path: pathlib.Path, data: str) -> None:
    """The weights in a file `data` beside; onnx-ir alone would forget what is said of them."""
    copy = clone(model)
    tensors = {value: value.const_value for value in _initializers(copy)}
    ir.external_data.unload_from_model(copy, path.parent, data, size_threshold_bytes=_SMALL)
    for value, tensor in tensors.items():
        unloaded, value.const_value = value.const_value, tensor
        if unloaded is not None:
            set_tensor(value, unloaded)
    ir.save(copy, path)


@contextlib.contextmanager
def _cannot_be_written(path: str | os.PathLike[str]) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UsageError(f"{path}: cannot be written: {error.strerror or error}.") from error


def require_output(model: ir.Model, path: str | os.PathLike[str]) -> None:
    """Raises UsageError where save(model, path) could not write, or would write over the model's own files.

    To be asked before hours of work, not only after them.
    """
    target, data = _files(path)
    with _cannot_be_written(path):
        is_folder = target.is_dir()
    if is_folder:
        raise UsageError(f"{path}: cannot be written: it is a folder; name a file for the output.")
    if not os.access(target.parent, os.W_OK):
        problem = "is read-only" if target.parent.is_dir() else "is not there"
        raise UsageError(f"{path}: cannot be written: the folder {target.parent} {problem}.")
    _refuse_to_overwrite(model, target, data)


def _files(path: str | os.PathLike[str]) -> tuple[pathlib.Path, pathlib.Path]:
    """(the model's file, that of its weights if they are external)."""
    target = pathlib.Path(path).absolute()
    return target, data_files(target)[0]


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


def _weight_files(model: ir.Model) -> Iterator[str]:
    for value in _initializers(model):
        if isinstance(value.const_value, ir.ExternalTensor):
            yield value.const_value.path


def _read_external_attributes(model: ir.Model) -> None:
    """Constant nodes may have external data as well, which ir.save would leave pointing to the old file."""
    for node in model.graph.all_nodes():
        for name, attribute in node.attributes.items():
            if attribute.type == ir.AttributeType.TENSOR and isinstance(attribute.value, ir.ExternalTensor):
                node.attributes[name] = ir.AttrTensor(name, ir.Tensor(attribute.value.numpy().copy()))


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


def _within_reach(tensor: ir.ExternalTensor, folder: pathlib.Path) -> ir.ExternalTensor:
    """`tensor`, based on a folder that holds both its file and what that file is a link to.

    onnx-ir takes a link out of the base folder for an attack; in the cache of the Hugging Face hub every
    file is one. A location that itself leads out of `folder` ("../x") is left to be refused.
    """
    path = os.path.normpath(tensor.path)
    real, inside = os.path.realpath(path), os.path.realpath(folder)
    if os.path.commonpath([path, folder]) != str(folder) or os.path.commonpath([real, inside]) == inside:
        return tensor
    base = os.path.commonpath([path, real])
    return ir.ExternalTensor(
        os.path.relpath(path, base), tensor.offset, tensor.length, tensor.dtype,
        shape=tensor.shape, name=tensor.name, base_dir=base,
    )  # fmt: skip


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


def _innermost(error: BaseException) -> BaseException:
    """What went wrong, under the wrappers that only say where."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
