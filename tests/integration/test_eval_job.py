"""The evaluation job over real files on a real local Ray: every video is accounted for, whatever it does."""

from __future__ import annotations

import dataclasses

import pyarrow.parquet as pq
import pytest
from ray.data import DataContext

from zar_ray.data.datasets import list_dataset
from zar_ray.data.manifest import write_manifest
from zar_ray.data.probing import probe_listing
from zar_ray.errors import ManifestError, RunError
from zar_ray.evaluation import pipeline, resources
from zar_ray.evaluation.resources import Resources
from zar_ray.reporting.prediction_tables import PREDICTIONS_CSV
from zar_ray.results.folder import RunFolder

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def undisturbed():
    """Filled by the first test that evaluates the folder; the others compare with it."""
    return {}


@pytest.fixture
def reference(undisturbed, evaluate, video_folder, tmp_path_factory):
    if not undisturbed:
        # A passing test's own folder goes with it.
        output = str(tmp_path_factory.mktemp("reference"))
        undisturbed["ran"] = evaluate(video_folder, name="reference", output=output)
    return undisturbed["ran"]


def test_every_video_has_a_row_for_every_method(reference, video_folder):
    rows = reference.rows
    assert len(rows) == 24
    assert {row.method for row in rows} == {"zero_shot", "zar"}
    assert all(row.error is None for row in rows)
    zar = [row for row in rows if row.method == "zar"]
    zero_shot = {row.video_id: row for row in rows if row.method == "zero_shot"}
    for row in zar:
        assert (row.views, len(row.view_entropies), len(row.selected_views)) == (48, 48, 38)
        assert row.top5_before == zero_shot[row.video_id].top5_after
        assert row.entropy_before == pytest.approx(zero_shot[row.video_id].entropy_before, abs=1e-5)
        assert row.top5_scores_before != row.top5_scores_after
        assert row.bytes_shipped == row.frames_decoded * 32 * 42 * 3
        assert row.images_encoded < 48 * 4
    assert reference.summary.videos == 12
    assert reference.summary.unlabelled == 0
    assert "chance" in reference.printed
    cost = reference.summary.model_cost
    assert cost.view_frames == 4
    assert set(cost.tuning_gflops) == {"zar"}
    assert f"{cost.parameters / 1e6:.1f} M parameters" in reference.printed
    assert "GFLOPs a video for its images" in reference.printed
    mean = sum(row.images_encoded for row in zar) / len(zar)
    assert reference.summary.numbers()["gflops_images"] == pytest.approx(mean * cost.image_gflops)
    assert reference.folder.storage.path("predictions.parquet") in reference.printed


def test_results_do_not_depend_on_workers_batches_or_order(evaluate, make_video, tmp_path, same_results, monkeypatch):
    # So few videos would all be done by the worker that starts first, or that is free first.
    monkeypatch.setattr(DataContext.get_current(), "wait_for_min_actors_s", 60)
    root = tmp_path / "videos"
    for number in range(9):
        make_video(root / ("slow-model", "b", "c")[number % 3] / f"{number}.mp4", frames=10 + 5 * number, seed=number)
    manifest = probe_listing(list_dataset(root))
    shuffled = dataclasses.replace(manifest, table=manifest.table.take([7, 2, 0, 5, 1, 3, 8, 4, 6]))
    write_manifest(manifest, tmp_path / "in-order.parquet")
    write_manifest(shuffled, tmp_path / "shuffled.parquet")
    one = evaluate(tmp_path / "in-order.parquet", here=True, name="one", num_workers=1, batch_size=8, encoder_batch=7)
    # What is put together beside the run is what was written, and a storage that fails then costs nothing.
    compacted, compact = [], RunFolder.compact
    monkeypatch.setattr(pipeline, "PARTS_AT_ONCE", 2)

    def compact_or_fail(folder: RunFolder) -> None:
        compacted.append(compact(folder))
        if len(compacted) == 2:
            raise RunError("the storage is full")

    monkeypatch.setattr(RunFolder, "compact", compact_or_fail)
    # The tests' Ray has little memory, so that most of them have one replica.
    monkeypatch.setattr(resources, "_MEMORY_A_CPU", 2**30)
    two = evaluate(tmp_path / "shuffled.parquet", name="two", batch_size=1)
    assert "model replicas: 2 of 1 CPU thread each; decoders: 1" in two.printed
    same_results(one.table, two.table)
    assert len(compacted) == 4
    assert two.printed.count("the storage is full; small files of rows stay for now") == 1
    workers = [len({row.worker for row in ran.rows}) for ran in (one, two)]
    assert workers == [1, 2], "the second worker had nothing to do, so nothing was compared"


def test_a_finished_run_is_not_run_again(reference, evaluate, video_folder):
    output = reference.folder.storage.location.rsplit("/", 1)[0]
    again = evaluate(video_folder, name="reference", output=output, resume=True)
    assert (again.summary.resumed, again.summary.throughput.videos) == (12, 0)
    assert again.table.equals(reference.table)
    with pytest.raises(RunError, match=r"options\.seed: 0 -> 1"):
        evaluate(video_folder, name="reference", output=output, seed=1)


def test_other_weights_under_the_same_name_are_another_run(
    reference, evaluate, video_folder, tiny_checkpoint, tmp_path
):
    from safetensors import safe_open
    from safetensors.torch import save_file

    with safe_open(tiny_checkpoint, "pt") as file:
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        header = file.metadata()
    weights["visual.proj"] += 0.01
    save_file(weights, tmp_path / "tiny.safetensors", metadata=header)
    output = reference.folder.storage.location.rsplit("/", 1)[0]
    with pytest.raises(RunError, match="fingerprint"):
        evaluate(video_folder, name="reference", output=output, checkpoint=tmp_path / "tiny.safetensors")


def test_zero_shot_alone_encodes_the_evaluation_view_only(evaluate, video_folder):
    ran = evaluate(video_folder, here=True, method=["zero_shot"], limit=3)
    assert [row.images_encoded for row in ran.rows] == [4, 4, 4]
    assert all(row.views == 0 for row in ran.rows)


def test_bad_files_and_surprises_cost_one_row_each(evaluate, video_folder, make_video, tmp_path):
    root = tmp_path / "mixed"
    for number in range(3):
        make_video(root / "red circle" / f"{number}.mp4", seed=number)
    (root / "red circle" / "empty.mp4").write_bytes(b"")
    (root / "green square").mkdir()
    (root / "green square" / "text.mp4").write_text("not a video")
    make_video(root / "green square" / "surprises-decoder.mp4")
    make_video(root / "green square" / "vanishes.mp4")
    manifest = probe_listing(list_dataset(root))
    write_manifest(manifest, tmp_path / "mixed.parquet")
    (root / "green square" / "vanishes.mp4").unlink()

    with pytest.raises(RunError, match=r"4 of 7 videos failed, more than the 1\.0%"):
        evaluate(tmp_path / "mixed.parquet", name="mixed")
    ran = evaluate(tmp_path / "mixed.parquet", name="mixed", max_failed=0.6)
    failed = {row.video_id.split("/")[1]: row for row in ran.rows if row.error}
    assert failed.keys() == {"empty.mp4", "text.mp4", "surprises-decoder.mp4", "vanishes.mp4"}
    assert failed["surprises-decoder.mp4"].error == "KeyError: 'nobody foresaw this'"
    assert failed["empty.mp4"].error_stage == "open"
    assert all("\n" not in row.error for row in failed.values())
    assert (ran.summary.videos, ran.summary.failed, ran.summary.finished) == (7, 4, 3)
    zar = next(case for case in ran.summary.cases if case.method == "zar")
    assert zar.failures_wrong.videos == 7
    assert zar.failures_excluded.videos == 3


def test_a_worker_beside_a_gpu_has_the_next_block_while_it_works_on_one(evaluate, make_video, tmp_path, monkeypatch):
    monkeypatch.setattr(Resources, "blocks_at_once", 2)
    for number in range(2):
        make_video(tmp_path / "pairs" / "a" / f"meets-another-{number}.mp4", seed=number)
    ran = evaluate(tmp_path / "pairs", method=["zero_shot"], batch_size=1, class_names="a,b", num_workers=1)
    assert [row.error for row in ran.rows] == [None, None]


@pytest.mark.parametrize("where", ["kills-decoder", "kills-model", "loses-device"])
def test_one_poison_video_costs_exactly_one_failed_video(evaluate, make_video, tmp_path, where):
    root = tmp_path / "poison"
    for number in range(7):
        make_video(root / ("red circle" if number % 2 else "blue bar") / f"{number}.mp4", seed=number)
    make_video(root / "blue bar" / f"{where}.mp4")
    if where == "loses-device":
        # As a device may be lost that is not the video's fault: the next process does its block.
        (root / "blue bar" / "0.mp4").rename(root / "blue bar" / f"{where}-once.mp4")
    ran = evaluate(root, max_failed=0.5, method=["zar"], batch_size=4)
    failed = [row for row in ran.rows if row.error]
    assert [row.video_id for row in failed] == [f"blue bar/{where}.mp4"]
    assert failed[0].error_stage == "worker"
    assert "with this video alone" in failed[0].error
    assert len(ran.rows) == 8
    # What failed is no speed, and what passes before the first video is told apart.
    assert ran.summary.throughput.videos == 7
    stages = [
        ran.printed.index(said) for said in ("starting Ray", "loading ", "starting workers, first block", "8/8 videos")
    ]
    assert stages == sorted(stages)


def test_a_storage_that_fails_in_the_middle_stops_the_run_at_once(evaluate, make_video, tmp_path):
    for number in range(20):
        what = "breaks-storage" if number == 4 else "counted-slow-model" if number > 4 else "counted"
        name = f"{number:02}-{what}"
        make_video(tmp_path / "many" / "a" / f"{name}.mp4", seed=number)
    options = {"class_names": "a,b", "method": ["zero_shot"], "batch_size": 1, "num_workers": 1, "name": "stopped"}
    with pytest.raises(
        RunError, match=r"^\S*/parts/\w+\.parquet: cannot be written \(.*; .*same command continues it$"
    ):
        evaluate(tmp_path / "many", **options)
    run = tmp_path / "runs" / "stopped"
    assert len((run / "adapted.txt").read_text().split()) < 12, "others were tried after it"
    assert "cannot be written" in (run / "run.log").read_text()
    assert len([*(run / "moved").iterdir()]) >= 3, "what was finished is not kept"


def test_a_decoder_that_hangs_is_killed_and_named(evaluate, make_video, tmp_path):
    root = tmp_path / "hangs"
    for number in range(3):
        make_video(root / ("a" if number else "b") / f"{number}.mp4", seed=number)
    make_video(root / "a" / "hangs-decoder.mp4")
    ran = evaluate(root, max_failed=0.5, method=["zar"], decode_timeout=1.5)
    failed = [row for row in ran.rows if row.error]
    assert [row.video_id for row in failed] == ["a/hangs-decoder.mp4"]
    assert failed[0].error == "decoding hung for more than 8 s and was killed"
    assert len((root / "hung.txt").read_text().splitlines()) == 1, "its block met it again"


def test_failed_videos_are_done_again_on_request(evaluate, make_video, tmp_path):
    root = tmp_path / "again"
    for number in range(4):
        make_video(root / ("a" if number % 2 else "b") / f"{number}.mp4", seed=number)
    write_manifest(probe_listing(list_dataset(root)), tmp_path / "again.parquet")
    away = (root / "a" / "1.mp4").rename(tmp_path / "away.mp4")
    first = evaluate(tmp_path / "again.parquet", here=True, name="again", max_failed=1)
    assert first.summary.failed == 1
    away.rename(root / "a" / "1.mp4")
    second = evaluate(tmp_path / "again.parquet", here=True, name="again", max_failed=1)
    assert second.summary.failed == 1
    third = evaluate(tmp_path / "again.parquet", here=True, name="again", retry_failed=True)
    assert (third.summary.failed, third.summary.resumed, third.summary.throughput.videos) == (0, 3, 1)


def test_unlabelled_videos_are_predicted_and_count_in_no_accuracy(evaluate, make_video, tmp_path):
    make_video(tmp_path / "flat" / "a.mp4")
    make_video(tmp_path / "flat" / "b.mp4", seed=1)
    with pytest.raises(ManifestError, match="--class-names"):
        evaluate(tmp_path / "flat")
    ran = evaluate(tmp_path / "flat", here=True, class_names="jumping,running,swimming")
    assert ran.summary.unlabelled == 2
    assert all(row.correct_after is None and row.error is None for row in ran.rows)
    assert ran.summary.cases[0].headline is None


def test_the_run_folder_says_how_to_repeat_it(reference):
    import json

    storage = reference.folder.storage
    content = json.loads(storage.read("run.json"))
    assert content["config"]["views"]["frames"] == 4
    assert content["provenance"]["packages"]["ray"]
    assert content["study"]["whole"]["model_fingerprint"] == reference.summary.model_fingerprint
    table = pq.read_table(storage.path("predictions.parquet"))
    assert table.num_rows == 24
    assert "zar_per_class.csv" in storage.names()
    assert PREDICTIONS_CSV in storage.names()
    assert "zar_confusion.png" in storage.names()


def test_random_weights_are_named_in_every_output(evaluate, video_folder):
    options = {"checkpoint": None, "model": "ViT-S-32-alt", "pretrained": "random", "method": ["zero_shot"]}
    ran = evaluate(video_folder, here=True, limit=1, **options)
    assert ran.summary.random_weights
    assert "random" in ran.printed.lower()
