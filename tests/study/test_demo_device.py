"""The demo trains its model where the run that needs it is told to compute."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from zar_ray.commands import demo_service
from zar_ray.study import demo
from zar_ray.study.options import EvalConfig
from zar_ray.training import job


@pytest.fixture
def trained(monkeypatch, tmp_path):
    """The options that the demo's training would run under; nothing is drawn, trained or served."""
    configs = []
    monkeypatch.setenv("ZAR_HOME", str(tmp_path))
    monkeypatch.setattr(demo, "write_synthetic", lambda folder, progress: None)
    monkeypatch.setattr(job, "run_training", lambda config, console: configs.append(config))
    return configs


@pytest.mark.parametrize("said", [{}, {"device": "cpu"}, {"device": "cuda", "gpus_per_worker": 0.5}])
def test_of_an_evaluation(trained, said):
    options = EvalConfig(dataset="demo", checkpoint=demo.checkpoint_file(), **said)
    demo.ensure_demo(options, Console(file=io.StringIO()))
    (config,) = trained
    assert (config.device, config.gpus_per_worker) == (options.device, options.gpus_per_worker)


def test_of_the_service(trained, monkeypatch):
    monkeypatch.setattr(demo_service, "read_manifest", lambda path: (_ for _ in ()).throw(InterruptedError))
    for said, device in ({"device": "cpu"}, "cpu"), ({}, "auto"):
        with pytest.raises(InterruptedError):
            demo_service.demo(said)
        assert trained.pop().device == device
