"""What a container says of its video, found with PyAV: whatever decodes the frames, they are counted here.

Every packet is looked at, because a header's frame count may be absent or wrong. Only the first frame is decoded, and
more where the packets do not tell how many there are (`zar_ray.video.counting`).
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import av
import av.error
from av.container import InputContainer
from av.video.stream import VideoStream

from zar_ray.errors import VideoError
from zar_ray.video.counting import PacketCounter, Shown
from zar_ray.video.limits import DecodeLimits
from zar_ray.video.streams import (
    Deadline,
    decode_packet,
    ffmpeg_messages,
    held_back,
    open_stream,
    packets,
    reason_of,
)

# How files of the formats begin that decord may be given, which takes no whitelist: offset and the possible bytes.
_BEGINNINGS = {
    "avi": (0, {b"RIFF"}),
    "matroska": (0, {b"\x1a\x45\xdf\xa3"}),
    "mov": (4, {b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot", b"styp", b"uuid", b"jP  "}),
}
# decord makes room for as many frames as a header promises, and ends its process where there is none.
_DECORD_PROMISE = 10_000_000


@dataclass(frozen=True)
class VideoInfo:
    """What is known of a video once it is open.

    Attributes:
        frames: N, the frames that are shown.
        fps: Average frames a second; 0 if the container does not say.
        width: Width of the upright picture in pixels as they are stored, of the first picture where the size changes.
        height: Its height.
        duration: Seconds.
        decoder: What reads it, such as ``pyav``.
        pixel_aspect: How wide a player shows a pixel of the upright picture for its height; 1 also where nothing is
            said. Pictures are not stretched by it.
    """

    frames: int
    fps: float
    width: int
    height: int
    duration: float
    decoder: str
    pixel_aspect: float = 1.0


@dataclass(frozen=True)
class Inspection:
    """A video file as PyAV sees it, before its frames are decoded.

    Attributes:
        path: The file, absolute.
        codec: FFmpeg's name of its codec, such as ``h264``.
        container: Its format, by FFmpeg's name, such as ``mov`` or ``matroska``; ``odd mov`` for a file that other
            readers may take for something else: it does not begin as such files do, has several video streams, or
            promises more frames than anybody has.
        info: What is known of the video.
        shown: Its frames, and which packets they are in.
        announced: Frames that the header promises, as far as it is to be believed.
        cut_off: Whether the demuxer met the end of the file too early.
        quarter_turns: Counter-clockwise quarter turns that make a decoded frame upright.
    """

    path: str
    codec: str
    container: str
    info: VideoInfo
    shown: Shown
    announced: int | None
    cut_off: bool
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
    with open_stream(absolute) as (container, stream), ffmpeg_messages() as messages:
        limits.check_size(stream.codec_context.width, stream.codec_context.height)
        format_name = container.format.name.split(",")[0]
        # AVI stores no presentation times: what stands in their place follows the order of decoding
        counter = PacketCounter(stream, timed=format_name != "avi")
        first, reason = None, None
        for number, packet in enumerate(packets(container, stream)):
            deadline.check()
            counter.add(packet)
            if first is None:
                try:
                    first = next(iter(decode_packet(packet, number)), None)
                except av.error.FFmpegError as error:
                    reason = reason_of(error)
        first = first or next(iter(held_back(stream)), None)
        if first is None:
            raise VideoError(f"no frame can be decoded: {reason or 'it holds none'}", stage="open")
        quarter_turns = round(first.rotation / 90) % 4
        width, height = (first.height, first.width) if quarter_turns % 2 else (first.width, first.height)
        limits.check_size(width, height)
        shown = counter.count(absolute, deadline)
        rate = stream.average_rate or stream.guessed_rate
        fps = float(rate) if rate else 0.0
        if counter.codec == "h264" and shown.frames < shown.packets and shown.span:
            # containers take fields for frames
            fps = (shown.frames - 1) / shown.span
        duration = _duration(container, stream, shown.frames, fps)
        aspect = float(stream.sample_aspect_ratio or 1) ** (-1 if quarter_turns % 2 else 1)
        plain = _is_plain(absolute, container, stream) and not counter.changes_size
        return Inspection(
            path=absolute,
            codec=counter.codec,
            container=format_name if plain else f"odd {format_name}",
            info=VideoInfo(shown.frames, fps, width, height, duration, "pyav", aspect),
            shown=shown,
            announced=_announced(stream, format_name, counter, shown),
            cut_off=any("ended prematurely" in text for _, _, text in messages),
            quarter_turns=quarter_turns,
        )


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


def _is_plain(path: str, container: InputContainer, stream: VideoStream) -> bool:
    """Whether other readers find in a file what PyAV finds."""
    offset, beginnings = _BEGINNINGS.get(container.format.name.split(",")[0], (0, {b""}))
    with Path(path).open("rb") as file:
        head = file.read(16)
    as_usual = any(head.startswith(beginning, offset) for beginning in beginnings)
    return as_usual and len(container.streams.video) == 1 and stream.frames < _DECORD_PROMISE


def _announced(stream: VideoStream, container: str, counter: PacketCounter, shown: Shown) -> int | None:
    not_shown = shown.packets - shown.frames
    if container == "mov":
        # unlike the header's count, the table of samples leaves out what an edit list cuts
        return len(stream.index_entries) - not_shown
    # an AVI file may also end with frames that have no content
    known = container == "avi" and stream.frames > 0 and not counter.has_rests
    return stream.frames - not_shown if known else None


def _duration(container: InputContainer, stream: VideoStream, frames: int, fps: float) -> float:
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    if container.duration is not None:
        return container.duration / av.time_base
    return frames / fps if fps else 0.0
