"""Meet a bound on the damage by keeping the norms whose replacement costs most.

Each norm's cost is measured or estimated: the damage to the model's outputs that goes when it comes back. With the
norms ordered by cost, the fewest that must stay are found by bisection, so that the number of whole
conversions is the logarithm of the number of norms.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping
from typing import Generic, TypeVar

log = logging.getLogger(__name__)

Outcome = TypeVar("Outcome")

SLACK = 20
"""One norm in so many may be kept beyond the fewest: the last steps of a bisection are whole conversions that decide
about two or three of many norms."""


@dataclasses.dataclass(frozen=True)
class Met(Generic[Outcome]):
    """A conversion that meets the bound, and the cost of each norm that it keeps."""

    outcome: Outcome
    kept: dict[str, float]


def keep_costliest(
    attempt: Callable[[frozenset[str]], Outcome],
    damage: Callable[[Outcome], float],
    costs: Callable[[Outcome], Mapping[str, float]],
    bound: float,
) -> Met[Outcome] | None:
    """The conversion that keeps the fewest norms (of SLACK or more, nearly so) and whose damage is at most `bound`.

    `attempt(kept)` converts all norms but those; `costs` is asked once, of the first attempt, and only
    if that misses the bound. None where even the cheapest norm alone does too much damage.
    """
    first = attempt(frozenset())
    log.info("all norms replaced: %.5g, the bound is %.5g", damage(first), bound)
    if damage(first) <= bound:
        return Met(first, {})
    cost = costs(first)
    ordered = sorted(cost, key=lambda name: cost[name], reverse=True)
    met: Met[Outcome] | None = None
    fewest, most = 1, len(ordered) - 1
    slack = len(ordered) // SLACK
    while fewest <= most and (met is None or len(met.kept) - fewest > slack):
        count = (fewest + most) // 2
        outcome = attempt(frozenset(ordered[:count]))
        log.info("%d norms kept: %.5g, the bound is %.5g", count, damage(outcome), bound)
        if damage(outcome) <= bound:
            met = Met(outcome, {name: cost[name] for name in ordered[:count]})
            most = count - 1
        else:
            fewest = count + 1
    return met
