"""Intervals hold what they are of about as often as they say, and docs/metrics.md has the figures."""

from __future__ import annotations

import re

import pytest


@pytest.fixture(scope="module")
def bench(load_bench):
    return load_bench("intervals")


@pytest.mark.parametrize("p", [0.5, 0.9, 0.99])
@pytest.mark.parametrize("n", [20, 200, 2000])
@pytest.mark.parametrize("name", ["top-1, top-5", "change, from 0.5 to p"])
def test_intervals_of_shares_and_changes_hold(bench, name, n, p):
    interval, simulations = bench.INTERVALS[name]
    assert 0.93 <= bench.coverage(interval, n, p, simulations) <= 0.99


@pytest.mark.parametrize("p", [0.5, 0.9, 0.99])
def test_intervals_with_sources_and_classes_hold(bench, p):
    for name in ("top-1, 4 videos of a source", "top-1 over 3 seeds", "mean class, 10 classes"):
        assert 0.91 <= bench.coverage(bench.INTERVALS[name][0], 200, p, 400) <= 0.995, name


def test_the_page_has_the_table(bench):
    table = bench.DOCS.read_text(encoding="utf-8").split(bench.MARKS[0])[1].partition(bench.MARKS[1])[0]
    lines = {line.split(" | ")[0].strip("| "): line for line in table.splitlines()[2:]}
    assert list(lines) == list(bench.INTERVALS)
    for name, line in lines.items():
        held = [float(number) for number in re.findall(r"\d+\.\d", line.removeprefix(f"| {name}"))]
        assert len(held) == len(bench.VIDEOS) * len(bench.SHARES)
        assert min(held) >= 93
