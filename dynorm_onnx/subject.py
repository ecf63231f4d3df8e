"""The model that is converted, with its norms: the file as it is, or as onnxscript fuses it for ONNX Runtime.

ONNX Runtime fuses attention around norms, and finds none behind our functions; so it is fused before they come. The
file then needs ONNX Runtime. By default that is done where it brings attention and, on data, changes no output.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import onnx_ir as ir

from dynorm_onnx.calibration.data import CalibrationData
from dynorm_onnx.config import ConvertConfig
from dynorm_onnx.distillation import require_operators
from dynorm_onnx.errors import DynormError, ModelError
from dynorm_onnx.graph import model_io
from dynorm_onnx.graph.inline import inlined
from dynorm_onnx.graph.norm_site import NormSite, SitesFound
from dynorm_onnx.graph.pieces import weight_bytes
from dynorm_onnx.graph.rewrite import count_replacements
from dynorm_onnx.graph.select import leave_constants, leave_unpaired, select
from dynorm_onnx.graph.sites import find_sites
from dynorm_onnx.runtime.apart import require_no_crash
from dynorm_onnx.runtime.arrays import run
from dynorm_onnx.runtime.fuse import fused_or_not, same_outputs
from dynorm_onnx.runtime.opset import require_opset
from dynorm_onnx.runtime.pieces import BATCHES_LIMIT, open_for_batches
from dynorm_onnx.runtime.session import make_session, run_model
from dynorm_onnx.runtime.value_types import value_types


@dataclasses.dataclass(frozen=True, eq=False)
class Subject:
    """The prepared model; the norms found in it, those to be replaced, and why the others are kept, by their names.
    `fused` is what was prepared, where that is not the file as it is; `notes` are for the user."""

    model: ir.Model
    found: SitesFound
    chosen: tuple[NormSite, ...]
    kept: dict[str, str]
    fused: ir.Model | None
    notes: tuple[str, ...] = ()

    def settled(self, config: ConvertConfig) -> ConvertConfig:
        """The config with what became of --optimize."""
        return dataclasses.replace(config, optimize="none" if self.fused is None else "ort")


def find_subject(config: ConvertConfig, original: ir.Model) -> Subject:
    """The model to convert, whose outputs are still to be compared where it is fused.

    Raises ModelError where --optimize ort fails, and what finding and choosing norms raises.
    """
    try:
        fused = fused_or_not(original, config.optimize if config.fuses else "none")
        if fused is not original:
            return _subject(config, original, fused)
    except DynormError as failure:
        if config.optimize == "ort":
            raise
        return _as_it_is(config, original, str(failure))
    return _subject(config, original)


def require_opens(config: ConvertConfig, original: ir.Model) -> None:
    """Raises ModelError where ONNX Runtime crashes on the file. Any other fault shows where the file is opened next."""
    if _may_be_tried(config, original):
        require_no_crash(f"as it opens {config.model}", lambda: make_session(config.model))


def _may_be_tried(config: ConvertConfig, model: ir.Model) -> bool:
    """In a copy of the process: not what would not be opened whole, nor a GPU, which is not for such copies."""
    return config.provider == "cpu" and weight_bytes(model) <= BATCHES_LIMIT


def with_same_outputs(
    config: ConvertConfig, original: ir.Model, subject: Subject, data: CalibrationData | None
) -> Subject:
    """The subject, or the original where the fusions changed what it computes, or left what ONNX Runtime does not load;
    raises ModelError if they were asked for."""
    if subject.fused is None or data is None:
        return subject

    def open_fused() -> Any:
        return open_for_batches(subject.model, provider=config.provider)

    try:
        if _may_be_tried(config, subject.model):
            require_no_crash("as it runs the fused model", lambda: run(open_fused(), data.validation[0]))
        before, after = open_for_batches(config.model, provider=config.provider), open_fused()
        if all(same_outputs(before, after, feeds) for feeds in (data.validation[0], data.calibration[-1])):
            return subject
        reason = "onnxscript's fusions change its outputs"
    except DynormError as failure:  # they may also write what cannot run
        reason = f"onnxscript's fusions break it: {failure}"
    if config.optimize == "ort":
        raise ModelError(f"--optimize ort: {config.model}: {reason}; leave it out")
    return _as_it_is(config, original, reason)


def _as_it_is(config: ConvertConfig, original: ir.Model, reason: str) -> Subject:
    note = f"not fused for ONNX Runtime, so that it may be slower than it could be: {reason}"
    return dataclasses.replace(_subject(config, original), notes=(note,))


def _subject(config: ConvertConfig, original: ir.Model, fused: ir.Model | None = None) -> Subject:
    prepared = model_io.prepare(original if fused is None else fused, value_types)
    if config.inline:  # at once: what cannot be inlined is to be known before hours of work
        prepared = model_io.prepare(inlined(prepared), value_types)
    require_opset(prepared.opset_imports[""], config.model)
    found = find_sites(prepared, run=run_model)
    chosen, kept = select(found, config.only, config.keep, replaced=count_replacements(original))
    if config.to != "rmsnorm":
        chosen, kept = leave_constants(chosen, kept, prepared.graph)
        chosen, kept = leave_unpaired(chosen, kept, prepared.graph)
    if config.distils and not config.dry_run:
        require_operators(prepared, chosen)
    return Subject(prepared, found, chosen, kept, fused)
