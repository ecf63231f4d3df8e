"""The normal form of what is computed around a norm: polynomials in x and its moments.

Whatever way an exporter spells a norm, each value between x and y is a sum of products of powers of
few symbols: x, its mean m, its mean square q, sums thereof under a root, and parameters. Sums are
expanded and equal products merged, so that E[(x - m)^2] and E[x^2] - E[x]^2 are the same polynomial
q - m^2, and x / sqrt(.), x * Pow(., -0.5) and x * Reciprocal(Sqrt(.)) are the same product. The
rules in rms.py, layer.py and l2.py then read a formula, not a chain of operators.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from fractions import Fraction
from typing import Literal

import onnx_ir as ir

Moment = Literal["x", "mean", "square", "count"]  # "count": how many elements a mean runs over


@dataclasses.dataclass(frozen=True)
class Parameter:
    """A value that does not depend on x."""

    value: ir.Value


@dataclasses.dataclass(frozen=True)
class Sum:
    """A sum of several products taken to a power as a whole; its leading coefficient is 1."""

    polynomial: Polynomial


Symbol = Moment | Parameter | Sum
Monomial = frozenset[tuple[Symbol, Fraction]]  # each symbol once, exponents not zero
ONE: Monomial = frozenset()
LARGEST = 16  # terms: four times what any norm has; more is some other formula


def product(*factors: tuple[Symbol, Fraction | int]) -> Monomial:
    """The product of symbols to their powers."""
    exponents: dict[Symbol, Fraction] = {}
    for symbol, exponent in factors:
        exponents[symbol] = exponents.get(symbol, Fraction(0)) + exponent
    return frozenset((s, e) for s, e in exponents.items() if e)


class Polynomial:
    """A sum of products, each with a coefficient; immutable, compared by value."""

    def __init__(self, terms: Mapping[Monomial, float]) -> None:
        self.terms = dict(terms)
        # Nine digits: the same sum reached by two orders of float additions is the same symbol.
        self._key = frozenset((m, float(f"{c:.9g}")) for m, c in self.terms.items())

    def __hash__(self) -> int:
        return hash(self._key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Polynomial) and self._key == other._key

    @classmethod
    def constant(cls, number: float) -> Polynomial:
        """A number."""
        return cls({ONE: number} if number else {})

    @classmethod
    def symbol(cls, symbol: Symbol) -> Polynomial:
        """One symbol, to the power of one."""
        return cls({product((symbol, 1)): 1.0})

    def has(self, *symbols: Moment) -> bool:
        """Whether any of the moments occurs, also under a root."""
        for monomial in self.terms:
            for symbol, _ in monomial:
                if symbol in symbols or (isinstance(symbol, Sum) and symbol.polynomial.has(*symbols)):
                    return True
        return False

    def parameters(self) -> set[ir.Value]:
        """The parameters that occur outside of roots."""
        return {s.value for monomial in self.terms for s, _ in monomial if isinstance(s, Parameter)}

    def plus(self, other: Polynomial, factor: float = 1.0) -> Polynomial:
        """self + factor * other."""
        terms = dict(self.terms)
        for monomial, coefficient in other.terms.items():
            total = terms.get(monomial, 0.0) + factor * coefficient
            if abs(total) <= 1e-9 * abs(coefficient):  # cancelled, up to the constants' own rounding
                terms.pop(monomial, None)
            else:
                terms[monomial] = total
        return Polynomial(terms)

    def times(self, other: Polynomial) -> Polynomial:
        """self * other, expanded."""
        result = Polynomial({})
        for a, x in self.terms.items():
            result = result.plus(Polynomial({product(*a, *b): x * y for b, y in other.terms.items()}))
        return result

    def power(self, exponent: Fraction) -> Polynomial | None:
        """self ** exponent; squares are expanded, other powers of a sum become one symbol.

        None for the root of what may be negative or is zero: no norm has it.
        """
        if exponent == 1:
            return self
        if exponent == 2:
            return self.times(self)
        if not self.terms:
            return None
        lead = min(self.terms, key=_rank)
        scale = self.terms[lead]
        if scale <= 0:
            return None
        if len(self.terms) == 1:
            monomial = product(*((s, e * exponent) for s, e in lead))
            return Polynomial({monomial: scale ** float(exponent)})
        # A power of the count that the leading product has is common to all: N q + eps = N (q + eps/N).
        count = [(s, e) for s, e in lead if s == "count"]
        inverse = product(*((s, -e) for s, e in count))
        base = Polynomial({product(*m, *inverse): c / scale for m, c in self.terms.items()})
        factors = [(s, e * exponent) for s, e in count]
        return Polynomial({product((Sum(base), exponent), *factors): scale ** float(exponent)})

    def mean(self) -> Polynomial | None:
        """The mean over the norm's axes; None where it is not a moment up to the second."""
        terms: dict[Monomial, float] = {}
        for monomial, coefficient in self.terms.items():
            degree = next((e for s, e in monomial if s == "x"), Fraction(0))
            rest = Polynomial({frozenset((s, e) for s, e in monomial if s != "x"): 1.0})
            moments: tuple[list[tuple[Symbol, int]], ...] = ([], [("mean", 1)], [("square", 1)])
            if degree not in (0, 1, 2) or rest.has("x") or rest.parameters():
                return None
            (others,) = rest.terms
            key = product(*others, *moments[int(degree)])
            terms[key] = terms.get(key, 0.0) + coefficient
        return Polynomial(terms)


def _rank(monomial: Monomial) -> tuple[int, str]:
    """The mean square leads a sum, constants come last; the order of the rest only has to be fixed."""
    symbols = {s for s, _ in monomial}
    place = 0 if "square" in symbols and "mean" not in symbols else 2 if not monomial else 1
    return place, str(sorted((str(s), e) for s, e in monomial))
