"""Fading: coupled channels leave the sum of a norm's replacement while the model is trained, the massive ones last.

With x_j^2 replaced by lam_j x_j^2 + (1 - lam_j) m_j, m_j its mean, the sum under the root stays right on average
whatever lam_j is, and with A = 1 + sum_j c_j (1 - lam_j) m_j

    1 + sum_j c_j (lam_j x_j^2 + (1 - lam_j) m_j) = A (1 + sum_j (c_j lam_j / A) x_j^2)

is again a coupling, of weaker strengths, and a gain 1 / sqrt(A) that is the same for all tokens: beta A instead of
beta, or alpha / sqrt(A) instead of alpha. So no function is computed in another way while its channels fade. Between
two steps its parameters move by the share that lam has lost, and such moves add up to what one move of the whole
share would do. At lam = 0 a strength is exactly 0.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dynorm_onnx.functions import Coupling

UNTIL = 0.5
"""By this share of the steps the last channel is gone."""

EVENLY = 0.25
"""This share of the time for fading is shared out evenly among the channels that leave."""

ORDINARY = 100.0
"""A token whose x_j^2 is more than this many times the median over tokens does not count for the mean m_j."""

EXPONENTS = {"beta": 1.0, "alpha": -0.5}
"""What a gain of 1 / sqrt(A) does to a function's parameter: it is multiplied by A to this power."""

_LEAST_RANGE = 10.0  # of the largest x_j^2 over m_j


@dataclasses.dataclass(frozen=True)
class CoupledNorm:
    """A function with coupled channels, as training holds it.

    `channels` int64 [k]; `log_strengths` [k], `steepness` the stored alpha or beta ([1] or [C]), or its logarithm;
    `exponent` of EXPONENTS.
    """

    channels: Tensor
    log_strengths: nn.Parameter
    steepness: nn.Parameter
    is_logarithm: bool
    exponent: float

    @torch.no_grad()
    def fade(self, shares: Tensor, means: Tensor) -> None:
        """Leave this share of every x_j^2 in the sum, and put its mean in the place of the rest; [k] each."""
        constant = torch.log1p((self.log_strengths.double().exp() * (1 - shares) * means).sum())
        self.log_strengths.copy_(self.log_strengths.double() + shares.log() - constant)
        change = self.exponent * constant
        if self.is_logarithm:
            self.steepness.copy_(self.steepness.double() + change)
        else:
            self.steepness.copy_(self.steepness.double() * change.exp())


@dataclasses.dataclass(frozen=True)
class Plan:
    """How the channels of one function fade, [k] each: `means` m_j, `ranges` the largest x_j^2 over m_j.

    A channel fades from `begins` to `ends`, shares of the time for fading; one that stays would begin at its end.
    """

    means: Tensor
    ranges: Tensor
    begins: Tensor
    ends: Tensor

    def left(self, progress: float) -> Tensor:
        """lam, float64 [k], when this share of the time for fading is over: one channel after the other."""
        own = ((progress - self.begins) / (self.ends - self.begins)).clamp(0, 1)
        return remaining(own, self.ranges)


def plan(squares: Tensor, strengths: Tensor, keep: int) -> Plan:
    """From x_j^2 [tokens, k] and c_j [k]: the `keep` channels that can pull most, c_j x_j^2 at its largest, stay.

    The others go one after the other, those that pull most last. A part of the time, EVENLY, is the same for each; of
    the rest each takes as much as it pulls: by how many nats the gain changes of the token that it pulls most. A
    massive channel is thus given as long as dozens of others. With the same time for each it went within two steps of
    120, and the model with it.
    """
    squares, strengths = squares.double().cpu(), strengths.detach().double().cpu()
    means = ordinary_means(squares)
    largest = squares.amax(0)
    pulls = torch.log1p(strengths * largest).clamp(min=torch.finfo(torch.float64).tiny)
    order = torch.argsort(strengths * largest)
    leaving = order[: max(len(order) - keep, 0)]
    begins, ends = torch.ones_like(means), torch.full_like(means, 2.0)
    if len(leaving):
        times = EVENLY / len(leaving) + (1 - EVENLY) * pulls[leaving] / pulls[leaving].sum()
        over = torch.cumsum(times, 0)
        over[-1] = 1.0
        begins[leaving], ends[leaving] = torch.cat([torch.zeros(1, dtype=over.dtype), over[:-1]]), over
    ranges = (largest / means.clamp(min=torch.finfo(torch.float64).tiny)).clamp(_LEAST_RANGE, 1e30)
    return Plan(means, ranges, begins, ends)


def ordinary_means(squares: Tensor) -> Tensor:
    """The mean of x_j^2 [tokens, k] over the tokens that are not massive in j, [k]."""
    ordinary = squares <= ORDINARY * squares.median(0).values
    return (squares * ordinary).sum(0) / ordinary.sum(0).clamp(min=1)


def remaining(time: Tensor, ranges: Tensor) -> Tensor:
    """lam at times from 0 to 1: from 1 to exactly 0.

    The square of a massive token, `ranges` times the mean, falls by the same factor in every part of the time: were
    lam to fall evenly, all its change would come in the last step.
    """
    last = 1 / ranges
    return torch.where(time < 1, (ranges**-time - last) / (1 - last), 0.0)


class Fading:
    """Fades the channels of `norms` down to as many as their plans keep, by UNTIL of the steps."""

    def __init__(self, norms: Mapping[str, CoupledNorm], plans: Mapping[str, Plan], steps: int) -> None:
        self._norms, self._plans = norms, plans
        self._last = max(1, round(UNTIL * steps))

    def at(self, step: int) -> None:
        """To be called before each step, once, from the first on."""
        for name, norm in self._norms.items():
            before, now = (self._plans[name].left(min(1.0, done / self._last)) for done in (step, step + 1))
            device = norm.log_strengths.device
            shares = torch.where(before > 0, now / before, 1.0)
            norm.fade(shares.to(device), self._plans[name].means.to(device))

    def state(self) -> dict[str, Any]:
        """The plans, for a checkpoint: what they were made from changes with training."""
        return {name: dataclasses.asdict(made) for name, made in self._plans.items()}


def without_zeros(coupling: Coupling) -> Coupling | None:
    """The channels that still count."""
    left = np.asarray(coupling.strengths) > 0
    return Coupling(coupling.channels[left], coupling.strengths[left]) if left.any() else None
