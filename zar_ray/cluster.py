"""Joining a Ray cluster: the one named, the one a job runs in, or a local one of its own."""

from __future__ import annotations

import functools
import logging
import os
import socket
import sys
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext, suppress
from typing import Any
from urllib.parse import urlsplit

import psutil
import ray
from ray._common.utils import get_default_ray_temp_dir, get_ray_address_file
from ray._private.services import canonicalize_bootstrap_address, find_node_ids
from ray._private.utils import read_ray_address, validate_socket_filepath
from ray.util.client import ray as ray_client

from zar_ray.errors import RunError, reason_of
from zar_ray.interruption import head_watched, sigterm_interrupts, take_sigterm
from zar_ray.terminal import native_stderr_silenced

LOCAL = "local"
"""The address of a cluster of one's own, which is started."""

# Ray itself tries a port where nothing is for a quarter of an hour, in silence.
_CONNECT_SECONDS = 5.0
# A head that has much to do is slow, not gone, but its gRPC server greets all the same.
_GREETING_SECONDS = 3.0
_ANSWER_SECONDS = 20.0
# A host that answers none of so many questions, one a second, is gone.
_QUESTIONS = 10
_FIRST_CALL = "/ray.rpc.NodeInfoGcsService/GetClusterId"
_WAY_OUT = "start it with `ray start --head`, or name another, or `local`, with --address or RAY_ADDRESS"


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
        RunError: The named cluster cannot be joined; said within seconds.
    """
    if ray.is_initialized():
        yield
        return
    # Its C++ core writes to the terminal what Ray Data does on purpose; a worker's end is told by its videos' rows.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    # Its statistics may fail where nodes go; what is asked for here is looked at.
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")
    with sigterm_interrupts():
        try:
            place = place_to_join(address)
            with native_stderr_silenced():
                _join_or_start(place)
        except (OSError, ValueError, RuntimeError) as error:
            at = address or "a cluster"
            raise RunError(f"Ray: cannot join {at} ({reason_of(error)}); see `zar doctor`") from error
        try:
            # Ray has set a handler of its own, which ends the process in its core.
            take_sigterm()
            with _head_watched():
                yield
        finally:
            ray.shutdown()


def _head_watched() -> AbstractContextManager[None]:
    """See `zar_ray.interruption.head_watched`; a client's server outlives the head as little as anyone."""
    return nullcontext() if is_client() else head_watched(ray.get_runtime_context().gcs_address)


def is_client() -> bool:
    """Whether this process has joined through ``ray://``, and is none of the cluster's."""
    return ray_client.is_connected()


def _join_or_start(place: str) -> None:
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if place == LOCAL:
        # On loopback: a laptop's evaluation opens no port to its network.
        ray.init(address=LOCAL, include_dashboard=False, _node_ip_address="127.0.0.1", **quiet)
    else:
        ray.init(address=place, **quiet)


def usual_place() -> tuple[str, str]:
    """The address of the cluster that is used if none is given, or ``local``; and, to be shown, what names it."""
    if named := os.environ.get("RAY_ADDRESS"):
        return named, named
    # Ray's own "auto" takes any cluster on this machine, also one that another program holds for itself, and that ends
    # with it: whoever has joined it then ends without a word.
    left = read_ray_address()
    return (left, f"{get_ray_address_file(None)} names {left}") if left else (LOCAL, LOCAL)


def place_to_join(address: str | None = None, fall_back: bool = True) -> str:
    """The address that is joined, or ``local``; with `fall_back` also where a cluster that was left running is gone.

    Raises:
        RunError: The cluster cannot be joined, or none can be started.
    """
    place, shown = (address, address) if address else usual_place()
    if (problem := problem_of(place)) is None:
        return place
    if shown == place or not fall_back:
        raise RunError(f"Ray: {shown}: {problem}")
    _tell(f"zar: {shown}: {problem}; a Ray of its own is started")
    return place_to_join(LOCAL)


def require_cluster(address: str | None = None, fall_back: bool = True) -> None:
    """Refuses early, before data and models are read, a cluster that could not be joined; see `place_to_join`."""
    if not ray.is_initialized():
        place_to_join(address, fall_back)


@functools.cache
def _tell(line: str) -> None:
    """Once, however often a command looks."""
    print(line, file=sys.stderr)


def problem_of(place: str) -> str | None:
    """Why a cluster cannot be joined or started, with a way out; None where nothing stands in the way.

    A port that nobody has is found out at once, one that takes connections and says nothing within seconds; a head
    has `_ANSWER_SECONDS`.

    Args:
        place: ``HOST:PORT`` of a head node, ``ray://HOST:PORT``, ``auto`` or ``local``.
    """
    scheme, sign, named = place.rpartition("://")
    if place == LOCAL:
        folder = get_default_ray_temp_dir()
        try:
            validate_socket_filepath(f"{folder}/session_2000-01-01_00-00-00_000000_{os.getpid()}/sockets/plasma_store")
        except OSError:
            return f"{folder} is too long a path for Ray's sockets; set RAY_TMPDIR to a shorter one, such as /tmp"
        return None
    if scheme in ("http", "https"):
        return f"takes jobs, with `ray job submit --address {place} -- python jobs/eval.py ...`; otherwise {_WAY_OUT}"
    if sign and scheme != "ray":
        return None  # an installed package's own
    try:
        found = named if sign else canonicalize_bootstrap_address(place)
        parts = urlsplit(f"//{found}")
        if not parts.hostname or not parts.port:
            raise ValueError("it names no host or no port")
        socket.create_connection((parts.hostname, parts.port), _CONNECT_SECONDS).close()
    except OSError as error:
        return f"nothing answers there ({reason_of(error)}); {_WAY_OUT}"
    except ValueError as error:
        return f"is no address such as 10.0.0.1:6379 or ray://10.0.0.1:10001 ({reason_of(error)}); {_WAY_OUT}"
    return None if sign else _head_problem(str(found))


def _head_problem(address: str) -> str | None:
    """Asks what every driver asks first; how one proves who one is, by tokens or TLS, is Ray's affair."""
    import grpc
    from ray._private.grpc_utils import init_grpc_channel
    from ray._private.ray_constants import GLOBAL_GRPC_OPTIONS

    silent = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNIMPLEMENTED)
    channel: Any = init_grpc_channel(address, GLOBAL_GRPC_OPTIONS)
    with closing(channel):
        greeted = grpc.channel_ready_future(channel)
        call: Any = channel.unary_unary(_FIRST_CALL).future(b"", timeout=_ANSWER_SECONDS)
        try:
            error = call.exception(timeout=_GREETING_SECONDS)
        except grpc.FutureTimeoutError:
            error = call.exception() if greeted.done() else grpc.FutureTimeoutError()
        if isinstance(error, grpc.FutureTimeoutError) or (isinstance(error, grpc.RpcError) and error.code() in silent):
            return f"takes connections, and does not answer as a Ray head does; {_WAY_OUT}"
    if not find_node_ids():
        return "is a cluster without a node on this machine; submit a job, run on a node, or name ray://HOST:10001"
    return None


def doubt(addresses: Collection[str]) -> None:
    """Has this process's connections to some hosts closed by the kernel within seconds, unless the host still answers.

    A host that loses its power, or its network, closes nothing. Ray (2.60) waits for what ran there until a connection
    is known to be dead, which may take minutes, also when its head has long said that the node is.
    """
    limits = {
        "TCP_KEEPIDLE": 1,
        "TCP_KEEPALIVE": 1,  # what macOS calls it
        "TCP_KEEPINTVL": 1,
        "TCP_KEEPCNT": _QUESTIONS,
        "TCP_USER_TIMEOUT": 1000 * _QUESTIONS,
    }
    known = {getattr(socket, name): value for name, value in limits.items() if hasattr(socket, name)}
    for one in psutil.Process().net_connections("tcp"):
        if not one.raddr or one.raddr.ip.removeprefix("::ffff:") not in addresses or one.fd < 0:
            continue
        # One that was closed meanwhile, or is something else by now, is left alone.
        with suppress(OSError), socket.socket(fileno=os.dup(one.fd)) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for option, value in known.items():
                connection.setsockopt(socket.IPPROTO_TCP, option, value)


def total_gpus() -> float:
    """GPUs of the joined cluster."""
    return float(ray.cluster_resources().get("GPU", 0.0))


def gpus_per_worker(device: str, asked: float | None) -> float:
    """GPUs that each worker on a device reserves: as many as are asked for, by default one where there are any.

    On the CPU it is none. Ray counts Apple's GPU, too, which is used where the device says so.

    Raises:
        RunError: The device and what is asked for do not fit together, or the cluster has not so many.
    """
    there = total_gpus()
    if device == "cpu":
        if asked:
            raise RunError(f"--gpus-per-worker {asked:g} --device cpu: the CPU needs no GPU; leave one of them away")
        return 0.0
    wanted = device != "auto" or sys.platform != "darwin"
    gpus = float(there > 0 and wanted) if asked is None else asked
    if gpus > there:
        raise RunError(f"--gpus-per-worker {gpus:g}: the cluster has {there:g} GPUs")
    if not gpus and device.startswith("cuda"):
        given = "the cluster has no GPUs" if asked is None else "--gpus-per-worker 0 leaves a worker none"
        raise RunError(f"--device {device}: {given}; choose --device cpu")
    require_worker_gpus(device, gpus)
    return gpus


def require_worker_gpus(device: str, gpus: float) -> None:
    """Refuses so many GPUs as Ray gives no worker, and one among them that it would not see.

    Raises:
        RunError: They are more than one and no whole number, or the device is numbered beyond them.
    """
    if gpus > 1 and not gpus.is_integer():
        raise RunError(f"--gpus-per-worker {gpus:g}: Ray gives a worker shares of one GPU, or whole ones")
    kind, _, number = device.partition(":")
    if kind == "cuda" and number.isdecimal() and gpus and int(number) >= gpus:
        raise RunError(
            f"--device {device}: a worker sees those GPUs alone that it reserves, numbered from 0, and {device} is none"
            " of them; give --device cuda, and choose among a machine's GPUs with CUDA_VISIBLE_DEVICES"
        )


def worker_device(device: str, gpus: float) -> str:
    """The device that a worker is told, which has reserved so many GPUs: ``auto`` is what it has reserved.

    Ray (2.60) hides no GPU from a worker that has reserved none, so that all would take the first one.
    """
    if device != "auto":
        return device
    return "cuda" if gpus else "cpu"


def reserved_gpus() -> float:
    """GPUs that this process holds of the joined cluster's; none where it is no worker of one."""
    return float(len(ray.get_gpu_ids())) if ray.is_initialized() else 0.0


def share_of_gpu() -> float:
    """The part of one GPU that this actor of the joined cluster has to itself: below 1 where several share one."""
    if not ray.is_initialized() or (actor := ray.get_runtime_context()).get_actor_id() is None:
        return 1.0
    return min(1.0, actor.get_assigned_resources().get("GPU", 1.0))
