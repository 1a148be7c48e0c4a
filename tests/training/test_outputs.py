"""What is made of a training that Ray Train calls finished."""

from types import SimpleNamespace

import pytest
import torch
from ray.train import Checkpoint

from zar_ray.data.class_texts import ClassPrompts
from zar_ray.errors import RunError
from zar_ray.results.folder import RunFolder
from zar_ray.storage import Storage
from zar_ray.training.options import TrainConfig
from zar_ray.training.outputs import finished
from zar_ray.training.progress import Validated
from zar_ray.training.state import AveragedWeights, TrainingState
from zar_ray.training.worker import TrainingJob


def state(step, **changes):
    values = {"network": {"a": torch.ones(2)}, "optimiser": {}, "history": torch.zeros(step, 4, dtype=torch.float64)}
    return TrainingState(step=step, **values, **changes)


@pytest.mark.parametrize(("step", "said"), [(None, "after step 0 of 5"), (3, "after step 3 of 5")])
def test_a_training_that_ended_early_is_no_finished_one(tmp_path, step, said):
    # Ray Train takes a process that raises between two of its looks for one that has returned.
    checkpoint = None
    if step is not None:
        state(step).save(tmp_path)
        checkpoint = Checkpoint.from_directory(tmp_path)
    config = TrainConfig(dataset="x", steps=5, output=tmp_path / "out.safetensors")
    job = TrainingJob(config, (), ClassPrompts(("a", "b"), "a video of a"), None, 1, None, None)
    result, folder = SimpleNamespace(checkpoint=checkpoint), RunFolder(Storage(str(tmp_path)))
    with pytest.raises(RunError, match=rf"{said}: gone\.mp4: cannot be opened; the same command"):
        finished(result, job, folder, 1.0, "gone.mp4: cannot be opened")
    with pytest.raises(RunError, match="no reason is known"):
        finished(result, job, folder, 1.0, None)
    assert not config.output.exists()


def test_a_state_comes_back_as_it_was(tmp_path):
    averaged = AveragedWeights().with_({"a": torch.zeros(2)}).with_({"a": torch.ones(2)}).with_({"a": torch.ones(2)})
    before = state(3, averaged=averaged, validations=(Validated(2, 1.0, 3, 4, 1),), config={"lr": 0.1})
    before.save(tmp_path)
    after = TrainingState.load(tmp_path)
    assert (after.step, after.validations, after.config) == (3, before.validations, {"lr": 0.1})
    assert after.averaged.count == 3
    assert torch.allclose(after.averaged.tensors["a"], torch.full((2,), 2 / 3))
    assert torch.equal(after.network["a"], torch.ones(2))


def test_the_mean_of_weights_is_a_copy():
    weights = torch.zeros(2)
    averaged = AveragedWeights().with_({"a": weights})
    weights += 1
    assert torch.equal(averaged.tensors["a"], torch.zeros(2))
