"""A training that goes on from any of its checkpoints takes the steps that it would have taken, to the bit."""

from types import SimpleNamespace

import pytest
import ray.train
import ray.train.torch
import torch

from zar_ray.config import AugmentConfig, TrainConfig
from zar_ray.data.class_texts import prompts_of
from zar_ray.data.index import index_folder
from zar_ray.training.state import TrainingState
from zar_ray.training.worker import TrainingJob, train_worker

ARCHITECTURE = {
    "embed_dim": 16,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


@pytest.fixture
def run(video_folder, monkeypatch, tmp_path):
    """Trains in this process, from a state or from the beginning; returns the states that were reported, by step."""
    manifest = index_folder(video_folder)
    config = TrainConfig(
        dataset=str(video_folder),
        architecture="tiny",
        frames=2,
        batch_size=8,
        micro_batch=4,
        steps=7,
        warmup_steps=2,
        lr=1e-3,
        checkpoint_steps=2,
        average_from=0.0,
        augment=AugmentConfig(mixup=0.8, cutmix=1.0, flip=0.5, label_smoothing=0.1),
    )
    (prompts,) = prompts_of([manifest.class_names], config)
    progress = SimpleNamespace(put=lambda message: None)
    job = TrainingJob(config, tuple(manifest.rows()), prompts, ARCHITECTURE, 1, None, progress)

    def train(start=None):
        states = {}

        def report(metrics, checkpoint=None, validation=False):
            assert checkpoint is not None
            with checkpoint.as_directory() as folder:
                states[metrics["step"]] = TrainingState.load(folder)

        checkpoint = None
        if start is not None:
            folder = tmp_path / f"from{start.step}"
            folder.mkdir()
            start.save(folder)
            checkpoint = ray.train.Checkpoint.from_directory(folder)
        alone = SimpleNamespace(get_world_rank=lambda: 0, get_world_size=lambda: 1)
        monkeypatch.setattr(ray.train, "get_context", lambda: alone)
        monkeypatch.setattr(ray.train, "get_checkpoint", lambda: checkpoint)
        monkeypatch.setattr(ray.train, "report", report)
        monkeypatch.setattr(ray.train.torch, "prepare_model", lambda model: model)
        train_worker({"job": job})
        return states

    return train


def test_it_goes_on_to_the_same_bits(run):
    whole = run()
    # Twelve videos in batches of eight: epochs end after steps 2, 3, 5 and 6.
    assert sorted(whole) == [2, 3, 4, 5, 6, 7]
    last = whole[7]
    assert last.history.shape == (7, 4)
    assert last.averaged.count == 4
    torch.manual_seed(99)  # whatever was drawn in between
    for step in (2, 5):
        again = run(whole[step])
        assert min(again) > step
        ended = again[7]
        assert torch.equal(ended.history, last.history)
        for ours, theirs in ((ended.network, last.network), (ended.averaged.tensors, last.averaged.tensors)):
            assert ours.keys() == theirs.keys()
            for name in ours:
                assert torch.equal(ours[name], theirs[name]), name
        moments = [one.optimiser["state"] for one in (ended, last)]
        for number in moments[1]:
            for name, value in moments[1][number].items():
                assert torch.equal(moments[0][number][name], value), (number, name)
