"""Checks before a run spends anything: every node sees the data and the output, devices work, and the model loads."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import ray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from zar_ray.adaptation.options import Setting
from zar_ray.data.manifest import Manifest
from zar_ray.errors import RunError, ZarError, reason_of
from zar_ray.evaluation.planning import AskedModel, PlannedModel, plan_model
from zar_ray.evaluation.resources import Resources
from zar_ray.models.devices import pick_device, require_compiler
from zar_ray.storage import Storage

# How many videos to look for one that is there.
_LOOKED_AT = 100
_LOOK_SECONDS = 120.0
_COMPILE_SECONDS = 600.0  # a cold start of PyTorch's compiler, where GPUs may have to be waited for


def _see(paths: list[str], storage: Storage, token: str) -> list[str]:
    """What this node does not see, a line each."""
    unseen = []
    for path in paths:
        try:
            Path(path).open("rb").close()
        except OSError:
            unseen.append(f"{path}: not there or not readable")
    if not storage.exists(token):
        unseen.append(f"{storage.path()}: is not the driver's folder; the output must be on storage all nodes share")
    return unseen


def check_nodes(paths: list[str], storage: Storage) -> None:
    """Has a task on every node look for files, and for a token that the driver has put into the output.

    Args:
        paths: Local files that every node must read, such as the manifest, a video and a checkpoint.
        storage: The run's folder.

    Raises:
        RunError: Some nodes lack something; one line names the first node and path, and how many more there are.
    """
    token = f"preflight-{uuid.uuid4().hex}"
    storage.write(token, b"seen")
    try:
        problems = _on_every_node(ray.remote(num_cpus=0, max_retries=1)(_see), (paths, storage, token))
    finally:
        storage.delete(token)
    _raise_first(problems)


def check_devices(gpus: float, device: str, compiles: bool = False) -> None:
    """Has a task on every node that workers may run on look whether PyTorch can use their device there.

    What drivers and compilers nodes have may differ, and this process's node may have no GPU. A worker that cannot be
    made would be made again and again.

    Args:
        gpus: GPUs that a worker reserves.
        device: What it is told, see `zar_ray.cluster.worker_device`.
        compiles: Whether it compiles its image encoder; the task then reserves the GPUs that it takes memory of.

    Raises:
        RunError: Some nodes cannot; one line names the first, why, and how many more there are.
    """
    if device == "cpu" and not compiles:
        return
    look = ray.remote(num_cpus=0, num_gpus=gpus if compiles else 0, max_calls=1, max_retries=1)(_try_device)
    wanted = {"GPU": gpus} if gpus else {"CPU": 1e-9}
    _raise_first(_on_every_node(look, (device, compiles), wanted, _COMPILE_SECONDS if compiles else _LOOK_SECONDS))


def _try_device(device: str, compiles: bool) -> list[str]:
    """Why this node's PyTorch cannot use a device, or compile for it, in a line."""
    try:
        picked = pick_device(device)
        if compiles:
            require_compiler(picked)
    except ZarError as error:
        return [str(error)]
    return []


def _on_every_node(
    task: Any, arguments: tuple[Any, ...], wanted: Mapping[str, float] | None = None, seconds: float = _LOOK_SECONDS
) -> list[str]:
    """Runs a task on every node that has so much of each resource; the lines that they return, with their nodes."""
    nodes = [
        node
        for node in ray.nodes()
        if node["Alive"] and all(node["Resources"].get(name, 0) >= least for name, least in (wanted or {}).items())
    ]
    places = [NodeAffinitySchedulingStrategy(node["NodeID"], soft=False) for node in nodes]
    tasks = [task.options(scheduling_strategy=place).remote(*arguments) for place in places]
    problems: list[str] = []
    for host, begun in zip((node["NodeManagerHostname"] for node in nodes), tasks, strict=True):
        try:
            problems += [f"node {host}: {line}" for line in ray.get(begun, timeout=seconds)]
        except GetTimeoutError:
            problems.append(f"node {host}: has not answered for {seconds:g} s; it hangs, or others hold what it has")
        except RayError as error:
            problems.append(f"node {host}: cannot run zar-ray ({_reason(error)})")
    return problems


def _raise_first(problems: list[str]) -> None:
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise RunError(f"{problems[0]}{more}")


def needed_files(manifest: Manifest, asked: Sequence[AskedModel]) -> list[str]:
    """The checkpoints and one video; one that this process sees, where it sees any, as a lost file fails by itself."""
    paths = manifest.table.filter(pc.field("error").is_null())["path"].slice(0, _LOOKED_AT).to_pylist()
    video = next((path for path in paths if Path(path).is_file()), paths[0] if paths else None)
    return [str(path) for path in (video, *(one.settings[0].checkpoint for one in asked)) if path is not None]


def check_model(label: str, number: int, settings: Sequence[Setting], resources: Resources) -> PlannedModel:
    """As `plan_model`, in a task where a worker would load the model: a pool of workers would fail again and again.

    Raises:
        ZarError: It cannot be loaded; the message is the loader's own.
        RunError: The task that loads it died.
    """
    load: Any = ray.remote(num_cpus=resources.worker_cpus, num_gpus=resources.worker_gpus, max_retries=1)(plan_model)
    try:
        return ray.get(load.remote(label, number, settings, resources.device))
    except RayTaskError as error:
        if isinstance(error.cause, ZarError):
            raise error.cause from None
        raise
    except RayError as error:
        raise RunError(f"{label}: loading it ended its process ({_reason(error)})") from error


def _reason(error: RayError) -> str:
    return reason_of(error.cause if isinstance(error, RayTaskError) else error)
