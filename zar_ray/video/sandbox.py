"""Decoding in a child process with memory and time limits: a hostile or broken file costs itself only.

`DecoderProcess` is a plain class; the child's side is `zar_ray.video.sandbox_process`.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from math import prod
from multiprocessing import reduction
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from zar_ray.errors import DecoderClosedError, DecoderStartError, VideoError
from zar_ray.video.limits import DecodeLimits
from zar_ray.video.options import Decoder, Resizer
from zar_ray.video.sandbox_process import DecodedViews, DecodeJob, DecodeRequest, Finished, Orders, Signal
from zar_ray.video.streams import reason_of
from zar_ray.video.windows import WindowCut

_START_SECONDS = 300.0  # importing the decoders from a busy network file system is slow, not broken
_GRACE_SECONDS = 0.5  # a decoder that is merely slow says so itself and need not be replaced
_BEGIN_SECONDS = 30.0
_STOP_SECONDS = 3.0
_ATTEMPTS = 2
# Not multiprocessing's spawn, which would import the parent's main module: in a replica, Ray's worker. SIGINT reaches
# the whole process group; the parent ends its child itself.
PROGRAM = (
    "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); "
    "from zar_ray.video.sandbox_process import main; main()"
)
# For what may take long: beside anything else that wants a CPU it gets about a quarter of one.
BACKGROUND = f"import os; os.nice(5); {PROGRAM}"


class DecoderProcess:
    """A child process that decodes one video at a time; one that dies or hangs is replaced at once.

    May be used from several threads, which wait for each other; a stream of windows keeps the process until it has
    ended or is closed. Times are counted from when the process begins with a video.

    It raises `VideoError` for what is wrong with a file, also that it crashes or hangs its decoder or needs too much
    memory, with the traceback as a note where nobody foresaw it; `VideoTooLargeError` for what is beyond the limits;
    `DecoderStartError` where the process cannot be started, `DecoderClosedError` once it has been closed; and
    `ConfigError` where the options do not fit.

    Args:
        limits: What a video and its decoding may take; by default what commands grant.
        program: The process's Python code; tests put other decoders into it.
        idle: Whether the process starts no sooner than the first video comes.
        resizer: Whose kernel resizes.
        decoder: What requests will name, to be loaded before the first.
    """

    def __init__(
        self,
        limits: DecodeLimits | None = None,
        program: str = PROGRAM,
        *,
        idle: bool = False,
        resizer: Resizer = "pil",
        decoder: Decoder = "auto",
    ) -> None:
        self._orders = Orders(limits or DecodeLimits(), resizer, decoder)
        self._program = program
        self._turn = threading.Lock()  # who talks with the child
        self._guard = threading.Lock()  # of the two below
        self._closed = False
        self._child: _Child | None = None if idle else _Child(self._orders, program)

    def __enter__(self) -> DecoderProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pid(self) -> int | None:
        """The child's process id; None while there is none."""
        child = self._child
        return child.process.pid if child is not None else None

    def start(self) -> None:
        """Waits until the child has started, which it begins to do by itself when this object is made.

        Raises:
            DecoderStartError: It cannot.
        """
        with self._turn:
            self._started_child()

    def decode(
        self, source: np.ndarray | str | os.PathLike[str], request: DecodeRequest, timeout: float
    ) -> DecodedViews:
        """Decodes and resizes the frames that a video's views need, as `zar_ray.video.decoding.decode_video` does.

        Args:
            source: The file's bytes, uint8 (n,), or where it lies.
            request: What is wanted of it.
            timeout: Seconds it may take.

        Raises:
            VideoError: See the class.
        """
        (decoded,) = self.decode_windows(source, request, None, timeout)
        return decoded

    def decode_windows(
        self,
        source: np.ndarray | str | os.PathLike[str],
        request: DecodeRequest,
        windows: WindowCut | None,
        timeout: float,
    ) -> Generator[DecodedViews]:
        """Decodes a video window by window, each as soon as its last frame is there; reads the file once.

        At most two windows are decoded ahead of the one that was taken last. Each window is planned as a video of its
        frames would be whose name is ``<name>#<number>``.

        Args:
            source: The file's bytes, uint8 (n,), or where it lies.
            request: What is wanted of each window.
            windows: How it is cut, where the last ones may be shorter; None for the whole video as the only one.
            timeout: Seconds that each window may take, the first with opening the file.

        Yields:
            The windows in order. Close the generator to stop early.

        Raises:
            VideoError: See the class; also after some windows, where the file turns out to be broken there.
        """
        with self._turn, _shared(source) as path:
            child = self._child_with(DecodeJob(request, timeout, path, windows))
            in_order = False
            try:
                while True:
                    message = child.receive(timeout + _GRACE_SECONDS)
                    if isinstance(message, Finished):
                        in_order = not message.retire
                        break
                    plan = message.plan
                    shape = (len(plan.frames), plan.height, plan.width, 3)
                    frames = _mapped(child.receive_descriptor(), shape)
                    child.tell(Signal.TAKEN)
                    yield replace(message, frames=frames)
            except GeneratorExit:
                in_order = child.stop()
                raise
            except TimeoutError:
                raise VideoError(f"took longer than {timeout:g} s to decode") from None
            except (EOFError, OSError):
                raise self._failure(VideoError(f"its decoder {child.death()}")) from None
            finally:
                if not in_order:
                    self._replace(child)
        if message.error is not None:
            if message.unforeseen is not None:
                message.error.add_note(message.unforeseen)
            raise message.error

    def close(self) -> None:
        """Ends the child; whoever waits for it gets a `DecoderClosedError`."""
        with self._guard:
            self._closed = True
            child = self._child
        if child is None:
            return
        child.kill()
        # whoever has the turn meets the end of the connection, and closes it
        if self._turn.acquire(blocking=False):
            try:
                self._replace(child)
            finally:
                self._turn.release()

    def _child_with(self, job: DecodeJob) -> _Child:
        """A child that has begun with a job; the turn is the caller's."""
        for _ in range(_ATTEMPTS):
            child = self._started_child()
            try:
                child.tell(job)
                child.receive(_BEGIN_SECONDS)
            except (EOFError, OSError):
                # ended since the video before, which neither of them can be blamed for
                self._replace(child)
            else:
                return child
        raise self._failure(DecoderStartError("the process that decodes videos keeps ending", "worker"))

    def _started_child(self) -> _Child:
        """A child that waits for a job; the turn is the caller's."""
        if self._child is None:
            self._replace(None)
        child = self._child
        if child is None or self._closed:
            raise self._failure(DecoderStartError("the process that decodes videos cannot be started", "worker"))
        try:
            child.wait_for_start()
        except (EOFError, OSError) as error:
            reason = str(error) if isinstance(error, TimeoutError) else f"it {child.death()}"
            self._replace(child)
            text = f"the process that decodes videos does not start: {reason}"
            raise self._failure(DecoderStartError(text, "worker")) from None
        return child

    def _replace(self, child: _Child | None) -> None:
        """Ends a child and starts another one, which becomes ready by itself; the turn is the caller's."""
        if child is not None:
            child.end()
        with self._guard:
            self._child = None
            if not self._closed:
                # the next video tries again
                with contextlib.suppress(OSError):
                    self._child = _Child(self._orders, self._program)

    def _failure(self, error: VideoError) -> VideoError:
        """What a process without an answer means; once it has been closed, that is why there is none."""
        if self._closed:
            return DecoderClosedError("the process that decodes videos has been closed; try again", "worker")
        return error


class _Child:
    """One process, and this side of the connection to it."""

    def __init__(self, orders: Orders, program: str) -> None:
        ours, theirs = socket.socketpair()
        ear, self._lifeline = os.pipe()
        try:
            environment = {
                **os.environ,
                "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
                "OMP_NUM_THREADS": "1",
                # else each thread of a decoder reserves address space of its own, which counts as used memory
                "MALLOC_ARENA_MAX": "1",
            }
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-c", program, str(theirs.fileno()), str(ear)],
                pass_fds=(theirs.fileno(), ear),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env=environment,
            )
        except BaseException:
            os.close(self._lifeline)
            ours.close()
            raise
        finally:
            theirs.close()
            os.close(ear)
        self._connection = Connection(ours.detach())
        self._start_until = time.monotonic() + _START_SECONDS
        self.started = False
        self._ended = False
        self.tell(orders)

    def wait_for_start(self) -> None:
        if not self.started:
            self.receive(self._start_until - time.monotonic())
            self.started = True

    def tell(self, message: object) -> None:
        """Says something to a process that may have ended, which is found out when it does not answer."""
        with contextlib.suppress(OSError):
            self._connection.send(message)

    def receive(self, seconds: float) -> Any:
        """The next message.

        Raises:
            TimeoutError: There is none in time.
            EOFError: The process has ended.
        """
        if not self._connection.poll(max(seconds, 0.0)):
            raise TimeoutError("it does not answer")
        return self._connection.recv()

    def receive_descriptor(self) -> int:
        """The descriptor that follows a message."""
        return reduction.recv_handle(self._connection)

    def stop(self) -> bool:
        """Ends the present job early; whether the process waits for the next one then."""
        until = time.monotonic() + _STOP_SECONDS
        try:
            self.tell(Signal.STOP)
            while not isinstance(message := self.receive(until - time.monotonic()), Finished):
                os.close(self.receive_descriptor())
        except (EOFError, OSError):
            return False
        return not message.retire

    def death(self) -> str:
        """How the process, which has hung up, ended."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(5.0)
        code = self.process.returncode
        if code is None:
            return "stopped answering"
        if code >= 0:
            return f"ended with exit code {code}"
        # a failed allocation in C++ aborts; the kernel kills
        memory = " (out of memory?)" if -code in (signal.SIGKILL, signal.SIGABRT) else ""
        return f"was killed by {signal.Signals(-code).name}{memory}"

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def end(self) -> None:
        """Ends the process and closes the connection."""
        if not self._ended:
            self._ended = True
            self.kill()
            self._connection.close()
            os.close(self._lifeline)


@contextmanager
def _shared(source: np.ndarray | str | os.PathLike[str]) -> Iterator[str]:
    """Where another process finds a file.

    Bytes go into a file without a name, which is gone however this process ends; where the system shows no descriptors,
    into one that has a name.
    """
    if not isinstance(source, np.ndarray):
        yield os.path.abspath(source)  # noqa: PTH100  not resolved: a link's name may carry the suffix
        return
    with contextlib.ExitStack() as stack:
        try:
            shown = Path("/proc/self/fd").is_dir()
            make = tempfile.TemporaryFile if shown else tempfile.NamedTemporaryFile
            file = stack.enter_context(make())
            file.write(np.ascontiguousarray(source).data)
            file.flush()
        except OSError as error:
            raise DecoderStartError(f"the video cannot be stored: {reason_of(error)}", "worker") from error
        yield f"/proc/{os.getpid()}/fd/{file.fileno()}" if shown else file.name


def _mapped(descriptor: int, shape: tuple[int, ...]) -> np.ndarray:
    """The array that lies in a file, without a copy; closes the descriptor."""
    try:
        # private: PyTorch warns of memory that it may not write to
        pages = mmap.mmap(descriptor, prod(shape), access=mmap.ACCESS_COPY)
    except OSError as error:
        raise DecoderStartError(f"the frames cannot be mapped: {reason_of(error)}", "worker") from error
    finally:
        os.close(descriptor)
    return np.frombuffer(pages, dtype=np.uint8).reshape(shape)
