"""The service that a bench starts for itself, its files and its processes."""

from __future__ import annotations

import logging
import multiprocessing
import os
import re
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# Before PyTorch: it says how OpenMP's threads wait.
import zar_ray  # noqa: F401  # isort: skip

import numpy as np
import psutil
import torch

from zar_ray.client import Client, ServiceError
from zar_ray.data.synthetic import HEIGHT, WIDTH, SyntheticSpec, combinations, draw, write_video
from zar_ray.errors import ConfigError
from zar_ray.models.architecture import build_clip
from zar_ray.models.checkpoints import save_checkpoint
from zar_ray.options.layers import conf_dir, read_yaml
from zar_ray.serving.methods import ServiceOptions
from zar_ray.video.transforms import Preprocessing

# What there is to kill.
TARGETS = ("decoding process", "decoder", "model", "ingress", "proxy")
_FRAME_RATE = 25
_RAY = "Ray itself"
_START_SECONDS = 180.0


def make_video(path: Path) -> Path:
    """Draws a video of the demo's kind."""
    spec = SyntheticSpec()
    _, novel = combinations(spec)
    write_video(path, draw("test", novel[0], 0, spec), _FRAME_RATE)
    return path


def make_long_video(path: Path, seconds: float) -> Path:
    """Draws a video of the demo's size in which something moves."""
    rng = np.random.default_rng(0)
    frames = np.tile(rng.integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8), (round(seconds * _FRAME_RATE), 1, 1, 1))
    for number, frame in enumerate(frames):
        frame[:20, :20] = 0
        frame[:] = np.roll(frame, number % WIDTH, axis=1)
    write_video(path, frames, _FRAME_RATE)
    return path


def make_checkpoint(path: Path) -> Path:
    """Writes the demo's tiny CLIP with random weights: time does not depend on what weights are."""
    architecture = read_yaml(conf_dir() / "models" / "demo.yaml")
    torch.manual_seed(0)
    size = architecture["vision_cfg"]["image_size"]
    save_checkpoint(build_clip(architecture), architecture, Preprocessing(input_size=size), path)
    return path


@contextmanager
def started_service(config: ServiceOptions, folder: Path | None = None) -> Iterator[tuple[str, int]]:
    """Starts the service on a Ray of its own, on loopback; gives its URL and the process above all of its processes.

    Args:
        config: The service's options.
        folder: Where Ray keeps its files, the logs among them (`logs_in`); by default where it always does.

    Raises:
        ConfigError: It did not start.
    """
    context = multiprocessing.get_context("spawn")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    over = context.Event()
    process = context.Process(target=_serve, args=(config, port, over, os.getpid(), folder))
    process.start()
    assert process.pid is not None
    url = f"http://127.0.0.1:{port}"
    try:
        _wait_until_ready(url, process)
        yield url, process.pid
    finally:
        over.set()
        process.join()


def _serve(config: ServiceOptions, port: int, over: Any, parent: int, folder: Path | None) -> None:
    """The service's process: serves until it is over, or until the bench is gone."""
    import ray
    from ray import serve

    from zar_ray.serving.application import build
    from zar_ray.serving.front import prepare_environment

    prepare_environment(config)
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_worker_niceness", "0")  # as the direct side, or whatever else runs comes first
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # nobody else is to come to a cluster on loopback
    ray.init(
        address="local",
        num_cpus=8,  # of which there may be fewer: the deployments share them
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        _node_ip_address="127.0.0.1",
        _temp_dir=None if folder is None else str(folder),
    )
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    serve.run(build(config))
    while not over.wait(1) and os.getppid() == parent:
        pass
    ray.shutdown()


def _wait_until_ready(url: str, process: Any) -> None:
    ended = time.monotonic() + _START_SECONDS
    with Client(url, timeout=10, retries=0) as client:
        while time.monotonic() < ended:
            if not process.is_alive():
                raise ConfigError(f"the service ended with status {process.exitcode} while it was starting")
            try:
                if client.ready():
                    return
            except ServiceError:
                pass  # its proxy is there before the application is
            time.sleep(0.5)
    raise ConfigError(f"the service was not ready within {_START_SECONDS:g} s")


def memory_of(pid: int, what: str) -> dict[str, int]:
    """Resident bytes of the service's processes below one, by what they do; of several alike the largest.

    Args:
        pid: The process above them.
        what: ``VmRSS`` for those at the moment, ``VmHWM`` for the most since they began.
    """
    found: dict[str, int] = {}
    for name, process in processes(pid):
        if name != _RAY:
            found[name] = max(found.get(name, 0), held_by(process, what))
    return found


def held_by(process: psutil.Process, what: str) -> int:
    """Resident bytes of a process, as `memory_of` has them; 0 where it is gone."""
    try:
        lines = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(f"{what}:")), 0)


def cpu_of(pid: int) -> dict[str, float]:
    """CPU seconds of the service's processes below one, by what they do."""
    found: dict[str, float] = {}
    for name, process in processes(pid):
        times = process.cpu_times()
        found[name] = found.get(name, 0.0) + times.user + times.system
    return found


def processes(pid: int) -> Iterator[tuple[str, psutil.Process]]:
    """The processes below one with what they do: one of `TARGETS`, or Ray's own."""
    for process in psutil.Process(pid).children(recursive=True):
        try:
            title = " ".join(process.cmdline())
        except psutil.Error:
            continue
        replica = re.search(r"ServeReplica:[^:]+:(\w+)", title)
        if replica is not None:
            yield replica[1], process
        elif "ProxyActor" in title:
            yield "proxy", process
        else:
            yield "decoding process" if "sandbox_process" in title else _RAY, process


def kill(pid: int, target: str) -> float:
    """Kills a service's process of this name, one of `TARGETS`; returns when."""
    process = next(process for name, process in processes(pid) if name == target)
    killed = time.monotonic()
    os.kill(process.pid, signal.SIGKILL)
    return killed


def logs_in(folder: Path, deployment: str) -> str:
    """All that a deployment's replicas have logged, of a service that was started in a folder."""
    files = sorted(folder.glob(f"session_2*/logs/serve/replica_*_{deployment}_*.log"))
    return "".join(file.read_text(encoding="utf-8", errors="replace") for file in files)
