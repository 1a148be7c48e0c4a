"""One file as FFmpeg reads it: its video stream, the stream's packets, and what a decoder makes of them."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Container, Iterator
from contextlib import contextmanager
from pathlib import Path

import av
import av.error
import av.logging
from av.container import InputContainer
from av.stream import Discard, Disposition
from av.video.stream import VideoStream

from zar_ray.errors import VideoError
from zar_ray.untrusted import stand_in

# Formats that hold a video themselves. FFmpeg also reads playlists (HLS, DASH, ffconcat), session descriptions (SDP),
# numbered pictures and drawings: files that name others, or hosts, which would then be read on behalf of whoever sent
# the file. The last few hold sound, and are told so.
_FORMATS = (
    "3gp,apng,asf,av1,avi,cavsvideo,dirac,dnxhd,dv,flv,gif,gxf,h261,h263,h264,hevc,ivf,m4v,matroska,mjpeg,mov,mpeg,"
    "mpegts,mpegvideo,mxf,nsv,nut,nuv,obu,ogg,rm,swf,vc1,vc1test,vvc,wtv,yuv4mpegpipe,aac,aiff,amr,flac,mp3,wav"
)
# Not None, PyAV's own level: what FFmpeg says in another thread at that moment would be held against it.
_SILENT = av.logging.PANIC
# Where PyAV says what no thread listens to, as the level is one for all.
logging.getLogger("libav").propagate = False
logging.getLogger("libav").addHandler(logging.NullHandler())
_ASKED: list[int] = []
_ASKED_LOCK = threading.Lock()
_STILL = Disposition.attached_pic | Disposition.timed_thumbnails
_OPEN_OPTIONS = {"protocol_whitelist": "file", "format_whitelist": _FORMATS}


class Deadline:
    """How long one video may take; without `seconds`, as long as it needs."""

    def __init__(self, seconds: float | None = None) -> None:
        self.seconds = seconds
        self._end = None if seconds is None else time.monotonic() + seconds

    def check(self) -> None:
        """Raises a `VideoError` (stage ``decode``) once the time is over."""
        if self._end is not None and time.monotonic() >= self._end:
            raise VideoError(f"took longer than {self.seconds:g} s to decode")


@contextmanager
def open_stream(path: str) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Opens a file's video stream with PyAV, one thread; closes it however the block ends.

    Of several it is the one that FFmpeg takes for the best. Attached pictures and thumbnails are none, nor is what the
    file says to discard. Nothing but this one file is read: formats that refer to others or to the network are refused.

    Raises:
        VideoError: It is no video, or there is no decoder for it (stage ``open``).
    """
    try:
        with ffmpeg_messages() as messages:
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
        videos = [one for one in container.streams.video if not one.disposition & _STILL and one.discard != Discard.all]
        best = container.streams.best("video")
        if not videos:
            raise VideoError("has no video stream", stage="open")
        stream = next((one for one in videos if one is best), videos[0])
        if stream.codec_context is None:
            raise VideoError("there is no decoder for its video stream", stage="open")
        # workers are processes: more threads a decoder would only get in each other's way
        stream.codec_context.thread_count = 1
        yield container, stream


def packets(container: InputContainer, stream: VideoStream) -> Iterator[av.Packet]:
    """The stream's packets, up to where the file can be read; also empty ones, which repeat the picture before.

    AVI holds a packet, if an empty one, for every frame of its rate; FFmpeg keeps these to itself but counts them.
    Where most are empty, the rate is only there to express any times, and frames are those that are full.
    """
    full = len(stream.index_entries)
    empty = stream.frames - full if container.format.name == "avi" and stream.frames <= 2 * full else 0
    source, due = container.demux(stream), None
    while True:
        try:
            packet = next(source)
        except (StopIteration, av.error.FFmpegError):
            return
        if empty > 0 and packet.dts is not None:
            # no more than the header says, whatever the times are
            for _ in range(min(packet.dts - due, empty) if due is not None else 0):
                empty -= 1
                yield av.Packet()
            due = packet.dts + 1
        # one without time and content is PyAV's own, at the end of the file
        if packet.size or packet.dts is not None:
            yield packet


def decode_packet(packet: av.Packet, number: int) -> list[av.VideoFrame]:
    """The frames that come with a packet; each frame's time is the number of the packet that it was in."""
    # unlike the container's times, numbers are always there, and distinct
    packet.pts = number
    # a decoder would take an empty one for the end of the stream
    return packet.decode() if packet.size else []


def decode_all(
    path: str, deadline: Deadline, needless: Container[int] = ()
) -> Iterator[tuple[int, list[av.VideoFrame] | av.error.FFmpegError]]:
    """What a decoder makes of each packet, by the packet's number; and after the last, what it has kept until then.

    Frames come in the order in which they are shown, their times as `decode_packet` gives them. Of packets that are
    `needless`, those from which no other frame is predicted are not decoded; damage is then an error each time, and not
    concealed.
    """
    number, left_out = -1, False
    with open_stream(path) as (container, stream):
        if needless:
            stream.codec_context.options = {"err_detect": "explode"}
        for number, packet in enumerate(packets(container, stream)):
            deadline.check()
            if (number in needless) != left_out:
                left_out = not left_out
                stream.codec_context.skip_frame = "NONREF" if left_out else "DEFAULT"
            try:
                found = decode_packet(packet, number)
            except av.error.FFmpegError as error:
                found = error
            yield number, found
        deadline.check()
        yield number + 1, held_back(stream)


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


@contextmanager
def ffmpeg_messages(level: int = av.logging.ERROR) -> Iterator[list[tuple[int, str, str]]]:
    """FFmpeg's messages of this thread, which say more than its error codes and must not reach the terminal.

    The level is one for all threads: while another one wants to know more, so does this one.
    """
    with _ASKED_LOCK:
        _ASKED.append(level)
        av.logging.set_level(max(_ASKED))
        av.logging.set_skip_repeated(False)
    try:
        with av.logging.Capture() as messages:
            yield messages
    finally:
        with _ASKED_LOCK:
            _ASKED.remove(level)
            av.logging.set_level(max(_ASKED, default=_SILENT))
            av.logging.set_skip_repeated(not _ASKED)
