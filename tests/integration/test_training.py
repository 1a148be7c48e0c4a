"""Training on a real local Ray: the loss falls, the files load and evaluate, workers change nothing."""

from __future__ import annotations

import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from safetensors import safe_open

from zar_ray.errors import ConfigError, ManifestError, RunError
from zar_ray.models.loading import load_model
from zar_ray.models.options import ModelOptions
from zar_ray.options.places import file_of
from zar_ray.results.folder import RunFolder
from zar_ray.results.rows import to_rows
from zar_ray.storage import Storage
from zar_ray.training.job import describe, run_training
from zar_ray.training.workers import cpus_per_worker

pytestmark = pytest.mark.slow


def history(result):
    """The columns of a training's history, one row a step."""
    return np.genfromtxt(Path(result.folder) / "history.csv", delimiter=",", names=True)


VIEWS = {"frames": 2, "eval_frames": 2}


class TestOneTraining:
    """What a finished training leaves."""

    def test_the_loss_falls_and_the_history_holds_every_step(self, finished_training):
        config, result, said = finished_training
        first = float(re.search(rf"step 1/{config.steps}  loss (\S+)", said)[1])
        assert result.loss < first - 0.1
        steps = history(result)
        assert steps["step"].tolist() == list(range(1, config.steps + 1))
        assert steps["loss"][config.steps - 25 :].mean() == pytest.approx(result.loss, abs=1e-6)
        assert (steps["gradient_norm"] > 0).all()
        assert steps["learning_rate"][:2].tolist() == pytest.approx([1.5e-3, 3e-3])

    def test_its_files_load(self, finished_training):
        config, result, _ = finished_training
        assert (result.steps, result.checkpoint) == (config.steps, config.output)
        model, averaged = (load_model(ModelOptions(checkpoint=file)) for file in (result.checkpoint, result.averaged))
        assert model.preprocessing.input_size == 32
        assert not model.random_weights
        # The mean over the ends of epochs 11 to 15 is none of the others.
        assert model.fingerprint != averaged.fingerprint
        # The best and the last are kept to go on from, not all of them.
        assert sum(path.is_dir() for path in Path(result.folder).glob("checkpoint_*")) <= 3

    def test_validation_is_the_evaluation(self, finished_training, evaluate, broken_manifest):
        # Two videos an epoch more than whole batches, and a broken one: nothing is dropped or invented.
        _, result, said = finished_training
        assert said.count("validation videos, 1 failed") == 3
        assert [(one.step, one.videos, one.failed) for one in result.validations] == [(n, 11, 1) for n in (10, 20, 30)]
        notes = notes_of(result.best)
        assert notes["step"] in (10, 20, 30)
        options = {"checkpoint": result.best, "method": ("zero_shot",), "views": VIEWS, "max_failed": 1.0}
        scores = evaluate(broken_manifest, here=True, **options).summary.cases[0].failures_excluded
        assert (scores.videos, scores.after.top1.value) == (11, pytest.approx(notes["validation_top1"]))

    def test_decode_workers_read_what_threads_read(self, finished_training, train, in_this_process, tmp_path):
        config, result, _ = finished_training
        changes = {
            "decode_workers": 0,
            "validation": None,
            "storage": str(tmp_path),
            "output": tmp_path / "threads.safetensors",
        }
        with in_this_process():
            threads, _ = train(config.model_copy(update=changes))
        losses = [history(one)["loss"] for one in (threads, result)]
        assert losses[0][0] == losses[1][0]
        # The process that decodes elsewhere has a CPU less for its steps, which round in another order.
        np.testing.assert_allclose(losses[0][:5], losses[1][:5], atol=1e-5)

    def test_a_name_holds_one_training(self, finished_training, train):
        config, *_ = finished_training
        with pytest.raises(RunError, match=r"mine: .*options\.lr: 0\.003 -> 0\.001.*--name"):
            train(config.model_copy(update={"lr": 1e-3}))

    def test_the_same_command_finds_everything_done_and_writes_the_same_weights(self, finished_training, train):
        config, result, _ = finished_training
        before = load_model(ModelOptions(checkpoint=config.output)).fingerprint
        config.output.unlink()
        again, said = train(config)
        assert (again.steps, again.loss) == (config.steps, result.loss)
        assert "step 1/" not in said
        assert load_model(ModelOptions(checkpoint=config.output)).fingerprint == before


def notes_of(file):
    """What a checkpoint file says of itself."""
    with safe_open(file, framework="pt") as opened:
        return json.loads(opened.metadata()["zar_ray"])["notes"]


def test_a_name_can_be_taken_over_and_validation_can_run_beside(finished_training, train, tmp_path):
    config, result, _ = finished_training
    shutil.copytree(Path(result.folder).parent, tmp_path / "storage")
    changes = {"steps": 4, "lr": 1e-3, "validation_async": True, "validation_epochs": 1.0, "decode_workers": 0}
    matching = {"loss": "matching", "trains": "all"}
    taken = {"overwrite": True, "storage": str(tmp_path / "storage"), "output": tmp_path / "taken.safetensors"}
    result, said = train(config.model_copy(update={**changes, **matching, **taken}))
    assert "step 1/4" in said
    assert result.steps == 4
    assert said.count("validation videos, 1 failed") == 2
    notes = notes_of(result.best)
    assert notes["step"] in (2, 4)
    run = RunFolder(Storage(result.folder).child("validation").child(f"step{notes['step']}"))
    rows = [row for row in to_rows(run.results()) if row.error is None]
    assert len(rows) == 11
    assert notes["validation_top1"] == pytest.approx(sum(row.correct_after for row in rows) / 11)


def test_only_the_context_is_trained_and_evaluates(
    train, in_this_process, tiny_training, evaluate, tiny_checkpoint, video_folder
):
    start = {"architecture": None, "checkpoint": tiny_checkpoint, "trains": "context"}
    with in_this_process():
        result, _ = train(tiny_training(**start, steps=3, lr=0.05, validation=str(video_folder)))
    assert len(result.validations) == 2
    options = {"context": str(result.checkpoint), "method": ("zero_shot", "zar"), "views": VIEWS}
    summary = evaluate(video_folder, here=True, **options).summary
    assert summary.cases[0].headline.after.top1.value == pytest.approx(result.validations[-1].top1)


def test_a_video_that_cannot_be_decoded_is_named(ray_cluster, tiny_training, broken_manifest):
    config, said = tiny_training(dataset=str(broken_manifest), steps=3), io.StringIO()
    with pytest.raises(RunError, match=r"gone\.mp4: .*leave the video out") as caught:
        run_training(config, Console(file=said, width=200))
    assert "going on" not in said.getvalue(), "another start would only repeat it"
    assert "\n" not in str(caught.value)
    assert "Traceback" not in str(caught.value)
    assert not config.output.exists()


def test_each_process_gets_cpus_of_one_node(ray_cluster):
    assert [cpus_per_worker(workers) for workers in (1, 2)] == [2, 1]
    assert cpus_per_worker(1, decoders=1) == cpus_per_worker(1, spare=1) == 1
    with pytest.raises(RunError, match="--num-workers 3: the cluster has 2 CPUs"):
        cpus_per_worker(3)


def test_mistakes_are_named_before_anything_starts(tiny_training, tmp_path, monkeypatch):
    config = tiny_training()
    with pytest.raises(ConfigError, match="--output"):
        describe(config.model_copy(update={"output": None}))
    remote = config.model_copy(update={"output": file_of("s3://b/x.safetensors")})
    assert "checkpoint  s3://b/x.safetensors\n" in f"{describe(remote)}\n"
    for workers in (4, (1, 4)):
        with pytest.raises(ConfigError, match="cannot be shared by --num-workers 4 in micro-batches of 3"):
            describe(config.model_copy(update={"num_workers": workers}))
    with pytest.raises(ConfigError, match="--num-workers 2 1: the fewest come first"):
        describe(config.model_copy(update={"num_workers": (2, 1)}))
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
