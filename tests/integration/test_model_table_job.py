"""Two models and five methods in one job on a real local Ray: every cell is that of its own run."""

from __future__ import annotations

import io
import json

import pytest
import torch
from rich.console import Console
from zar_ray.study.model_table import RECORD, run_models

from zar_ray.models.architecture import build_clip
from zar_ray.models.checkpoints import save_checkpoint
from zar_ray.results.folder import RunFolder
from zar_ray.storage import Storage
from zar_ray.study.options import EvalConfig
from zar_ray.video.transforms import Preprocessing

pytestmark = pytest.mark.slow

METHODS = ("zero_shot", "zar", "tpt", "memo", "tent")
OPTIONS = {
    "method": METHODS,
    "views": {"frames": 2, "eval_frames": 2, "views_per_rate": 1, "crops": 1},
    "tpt": {"views": 5},
}
LARGER = {
    "embed_dim": 24,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 48, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}


@pytest.fixture
def larger_checkpoint(tmp_path):
    torch.manual_seed(3)
    path = tmp_path / "weights" / "larger.safetensors"
    path.parent.mkdir()
    save_checkpoint(build_clip(LARGER), LARGER, Preprocessing(input_size=48), path)
    return path


def test_the_table_is_made_in_one_job(
    ray_cluster, evaluate, make_video, tiny_checkpoint, larger_checkpoint, tmp_path, same_results
):
    from mlflow import MlflowClient

    videos = tmp_path / "videos"
    for number in range(6):
        # Each decoding of a file of this name is noted, in whatever process it is.
        make_video(videos / ("left", "right")[number % 2] / f"counted-{number}.mp4", frames=12 + number, seed=number)
    options = EvalConfig.model_validate(
        {
            "dataset": str(videos),
            "models": [str(tiny_checkpoint), str(larger_checkpoint)],
            "output": str(tmp_path / "table"),
            "mlflow_uri": f"sqlite:///{tmp_path}/mlflow.db",
            "batch_size": 2,
            **OPTIONS,
        }
    )
    said = io.StringIO()
    table = run_models(options, Console(file=said, width=140))
    decoded = (tmp_path / "decoded.txt").read_text().split()
    assert sorted(decoded) == sorted(map(str, videos.glob("*/*.mp4"))), "each video is decoded once for both models"

    assert [(cell.model, cell.method) for cell in table.cells] == [(m, n) for m in options.models for n in METHODS]
    for checkpoint, summary in zip((tiny_checkpoint, larger_checkpoint), table.runs, strict=True):
        alone = evaluate(videos, name=f"alone-{checkpoint.stem}", checkpoint=checkpoint, **OPTIONS)
        run = RunFolder(Storage(summary.run_file.rpartition("/")[0])).results()
        same_results(run, alone.table)
        for ours, theirs in zip(summary.cases, alone.summary.cases, strict=True):
            assert (ours.case_id, ours.failures_wrong) == (theirs.case_id, theirs.failures_wrong)
    for cell in table.cells:
        assert cell.videos == 6
        assert cell.low <= cell.accuracy <= cell.high
        assert cell.seconds > 0
        # Of methods that take gradients through the encoder no passes forward tell the cost.
        assert (cell.gflops is None) == (cell.method in ("memo", "tent"))
        assert cell.peak_memory is None or cell.peak_memory > 10_000_000
        assert cell.shown() in said.getvalue()
    images = {cell.method: cell.images for cell in table.cells[: len(METHODS)]}
    assert images["tpt"] == 2 + 4 * 2
    assert images["zero_shot"] == 2 < images["zar"] < images["memo"] == images["tent"]

    record = json.loads((tmp_path / "table" / table.location.rpartition("/")[2] / RECORD).read_text())
    assert len(record["cells"]) == 10
    client = MlflowClient(options.mlflow_uri)
    (experiment,) = (one for one in client.search_experiments() if one.name == "zar-ray")
    runs = client.search_runs([experiment.experiment_id])
    (parent,) = (run for run in runs if run.data.tags.get("kind") == "models")
    below = {run.info.run_id for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id}
    assert below == {summary.mlflow.run_id for summary in table.runs}

    again = run_models(options, Console(file=io.StringIO()))
    assert [run.resumed for run in again.runs] == [6, 6]
    assert (tmp_path / "decoded.txt").read_text().split()[: len(decoded)] == decoded
    assert [cell.accuracy for cell in again.cells] == [cell.accuracy for cell in table.cells]
