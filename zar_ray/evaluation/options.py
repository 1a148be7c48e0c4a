"""Options of an evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_serializer

from zar_ray.adaptation.options import AdaptationOptions
from zar_ray.options.base import Fraction, operational, without_password


class EvalConfig(AdaptationOptions):
    """Options of `zar eval` and jobs/eval.py."""

    dataset: str | None = Field(
        default=None, description="A benchmark's name, a manifest (.parquet), a list (.csv) or a folder."
    )
    protocol: Literal["standard", "base_to_novel"] = Field(
        default="standard",
        description="base_to_novel: both halves of k400, hmdb51, ucf101 or ssv2, and their harmonic mean.",
    )
    split: str | None = Field(
        default=None,
        description="The one split of a benchmark's protocol to evaluate, or a manifest's; all by default.",
    )
    class_names: str | None = Field(
        default=None,
        description='The candidate classes: "a,b,c" or a file with one a line; by default the manifest\'s.',
    )
    legacy_labels: bool = Field(
        default=False, description="Score as published label files do, with the names that they exchange."
    )
    limit: int | None = Field(default=None, ge=1, description="Evaluate only so many videos, spread over the manifest.")

    models: tuple[str, ...] = operational(
        (),
        "Evaluate several models in one pass over the videos, a run each, and print models x methods; `--model A B` for"
        " short. Each is a checkpoint's file, NAME:TAG, or a NAME with --pretrained's tag.",
    )
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = operational(
        (), "Run once with each of these seeds, in a folder each, and report the mean over them."
    )
    interpolate_with: Path | None = operational(
        None, "A checkpoint to mix the model with, in the shares --alphas: a run for each mixture (WiSE-FT)."
    )
    alphas: tuple[Annotated[float, Field(ge=0, le=1)], ...] = operational(
        (), "Shares of --interpolate-with: 0 is the model itself, 1 the other."
    )
    output: str = operational("runs", "Folder or URI that holds all runs.")
    name: str | None = operational(None, "The run's folder under the output; by default made from what is run.")
    resume: bool = operational(False, "Insist on continuing a run that is there already.")
    retry_failed: bool = operational(False, "When continuing, do failed videos again.")
    overwrite: bool = operational(False, "Delete a run of the same name first.")
    features: str | None = operational(
        None,
        "Folder or URI to keep image features in; runs whose images are all there neither decode nor encode.",
    )
    max_failed: Fraction = operational(
        0.01, "Share of videos that may fail before the run counts as failed, as 0.01 or 1%.", ge=0, le=1
    )
    num_workers: int | None = operational(None, "Model replicas; by default one a GPU, or one a two CPUs.", ge=1)
    decode_workers: int | None = operational(None, "Decoding processes at once; by default what the CPUs allow.", ge=1)
    gpus_per_worker: float | None = operational(None, "GPUs a replica; by default 1 if there are any.", ge=0)
    batch_size: int = operational(8, "Videos a worker is handed, and adapts to, at a time.", ge=1)
    address: str | None = operational(None, "Ray cluster to use; by default the one at hand, else a local one.")
    mlflow_uri: str | None = operational(None, "MLflow tracking URI; by default OUTPUT/mlflow.db.")
    mlflow: bool = operational(True, "Log the run to MLflow.")
    report: bool = operational(False, "Write the run's report as one HTML file at the end, as `zar report run` does.")
    data_root: Path | None = operational(None, "Folder that holds NAME/manifest.parquet; by default ZAR_HOME/datasets.")

    @field_serializer("mlflow_uri")
    def _shown_uri(self, uri: str | None) -> str | None:
        # Options are written to files, logged and printed.
        return without_password(uri) if uri else uri


class AblateConfig(EvalConfig):
    """Options of `zar ablate` and jobs/ablate.py."""

    method: tuple[str, ...] = Field(default=("zar",), min_length=1, description="Test-time methods to run.")
    # A run folder's settings are held against the settings themselves, whatever file they come from.
    sweep: tuple[str, ...] = operational(
        (),
        "What to vary: confidence, rates, crops, frames, views_per_rate, context_length, context_init, lr, steps,"
        " selection, loss, decision, fusion, zar-table3, zar-table4, zar-table5, or YAML files; all in one pass.",
    )
