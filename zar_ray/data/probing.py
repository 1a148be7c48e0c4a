"""Opening many files in processes of their own, so that a file that crashes or hangs its decoder costs only itself."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait

from zar_ray.errors import ManifestError, VideoError
from zar_ray.video.options import Decoder
from zar_ray.video.reading import VideoInfo

Probe = Callable[[str, Decoder], VideoInfo]
Progress = Callable[[int, int], None]

PROBE_TIMEOUT = 60.0
_START_TIMEOUT = 300.0  # importing the decoders from a busy network file system is slow, not broken
_ATTEMPTS = 2  # a process may also be killed for what its neighbours did (out of memory), so once is no proof


@dataclass(frozen=True)
class ProbeError:
    """Why a file could not be probed, in one line."""

    message: str


def probe_files(
    paths: Sequence[str],
    probe: Probe,
    decoder: Decoder = "auto",
    workers: int | None = None,
    timeout: float = PROBE_TIMEOUT,
    progress: Progress | None = None,
) -> list[VideoInfo | ProbeError]:
    """Probes files in parallel processes.

    A process holds one file at a time, so one that dies or does not answer names the file that did it; it is replaced
    and all other files go on.  A file that kills its process is tried once more.

    Args:
        paths: The files.
        probe: Called as ``probe(path, decoder)`` in a fresh process, so it must be importable there.
        decoder: Passed on to `probe`.
        workers: Processes; by default one a CPU that this process may use.
        timeout: Seconds a file may take.
        progress: Called as ``progress(done, all)`` after every file.

    Returns:
        What was found, in the order of `paths`.

    Raises:
        ManifestError: The processes cannot be started.
    """
    found: dict[int, VideoInfo | ProbeError] = {}
    waiting = deque(_Task(index, 1) for index in range(len(paths)))
    pool: list[_Worker] = []

    def finish(task: _Task, answer: VideoInfo | ProbeError) -> None:
        found[task.index] = answer
        if progress is not None:
            progress(len(found), len(paths))

    try:
        while len(found) < len(paths):
            busy = sum(worker.task is not None for worker in pool)
            while len(pool) < min(workers or usable_cpus(), busy + len(waiting)):
                pool.append(_Worker(probe, decoder))
            patience = min(worker.deadline for worker in pool) - time.monotonic()
            ready = wait([worker.connection for worker in pool], max(patience, 0.0))
            for worker in tuple(pool):
                task = worker.task
                if worker.connection in ready:
                    try:
                        answer = worker.connection.recv()
                    except (EOFError, OSError):
                        pool.remove(worker)
                        reason = worker.death()
                        if task is None:
                            raise ManifestError(f"the processes that probe videos cannot start ({reason})") from None
                        if task.attempt < _ATTEMPTS:
                            waiting.appendleft(_Task(task.index, task.attempt + 1))
                        else:
                            finish(task, ProbeError(f"crashes its decoder ({reason})"))
                        continue
                    if task is not None:
                        finish(task, answer)
                    if waiting:
                        task = waiting.popleft()
                        worker.give(task, paths[task.index], timeout)
                    else:
                        pool.remove(worker)
                        worker.end()
                elif time.monotonic() >= worker.deadline:
                    pool.remove(worker)
                    worker.end()
                    if task is None:
                        raise ManifestError(
                            f"the processes that probe videos did not start within {_START_TIMEOUT:.0f} s"
                        )
                    finish(task, ProbeError(f"took longer than {timeout:g} s to open"))
    finally:
        for worker in pool:
            worker.end()
    return [found[index] for index in range(len(paths))]


def usable_cpus() -> int:
    """CPUs that this process may run on."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


@dataclass(frozen=True)
class _Task:
    index: int
    attempt: int


class _Worker:
    """A process and the task it has, which is None until the process says that it has started."""

    def __init__(self, probe: Probe, decoder: Decoder) -> None:
        # spawn: a process forked from one with threads (Ray's, PyTorch's) may hang.
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, probe, decoder), daemon=True)
        self.process.start()
        theirs.close()
        self.task: _Task | None = None
        self.deadline = time.monotonic() + _START_TIMEOUT

    def give(self, task: _Task, path: str, timeout: float) -> None:
        self.task = task
        self.deadline = time.monotonic() + timeout
        # A process that has just died is found out when its answer is read.
        with contextlib.suppress(OSError):
            self.connection.send(path)

    def death(self) -> str:
        """How the process, which has hung up, ended."""
        self.process.join(5.0)
        code = self.process.exitcode
        self.end()
        if code is None:
            return "it stopped answering"
        if code < 0:
            return f"killed by {signal.Signals(-code).name}"
        return f"its process ended with exit code {code}"

    def end(self) -> None:
        self.connection.close()
        self.process.kill()
        self.process.join()


def _serve(connection: Connection, probe: Probe, decoder: Decoder) -> None:
    """The process: says that it has started, then answers one path after another until its owner hangs up."""
    # Ctrl-C reaches the whole process group; the owner ends its processes itself.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    connection.send(None)
    # Decoding libraries write to the terminal by themselves; what is wrong with a file goes back as its answer.
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 2)
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            connection.send(_answer(probe, connection.recv(), decoder))


def _answer(probe: Probe, path: str, decoder: Decoder) -> VideoInfo | ProbeError:
    try:
        return probe(path, decoder)
    except VideoError as error:
        return ProbeError(str(error))
    except Exception as error:  # noqa: BLE001  whatever a decoder throws is this file's error, reported in its row
        return ProbeError(f"{type(error).__name__}: {' '.join(str(error).split())}")
