"""Options of a study: an evaluation, and the axes along which it is repeated."""

from __future__ import annotations

from typing import Annotated

import tyro
from pydantic import Field, field_serializer

from zar_ray.data.options import DatasetOptions
from zar_ray.evaluation.options import EvaluationOptions
from zar_ray.options.base import FolderName, Fraction, operational, option, without_password
from zar_ray.options.places import FilePlace

_AMOUNT = {"gt": 0, "allow_inf_nan": False}


class EvalConfig(EvaluationOptions, DatasetOptions):
    """Options of `zar eval` and jobs/eval.py."""

    # Axes say which cells a study has, and a run's identity names the cells: so they are no part of a cell's meaning.
    models: tuple[str, ...] = operational(
        (),
        "Evaluate several models in one pass over the videos; `--model A B` for short. Each is a checkpoint's file,"
        " NAME:TAG, or a NAME with --pretrained's tag.",
    )
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = operational(
        (), "Evaluate with each of these seeds of the view plans, and report the mean over them."
    )
    sweep: tuple[str, ...] = operational(
        (),
        "Settings to vary, names of conf/sweeps (confidence, rates, crops, frames, lr, steps, zar-table3, ...) or YAML"
        " files; all in one pass.",
    )
    interpolate_with: FilePlace | None = operational(
        None, "A checkpoint to mix each model with, in the shares --alphas (WiSE-FT)."
    )
    alphas: tuple[Annotated[float, Field(ge=0, le=1)], ...] = operational(
        (), "Shares of --interpolate-with: 0 is the model itself, 1 the other."
    )
    corruption_reference: str | None = operational(
        None, "The method by whose errors corruption errors are divided; by default zero_shot, or the first."
    )
    output: str = operational("runs", "Folder or URI that holds all runs.")
    name: FolderName | None = operational(None, "The run's folder under the output; by default made from what is run.")
    max_failed: Fraction = operational(
        0.01, "Share of videos that may fail before the run counts as failed, as 0.01 or 1%.", ge=0, le=1
    )
    mlflow_uri: str | None = operational(None, "MLflow tracking URI; by default OUTPUT/mlflow.db.")
    mlflow: bool = operational(True, "Log the run to MLflow.")
    report: bool = operational(False, "Write the run's report as one HTML file at the end, as `zar report run` does.")

    @field_serializer("mlflow_uri")
    def _shown_uri(self, uri: str | None) -> str | None:
        # Options are written to files, logged and printed.
        return without_password(uri) if uri else uri


class AblateConfig(EvalConfig):
    """Options of `zar ablate` and jobs/ablate.py: those of `zar eval`, with something to vary."""

    method: tuple[str, ...] = option(("zar",), "Test-time methods to run.", min_length=1)


class PlanConfig(EvalConfig):
    """Options of `zar plan`: those of `zar eval`, and the cluster that would run it."""

    sample: int = operational(20, "Videos to measure, spread over what all are expected to cost.", ge=1)
    trial: bool = operational(
        True,
        "Run the job on some videos too, on a Ray of this machine, to measure its start and what it takes beside its"
        " stages; without it neither is counted.",
    )
    gpus: int = operational(0, "GPUs of the cluster; 0 for a run on CPUs.", ge=0)
    gpu: str = operational("H100", "What GPUs they are; their speed is computed unless this machine has one.")
    cores: float | None = operational(
        None, "CPU cores of the cluster; by default 16 a GPU, or this machine's without GPUs.", **_AMOUNT
    )
    price: float | None = operational(
        None, "Dollars an hour of a GPU with its share of the rest, or of a core.", ge=0, allow_inf_nan=False
    )
    memory: float | None = operational(
        None, "GB of Ray's object store in the cluster; by default 30% of 8 GB a core, as Ray takes it.", **_AMOUNT
    )
    bandwidth: float = operational(
        1.25, "GB a second of a node's network; a node has 8 GPUs, or 128 cores where there are none.", **_AMOUNT
    )
    requests: float = operational(
        3500.0, "Requests a second that the storage serves, S3's promise by default.", **_AMOUNT
    )
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = operational(False, "Print the forecast as JSON alone.")
