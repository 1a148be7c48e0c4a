"""Accuracy against cost: the front by brute force, and which points a record has."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from finished_runs import make_case, make_record, make_summary_of

from zar_ray.reporting.cost_figures import PlottedCost, pareto_chart, pareto_front
from zar_ray.reporting.cost_sections import cost_section, plotted
from zar_ray.reporting.study_tables import study_blocks

COSTS = {"zero_shot": (16.0, 0.01), "zar": (235.0, 0.5), "tpt": (900.0, 2.0)}
TOP1 = {"zero_shot": 0.4, "zar": 0.55, "tpt": 0.5}


def record(*cells):
    """A study of three methods, in one cell or in several of these coordinates."""
    summaries = {}
    for coordinates in cells or ((),):
        cases = [
            replace(
                make_case(method, TOP1[method]),
                **{"images": images, "seconds": seconds, "text_tokens": 12.0, "gradient_tokens": 6.0},
                peak_memory=5 * 10**8,
            )
            for method, (images, seconds) in COSTS.items()
        ]
        summaries[coordinates] = make_summary_of(cases)
    return make_record(summaries if cells else summaries[()])


@pytest.mark.parametrize("seed", range(5))
def test_the_front_is_what_nothing_is_both_as_cheap_and_as_good_as(seed):
    rng = np.random.default_rng(seed)
    drawn = zip(rng.integers(1, 6, 12), rng.integers(0, 6, 12), strict=True)
    points = [PlottedCost(str(n), "m", float(cost), value / 10, None, None) for n, (cost, value) in enumerate(drawn)]
    front = pareto_front(points)
    assert [one.cost for one in front] == sorted({one.cost for one in front})

    def beaten(one: PlottedCost) -> bool:
        return any(
            other.cost <= one.cost and other.value >= one.value and (other.cost, other.value) != (one.cost, one.value)
            for other in points
        )

    assert {(one.cost, one.value) for one in front} == {(one.cost, one.value) for one in points if not beaten(one)}


def test_a_study_of_several_methods_has_a_picture_by_seconds_and_by_images():
    section = cost_section(record())
    assert len(section.content) == 2
    by_seconds, by_images = (one.picture.alt for one in section.content)
    assert "top-1 against seconds a video" in by_seconds
    assert "on the front: zero_shot 40.0 % at 0.01; zar 55.0 % at 0.5." in by_seconds
    assert "zar 55.0 % at 235" in by_images


def test_one_method_or_nothing_measured_has_none():
    one = record()
    first = one.cells[0]

    def with_cases(cases):
        return replace(one, cells=(replace(first, summary=replace(first.summary, cases=cases)),))

    unmeasured = tuple(replace(case, seconds=None, images=None) for case in first.summary.cases)
    for cases in (first.summary.cases[:1], unmeasured):
        (text,) = cost_section(with_cases(cases)).content
        assert text.text == "It takes two methods with a score, and what they cost."


def test_corrupted_cells_are_not_held_against_clean_ones():
    many = record((("corruption", "rain:1"),), (("corruption", "clean"),))
    _, points = plotted(many, "seconds")
    assert len(points) == len(COSTS)
    assert "Frames: rain:1." in cost_section(many).content[0].caption


def test_points_have_their_intervals():
    _, points = plotted(record(), "seconds")
    for one, case in zip(points, record().cells[0].summary.cases, strict=True):
        expected = case.headline.after.top1
        assert (one.value, one.low, one.high) == (expected.value, expected.low, expected.high)
    assert pareto_chart(points, "top-1", "seconds").uri.startswith("data:image/svg+xml")


def test_costs_stand_in_the_table_of_one_cell():
    block = study_blocks(record())[-1]
    assert block.columns == ("method", "images", "tokens", "back", "seconds", "peak MB")
    assert block.rows[1] == ("zar", "235.0", "12.0", "6.0", "0.5", "500")
