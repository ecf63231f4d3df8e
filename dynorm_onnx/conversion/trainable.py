"""Whether a model can be trained, asked before anything is calibrated. PyTorch is imported only then."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator, Sequence

import onnx_ir as ir

from dynorm_onnx.errors import ModelError, UsageError
from dynorm_onnx.graph.lower import LoweredNorm
from dynorm_onnx.graph.norm_site import NormSite
from dynorm_onnx.runtime.arrays import Feeds


def require_torch() -> None:
    """Raises UsageError where PyTorch is not installed; to be asked before anything else is done."""
    if importlib.util.find_spec("torch") is None:
        raise UsageError("--method distil needs PyTorch: pip install dynorm-onnx[torch]")


def require_operators(model: ir.Model, sites: Sequence[NormSite]) -> None:
    """Raises ModelError where the model cannot run in PyTorch once the sites are replaced, naming all that is missing.

    To be asked before anything is calibrated. What a replaced norm is written with does not matter.
    """
    require_torch()
    from dynorm_onnx.pytorch.graph.known import require_known

    with _told_of_other_methods():
        require_known(model, [node for site in sites for node in site.nodes])


def require_functions(lowered: ir.Model, norms: Sequence[LoweredNorm], train: str) -> None:
    """Raises UsageError where the parameters of functions are all that is trained, and all lie in bodies."""
    if train == "norms" and all(norm.node.graph is not lowered.graph for norm in norms):
        raise UsageError(
            "--train norms: all norms lie in bodies of If, Loop or Scan, where functions stay as they are fitted; use "
            "--train all, or --method reconstruct or fit"
        )


def require_runs(lowered: ir.Model, feeds: Feeds) -> None:
    """Raises ModelError where the lowered model's graph fails in PyTorch: by an attribute, say, that is not supported.

    Runs it once, since that is found out in no other way; to be asked before minutes of calibration.
    """
    require_torch()
    from dynorm_onnx.pytorch.distil import run_once

    with _told_of_other_methods():
        run_once(lowered, feeds)


@contextlib.contextmanager
def _told_of_other_methods() -> Iterator[None]:
    try:
        yield
    except ModelError as error:
        raise ModelError(f"--method distil: {error}. --method reconstruct and fit do without PyTorch") from error
