"""Twelve methods on two models, on the synthetic benchmark, its shifted videos and noisy ones, in one job.

Each cell is that of its own run.
"""

from __future__ import annotations

import pyarrow.compute as pc
import pytest

from zar_ray.adaptation.methods import METHODS
from zar_ray.data.synthetic import UNSEEN_MANIFEST, SyntheticSpec, write_synthetic

pytestmark = pytest.mark.slow

EPISODIC = ("zero_shot", "zar", "tpt", "memo", "zero", "mta", "vte", "tps", "ctpt", "otpt")
STREAMS = ("tda", "dmn")
NOISE = "gaussian_noise:4"
SPEC = SyntheticSpec(train_classes=6, unseen_classes=3, train_videos=1, val_videos=1, test_videos=2, frames=(8, 14))
VIDEOS = 3 * 2 * 2  # of the test, and the same ones shifted
OPTIONS = {
    "views": {"frames": 2, "eval_frames": 2, "views_per_rate": 1, "crops": 1},
    "tpt": {"views": 4},
    "corruption": ("clean", NOISE),
    "unknown_classes": "34%",
    "batch_size": 4,
}


def cell_of(table, model, method, corruption):
    chosen = (pc.field("model") == model) & (pc.field("method") == method)
    shifted = pc.field("corruption") == corruption
    return table.filter(chosen & (shifted | pc.field("corruption").is_null() if corruption == "clean" else shifted))


def test_one_job_runs_the_suite(evaluate, tmp_path, tiny_checkpoint, larger_checkpoint, same_results):
    write_synthetic(tmp_path / "benchmark", SPEC)
    manifest = tmp_path / "benchmark" / UNSEEN_MANIFEST
    methods = EPISODIC + STREAMS
    assert len(methods) == 12
    assert [name for name in methods if METHODS[name].open_stream and name not in ("zar", "memo")] == [*STREAMS]
    models = (str(tiny_checkpoint), str(larger_checkpoint))
    together = evaluate(manifest, here=True, name="suite", checkpoint=None, models=models, method=methods, **OPTIONS)
    assert (together.summary.failed, len(together.record.cells)) == (0, 2 * 2)
    assert together.summary.order_dependent == STREAMS
    whole = together.table
    assert len(whole) == VIDEOS * 12 * 2 * 2
    assert {video.split("/")[0] for video in whole["video_id"].to_pylist()} == {"test", "shifted"}
    for model in models:
        for method in methods:
            own = {"name": f"{method}-alone", "overwrite": True, "method": (method,), "checkpoint": model}
            alone = evaluate(manifest, here=True, **own, **OPTIONS).table
            (name,) = set(alone["model"].to_pylist())
            for corruption in ("clean", NOISE):
                cell = cell_of(whole, name, method, corruption)
                assert len(cell) == VIDEOS
                same_results(cell, cell_of(alone, name, method, corruption), same_work=False)
        spoilt, plain = (
            cell_of(whole, name, "zero_shot", one)["top5_scores_after"].to_pylist() for one in (NOISE, "clean")
        )
        assert spoilt != plain
    # What is printed stands by each method: accuracy with its interval, change with p, trust and cost.
    said = together.printed
    for word in ("p adj.", "ECE %", "AUROC %", "images", "seconds", "peak MB", "mCE"):
        assert word in said, word
    assert together.record.tables
    for table in together.record.tables:
        for row in table.rows:
            assert row.main.low <= row.main.value <= row.main.high
            numbers = row.numbers()
            assert {"ece", "auroc_max_probability", "images", "seconds", "peak_memory"} <= numbers.keys()
