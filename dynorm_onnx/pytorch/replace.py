"""replace_norms(): every RMSNorm and LayerNorm of a PyTorch model becomes an element-wise function."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import nn

from dynorm_onnx.calibration.norms.fit import Fit
from dynorm_onnx.errors import NoSiteError, UsageError
from dynorm_onnx.functions import REGISTRY
from dynorm_onnx.graph.sites.select import matcher
from dynorm_onnx.progress import Progress, no_progress
from dynorm_onnx.pytorch.calibrate import Batch, fit_norms
from dynorm_onnx.pytorch.inherit import inherit
from dynorm_onnx.pytorch.initial import ALPHA_ELSEWHERE, dyt_alpha, feeds_attention
from dynorm_onnx.pytorch.modules import places, put
from dynorm_onnx.pytorch.nn import MODULES, ElementwiseNorm
from dynorm_onnx.pytorch.norms import Gated, Norm, NotANorm, recognise

CONVERTED, KEPT, REFUSED = "converted", "kept", "refused"


@dataclasses.dataclass(frozen=True)
class NormModule:
    """What became of one norm of the model."""

    name: str  # its path; a shared module's first
    kind: str  # "rms", "layer"; with a gate "rms, gated"; the class where it was not recognised
    channels: int | None
    status: str  # "converted", "kept" (by a pattern) or "refused" (it cannot be replaced)
    reason: str | None = None
    error: float | None = None  # relative error of the fit to the norm's output; None without data


@dataclasses.dataclass(frozen=True)
class NormReport:
    """What replace_norms() did, in the order in which the model holds its norms; str() is a table."""

    to: str
    norms: tuple[NormModule, ...]

    @property
    def converted(self) -> tuple[str, ...]:
        """The paths of the norms that were replaced."""
        return tuple(norm.name for norm in self.norms if norm.status == CONVERTED)

    def __str__(self) -> str:
        header = ("norm", "kind", "channels", "status", "fit error", "reason")
        rows = [header] + [
            (
                n.name,
                n.kind,
                str(n.channels or ""),
                n.status,
                "" if n.error is None else f"{n.error:.3f}",
                n.reason or "",
            )
            for n in self.norms
        ]
        widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        return "\n".join([f"{len(self.converted)} of {len(self.norms)} norms replaced by {self.to}", *lines])


def replace_norms(
    model: nn.Module,
    to: str = "dyisru",
    data: Iterable[Batch] | None = None,
    *,
    only: str | Sequence[str] = (),
    keep: str | Sequence[str] = (),
    coupled: int | None = None,
    per_channel: bool | None = None,
    initial: Mapping[str, float] | None = None,
    language_model: bool | None = None,
    progress: Progress = no_progress,
) -> NormReport:
    """Replace the norms of `model`, in place, by modules of function `to` with the same types and devices.

    What is frozen stays frozen, and hooks stay where they are (inherit.py).

    A norm is a module that computes RMSNorm or LayerNorm of its last axis on a probe, whatever its class: of
    torch, Hugging Face, timm or your own.

    Args:
        to: "dyisru", "dyt" or "derf".
        data: batches of the model's inputs (a tensor, a tuple of arguments, or a mapping of keyword arguments
            each). The replacements are then fitted norm by norm to the original's outputs, by the code that
            fits ONNX files. What is alive at a norm is held for all batches. Without data they get the papers'
            initial values, for training from scratch.
        only: which norms, by glob or "re:" expression over their paths; none named: all.
        keep: which of them stay, in the same way.
        coupled: with data, how many channels of each norm may stay in its sum, chosen by what they tell of a token's
            length (functions/coupling.py); 0 for functions of single channels. None: 32 where tokens are massive
            (attention sinks), else 0, as `convert` does.
        per_channel: one alpha (beta, shift) for each channel or for all. By default for each with data,
            for all without, as in the papers. With data False is refused: the fits are per channel.
        initial: without data, keyword arguments of the modules that differ, such as {"alpha": 0.8}.
        language_model: without data, whether DyT's alpha begins at the values for language models, by width
            and place (initial.dyt_alpha). None: if a linear layer has as many outputs as an embedding has rows.
        progress: called with ("calibrate", norms done, norms in all).

    Raises:
        UsageError: an argument makes no sense, or a pattern matches nothing.
        NoSiteError: the model has no norm that could be replaced.
        DataError: the data holds no batch.
    """
    if coupled is not None and (coupled < 0 or (coupled and data is None)):
        raise UsageError(f"coupled={coupled}: channels are chosen on data, and at least 0 of them")
    if to not in MODULES:
        raise UsageError(f"to={to!r} is not one of {', '.join(MODULES)}")
    if data is not None and (per_channel is False or initial):
        raise UsageError("per_channel=False and initial are for training from scratch, without data")
    found = {
        names[0]: result
        for module, names in places(model).items()
        if not _is_parametrization(names[0]) and (result := recognise(module)) is not None
    }
    norms = {name: result for name, result in found.items() if isinstance(result, Norm)}
    kept = _kept(norms, [only] if isinstance(only, str) else only, [keep] if isinstance(keep, str) else keep)
    chosen = {name: norm for name, norm in norms.items() if name not in kept}
    if not chosen:
        raise NoSiteError(
            "the model has no norm that could be replaced" if not norms else "only and keep leave no norm"
        )
    if data is None:
        start = _initial_values(model, to, initial or {}, language_model, bool(per_channel))
        made = {name: start(name, norm) for name, norm in chosen.items() if norm.channels is not None}
        errors: dict[str, float] = {}
    else:
        fits = fit_norms(
            model,
            chosen,
            REGISTRY[to],
            data,
            lambda name, fit: _fitted(to, chosen[name], fit),
            progress,
            coupled,
        )
        made = {name: module for name, (_, module) in fits.items()}
        errors = {name: fit.relative_error for name, (fit, _) in fits.items()}
    everywhere = {names[0]: names for names in places(model).values()}
    parameters = [*model.parameters()]
    frozen = bool(parameters) and not any(parameter.requires_grad for parameter in parameters)
    for name, module in made.items():
        inherit(module, norms[name].module, frozen=frozen)
        for path in everywhere[name]:
            put(model, path, module)
    missing = "the data does not reach it" if data is not None else "it does not say its channels; give data"
    return NormReport(to, tuple(_row(name, result, kept, set(made), errors, missing) for name, result in found.items()))


def _is_parametrization(name: str) -> bool:
    """Whether a module makes a weight of another one, as torch's weight and spectral norms do."""
    return "parametrizations" in name.split(".")


def _row(
    name: str,
    found: Norm | NotANorm,
    kept: Mapping[str, str],
    made: set[str],
    errors: Mapping[str, float],
    missing: str,
) -> NormModule:
    if isinstance(found, NotANorm):
        return NormModule(name, "-", None, REFUSED, found.reason)
    kind = f"{found.kind}, gated" if found.gate else found.kind
    if name in kept:
        return NormModule(name, kind, found.channels, KEPT, kept[name])
    if name not in made:
        return NormModule(name, kind, found.channels, REFUSED, missing)
    return NormModule(name, kind, found.channels, CONVERTED, error=errors.get(name))


def _kept(norms: Mapping[str, Norm], only: Sequence[str], keep: Sequence[str]) -> dict[str, str]:
    """Why, by name, for the norms that the patterns leave. Raises UsageError for a pattern that matches none."""
    hits = {}
    for knob, patterns in (("only", only), ("keep", keep)):
        for pattern in patterns:
            matches = matcher(knob, pattern)
            hits[knob, pattern] = {name for name in norms if matches(name)}
            if not hits[knob, pattern]:
                raise UsageError(
                    f"{knob} {pattern!r} matches none of the {len(norms)} norms ({', '.join([*norms][:3])}, ...)"
                )
    kept = {name: f"keep {p}" for (knob, p), names in hits.items() if knob == "keep" for name in names}
    wanted = set().union(*(names for (knob, _), names in hits.items() if knob == "only")) if only else set(norms)
    return {name: "not named by only" for name in norms if name not in wanted} | kept


def _fitted(to: str, norm: Norm, fit: Fit) -> nn.Module:
    device, dtype = _place(norm.module)
    return _gated(norm, MODULES[to].from_parameters(fit.parameters, device=device, dtype=dtype))


def _initial_values(
    model: nn.Module, to: str, initial: Mapping[str, float], language_model: bool | None, per_channel: bool
) -> Callable[[str, Norm], nn.Module]:
    """What makes the module of a norm for training from scratch."""
    language = _is_language_model(model) if language_model is None else language_model
    width = max((p.shape[-1] for m in model.modules() if isinstance(m, nn.Embedding) for p in [m.weight]), default=0)

    construct: Callable[..., ElementwiseNorm] = MODULES[to]

    def make(name: str, norm: Norm) -> nn.Module:
        values: dict[str, float] = {}
        if to == "dyt":
            alpha = dyt_alpha(width, attention=feeds_attention(name)) if language else ALPHA_ELSEWHERE
            values["alpha"] = alpha
        device, dtype = _place(norm.module)
        try:
            module = construct(
                norm.channels, **{**values, **initial}, per_channel=per_channel, device=device, dtype=dtype
            )
        except TypeError as error:
            raise UsageError(f"initial: {MODULES[to].__name__} takes no such value ({error})") from error
        return _gated(norm, module)

    return make


def _is_language_model(model: nn.Module) -> bool:
    rows = {module.num_embeddings for module in model.modules() if isinstance(module, nn.Embedding)}
    return any(isinstance(module, nn.Linear) and module.out_features in rows for module in model.modules())


def _gated(norm: Norm, module: ElementwiseNorm) -> nn.Module:
    return module if norm.gate is None else Gated(module, norm.gate)


def _place(module: nn.Module) -> tuple[torch.device | None, torch.dtype | None]:
    """Where and of what type the module's parameters are; the default for one without."""
    tensor = next(iter([*module.parameters(), *module.buffers()]), None)
    return (None, None) if tensor is None else (tensor.device, tensor.dtype)
