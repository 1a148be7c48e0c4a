"""Runs held against the first of them, with known changes; not paired where they are not of the same videos."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from finished_runs import write_finished_run
from pages_read import read_page
from rich.console import Console

from zar_ray.errors import ConfigError, RunError
from zar_ray.options.base import meaning
from zar_ray.reporting import comparison as module
from zar_ray.reporting.comparison_views import report_comparison, write_comparison
from zar_ray.reporting.run_data import StudyData
from zar_ray.results.statistics import detectable_difference, holm
from zar_ray.study.options import EvalConfig


@pytest.fixture
def runs(tmp_path):
    return [
        str(write_finished_run(tmp_path / name, draw=draw, failures=1, **options))
        for name, draw, options in (("first", 0, {}), ("second", 1, {}), ("third", 2, {"zar": {"lr": 0.01}}))
    ]


def compare_runs(places, lookup=None):
    return module.compare_runs(places, meaning(EvalConfig()).keys(), lookup)


def right(folder, method="zar"):
    table = StudyData.read(folder).stored.read(["video_id", "method", "correct_after"]).to_pylist()
    return {row["video_id"]: bool(row["correct_after"]) for row in table if row["method"] == method}


def shown(comparison, form="terminal"):
    said = io.StringIO()
    report_comparison(comparison, form, Console(file=said, width=80))
    return said.getvalue()


def test_flips_and_differences_are_those_of_the_tables(runs):
    comparison = compare_runs(runs)
    first = right(runs[0])
    lines = {(line.run.mark, line.case.method): line for line in comparison.lines}
    assert lines["A", "zar"].paired is None
    assert lines["A", "zar"].unpaired is None
    for mark, folder in (("B", runs[1]), ("C", runs[2])):
        other, paired = right(folder), lines[mark, "zar"].paired
        assert paired.videos == 24
        assert set(paired.gained) == {video for video in first if other[video] and not first[video]}
        assert set(paired.lost) == {video for video in first if first[video] and not other[video]}
        assert paired.gained
        assert paired.comparison.difference == pytest.approx((sum(other.values()) - sum(first.values())) / 24)
        by_class = sum(one.videos * one.change for one in paired.classes)
        assert by_class == pytest.approx(len(paired.gained) - len(paired.lost))
        # Decisions without adaptation are the same in all of them.
        assert lines[mark, "zero_shot"].paired.comparison.p_value == 1
    tests = [lines[mark, "zar"].paired for mark in "BC"]
    # Lines in which no video changed test nothing and cost nothing.
    assert [one.adjusted for one in tests] == holm([one.comparison.p_value for one in tests])
    assert comparison.runs[2].settings == ("zar.lr 0.005 -> 0.01",)


def test_the_table_fits_a_terminal_and_names_what_changed(runs):
    text = shown(compare_runs(runs))
    assert f"A: first ({runs[0]})" in text
    assert "Gained videos are right here and wrong in A" in text
    assert "C: zar.lr 0.005 -> 0.01" in text
    assert "videos gained: v" in text
    assert re.search(r"zero_shot +16 +0\.01 +0\.0125", text), "each method has its own cost"
    assert re.search(r"zar +224 +0\.01 +0\.25", text)
    markdown = shown(compare_runs(runs), "markdown")
    assert "| run | method |" in markdown


def test_csv_has_a_line_a_case(runs):
    lines = list(csv.DictReader(io.StringIO(shown(compare_runs(runs), "csv"))))
    assert [(line["run"], line["method"]) for line in lines] == [
        (run, method) for run in ("first", "second", "third") for method in ("zero_shot", "zar")
    ]
    assert lines[0]["difference"] == lines[0]["unpaired"] == ""
    assert float(lines[3]["difference"]) == pytest.approx(float(lines[3]["value"]) - float(lines[1]["value"]), abs=1e-5)
    assert [(line["images"], line["seconds_case"]) for line in lines] == [("16", "0.0125"), ("224", "0.25")] * 3
    least = detectable_difference(24, (int(lines[3]["gained"]) + int(lines[3]["lost"]) + 2) / 26)
    assert float(lines[3]["detectable"]) == pytest.approx(least)
    assert int(lines[3]["gained"]) - int(lines[3]["lost"]) == round(24 * float(lines[3]["difference"]))


def test_other_videos_or_labels_are_not_paired(runs, tmp_path):
    more = str(write_finished_run(tmp_path / "more", videos=30))
    names = ("archery", "bowling", "diving", "cartwheel <b>&")
    renamed = str(write_finished_run(tmp_path / "renamed", classes=names))
    several = str(write_finished_run(tmp_path / "several", multi_label=True))
    unlabelled = str(write_finished_run(tmp_path / "unlabelled", labelled=False))
    comparison = compare_runs([runs[0], more, renamed, several, unlabelled])
    reasons = {line.run.name: line.unpaired for line in comparison.lines if line.case.method == "zar"}
    assert reasons["first"] is None
    assert "0 are in the first run alone, 6 in this one alone" in reasons["more"]
    assert "12 videos have another one, such as v02.mp4" in reasons["renamed"]
    assert "several classes" in reasons["several"]
    assert "no video has a label" in reasons["unlabelled"]
    assert all(line.paired is None for line in comparison.lines)
    text = shown(comparison)
    assert "not paired" in text
    assert "no labels" in text
    read_page(_page(comparison, tmp_path))


def test_the_order_of_classes_does_not_matter_where_labels_are_the_same(tmp_path):
    one = write_finished_run(tmp_path / "one", videos=4, failures=0)
    other = write_finished_run(tmp_path / "other", videos=4, failures=0)
    turned = {0: 3, 1: 2, 2: 1, 3: 0}
    table = pq.read_table(other / "predictions.parquet")
    place = table.schema.get_field_index("label_id")
    labels = pa.array([turned[label] for label in table["label_id"].to_pylist()], pa.int32())
    pq.write_table(table.set_column(place, table.schema.field(place), labels), other / "predictions.parquet")
    identity = (other / "identity.json").read_text()
    names = StudyData.read(str(one)).splits[0].class_names
    content = json.loads(identity)
    content["splits"]["all"]["classes"] = list(reversed(names))
    (other / "identity.json").write_text(json.dumps(content))
    (line,) = (line for line in compare_runs([str(one), str(other)]).lines if line.paired and line.case.method == "zar")
    assert (line.paired.gained, line.paired.lost) == ((), ())


def _page(comparison, tmp_path):
    place = write_comparison(comparison, str(tmp_path / "out" / "all.html"))
    return Path(place).read_text(encoding="utf-8")


def test_the_page_needs_nothing_else_and_names_every_flipped_video(runs, tmp_path):
    comparison = compare_runs(runs)
    read = read_page(_page(comparison, tmp_path))
    for line in comparison.lines:
        for video in (*line.paired.gained, *line.paired.lost) if line.paired else ():
            assert video in read.text
    assert len(read.alts) == 1


def test_the_plot_is_a_picture_and_other_files_are_refused(runs, tmp_path):
    comparison = compare_runs(runs[:2])
    place = write_comparison(comparison, str(tmp_path / "plot.png"))
    assert Path(place).read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(ConfigError, match="a page"):
        write_comparison(comparison, str(tmp_path / "plot.txt"))
    assert not (tmp_path / "plot.txt").exists()


def test_mistakes_in_what_is_compared(runs, tmp_path):
    with pytest.raises(ConfigError, match="two runs or more"):
        compare_runs(runs[:1])
    with pytest.raises(ConfigError, match="named twice"):
        compare_runs([runs[0], runs[0]])
    with pytest.raises(RunError, match=r"holds no run\.json"):
        compare_runs([runs[0], str(tmp_path)])


def test_runs_of_mlflow_are_paired_where_their_folders_are_at_hand(runs, tmp_path):
    logged = {"abc": StudyData.read(runs[1]), "gone": StudyData.read(runs[2])}
    (tmp_path / "third" / "predictions.parquet").unlink()
    comparison = compare_runs([runs[0], "abc", "gone"], logged.__getitem__)
    by_mark = {line.run.mark: line for line in comparison.lines if line.case.method == "zar"}
    assert by_mark["B"].paired.videos == 24
    assert by_mark["C"].paired is None
    assert "predictions are not at hand" in by_mark["C"].unpaired
    assert by_mark["C"].after is not None


@pytest.fixture
def study(tmp_path):
    """A study of three cells, and a run that is as its second."""
    cells = {(("setting", f"lr {rate}"),): {"zar": {"lr": rate}} for rate in (0.005, 0.01, 0.02)}
    write_finished_run(tmp_path / "alone", draw=1, zar={"lr": 0.01})
    return str(write_finished_run(tmp_path / "study", cells=cells)), str(tmp_path / "alone")


def test_the_cells_of_one_study_are_held_against_its_first(study):
    comparison = compare_runs([study[0]])
    assert [run.name for run in comparison.runs] == [f"study[lr {rate}]" for rate in (0.005, 0.01, 0.02)]
    assert [run.settings for run in comparison.runs] == [
        (),
        ("zar.lr 0.005 -> 0.01",),
        ("zar.lr 0.005 -> 0.02",),
    ]
    paired = [line.paired for line in comparison.lines if line.case.method == "zar"]
    assert [one and one.videos for one in paired] == [None, 24, 24]
    table = StudyData.read(study[0]).record.tables[0]
    wanted = [row.comparison for row in table.rows if row.method == "zar"]
    assert [one and one.comparison for one in paired] == wanted
    for form in ("terminal", "markdown", "csv", "latex"):
        assert "lr 0.02" in shown(comparison, form)


def test_any_two_cells_of_any_studies_are_compared(study):
    within = compare_runs([f"{study[0]}[lr 0.01]", f"{study[0]}[lr 0.005]"])
    assert [run.name for run in within.runs] == ["study[lr 0.01]", "study[lr 0.005]"]
    across = compare_runs([f"{study[0]}[lr 0.01]", study[1]])
    (line,) = (line for line in across.lines if line.paired and line.case.method == "zar")
    assert (line.paired.videos, line.paired.gained, line.paired.lost) == (24, (), ())
    assert across.runs[1].settings == ()
    assert len(compare_runs([study[1], study[0]]).runs) == 4


def test_mistakes_in_cells(study):
    with pytest.raises(RunError, match=r'has no cell "lr 0\.03"; did you mean "lr 0\.02"'):
        compare_runs([study[0], f"{study[0]}[lr 0.03]"])
    with pytest.raises(ConfigError, match="named twice"):
        compare_runs([study[0], f"{study[0]}[lr 0.01]"])
    with pytest.raises(ConfigError, match="one of several cells"):
        compare_runs([f"{study[0]}[lr 0.01]"])


def test_cells_of_mlflow_are_named_as_those_of_folders(study):
    known = {"abc": StudyData.read(study[0])}
    comparison = compare_runs(["abc[lr 0.01]", "abc[lr 0.02]"], known.__getitem__)
    assert [run.name for run in comparison.runs] == ["study[lr 0.01]", "study[lr 0.02]"]
    assert all(line.paired for line in comparison.lines[2:])
