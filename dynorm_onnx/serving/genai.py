"""An ONNX Runtime GenAI folder with its decoder converted: what `onnxruntime_genai.Model` loads.

The folder's genai_config.json names the decoder (model.decoder.filename) and takes the path of one custom-op library,
relative to the folder, in model.decoder.session_options.custom_ops_library: onnxruntime-genai from 0.10 on (0.8 and
0.9 know the key, but look from the current directory).
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir

from dynorm_onnx import custom_ops
from dynorm_onnx.conversion.convert_model import convert_model
from dynorm_onnx.errors import ModelError, UsageError
from dynorm_onnx.graph.files import model_io
from dynorm_onnx.progress import Progress, no_progress
from dynorm_onnx.report import Report
from dynorm_onnx.serving.folders import new_folder

log = logging.getLogger(__name__)

CONFIG = "genai_config.json"
LIBRARY_KEY = "custom_ops_library"
LIBRARY_NAME = "libdynorm_ops.so"

_CPU_KERNELS = "CPUExecutionProvider"
_KERNELS = {"cuda": "CUDAExecutionProvider"}  # of the providers that genai_config.json can name, by its names


def convert_genai_folder(
    folder: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    library: bool = True,
    progress: Progress = no_progress,
    **knobs: Any,
) -> Report:
    """Convert the decoder of a GenAI folder; everything else in the folder is copied.

    Args:
        folder: with genai_config.json, the decoder that it names, and tokenizer.json where text is calibrated on.
        output: the new folder; it must not be there yet.
        library: put the custom-op library in the folder and name it; without, the function bodies run. A decoder in
            standard operators (`inline`) has no use for it.
        progress: as of convert_model().
        knobs: those of convert_model(), but for `output`: to, data, samples, method, ... Of `custom_op_library` the
            folder can name one, and then ours is left out; one that it names already is registered without being given.

    Returns:
        The report of the conversion.

    Raises:
        ModelError: the folder is no GenAI folder, or its decoder is split over several models.
        UsageError: the output is there already, or the folder names another custom-op library.
        DynormError: what convert_model() raises. In all of these cases nothing was written.
    """
    if knobs.get("dry_run"):
        raise UsageError(f"a dry run writes no folder: run it on the model in {folder}")
    source, target = Path(folder), Path(output)
    config = _read_config(source)
    decoder = _decoder_file(source, config)
    given, knobs["custom_op_library"] = _own_library(source, config, knobs.get("custom_op_library") or ())
    library_file = given if given is not None else _library(config) if library and not knobs.get("inline") else None
    if knobs.get("tokenizer") is None and (source / "tokenizer.json").is_file():
        knobs["tokenizer"] = source / "tokenizer.json"
    with new_folder(target) as working:
        _copy_others(source, working, decoder)
        written = working / decoder.relative_to(source)
        written.parent.mkdir(parents=True, exist_ok=True)
        report = convert_model(decoder, output=written, progress=progress, **knobs)
        if library_file is not None:
            name = library_file.name if given is not None else LIBRARY_NAME
            shutil.copyfile(library_file, working / name)
            decoder_config = config["model"]["decoder"]
            decoder_config["session_options"] = {**_session_options(config), LIBRARY_KEY: name}
        (working / CONFIG).write_text(json.dumps(config, indent=4, ensure_ascii=False) + "\n", encoding="utf-8")
    return dataclasses.replace(report, output=target / decoder.relative_to(source))


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelError(f"{folder} is no ONNX Runtime GenAI folder: {CONFIG}: {error.strerror or error}") from None
    except ValueError as error:
        raise ModelError(f"{path} is not JSON: {error}") from None
    if not isinstance(config, dict) or not isinstance(config.get("model"), dict):
        raise ModelError(f"{path} has no object 'model'")
    return config


def _decoder_file(folder: Path, config: dict[str, Any]) -> Path:
    decoder = _object(config["model"], "decoder", "model.decoder")
    if decoder.get("pipeline"):
        raise ModelError(f"{folder / CONFIG}: the decoder is a pipeline of several models, which cannot be converted")
    name = decoder.get("filename")
    if not isinstance(name, str) or not name:
        raise ModelError(f"{folder / CONFIG} names no model.decoder.filename")
    path = folder / name
    if not path.is_file():
        raise ModelError(f"{path}: there is no such file, though {CONFIG} names it as the decoder")
    if not path.resolve().is_relative_to(folder.resolve()) and not path.is_symlink():
        raise ModelError(f"{folder / CONFIG} names {name!r} as the decoder, which lies outside the folder")
    return path


def _object(parent: dict[str, Any], key: str, path: str) -> dict[str, Any]:
    """The object under a key; an empty one where there is none, or null, which GenAI reads as the same."""
    found = parent.get(key)
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise ModelError(f"{CONFIG}: {path} is {json.dumps(found)}, and should be an object")
    return found


def _session_options(config: dict[str, Any]) -> dict[str, Any]:
    return _object(config["model"]["decoder"], "session_options", "model.decoder.session_options")


def _providers(options: dict[str, Any]) -> list[str]:
    """By the names that GenAI has for them: [{"cuda": {...}}, ...]."""
    given = options.get("provider_options") or []
    if not isinstance(given, list) or not all(isinstance(entry, dict) for entry in given if entry is not None):
        raise ModelError(
            f"{CONFIG}: model.decoder.session_options.provider_options is {json.dumps(given)}, and should be a list of "
            "objects"
        )
    return [name.lower() for entry in given for name in entry or ()]


def _own_library(
    folder: Path, config: dict[str, Any], given: Sequence[str | os.PathLike[str]]
) -> tuple[Path | None, tuple[Path, ...]]:
    """(the library of the decoder's own operators that goes into the folder, those to register while converting)."""
    files = tuple(map(Path, [given] if isinstance(given, str | os.PathLike) else given))
    named = _session_options(config).get(LIBRARY_KEY)
    if len(files) > 1 or (files and named):
        others = ", ".join(map(str, [*([named] if named else []), *files]))
        raise UsageError(f"--custom-op-library: {CONFIG} can name only one library, and these are {others}")
    if files:
        log.warning("%s can name one library, and that is %s: the functions run by their bodies", CONFIG, files[0].name)
        return files[0], files
    its_own = folder / str(named) if named and Path(str(named)).name != LIBRARY_NAME else None
    return None, (its_own,) if its_own is not None and its_own.is_file() else ()


def _library(config: dict[str, Any]) -> Path | None:
    """The library, where it can serve the folder's provider; a warning says so if not."""
    options = _session_options(config)
    if options.get(LIBRARY_KEY):
        raise UsageError(
            f"{CONFIG} names the library {options[LIBRARY_KEY]!r} already, and can name only one: "
            "convert with --no-library, by the function bodies"
        )
    path = custom_ops.library_path()
    named = _providers(options)
    wanted = {_KERNELS.get(name, f"{name} kernels") for name in named} | {_CPU_KERNELS}
    if path is None:
        log.warning("dynorm-onnx was installed without its custom-op library: the model runs by its function bodies")
    elif not wanted <= set(custom_ops.library_providers()):
        log.warning("%s has no kernels for %s: it is left out, the function bodies run", path, ", ".join(named))
        path = None
    return path


def _copy_others(source: Path, target: Path, decoder: Path) -> None:
    """Everything but the decoder and those weights that no other model of the folder reads."""
    models = {path for path in source.rglob("*.onnx") if path.resolve() != decoder.resolve()}
    kept = {weights for model in models for weights in _weights_of(model)}
    left_out = {decoder.resolve()} | (set(_weights_of(decoder)) - kept)
    for path in sorted(source.rglob("*")):
        copy = target / path.relative_to(source)
        if path.is_dir():
            copy.mkdir(exist_ok=True)
        elif path.resolve() not in left_out and path != source / CONFIG:
            shutil.copyfile(path, copy)


def _weights_of(model: Path) -> Iterator[Path]:
    """The files beside a model that hold its weights."""
    for graph in model_io.load(model).graphs():
        for value in graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):
                yield Path(value.const_value.path).resolve()
