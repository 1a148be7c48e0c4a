"""A process that has loaded what Ray's workers load, and is forked for each of them; its input is a socket to ask at.

A worker that loads it by itself takes five seconds of a CPU for that, and an evaluation starts several.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import sys

LOADED = (
    "open_clip",
    "ray.data",
    "ray.train.torch",
    "zar_ray.evaluation.pipeline",
    "zar_ray.evaluation.preflight",
    "zar_ray.training.job",
)


def serve(listening: socket.socket) -> None:
    """Forks for each that asks, for as long as the process is there that has started this one."""
    parent, job = os.getppid(), None
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # whoever has ended need not be waited for
    while os.getppid() == parent:
        if not select.select([listening], [], [], 2.0)[0]:
            continue
        connection, _ = listening.accept()
        with connection:
            _, files, *_ = socket.recv_fds(connection, 1, 2)
            with connection.makefile("rb") as sent:
                asked = json.loads(sent.read())
            if job is None:
                # Ray reads once what job and node it is of.
                job = asked["environment"]["RAY_JOB_ID"]
                os.environ.update(asked["environment"])
                load()
            own = asked["environment"]["RAY_JOB_ID"] == job
            if own and not os.fork():
                become(asked, files)
                return
            connection.sendall(b"1" if own else b"0")
        for file in files:
            os.close(file)
    os._exit(0)  # without what PyTorch's libraries say of a process's end


def load() -> None:
    """Imports what most workers use."""
    for module in LOADED:
        importlib.import_module(module)
    gc.collect()
    gc.freeze()


def become(asked: dict, files: list[int]) -> None:
    """Runs a program as if Python had been started for it."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setpgid(0, 0)  # Ray ends a worker's group
    for number, file in enumerate([os.open(os.devnull, os.O_RDONLY), *files]):
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ.update(asked["environment"])
    os.chdir(asked["folder"])
    sys.argv = asked["words"]
    sys.path[0] = os.path.dirname(sys.argv[0])  # noqa: PTH120
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    serve(socket.socket(fileno=os.dup(0)))
