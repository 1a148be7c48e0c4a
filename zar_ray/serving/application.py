"""The service as applications that `serve run` and `serve deploy` build."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click
import ray
from ray.dashboard.modules.dashboard_sdk import parse_runtime_env_args
from ray.serve import Application
from ray.serve._private.constants import SERVE_NAMESPACE

from zar_ray.cluster import gpus_per_worker, require_cluster, worker_device
from zar_ray.data.classes import known_class_lists
from zar_ray.errors import ConfigError, ZarError
from zar_ray.evaluation.preflight import check_devices
from zar_ray.models.loading import load_model
from zar_ray.options.layers import merge, parse_yaml, read_yaml, validate
from zar_ray.options.places import at_home
from zar_ray.serving.classifier import require_served
from zar_ray.serving.decoder_deployment import DecoderDeployment
from zar_ray.serving.front import prepare_environment
from zar_ray.serving.ingress_deployment import IngressDeployment
from zar_ray.serving.methods import ServiceOptions, require_methods, served_methods
from zar_ray.serving.model_deployment import ModelDeployment
from zar_ray.serving.queries import label_sets_of

_PLACE = "the application's args"
# Beyond what is admitted a request is answered at once, and those that only ask for health must always come through.
_ROOM_FOR_REFUSALS = 512


def one_line_mistakes(builder: Callable[[dict[str, Any]], Application]) -> Callable[[dict[str, Any]], Application]:
    """Shows a user's mistake as one line where `serve run` builds the application in its own process."""

    @functools.wraps(builder)
    def build(args: dict[str, Any]) -> Application:
        try:
            return builder(args)
        except ZarError as error:
            if _is_serve_run():
                raise SystemExit(f"zar: {error}") from None
            raise

    return build


def _is_serve_run() -> bool:
    return Path(sys.argv[0]).name == "serve"


@one_line_mistakes
def app(args: dict[str, Any]) -> Application:
    """The service: `serve run serve.app:app checkpoint=FILE`, or `args:` in a file for `serve deploy`.

    Args:
        args: Options of `ServiceOptions`; ``config`` names a YAML file with some of them.

    Raises:
        ConfigError: An option is unknown or does not fit.
    """
    return build(options_of(args))


def options_of(args: Mapping[str, Any]) -> ServiceOptions:
    """The service's options, with paths that hold on every process of this machine.

    Raises:
        ConfigError: An option is unknown or does not fit.
    """
    # `serve run` passes on texts.
    own = {
        name: parse_yaml(value, f"{_PLACE}, {name}") if isinstance(value, str) else value
        for name, value in args.items()
        if name != "config"
    }
    file = args.get("config")
    if file is not None and not isinstance(file, str):
        raise ConfigError(f"{_PLACE}, config: {file} is no file's name")
    if file is not None:
        own = merge(read_yaml(Path(file)), own)
    config = validate(ServiceOptions, own, str(file or _PLACE))
    return config.model_copy(
        update={
            "checkpoint": at_home(config.checkpoint) if isinstance(config.checkpoint, Path) else config.checkpoint,
            "roots": tuple(map(at_home, config.roots)),
            "samples": config.samples and at_home(config.samples),
            "label_sets": {name: _absolute(source) for name, source in config.label_sets.items()},
        }
    )


def build(config: ServiceOptions) -> Application:
    """Binds the deployments, after a look at the options and, on the CPU, at the model.

    A replica that cannot serve is started again and again, and its reason stands in a log; here it is one line.

    Raises:
        ConfigError: A method or a label set is not there, or a folder that requests are to be served from; or the
            model cannot do what requests may ask.
        ModelError: The model cannot be loaded.
        RunError: `serve run` would wait for a cluster that is not there; or a replica cannot run on the device.
    """
    # An address on the command line is Ray's affair.
    if _is_serve_run() and not any(word.startswith(("-a", "--address")) for word in sys.argv):
        require_cluster(fall_back=False)
    require_methods(config)
    label_sets_of(config)
    for root in config.folders:
        if not root.is_dir():
            raise ConfigError(f"{root}: is not a folder; name one whose videos are to be served")
    require_served(load_model(config, "cpu"), config)
    if _is_serve_run() and not ray.is_initialized():
        prepare_environment(config)
        _join_as_serve_run()
    gpus = gpus_per_worker(config.device, None) if ray.is_initialized() else 0.0
    if ray.is_initialized():
        check_devices(gpus, worker_device(config.device, gpus))
    limits = config.limits
    model = ModelDeployment.options(
        max_ongoing_requests=2 * config.batch + limits.streams, ray_actor_options={"num_cpus": 1, "num_gpus": gpus}
    ).bind(config)
    light = config.without_methods()
    # Two whole videos are there beside all streams: one that is decoded and the next one.
    decoder = DecoderDeployment.options(
        max_ongoing_requests=2 + limits.streams, ray_actor_options={"num_cpus": 1}
    ).bind(light, model)
    waiting = limits.concurrent + limits.queued + limits.streams + _ROOM_FOR_REFUSALS
    return IngressDeployment.options(max_ongoing_requests=waiting, ray_actor_options={"num_cpus": 0}).bind(
        light, served_methods(config), decoder, model
    )


def _join_as_serve_run() -> None:
    """Joins or starts the Ray that `serve run` would after building: what the application asks for depends on its GPUs.

    `serve run` goes on with it.
    """
    context = click.get_current_context(silent=True)
    given = {} if context is None else context.params
    runtime_env = parse_runtime_env_args(
        **{name: given.get(name) for name in ("runtime_env", "runtime_env_json", "working_dir")}
    )
    ray.init(address=given.get("address"), namespace=SERVE_NAMESPACE, runtime_env=runtime_env)


def _absolute(source: str) -> str:
    """A label set's source; a file by its whole path."""
    # What is no file may be too long for one's name, or hold what no name may.
    is_file = source not in known_class_lists() and "," not in source and os.path.isfile(at_home(source))  # noqa: PTH113
    return str(at_home(source)) if is_file else source
