"""Joining a Ray cluster: the one named, the one a job runs in, or a local one of its own."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

import ray

from zar_ray.errors import RunError


def inside_job() -> bool:
    """Whether this process was started by `ray job submit`, in a folder that will not outlive it."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


@contextmanager
def connected(address: str | None = None) -> Iterator[None]:
    """Joins a cluster, and leaves it at the end if this call joined it.

    Args:
        address: A cluster's address, ``local`` for one of its own, or None: ``$RAY_ADDRESS`` where it is set (as
            in a job), a cluster that `ray start` left running on this machine, else a local one.

    Raises:
        RunError: The named cluster cannot be reached.
    """
    if ray.is_initialized():
        yield
        return
    # A driver that finds Ray Data's own progress bars and dataset dumps among its lines shows the user two of each.
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    try:
        ray.init(address=address, include_dashboard=False, log_to_driver=True, logging_level=logging.ERROR)
    except (ConnectionError, ValueError, RuntimeError) as error:
        where = address or os.environ.get("RAY_ADDRESS") or "a local cluster"
        raise RunError(f"Ray: cannot join {where} ({' '.join(str(error).split())}); see `zar doctor`") from error
    try:
        yield
    finally:
        ray.shutdown()


def total_cpus() -> float:
    """CPUs of the joined cluster."""
    return float(ray.cluster_resources().get("CPU", 1.0))


def total_gpus() -> float:
    """GPUs of the joined cluster."""
    return float(ray.cluster_resources().get("GPU", 0.0))
