"""Runs of both stages in this process, without Ray."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pytest

from zar_ray.data.datasets import list_dataset
from zar_ray.data.probing import probe_listing
from zar_ray.data.protocols import whole_split
from zar_ray.evaluation.planning import AskedModel, asked_settings, job_spec, passes_of, plan_model
from zar_ray.evaluation.recovery import lacking
from zar_ray.evaluation.spec import JobSpec
from zar_ray.evaluation.stages.adapt import AdaptStage
from zar_ray.evaluation.stages.decode import DecodeStage
from zar_ray.evaluation.streams import StreamState, stream_methods
from zar_ray.evaluation.workload import Workload
from zar_ray.results.folder import Ledger, RunFolder
from zar_ray.results.rows import ResultRow, to_rows
from zar_ray.storage import Storage
from zar_ray.study.options import EvalConfig


@dataclass(frozen=True)
class Begun:
    """A run of some models over some videos."""

    workload: Workload
    spec: JobSpec
    told: tuple
    passes: tuple[JobSpec, ...]

    @property
    def folder(self) -> RunFolder:
        return RunFolder(self.spec.storage)

    @property
    def todo(self) -> pa.Table:
        return lacking(self.workload.table(), self.spec, Ledger(self.folder))

    @property
    def rows(self) -> list[ResultRow]:
        return to_rows(self.folder.results())

    def adapt(self) -> AdaptStage:
        return AdaptStage(*self.told)

    def evaluate(self, videos: pa.Table) -> pa.Table:
        return self.adapt()(DecodeStage(self.spec)(videos))


@pytest.fixture(scope="session")
def workload(video_folder) -> Workload:
    """Twelve videos of three classes."""
    manifest = probe_listing(list_dataset(video_folder))
    return Workload.of(manifest, [whole_split(manifest)])


@pytest.fixture
def begin(workload, tmp_path) -> Callable[..., Begun]:
    """Begins a run of some checkpoints, with several seeds as the settings of a study; further options by name."""

    def make(
        name: str, *checkpoints: Path, videos: Workload = workload, seeds: tuple[int, ...] = (), **options
    ) -> Begun:
        models = []
        for number, checkpoint in enumerate(checkpoints):
            values = {
                "checkpoint": checkpoint,
                "views": {"frames": 2, "eval_frames": 2, "views_per_rate": 1, "crops": 1},
                "device": "cpu",
                **options,
            }
            of_settings = [{**values, "seed": seed} for seed in seeds] or [values]
            asked = AskedModel(checkpoint.stem, tuple(map(EvalConfig.model_validate, of_settings)))
            settings = asked_settings(asked, videos)
            models.append(plan_model(asked.label, number, settings))
        streams = stream_methods(one.options for model in models for one in model.settings)
        spec = job_spec(videos, models, list(map(str, seeds)) or ["default"], Storage(str(tmp_path / name)), streams)
        if streams:
            StreamState(0, {}).write(spec.storage)
        passes = passes_of(spec, models)
        return Begun(videos, passes[0], (passes[0], tuple(model.settings for model in models), 1), passes)

    return make
