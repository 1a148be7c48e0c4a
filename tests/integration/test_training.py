"""Training on a real local Ray: the loss falls, the file loads, a stopped training goes on, workers change nothing."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from rich.console import Console

from zar_ray.config import EvalConfig, ModelOptions, TrainConfig
from zar_ray.data.index import index_folder
from zar_ray.data.manifest import Manifest, write_manifest
from zar_ray.errors import ConfigError, ManifestError, RunError
from zar_ray.evaluation.job import run_evaluation
from zar_ray.models.loading import load_model
from zar_ray.training.job import cpus_per_worker, describe, run_training

pytestmark = pytest.mark.slow

ARCHITECTURE = {
    "embed_dim": 16,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


@pytest.fixture
def config(video_folder, tmp_path):
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(ARCHITECTURE))
    return TrainConfig(
        dataset=str(video_folder),
        architecture=str(tmp_path / "tiny.yaml"),
        frames=2,
        batch_size=6,
        steps=60,
        lr=3e-3,
        warmup_steps=2,
        cache_frames=4,
        checkpoint_steps=20,
        output=tmp_path / "trained.safetensors",
        storage=str(tmp_path / "storage"),
    )


def train(config):
    said = io.StringIO()
    return run_training(config, Console(file=said, width=200)), said.getvalue()


def test_the_loss_falls_and_the_checkpoint_evaluates(ray_cluster, config, video_folder, tmp_path):
    result, said = train(config)
    first = float(re.search(r"step 1/60  loss (\S+)", said)[1])
    assert result.loss < first - 0.1
    assert (result.steps, result.checkpoint) == (60, config.output)

    model = load_model(ModelOptions(checkpoint=config.output))
    assert model.preprocessing.input_size == 32
    assert not model.random_weights
    options = EvalConfig(
        dataset=str(video_folder),
        checkpoint=config.output,
        method=("zero_shot",),
        output=str(tmp_path / "runs"),
        mlflow=False,
    )
    summary = run_evaluation(options, Console(file=io.StringIO()))
    assert (summary.finished, summary.failed) == (12, 0)

    # The same command again finds everything done, and writes the same weights.
    config.output.unlink()
    again, said = train(config)
    assert (again.steps, again.loss) == (60, result.loss)
    assert "step 1/60" not in said
    assert load_model(ModelOptions(checkpoint=config.output)).fingerprint == model.fingerprint

    # At most two checkpoints are kept to go on from.
    assert sum(path.is_dir() for path in (tmp_path / "storage").glob("train-*/checkpoint_*")) <= 2


def test_two_workers_take_the_steps_of_one(ray_cluster, config, tmp_path):
    # Plain averages of what each worker saw: without DDP, or with it but on the wrong shares, these would part.
    config = config.model_copy(update={"steps": 4, "warmup_steps": 0, "lr": 1e-3})
    alone, _ = train(config)
    one = load_model(ModelOptions(checkpoint=config.output)).clip.state_dict()
    config = config.model_copy(update={"num_workers": 2, "storage": str(tmp_path / "two")})
    together, _ = train(config)
    two = load_model(ModelOptions(checkpoint=config.output)).clip.state_dict()
    assert together.loss == pytest.approx(alone.loss, abs=1e-5)
    # The key's bias has no gradient but rounding, which AdamW magnifies; everything else agrees.
    for name in one:
        if not name.endswith("in_proj_bias"):
            assert torch.allclose(one[name], two[name], atol=1e-4), name


def test_a_video_that_cannot_be_decoded_is_named(ray_cluster, config, video_folder, tmp_path):
    manifest = index_folder(video_folder)
    rows = list(manifest.rows())
    rows[5] = replace(rows[5], path=str(tmp_path / "gone.mp4"))
    write_manifest(Manifest.of(rows, manifest.class_names, manifest.root, "broken"), tmp_path / "broken.parquet")
    with pytest.raises(RunError, match=r"gone\.mp4: .*leave the video out") as caught:
        train(config.model_copy(update={"dataset": str(tmp_path / "broken.parquet"), "steps": 3}))
    assert "\n" not in str(caught.value)
    assert "Traceback" not in str(caught.value)
    assert not config.output.exists()


def test_each_process_gets_cpus_of_one_node(ray_cluster):
    assert [cpus_per_worker(workers) for workers in (1, 2)] == [2, 1]
    with pytest.raises(RunError, match="--num-workers 3: the cluster has 2 CPUs"):
        cpus_per_worker(3)


def test_mistakes_are_named_before_anything_starts(config, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="--output"):
        describe(config.model_copy(update={"output": None}))
    with pytest.raises(ConfigError, match="cannot be shared by --num-workers 4"):
        describe(config.model_copy(update={"num_workers": 4}))
    with pytest.raises(ConfigError, match="fp16"):
        describe(config.model_copy(update={"precision": "fp16"}))
    with pytest.raises(ManifestError, match="no such file or folder"):
        describe(config.model_copy(update={"dataset": str(tmp_path / "nowhere")}))
    assert "12 videos, 3 classes" in describe(config)
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    with pytest.raises(ConfigError, match="a Ray job's folder is temporary"):
        describe(config.model_copy(update={"output": Path("trained.safetensors")}))
