"""What comes out of a training: its checkpoint files, its history, and evaluations of checkpoints on the way."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray.train import Checkpoint, Result
from rich.console import Console

from zar_ray.errors import RunError
from zar_ray.evaluation.options import EvaluationOptions
from zar_ray.evaluation.pipeline import evaluate
from zar_ray.evaluation.planning import AskedModel
from zar_ray.evaluation.workload import Workload
from zar_ray.options.places import AnyFile
from zar_ray.results.case_rows import CASE_COLUMNS, RIGHT, CaseRows
from zar_ray.results.folder import RunFolder
from zar_ray.storage import Storage
from zar_ray.training.messages import Validated
from zar_ray.training.network import save_trained
from zar_ray.training.options import TrainConfig
from zar_ray.training.progress import HISTORY, TrainingState
from zar_ray.training.validation import evaluation_options, validation_split
from zar_ray.training.worker import NOT_VALIDATED, TrainingJob, initial_network

_RECENT_STEPS = 25


@dataclass(frozen=True)
class TrainResult:
    """A finished training.

    Attributes:
        checkpoint: The file written, in zar-ray's format; a learned context, where only that was trained.
        steps: Steps of the whole training, earlier sessions included.
        loss: Mean loss of the last 25 steps.
        accuracy: Share of training videos that were right in the last 25 steps.
        folder: Where the training's checkpoints, options and history lie.
        best: The file of the checkpoint with the highest validation top-1, where there was a validation.
        averaged: The file of the weights averaged over epochs, where that was asked for.
        validations: The evaluations during training, in order.
        run_id: The training's run in MLflow, where it was logged.
    """

    checkpoint: AnyFile
    steps: int
    loss: float
    accuracy: float
    folder: str
    best: AnyFile | None = None
    averaged: AnyFile | None = None
    validations: tuple[Validated, ...] = ()
    run_id: str | None = None


def trained_options(config: TrainConfig, file: AnyFile) -> dict[str, Any]:
    """The options of an evaluation that name what a training wrote."""
    if config.trains == "context":
        return {"checkpoint": config.checkpoint, "context": str(file)}
    return {"checkpoint": file, "context": config.context}


def evaluate_checkpoint(job: TrainingJob, runs: Storage, checkpoint: Checkpoint, **_: Any) -> dict[str, float]:
    """Evaluates a checkpoint as `zar eval` does, in a task beside the training; gives what Ray Train is to know."""
    state = TrainingState.of(checkpoint)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.safetensors"
        _export(state.network, job, file)
        manifest, split = validation_split(job.config)
        options = EvaluationOptions(
            **evaluation_options(job.config).model_dump(exclude={"checkpoint", "context"}),
            **trained_options(job.config, file),
            overwrite=True,
        )
        model, folder_of_run = AskedModel(file.stem, (options,)), RunFolder(runs.child(f"step{state.step}"))
        silent = Console(file=io.StringIO())
        evaluated = evaluate(Workload.of(manifest, [split]), [model], ["validation"], folder_of_run, silent)
    (case,) = evaluated.cases
    rows = CaseRows.of(evaluated.rows.read(CASE_COLUMNS), case.case_id, len(split.class_names))
    counted = rows.select((rows.label >= 0) & rows.finished)
    correct, videos = int((counted.after == RIGHT).sum()), len(counted.label)
    found = Validated(state.step, job.epochs(state.step), correct, videos, int((~rows.finished).sum()))
    job.progress.put(found)
    return {"validation_top1": found.top1}


def finished(result: Result, job: TrainingJob, folder: RunFolder, raised: str | None) -> TrainResult:
    """Writes what the training ended with: the last weights, the best ones, the averaged ones, and its history.

    Raises:
        RunError: It did not get to its last step; the message is what the first exception in a process said.
    """
    output = job.config.output
    assert output is not None
    last = TrainingState() if result.checkpoint is None else TrainingState.of(result.checkpoint)
    if last.step < job.schedule.steps:
        at = f"after step {last.step} of {job.schedule.steps}"
        raise RunError(f"training stopped {at}: {raised or 'no reason is known'}; the same command continues it")
    _export(last.network, job, output)
    averaged = best = None
    if last.averaged_epochs:
        averaged = output.with_name(f"{output.stem}.averaged{output.suffix}")
        _export(last.averaged, job, averaged, {"averaged_epochs": last.averaged_epochs})
    checkpoints = [(one.get("validation_top1", NOT_VALIDATED), saved) for saved, one in result.best_checkpoints or []]
    top1, saved = max(checkpoints, key=lambda one: one[0], default=(NOT_VALIDATED, result.checkpoint))
    if top1 > NOT_VALIDATED and saved is not None:
        best, state = output.with_name(f"{output.stem}.best{output.suffix}"), TrainingState.of(saved)
        _export(state.network, job, best, {"step": state.step, "validation_top1": top1})
    lines = [("step", *HISTORY), *((step, *row) for step, row in enumerate(last.history.tolist(), 1))]
    folder.storage.write("history.csv", "".join(",".join(map(str, line)) + "\n" for line in lines).encode())
    recent = last.history[-_RECENT_STEPS:].mean(dim=0).tolist()
    return TrainResult(
        checkpoint=output,
        steps=last.step,
        loss=recent[HISTORY.index("loss")],
        accuracy=recent[HISTORY.index("accuracy")],
        folder=folder.storage.path(),
        best=best,
        averaged=averaged,
        validations=last.validations,
    )


def _export(
    weights: Mapping[str, Any], job: TrainingJob, output: AnyFile, notes: Mapping[str, Any] | None = None
) -> None:
    network = initial_network(job)
    network.load_trained_state(weights, "the training's checkpoint")
    save_trained(network, output, {"training": job.config.model_dump(mode="json"), **(notes or {})})
