"""Joining a Ray cluster: the one named, the one a job runs in, or a local one of its own."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray._private.utils import read_ray_address

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
    # Its C++ core writes to the terminal what Ray Data does on purpose; a worker's end is told by its videos' rows.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    address = address or os.environ.get("RAY_ADDRESS")
    try:
        with _native_stderr_silenced():
            _join_or_start(address)
    except (ConnectionError, ValueError, RuntimeError) as error:
        where = address or "a local cluster"
        raise RunError(f"Ray: cannot join {where} ({' '.join(str(error).split())}); see `zar doctor`") from error
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _native_stderr_silenced() -> Iterator[None]:
    """Keeps what native code writes to the terminal while Ray starts (its log level) from it; errors are raised."""
    sys.stderr.flush()
    terminal, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(terminal, 2)
        os.close(terminal)
        os.close(nowhere)


def _join_or_start(address: str | None) -> None:
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    # Ray's own "auto" takes any cluster on this machine, also one that another program holds for itself, and that ends
    # with it: whoever has joined it then ends without a word.
    place = address or read_ray_address()
    if place is not None and place != "local":
        try:
            ray.init(address=place, **quiet)
        except ConnectionError:
            if address is not None:
                raise
            # one that was left running was not stopped in order
        else:
            return
    # On loopback: a laptop's evaluation opens no port to its network.
    ray.init(address="local", include_dashboard=False, _node_ip_address="127.0.0.1", **quiet)


def total_cpus() -> float:
    """CPUs of the joined cluster."""
    return float(ray.cluster_resources().get("CPU", 1.0))


def total_gpus() -> float:
    """GPUs of the joined cluster."""
    return float(ray.cluster_resources().get("GPU", 0.0))
