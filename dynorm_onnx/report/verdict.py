"""Whether a converted model can be used at all, why not, and what to try: a file that is written is no success yet.

The rules are far from what a good conversion gives; below them nobody would want the model.
"""

from __future__ import annotations

import glob
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from dynorm_onnx.calibration.norms.leeway import MOST_COUPLED
from dynorm_onnx.config import ConvertConfig
from dynorm_onnx.report.model import SiteReport, Verdict
from dynorm_onnx.runtime.measures import OutputError
from dynorm_onnx.runtime.validate import APART, Validation

LOSS_RISE = 0.5
"""Nats: the perplexity rises by two thirds."""

TOP1_AGREEMENT = 0.7
"""Three tokens of ten are others, so that greedy text leaves the original's within a few words."""

COSINE = 0.9
"""What is off is then 0.44 of the vector's length; a good conversion of a sentence encoder keeps 0.96."""

RELATIVE_ERROR = 0.5
"""Half of what the output says is wrong."""

CLASS_CHANGES = 0.1
"""Share of samples: whatever the original's accuracy is, one answer in ten is another."""

FIT_ERROR = 0.5
"""Of one norm: half of what it puts out is missed. What follows may make up for it, so that it is a warning alone."""

MOST_NAMED = 3  # sites or outputs that one sentence names

_CACHE_NAMES = ("present", "past", "cache")


def judge(config: ConvertConfig, sites: Sequence[SiteReport], validation: Validation | None) -> Verdict | None:
    """The verdict on a conversion; None where it was not validated."""
    if validation is None:
        return None
    reasons = tuple(reason for rule in RULES for reason in rule(validation))
    if not reasons:
        return Verdict(usable=True)
    advice = (line for give in ADVICE for line in give(config, sites, validation))
    return Verdict(usable=False, reasons=reasons, advice=tuple(advice))


def badly_fitted(sites: Sequence[SiteReport]) -> tuple[str, ...]:
    """A warning that names the norms whose replacement misses more than FIT_ERROR of them, if there are any."""
    worst = _by_error(sites, above=FIT_ERROR)
    if not worst:
        return ()
    named = ", ".join(f"{site.name} ({site.error:.2g})" for site in worst[:MOST_NAMED])
    more = f" and {len(worst) - MOST_NAMED} more" if len(worst) > MOST_NAMED else ""
    return (f"the function misses over half of what the norm puts out at {named}{more}",)


def failed_training(run: Mapping[str, Any] | None) -> tuple[str, ...]:
    """A warning where a distillation has made the model worse; `run` is its JSON object.

    One in which coupled channels had to go may end above where it began, but not far.
    """
    if run is None or not run["losses"]:
        return ()
    first, last = (run["losses"][place]["loss"] for place in (0, -1))
    ended = f"the distillation ended with a loss of {last:.4g} and had begun with {first:.4g}"
    if not run.get("kept", True):
        return (f"{ended}: nothing of it is kept; a smaller --learning-rate, or more --steps, may help",)
    if not last <= first + LOSS_RISE:
        return (f"{ended}: it has not made up for the coupled channels that went; more --steps or --coupled may help",)
    return ()


def _not_finite(validation: Validation) -> Iterator[str]:
    if not validation.is_finite:
        yield "it yields NaN or infinity where the original does not"


def _loss(validation: Validation) -> Iterator[str]:
    quality = validation.quality
    if quality is None or quality.loss_original is None or quality.loss_converted is None:
        return
    if quality.loss_converted - quality.loss_original > LOSS_RISE:
        yield (
            f"the next-token loss rises from {quality.loss_original:.3g} to {quality.loss_converted:.3g} nats, "
            f"by more than {LOSS_RISE}"
        )


def _top1(validation: Validation) -> Iterator[str]:
    quality = validation.quality
    if quality is not None and quality.top1_agreement < TOP1_AGREEMENT:
        share = f"{100 * quality.top1_agreement:.0f} % of the tokens"
        yield f"the most probable next token is the original's for only {share}, less than {100 * TOP1_AGREEMENT:.0f} %"


def _cosine(validation: Validation) -> Iterator[str]:
    for name, error in _judged_alone(validation):
        if error.cosine is not None and error.classes is None and error.cosine < COSINE:
            yield f"output {name}: the mean cosine to the original's is {error.cosine:.2f}, less than {COSINE}"


def _relative_error(validation: Validation) -> Iterator[str]:
    for name, error in _judged_alone(validation):
        if error.classes != "probability" and RELATIVE_ERROR < error.relative_error < float("inf"):
            yield f"output {name}: the relative error is {error.relative_error:.2g}, more than {RELATIVE_ERROR}"


def _classes(validation: Validation) -> Iterator[str]:
    for name, error in _judged_alone(validation):
        if error.class_agreement is not None and 1 - error.class_agreement > CLASS_CHANGES:
            changed = f"{100 * (1 - error.class_agreement):.0f} % of the samples"
            yield f"output {name}: the class changes for {changed}, more than {100 * CLASS_CHANGES:.0f} %"


def _shapes(validation: Validation) -> Iterator[str]:
    if validation.other_shapes and not validation.outputs:
        yield f"no output has the shape of the original's: {', '.join(validation.other_shapes)}"


RULES: tuple[Callable[[Validation], Iterator[str]], ...] = (
    _not_finite, _shapes, _loss, _top1, _classes, _cosine, _relative_error,
)  # fmt: skip


def _judged_alone(validation: Validation) -> Iterator[tuple[str, OutputError]]:
    """The outputs that their own numbers judge. A language model's logits may all shift together and say the same, and
    keys and values are there for the model alone: loss and predictions tell of both."""
    for name, error in validation.outputs.items():
        is_cache = any(word in name.lower() for word in _CACHE_NAMES)
        if validation.quality is None or (name != validation.logits and not is_cache):
            yield name, error


def _of_exact_rewrite(config: ConvertConfig, sites: Sequence[SiteReport], validation: Validation) -> Iterator[str]:
    if config.to == "rmsnorm":
        yield "--to rmsnorm should change nothing: this is a bug of ours, please report it with the model"


def _coupled(config: ConvertConfig, sites: Sequence[SiteReport], validation: Validation) -> Iterator[str]:
    most = max((site.coupled for site in sites), default=0)
    if config.to != "rmsnorm" and most < MOST_COUPLED:
        yield f"--coupled {MOST_COUPLED}: so many channels at most stay in each norm's sum (now {most})"


def _method(config: ConvertConfig, sites: Sequence[SiteReport], validation: Validation) -> Iterator[str]:
    if config.to == "rmsnorm":
        return
    if config.method == "fit":
        yield "--method reconstruct: also re-fits the linear layers behind the norms"
    if config.method == "distil":
        yield f"--steps {2 * config.steps}: trains longer"
    else:
        yield "--method distil: trains all weights towards the original's outputs (needs PyTorch)"


def _data(config: ConvertConfig, sites: Sequence[SiteReport], validation: Validation) -> Iterator[str]:
    if config.to == "rmsnorm":
        return
    if config.data is None:
        yield "--data with samples of what the model will see: none were given"
        return
    times = validation.times_worse_than_on_calibration
    why = ", for it is worse on other data than what it was calibrated on" if times and times > APART else ""
    yield f"more --data, with --samples {4 * config.samples} (now {config.samples}){why}"


def _bound(config: ConvertConfig, sites: Sequence[SiteReport], validation: Validation) -> Iterator[str]:
    if config.to == "rmsnorm" or config.is_bounded:
        return
    knob = "--max-kl 0.1" if validation.quality is not None else "--max-error 0.2"
    yield f"{knob}: keeps the norms whose replacement costs most"


def _keep(config: ConvertConfig, sites: Sequence[SiteReport], validation: Validation) -> Iterator[str]:
    worst = _by_error(sites)[:MOST_NAMED]
    if worst:
        knobs = " ".join(f"--keep {shlex.quote(glob.escape(site.name))}" for site in worst)
        yield f"{knobs}: the norms that the function fits worst stay"


Advice = Callable[[ConvertConfig, Sequence[SiteReport], Validation], Iterator[str]]

ADVICE: tuple[Advice, ...] = (_of_exact_rewrite, _coupled, _method, _data, _bound, _keep)
"""What gives lines of advice, in the order in which they are shown."""


def _by_error(sites: Sequence[SiteReport], above: float = 0.0) -> list[SiteReport]:
    """The converted sites with a fit error above that, the largest first; NaN is the largest of all."""

    def error(site: SiteReport) -> float:
        return site.error if site.error is not None and site.error == site.error else float("inf")

    fitted = [site for site in sites if site.error is not None and error(site) > above and site.status == "converted"]
    return sorted(fitted, key=error, reverse=True)
