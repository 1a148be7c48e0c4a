"""What ends a training's processes, and what makes new ones of them."""

from types import SimpleNamespace

import pytest
import ray.train
import torch
from rich.console import Console

from zar_ray.errors import RunError
from zar_ray.storage import Storage
from zar_ray.training import job as training_job
from zar_ray.training.options import TrainConfig


@pytest.fixture
def fit(monkeypatch, tmp_path, capsys):
    """Fits with a trainer that raises what is given, one after the other, and then ends; returns what was printed."""

    def run(*errors):
        left = list(errors)

        def ended():
            if left:
                raise ray.train.WorkerGroupError("worker 0 failed", {0: left.pop(0)})
            return "trained"

        monkeypatch.setattr(training_job, "TorchTrainer", lambda *_, **__: SimpleNamespace(fit=ended))
        monkeypatch.setattr(training_job.ray, "put", lambda job: job)
        job = SimpleNamespace(config=TrainConfig(), threads=1, validation=None)
        assert training_job._fit(job, 0.0, "it", Storage(str(tmp_path)), Console(width=200)) == "trained"
        return capsys.readouterr().out

    return run


LOST = torch.AcceleratorError("CUDA error: an illegal memory access was encountered")


def test_a_lost_device_is_answered_by_new_processes(fit):
    said = fit(LOST, LOST, LOST)
    assert said.count("going on from the last checkpoint") == 3
    assert "a training process failed (CUDA error: an illegal memory access was encountered)" in said


@pytest.mark.parametrize(("ours", "starts"), [("DeviceLostError", 1), ("ModelError", 0)])
def test_a_device_that_is_lost_in_an_evaluation_on_the_way_is_no_mistake(fit, ours, starts):
    """Its adapter says so by an exception of this package, which Ray shows by its traceback."""
    shown = Exception(f"Traceback (most recent call last):\n  File ...\nzar_ray.errors.{ours}: cuda: answers nothing")
    if starts:
        assert "a training process failed (cuda: answers nothing); going on" in fit(shown)
        return
    with pytest.raises(RunError, match="training stopped: cuda: answers nothing; the same"):
        fit(shown)


def test_not_for_ever_and_not_for_what_a_new_process_would_meet_again(fit):
    with pytest.raises(RunError, match=r"training stopped: CUDA error: an illegal .* the same command continues it"):
        fit(LOST, LOST, LOST, LOST)
    with pytest.raises(RunError, match="training stopped: out of memory with one video at a time"):
        fit(RunError("out of memory with one video at a time"))
