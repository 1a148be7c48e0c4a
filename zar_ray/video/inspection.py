"""What a container says of its video, found with PyAV: whatever decodes the frames, they are counted here.

Every packet is looked at, because a header's frame count may be absent or wrong; only the first frame is decoded.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import av
import av.error
import av.logging
from av.container import InputContainer
from av.video.stream import VideoStream

from zar_ray.errors import VideoError
from zar_ray.untrusted import stand_in
from zar_ray.video.limits import DecodeLimits

# Formats that hold a video themselves. FFmpeg also reads playlists (HLS, DASH, ffconcat), session descriptions (SDP),
# numbered pictures and drawings: files that name others, or hosts, which would then be read on behalf of whoever sent
# the file. The last few hold sound, and are told so.
_FORMATS = (
    "3gp,apng,asf,av1,avi,cavsvideo,dirac,dnxhd,dv,flv,gif,gxf,h261,h263,h264,hevc,ivf,m4v,matroska,mjpeg,mov,mpeg,"
    "mpegts,mpegvideo,mxf,nsv,nut,nuv,obu,ogg,rm,swf,vc1,vc1test,vvc,wtv,yuv4mpegpipe,aac,aiff,amr,flac,mp3,wav"
)
_OPEN_OPTIONS = {"protocol_whitelist": "file", "format_whitelist": _FORMATS}
# How files of the formats begin that decord may be given, which takes no whitelist: offset and the possible bytes.
_BEGINNINGS = {
    "avi": (0, {b"RIFF"}),
    "matroska": (0, {b"\x1a\x45\xdf\xa3"}),
    "mov": (4, {b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot", b"styp", b"uuid", b"jP  "}),
}


class Deadline:
    """How long one video may take; without `seconds`, as long as it needs."""

    def __init__(self, seconds: float | None = None) -> None:
        self.seconds = seconds
        self._end = None if seconds is None else time.monotonic() + seconds

    def check(self) -> None:
        """Raises a `VideoError` (stage ``decode``) once the time is over."""
        if self._end is not None and time.monotonic() >= self._end:
            raise VideoError(f"took longer than {self.seconds:g} s to decode")


@dataclass(frozen=True)
class VideoInfo:
    """What is known of a video once it is open.

    Attributes:
        frames: N, its frames.
        fps: Average frames a second; 0 if the container does not say.
        width: Width as displayed, after rotation, in pixels.
        height: Height as displayed.
        duration: Seconds.
        decoder: What reads it, ``decord`` or ``pyav``.
    """

    frames: int
    fps: float
    width: int
    height: int
    duration: float
    decoder: str


@dataclass(frozen=True)
class Inspection:
    """A video file as PyAV sees it, before its frames are decoded.

    Attributes:
        path: The file, absolute.
        container: Its format, by FFmpeg's name, such as ``mov`` or ``matroska``; ``odd mov`` for a file that does not
            begin as such files do, which other readers may take for something else.
        info: What is known of the video; its frames are those that a decoder should give, the packets that are shown.
        announced: Frames that the header promises, as far as it is to be believed.
        cut_off: Whether the demuxer met the end of the file too early.
        positions: Presentation time of each frame, in the stream's ticks, to its index; empty where the container
            has no reliable ones and frames are counted as they come.
        quarter_turns: Counter-clockwise quarter turns that make a decoded frame upright.
    """

    path: str
    container: str
    info: VideoInfo
    announced: int | None
    cut_off: bool
    positions: dict[int, int]
    quarter_turns: int

    @property
    def warning(self) -> str | None:
        """What is wrong with the file as a whole, if it can be read all the same."""
        frames = self.info.frames
        if self.announced is not None and frames < self.announced:
            return f"the file ends early: {frames} of {self.announced} frames are there"
        return f"the file ends early, after {frames} frames" if self.cut_off else None


def inspect_video(
    path: str | os.PathLike[str], deadline: Deadline | None = None, limits: DecodeLimits | None = None
) -> Inspection:
    """Opens a file, counts its frames and decodes the first.

    Raises:
        VideoError: The file is not there, or is no video that can be decoded (stage ``open``).
        VideoTooLargeError: Its sides are too long; what the container says is looked at before a frame is decoded.
    """
    limits = limits or DecodeLimits()
    deadline = deadline or Deadline()
    absolute = os.path.abspath(path)  # noqa: PTH100  not resolved: a link's name may carry the container's suffix
    _check_file(absolute)
    with open_stream(absolute) as (container, stream), _ffmpeg_messages() as messages:
        limits.check_size(stream.codec_context.width, stream.codec_context.height)
        presented: list[int | None] = []
        hidden = 0
        first = None
        reason = "it holds none"
        for packet in packets(container, stream):
            deadline.check()
            if packet.is_discard:
                hidden += 1
            else:
                presented.append(packet.pts)
            if first is None:
                try:
                    first = next(iter(packet.decode()), None)
                except av.error.FFmpegError as error:
                    reason = reason_of(error)
        first = first or next(iter(held_back(stream)), None)
        if first is None:
            raise VideoError(f"no frame can be decoded: {reason}", stage="open")
        quarter_turns = round(first.rotation / 90) % 4
        width, height = (first.height, first.width) if quarter_turns % 2 else (first.width, first.height)
        limits.check_size(width, height)
        format_name = container.format.name.split(",")[0]
        rate = stream.average_rate or stream.guessed_rate
        fps = float(rate) if rate else 0.0
        count = len(presented)
        info = VideoInfo(count, fps, width, height, _duration(container, stream, count, fps), "pyav")
        return Inspection(
            path=absolute,
            container=format_name if _begins_as(absolute, format_name) else f"odd {format_name}",
            info=info,
            announced=_announced(stream, format_name, hidden),
            cut_off=any("ended prematurely" in text for _, _, text in messages),
            positions=_positions(presented, format_name),
            quarter_turns=quarter_turns,
        )


@contextmanager
def open_stream(path: str) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Opens a file's best video stream with PyAV, one thread; closes it however the block ends.

    Nothing but this one file is read: formats that refer to other files or to the network are refused.

    Raises:
        VideoError: It is no video, or there is no decoder for it (stage ``open``).
    """
    try:
        with _ffmpeg_messages() as messages:
            container = av.open(path, metadata_errors="ignore", options=_OPEN_OPTIONS)
    except (av.error.FFmpegError, OSError) as error:
        for _, component, text in messages:
            if "Format not on whitelist" in text:
                raise VideoError(
                    f"not a video: FFmpeg takes it for {component}, and only formats that hold a video are read",
                    stage="open",
                ) from error
        with contextlib.suppress(OSError), Path(path).open("rb") as file:
            if (instead := stand_in(file.read(512))) is not None:
                raise VideoError(f"not a video: {instead}", stage="open") from error
        said = next((text.strip() for _, _, text in reversed(messages) if text.strip()), reason_of(error))
        raise VideoError(f"not a video, or a damaged one: {said}", stage="open") from error
    with container:
        stream = container.streams.best("video")
        if not isinstance(stream, VideoStream):
            raise VideoError("has no video stream", stage="open")
        if stream.codec_context is None:
            raise VideoError("there is no decoder for its video stream", stage="open")
        # workers are processes: more threads a decoder would only get in each other's way
        stream.codec_context.thread_count = 1
        yield container, stream


def packets(container: InputContainer, stream: VideoStream) -> Iterator[av.Packet]:
    """The stream's packets, up to where the file can be read."""
    source = container.demux(stream)
    while True:
        try:
            packet = next(source)
        except (StopIteration, av.error.FFmpegError):
            return
        # an empty one would end the decoder: PyAV's own at the end of the file, and those by which AVI drops frames
        if packet.size:
            yield packet


def held_back(stream: VideoStream) -> list[av.VideoFrame]:
    """The frames that a decoder keeps for reordering until it is told that the stream has ended."""
    try:
        return list(stream.decode(None))
    except (av.error.FFmpegError, EOFError):
        return []


def reason_of(error: BaseException) -> str:
    """What a library's exception says, in one short line."""
    text = error.strerror if isinstance(error, (OSError, av.error.FFmpegError)) else None
    return " ".join((text or str(error) or type(error).__name__).split())


def _check_file(path: str) -> None:
    file = Path(path)
    try:
        size = file.stat().st_size
    except OSError as error:
        missing = isinstance(error, (FileNotFoundError, NotADirectoryError))
        raise VideoError("no such file" if missing else f"cannot be read: {reason_of(error)}", stage="open") from error
    if file.is_dir():
        raise VideoError("is a folder, not a video", stage="open")
    if not os.access(path, os.R_OK):
        raise VideoError("cannot be read: permission denied", stage="open")
    if size == 0:
        raise VideoError("empty file", stage="open")


def _begins_as(path: str, container: str) -> bool:
    offset, beginnings = _BEGINNINGS.get(container, (0, {b""}))
    with Path(path).open("rb") as file:
        head = file.read(16)
    return any(head.startswith(beginning, offset) for beginning in beginnings)


def _positions(presented: list[int | None], container: str) -> dict[int, int]:
    # AVI stores no presentation times: what stands in their place follows the order of decoding
    times = [time for time in presented if time is not None]
    if container == "avi" or len(times) != len(presented) or len(set(times)) != len(times):
        return {}
    return {time: index for index, time in enumerate(sorted(times))}


def _announced(stream: VideoStream, container: str, hidden: int) -> int | None:
    if container == "mov":
        # unlike the header's count, the table of samples leaves out what an edit list cuts
        return len(stream.index_entries) - hidden
    return stream.frames or None if container == "avi" else None


def _duration(container: InputContainer, stream: VideoStream, frames: int, fps: float) -> float:
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    if container.duration is not None:
        return container.duration / av.time_base
    return frames / fps if fps else 0.0


@contextmanager
def _ffmpeg_messages() -> Iterator[list[tuple[int, str, str]]]:
    """FFmpeg's error messages of this thread, which say more than its error codes and must not reach the terminal."""
    before = av.logging.get_level()
    av.logging.set_level(av.logging.ERROR)
    av.logging.set_skip_repeated(False)
    try:
        with av.logging.Capture() as messages:
            yield messages
    finally:
        av.logging.set_skip_repeated(True)
        av.logging.set_level(before)
