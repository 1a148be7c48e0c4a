"""Finished runs in Python: the tables hold what the record, the result table and the commands' CSV say."""

from __future__ import annotations

import csv
import io
import pickle
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from finished_runs import CLASSES, write_finished_run
from rich.console import Console

import zar_ray
from zar_ray.api import studies
from zar_ray.commands.report import report_compare_command
from zar_ray.errors import ConfigError, RunError
from zar_ray.results.folder import PREDICTIONS
from zar_ray.study.options import AblateConfig, EvalConfig

CELLS = {
    (("model", "one"), ("seed", "3")): {"seed": 3},
    (("model", "two"), ("seed", "3")): {"seed": 3, "model": "RN50"},
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> tuple[zar_ray.Run, zar_ray.Run]:
    root = tmp_path_factory.mktemp("runs")
    first = write_finished_run(root / "first", videos=18)
    return zar_ray.open_run(first), zar_ray.open_run(str(write_finished_run(root / "second", videos=18, draw=5)))


@pytest.fixture(scope="module")
def several(tmp_path_factory) -> zar_ray.Run:
    return zar_ray.open_run(write_finished_run(tmp_path_factory.mktemp("runs") / "several", cells=CELLS, videos=14))


def test_predictions_have_names_in_place_of_numbers(runs):
    run, _ = runs
    table = run.predictions("label_id", "top5_after").to_pandas()
    assert len(table) == pq.read_metadata(Path(run.path) / PREDICTIONS).num_rows
    done = table[table.error.isna()]
    assert list(done.label) == [CLASSES[one] for one in done.label_id]
    assert list(done.predicted_after) == [CLASSES[one[0]] for one in done.top5_after]
    assert ((done.predicted_after == done.label) == done.correct_after.astype(bool)).all()
    assert table[table.error.notna()].predicted_after.isna().all()
    assert done.confidence_before.between(0, 1).all()
    with pytest.raises(ConfigError, match=r"no column video_featur; did you mean \"video_feature\"\?"):
        run.predictions("video_featur")


def test_labels_of_videos_that_show_several_are_joined(tmp_path):
    run = zar_ray.open_run(write_finished_run(tmp_path / "run", multi_label=True, videos=6, failures=0))
    table = run.predictions("top5_before").to_pylist()
    assert [row["labels"] for row in table[:2]] == [f"{CLASSES[0]}; {CLASSES[1]}"] * 2
    assert all(row["predicted_before"] == CLASSES[row["top5_before"][0]] for row in table)


def test_cases_and_metrics_are_the_records(several):
    cases, metrics = several.cases().to_pandas(), several.metrics().to_pandas()
    expected = [case for cell in several.record.cells for case in cell.summary.cases]
    assert list(cases.method) == [case.method for case in expected]
    assert list(cases.top1) == [case.headline.after.top1.value for case in expected]
    assert list(cases.cell.unique()) == list(several.labels)
    assert list(cases.model) == ["one", "one", "two", "two"]
    found = metrics[(metrics.cell == several.labels[1]) & (metrics.method == "zar")].set_index(["metric", "when"])
    change = expected[3].change
    assert found.loc["top1", "change"][["value", "low", "p_value"]].tolist() == [
        *(change.effect.value, change.effect.low),
        change.p_value,
    ]
    assert found.loc["top5", "before"].high == expected[3].headline.before.top5.high
    assert "change" not in set(metrics[metrics.method == "zero_shot"].when)


def test_one_cell_of_several(several):
    one = several.cell(several.labels[1])
    assert one.labels == several.labels[1:]
    assert one.config["model"] == "RN50"
    assert set(one.predictions()["cell"].to_pylist()) == {several.labels[1]}
    assert one.predictions().num_rows == several.predictions().num_rows / 2
    with pytest.raises(RunError, match=r'has no cell "two, seed 4"; did you mean "two, seed 3"'):
        several.cell("two, seed 4")
    assert len(several.compare().to_arrow()) == 4


def test_a_comparison_is_that_of_the_command(runs, capsys, tmp_path):
    first, second = runs
    compared = first.compare(second)
    assert not report_compare_command([first.path, second.path, "--format", "csv"])
    printed = capsys.readouterr().out
    assert compared.text("csv") == printed
    (said,) = (row for row in csv.DictReader(io.StringIO(printed)) if row["run"] == "second" and row["method"] == "zar")
    (row,) = (row for row in compared.to_arrow().to_pylist() if row["run"] == "second" and row["method"] == "zar")
    for name in ("difference", "difference_low", "p_value", "p_value_holm", "gained"):
        assert float(said[name]) == pytest.approx(row[name], rel=1e-8)
    videos = compared.videos().to_pandas()
    gained = videos[(videos.run == "second") & (videos.method == "zar") & (videos.change == "gained")]
    assert len(gained) == row["gained"] > 0
    right = {one.name: dict(_right(one)) for one in runs}
    assert all(right["second"][video] and not right["first"][video] for video in gained.video_id)
    assert compared.to_pandas().shape == (4, len(said))
    assert compared._repr_svg_().startswith("<?xml")
    for ending, start in ((".svg", b"<?xml"), (".pdf", b"%PDF"), (".png", b"\x89PNG"), (".html", b"<!DOCTYPE html>")):
        assert Path(compared.write(tmp_path / f"plot{ending}")).read_bytes().startswith(start)
    with pytest.raises(ConfigError, match="give two runs or more"):
        zar_ray.compare(first)


def _right(run):
    table = run.predictions().filter(pc.field("method") == "zar")
    return zip(table["video_id"].to_pylist(), table["correct_after"].fill_null(False).to_pylist(), strict=True)


def test_what_is_no_run_is_said_in_one_line(tmp_path):
    with pytest.raises(RunError, match=r"holds no run\.json"):
        zar_ray.open_run(tmp_path)


@pytest.fixture
def asked(monkeypatch, tmp_path) -> list[EvalConfig]:
    """The options of studies that are asked for; each leaves a finished run without evaluating anything."""
    found = []

    def finish(options: EvalConfig, console: Console):
        found.append(options)
        console.print("it goes")
        return zar_ray.open_run(write_finished_run(tmp_path / f"run{len(found)}")).record

    monkeypatch.setattr(studies, "run_study", finish)
    monkeypatch.setattr(studies, "require_cluster", lambda address: None)
    return found


def test_evaluate_takes_the_options_of_the_command_and_gives_the_run(asked, tmp_path, capsys):
    (tmp_path / "own.yaml").write_text("seed: 7\nmethod: [tpt]\nviews: {frames: 8, crops: 5}\npretrained: laion2b\n")
    told = {"views": {"frames": 9}, "max_failed": "5%", "name": "mine", "mlflow": False}
    run = zar_ray.evaluate(tmp_path, config=tmp_path / "own.yaml", model="RN50:openai", **told)
    assert (run.name, capsys.readouterr().out) == ("run1", "it goes\n")
    (options,) = asked
    assert type(options) is EvalConfig
    assert (options.dataset, options.seed, options.method) == (str(tmp_path), 7, ("tpt",))
    assert (options.views.frames, options.views.crops, options.max_failed) == (9, 5, 0.05)
    assert (options.model, options.pretrained) == ("RN50", "openai")


def test_a_report_is_written_where_it_is_asked_for(asked, monkeypatch, tmp_path):
    written = []
    monkeypatch.setattr(studies, "publish_report", lambda run, console, **told: written.append((run, told)))
    store = "sqlite:///own.db"
    run = zar_ray.evaluate(tmp_path, report=True, mlflow_uri=store, quiet=True)
    zar_ray.evaluate(tmp_path, quiet=True)
    assert written == [(run.path, {"mlflow_uri": store})]


def test_a_benchmark_brings_its_options_and_models_are_named_as_everywhere(asked, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(studies, "ensure_demo", lambda options, console: None)
    zar_ray.evaluate("demo", seeds=range(2), quiet=True)
    zar_ray.evaluate("demo", model=tmp_path / "w.pt", method="zero_shot", quiet=True)
    zar_ray.evaluate("hmdb51", model=["RN50", tmp_path / "w.pt"], quiet=True)
    demo, own, several = asked
    assert (demo.checkpoint.name, demo.seeds) == ("tiny-clip.safetensors", (0, 1))
    assert (own.checkpoint, own.method) == (tmp_path / "w.pt", ("zero_shot",))
    assert several.models == ("RN50", str(tmp_path / "w.pt"))
    assert capsys.readouterr().out == ""


def test_study_is_the_package_too_and_varies_settings(asked):
    run = zar_ray.study("hmdb51", sweep="confidence", quiet=True)
    assert type(asked[0]) is AblateConfig
    assert (asked[0].sweep, asked[0].method, run.name) == (("confidence",), ("zar",), "run1")
    assert pickle.loads(pickle.dumps(zar_ray.study)) is zar_ray.study
    with pytest.raises(ConfigError, match="say what to vary"):
        zar_ray.study("hmdb51", sweep=[])
    with pytest.raises(ConfigError, match=r'evaluate: unknown option sweeep; did you mean "sweep"\?'):
        zar_ray.evaluate("hmdb51", sweeep="lr")
    with pytest.raises(ConfigError, match=r"evaluate: views\.crops: Input should be 1, 3, 5 or 9"):
        zar_ray.evaluate("hmdb51", views={"crops": 2})
