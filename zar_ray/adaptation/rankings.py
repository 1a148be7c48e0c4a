"""What `zar predict` finds, here or at a service, as values; PyTorch is not needed to hold them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RankedLabel:
    """A label with its softmax probability over all given labels."""

    label: str
    score: float


@dataclass(frozen=True)
class Ranking:
    """One file under one method.

    Attributes:
        video: The file, as it was given.
        method: The method.
        before: Labels by falling score before adaptation.
        after: Labels by falling score after adaptation.
        warning: What was odd about the file.
        error: Why there is no ranking; then `before` and `after` are empty.
    """

    video: str
    method: str
    before: tuple[RankedLabel, ...]
    after: tuple[RankedLabel, ...]
    warning: str | None = None
    error: str | None = None
