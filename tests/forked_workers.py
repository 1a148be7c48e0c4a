"""Ray's workers forked from one process that has imported what they all import.

PyTorch and the package take seconds of a core to import, and a suite starts hundreds of workers, each of which would.
Ray starts a worker as ``python default_worker.py ...``: while a cluster starts here, that python is a script that asks
the server of `forking` for a fork, and ends when the fork does. Clusters that tests start by commands have Ray's own
workers.
"""

from __future__ import annotations

import ctypes
import json
import os
import runpy
import shlex
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib import import_module
from pathlib import Path

IMPORTED = (
    *("av", "fastapi", "open_clip", "pandas", "pyarrow.dataset", "pyarrow.parquet", "requests"),
    *("rich.console", "torch", "torchvision", "uvicorn"),
    *("zar_ray.adaptation.methods", "zar_ray.models.loading"),
)

_CLONE_NEWNET = 0x40000000  # of linux/sched.h
_SCRIPT = """import json, os, socket, sys
words = sys.argv[1:]
if words[0].endswith("/setup_worker.py") and words[-1].startswith("--serialized-runtime-env-context="):
    # In an environment of its own, which may be no more than some variables.
    own = json.loads(words[-1].partition("=")[2])
    if not any(value for name, value in own.items() if name not in ("env_vars", "py_executable")):
        words = [word for word in words[1:-1] if not word.startswith("--language=")]
        os.environ.update((name, os.path.expandvars(value)) for name, value in own["env_vars"].items())
if not words[0].endswith("/default_worker.py"):
    os.execv({python!r}, [{python!r}, *words])
with socket.socket(socket.AF_UNIX) as server:
    server.connect({address!r})
    told = json.dumps([words, dict(os.environ), os.getcwd()]).encode()
    network = os.open("/proc/self/ns/net", os.O_RDONLY)
    socket.send_fds(server, [len(told).to_bytes(8, "big")], [0, 1, 2, network])
    server.sendall(told)
    server.recv(1)
"""


@contextmanager
def forking(folder: Path) -> Iterator[Callable[[], AbstractContextManager[None]]]:
    """Forks workers as long as this lasts: those of clusters that are started inside what it gives.

    Args:
        folder: An empty one with a short name, as a socket's may have 107 characters.
    """
    if sys.platform != "linux":
        yield nullcontext
        return

    @contextmanager
    def as_python() -> Iterator[None]:
        python, sys.executable = sys.executable, str(script)
        try:
            yield
        finally:
            sys.executable = python

    script, asking, address = folder / "python", folder / "ask.py", str(folder / "fork")
    asking.write_text(_SCRIPT.format(python=sys.executable, address=address))
    words = shlex.join([sys.executable, "-IS", str(asking)])
    script.write_text(f'#!/bin/sh\nexec {words} "$@"\n')
    script.chmod(0o755)
    server = subprocess.Popen([sys.executable, __file__, address], stdout=subprocess.PIPE)
    try:
        assert server.stdout is not None
        assert server.stdout.readline() == b"ready\n"
        yield as_python
    finally:
        server.kill()
        server.wait()


def serve(address: str) -> None:
    """Forks a worker for each connection to a socket; returns in a worker that is to end."""
    # Ray itself reads its environment as it is imported.
    for name in IMPORTED:
        import_module(name)
    assert "ray" not in sys.modules
    with socket.socket(socket.AF_UNIX) as asked:
        asked.bind(address)
        asked.listen(64)
        assert threading.active_count() == 1, "a fork would lack the other threads"
        print("ready", flush=True)
        # Nobody waits for forks: their scripts see their connection close.
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        while True:
            connection = asked.accept()[0]
            length, descriptors, _, _ = socket.recv_fds(connection, 8, 4)
            if os.fork() == 0:
                break
            connection.close()
            for descriptor in descriptors:
                os.close(descriptor)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    # A raylet of another process group kills the whole group of a worker that it has lost.
    os.setsid()
    with connection.makefile("rb") as told:
        words, environment, folder = json.loads(told.read(int.from_bytes(length, "big")))
    *streams, network = descriptors
    if not os.path.sameopenfile(network, os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)):
        assert ctypes.CDLL(None).setns(network, _CLONE_NEWNET) == 0, "this process may not enter the node's network"
    os.close(network)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.argv, sys.path[0] = words, str(Path(words[0]).parent)
    runpy.run_path(words[0], run_name="__main__")


if __name__ == "__main__":
    serve(sys.argv[1])
