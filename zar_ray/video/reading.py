"""Reading videos: frames of a file, upright RGB, by their index in presentation order, by one of several decoders.

PyAV reads all that FFmpeg knows, and in the least time, as it converts the frames alone that are asked for. decord is
there where it is named, and so is torchcodec, an optional package (`zar_ray.video.torchcodec_reader`); they refuse what
they would not read exactly. All give the same frames under the same indices, and the one that gave them is recorded.

All decode from the first frame on and never seek. Seeking was measured to miss: decord gives UCF101's XviD files a
wrong last frame. It would also save little: a view plan spreads its frames over the whole video, and a key frame
comes every few seconds only.
"""

from __future__ import annotations

import importlib.util
import os
import re
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Container, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from typing import Any

import av
import av.error
import numpy as np
from av.video.reformatter import VideoReformatter

from zar_ray.errors import ConfigError, VideoError
from zar_ray.terminal import native_stderr_silenced
from zar_ray.video.inspection import Inspection, VideoInfo, inspect_video
from zar_ray.video.limits import DecodeLimits
from zar_ray.video.options import Decoder
from zar_ray.video.streams import Deadline, decode_all, reason_of

# Containers with an index. In others (MPEG-TS) decord's rewind after counting misses the first frames, which shifts
# all indices.
_DECORD_CONTAINERS = {"mov", "matroska", "avi"}
# Codecs whose decoder leaves out the frames, and those alone, from which no other is predicted. With HEVC a layer above
# may still want them, and VP9's carry statistics on.
_LEAVING_OUT = {"h264"}
_BY_TORCHCODEC = ("torchcodec", "torchcodec-nvdec")


class DecordError(VideoError):
    """decord gave up on a file, which PyAV may still read."""


class VideoReader(ABC):
    """One open video.

    Attributes:
        info: What is known of it.
    """

    def __init__(self, inspection: Inspection) -> None:
        self.info = inspection.info
        self._inspection = inspection
        self._notes: list[str] = []
        self._running: Generator[np.ndarray] | None = None

    @property
    def warning(self) -> str | None:
        """What is wrong with the video although it could be read; complete once reading has ended."""
        notes = [self._inspection.warning, *self._notes]
        return "; ".join(note for note in notes if note) or None

    def read(self, indices: Sequence[int] | np.ndarray, deadline: Deadline | None = None) -> Iterator[np.ndarray]:
        """Gives the named frames, one at a time.

        Args:
            indices: Ascending distinct frame indices, below `info.frames`.
            deadline: When to give up; looked at before every frame that is decoded.

        Yields:
            uint8 (H, W, 3), RGB, upright.

        Raises:
            VideoError: A frame cannot be decoded, or the deadline has passed (stage ``decode``).
            ValueError: The indices are not ascending, or lie outside the video.
        """
        wanted = [int(index) for index in indices]
        if any(a >= b for a, b in pairwise(wanted)):
            raise ValueError("frame indices must ascend")
        if wanted and not 0 <= wanted[0] <= wanted[-1] < self.info.frames:
            raise ValueError(f"frames {wanted[0]} to {wanted[-1]} of a video of {self.info.frames}")
        if not wanted:
            return iter(())
        VideoReader.close(self)
        self._running = self._read(wanted, deadline or Deadline())
        return self._running

    def close(self) -> None:
        """Lets go of the file and of everything decoded; reading that has not ended is over."""
        if self._running is not None:
            self._running.close()
            self._running = None

    @abstractmethod
    def _read(self, wanted: list[int], deadline: Deadline) -> Generator[np.ndarray]:
        """Gives the frames `wanted`, which are checked and not empty; keeps nothing open once it has ended."""


def probe_video(path: str | os.PathLike[str], decoder: Decoder = "auto") -> VideoInfo:
    """What a manifest records of a file; decodes its first frame only. Raises what `open_video` does."""
    with open_video(path, decoder) as reader:
        return reader.info


@contextmanager
def open_video(
    path: str | os.PathLike[str],
    decoder: Decoder = "auto",
    deadline: Deadline | None = None,
    limits: DecodeLimits | None = None,
) -> Iterator[VideoReader]:
    """Opens a video for reading and closes it however the block ends; ``auto`` is PyAV.

    Opening looks at all of a file's packets; the deadline says when to give up.

    Raises:
        VideoError: The file is no video that can be read, or is beyond the limits (stage ``open``).
        ConfigError: The decoder is not installed, or cannot be loaded.
    """
    require_decoder(decoder)
    inspection = inspect_video(path, deadline, limits)
    if decoder in _BY_TORCHCODEC:
        from zar_ray.video.torchcodec_reader import TorchcodecReader

        reader = TorchcodecReader(inspection, decoder)
    else:
        reader = DecordReader(inspection) if decoder == "decord" else PyavReader(inspection)
    try:
        yield reader
    finally:
        reader.close()


def require_decoder(decoder: Decoder) -> None:
    """Loads what a decoder needs besides PyAV: before memory is limited, and before the first video's time runs.

    Raises:
        ConfigError: It is not installed, or cannot be loaded.
    """
    if decoder == "decord" and not has_decord():
        raise ConfigError("decord is not installed here; use --decoder auto or --decoder pyav")
    if decoder in _BY_TORCHCODEC:
        from zar_ray.video.torchcodec_reader import load_torchcodec

        load_torchcodec()


def has_decord() -> bool:
    """Whether decord is installed; there are wheels for Linux on x86-64 only."""
    return importlib.util.find_spec("decord") is not None


class PyavReader(VideoReader):
    """Reads with PyAV, which opens all that FFmpeg knows and holds one frame at a time.

    Frames are placed by the packets that they were in, so that one the decoder does not give leaves the others in
    place. Where the file says that a frame repeats the one before, it does. Of others up to a tenth of the video may be
    missing, as in files whose end is cut off: the frame before stands in (at the start, the first one), and the warning
    says so. Data that the decoder refuses before the last tenth are an error: they spoil what follows. All frames are
    given in the size of the first; where it changes on the way, the warning says so.
    """

    def __init__(self, inspection: Inspection) -> None:
        super().__init__(inspection)
        # one for all frames: it keeps the tables of the conversion
        self._reformatter = VideoReformatter()

    def _read(self, wanted: list[int], deadline: Deadline) -> Generator[np.ndarray]:
        count = self.info.frames
        substitutes: list[int] = []
        damaged: list[int] = []
        resized: tuple[int, int, int] | None = None
        last: av.VideoFrame | None = None
        remaining = iter(wanted)
        next_wanted = next(remaining, None)
        try:
            for index, frame in self._enough(wanted, deadline):
                while next_wanted is not None and next_wanted < index:
                    substitutes.append(next_wanted)
                    yield self._picture(last or frame)
                    next_wanted = next(remaining, None)
                last = frame
                if resized is None and (frame.width, frame.height) != self._stored_size:
                    resized = index, frame.width, frame.height
                if next_wanted == index:
                    if frame.is_corrupt:
                        damaged.append(index)
                    yield self._picture(frame)
                    next_wanted = next(remaining, None)
                if next_wanted is None:
                    return
            while next_wanted is not None and last is not None:
                substitutes.append(next_wanted)
                yield self._picture(last)
                next_wanted = next(remaining, None)
        finally:
            if substitutes:
                self._notes.append(
                    f"frames that cannot be decoded: {len(substitutes)} of the {len(wanted)} read, from frame "
                    f"{substitutes[0]} of {count} on; their neighbours stand in"
                )
            if damaged:
                self._notes.append(
                    f"damaged frames: {len(damaged)} of the {len(wanted)} read, from frame {damaged[0]} of {count} on"
                )
            if resized:
                index, width, height = resized
                self._notes.append(
                    f"the picture's size changes: from frame {index} of {count} on {width}×{height} pixels are stored; "
                    "all frames are brought to the size of the first"
                )

    @property
    def _spare(self) -> int:
        """Frames that may be missing: a tenth, but of a video of several at least one."""
        count = self.info.frames
        return max(count // 10, 1 if count > 1 else 0)

    def _enough(self, wanted: list[int], deadline: Deadline) -> Iterator[tuple[int, av.VideoFrame]]:
        """The wanted frames and most others, with their indices; all that are there, where a wanted one is missing.

        Raises:
            VideoError: More are missing than may be.
        """
        shown, pending, last = self._inspection.shown, deque(wanted), -1
        if self._inspection.codec in _LEAVING_OUT and len(shown.positions) == shown.packets:
            asked_for = set(wanted)
            needless = {number for number, index in shown.positions.items() if index not in asked_for}
            for index, frame in self._placed(deadline, needless):
                if pending[0] < index:
                    break  # the file is damaged: how much of it counts
                if pending[0] == index:
                    pending.popleft()
                last = index
                yield index, frame
                if not pending:
                    return
        before, missing = -1, 0
        for index, frame in self._placed(deadline):
            missing += index - before - 1
            if missing > self._spare:
                raise VideoError(f"{missing} of the first {index} frames cannot be decoded")
            before = index
            if index > last:
                yield index, frame
        missing += shown.frames - before - 1
        if before < 0 or missing > self._spare:
            raise VideoError(f"{missing} of {shown.frames} frames cannot be decoded")

    def _placed(self, deadline: Deadline, needless: Container[int] = ()) -> Iterator[tuple[int, av.VideoFrame]]:
        """Every frame that the decoder gives or that repeats one, with its index."""
        shown, last, frame = self._inspection.shown, -1, None
        for number, found in decode_all(self._inspection.path, deadline, needless):
            if isinstance(found, av.error.FFmpegError):
                if needless:
                    return  # what stands in for damage depends on frames that were left out
                near = number * shown.frames // shown.packets
                if near < shown.frames - self._spare:
                    raise VideoError(f"decoding fails near frame {near} of {shown.frames}: {reason_of(found)}")
                continue
            for following in found:
                # by its packet's number, or else the one after the last
                index = max(shown.positions.get(following.pts or 0, -1), last + 1)
                yield from self._repeated(frame, last + 1, index)
                last, frame = index, following
                yield last, frame
        yield from self._repeated(frame, last + 1, shown.frames)

    def _repeated(self, frame: av.VideoFrame | None, start: int, end: int) -> Iterator[tuple[int, av.VideoFrame]]:
        repeats = self._inspection.shown.repeats
        return ((index, frame) for index in range(start, end) if frame is not None and index in repeats)

    @property
    def _stored_size(self) -> tuple[int, int]:
        """Width and height of the first picture as it is stored, which may lie on its side."""
        width, height = self.info.width, self.info.height
        return (height, width) if self._inspection.quarter_turns % 2 else (width, height)

    def _picture(self, frame: av.VideoFrame) -> np.ndarray:
        turns, (width, height) = self._inspection.quarter_turns, self._stored_size
        pixels = self._reformatter.reformat(frame, width, height, "rgb24").to_ndarray()
        return np.rot90(pixels, turns) if turns else pixels


class DecordReader(VideoReader):
    """Reads with decord, on one thread.

    decord decodes ahead without a limit, so it is for videos whose frames fit into memory, and its reader is deleted
    as soon as reading ends. Where it would repeat a frame for one that it cannot decode, it raises instead; it reads
    to the end of the file whatever is wanted, because a frame missing on the way shows only there.

    Raises:
        DecordError: decord cannot open the file or would not read it exactly (stage ``open``).
    """

    def __init__(self, inspection: Inspection) -> None:
        super().__init__(inspection)
        self.info = replace(inspection.info, decoder="decord")
        self._reader = None
        if inspection.container not in _DECORD_CONTAINERS:
            raise DecordError(f"decord loses frames of {inspection.container} files; PyAV reads them", stage="open")
        if inspection.shown.repeats:
            raise DecordError("decord leaves out frames that repeat the one before; PyAV reads them", stage="open")
        reader = self._open()
        if len(reader) != self.info.frames:
            raise DecordError(f"decord counts {len(reader)} frames, {self.info.frames} are shown", stage="open")
        # kept for the first read: a reader that has not begun does not decode ahead
        self._reader = reader

    def close(self) -> None:
        """Deletes decord's reader and all that it has decoded."""
        super().close()
        self._reader = None

    def _open(self):
        decord = _import_decord()
        # the smallest tolerance there is: an error at the first frame that would be a repeated one
        tolerance: Any = 1e-9
        try:
            with native_stderr_silenced():  # it also writes what it raises
                return decord.VideoReader(self._inspection.path, ctx=decord.cpu(0), num_threads=1, fault_tol=tolerance)
        except (decord.DECORDError, RuntimeError, AssertionError, UnicodeEncodeError) as error:
            raise DecordError(f"decord cannot open it: {_decord_reason(error)}", stage="open") from error

    def _read(self, wanted: list[int], deadline: Deadline) -> Generator[np.ndarray]:
        decord = _import_decord()
        reader, self._reader = self._reader or self._open(), None
        wanted_set, reason = set(wanted), None
        try:
            # To the end: decord says only there that it has given fewer frames than it counted, and then those before
            # had the wrong indices.
            for index in range(self.info.frames):
                deadline.check()
                frame = reader.next()
                if index in wanted_set:
                    yield self._picture(frame)
        except (decord.DECORDError, decord.DECORDLimitReachedError, StopIteration) as error:
            reason = _decord_reason(error)
        finally:
            del reader
        if reason is not None:
            # Raised here, because the traceback of decord's own error would keep the reader. Which frame it was is
            # not known: decord decodes ahead, and raises whatever its thread has met by now.
            raise DecordError(f"decord gives up on it: {reason}")

    def _picture(self, frame) -> np.ndarray:
        pixels = frame.asnumpy()
        # where a padded row is a multiple of the width, decord takes the padding for channels
        if pixels.ndim == 3 and pixels.shape[2] > 3:
            height, width, _ = pixels.shape
            pixels = pixels.reshape(height, -1)[:, : 3 * width].reshape(height, width, 3)
        if pixels.shape != (self.info.height, self.info.width, 3):
            raise DecordError(
                f"decord gives frames of {pixels.shape[1]}×{pixels.shape[0]} for a video of "
                f"{self.info.width}×{self.info.height}"
            )
        return pixels


def _import_decord() -> Any:
    """decord, silenced: what is wrong is raised, and its FFmpeg must not write to the terminal."""
    try:
        import decord
    except (ImportError, OSError, RuntimeError) as error:
        raise DecordError(f"decord does not load here: {reason_of(error)}", stage="open") from error
    decord.logging.set_level(decord.logging.QUIET)
    return decord


def _decord_reason(error: BaseException) -> str:
    """The end of decord's chain of "[time] file:line: message", without those."""
    if isinstance(error, StopIteration):
        return "the stream ends"
    if "duplicate frames" in str(error):
        return "the decoder gives fewer frames than the file holds"
    text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    # "[time] file:line: Check failed: a >= b (1 vs. 2) Thread worker: what it means"
    text = re.sub(r"\[\d\d:\d\d:\d\d\] \S+:\d+: |Thread worker: ", "", text)
    return " ".join(re.sub(r"^Check failed: .* vs\. \S+\) ", "", text).split())
