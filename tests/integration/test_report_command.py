"""`zar report run` and `zar report compare` on runs that Ray made of real videos, with the model's own weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pages_read import read_page

from zar_ray.commands.main import main

pytestmark = pytest.mark.slow


def test_a_real_run_has_every_section_filled_and_reaches_mlflow(evaluate, video_folder, capsys):
    from mlflow import MlflowClient

    ran = evaluate(video_folder, here=True, name="mine", mlflow=True)
    folder = ran.folder.storage.path()
    assert main(["report", "run", folder, "--samples", "2"]) == 0
    said = capsys.readouterr().out
    page = Path(folder, "report.html").read_text(encoding="utf-8")
    read = read_page(page)
    top1 = next(case for case in ran.summary.cases if case.method == "zar").headline.after.top1.value
    assert f"{100 * top1:.1f} %" in read.text
    alts = "\n".join(alt for alt in read.alts if alt)
    for shown in ("Top-1 by class", "Confusion matrix", "Reliability", "entropy", "by t-SNE", "with a result within"):
        assert shown in alts
    assert "picture 1 of 4" in alts
    assert "No attention maps" not in read.sections["Where the model looks"]
    assert sum("relevance" in alt for alt in read.alts if alt) == 2

    store = ran.summary.mlflow
    assert f"attached to run {store.run_id}" in said
    client = MlflowClient(store.uri)
    assert {"report.html", "explorer.html"} <= {one.path for one in client.list_artifacts(store.run_id)}
    assert Path(client.download_artifacts(store.run_id, "report.html")).read_text(encoding="utf-8") == page

    other = evaluate(video_folder, here=True, name="other", mlflow=True, zar={"lr": 0.05})
    ids = [ran.summary.mlflow.run_id, other.summary.mlflow.run_id]
    output = str(Path(folder).parent / "both.html")
    assert main(["report", "compare", *ids, "--mlflow-uri", store.uri, "--output", output]) == 0
    said = capsys.readouterr().out
    assert "zar.lr 0.005 -> 0.05" in said
    assert "not paired" not in said
    read_page(Path(output).read_text(encoding="utf-8"))


def test_a_study_of_several_cells_is_shown_and_its_cells_compared(evaluate, video_folder, tmp_path, capsys):
    ran = evaluate(video_folder, here=True, name="study", limit=6, method=["zar"], seeds=[0, 1], sweep=["lr"])
    assert "cells in one pass" in ran.printed
    folder, page = ran.folder.storage.path(), tmp_path / "page.html"
    assert main(["report", "run", folder, "--no-attention", "--output", str(page)]) == 0
    read = read_page(page.read_text(encoding="utf-8"))
    assert "Below are the first 8 of" in read.sections["Accuracy"]
    assert [title for _, title in read.headings].count("Calibration") == 8
    assert "Attention maps were not asked for." in read.sections["Where the model looks"]
    tables = tmp_path / "tables.tex"
    assert main(["report", "run", folder, "--output", str(tables)]) == 0
    assert r"\pm" in tables.read_text(encoding="utf-8")
    capsys.readouterr()
    first, second = (f"{folder}[{label}]" for label in ("lr 0.01, seed 0", "lr 0.01, seed 1"))
    assert main(["report", "compare", first, second]) == 0
    said = capsys.readouterr().out
    assert "B: seed 0 -> 1" in said
    assert "not paired" not in said
    assert main(["report", "compare", folder, "--format", "csv"]) == 0
    cells = json.loads(Path(folder, "run.json").read_text())["study"]["cells"]
    assert len(capsys.readouterr().out.splitlines()) == 1 + len(cells)


def test_the_features_of_each_video_are_kept_once(evaluate, video_folder):
    table = evaluate(video_folder, here=True, name="mine", limit=4).table
    kept = table.filter(table["video_feature"].is_valid())
    assert sorted(kept["video_id"].to_pylist()) == sorted(table["video_id"].unique().to_pylist())
    for feature in kept["video_feature"].to_pylist():
        # Of unit length, to what float16 holds.
        assert sum(value * value for value in feature) == pytest.approx(1.0, abs=5e-3)


def test_a_mistake_is_one_line_and_writes_nothing(tmp_path, capsys):
    assert main(["report", "run", str(tmp_path)]) != 0
    assert main(["report", "compare", str(tmp_path)]) != 0
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 2
    assert "holds no run.json" in said[0]
    assert "holds no run.json" in said[1]
    assert list(tmp_path.iterdir()) == []


def test_an_evaluation_ends_by_naming_its_report_where_it_is_asked_for_one(
    ray_cluster, video_folder, tiny_checkpoint, tmp_path, capsys
):
    words = ["eval", "--dataset", str(video_folder), "--checkpoint", str(tiny_checkpoint), "--limit", "4"]
    words += ["--method", "zero_shot", "--views.eval-frames", "4", "--output", str(tmp_path), "--name", "mine"]
    assert main([*words, "--no-mlflow", "--report"]) == 0
    page = tmp_path / "mine" / "report.html"
    assert capsys.readouterr().out.splitlines()[-1] == f"report   {page}"
    assert "Top-1 by class" in page.read_text(encoding="utf-8")
