"""Training on a real local Ray: the loss falls, the file loads, a stopped training goes on."""

from __future__ import annotations

import io

import pytest
import yaml
from rich.console import Console

from zar_ray.config import ModelOptions, TrainConfig
from zar_ray.errors import ConfigError, ManifestError
from zar_ray.models.loading import load_model
from zar_ray.training.job import describe, run_training

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
        steps=40,
        lr=3e-3,
        warmup_steps=2,
        cache_frames=4,
        checkpoint_steps=10,
        output=tmp_path / "trained.safetensors",
        storage=str(tmp_path / "storage"),
    )


def test_the_loss_falls_and_the_checkpoint_evaluates(ray_cluster, config, evaluate, video_folder):
    said = io.StringIO()
    result = run_training(config, Console(file=said, width=200))
    first = next(line for line in said.getvalue().splitlines() if line.startswith("step 1/40"))
    assert float(first.split("loss ")[1].split()[0]) > result.loss + 0.1
    assert (result.steps, result.checkpoint) == (40, config.output)

    model = load_model(ModelOptions(checkpoint=config.output))
    assert model.preprocessing.input_size == 32
    assert not model.random_weights
    ran = evaluate(video_folder, checkpoint=config.output, method=["zero_shot"])
    assert ran.summary.failed == 0

    # The same command again finds everything done, and writes the same weights.
    config.output.unlink()
    again = run_training(config, Console(file=io.StringIO()))
    assert again.steps == 40
    assert load_model(ModelOptions(checkpoint=config.output)).fingerprint == model.fingerprint


def test_mistakes_are_named_before_anything_starts(config, tmp_path):
    with pytest.raises(ConfigError, match="--output"):
        describe(config.model_copy(update={"output": None}))
    with pytest.raises(ConfigError, match="cannot be shared by --num-workers 4"):
        describe(config.model_copy(update={"num_workers": 4}))
    with pytest.raises(ManifestError, match="no such file or folder"):
        describe(config.model_copy(update={"dataset": str(tmp_path / "nowhere")}))
    assert "12 videos, 3 classes" in describe(config)
