"""Training on a real local Ray: the loss falls, the files load and evaluate, workers change nothing."""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from rich.console import Console
from safetensors import safe_open
from zar_ray.study.job import run_evaluation

from zar_ray.data.index import index_folder
from zar_ray.data.manifest import Manifest, write_manifest
from zar_ray.errors import ConfigError, ManifestError, RunError
from zar_ray.models.loading import load_model
from zar_ray.models.options import ModelOptions
from zar_ray.study.options import EvalConfig
from zar_ray.training.fitting import cpus_per_worker
from zar_ray.training.inputs import describe
from zar_ray.training.job import run_training
from zar_ray.training.options import AugmentConfig, TrainConfig

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
        micro_batch=3,
        steps=60,
        lr=3e-3,
        warmup_steps=2,
        cache_frames=4,
        checkpoint_steps=20,
        output=tmp_path / "trained.safetensors",
        storage=str(tmp_path / "storage"),
        mlflow=False,
    )


def train(config):
    said = io.StringIO()
    return run_training(config, Console(file=said, width=200)), said.getvalue()


def history(result):
    """The columns of a training's history, one row a step."""
    return np.genfromtxt(Path(result.folder) / "history.csv", delimiter=",", names=True)


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

    # The best and the last are kept to go on from, not all of them.
    assert sum(path.is_dir() for path in (tmp_path / "storage").glob("train-*/checkpoint_*")) <= 3
    steps = history(result)
    assert steps["step"].tolist() == list(range(1, 61))
    assert steps["loss"][35:].mean() == pytest.approx(result.loss, abs=1e-6)
    assert (steps["gradient_norm"] > 0).all()
    assert steps["learning_rate"][:2].tolist() == pytest.approx([1.5e-3, 3e-3])


def test_two_workers_take_the_steps_of_one_that_accumulates(ray_cluster, config, tmp_path):
    # Mixing and smoothing lie within micro-batches: without DDP, or on the wrong shares, the two would part.
    augment = AugmentConfig(mixup=0.8, cutmix=1.0, label_smoothing=0.1, flip=0.5, colour_jitter=0.8, grey=0.2)
    changes = {"steps": 4, "warmup_steps": 0, "lr": 1e-3, "batch_size": 12, "augment": augment}
    config = config.model_copy(update=changes)
    alone, said = train(config)
    assert "12 = 1 worker x 4 accumulated x 3 at once" in said
    one = load_model(ModelOptions(checkpoint=config.output)).clip.state_dict()
    config = config.model_copy(
        update={"num_workers": 2, "storage": str(tmp_path / "two"), "decode_workers": 0, "cache_frames": 4}
    )
    together, said = train(config)
    assert "12 = 2 workers x 2 accumulated x 3 at once" in said
    two = load_model(ModelOptions(checkpoint=config.output)).clip.state_dict()
    histories = [history(result) for result in (alone, together)]
    assert len(histories[0]) == 4
    np.testing.assert_allclose(histories[0]["loss"], histories[1]["loss"], atol=1e-5)
    np.testing.assert_allclose(histories[0]["gradient_norm"], histories[1]["gradient_norm"], rtol=1e-4)
    # The key's bias has no gradient but rounding, which AdamW magnifies; everything else agrees.
    for name in one:
        if not name.endswith("in_proj_bias"):
            assert torch.allclose(one[name], two[name], atol=1e-4), name


def test_decode_workers_read_what_threads_read(ray_cluster, config, tmp_path):
    config = config.model_copy(update={"steps": 3, "cache_frames": 0})
    threads, _ = train(config)
    processes, _ = train(config.model_copy(update={"decode_workers": 1, "storage": str(tmp_path / "processes")}))
    assert processes.loss == threads.loss


@pytest.mark.parametrize("beside", [False, True], ids=["sync", "async"])
def test_validation_is_the_evaluation(ray_cluster, config, video_folder, tmp_path, beside):
    # Two videos an epoch more than whole batches, and a broken one: nothing is dropped or invented.
    manifest = index_folder(video_folder)
    rows = list(manifest.rows())
    rows[5] = replace(rows[5], path=str(tmp_path / "gone.mp4"))
    broken = tmp_path / "broken.parquet"
    write_manifest(Manifest.of(rows, manifest.class_names, manifest.root, "broken"), broken)
    config = config.model_copy(
        update={
            "steps": 10,
            "validation": str(broken),
            "validation_epochs": 2.0,
            "validation_async": beside,
            "average_from": 1.0,
        }
    )
    result, said = train(config)
    assert said.count("validation videos, 1 failed") == 3
    assert result.best is not None
    assert result.averaged is not None
    if not beside:
        found = [(one.step, one.videos, one.failed) for one in result.validations]
        assert found == [(4, 11, 1), (8, 11, 1), (10, 11, 1)]
    with safe_open(result.best, framework="pt") as file:
        notes = json.loads(file.metadata()["zar_ray"])["notes"]
    assert notes["step"] in (4, 8, 10)
    options = EvalConfig(
        dataset=str(broken),
        checkpoint=result.best,
        method=("zero_shot",),
        views={"frames": 2, "eval_frames": 2},
        output=str(tmp_path / "runs"),
        max_failed=1.0,
        mlflow=False,
    )
    scores = run_evaluation(options, Console(file=io.StringIO())).cases[0].failures_excluded
    assert (scores.videos, scores.after.top1.value) == (11, pytest.approx(notes["validation_top1"]))
    # The mean over the ends of epochs 2 to 5 is none of the others.
    last, averaged = (load_model(ModelOptions(checkpoint=path)) for path in (result.checkpoint, result.averaged))
    assert last.fingerprint != averaged.fingerprint


def test_a_name_holds_one_training(ray_cluster, config):
    config = config.model_copy(update={"steps": 2, "name": "mine"})
    train(config)
    with pytest.raises(RunError, match=r"mine: .*options\.lr: 0\.003 -> 0\.001.*--name"):
        train(config.model_copy(update={"lr": 1e-3}))
    again, said = train(config.model_copy(update={"lr": 1e-3, "overwrite": True}))
    assert "step 1/2" in said
    assert again.steps == 2


def test_only_the_context_is_trained_and_evaluates(ray_cluster, config, tiny_checkpoint, video_folder, tmp_path):
    changes = {"architecture": None, "checkpoint": tiny_checkpoint, "trains": "context", "steps": 3, "lr": 0.05}
    result, _ = train(config.model_copy(update={**changes, "validation": str(video_folder)}))
    assert len(result.validations) == 2
    options = EvalConfig(
        dataset=str(video_folder),
        checkpoint=tiny_checkpoint,
        context=str(result.checkpoint),
        method=("zero_shot", "zar"),
        views={"frames": 2, "eval_frames": 2},
        output=str(tmp_path / "runs"),
        mlflow=False,
    )
    summary = run_evaluation(options, Console(file=io.StringIO()))
    assert summary.cases[0].headline.after.top1.value == pytest.approx(result.validations[-1].top1)


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
    assert cpus_per_worker(1, decoders=1) == cpus_per_worker(1, spare=1) == 1
    with pytest.raises(RunError, match="--num-workers 3: the cluster has 2 CPUs"):
        cpus_per_worker(3)


def test_mistakes_are_named_before_anything_starts(config, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="--output"):
        describe(config.model_copy(update={"output": None}))
    with pytest.raises(ConfigError, match="cannot be shared by --num-workers 4 in micro-batches of 3"):
        describe(config.model_copy(update={"num_workers": 4}))
    with pytest.raises(ConfigError, match="--register-as"):
        describe(config.model_copy(update={"register_as": "mine"}))
    with pytest.raises(ConfigError, match="fp16"):
        describe(config.model_copy(update={"precision": "fp16"}))
    with pytest.raises(ManifestError, match="no such file or folder"):
        describe(config.model_copy(update={"dataset": str(tmp_path / "nowhere")}))
    assert "12 videos, 3 classes" in describe(config)
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    with pytest.raises(ConfigError, match="a Ray job's folder is temporary"):
        describe(config.model_copy(update={"output": Path("trained.safetensors")}))
