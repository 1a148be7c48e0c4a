"""What `serve run` and `serve deploy` are given becomes the service's options, or one line that says what is wrong."""

from __future__ import annotations

import importlib.util
import sys

import pytest
import yaml

from zar_ray.commands import demo_service
from zar_ray.errors import ConfigError, RunError
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
        ({"methods": "[" * 600}, "the application's args, methods: cannot be read as YAML"),
        ({"tokens": ["secret"]}, "tokens"),
        ({"config": "5"}, "5: no such configuration file"),
        ({"config": 5}, "the application's args, config: 5 is no file's name"),
        ({"roots": ["~nobody-here/videos"]}, "~nobody-here/videos: is not a folder"),
        ({"samples": "~nobody-here/videos"}, "~nobody-here/videos: is not a folder"),
        ({"label_sets": {"mine": "~nobody-here/labels.txt"}}, "no such file of class names"),
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


@pytest.fixture
def cluster_of(monkeypatch):
    """A cluster of so many GPUs, joined already or once Ray is started; what is done, in its order."""
    done = []

    def make(gpus, joined=True, problem=None):
        state = {"joined": joined}

        def join(**given):
            done.append(("ray.init", given))
            state["joined"] = True

        def look(asked, device):
            done.append(("look", asked, device))
            if problem:
                raise RunError(problem)

        def resources():
            assert state["joined"], "Ray was asked for its GPUs before it was there"
            return {"GPU": gpus}

        monkeypatch.setattr("ray.is_initialized", lambda: state["joined"])
        monkeypatch.setattr("ray.init", join)
        monkeypatch.setattr("ray.cluster_resources", resources)
        monkeypatch.setattr(application, "check_devices", look)
        monkeypatch.setattr(application, "require_cluster", lambda fall_back: None)
        monkeypatch.setattr(application, "prepare_environment", lambda config: done.append("environment"))
        return done

    return make


def gpus_of_model(bound) -> float:
    (model,) = (
        one
        for one in bound._bound_deployment.init_args
        if getattr(one, "_bound_deployment", None) and one._bound_deployment.name == "model"
    )
    return model._bound_deployment.ray_actor_options["num_gpus"]


@pytest.mark.parametrize(
    ("gpus", "device", "reserved", "told"),
    [(8, "auto", 1, "cuda"), (8, "cuda", 1, "cuda"), (8, "cpu", 0, "cpu"), (0, "auto", 0, "cpu")],
)
def test_a_model_replica_reserves_a_gpu_where_it_uses_one(cluster_of, tiny_checkpoint, gpus, device, reserved, told):
    done = cluster_of(gpus)
    assert gpus_of_model(build(ServiceOptions(checkpoint=tiny_checkpoint, device=device))) == reserved
    assert done == [("look", reserved, told)]


@pytest.mark.parametrize("words", [[], ["--address", "10.0.0.1:6379"]])
def test_serve_run_asks_the_ray_that_it_will_use(cluster_of, tiny_checkpoint, monkeypatch, words):
    """Before, the application was built without any, and all replicas shared the first GPU."""
    import click

    done = cluster_of(4, joined=False)
    monkeypatch.setattr(sys, "argv", ["/anywhere/bin/serve", "run", *words])
    address = words[-1] if words else None
    command = click.Command("run")
    with click.Context(command) as context:
        context.params.update(
            address=address, runtime_env=None, runtime_env_json='{"env_vars": {"A": "1"}}', working_dir=None
        )
        assert gpus_of_model(app({"checkpoint": str(tiny_checkpoint)})) == 1
    joined = ("ray.init", {"address": address, "namespace": "serve", "runtime_env": {"env_vars": {"A": "1"}}})
    assert done == ["environment", joined, ("look", 1, "cuda")]


def test_a_driver_that_cannot_be_used_ends_serve_run_in_one_line(cluster_of, tiny_checkpoint, monkeypatch):
    cluster_of(4, joined=False, problem="node a: device cuda: its driver is too old; choose --device cpu")
    monkeypatch.setattr(sys, "argv", ["/anywhere/bin/serve", "run"])
    with pytest.raises(SystemExit, match=r"^zar: node a: device cuda: its driver is too old; choose --device cpu$"):
        app({"checkpoint": str(tiny_checkpoint)})


def test_a_gpu_that_no_node_has_is_refused(cluster_of, tiny_checkpoint):
    cluster_of(0)
    with pytest.raises(RunError, match="--device cuda: the cluster has no GPUs; choose --device cpu"):
        build(ServiceOptions(checkpoint=tiny_checkpoint, device="cuda"))
