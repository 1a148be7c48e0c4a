"""Checks before a run spends anything: every node sees the data and the output, and the model loads."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from pathlib import Path

import pyarrow.compute as pc
import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from zar_ray.adaptation.options import Setting
from zar_ray.data.manifest import Manifest
from zar_ray.errors import RunError, ZarError, reason_of
from zar_ray.evaluation.planning import AskedModel, PlannedModel, plan_model
from zar_ray.evaluation.resources import Resources
from zar_ray.storage import Storage

# How many videos to look for one that is there.
_LOOKED_AT = 100


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
    see = ray.remote(num_cpus=0, max_retries=1)(_see)
    try:
        tasks = {
            node["NodeManagerHostname"]: see.options(
                scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            ).remote(paths, storage, token)
            for node in ray.nodes()
            if node["Alive"]
        }
        problems: list[str] = []
        for host, task in tasks.items():
            try:
                problems += [f"node {host}: {line}" for line in ray.get(task, timeout=120)]
            except RayError as error:
                problems.append(f"node {host}: cannot run zar-ray ({_reason(error)})")
    finally:
        storage.delete(token)
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise RunError(f"{problems[0]}{more}")


def needed_files(manifest: Manifest, asked: Sequence[AskedModel]) -> list[str]:
    """The checkpoints and one video; one that this process sees, where it sees any, as a lost file fails by itself."""
    paths = manifest.table.filter(pc.field("error").is_null())["path"].to_pylist()
    video = next((path for path in paths[:_LOOKED_AT] if Path(path).is_file()), paths[0] if paths else None)
    return [str(path) for path in (video, *(one.settings[0].checkpoint for one in asked)) if path is not None]


def check_model(label: str, number: int, settings: Sequence[Setting], resources: Resources) -> PlannedModel:
    """As `plan_model`, in a task where a worker would load the model: a pool of workers would fail again and again.

    Raises:
        ZarError: It cannot be loaded; the message is the loader's own.
        RunError: The task that loads it died.
    """
    load = ray.remote(num_cpus=resources.worker_cpus, num_gpus=resources.worker_gpus, max_retries=1)(plan_model)
    try:
        return ray.get(load.remote(label, number, settings))
    except RayTaskError as error:
        if isinstance(error.cause, ZarError):
            raise error.cause from None
        raise
    except RayError as error:
        raise RunError(f"{label}: loading it ended its process ({_reason(error)})") from error


def _reason(error: RayError) -> str:
    return reason_of(error.cause if isinstance(error, RayTaskError) else error)
