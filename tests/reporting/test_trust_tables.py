"""Trust stands in every table, in every form, and a run's thresholds are made of its own decisions."""

from __future__ import annotations

import csv
import io
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from finished_runs import CLASSES, write_finished_run
from rich.console import Console

from zar_ray.commands.main import main
from zar_ray.reporting.blocks import written
from zar_ray.reporting.comparison import compare_runs
from zar_ray.reporting.comparison_views import report_comparison
from zar_ray.reporting.html_report import write_tables
from zar_ray.reporting.run_data import StudyData
from zar_ray.reporting.study_tables import print_study, study_blocks, study_csv
from zar_ray.results.folder import PREDICTIONS
from zar_ray.results.trust import CALIBRATION, MEASURES
from zar_ray.study.tables import Group


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_finished_run(tmp_path_factory.mktemp("runs") / "known", videos=44, held_out=("eating", "golf"))


def printed(show, *values, width: int = 110) -> str:
    stream = io.StringIO()
    show(*values, Console(file=stream, width=width))
    return stream.getvalue()


def test_one_cell_shows_calibration_unknown_classes_and_costs(run, tmp_path):
    record = StudyData.read(str(run)).record
    case = next(one for one in record.whole.cases if one.method == "zar")
    assert record.whole.unknown == case.unknown == 8
    output = printed(print_study, record)
    assert "44: 42 finished, 2 failed, 8 of unknown classes (in no accuracy)" in output
    for name in MEASURES:
        measure = case.trust[name]
        scale, digits = (1, 3) if name in ("brier", "nll") else (100, 1)
        for estimate in (measure.before, measure.after):
            ends = ", ".join(f"{scale * end:.{digits}f}" for end in (estimate.low, estimate.high))
            shown = f"{scale * estimate.value:.{digits}f} [{ends}]"
            assert shown in output
            for ending in (".md", ".tex", ".csv"):
                file = write_tables(str(run), str(tmp_path / f"tables{ending}"))
                value, _, interval = shown.partition(" ")
                written = {".md": shown.replace("[", "\\["), ".tex": f"{value} & ${interval}$", ".csv": shown}[ending]
                assert written in (tmp_path / f"tables{ending}").read_text(encoding="utf-8"), file
    overview = output[output.index("Trust and cost a video") :].splitlines()[1:5]
    assert overview[0].split("  ")[0] == "method"
    assert all(word in overview[0] for word in ("ECE %", "AUROC %", "images", "seconds"))
    assert max(map(len, overview)) <= 80
    assert f"{100 * case.trust['ece'].after.value:.1f}" in overview[3]


def test_a_run_without_unknown_classes_has_calibration_alone(tmp_path):
    record = StudyData.read(str(write_finished_run(tmp_path / "plain"))).record
    output = printed(print_study, record)
    assert "Calibration" in output
    assert "Unknown classes" not in output
    assert "AUROC" not in output
    assert "of unknown classes" not in output
    assert set(record.whole.cases[1].trust) == set(CALIBRATION)


def test_videos_of_several_classes_or_none_have_no_calibration(tmp_path):
    record = StudyData.read(str(write_finished_run(tmp_path / "several", multi_label=True))).record
    assert all(case.trust == {} for case in record.whole.cases)
    assert "are not defined where a video may show several classes" in printed(print_study, record)
    record = StudyData.read(str(write_finished_run(tmp_path / "none", labelled=False))).record
    assert "Calibration" not in printed(print_study, record)


def test_a_study_of_several_cells_has_the_measures_of_each_row(run, tmp_path):
    folder = write_finished_run(
        tmp_path / "study", videos=30, held_out=("golf",), cells={(("model", "a"),): {}, (("model", "b"),): {}}
    )
    record = StudyData.read(str(folder)).record
    (table,) = record.tables
    rows = []
    for row in table.rows:
        cells = tuple(record.cells[place] for place in row.cells)
        group = Group(None, row.cells, cells, (), row.method)  # type: ignore[arg-type]
        rows.append(type(row)(**{**vars(row), "trust": group.trust(), "gain": group.gain()}))
        case = next(one for one in cells[0].summary.cases if one.method == row.method)
        assert rows[-1].numbers()["ece_low"] == case.trust["ece"].after.low
        assert rows[-1].trust["ece_before"].value == case.trust["ece"].before.value
        assert (rows[-1].gain is None) == (row.method == "zero_shot")
    record = type(record)(**{**vars(record), "tables": (type(table)(**{**vars(table), "rows": tuple(rows)}),)})
    text = written(study_blocks(record, width=100), "markdown")
    last = rows[-1]
    assert "gain of adaptation" in text
    assert f"| {100 * last.trust['ece'].value:.1f} | {100 * last.trust['auroc_max_probability'].value:.1f} |" in text
    (line,) = [
        one for one in csv.DictReader(io.StringIO(study_csv(record))) if one["model"] == "b" and one["method"] == "zar"
    ]
    assert float(line["auroc_entropy_low"]) == pytest.approx(last.trust["auroc_entropy"].low)
    assert float(line["gain_p"]) == pytest.approx(last.gain.p_value)
    both = Group(None, (0, 1), record.cells, (), "zar")  # type: ignore[arg-type]
    of_both = both.trust()["brier"]
    assert of_both.value == pytest.approx(np.mean(of_both.replicates))
    assert of_both.std > 0
    assert of_both.low is None


def test_runs_are_compared_in_pairs(run, tmp_path):
    other = write_finished_run(tmp_path / "other", videos=44, held_out=("eating", "golf"), draw=5)
    found = compare_runs([str(run), str(other)], ())
    first, own = ({one.method: one for one in each.finished.summary.cases} for each in found.runs)
    line = next(one for one in found.lines if one.run.mark == "B" and one.case.method == "zar")
    assert set(line.paired.trust) == set(MEASURES)
    for name, measure in line.paired.trust.items():
        assert measure.before.value == pytest.approx(first["zar"].trust[name].after.value)
        assert measure.after.value == pytest.approx(own["zar"].trust[name].after.value)
        assert measure.change.effect.value == pytest.approx(measure.after.value - measure.before.value)
    output = printed(report_comparison, found, "terminal", width=140)
    change = line.paired.trust["nll"].change
    assert f"{change.effect.value:+.3f} [{change.effect.low:+.3f}, {change.effect.high:+.3f}]" in output
    stream = io.StringIO()
    report_comparison(found, "csv", Console(file=stream, width=80))
    (row,) = [
        one
        for one in csv.DictReader(io.StringIO(stream.getvalue()))
        if one["run"] == "other" and one["method"] == "zar"
    ]
    assert float(row["nll_difference"]) == pytest.approx(change.effect.value)
    assert float(row["fpr95_energy_p"]) == pytest.approx(line.paired.trust["fpr95_energy"].change.p_value)


@pytest.mark.parametrize("score", ["max_probability", "margin", "energy", "entropy"])
@pytest.mark.parametrize(("keep", "of"), [("95%", "correct"), ("0.8", "known"), ("50%", "all")])
def test_a_threshold_keeps_its_share(run, capsys, score, keep, of):
    assert main(["report", "threshold", str(run), "--keep", keep, "--score", score, "--of", of, "--format", "csv"]) == 0
    (line,) = [one for one in csv.DictReader(io.StringIO(capsys.readouterr().out)) if one["method"] == "zar"]
    rows = [one for one in pq.read_table(run / PREDICTIONS).to_pylist() if one["method"] == "zar" and not one["error"]]
    tops = [one["top5_scores_after"] for one in rows]
    values = {
        "max_probability": [one[0] for one in tops],
        "margin": [one[0] - one[1] for one in tops],
        "energy": [one["energy_after"] for one in rows],
        "entropy": [-one["entropy_after"] for one in rows],
    }[score]
    which = {
        "correct": lambda r: r["correct_after"],
        "known": lambda r: r["label_id"] is not None,
        "all": lambda _: True,
    }
    chosen = [value for value, row in zip(values, rows, strict=True) if which[of](row)]
    share = float(keep.rstrip("%")) / (100 if keep.endswith("%") else 1)
    kept = sorted(value for value in chosen if value >= float(line["threshold"]))
    assert int(line["videos"]) == len(chosen)
    assert len(kept) == int(np.ceil(share * len(chosen) - 1e-9))
    assert float(line["low"]) <= float(line["threshold"]) <= float(line["high"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--keep", "0"], "--keep 0: is to be a share above 0"),
        (["--keep", "101%"], "--keep 1.01: is to be a share above 0"),
        (["--score", "maximum"], "max_probability"),
    ],
)
def test_a_mistake_in_a_threshold_is_a_line(run, capsys, words, said):
    assert main(["report", "threshold", str(run), *words]) != 0
    assert said in capsys.readouterr().err


def test_thresholds_of_videos_of_several_classes_are_of_all(tmp_path, capsys):
    folder = write_finished_run(tmp_path / "several", multi_label=True)
    assert main(["report", "threshold", str(folder)]) == 1
    assert "choose --of all" in capsys.readouterr().err
    assert main(["report", "threshold", str(folder), "--of", "all"]) == 0
    assert "--reject-below" in capsys.readouterr().out


def test_a_record_with_trust_is_read_back(run):
    record = StudyData.read(str(run)).record
    assert type(record).from_json(json.loads(json.dumps(record.to_json()))) == record
    assert len(CLASSES) == record.whole.classes
