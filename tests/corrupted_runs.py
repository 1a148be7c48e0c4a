"""Runs of both stages under several corruptions, in this process, without Ray."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from zar_ray.evaluation.planning import AskedModel, job_spec, passes_of, plan_model, plan_models
from zar_ray.evaluation.recovery import lacking
from zar_ray.evaluation.spec import JobSpec
from zar_ray.evaluation.stages.adapt import AdaptStage
from zar_ray.evaluation.stages.decode import DecodeStage
from zar_ray.evaluation.streams import stream_methods
from zar_ray.evaluation.workload import Workload
from zar_ray.results.folder import Ledger, RunFolder
from zar_ray.results.rows import to_rows
from zar_ray.storage import Storage
from zar_ray.study.axes import axes_of
from zar_ray.study.options import EvalConfig

VIEWS = {"frames": 2, "eval_frames": 2, "views_per_rate": 1, "crops": 1}


class Run:
    """A run in this process."""

    def __init__(self, workload: Workload, checkpoint: Path, folder: Path, corruptions, **options) -> None:
        base = EvalConfig.model_validate({"checkpoint": checkpoint, "views": VIEWS, "device": "cpu", **options})
        axes = axes_of(base.model_copy(update={"corruption": corruptions}))
        asked = [AskedModel(one.label, (base.model_copy(update=dict(one.update)),)) for one in axes.models]
        models = plan_models(asked, workload, plan_model)
        self.workload = workload
        streams = stream_methods(one.options for model in models for one in model.settings)
        self.spec: JobSpec = job_spec(workload, models, ["default"], Storage(str(folder)), streams)
        settings = tuple(model.settings for model in models)
        self._told = (self.spec, settings, 1)
        self.passes = [(one, (one, settings, 1)) for one in passes_of(self.spec, models)]

    def todo(self) -> pa.Table:
        return lacking(self.workload.table(), self.spec, Ledger(RunFolder(self.spec.storage)))

    def evaluate(self, videos: pa.Table) -> pa.Table:
        return AdaptStage(*self._told)(DecodeStage(self.spec)(videos))

    def found(self) -> dict:
        rows = to_rows(RunFolder(self.spec.storage).results())
        return {(one.video_id, one.method, one.corruption): (one.case_id, one.top5_scores_after) for one in rows}
