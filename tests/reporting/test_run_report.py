"""A run's report: every section shows something or says why not, and the file needs nothing besides itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from finished_folders import CLASSES, write_finished_run
from pages_read import read_page

from zar_ray.errors import ModelError, RunError
from zar_ray.reporting.attention_figures import AttentionFigure
from zar_ray.reporting.html_report import write_report

SECTIONS = [
    "Accuracy",
    "Beside published results",
    "Accuracy by class",
    "Mistakes",
    "Calibration",
    "Entropy",
    "Videos most helped and most hurt",
    "Where the model looks",
    "Map of the videos",
    "Failures",
    "Time and throughput",
    "Repeating the run",
    "Versions",
]
ONE_PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108060000001f15c4890000000d49444154789c6360000002000001e221bc330000000049"
    "454e44ae426082"
)


def report(folder, **options):
    place, page = write_report(str(folder), **options)
    assert Path(place).read_text(encoding="utf-8") == page
    return read_page(page)


def titles(read):
    return [title for level, title in read.headings if level == 3]


@pytest.fixture(scope="module")
def videos(tmp_path_factory, make_video):
    root = tmp_path_factory.mktemp("files")
    for number in range(24):
        make_video(root / f"v{number:02}.mp4", frames=12, seed=number)
    return root


def test_a_run_with_failures_has_every_section(tmp_path, videos):
    folder = write_finished_run(tmp_path / "runs" / "mine", root=videos)
    drawn = []

    def attention(run, video_ids):
        drawn.append((run, list(video_ids)))
        return [AttentionFigure(one, ONE_PIXEL, f"maps over {one}", f"caption of {one}") for one in video_ids]

    read = report(folder, samples=3, attention=attention)
    assert titles(read) == SECTIONS
    summary = json.loads((folder / "run.json").read_text())["summary"]
    after = summary["cases"][1]["failures_wrong"]["after"]["top1"]["value"]
    assert f"{100 * after:.1f} %" in read.text
    assert "24: 22 finished, 2 failed" in read.text
    assert "2 of 24 videos failed: 1 at stage open, 1 at stage decode." in read.sections["Failures"]
    assert "the file ends in frame 1" in read.sections["Failures"]
    assert "ECE" in read.sections["Calibration"]
    assert "zar eval --config" in read.sections["Repeating the run"]
    assert "RANDOM WEIGHTS" not in read.text
    # Evenly spread over those that finished.
    assert drawn == [(str(folder), ["v02.mp4", "v12.mp4", "v23.mp4"])]
    assert "caption of v12.mp4" in read.sections["Where the model looks"]
    assert any("v02" in alt or "v03" in alt or "picture 1 of" in alt for alt in read.alts)
    assert CLASSES[2] in read.text


def test_the_file_goes_where_it_is_told_and_the_same_run_makes_the_same_file(tmp_path):
    folder = write_finished_run(tmp_path / "mine")
    place, first = write_report(str(folder), str(tmp_path / "new" / "mine.html"))
    assert place == str(tmp_path / "new" / "mine.html")
    assert not (folder / "report.html").exists()
    place, second = write_report(str(folder))
    assert place == str(folder / "report.html")
    assert first == second
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["mine.html"]


def test_missing_videos_weights_and_features_are_said(tmp_path):
    folder = write_finished_run(tmp_path / "mine", features=False)

    def attention(run, video_ids):
        raise ModelError("tiny: no such weights")

    read = report(folder, attention=attention)
    assert titles(read) == SECTIONS
    assert "No attention maps: tiny: no such weights." in read.sections["Where the model looks"]
    assert "made by an earlier version" in read.sections["Map of the videos"]
    assert f"No pictures: there is no {folder}/nowhere/v" in read.text


def test_passwords_of_the_options_are_not_shown(tmp_path):
    folder = write_finished_run(tmp_path / "mine", mlflow_uri="https://me:secret@host:5000")
    read = report(folder)
    assert "secret" not in (folder / "report.html").read_text(encoding="utf-8")
    assert "mlflow_uri: https://me:***@host:5000" in read.text


def test_few_videos_have_no_map(tmp_path):
    read = report(write_finished_run(tmp_path / "mine", videos=5, failures=1))
    assert "4 videos are too few for a map; 5 are needed." in read.sections["Map of the videos"]


def test_random_weights_are_said_before_any_number(tmp_path):
    read = report(write_finished_run(tmp_path / "mine", random_weights=True))
    assert 0 < read.text.index("RANDOM WEIGHTS") < read.text.index("top-1")


def test_without_labels_the_sections_about_labels_say_so(tmp_path):
    read = report(write_finished_run(tmp_path / "mine", labelled=False))
    assert titles(read) == SECTIONS
    for title in ("Accuracy by class", "Mistakes", "Calibration", "Videos most helped and most hurt"):
        assert "has a label" in read.sections[title]
    assert "mean" in read.sections["Entropy"]


def test_several_classes_a_video_have_average_precision(tmp_path):
    read = report(write_finished_run(tmp_path / "mine", multi_label=True, failures=1))
    assert titles(read) == SECTIONS
    for title in ("Accuracy by class", "Mistakes", "Calibration", "Videos most helped and most hurt"):
        assert "several classes" in read.sections[title]
    assert "mAP %" in read.sections["Accuracy"]
    assert "none has a colour" in read.sections["Map of the videos"]


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


def test_many_classes_have_their_largest_mistakes_in_words(tmp_path):
    names = tuple(f"class {number}" for number in range(60))
    read = report(write_finished_run(tmp_path / "mine", videos=120, classes=names))
    assert any(alt.startswith("The most frequent mistakes") for alt in read.alts)
    assert not any("Confusion matrix" in alt for alt in read.alts)
    assert "of 60 classes that most gained" in read.sections["Accuracy by class"]


def test_what_is_no_finished_run_is_refused_and_nothing_written(tmp_path):
    folder = write_finished_run(tmp_path / "mine")
    (folder / "run.json").unlink()
    with pytest.raises(RunError, match=r"holds no run\.json"):
        write_report(str(folder))
    folder = write_finished_run(tmp_path / "other")
    (folder / "predictions.parquet").write_bytes(b"no")
    with pytest.raises(RunError, match="is not Parquet"):
        write_report(str(folder))
    assert not list(tmp_path.glob("*/report.html"))
