"""The fused kernels: where their library is, what it can run on, and how a session gets it.

The library is built with the package (see ``docs/kernels.md``). A package installed without it still works: models then
run by the function bodies that they carry, slower and with the same results.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from dynorm_onnx.errors import ProviderError

if TYPE_CHECKING:
    import onnxruntime as ort

_DISTRIBUTION = "dynorm-onnx"
_FILE_NAME = "libdynorm_ops.so"


def library_path() -> Path | None:
    """The custom-op library of this installation, or None if the package was installed without one.

    Looked for in this order: the file that the environment variable DYNORM_LIBRARY names; beside this module (an
    installed wheel, or ``cmake --install`` into the checkout); among the files of the installed distribution (an
    editable install keeps built files apart from the sources).

    Raises ProviderError where DYNORM_LIBRARY names a file that is not there.
    """
    named = os.environ.get("DYNORM_LIBRARY")
    if named:
        path = Path(named)
        if not path.is_file():
            raise ProviderError(f"the environment variable DYNORM_LIBRARY names {named}, and there is no such file.")
        return path
    candidates = (Path(__file__).with_name(_FILE_NAME), _in_distribution())
    return next((path for path in candidates if path is not None and path.is_file()), None)


@cache
def _in_distribution() -> Path | None:
    """Where the library of the installed distribution would be. Every session asks, and the search reads folders."""
    try:
        installed = importlib.metadata.distribution(_DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        return None
    return Path(str(installed.locate_file(f"dynorm_onnx/{_FILE_NAME}")))


@cache
def _providers_of(path: Path) -> tuple[str, ...]:
    try:
        library = ctypes.CDLL(str(path))
        library.dynorm_providers.restype = ctypes.c_char_p
    except (OSError, AttributeError) as error:  # not a library, or not this one
        raise ProviderError(f"{path} is not dynorm-onnx's custom-op library: {error}") from error
    return tuple(library.dynorm_providers().decode().split(","))


def library_providers() -> tuple[str, ...]:
    """The ONNX Runtime providers that the library has kernels for; empty without a library.

    ``("CPUExecutionProvider",)``, with ``"CUDAExecutionProvider"`` behind it if the library was built with nvcc.
    Raises ProviderError where the file that DYNORM_LIBRARY names is missing, or is another library.
    """
    path = library_path()
    return _providers_of(path) if path else ()


def register(session_options: ort.SessionOptions) -> None:
    """Registers the kernels in `session_options`, for every session made with them.

    Raises ProviderError if there is no library, or if ONNX Runtime refuses it (too old, or built for another machine).
    """
    path = library_path()
    if path is None:
        raise ProviderError(
            "dynorm-onnx was installed without its custom-op library: models run by their function bodies; "
            "where there is a C++17 compiler, pip builds it with the package."
        )
    try:
        session_options.register_custom_ops_library(str(path))
    except Exception as error:  # ONNX Runtime's exceptions have no common base below Exception
        raise ProviderError(f"ONNX Runtime cannot load {path}: {error}") from error
