"""The child side of `zar_ray.video.sandbox`: what the process is told, what it answers and what it may use.

It decodes one video at a time, whole or window by window. Every answer's frames lie in an anonymous file whose
descriptor follows the answer, so that pixels never pass through the pipe.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import sys
import tempfile
import time
import traceback
from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import Enum
from multiprocessing import reduction
from multiprocessing.connection import Connection

import numpy as np

from zar_ray.errors import ConfigError, VideoError
from zar_ray.video.decoding import decode_video
from zar_ray.video.limits import DecodeLimits, address_space, confine, lacks_memory
from zar_ray.video.options import Decoder, Resizer, ViewConfig
from zar_ray.video.plans import ViewPlan, plan_video
from zar_ray.video.reading import VideoInfo, open_video, require_decoder
from zar_ray.video.streams import Deadline
from zar_ray.video.transforms import Preprocessing, as_pillow, resize_frame
from zar_ray.video.windows import WindowCut, WindowSchedule, WindowSpan, cut_windows

_AHEAD = 2  # windows that lie finished before one of them is taken
_LATER = np.empty(0, np.uint8)  # frames whose file follows


@dataclass(frozen=True)
class Orders:
    """What a process is told when it starts.

    Attributes:
        limits: What a video and its decoding may take.
        resizer: Whose kernel resizes all its videos' frames.
        decoder: What is to be loaded before the first; a request names its own.
    """

    limits: DecodeLimits
    resizer: Resizer
    decoder: Decoder


@dataclass(frozen=True)
class DecodeRequest:
    """What is wanted of a video.

    Attributes:
        name: The video's name; with the seed it keys the view plan.
        views: The options of its views.
        seed: Their seed.
        preprocessing: The model's input size and resize.
        needs_views: Whether the method looks at other views than the evaluation view.
        decoder: What is to read it.
        expected: What the video must be, where that is known; looked at for whole videos.
    """

    name: str
    views: ViewConfig
    seed: int
    preprocessing: Preprocessing
    needs_views: bool
    decoder: Decoder = "auto"
    expected: VideoInfo | None = None

    def plan(self, info: VideoInfo) -> ViewPlan:
        """The views of a whole video."""
        return plan_video(self.name, info, self.views, self.preprocessing, self.seed, needs_views=self.needs_views)

    def plan_window(self, info: VideoInfo, span: WindowSpan) -> ViewPlan:
        """The views of one window, as those of a video of its frames that is called ``<name>#<number>``."""
        alone = replace(info, frames=span.frames, duration=span.frames / info.fps)
        return replace(self, name=f"{self.name}#{span.number}").plan(alone)


@dataclass(frozen=True, eq=False)
class DecodedViews:
    """A decoded video, or one window of it, with the plan that its frames are for.

    Attributes:
        frames: uint8 (F, h, w, 3), contiguous, resized, in the plan's order.
        plan: Its views; frame indices of a window count from the window's first frame.
        info: What is known of the whole video, and the decoder that gave these pixels.
        warning: What is wrong with the video although it could be read, as far as that is known by now; with the last
            window all is.
        seconds: Time that opening, decoding and resizing took; of a window since the window before.
        span: Where the window lies; None for a whole video.
    """

    frames: np.ndarray
    plan: ViewPlan
    info: VideoInfo
    warning: str | None
    seconds: float
    span: WindowSpan | None = None

    @property
    def first_frame(self) -> int:
        """The frame of the video that the plan's frame 0 is."""
        return self.span.start_frame if self.span is not None else 0


@dataclass(frozen=True)
class DecodeJob:
    """A video to decode.

    Attributes:
        request: What is wanted of it.
        timeout: Seconds it may take, or each of its windows.
        path: The file.
        windows: How to cut it; None for the whole video.
    """

    request: DecodeRequest
    timeout: float
    path: str
    windows: WindowCut | None = None


class Signal(Enum):
    """What the two sides say to each other besides."""

    READY = "from the process: it has started"
    BEGUN = "from the process: it has the job, and whatever ends it from now on is that job's fault"
    TAKEN = "to the process: one answer has been received"
    STOP = "to the process: no further answers of this job are wanted"


@dataclass(frozen=True)
class Finished:
    """From the process: the job is over. Before it come `DecodedViews` without frames, whose file follows each.

    Attributes:
        error: Why it did not end well.
        unforeseen: The traceback, where nobody foresaw that error.
        retire: Whether the process should be replaced, because its memory is not what it was.
    """

    error: VideoError | ConfigError | None
    unforeseen: str | None
    retire: bool


def main() -> None:
    """The process; its arguments are the descriptors of the connection and of the lifeline."""
    control, lifeline = (int(argument) for argument in sys.argv[1:])
    _end_with_parent(lifeline)
    with Connection(control) as connection:
        worker = _Worker(connection, connection.recv())
        # Decoding libraries write to the terminal by themselves; what is wrong with a file goes back as its answer.
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 2)
        os.close(quiet)
        connection.send(Signal.READY)
        worker.serve()


class _StoppedError(Exception):
    """The parent wants no further windows."""


class _WindowDeadline(Deadline):
    """The time of one window at a time; and, as it is looked at before every frame, where the parent is listened to."""

    def __init__(self, seconds: float, connection: Connection) -> None:
        super().__init__(seconds)
        self._connection = connection
        self._untaken = 0

    def check(self) -> None:
        super().check()
        while self._connection.poll():
            self._hear()

    def delivered(self) -> None:
        """Waits until the parent has taken enough; the next window's time begins."""
        self._untaken += 1
        while self._untaken >= _AHEAD:
            self._hear()
        super().__init__(self.seconds)

    def _hear(self) -> None:
        if self._connection.recv() is Signal.STOP:
            raise _StoppedError
        self._untaken -= 1


class _Worker:
    """Does one job after another until the parent hangs up."""

    def __init__(self, connection: Connection, orders: Orders) -> None:
        self._connection = connection
        self._limits = orders.limits
        self._resizer: Resizer = orders.resizer
        if self._resizer == "torch":
            # now, so that neither a video's time nor its memory pays for it
            import zar_ray.video.torch_resize  # noqa: F401
        as_pillow.never_compile()  # which takes memory that its limit is not for
        with contextlib.suppress(ConfigError):  # the first video's answer says so
            require_decoder(orders.decoder)
        self._at_start = address_space()
        confine(self._limits.memory)

    def serve(self) -> None:
        with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
            while True:
                # what the parent says of a job that is over by then is no job
                job = self._connection.recv()
                if isinstance(job, DecodeJob):
                    self._connection.send(Signal.BEGUN)
                    self._connection.send(self._finish(job))

    def _finish(self, job: DecodeJob) -> Finished:
        """Does a job; nothing that goes wrong with a video ends the process."""
        error, unforeseen, out_of_memory = None, None, False
        try:
            if job.windows is None:
                self._decode_whole(job.request, job.path, job.timeout)
            else:
                self._decode_windows(job.request, job.path, job.timeout, job.windows)
        except _StoppedError:
            pass
        except Exception as caught:  # noqa: BLE001  whatever a decoder throws is this file's error
            out_of_memory = lacks_memory(caught)
            error = self._error_of(caught, job.path, job.request.name)
            if not out_of_memory and not isinstance(caught, (VideoError, ConfigError)):
                unforeseen = traceback.format_exc()
        # after the handler, so that nothing of the attempt is held any more
        grown = address_space() - self._at_start > self._limits.memory // 2
        return Finished(error, unforeseen, retire=out_of_memory or grown)

    def _decode_whole(self, request: DecodeRequest, path: str, timeout: float) -> None:
        decoded = decode_video(
            path,
            request.plan,
            request.preprocessing.scaling,
            decoder=request.decoder,
            expected=request.expected,
            timeout=timeout,
            limits=self._limits,
            resizer=self._resizer,
        )
        plan = request.plan(decoded.info)
        answer = DecodedViews(_LATER, plan, decoded.info, decoded.warning, decoded.seconds)
        self._send(answer, (decoded.frames,))

    def _decode_windows(self, request: DecodeRequest, path: str, timeout: float, windows: WindowCut) -> None:
        started = time.monotonic()
        deadline = _WindowDeadline(timeout, self._connection)
        with open_video(path, request.decoder, deadline, self._limits) as reader:
            info = reader.info
            self._limits.check_duration(info.duration)
            spans = cut_windows(info.frames, info.fps, windows, self._limits.windows)
            plans = [request.plan_window(info, span) for span in spans]
            schedule = WindowSchedule(spans, plans)
            self._limits.check_frames(schedule.most_held, plans[0].width, plans[0].height)
            held: dict[int, np.ndarray] = {}
            pictures = reader.read(schedule.frames, deadline)
            due = 0
            for row, picture in enumerate(pictures):
                way = request.preprocessing.scaling
                held[row] = resize_frame(picture, plans[0].short_side, way, self._resizer)
                if row == len(schedule.frames) - 1:
                    # a reader says what was wrong once it has ended, in time for the last window
                    next(pictures, None)
                while due < len(spans) and schedule.complete[due] == row:
                    rows, plan = schedule.rows[due], plans[due]
                    seconds = time.monotonic() - started
                    answer = DecodedViews(_LATER, plan, info, reader.warning, seconds, spans[due])
                    self._send(answer, (held[one] for one in rows.tolist()))
                    held = {one: frame for one, frame in held.items() if schedule.last_use[one] > due}
                    deadline.delivered()
                    started = time.monotonic()
                    due += 1

    def _send(self, answer: DecodedViews, frames: Iterable[np.ndarray]) -> None:
        in_memory = hasattr(os, "memfd_create")
        with os.fdopen(os.memfd_create("frames"), "wb") if in_memory else tempfile.TemporaryFile() as file:
            for part in frames:
                file.write(np.ascontiguousarray(part).data)
            file.flush()
            self._connection.send(answer)
            reduction.send_handle(self._connection, file.fileno(), os.getppid())

    def _error_of(self, error: Exception, path: str, name: str) -> VideoError | ConfigError:
        if lacks_memory(error):
            return VideoError(f"decoding it takes more memory than the limit of {self._limits.memory} bytes")
        text = str(error) if isinstance(error, (VideoError, ConfigError)) else f"{type(error).__name__}: {error}"
        # where the file lies is the server's affair
        for secret in (path, os.path.realpath(path)):
            text = text.replace(secret, name)
        text = " ".join(text.split())
        if isinstance(error, VideoError):
            return type(error)(text, error.stage)
        return ConfigError(text) if isinstance(error, ConfigError) else VideoError(text)


def _end_with_parent(lifeline: int) -> None:
    """Has the system end this process as soon as nobody holds the other end of a pipe.

    Also while a decoder hangs, which Python code would not notice. Linux's own PR_SET_PDEATHSIG would not do: it looks
    at the thread that started the process, and service's threads come and go.

    Args:
        lifeline: The pipe's read end; nothing is ever written to it.
    """
    fcntl.fcntl(lifeline, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC)  # SIGIO, which kills
    if select.select([lifeline], [], [], 0)[0]:
        sys.exit(1)
