"""What ends a training's processes, and what makes new ones of them."""

import signal
from types import SimpleNamespace

import pytest
import ray.train
import torch
from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError, WorkerHealthCheckFailedError
from ray.train.v2.api.preemption import PreemptionInfo
from rich.console import Console

from zar_ray.errors import RunError
from zar_ray.storage import Storage
from zar_ray.training import job as training_job
from zar_ray.training.options import TrainConfig
from zar_ray.training.workers import WorkerNeeds

NEEDS = WorkerNeeds(threads=1, gpus=0.0, decoders=0)


@pytest.fixture
def fit(monkeypatch, tmp_path, capsys):
    """Fits with a trainer that raises or returns what is given, one after the other, and then ends.

    There is room for so many processes at each start, the last number for good. Returns what was printed, and how many
    processes started and were still lacking at each.
    """

    def run(*outcomes, room=(1,), **options):
        left, rooms, starts = list(outcomes), list(room), []

        def trainer(_, train_loop_config, scaling_config, **__):
            starts.append((scaling_config.num_workers, train_loop_config["lacking"]))
            return SimpleNamespace(fit=ended)

        def ended():
            outcome = left.pop(0) if left else SimpleNamespace(metrics={"step": 9, "grows": False})
            if isinstance(outcome, ray.train.TrainingFailedError):
                raise outcome
            if isinstance(outcome, BaseException) and not isinstance(outcome, Exception):
                # Ray Train sets a handler of its own for Ctrl-C, which ends the process.
                signal.signal(signal.SIGINT, lambda *_: None)
                raise outcome
            if isinstance(outcome, Exception):
                raise ray.train.WorkerGroupError("worker 0 failed", {0: outcome})
            return outcome

        def with_room(fewest, most, *_):
            now = rooms.pop(0) if len(rooms) > 1 else rooms[0]
            assert fewest <= now <= most
            return now

        monkeypatch.setattr(training_job, "TorchTrainer", trainer)
        monkeypatch.setattr(training_job, "workers_with_room", with_room)
        monkeypatch.setattr(training_job, "alive_nodes", lambda: {str(one): f"10.0.0.{one}" for one in range(rooms[0])})
        monkeypatch.setattr(training_job.ray, "put", lambda job: job)
        job = SimpleNamespace(config=TrainConfig(batch_size=8, micro_batch=2, **options), validation=None)
        result = training_job._fit(job, NEEDS, "it", Storage(str(tmp_path)), Console(width=200))
        assert result.metrics["step"] == 9
        return capsys.readouterr().out, starts

    return run


LOST = torch.AcceleratorError("CUDA error: an illegal memory access was encountered")


def test_a_lost_device_is_answered_by_new_processes(fit):
    said, _ = fit(LOST, LOST, LOST)
    assert said.count("going on from the last checkpoint") == 3
    assert "a training process failed (CUDA error: an illegal memory access was encountered)" in said


@pytest.mark.parametrize(("ours", "starts"), [("DeviceLostError", 1), ("ModelError", 0)])
def test_a_device_that_is_lost_in_an_evaluation_on_the_way_is_no_mistake(fit, ours, starts):
    """Its adapter says so by an exception of this package, which Ray shows by its traceback."""
    shown = Exception(f"Traceback (most recent call last):\n  File ...\nzar_ray.errors.{ours}: cuda: answers nothing")
    if starts:
        assert "a training process failed (cuda: answers nothing)\ngoing on from" in fit(shown)[0]
        return
    with pytest.raises(RunError, match="training stopped: cuda: answers nothing; the same"):
        fit(shown)


def test_not_for_ever_and_not_for_what_a_new_process_would_meet_again(fit):
    with pytest.raises(RunError, match=r"training stopped: CUDA error: an illegal .* the same command continues it"):
        fit(LOST, LOST, LOST, LOST)
    with pytest.raises(RunError, match="training stopped: out of memory with one video at a time"):
        fit(RunError("out of memory with one video at a time"))


def test_so_often_as_is_asked_for(fit):
    with pytest.raises(RunError, match="training stopped: CUDA error"):
        fit(LOST, max_failures=0)
    fit(*[LOST] * 5, max_failures=5)


def test_a_lost_node_is_answered_by_fewer_processes_and_a_new_one_by_more(fit):
    grows = SimpleNamespace(metrics={"step": 5, "grows": True})
    said, starts = fit(LOST, grows, room=(3, 1, 4), num_workers=(1, 4))
    assert starts == [(3, 1), (1, 3), (4, 0)]
    assert [line for line in said.splitlines() if "CUDA" not in line] == [
        "going on from the last checkpoint: 8 = 1 worker x 4 accumulated x 2 at once",
        "there is room for more training processes",
        "going on from the last checkpoint: 8 = 4 workers x 1 accumulated x 2 at once",
    ]


def test_room_that_is_none_after_all_is_not_looked_for_again(fit):
    grows = SimpleNamespace(metrics={"step": 5, "grows": True})
    assert fit(grows, room=(2,), num_workers=(1, 4))[1] == [(2, 2), (2, 0)]


def test_an_exception_that_ray_train_missed_after_a_growth_ends_it(fit):
    """The last checkpoint is still the one before the growth then."""
    grows = SimpleNamespace(metrics={"step": 9, "grows": True})
    assert fit(grows, grows, room=(2, 3), num_workers=(1, 4))[1] == [(2, 2), (3, 1)]


def test_a_node_that_is_taken_away_is_no_failure(fit):
    info = PreemptionInfo(deadline_ms=None, preempted_node_to_ranks={"n": [0]})
    gone = ray.train.PreemptionError(preemption_info=info, drain_timed_out=True)
    said, _ = fit(gone, gone, max_failures=0)
    assert said.count("a training process failed (its node is being taken away)") == 2


def test_a_node_that_is_lost_before_all_have_started_is_one(fit):
    late = ray.train.ControllerError(WorkerGroupStartupTimeoutError(num_workers=2))
    _, starts = fit(late, room=(2, 1), num_workers=(1, 2))
    assert starts == [(2, 0), (1, 1)]
    with pytest.raises(RunError, match="training stopped: the storage is full"):
        fit(ray.train.ControllerError(OSError("the storage is full")))


def test_a_death_is_named_before_what_it_led_to(fit):
    """The others cannot reach it, and raise; which is noticed first is chance."""
    dead = WorkerHealthCheckFailedError("Worker 1 health check failed", RuntimeError("The node died."))
    lost = ray.train.WorkerGroupError("both", {0: RuntimeError("Connection closed by peer"), 1: dead})
    assert "a training process failed (The node died.)" in fit(lost)[0]


def test_nodes_that_were_lost_are_named(fit):
    # What is alive is asked for after the look for room; a room's number here is that of the nodes by the next one.
    said, _ = fit(LOST, LOST, room=(4, 4, 2, 2), num_workers=(1, 4))
    assert said.count("lost since the last start") == 1
    assert "lost since the last start: node 10.0.0.2, 10.0.0.3\n" in said


def test_ctrl_c_interrupts_and_does_no_other_thing(fit):
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        fit(SystemExit(0))
    assert signal.getsignal(signal.SIGINT) is before
