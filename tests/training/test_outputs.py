"""What is made of a training that Ray Train calls finished."""

from pickle import UnpicklingError
from types import SimpleNamespace

import pytest
import torch
from ray.train import Checkpoint

from zar_ray.data.class_texts import ClassPrompts
from zar_ray.errors import RunError
from zar_ray.results.folder import RunFolder
from zar_ray.storage import Storage
from zar_ray.training.messages import Validated
from zar_ray.training.options import TrainConfig
from zar_ray.training.outputs import finished
from zar_ray.training.progress import TrainingState, running_mean
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
    job = TrainingJob(config, (), ClassPrompts(("a", "b"), "a video of a"), None, None, None, None)
    result, folder = SimpleNamespace(checkpoint=checkpoint), RunFolder(Storage(str(tmp_path)))
    with pytest.raises(RunError, match=rf"{said}: gone\.mp4: cannot be opened; the same command"):
        finished(result, job, folder, "gone.mp4: cannot be opened")
    with pytest.raises(RunError, match="no reason is known"):
        finished(result, job, folder, None)
    assert not config.output.exists()


def test_a_state_comes_back_as_it_was(tmp_path):
    before = state(
        3,
        averaged={"a": torch.ones(2)},
        averaged_epochs=2,
        validations=(Validated(2, 1.0, 3, 4, 1),),
    )
    before.save(tmp_path)
    after = TrainingState.of(Checkpoint.from_directory(tmp_path))
    assert (after.step, after.validations) == (3, before.validations)
    assert (after.averaged_epochs, after.averaged.keys()) == (2, {"a"})
    for tensor in (after.averaged["a"], after.network["a"]):
        assert torch.equal(tensor, torch.ones(2))


def test_a_state_that_holds_anything_else_is_not_unpickled(tmp_path):
    state(1, averaged={"a": Storage("somewhere")}).save(tmp_path)
    with pytest.raises(UnpicklingError, match="Storage"):
        TrainingState.of(Checkpoint.from_directory(tmp_path))


def test_the_mean_of_weights_is_the_mean_and_a_copy():
    weights = torch.zeros(2)
    mean = running_mean({}, {"a": weights}, 1)
    weights += 1
    assert torch.equal(mean["a"], torch.zeros(2))
    for count in (2, 3):
        mean = running_mean(mean, {"a": weights}, count)
    assert torch.allclose(mean["a"], torch.full((2,), 2 / 3))
