"""What `zar predict` finds, here or at a service, as values; PyTorch is not needed to hold them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from zar_ray.errors import VideoError


@dataclass(frozen=True)
class RankedLabel:
    """A label with its softmax probability over all given labels.

    Attributes:
        score: It; of several seeds their mean.
        std: Standard deviation between the seeds, n - 1 in its denominator; None with one.
    """

    label: str
    score: float
    std: float | None = None


@dataclass(frozen=True)
class Ranking:
    """One file under one method.

    Attributes:
        video: The file, as it was given.
        method: The method.
        before: Labels by falling score before adaptation.
        after: Labels by falling score after adaptation.
        seeds: The seeds of the view plans; the scores are the means over them.
        warning: What was odd about the file.
        error: Why there is no ranking; then `before` and `after` are empty.
        certainty: How sure the decision after adaptation is, by the score that was asked for; over several seeds the
            mean. None where nothing was to be rejected.
        reject: Whether that is too little to take any of the labels for shown.
    """

    video: str
    method: str
    before: tuple[RankedLabel, ...]
    after: tuple[RankedLabel, ...]
    seeds: tuple[int, ...] = ()
    warning: str | None = None
    error: str | None = None
    certainty: float | None = None
    reject: bool | None = None

    @property
    def best(self) -> RankedLabel:
        """The label that adaptation decides for.

        Raises:
            VideoError: The video could not be used.
        """
        if self.error is not None:
            raise VideoError(f"{self.video}: {self.error}")
        return self.after[0]


def mean_ranking(of_seeds: Sequence[Mapping[str, float]], top_k: int) -> tuple[RankedLabel, ...]:
    """The first `top_k` labels by falling mean score, from all labels' scores a seed; equal ones in order."""
    scores = {label: [of_one[label] for of_one in of_seeds] for label in of_seeds[0]}
    ranked = [RankedLabel(label, fmean(of), stdev(of) if len(of) > 1 else None) for label, of in scores.items()]
    return tuple(sorted(ranked, key=lambda one: -one.score)[:top_k])
