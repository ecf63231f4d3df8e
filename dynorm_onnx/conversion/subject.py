"""The model that is converted, with its norms: the file as it is, or as onnxscript fuses it for ONNX Runtime.

ONNX Runtime fuses attention around norms, and finds none behind our functions; so it is fused before they come. The
file then needs ONNX Runtime. By default that is done where it brings attention and, on data, changes no output.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import onnx_ir as ir

from dynorm_onnx.calibration.data import CalibrationData
from dynorm_onnx.conversion.trainable import require_operators
from dynorm_onnx.errors import DynormError, ModelError
from dynorm_onnx.graph.edit.pieces import weight_bytes
from dynorm_onnx.graph.files import model_io
from dynorm_onnx.graph.norm_site import NormSite, SitesFound
from dynorm_onnx.graph.replace.inline import inlined
from dynorm_onnx.graph.replace.rewrite import count_replacements
from dynorm_onnx.graph.sites.find import find_sites
from dynorm_onnx.graph.sites.select import leave_constants, leave_unpaired, select
from dynorm_onnx.runtime.apart import require_no_crash
from dynorm_onnx.runtime.arrays import run
from dynorm_onnx.runtime.fuse import fused_or_not, same_outputs
from dynorm_onnx.runtime.opset import require_opset
from dynorm_onnx.runtime.pieces import BATCHES_LIMIT, open_for_batches
from dynorm_onnx.runtime.session import Provider, make_session, runnable
from dynorm_onnx.runtime.value_types import value_types


@dataclasses.dataclass(frozen=True)
class Search:
    """Which norms are wanted, and of what a model of them must be capable.

    Where norms are not `exact`, which is where functions replace them, those that no function can replace are left.
    `inline`: the model must do without functions; `trained`: it must run in PyTorch.
    """

    path: Path  # of the file
    fuse: str = "none"  # "ort", "auto" or "none", as --optimize
    only: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()
    exact: bool = False
    inline: bool = False
    trained: bool = False


@dataclasses.dataclass(frozen=True, eq=False)
class Subject:
    """What was sought, and the prepared model; the norms found in it, those to be replaced, and why the others
    are kept, by their names. `fused` is what was prepared, where that is not the file as it is; `notes` are for the
    user.
    """

    search: Search
    model: ir.Model
    found: SitesFound
    chosen: tuple[NormSite, ...]
    kept: dict[str, str]
    fused: ir.Model | None
    notes: tuple[str, ...] = ()

    @property
    def optimize(self) -> str:
        """What became of --optimize."""
        return "none" if self.fused is None else "ort"


def find_subject(original: ir.Model, search: Search) -> Subject:
    """The model to convert, whose outputs are still to be compared where it is fused.

    Raises ModelError where fusing was asked for and fails, and what finding and choosing norms raises.
    """
    try:
        fused = fused_or_not(original, search.fuse)
        if fused is not original:
            return _subject(original, search, fused)
    except DynormError as failure:
        if search.fuse == "ort":
            raise
        return _as_it_is(original, search, str(failure))
    return _subject(original, search)


def require_opens(original: ir.Model, path: Path, provider: Provider) -> None:
    """Raises ModelError where ONNX Runtime crashes on the file. Any other fault shows where the file is opened next."""
    if _may_be_tried(original, provider):
        require_no_crash(f"as it opens {path}", lambda: make_session(path))


def _may_be_tried(model: ir.Model, provider: Provider) -> bool:
    """In a copy of the process: not what would not be opened whole, nor a GPU, which is not for such copies."""
    return provider == "cpu" and weight_bytes(model) <= BATCHES_LIMIT


def with_same_outputs(
    original: ir.Model, subject: Subject, data: CalibrationData | None, provider: Provider
) -> Subject:
    """The subject, or the original where the fusions changed what it computes, or left what ONNX Runtime does not load;
    raises ModelError if they were asked for."""
    if subject.fused is None or data is None:
        return subject
    search = subject.search

    def open_fused() -> Any:
        return open_for_batches(subject.model, provider=provider)

    try:
        if _may_be_tried(subject.model, provider):
            require_no_crash("as it runs the fused model", lambda: run(open_fused(), data.validation[0]))
        before, after = open_for_batches(search.path, provider=provider), open_fused()
        if all(same_outputs(before, after, feeds) for feeds in (data.validation[0], data.calibration[-1])):
            return subject
        reason = "onnxscript's fusions change its outputs"
    except DynormError as failure:  # they may also write what cannot run
        reason = f"onnxscript's fusions break it: {failure}"
    if search.fuse == "ort":
        raise ModelError(f"--optimize ort: {search.path}: {reason}; leave it out")
    return _as_it_is(original, search, reason)


def _as_it_is(original: ir.Model, search: Search, reason: str) -> Subject:
    note = f"not fused for ONNX Runtime, so that it may be slower than it could be: {reason}"
    return dataclasses.replace(_subject(original, search), notes=(note,))


def _subject(original: ir.Model, search: Search, fused: ir.Model | None = None) -> Subject:
    prepared = model_io.prepare(original if fused is None else fused, value_types)
    if search.inline:  # at once: what cannot be inlined is to be known before hours of work
        prepared = model_io.prepare(inlined(prepared), value_types)
    require_opset(prepared.opset_imports[""], search.path)
    found = find_sites(prepared, load=runnable)
    chosen, kept = select(found, search.only, search.keep, replaced=count_replacements(original))
    if not search.exact:
        chosen, kept = leave_constants(chosen, kept, prepared.graph)
        chosen, kept = leave_unpaired(chosen, kept, prepared.graph)
    if search.trained:
        require_operators(prepared, chosen)
    return Subject(search, prepared, found, chosen, kept, fused)
