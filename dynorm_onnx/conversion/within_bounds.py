"""A conversion that keeps within --max-kl and --max-error."""

from __future__ import annotations

import dataclasses

from dynorm_onnx.conversion.attempt import Attempt, Outcome
from dynorm_onnx.conversion.costliest import keep_costliest
from dynorm_onnx.conversion.costs import costs
from dynorm_onnx.errors import BoundError
from dynorm_onnx.runtime.validate import Validation


@dataclasses.dataclass(frozen=True)
class Bounds:
    """On the mean KL to the original, in nats, and on the relative error of the outputs; at least one of them."""

    max_kl: float | None = None
    max_error: float | None = None

    def __str__(self) -> str:
        bounds = (("--max-kl", self.max_kl), ("--max-error", self.max_error))
        return " and ".join(f"{knob} {value}" for knob, value in bounds if value is not None)

    def excess(self, validation: Validation) -> float:
        """The damage in units of what the bounds allow; at most 1 where they are met.

        Raises BoundError for a bound on the KL of a model that has no logits.
        """
        excess = 0.0
        if self.max_kl is not None:
            if validation.quality is None:
                raise BoundError(f"--max-kl {self.max_kl}: the model has no output of logits; use --max-error")
            excess = max(excess, validation.quality.kl_mean / self.max_kl)
        if self.max_error is not None:
            excess = max(excess, validation.largest_error / self.max_error)
        return excess


def convert_within(bounds: Bounds, attempt: Attempt) -> Outcome:
    """The attempt's model with as few norms kept as meets the bounds, validated; BoundError if all must be."""

    def without(kept: frozenset[str]) -> Outcome:
        return attempt.judged(attempt.convert([norm for norm in attempt.norms if norm.site_name not in kept]))

    def damage(outcome: Outcome) -> float:
        assert outcome.validation is not None  # ConvertConfig refuses a bound without validation
        return bounds.excess(outcome.validation)

    met = keep_costliest(without, damage, lambda outcome: costs(attempt, outcome, bounds.excess), bound=1.0)
    if met is None:
        raise BoundError(
            f"{bounds} cannot be met, even with only the least costly of {len(attempt.norms)} norms replaced"
        )
    return dataclasses.replace(met.outcome, kept=met.kept)
