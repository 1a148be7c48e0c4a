"""A winner is named only where the data allow it."""

from __future__ import annotations

import numpy as np

from zar_ray.reporting.sweep_summary import SweepRow
from zar_ray.results.statistics import holm, paired_comparison
from zar_ray.study.ablation import _verdict


def said(*right: np.ndarray) -> str:
    """The verdict on settings called s0 (the run's own), s1, ..."""
    comparisons = [paired_comparison(right[0], one, 0) for one in right[1:]]
    adjusted = holm([one.p_value for one in comparisons])
    rows = [SweepRow("s0", 0, None, None, None, None, None, None, None)]
    rows += [
        SweepRow(f"s{n}", n, None, None, None, one, p, None, None)
        for n, (one, p) in enumerate(zip(comparisons, adjusted, strict=True), 1)
    ]
    return _verdict(rows, dict(enumerate(right)), 0)


def first(count: int, of: int = 200) -> np.ndarray:
    return np.arange(of) < count


def test_equal_settings_have_no_winner():
    assert "No setting is distinguishable" in said(first(100), first(102), first(99))


def test_a_setting_beyond_doubt_wins():
    assert "s1 wins" in said(first(100), first(150), first(101))


def test_the_best_of_equals_does_not_win():
    text = said(first(100), first(150), first(149))
    assert "wins" not in text
    assert "s1 (p" in text
    assert "s2 (p" in text
    assert "s1, is not distinguishable from s2" in text


def test_settings_that_only_lose_are_named_as_worse():
    text = said(first(150), first(100), first(149))
    assert text.startswith("No setting is better than the run's own; worse beyond doubt: s1 (p")
    assert "s2" not in text


def test_many_settings_need_stronger_evidence():
    # 8 gained, 0 lost: p is 2 / 2**8, below 5 % alone and above it after ten tests
    one = first(100), first(108)
    assert "s1 wins" in said(*one)
    assert "No setting is distinguishable" in said(*one, *(first(100 + n % 2) for n in range(9)))
