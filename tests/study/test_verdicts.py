"""A winner is named only where the data allow it."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from zar_ray.results.record import ProtocolAverage
from zar_ray.results.statistics import holm, paired_comparison
from zar_ray.results.study_record import Score, TableRow
from zar_ray.study.tables import Group, verdict


def said(*right: np.ndarray) -> str:
    """The verdict on settings called s0 (the reference), s1, ..."""
    comparisons = [paired_comparison(right[0], one) for one in right[1:]]
    adjusted = holm([one.p_value for one in comparisons])
    family = []
    for number, one in enumerate(right):
        comparison, p = (comparisons[number - 1], adjusted[number - 1]) if number else (None, None)
        row = TableRow({"setting": f"s{number}"}, "zar", (0,), {}, None, comparison, p, *[None] * 6, 200)
        family.append((SimpleNamespace(right=np.atleast_2d(one), sources=None), row))
    return verdict(family)


def first(count: int, of: int = 200) -> np.ndarray:
    return np.arange(of) < count


def test_equal_settings_have_no_winner():
    assert "nothing is distinguishable" in said(first(100), first(102), first(99))


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
    assert text.startswith("nothing is better than the reference; worse beyond doubt: s1 (p")
    assert "s2" not in text


def test_many_settings_need_stronger_evidence():
    # 8 gained, 0 lost: p is 2 / 2**8, below 5 % alone and above it after ten tests
    one = first(100), first(108)
    assert "s1 wins" in said(*one)
    assert "nothing is distinguishable" in said(*one, *(first(100 + n % 2) for n in range(9)))


def test_replicates_of_the_same_videos_are_no_further_evidence():
    one = first(100), first(105)
    assert "nothing is distinguishable" in said(*one)
    assert "nothing is distinguishable" in said(*(np.stack([right] * 5) for right in one))


def test_an_average_over_replicates_is_of_the_splits_means_where_it_is_harmonic():
    def cell(base: float, novel: float, kind: str) -> SimpleNamespace:
        value = 2 * base * novel / (base + novel) if kind == "harmonic" else (base + novel) / 2
        std = None if kind == "harmonic" else abs(base - novel) / 2
        average = ProtocolAverage("zar", "top1", kind, value, std, ("base", "novel"))
        return SimpleNamespace(summary=SimpleNamespace(averages=(average,)))

    scores = {"base": Score(0.7), "novel": Score(0.5)}
    for kind, expected, deviation in (
        ("harmonic", 2 * 0.7 * 0.5 / 1.2, np.std([2 * 0.8 * 0.4 / 1.2, 0.6], ddof=1)),
        ("mean", 0.6, 0.0),
    ):
        cells = [cell(0.8, 0.4, kind), cell(0.6, 0.6, kind)]
        found = Group(None, (0, 1), cells, (), "zar").average(scores)
        assert (found.value, found.std) == (pytest.approx(expected), pytest.approx(deviation))
    # One replicate has the deviation between the splits, as papers print it.
    assert Group(None, (0,), [cell(0.8, 0.4, "mean")], (), "zar").average(scores).std == pytest.approx(0.2)
