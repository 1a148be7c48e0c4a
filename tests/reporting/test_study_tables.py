"""A study's tables say what varied, how sure the numbers are and what they cost; of one cell, what its run found."""

from __future__ import annotations

import csv
import io
from dataclasses import replace

import pytest
from finished_runs import make_case, make_record, make_summary_of, make_table, summary_of
from rich.console import Console

from zar_ray.reporting.study_tables import print_study, study_blocks, study_csv, study_markdown
from zar_ray.reporting.summary_tables import RANDOM_WEIGHTS
from zar_ray.results.record import Estimate, PairedComparison
from zar_ray.results.study_record import Score, StudyRecord


def printed(show, value, width: int = 100, encoding: str = "utf-8") -> str:
    stream = io.BytesIO()
    text = io.TextIOWrapper(stream, encoding=encoding)
    show(value, Console(file=text, width=width))
    text.flush()
    return stream.getvalue().decode(encoding)


def cell(top1: float, seed: int = 0, **fields):
    return make_summary_of((make_case("zero_shot", 0.4), make_case("zar", top1)), seed=seed, **fields)


@pytest.fixture
def models() -> StudyRecord:
    """Two models with three seeds each; the second is 7.5 points better."""
    cells = {
        (("model", model), ("seed", str(seed))): cell(top1 + 0.02 * seed, seed, model=model)
        for model, top1 in (("small", 0.4), ("large", 0.475))
        for seed in (0, 1, 2)
    }
    record = make_record(cells)
    (table,) = record.tables
    against = PairedComparison(Estimate(0.075, 0.01, 0.14), 9, 3, 0.012)
    rows = tuple(
        replace(row, comparison=against, p_adjusted=0.024) if row.labels["model"] == "large" else row
        for row in table.rows
    )
    return replace(record, tables=(replace(table, rows=rows),))


def test_one_cell_is_shown_as_its_run():
    record = make_record(cell(0.5))
    for output in (printed(print_study, record), study_markdown(record)):
        assert "cell" not in output
        assert f"seed {record.whole.seed}\n" in output
        assert "Intervals hold with 95 %." in output
        assert record.whole.run_file in output.replace("\\_", "_")
    assert study_csv(record).count("\n") == 1


def test_replicates_become_their_mean_and_deviation(models):
    output = printed(print_study, models)
    rows = [line.split() for line in output.splitlines() if line.startswith(("small", "large"))]
    assert ["small", "zar", "42.0", "±", "2.0"] in [row[:5] for row in rows]
    assert "Mean ± standard deviation over 3 seeds (0, 1, 2), n - 1 in its denominator." in output
    assert "2 models x 3 seeds: 6 cells" in output
    assert "+7.5 [+1.0, +14.0]" in output
    assert "0.024" in output
    assert "reference" in output
    assert "against the first cell on the same videos" in output
    assert "p adj. is the exact p of exchanging both at random after Holm's correction" in output
    # Without replicates it is the interval over the videos.
    single = printed(print_study, make_record({(("model", one),): cell(0.42) for one in ("small", "large")}))
    assert "42.0 [32.0, 52.0]" in single
    assert "±" not in single
    assert "Intervals hold with 95 %." in single
    assert "p adj." not in single


def test_a_single_method_is_in_the_title_and_no_column():
    cells = {(("setting", one),): make_summary_of((make_case("zar", 0.5),)) for one in ("own", "lr 0.01")}
    (block, *_) = study_blocks(make_record(cells))
    assert block.title == "All cells (zar, 52 decisions)"
    assert block.columns[:2] == ("setting", "top-1 %")


def test_seeds_alone_leave_a_row_a_method():
    record = make_record({(("seed", str(seed)),): make_summary_of((make_case("zar", 0.5),)) for seed in (3, 4)})
    (block, *_) = study_blocks(record)
    assert block.columns[0] == "method"
    assert [row[:2] for row in block.rows] == [("zar", "50.0 ± 0.0")]
    assert "over 2 seeds (3, 4)" in " ".join(block.notes)


def test_splits_have_a_column_each_and_their_average():
    summary = summary_of(0, {("base", "zar"): 0.8, ("novel", "zar"): 0.6})
    record = make_record({(("shots", shots),): summary for shots in ("4", "16")})
    (table,) = record.tables
    rows = tuple(replace(row, average=Score(0.6857, std=None)) for row in table.rows)
    (first, *_) = study_blocks(replace(record, tables=(replace(table, rows=rows),)))
    assert first.columns[:4] == ("shots", "base top-1 %", "novel top-1 %", "mean %")
    assert first.rows[0][:4] == ("4", "80.0 [70.0, 90.0]", "60.0 [50.0, 70.0]", "68.6")
    spread = tuple(replace(row, average=Score(0.7, std=0.1)) for row in table.rows)
    (first, *_) = study_blocks(replace(record, tables=(replace(table, rows=spread),)))
    assert first.rows[0][3] == "70.0 ± 10.0"
    assert any("standard deviation between them, dividing by their number" in note for note in first.notes)


@pytest.mark.parametrize("width", [80, 100, 140])
def test_costs_stand_beside_where_they_fit_and_below_otherwise(models, width):
    output = printed(print_study, models, width=width)
    assert ("cost a video: All cells" in output) == (width < 120)
    table = output[output.index("All cells") : output.index("Mean ±")].splitlines()[1:]
    assert max(len(line.rstrip()) for line in table) <= width
    for number in ("235.0", "0.023", "41.5", "123"):
        assert number in output
    assert "as if the method ran alone" in output


def test_a_share_that_is_chosen_on_its_own_videos_is_said_to_be():
    record = make_record({(("share", share),): cell(top1) for share, top1 in (("0", 0.4), ("0.5", 0.6), ("1", 0.5))})
    for output in (printed(print_study, record), study_markdown(record)):
        assert "zar at share 0.5" in output.replace("\\", "")
        assert "chosen on the very videos it is measured on, which flatters it" in output
    other = make_record({(("model", one),): cell(0.5) for one in ("a", "b")})
    assert "flatters" not in printed(print_study, other)


def test_notes_verdict_pass_and_facts_are_all_there(models):
    (table,) = models.tables
    said = replace(table, about="Mind\n   the gap.", verdict=("First.", "Second."))
    record = replace(models, tables=(said,), short_side=270)
    for output in (printed(print_study, record), study_markdown(record)):
        for line in ("Mind the gap.", "First.", "Second.", "at a short side of 270 pixels", "6 cells in one pass"):
            assert line in output
        assert "52: 51 finished, 1 failed" in output
        assert "1 failed video counted as wrong" in output


def test_markdown_leaves_out_where_it_is_logged_and_is_safe(models):
    (table,) = models.tables
    text = study_markdown(replace(models, tables=(replace(table, title="a|b_<c>"),)))
    assert r"a\|b\_\<c>" in text
    assert "MLflow" not in text


def test_csv_has_a_line_a_row_with_every_number(models):
    lines = list(csv.DictReader(io.StringIO(study_csv(models))))
    rows = models.tables[0].rows
    assert len(lines) == len(rows) == 4
    for line, row in zip(lines, rows, strict=True):
        assert (line["model"], line["method"]) == (row.labels["model"], row.method)
        for name, value in row.numbers().items():
            assert float(line[name]) == pytest.approx(value, rel=1e-6)
        assert [float(one) for one in line["replicates"].split("; ")] == pytest.approx(row.main.replicates)
    assert lines[0]["difference"] == ""


def test_random_weights_are_said_before_any_number_and_of_which_model():
    both = {(("model", one),): cell(0.5, random_weights=one == "b", model=one) for one in ("a", "b")}
    output = printed(print_study, make_record(both))
    assert 0 < output.index(f"b: {RANDOM_WEIGHTS}") < output.index("top-1")
    assert f"b: {RANDOM_WEIGHTS}" in study_markdown(make_record(both)).replace("\\", "")


def test_without_labels_and_in_ascii_it_is_shown_too(models):
    unlabelled = {(("model", one),): make_summary_of((make_case("zar", None),)) for one in ("a", "b")}
    output = printed(print_study, make_record(unlabelled))
    assert output.count("no labels") == 2
    assert "None" not in output
    assert "42.0 +/- 2.0" in printed(print_study, models, encoding="ascii")


def test_a_table_of_average_precision_says_so():
    record = make_record({(("model", one),): cell(0.5) for one in ("a", "b")})
    record = replace(record, tables=(make_table(record.cells, metric="map"),))
    assert "mAP %" in printed(print_study, record)
