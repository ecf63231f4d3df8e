"""What every server that loads one ONNX file is given alike: its name, its file, how many samples it takes at once."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Sequence
from pathlib import Path

import onnx_ir as ir

from dynorm_onnx.errors import UsageError
from dynorm_onnx.graph.files import model_io
from dynorm_onnx.runtime.user_libraries import registered
from dynorm_onnx.serving.tensors import ServedSignature

DEFAULT_BATCH = 8


def checked_name(name: str) -> str:
    """The name of a model in a server: of a folder, and of a step in an URL. Raises UsageError for what is neither."""
    if not name or name.startswith(".") or "/" in name or "\0" in name:
        raise UsageError(f"--name {name!r}: a model's name is the name of its folder, and this is none.")
    return name


def batch_size(signature: ServedSignature, asked: int | None) -> int:
    """The most samples in one batch, 0 for no batching; None asks for what the signature allows.

    Raises UsageError for a size below 0, or where a batch of any size cannot go through the model.
    """
    if asked is None:
        return DEFAULT_BATCH if signature.shares_batch else 0
    if asked < 0:
        raise UsageError(f"--max-batch-size must be at least 0, not {asked}")
    if asked:
        signature.check_batch(asked)
    return asked


def put_model(model: ir.Model, source: Path, target: Path) -> None:
    """Copy the file as it is; one with external weights is written anew, with all of them in one file beside it."""
    model_io.require_weights(model)
    tensors = [value.const_value for graph in model.graphs() for value in graph.initializers.values()]
    attributes = [
        attribute.value
        for node in model.graph.all_nodes()
        for attribute in node.attributes.values()
        if attribute.type == ir.AttributeType.TENSOR
    ]
    if any(isinstance(tensor, ir.ExternalTensor) for tensor in (*tensors, *attributes)):
        model_io.save(model, target)
    else:
        shutil.copyfile(source, target)


def libraries_by_name(files: Sequence[str | os.PathLike[str]], taken: Collection[str]) -> dict[str, Path]:
    """The user's libraries, which must load, by the names that they have beside the model.

    Raises UsageError for a file that is missing or no library, or that is called like another or one of `taken`.
    """
    with registered(files):
        pass
    found: dict[str, Path] = {}
    for path in map(Path, files):
        if path.name in (*found, *taken):
            raise UsageError(
                f"--custom-op-library {path}: another file of the folder is called {path.name} too: rename it"
            )
        found[path.name] = path
    return found
