"""What `serve run` and `serve deploy` are given becomes the service's options, or one line that says what is wrong."""

from __future__ import annotations

import importlib.util
import sys

import pytest
import yaml

from zar_ray.commands import demo_service
from zar_ray.errors import ConfigError
from zar_ray.serving import application
from zar_ray.serving.application import app, build, options_of
from zar_ray.serving.decoder_deployment import DecoderDeployment
from zar_ray.serving.ingress_deployment import IngressDeployment
from zar_ray.serving.methods import ServiceOptions
from zar_ray.serving.model_deployment import ModelDeployment


def test_the_shipped_file_is_one_that_ray_serve_takes(repository):
    from ray._common.utils import import_attr
    from ray.serve.schema import ServeDeploySchema

    content = yaml.safe_load((repository / "serve" / "config.yaml").read_text())
    deployed = ServeDeploySchema.model_validate(content)
    (of_zar,) = deployed.applications
    assert import_attr(of_zar.import_path) is app
    assert options_of(of_zar.args).methods == ("zar", "zero_shot")
    named = {one.name for one in of_zar.deployments}
    assert named == {one.name for one in (DecoderDeployment, IngressDeployment, ModelDeployment)}
    assert deployed.http_options.host == "127.0.0.1"


def test_the_checkouts_module_is_an_import(repository):
    spec = importlib.util.spec_from_file_location("serve_app", repository / "serve" / "app.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert (module.app, module.demo) == (application.app, demo_service.demo)


def test_texts_of_the_command_line_lie_over_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "labels.txt").write_text("a\nb\n")
    (tmp_path / "own.yaml").write_text(
        "checkpoint: clip.pt\nroots: [videos]\nlimits: {steps: 3}\nlabel_sets: {mine: labels.txt, hmdb: hmdb51}\n"
    )
    options = options_of({"config": "own.yaml", "batch": "4", "methods": "[zero_shot]", "limits": "{labels: 7}"})
    assert (options.batch, options.methods) == (4, ("zero_shot",))
    assert (options.limits.steps, options.limits.labels) == (3, 7)
    assert options.checkpoint == tmp_path / "clip.pt", "replicas work in folders of their own"
    assert options.roots == (tmp_path / "videos",)
    assert options.label_sets == {"mine": str(tmp_path / "labels.txt"), "hmdb": "hmdb51"}


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ({"metods": ["zar"]}, "the application's args: metods"),
        ({"batch": "many"}, "batch"),
        ({"methods": "[zar"}, "the application's args, methods: cannot be read as YAML"),
        ({"methods": "[" * 5000}, "the application's args, methods: cannot be read as YAML"),
        ({"tokens": ["secret"]}, "tokens"),
        ({"config": "nowhere.yaml"}, r"nowhere\.yaml: no such configuration file"),
        ({"methods": ["zarr"]}, "zarr"),
        ({"roots": ["/nowhere/at/all"]}, "/nowhere/at/all: is not a folder"),
        ({"label_sets": {"mine": "no-such-file.txt"}}, "no such file of class names"),
        ({"label_sets": {"all": "kinetics600"}, "limits": {"labels": 100}}, "label_sets.all: has 600 labels"),
    ],
)
def test_mistakes_are_one_line(args, said, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=said) as caught:
        app(args)
    assert "\n" not in str(caught.value)
    monkeypatch.setattr(sys, "argv", ["/anywhere/bin/serve", "run"])
    with pytest.raises(SystemExit, match=said):
        app(args)


def test_a_model_that_is_not_there_is_one_line(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/anywhere/bin/serve", "run"])
    with pytest.raises(SystemExit, match=r"zar: .*gone\.safetensors: no such checkpoint file"):
        app({"checkpoint": "/nowhere/gone.safetensors"})


def test_a_cluster_that_is_not_there_is_one_line_before_anything_is_loaded(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/anywhere/bin/serve", "run"])
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    # It may run in the tests' own process.
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    with pytest.raises(SystemExit, match=r"zar: Ray: 127\.0\.0\.1:1: nothing answers there .*RAY_ADDRESS$"):
        app({"checkpoint": "/nowhere/gone.safetensors"})
    # One that is named to `serve run` itself is not known here.
    monkeypatch.setattr(sys, "argv", ["/anywhere/bin/serve", "run", "--address", "10.0.0.1:6379"])
    with pytest.raises(SystemExit, match="no such checkpoint file"):
        app({"checkpoint": "/nowhere/gone.safetensors"})


def test_all_three_are_bound(tiny_checkpoint):
    bound = build(ServiceOptions(checkpoint=tiny_checkpoint))
    assert bound._bound_deployment.name == "ingress"
