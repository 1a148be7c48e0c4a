"""Measured values with their intervals, and two of them held against each other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval, both ends included."""

    value: float
    low: float
    high: float


def flat_numbers(values: Mapping[str, object]) -> dict[str, float]:
    """The numbers among some values, an estimate's interval as ``NAME_low`` and ``NAME_high`` beside it."""
    numbers: dict[str, float] = {}
    for name, value in values.items():
        if isinstance(value, Estimate):
            numbers |= {name: value.value, f"{name}_low": value.low, f"{name}_high": value.high}
        elif isinstance(value, int | float):
            numbers[name] = float(value)
    return numbers


@dataclass(frozen=True)
class PairedComparison:
    """Two decisions about the same videos.

    Attributes:
        effect: The score after minus the score before, with its paired interval.
        gained: Decisions that are right only after; None of an average, and of mean average precision.
        lost: Decisions that are right only before.
        p_value: Two-sided p of exchanging before and after at random, video by video, or source by source. Of single
            decisions that is McNemar's exact one.
        detectable: The smallest difference that such a test finds with a chance of 80 %; None where it finds none.
    """

    effect: Estimate
    gained: int | None
    lost: int | None
    p_value: float
    detectable: float | None = None

    @property
    def difference(self) -> float:
        """The difference alone."""
        return self.effect.value

    def numbers(self, name: str) -> dict[str, object]:
        """The effect and its p for `flat_numbers`, as ``NAME`` and ``NAME_p``."""
        return {name: self.effect, f"{name}_p": self.p_value}


@dataclass(frozen=True)
class Measure:
    """One measure of a case, before and after adaptation.

    Attributes:
        before: Before it; None where it is not defined there.
        after: After it.
        change: After against before; None where adaptation leaves every score as it was, or one is not defined.
    """

    before: Estimate | None
    after: Estimate | None
    change: PairedComparison | None = None

    def numbers(self, name: str) -> dict[str, float]:
        """It as flat numbers: ``NAME`` after adaptation, ``NAME_before`` and ``NAME_change`` with its ``_p``."""
        values: dict[str, object] = {name: self.after, f"{name}_before": self.before}
        if self.change is not None:
            values |= self.change.numbers(f"{name}_change")
        return flat_numbers(values)
