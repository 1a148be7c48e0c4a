"""Checks before a run spends anything: every node sees the data and the output, devices work, and the model loads."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from zar_ray.adaptation.options import Setting
from zar_ray.cluster import LOCAL, place_to_join
from zar_ray.data.manifest import Manifest
from zar_ray.errors import RunError, StorageError, VideoError, ZarError, reason_of
from zar_ray.evaluation.planning import AskedModel, PlannedModel, plan_model
from zar_ray.evaluation.resources import Resources
from zar_ray.models.checkpoints import require_file
from zar_ray.models.devices import pick_device, require_compiler
from zar_ray.storage import Storage, is_uri
from zar_ray.video.files import VideoFile

# How many videos to look for one that is there.
_LOOKED_AT = 100
_LOOK_SECONDS = 120.0
_COMPILE_SECONDS = 600.0  # a cold start of PyTorch's compiler, where GPUs may have to be waited for


def _see(paths: list[str], storage: Storage, token: str) -> list[str]:
    """What this node does not see, a line each."""
    unseen = []
    for path in paths:
        try:
            folder, name = Storage.of_file(path)
            folder.opened(name).close()
        except StorageError as error:
            unseen.append(str(error))
        except RunError as error:
            why = f" ({error})" if is_uri(path) else ""
            unseen.append(f"{path}: not there or not readable{why}")
    if not storage.exists(token):
        unseen.append(f"{storage.path()}: is not the driver's folder; the output must be on storage all nodes share")
    return unseen


def check_nodes(paths: list[str], storage: Storage) -> None:
    """Has a task on every node look for files, and for a token that the driver has put into the output.

    Args:
        paths: Files that every node must read, such as the manifest, a video and a checkpoint.
        storage: The run's folder.

    Raises:
        RunError: Some nodes lack something; one line names the first node and path, and how many more there are.
    """
    token = f"preflight-{uuid.uuid4().hex}"
    storage.write(token, b"seen")
    try:
        found = _on_every_node(ray.remote(num_cpus=0, max_retries=1)(_see), (paths, storage, token))
    finally:
        storage.delete(token)
    _raise_first([problem for problems in found.values() for problem in problems])


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
    _raise_first(list(_unfit_nodes(gpus, device, compiles).values()))


def without_unfit_nodes(resources: Resources, compiles: bool, say: Callable[[str], None]) -> Resources:
    """Leaves out the nodes on which `check_devices` would fail, where others suffice; each is told in a line.

    Raises:
        RunError: Without them there are too few replicas; the message is that of `check_devices`.
    """
    unfit = _unfit_nodes(resources.worker_gpus, resources.device, compiles)
    if not unfit:
        return resources
    rest = Resources.of_cluster(replace(resources.wanted, left_out=frozenset(unfit)))
    if not rest.enough:
        _raise_first(list(unfit.values()))
    for problem in unfit.values():
        say(f"{problem}; no replica is put there")
    return rest


def _unfit_nodes(gpus: float, device: str, compiles: bool) -> dict[str, str]:
    """What is wrong with which nodes, by their ids."""
    if device == "cpu" and not compiles:
        return {}
    look = ray.remote(num_cpus=0, num_gpus=gpus if compiles else 0, max_calls=1, max_retries=1)(_try_device)
    wanted = {"GPU": gpus} if gpus else {"CPU": 1e-9}
    seconds = _COMPILE_SECONDS if compiles else _LOOK_SECONDS
    found = _on_every_node(look, (device, compiles), wanted, seconds)
    return {node: problems[0] for node, problems in found.items() if problems}


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
) -> dict[str, list[str]]:
    """Runs a task on every node that has so much of each resource; by nodes' ids the lines that they return."""
    nodes = [
        node
        for node in ray.nodes()
        if node["Alive"] and all(node["Resources"].get(name, 0) >= least for name, least in (wanted or {}).items())
    ]
    places = [NodeAffinitySchedulingStrategy(node["NodeID"], soft=False) for node in nodes]
    tasks = [task.options(scheduling_strategy=place).remote(*arguments) for place in places]
    found: dict[str, list[str]] = {}
    for node, begun in zip(nodes, tasks, strict=True):
        try:
            problems = ray.get(begun, timeout=seconds)
        except GetTimeoutError:
            problems = [f"has not answered for {seconds:g} s; it hangs, or others hold what it has"]
        except RayError as error:
            if not any(one["Alive"] and one["NodeID"] == node["NodeID"] for one in ray.nodes()):
                continue  # it has gone since it was listed
            problems = [f"cannot run zar-ray ({_reason(error)})"]
        found[node["NodeID"]] = [f"node {node['NodeManagerHostname']}: {line}" for line in problems]
    return found


def _raise_first(problems: list[str]) -> None:
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise RunError(f"{problems[0]}{more}")


def needed_files(manifest: Manifest, asked: Sequence[AskedModel]) -> list[str]:
    """The checkpoints and one video; one that this process sees, where it sees any, as a lost file fails by itself."""
    paths = manifest.table.filter(pc.field("error").is_null())["path"].slice(0, _LOOKED_AT).to_pylist()
    seen = (path for path in paths if is_uri(path) or Path(path).is_file())
    video = next(seen, paths[0] if paths else None)
    return [str(path) for path in (video, *(one.settings[0].checkpoint for one in asked)) if path is not None]


def check_stores(lost: pa.Table) -> None:
    """Asks the stores of videos whose blocks were lost, one video of each bucket or host, whether they answer.

    Raises:
        StorageError: One does not, so that no video is to blame.
    """
    remote = [path for path in lost["path"].to_pylist() if is_uri(path)]
    for path in {"/".join(path.split("/", 3)[:3]): path for path in remote}.values():
        with contextlib.suppress(VideoError):
            VideoFile(path).state()


def check_checkpoints_here(asked: Sequence[AskedModel], address: str | None) -> None:
    """Looks for the checkpoints before a Ray is started; what a cluster's nodes see of its files, they tell.

    Raises:
        ModelError: One is not there.
        RunError: The cluster cannot be joined.
    """
    if ray.is_initialized() or place_to_join(address) != LOCAL:
        return
    for checkpoint in dict.fromkeys(one.settings[0].checkpoint for one in asked):
        if checkpoint is not None:
            require_file(checkpoint)


def check_model(resources: Resources, label: str, number: int, settings: Sequence[Setting]) -> PlannedModel:
    """As `plan_model`, in a task where a worker would load the model: a pool of workers would fail again and again.

    Raises:
        ZarError: It cannot be loaded; the message is the loader's own.
        RunError: The task that loads it died.
    """
    load: Any = ray.remote(max_retries=1, **resources.replica_options())(plan_model)
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
