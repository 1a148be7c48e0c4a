"""Corruption errors by hand, as Hendrycks and Dietterich (ICLR 2019, section 3) write them."""

from __future__ import annotations

from dataclasses import replace
from statistics import fmean

import pytest
from finished_runs import make_table, summary_of

from zar_ray.reporting.shift_tables import shift_blocks
from zar_ray.results.shift import shift_table
from zar_ray.results.study_record import Cell, StudyTable

# Top-1 by model, corruption and method.
SCORES = {
    ("a", "clean"): {"zero_shot": 0.8, "zar": 0.9},
    ("a", "rain:1"): {"zero_shot": 0.6, "zar": 0.7},
    ("a", "rain:4"): {"zero_shot": 0.4, "zar": 0.6},
    ("a", "h265:2"): {"zero_shot": 0.7, "zar": 0.65},
    ("b", "clean"): {"zero_shot": 0.5, "zar": 0.55},
    ("b", "rain:1"): {"zero_shot": 0.5, "zar": 0.5},
    ("b", "rain:4"): {"zero_shot": 0.3, "zar": 0.25},
    ("b", "h265:2"): {"zero_shot": 0.4, "zar": 0.45},
}


def table_of(scores=SCORES, several: bool = True) -> StudyTable:
    cells = [
        Cell(
            {**({"model": model} if several else {}), "corruption": corruption},
            {},
            {},
            summary_of(0, {("all", method): value for method, value in of_one.items()}),
        )
        for (model, corruption), of_one in scores.items()
    ]
    return make_table(cells)


@pytest.mark.parametrize("reference", ["zero_shot", "zar"])
def test_errors_are_those_of_the_formulae(reference):
    found = shift_table(table_of(), reference)
    assert found.reference == f"{reference}, a"
    assert len(found.rows) == 4
    for row in found.rows:
        own = {one: 1 - SCORES[row.labels["model"], one][row.method] for one in ("clean", "rain:1", "rain:4", "h265:2")}
        base = {one: 1 - SCORES["a", one][reference] for one in own}
        errors = {
            "rain": (own["rain:1"] + own["rain:4"]) / (base["rain:1"] + base["rain:4"]),
            "h265": own["h265:2"] / base["h265:2"],
        }
        grown = [
            sum(own[one] - own["clean"] for one in of) / sum(base[one] - base["clean"] for one in of)
            for of in (("rain:1", "rain:4"), ("h265:2",))
        ]
        assert row.errors == pytest.approx(errors)
        assert row.mce == pytest.approx(fmean(errors.values()))
        assert row.relative_mce == pytest.approx(fmean(grown))
    own = next(row for row in found.rows if (row.labels["model"], row.method) == ("a", reference))
    assert (own.mce, own.relative_mce) == (pytest.approx(1), pytest.approx(1))


def test_without_clean_frames_nothing_is_relative():
    corrupted = {key: value for key, value in SCORES.items() if key[0] == "a" and key[1] != "clean"}
    found = shift_table(table_of(corrupted, several=False), "zero_shot")
    assert {row.relative_mce for row in found.rows} == {None}
    assert all(row.mce is not None for row in found.rows)
    assert found.reference == "zero_shot"
    (block,) = shift_blocks(found)
    assert "relative mCE" not in [row[0] for row in block.rows]


def test_a_reference_without_errors_divides_nothing():
    perfect = {key: {**value, "zero_shot": 1.0} for key, value in SCORES.items()}
    rows = shift_table(table_of(perfect), "zero_shot").rows
    assert {row.mce for row in rows} == {row.relative_mce for row in rows} == {None}


def test_a_table_without_corruptions_has_no_errors():
    clean = {key: value for key, value in SCORES.items() if key[1] == "clean"}
    assert shift_table(table_of(clean), "zero_shot") is None
    rows = tuple(replace(row, labels={"model": row.labels["model"]}) for row in table_of(clean).rows)
    assert shift_table(replace(table_of(clean), rows=rows), "zero_shot") is None


def test_a_table_a_model_has_a_corruption_a_row_and_a_method_a_column():
    first, second = shift_blocks(shift_table(table_of(), "zero_shot"))
    assert (first.columns, second.columns) == (("frames", "zero_shot", "zar"),) * 2
    assert [row[0] for row in first.rows] == [
        *("clean", "rain:1", "rain:4", "h265:2"),
        *("CE rain", "CE h265", "mCE", "relative mCE"),
    ]
    assert first.rows[1] == ("rain:1", "60.0", "70.0")
    assert first.rows[-2][1] == first.rows[-1][1] == "100.0"
    assert ["zero_shot, a" in str(note) for note in second.notes] == [True]
    assert not first.notes
