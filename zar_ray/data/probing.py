"""Opening many files in processes of their own, so that a file that crashes or hangs its decoder costs only itself.

A listing's videos become a manifest here; and whatever else is done to many videos at once is done by `in_processes`.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import ceil
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, TypeVar

import psutil
from rich.console import Console
from rich.progress import Progress as ProgressBar

from zar_ray.data.listing import Listing
from zar_ray.data.manifest import Manifest, VideoRow
from zar_ray.errors import ConfigError, ManifestError, StorageError, VideoError
from zar_ray.retries import patience_seconds
from zar_ray.storage import is_uri
from zar_ray.untrusted import storable
from zar_ray.video.files import VideoFile
from zar_ray.video.inspection import VideoInfo
from zar_ray.video.limits import DecodeLimits, address_space, confine, lacks_memory
from zar_ray.video.options import Decoder
from zar_ray.video.reading import probe_video, require_decoder

Progress = Callable[[int, int], None]
_T = TypeVar("_T")

_PROBE_TIMEOUT = 60.0
_START_TIMEOUT = 300.0  # importing the decoders from a busy network file system is slow, not broken
_MEMORY = DecodeLimits().memory
_WORTH_IT = 16  # items; for fewer another process is not done with starting when they are done
_ATTEMPTS = 2  # a process may also be killed for what its neighbours did (out of memory), so once is no proof


@dataclass(frozen=True)
class Failure:
    """Why nothing came of an item, in one line."""

    message: str


def probe_listing(
    listing: Listing,
    decoder: Decoder = "auto",
    workers: int | None = None,
    console: Console | None = None,
    place: str = "",
) -> Manifest:
    """Opens every listed video and writes down what it is; one that cannot be opened keeps its row, with the error.

    Without `workers` there is one process a CPU; `place` says on the console where the videos are.

    Raises:
        ConfigError: The decoder cannot be loaded; every file would fail for the same reason.
    """
    require_decoder(decoder)
    if console is not None:
        videos, classes = _counted(len(listing.videos), "video"), _counted(len(listing.class_names), "class")
        others = f"; {_counted(listing.ignored, 'other file')} ignored" if listing.ignored else ""
        console.print(f"{place}: opening {videos}, {classes}{others}", markup=False)
    with ProgressBar(console=console, transient=True, disable=console is None or not console.is_terminal) as bar:
        task = bar.add_task("opening videos", total=len(listing.videos))
        whole = [video for video in listing.videos if video.error is None]
        remote = any(is_uri(video.path) for video in listing.videos)
        answers = in_processes(
            [video.file() for video in whole],
            partial(_probe, decoder=decoder),
            workers,
            # What is fetched may be waited for.
            _PROBE_TIMEOUT + 2 * patience_seconds() if remote else _PROBE_TIMEOUT,
            progress=lambda done, _: bar.update(task, completed=done),
            prepare=partial(require_decoder, decoder),
        )
    stretched = sum(isinstance(answer, _Probed) and answer.info.pixel_aspect != 1 for answer in answers)
    if console is not None and stretched:
        console.print(
            f"{place}: {_counted(stretched, 'video')} with pixels that are not square; pictures are taken as they are "
            "stored, as the methods' own code takes them",
            markup=False,
        )
    label_ids = {name: index for index, name in enumerate(listing.class_names)}
    rows, left = [], iter(answers)
    for video in listing.videos:
        answer = Failure(video.error) if video.error is not None else next(left)
        row = replace(
            video,
            video_id=storable(video.video_id),
            path=storable(video.path),
            member=None if video.member is None else storable(video.member),
            label_id=None if video.class_name is None else label_ids[video.class_name],
            size=_size(video) if isinstance(answer, Failure) else answer.size,
        )
        if (row.path, row.member) != (video.path, video.member):
            row = replace(row, error="the file's name is not UTF-8; rename it")
        elif isinstance(answer, Failure):
            row = replace(row, error=answer.message)
        else:
            found = {name: value for name, value in vars(answer.info).items() if name != "pixel_aspect"}
            row = replace(row, offset=answer.offset, **found)
        rows.append(row)
    return Manifest.of(rows, listing.class_names, listing.root, listing.name)


@dataclass(frozen=True)
class _Probed:
    """What is known of a video that was opened, its bytes, and where it begins in a tar file."""

    info: VideoInfo
    size: int
    offset: int | None


def _probe(file: VideoFile, decoder: Decoder) -> _Probed:
    with file:
        info = probe_video(file, decoder)
        return _Probed(info, os.stat(file).st_size, file.offset)  # noqa: PTH116  of what was fetched, where it was


def _size(video: VideoRow) -> int | None:
    """Bytes of a video that could not be opened, where they are known all the same."""
    if video.size is None and video.member is None:
        with contextlib.suppress(OSError):
            return Path(video.path).stat().st_size
    return video.size


def in_processes(
    items: Sequence[Any],
    work: Callable[[Any], _T],
    workers: int | None = None,
    timeout: float = _PROBE_TIMEOUT,
    progress: Progress | None = None,
    prepare: Callable[[], object] | None = None,
) -> list[_T | Failure]:
    """What work on each item gives, done in parallel processes, which end with this one however it ends.

    A process holds one item at a time, so one that dies or does not answer names the item that did it; it is replaced
    and all others go on.  An item that kills its process is tried once more.

    Args:
        items: The videos' files, or what else stands for them.
        work: Called with an item in a fresh process, so it must be importable there.
        workers: Processes; by default one a CPU that this process may use, and fewer for a few items.
        timeout: Seconds an item may take.
        progress: Called as ``progress(done, all)`` after every item.
        prepare: Called in each process before its memory is limited, for what is loaded once; it should not raise.

    Raises:
        ManifestError: The processes cannot be started.
        StorageError: A store does not answer, which is no item's fault.
    """
    found: dict[int, _T | Failure] = {}
    waiting = deque(range(len(items)))
    attempts: Counter[int] = Counter()
    pool: list[_Worker] = []
    most = workers or min(usable_cpus(), ceil(len(items) / _WORTH_IT))

    def finish(task: int, answer: _T | Failure) -> None:
        found[task] = answer
        if progress is not None:
            progress(len(found), len(items))

    try:
        while len(found) < len(items):
            busy = sum(worker.task is not None for worker in pool)
            while len(pool) < min(most, busy + len(waiting)):
                pool.append(_Worker(work, prepare))
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
                            raise ManifestError(f"the processes that open videos cannot start ({reason})") from None
                        if attempts[task] < _ATTEMPTS:
                            waiting.appendleft(task)
                        else:
                            finish(task, Failure(f"crashes its decoder ({reason})"))
                        continue
                    if isinstance(answer, StorageError):
                        raise answer
                    if task is not None:
                        finish(task, answer)
                    if waiting:
                        task = waiting.popleft()
                        attempts[task] += 1
                        worker.give(task, items[task], timeout)
                    else:
                        pool.remove(worker)
                        worker.end()
                elif time.monotonic() >= worker.deadline:
                    pool.remove(worker)
                    worker.end()
                    if task is None:
                        raise ManifestError(
                            f"the processes that open videos did not start within {_START_TIMEOUT:.0f} s"
                        )
                    finish(task, Failure(f"took longer than {timeout:g} s to open"))
    finally:
        for worker in pool:
            worker.end()
    return [found[index] for index in range(len(items))]


def usable_cpus() -> int:
    """CPUs that this process may run on."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def usable_memory() -> int:
    """Bytes of the machine's memory, or of the part that this container may use."""
    memory = psutil.virtual_memory().total
    for place in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError):
            text = Path(place).read_text(encoding="ascii").strip()
            return min(memory, int(text)) if text.isdigit() else memory
    return memory


class _Worker:
    """A process and the number of the item it has, which is None until the process says that it has started."""

    def __init__(self, work: Callable[[Any], Any], prepare: Callable[[], object] | None) -> None:
        # spawn: a process forked from one with threads (Ray's, PyTorch's) may hang.
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, work, prepare), daemon=True)
        self.process.start()
        theirs.close()
        self.task: int | None = None
        self.deadline = time.monotonic() + _START_TIMEOUT

    def give(self, task: int, item: Any, timeout: float) -> None:
        self.task = task
        self.deadline = time.monotonic() + timeout
        # A process that has just died is found out when its answer is read.
        with contextlib.suppress(OSError):
            self.connection.send(item)

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


def _serve(connection: Connection, work: Callable[[Any], Any], prepare: Callable[[], object] | None) -> None:
    """The process: says that it has started, then answers one item after another until its owner hangs up."""
    # Ctrl-C reaches the whole process group; the owner ends its processes itself.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    connection.send(None)
    # Decoding libraries write to the terminal by themselves; what is wrong with a file goes back as its answer.
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 2)
    if prepare is not None:
        prepare()
    at_start = address_space()
    confine(_MEMORY)
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        # Until its memory is not what it was; the owner starts another.
        while address_space() - at_start < _MEMORY // 2:
            connection.send(_answer(work, connection.recv()))


def _answer(work: Callable[[Any], _T], item: Any) -> _T | Failure | StorageError:
    try:
        return work(item)
    except StorageError as error:
        return error
    except Exception as error:  # noqa: BLE001  whatever a decoder throws is this file's error, reported in its row
        reason = " ".join(str(error).split())
        if lacks_memory(error):
            return Failure(f"takes more memory than the limit of {_MEMORY} bytes")
        return Failure(reason if isinstance(error, (VideoError, ConfigError)) else f"{type(error).__name__}: {reason}")


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 'es' if noun.endswith('s') else 's'}"
