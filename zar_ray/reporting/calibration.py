"""How far a model's confidence can be believed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from sklearn.calibration import calibration_curve

BINS = 10
"""Bins of confidence, of equal width."""


@dataclass(frozen=True, eq=False)
class Calibration:
    """Confidence in the best class against how often it is right.

    Attributes:
        confidence: float (B,), mean confidence of each bin that holds a video, rising.
        accuracy: float (B,), share of right videos in these bins.
        videos: int (B,), videos in these bins.
        error: Expected calibration error: the mean distance of accuracy from confidence over the bins, each with the
            weight of its videos (Naeini et al., AAAI 2015; Guo et al., ICML 2017).
    """

    confidence: np.ndarray
    accuracy: np.ndarray
    videos: np.ndarray
    error: float


def calibrate(confidence: np.ndarray, right: np.ndarray, bins: int = BINS) -> Calibration | None:
    """Bins decisions by their confidence.

    Args:
        confidence: float (N,) in [0, 1]: the probability of the best class.
        right: bool (N,): whether the best class is the right one.
        bins: Bins of equal width over [0, 1]; a bin holds its upper end.

    Returns:
        None without a decision.
    """
    if not len(right):
        return None
    accuracy, mean = calibration_curve(right, confidence, n_bins=bins)
    # scikit-learn keeps to itself how many fell into each bin; this is its rule for which bin that is.
    inner = np.linspace(0, 1, bins + 1)[1:-1]
    videos = np.unique(np.searchsorted(inner, confidence), return_counts=True)[1]
    return Calibration(mean, accuracy, videos, float(np.average(np.abs(accuracy - mean), weights=videos)))
