"""Custom-op libraries of the user's own: models with their operators run only where they are registered.

They belong to a whole piece of work, in which sessions of the model, of parts of it and of what becomes of it are made
in many places: registered() makes them known to every session that is made inside its block.
"""

from __future__ import annotations

import argparse
import contextlib
import contextvars
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from dynorm_onnx import custom_ops
from dynorm_onnx.errors import UsageError
from dynorm_onnx.runtime.arrays import first_line
from dynorm_onnx.runtime.library import onnxruntime

_current: contextvars.ContextVar[tuple[Path, ...]] = contextvars.ContextVar("custom_op_libraries", default=())


@contextlib.contextmanager
def registered(files: Iterable[str | os.PathLike[str]]) -> Iterator[None]:
    """Registers these libraries, besides those of an outer block, in every session that is made within the block.

    Raises UsageError, at once, for a file that is not there or that ONNX Runtime cannot load.
    """
    added = tuple(map(Path, files))
    if added:
        register(onnxruntime().SessionOptions(), added)
    before = _current.set((*_current.get(), *added))
    try:
        yield
    finally:
        _current.reset(before)


def add_option(parser: argparse._ActionsContainer) -> None:
    """The option of the command lines, as custom_op_library."""
    parser.add_argument(
        "--custom-op-library",
        action="append",
        type=Path,
        default=[],
        metavar="FILE",
        help="a library of the model's own operators, to be registered in ONNX Runtime; repeatable",
    )


def register(options: Any, files: Iterable[str | os.PathLike[str]] = ()) -> None:
    """Registers `files` and the libraries of the blocks around in session options, each once.

    Raises UsageError for a file that is not there or that ONNX Runtime cannot load.
    """
    wanted = [*_current.get(), *map(Path, files)]
    ours = custom_ops.library_path() if wanted else None
    done = {ours.resolve()} if ours is not None else set()  # session.py registers it, where it can serve
    for path in wanted:
        if not path.is_file():
            raise UsageError(f"--custom-op-library {path}: there is no such file")
        if path.resolve() in done:
            continue
        done.add(path.resolve())
        try:
            options.register_custom_ops_library(str(path.resolve()))
        except Exception as error:  # ONNX Runtime's exceptions have no common base class
            raise UsageError(f"--custom-op-library {path}: ONNX Runtime cannot load it: {first_line(error)}") from error
