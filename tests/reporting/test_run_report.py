"""A run's report: every section shows something or says why not, and the file needs nothing besides itself."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from finished_runs import CLASSES, write_finished_run
from pages_read import read_page

from zar_ray.errors import ModelError, RunError
from zar_ray.explain import explanation
from zar_ray.explain.explanation import ClassMaps, VideoMaps
from zar_ray.reporting import html_report
from zar_ray.reporting.html_report import _video_map, write_report, write_tables
from zar_ray.reporting.run_data import StudyData

SECTIONS = [
    "Accuracy",
    "Accuracy against cost",
    "Beside published results",
    "Accuracy by class",
    "Mistakes",
    "Calibration",
    "Entropy",
    "Videos most helped and most hurt",
    "Where the model looks",
    "Map of the videos",
    "Failures",
    "Warnings",
    "Time and throughput",
    "Files",
    "Repeating the run",
    "Versions",
]


def a_view(video_id: str) -> VideoMaps:
    """Maps of a view of two frames."""
    rng = np.random.default_rng(0)
    frames, (before, after, rollout) = np.zeros((2, 32, 32, 3), np.uint8), rng.random((3, 2, 2, 2))
    return VideoMaps(video_id, frames, np.array([0, 5]), rollout, (ClassMaps("diving", "predicted", before, after),))


def report(folder, attention=False, **options):
    place, files = write_report(str(folder), attention=attention, **options)
    assert {name: Path(place).with_name(name).read_text(encoding="utf-8") for name in files} == files
    assert list(files) == ["report.html", "explorer.html"]
    return read_page(files["report.html"])


def titles(read):
    return [title for level, title in read.headings if level == 3]


@pytest.fixture
def undrawn(monkeypatch):
    """Charts are made and not drawn, which takes most of a report's time: for what is said beside them."""
    empty = b'<svg xmlns="http://www.w3.org/2000/svg"/>'
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda figure, file, **_: file.write(empty))


@pytest.fixture(scope="module")
def videos(tmp_path_factory, make_video):
    root = tmp_path_factory.mktemp("files")
    for number in range(24):
        make_video(root / f"v{number:02}.mp4", frames=12, seed=number)
    return root


@pytest.mark.process
def test_a_run_with_failures_has_every_section(tmp_path, videos, monkeypatch):
    folder = write_finished_run(tmp_path / "runs" / "mine", root=videos)
    asked = []

    def explain(run, class_sets, results, videos, video_ids, decoder):
        asked.append((run.place, class_sets, list(video_ids)))
        return [a_view(one) for one in video_ids]

    monkeypatch.setattr(explanation, "explain_videos", explain)
    read = report(folder, samples=3, attention=True)
    assert titles(read) == SECTIONS
    summary = json.loads((folder / "run.json").read_text())["study"]["whole"]
    after = summary["cases"][1]["failures_wrong"]["after"]["top1"]["value"]
    assert f"{100 * after:.1f} %" in read.text
    assert "24: 22 finished, 2 failed" in read.text
    assert "2 of 24 videos failed: 1 at stage decode, 1 at stage open." in read.sections["Failures"]
    assert "the file ends in frame 1" in read.sections["Failures"]
    assert "ECE" in read.sections["Calibration"]
    assert "zar eval --config" in read.sections["Repeating the run"]
    assert "RANDOM WEIGHTS" not in read.text
    # Evenly spread over those that finished.
    assert asked == [(str(folder), (CLASSES,), ["v02.mp4", "v12.mp4", "v23.mp4"])]
    assert "v12.mp4. Tuning moved" in read.sections["Where the model looks"]
    assert any("Frames 0, 5 of v12.mp4" in alt for alt in read.alts)
    assert any("v02" in alt or "v03" in alt or "picture 1 of" in alt for alt in read.alts)
    assert CLASSES[2] in read.text


@pytest.mark.process
def test_videos_that_would_abort_decord_cost_their_own_pictures(tmp_path, shared):
    """Whatever their names say they are."""
    folder = write_finished_run(tmp_path / "mine", root=tmp_path)
    for number in range(24):
        (tmp_path / f"v{number:02}.mp4").symlink_to(shared / "videos" / "hard" / "aborts_decord.avi")
    text = report(folder, samples=1).text
    assert text.count("No pictures: decoding fails near frame 0 of 58") == 2


@pytest.mark.slow
def test_the_file_goes_where_it_is_told_and_the_same_run_makes_the_same_file(tmp_path):
    folder = write_finished_run(tmp_path / "mine")
    place, first = write_report(str(folder), str(tmp_path / "new" / "mine.html"), attention=False)
    assert place == str(tmp_path / "new" / "mine.html")
    assert not (folder / "report.html").exists()
    place, second = write_report(str(folder), attention=False)
    assert place == str(folder / "report.html")
    assert first["mine.html"] == second["report.html"].replace('"explorer.html"', '"mine-explorer.html"')
    assert 'href="mine.html"' in first["mine-explorer.html"]
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["mine-explorer.html", "mine.html"]


@pytest.mark.usefixtures("undrawn")
def test_missing_videos_weights_and_features_are_said(tmp_path, monkeypatch):
    folder = write_finished_run(tmp_path / "mine", features=False)

    def explain(run, class_sets, results, videos, video_ids, decoder):
        raise ModelError("tiny: no such weights")

    monkeypatch.setattr(explanation, "explain_videos", explain)
    read = report(folder, attention=True)
    assert titles(read) == SECTIONS
    assert "No attention maps: tiny: no such weights." in read.sections["Where the model looks"]
    assert "keeps no features" in read.sections["Map of the videos"]
    assert f"No pictures: there is no {folder}/nowhere/v" in read.text


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("warned", [0, 22])
def test_videos_with_a_warning_are_listed_with_it(tmp_path, monkeypatch, warned):
    monkeypatch.setattr(html_report, "_LISTED", 10)
    folder = write_finished_run(tmp_path / "mine", failures=1)
    table = pq.read_table(folder / "predictions.parquet")
    said = [
        f"of {one} a frame repeats" if one > f"v{23 - warned:02}.mp4" else None for one in table["video_id"].to_pylist()
    ]
    place = table.column_names.index("warning")
    pq.write_table(
        table.set_column(place, table.schema.field("warning"), pa.array(said, pa.string())),
        folder / "predictions.parquet",
    )
    record = json.loads((folder / "run.json").read_text())
    record["study"]["whole"]["warned"] = warned
    (folder / "run.json").write_text(json.dumps(record))
    section = report(folder).sections["Warnings"]
    assert section.count("a frame repeats") == min(10, warned)
    assert ("12 more" in section) == (warned == 22)
    assert f"{warned} of 24 videos were used with a warning" in section


@pytest.mark.usefixtures("undrawn")
def test_passwords_of_the_options_are_not_shown(tmp_path):
    folder = write_finished_run(tmp_path / "mine", mlflow_uri="https://me:secret@host:5000")
    read = report(folder)
    assert "secret" not in (folder / "report.html").read_text(encoding="utf-8")
    assert "mlflow_uri: https://me:***@host:5000" in read.text


@pytest.mark.usefixtures("undrawn")
def test_of_one_class_every_decision_is_sure(tmp_path):
    read = report(write_finished_run(tmp_path / "mine", classes=("diving",), methods=("zar",)))
    assert titles(read) == SECTIONS
    assert "every decision is sure" in read.sections["Entropy"]


@pytest.mark.usefixtures("undrawn")
def test_a_split_without_videos_has_no_map(tmp_path):
    data = StudyData.read(str(write_finished_run(tmp_path / "mine")))
    (found,) = _video_map(data.cells[0], replace(data.splits[0], video_ids=frozenset())).content
    assert "0 videos are too few for a map" in found.text


@pytest.mark.usefixtures("undrawn")
def test_few_videos_have_no_map(tmp_path):
    read = report(write_finished_run(tmp_path / "mine", videos=5, failures=1))
    assert "4 videos are too few for a map; 5 are needed." in read.sections["Map of the videos"]


@pytest.mark.usefixtures("undrawn")
def test_random_weights_are_said_before_any_number(tmp_path):
    read = report(write_finished_run(tmp_path / "mine", random_weights=True))
    assert 0 < read.text.index("RANDOM WEIGHTS") < read.text.index("top-1")


@pytest.mark.usefixtures("undrawn")
def test_without_labels_the_sections_about_labels_say_so(tmp_path):
    read = report(write_finished_run(tmp_path / "mine", labelled=False))
    assert titles(read) == SECTIONS
    for title in ("Accuracy by class", "Mistakes", "Calibration", "Videos most helped and most hurt"):
        assert "has a label" in read.sections[title]
    assert "videos failed: 1 at stage decode, 1 at stage open.\n" in read.sections["Failures"]
    assert "mean" in read.sections["Entropy"]


@pytest.mark.usefixtures("undrawn")
def test_several_classes_a_video_have_average_precision(tmp_path):
    read = report(write_finished_run(tmp_path / "mine", multi_label=True, failures=1))
    assert titles(read) == SECTIONS
    for title in ("Accuracy by class", "Mistakes", "Calibration", "Videos most helped and most hurt"):
        assert "several classes" in read.sections[title]
    assert "mAP %" in read.sections["Accuracy"]
    assert "none has a colour" in read.sections["Map of the videos"]
    assert "1 at stage open. They are ranked last." in read.sections["Failures"]


@pytest.mark.usefixtures("undrawn")
def test_a_method_that_adapts_nothing_is_shown_alone(tmp_path):
    read = report(write_finished_run(tmp_path / "mine", methods=("zero_shot",)))
    assert titles(read) == SECTIONS
    assert "adapts nothing" in read.sections["Videos most helped and most hurt"]
    assert "before" not in read.sections["Calibration"]


def test_all_failed(tmp_path):
    read = report(write_finished_run(tmp_path / "mine", videos=3, failures=3, methods=("zar",)))
    assert titles(read) == SECTIONS
    assert "3 of 3 videos failed" in read.sections["Failures"]
    assert "No video finished." in read.sections["Entropy"]


@pytest.mark.usefixtures("undrawn")
def test_many_classes_have_their_largest_mistakes_in_words(tmp_path):
    names = tuple(f"class {number}" for number in range(60))
    read = report(write_finished_run(tmp_path / "mine", videos=120, classes=names))
    assert any(alt.startswith("The most frequent mistakes") for alt in read.alts)
    assert any(alt.startswith("Confusion matrix of the most confused of 60 classes") for alt in read.alts)
    assert "of 60 classes that most gained" in read.sections["Accuracy by class"]


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("methods", [("zero_shot", "zar"), ("zero_shot",)])
def test_classes_stand_by_their_gain_with_its_interval(tmp_path, methods):
    names = tuple(f"class {number}" for number in range(7))
    write_finished_run(tmp_path / "mine", videos=60, classes=names, methods=methods)
    page = write_report(str(tmp_path / "mine"), attention=False)[1]["report.html"]
    table = page[page.index("Table of 7 classes") :]
    rows = [re.findall(r"<td[^>]*>([^<]*)</td>", row) for row in re.findall(r"<tr>.*?</tr>", table, re.DOTALL)][1:8]
    assert {row[0] for row in rows} == set(names)
    numbers = [[float(one) for one in row[-3:]] for row in rows]
    values = [value for value, _, _ in numbers]
    assert values == sorted(values, reverse=True)
    assert len(set(values)) > 2
    assert all(low <= value <= high and low < high for value, low, high in numbers)
    if len(methods) > 1:
        for row, value in zip(rows, values, strict=True):
            assert float(row[4]) - float(row[3]) == pytest.approx(value, abs=0.11)


@pytest.mark.usefixtures("undrawn")
def test_results_stand_before_the_places_of_files(tmp_path):
    folder = write_finished_run(tmp_path / "mine")
    read = report(folder)
    assert "predictions.parquet" in read.sections["Files"]
    assert read.text.index("mean class %") < read.text.index(str(folder))


def test_what_is_no_finished_run_is_refused_and_nothing_written(tmp_path):
    folder = write_finished_run(tmp_path / "mine")
    (folder / "run.json").unlink()
    with pytest.raises(RunError, match=r"holds no run\.json"):
        write_report(str(folder))
    folder = write_finished_run(tmp_path / "other")
    (folder / "predictions.parquet").write_bytes(b"no")
    with pytest.raises(RunError, match="is damaged"):
        write_report(str(folder))
    assert not list(tmp_path.glob("*/report.html"))


def settings(count: int):
    """Cells that differ in the learning rate; the first has the study's own."""
    rates = [0.005 * (1 + number) for number in range(count)]
    return {(("setting", f"lr {rate:g}"),): {"zar": {"lr": rate}} for rate in rates}


@pytest.mark.usefixtures("undrawn")
def test_a_study_of_several_cells_has_its_tables_and_the_sections_of_each(tmp_path):
    folder = write_finished_run(tmp_path / "study", cells=settings(2))
    read = report(folder)
    groups = [title for level, title in read.headings if level == 2]
    assert groups == [
        "Results",
        "lr 0.005: zar",
        "lr 0.01: zar",
        "What the model sees: lr 0.005",
        "The run",
    ]
    assert titles(read).count("Accuracy by class") == titles(read).count("Calibration") == 2
    assert all(words in read.text for words in ("2 cells in one pass", "reference", "2 settings"))
    assert "No row is distinguishable" in read.sections["Accuracy"]
    assert "Below are the first" not in read.text


@pytest.mark.usefixtures("undrawn")
def test_of_many_cells_the_first_are_shown_one_by_one(tmp_path, monkeypatch):
    assert html_report.CELLS_SHOWN == 8
    monkeypatch.setattr(html_report, "CELLS_SHOWN", 2)
    folder = write_finished_run(tmp_path / "study", cells=settings(3), videos=8, methods=("zar",))
    read = report(folder)
    assert titles(read).count("Calibration") == 2
    assert "Below are the first 2 of 3 cells" in read.sections["Accuracy"]
    assert "lr 0.015" in read.sections["Accuracy"]


def test_the_tables_alone_go_into_papers_documents_and_programs(tmp_path):
    folder = write_finished_run(tmp_path / "study", cells=settings(2))
    shown = {
        end: Path(write_tables(str(folder), str(tmp_path / f"tables{end}"))).read_text(encoding="utf-8")
        for end in (".tex", ".md", ".csv")
    }
    assert r"\begin{tabular}{llS[table-format=" in shown[".tex"]
    assert "| setting | method |" in shown[".md"]
    assert shown[".csv"].startswith("table,setting,method,")


def test_a_run_of_an_earlier_version_is_refused_in_one_line(tmp_path):
    folder = write_finished_run(tmp_path / "mine")
    (folder / "run.json").write_text(json.dumps({"summary": {}, "config": {}}))
    with pytest.raises(RunError, match=r"run\.json: was made by an earlier version; run it again$"):
        write_report(str(folder))
