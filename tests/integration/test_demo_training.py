"""A short version of the demo's training: far above chance on classes that it saw, and on classes that it did not."""

from __future__ import annotations

import pytest

from zar_ray.data.synthetic import TRAINING_MANIFEST, UNSEEN_MANIFEST, SyntheticSpec, write_synthetic
from zar_ray.options.layers import conf_dir, read_yaml
from zar_ray.results.statistics import share_estimate
from zar_ray.training.options import TrainConfig

pytestmark = pytest.mark.slow

SPEC = SyntheticSpec(train_classes=60, unseen_classes=16, train_videos=4, val_videos=3, test_videos=8, frames=(12, 16))


def test_what_it_learns_holds_on_fresh_videos_and_on_unseen_classes(train, in_this_process, evaluate, tmp_path):
    write_synthetic(tmp_path / "videos", SPEC)
    training = str(tmp_path / "videos" / TRAINING_MANIFEST)
    recipe = read_yaml(conf_dir() / "train" / "demo.yaml")
    changes = {
        "steps": 200,
        "warmup_steps": 50,
        "cache_frames": 8,
        "validation": training,
        "dataset": training,
        "output": tmp_path / "tiny.safetensors",
        "storage": str(tmp_path / "storage"),
        "mlflow": False,
    }
    with in_this_process():
        trained, _ = train(TrainConfig.model_validate({**recipe, **changes}))
    (seen,) = trained.validations
    assert (seen.videos, seen.failed) == (60 * 3, 0)
    assert share_estimate(seen.correct, seen.videos).low >= 5 / 60

    options = {"checkpoint": trained.checkpoint, "method": ("zero_shot",), "views": {}}
    ran = evaluate(tmp_path / "videos" / UNSEEN_MANIFEST, here=True, split="test", **options)
    unseen = ran.summary.cases[0].headline
    assert unseen.videos == 16 * 8
    assert unseen.after.top1.low >= 3 / 16
