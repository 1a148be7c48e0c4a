"""`zar plan` runs the job on a few videos, of which nothing is kept."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from zar_ray.evaluation import sampling
from zar_ray.study.forecasts import cost_of
from zar_ray.study.options import PlanConfig

pytestmark = pytest.mark.slow


def test_a_trial_measures_what_the_job_takes_beside_its_stages(
    ray_cluster, video_folder, tiny_checkpoint, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sampling, "_start_of", lambda module: 0.5)
    options = PlanConfig(
        dataset=str(video_folder),
        checkpoint=tiny_checkpoint,
        views={"frames": 4, "eval_frames": 4},
        method=("zero_shot",),
        features=str(tmp_path / "features"),
        batch_size=2,
        num_workers=(1,),
        cores=2,
        sample=6,
    )
    said = io.StringIO()
    costs = cost_of(options, Console(file=said))
    assert "running the job on 6 videos" in said.getvalue()
    assert costs.sample.job_start != 0
    assert costs.sample.job_share > 0
    # What it came to here is what it is forecast to come to here.
    untried = cost_of(options.model_copy(update={"trial": False}), Console(file=io.StringIO()))
    assert costs.asked.start_seconds != pytest.approx(untried.asked.start_seconds, rel=1e-3)
    assert untried.sample.job_share == 1.0
    assert list(tmp_path.iterdir()) == []
