"""Sweeps over real files on a real local Ray: one pass, and each setting's numbers as if it had run alone."""

from __future__ import annotations

import io
import json
from collections import Counter

import miniatures
import pyarrow.compute as pc
import pytest
from rich.console import Console

from zar_ray.data.index import run_index
from zar_ray.data.options import IndexConfig
from zar_ray.errors import ConfigError, RunError
from zar_ray.reporting.published.tables import load_table
from zar_ray.reporting.published.view import compare
from zar_ray.results.folder import CELLS
from zar_ray.results.rows import to_rows
from zar_ray.results.study_record import StudyRecord, find_runs
from zar_ray.study.options import EvalConfig

pytestmark = pytest.mark.slow

TABLES = ("zar-table3", "zar-table4", "zar-table5")
# 8/7 of the tiny model's 32 pixels, rounded: what 5 and 9 crops need
SHORT_SIDE = 37


@pytest.fixture
def ablate(evaluate):
    """Sweeps over a dataset with the tiny CLIP; further options by name."""

    def run(dataset, *sweeps, **options):
        return evaluate(dataset, sweep=sweeps, **{"name": "sweep", "method": ["zar"], **options})

    return run


@pytest.fixture
def counted_folder(make_video, tmp_path):
    """Videos that the workers keep a count of."""
    root = tmp_path / "videos"
    for number in range(4):
        make_video(root / ("a", "b")[number % 2] / f"counted{number}.mp4", frames=20 + 9 * number, seed=number)
    return root


def test_one_pass_serves_all_settings_as_separate_runs_would(ablate, evaluate, counted_folder, tmp_path, same_results):
    swept = ablate(counted_folder, *TABLES, features=str(tmp_path / "features"))
    assert len(swept.record.cells) == 16
    assert [len(table.rows) for table in swept.record.tables] == [10, 4, 4]
    assert len(swept.rows) == 4 * 16

    storage = swept.folder.storage
    decoded = Counter((tmp_path / "decoded.txt").read_text().split())
    adapted = Counter(storage.read("adapted.txt").decode().split())
    encoded = Counter(storage.read("encoded.txt").decode().split())
    assert (len(decoded), set(decoded.values())) == (4, {1})
    assert (len(adapted), set(adapted.values())) == (4, {1})
    assert set(encoded.values()) == {1}
    per_video = {row.video_id: row.images_encoded for row in swept.rows}
    assert len(encoded) == sum(per_video.values())
    assert f"short side of {SHORT_SIDE} pixels" in swept.printed

    # any setting, run by itself
    for name, views, zar in (
        ("confidence", {}, {"confidence": 0.1}),
        ("crops", {"crops": 9}, {}),
    ):
        views = {"frames": 4, "eval_frames": 4, "short_side": SHORT_SIDE, **views}
        alone = evaluate(counted_folder, here=True, name=name, views=views, zar=zar, method=["zar"])
        ids = alone.table["case_id"].unique()
        shared = swept.folder.results().filter(pc.field("case_id").isin(ids))
        same_results(alone.table, shared, same_work=False)
        assert [row.images for row in to_rows(shared)] == [row.images_encoded for row in alone.rows]
        (ours,) = alone.summary.cases
        cases = (case for one in swept.record.cells for case in one.summary.cases)
        (theirs,) = (case for case in cases if case.case_id == ours.case_id)
        assert ours.headline == theirs.headline

    # what is stored serves another sweep: nothing is decoded, nothing encoded
    more = ablate(
        counted_folder,
        "lr",
        "confidence",
        here=True,
        name="more",
        features=str(tmp_path / "features"),
        views={"frames": 4, "eval_frames": 4, "short_side": SHORT_SIDE},
    )
    assert {row.images_encoded for row in more.rows} == {0}
    assert not more.folder.storage.exists("encoded.txt")
    assert Counter((tmp_path / "decoded.txt").read_text().split()) == Counter(dict.fromkeys(decoded, 1 + 2))


def test_tables_of_the_paper_are_filled_from_one_sweep(ablate, make_video, tmp_path, monkeypatch):
    # By a model of their shapes, which the tiny one is taken for here.
    monkeypatch.setattr("zar_ray.evaluation.planning.model_name", lambda architecture: "ViT-B-16")

    def put(path, number):
        make_video(path.with_suffix(".mp4"), frames=12 + 3 * number, seed=number)
        path.with_suffix(".mp4").rename(path)

    miniatures.hmdb51(tmp_path / "hmdb51", put)
    request = IndexConfig(
        source="hmdb51", root=str(tmp_path / "hmdb51"), data_root=tmp_path, workers=1, available_only=True
    )
    run_index(request, Console(file=io.StringIO()))
    swept = ablate("hmdb51", *TABLES, here=True, data_root=tmp_path, mlflow=True)
    assert "±" in swept.printed
    runs = find_runs(str(tmp_path / "runs")).runs
    assert len(runs) == 16
    for name, table in zip(TABLES, swept.record.tables, strict=True):
        assert {cell.measured for cell in compare(load_table(name), runs)} == {None}
        published = load_table(name).model_copy(update={"input_size": 32})
        cells = [cell for cell in compare(published, runs) if cell.column.name == "HMDB51"]
        assert [cell.measured.value for cell in cells] == [pytest.approx(100 * row.average.value) for row in table.rows]
        assert [cell.measured.run.summary.name for cell in cells] == [
            swept.record.cells[row.cells[0]].summary.name for row in table.rows
        ]
        assert all(cell.measured.run.place.startswith(f"{swept.folder.storage.path()}[") for cell in cells)

    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'runs' / 'mlflow.db'}")
    (experiment,) = [one for one in client.search_experiments() if one.name == "zar-ray"]
    logged = client.search_runs([experiment.experiment_id], max_results=100)
    children = [run for run in logged if "mlflow.parentRunId" in run.data.tags]
    assert (len(logged), len(children)) == (17, 16)
    names = [set(run.data.metrics) for run in children]
    assert names.count(max(names, key=len)) == 15  # the run's own setting differs from nothing
    assert all({"1/top1", "top1_mean", "accuracy", "images"} <= of_one for of_one in names)
    assert {float(run.data.params["zar.confidence"]) for run in children} == {n / 10 for n in range(1, 11)}


def test_a_sweep_is_continued_and_another_one_refused(ablate, video_folder, tmp_path):
    file = tmp_path / "own.yaml"
    file.write_text("title: Words and steps\ngrid:\n  context: [a video of a, a photo of a]\n  zar.steps: [1, 2]\n")
    given = {"here": True, "limit": 4, "method": ["zero_shot", "zar"], "context": "a video of a"}
    first = ablate(video_folder, str(file), **given)
    # of two contexts, and two numbers of steps: zero_shot knows no steps
    assert Counter(row.method for row in first.rows) == {"zar": 16, "zero_shot": 8}
    again = ablate(video_folder, str(file), **given, resume=True)
    assert again.folder.results().equals(first.folder.results())
    assert again.record.tables == first.record.tables
    record = json.loads(first.folder.storage.read("run.json"))
    assert StudyRecord.from_json(record["study"]).cells == again.record.cells
    assert [one["varied"] for one in record["study"]["cells"]] == [
        {},
        {"zar.steps": 2},
        {"context": "a photo of a"},
        {"context": "a photo of a", "zar.steps": 2},
    ]
    assert CELLS in first.folder.storage.names()
    assert len(first.folder.storage.read(CELLS).splitlines()) == 1 + 2 * 4
    # the record names the options of a run: it can be repeated from that
    EvalConfig.model_validate(record["study"]["cells"][3]["config"])
    file.write_text("title: Words\ngrid: {context: [a video of a, a photo of a]}\n")
    with pytest.raises(RunError, match="holds a run with other settings"):
        ablate(video_folder, str(file), **given)


def test_mistakes_cost_one_line(ablate, video_folder):
    for sweeps, options, message in (
        (("confidance",), {}, 'did you mean "confidence"'),
        (("lr", "lr"), {}, "names a sweep twice"),
        (("context_init",), {"template": "a clip of {}."}, "--template and --context"),
    ):
        with pytest.raises(ConfigError, match=message):
            ablate(video_folder, *sweeps, **options)
