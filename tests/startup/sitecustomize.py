"""Run by every Python that tests start: importing PyTorch takes a fifth less without its collector of cycles.

Hundreds of processes do hardly anything else. What is collected later here is a few megabytes.
"""

import gc

gc.set_threshold(100_000, 50, 100)


_NO_JOB = "ffffffff"


def _ask_for_a_fork() -> None:
    """Leaves a Ray worker of the tests' own cluster to a process that has loaded PyTorch: see worker_forks.py."""
    import os
    import sys

    place, asked = os.environ.get("ZAR_TESTS_WORKER_FORKS"), sys.orig_argv
    # The first program: one with a runtime environment is begun by another, which names this one as well.
    begin = next((i for i, word in enumerate(asked) if word.endswith(".py")), len(asked))
    words = asked[begin:]
    if place is None or not words or not words[0].endswith("/default_worker.py"):
        return
    # Those that Ray starts before there is a job are started as anywhere else: what job they are of is read once.
    if os.environ.get("RAY_JOB_ID", _NO_JOB) == _NO_JOB:
        return
    import json
    import socket

    asked = {"words": words, "environment": dict(os.environ), "folder": os.getcwd()}  # noqa: PTH109
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(place)
        socket.send_fds(connection, [b" "], [1, 2])
        connection.sendall(json.dumps(asked).encode())
        connection.shutdown(socket.SHUT_WR)
        if connection.recv(1) == b"1":
            os._exit(0)


_ask_for_a_fork()
