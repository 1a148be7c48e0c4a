"""All methods through the evaluation job on a real local Ray: one table, shared work, streams in order."""

from __future__ import annotations

import pyarrow.compute as pc
import pytest

from zar_ray.adaptation.methods import METHODS as METHODS_BY_NAME
from zar_ray.data.datasets import list_dataset
from zar_ray.data.manifest import write_manifest
from zar_ray.data.probing import probe_listing
from zar_ray.errors import ModelError, RunError
from zar_ray.evaluation import recovery
from zar_ray.evaluation.stages import adapt as adapt_stage
from zar_ray.evaluation.streams import STATE
from zar_ray.results.folder import write_part

pytestmark = pytest.mark.slow

SMALL = {"frames": 2, "eval_frames": 2, "views_per_rate": 1, "crops": 1}
METHODS = ("zero_shot", "zar", "tpt", "memo", "tent")
OPTIONS = {"views": SMALL, "tpt": {"views": 5}}


def of_method(table, method):
    return table.filter(pc.field("method") == method)


def test_every_cell_of_five_methods_is_that_of_its_own_run(evaluate, video_folder, same_results):
    together = evaluate(video_folder, here=True, name="together", method=METHODS, batch_size=3, **OPTIONS)
    assert together.summary.failed == 0
    assert together.summary.order_dependent == ()
    for method in METHODS:
        alone = evaluate(video_folder, here=True, name=f"alone-{method}", method=(method,), **OPTIONS)
        same_results(of_method(together.table, method), alone.table, same_work=False)
        if method == "zero_shot":
            (shared,) = {row.images_encoded for row in alone.rows}
    for video in {row.video_id for row in together.rows}:
        rows = {row.method: row for row in together.rows if row.video_id == video}
        own = {method: row.images - rows["zar"].images for method, row in rows.items() if method in ("memo", "tent")}
        crops = rows["tpt"].images - shared
        assert crops == 4 * 2
        assert {row.images_encoded for row in rows.values()} == {rows["zar"].images + crops + sum(own.values())}
        assert (rows["zar"].views, rows["tpt"].views, rows["memo"].views) == (4, 5, 4)


def test_a_stream_is_the_same_twice_and_says_that_it_depends_on_the_order(evaluate, video_folder):
    options = {"method": ("zero_shot", "tent", "tda"), "views": SMALL, "tent": {"stream": True, "lr": 0.01}}
    first = evaluate(video_folder, name="first", **options)
    second = evaluate(video_folder, here=True, name="second", **options)
    columns = ["video_id", "case_id", "top5_after", "top5_scores_after"]
    assert first.table.select(columns).equals(second.table.select(columns))
    assert len({row.worker for row in first.rows}) == 1
    assert first.summary.order_dependent == ("tent", "tda")
    assert "tent, tda: decisions depend on the order of the videos" in first.printed
    again = evaluate(video_folder, here=True, name="first", resume=True, **options)
    assert (again.summary.resumed, again.summary.throughput.videos) == (12, 0)
    first.folder.storage.delete(STATE)
    with pytest.raises(RunError, match="a stream method cannot go on without it"):
        evaluate(video_folder, here=True, name="first", resume=True, **options)


def test_all_streams_of_all_seeds_go_on_from_where_they_were_broken_off(evaluate, video_folder, monkeypatch):
    streams = tuple(name for name, method in METHODS_BY_NAME.items() if method.open_stream is not None)
    can_be = {name: {"stream": True} for name in ("zar", "memo", "tent")}
    options = {"method": streams, "views": SMALL, "seeds": (2, 5), "limit": 7, **can_be}
    # Four passes through the worker a seed, as a run of thousands of videos has.
    monkeypatch.setattr(recovery, "_STREAMED_AT_ONCE", 2)
    expected = evaluate(video_folder, here=True, name="whole", **options)
    assert expected.summary.order == ("shuffled (seed 2)", "shuffled (seed 5)")
    assert [cell.summary.order for cell in expected.record.cells] == [("shuffled (seed 2)",), ("shuffled (seed 5)",)]
    written = []

    def break_off(storage, rows):
        written.append(rows)
        if len(written) in (5, 6, 12):
            raise InterruptedError
        return write_part(storage, rows)

    monkeypatch.setattr(adapt_stage, "write_part", break_off)
    for _ in range(3):
        with pytest.raises(InterruptedError):
            evaluate(video_folder, here=True, name="broken", **options)
    ran = evaluate(video_folder, here=True, name="broken", **options)
    columns = ["video_id", "case_id", "top5_after", "top5_scores_after"]
    assert ran.table.select(columns).equals(expected.table.select(columns))
    assert len(ran.table) == 7 * 2 * len(streams)
    with pytest.raises(RunError, match="holds a run with other settings"):
        evaluate(video_folder, here=True, name="broken", order="by_class", **options)


@pytest.mark.parametrize("killer", ["kills-decoder", "kills-model"])
def test_a_stream_goes_on_after_a_video_that_kills_its_process(evaluate, make_video, tmp_path, killer):
    root = tmp_path / "videos"
    for number in range(6):
        name = f"{number}-{killer}.mp4" if number == 3 else f"{number}.mp4"
        make_video(root / ("left", "right")[number % 2] / name, seed=number)
    whole = probe_listing(list_dataset(root))
    ordered = whole.table.sort_by([("video_id", "ascending")])
    kept = ordered.filter(pc.invert(pc.match_substring(ordered["video_id"], killer)))
    for name, table in (("all", ordered), ("kept", kept)):
        write_manifest(type(whole)(**{**vars(whole), "table": table}), tmp_path / f"{name}.parquet")
    options = {"method": ("tda",), "views": SMALL, "max_failed": 0.5}
    ran = evaluate(tmp_path / "all.parquet", name="all", **options)
    expected = evaluate(tmp_path / "kept.parquet", here=True, name="kept", **options)
    failed = [row for row in ran.rows if row.error is not None]
    assert [killer in row.video_id for row in failed] == [True]
    assert failed[0].error_stage == "worker"
    ours = {row.video_id: row.top5_scores_after for row in ran.rows if row.error is None}
    assert ours == {row.video_id: row.top5_scores_after for row in expected.rows}


def test_a_model_that_a_method_cannot_serve_is_refused_before_any_video_is_decoded(evaluate, make_video, tmp_path):
    root = tmp_path / "videos"
    for number, name in enumerate(("left", "right")):
        make_video(root / name / "kills-decoder.mp4", seed=number)
    with pytest.raises(
        ModelError, match=r"memo cannot serve it: no parameter of its image tower begins with layers\.9"
    ):
        evaluate(root, name="refused", method=("zar", "memo"), views=SMALL, memo={"parameters": ["layers.9"]})
    assert not (tmp_path / "runs" / "refused").exists()
