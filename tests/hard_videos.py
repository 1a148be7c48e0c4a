"""Video files whose packets are no frames, or whose frames are no video, made bit by bit where no encoder makes them.

Each picture carries its number, as `numbered` paints it and `number_of` reads it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.stream import Disposition

RATE = 25
_SIDE = 64  # of the pictures that are made here
_DARKEST, _STEP = 32, 2


def grey_of(number: int) -> int:
    """The brightness (of video, 16 to 235) that stands for a number from 0 to 99."""
    return _DARKEST + _STEP * number


def numbered(number: int, side: int = _SIDE) -> av.VideoFrame:
    """A grey picture of a number."""
    planes = np.full((side * 3 // 2, side), 128, np.uint8)
    planes[:side] = grey_of(number)
    return av.VideoFrame.from_ndarray(planes, format="yuv420p")


def number_of(picture: np.ndarray) -> int:
    """The number of a decoded picture, uint8 (H, W, 3)."""
    luma = 16 + float(picture.mean()) * 219 / 255
    return round((luma - _DARKEST) / _STEP)


class _Bits:
    """Writes H.264's and MPEG-4's syntax elements."""

    def __init__(self) -> None:
        self._text: list[str] = []

    def u(self, width: int, value: int) -> _Bits:
        self._text.append(f"{value:0{width}b}" if width else "")
        return self

    def ue(self, *values: int) -> _Bits:
        for value in values:
            code = f"{value + 1:b}"
            self._text.append("0" * (len(code) - 1) + code)
        return self

    def aligned(self, filler: str = "0") -> _Bits:
        self._text.append(filler * (-sum(map(len, self._text)) % 8))
        return self

    def end(self) -> bytes:
        """The bits, and a one and zeros up to a whole byte."""
        text = "".join(self._text) + "1"
        text += "0" * (-len(text) % 8)
        return int(text, 2).to_bytes(len(text) // 8, "big")

    def raw(self, content: bytes) -> _Bits:
        self._text.append("".join(f"{byte:08b}" for byte in content))
        return self


def _nal(header: int, content: bytes) -> bytes:
    escaped = bytearray()
    zeros = 0
    for byte in content:
        if zeros >= 2 and byte <= 3:
            escaped.append(3)
            zeros = 0
        escaped.append(byte)
        zeros = zeros + 1 if byte == 0 else 0
    return b"\0\0\0\1" + bytes([header]) + bytes(escaped)


def _h264_headers(frames_only: bool) -> bytes:
    blocks = _SIDE // 16
    sps = _Bits().u(8, 77).u(8, 0).u(8, 30).ue(0, 4, 2, 1).u(1, 0).ue(blocks - 1)
    sps.ue(blocks - 1 if frames_only else blocks // 2 - 1).u(1, frames_only)
    if not frames_only:
        sps.u(1, 0)
    sps.u(1, 1).u(1, 0).u(1, 0)
    pps = _Bits().ue(0, 0).u(2, 0).ue(0, 0, 0).u(3, 0).ue(0, 0, 0).u(3, 0b100)
    return _nal(0x67, sps.end()) + _nal(0x68, pps.end())


def _h264_slice(grey: int, frame_number: int, frames_only: bool, field: int | None) -> bytes:
    """A frame, or its upper (0) or lower (1) field, of uncompressed macroblocks."""
    idr = frame_number == 0 and field != 1
    bits = _Bits().ue(0, 7, 0).u(8, frame_number % 256)
    if not frames_only:
        bits.u(1, field is not None)
        if field is not None:
            bits.u(1, field)
    if idr:
        bits.ue(0).u(2, 0)
    else:
        bits.u(1, 0)
    bits.ue(0, 1)  # quantiser, no deblocking
    blocks = (_SIDE // 16) ** 2 // (1 if field is None else 2)
    for _ in range(blocks):
        bits.ue(25).aligned().raw(bytes([grey]) * 256 + b"\x80" * 128)
    return _nal(0x65 if idr else 0x61, bits.end())


def write_h264(path: Path, fields: Sequence[bool], begin_interlaced: int = 0) -> Path:
    """H.264 whose pictures are coded as two fields, a packet each, where `fields` says so.

    Args:
        path: The file; its suffix is the container, ".h264" for none.
        fields: One entry a picture.
        begin_interlaced: The picture before which the headers begin to allow fields; those before must be frames.
    """
    raw = path.with_suffix(".h264")
    content = []
    lengths: list[Fraction] = []
    for number, in_fields in enumerate(fields):
        frames_only = number < begin_interlaced
        since = number if frames_only else number - begin_interlaced
        if since == 0:
            content.append(_h264_headers(frames_only))
        for field in (0, 1) if in_fields else (None,):
            content.append(_h264_slice(grey_of(number), since, frames_only, field))
            lengths.append(Fraction(1, RATE * (2 if in_fields else 1)))
    raw.write_bytes(b"".join(content))
    if path != raw:
        with av.open(str(raw)) as source, av.open(str(path), "w") as target:
            stream = source.streams.video[0]
            copy = target.add_stream_from_template(stream)
            time = Fraction(0)
            for number, packet in enumerate(one for one in source.demux(stream) if one.size):
                packet.stream, packet.time_base = copy, Fraction(1, 90000)
                packet.pts = packet.dts = int(time * 90000)
                packet.duration = int(lengths[number] * 90000)
                target.mux(packet)
                time += lengths[number]
    return path


def _open_stream(file, codec: str, pixels: str, side: int = _SIDE, options: dict[str, str] | None = None):
    stream = file.add_stream(codec, rate=RATE, options=options or {})
    stream.width = stream.height = side
    stream.pix_fmt = pixels
    stream.codec_context.time_base = Fraction(1, RATE)
    stream.codec_context.thread_count = 1
    return stream


def _encode(file, stream, times: Iterable[int], side: int = _SIDE) -> list[av.Packet]:
    """Packets of numbered pictures, which are shown at some times; the picture's number is the time."""
    packets = []
    for time in times:
        frame = numbered(time, side)
        frame.pts, frame.time_base = time, Fraction(1, RATE)
        packets += stream.encode(frame)
    return packets + stream.encode(None)


def _mux(file, stream, content: bytes, time: int, *, key: bool = False) -> None:
    packet = av.Packet(content)
    packet.stream, packet.time_base = stream, Fraction(1, RATE)
    packet.pts = packet.dts = time
    packet.duration, packet.is_keyframe = 1, key
    file.mux(packet)


def write_rests(path: Path, count: int, rests: set[int], codec: str = "mjpeg") -> Path:
    """An AVI file of `count` frames, of which some are empty: the picture before is to be shown again."""
    with av.open(str(path), "w") as file:
        options = {"qmin": "1", "qmax": "2"}
        stream = _open_stream(file, codec, "yuvj420p" if codec == "mjpeg" else "yuv420p", options=options)
        for packet in _encode(file, stream, (time for time in range(count) if time not in rests)):
            file.mux(packet)
    return path


def write_mpeg4(path: Path, count: int, repeats: set[int], gop: int = 12) -> Path:
    """MPEG-4 of `count` frames, some of which are "not coded" (N-VOPs): they repeat the one before."""
    with av.open(str(path), "w") as file:
        stream = _open_stream(file, "mpeg4", "yuv420p", options={"g": str(gop), "qmin": "1", "qmax": "2"})
        coded = {packet.pts: packet for packet in _encode(file, stream, sorted(set(range(count)) - repeats))}
        for time in range(count):
            if time in coded:
                _mux(file, stream, bytes(coded[time]), time, key=coded[time].is_keyframe)
            else:
                # a P-VOP of this second: its part of the second, and that it is not coded
                bits = _Bits().u(2, 1).u(1, 0).u(1, 1).u(5, time % RATE).u(1, 1).u(1, 0)
                _mux(file, stream, b"\0\0\1\xb6" + bits.u(1, 0).aligned("1").end()[:-1], time)
    return path


def write_hidden(path: Path, shown: Sequence[bool], codec: str = "libvpx", gop: int = 12) -> Path:
    """VP8 or VP9 some of whose pictures are hidden: those after them are predicted from them, but nobody sees them.

    VP9's may be key pictures only (a `gop` of 1), whose headers are the same for hidden ones.
    """
    bit = 0x10 if codec == "libvpx" else 0x02
    options = {"g": str(gop), "deadline": "realtime", "cpu-used": "8", "lag-in-frames": "0", "crf": "4", "b": "4M"}
    with av.open(str(path), "w") as file:
        stream = _open_stream(file, codec, "yuv420p", options=options | {"auto-alt-ref": "0"})
        time = 0
        for packet, is_shown in zip(_encode(file, stream, range(len(shown))), shown, strict=True):
            content = bytearray(packet)
            if not is_shown:
                content[0] &= ~bit & 0xFF
            _mux(file, stream, bytes(content), time, key=packet.is_keyframe and is_shown)
            # elsewhere every packet has a time of its own
            time += is_shown or path.suffix not in (".webm", ".mkv", ".mp4")
    return path


def write_cover(path: Path, audio: str, *, video: bool = False, cover: str = "mjpeg") -> Path:
    """Sound with an attached picture; and a video of 10 frames, if wanted, behind them."""
    with av.open(str(path), "w") as file:
        sound = file.add_stream(audio, rate=44100)
        picture = _open_stream(file, cover, "yuvj420p" if cover == "mjpeg" else "rgb24", side=128)
        picture.disposition = Disposition.attached_pic
        stream = _open_stream(file, "libx264", "yuv420p") if video else None
        frame = av.VideoFrame.from_ndarray(np.full((128, 128, 3), 200, np.uint8), format="rgb24")
        for packet in [*picture.encode(frame.reformat(format=picture.pix_fmt)), *picture.encode(None)]:
            file.mux(packet)
        if stream is not None:
            file.mux(_encode(file, stream, range(10)))
        size = sound.codec_context.frame_size or 1024
        for start in range(0, 8 * size, size):
            kind = sound.codec_context.format.name
            samples = np.zeros((1, size), {"s16": np.int16, "s32": np.int32, "flt": np.float32}[kind[:3]])
            tone = av.AudioFrame.from_ndarray(samples, format=kind, layout="mono")
            tone.rate, tone.pts = 44100, start
            file.mux(sound.encode(tone))
        file.mux(sound.encode(None))
    return path


def write_sizes(path: Path, sides: Sequence[int], each: int = 10) -> Path:
    """VP8 whose pictures change their size on the way: `each` frames of every side."""
    with av.open(str(path), "w") as file:
        stream = _open_stream(file, "libvpx", "yuv420p", side=sides[0])
        packets = []
        for number, side in enumerate(sides):
            with av.open(str(path.with_suffix(f".{number}.webm")), "w") as other:
                part = _open_stream(other, "libvpx", "yuv420p", side=side, options={"crf": "4", "b": "4M"})
                packets += _encode(other, part, range(number * each, (number + 1) * each), side)
        for time, packet in enumerate(packets):
            _mux(file, stream, bytes(packet), time, key=packet.is_keyframe)
    return path


def write_plain(
    path: Path, count: int, codec: str = "libx264", size: tuple[int, int] = (_SIDE, _SIDE), aspect: str = "1"
) -> Path:
    """An ordinary video of `count` frames of some size (width, height) and shape of pixels."""
    with av.open(str(path), "w") as file:
        stream = _open_stream(file, codec, "yuvj420p" if codec == "mjpeg" else "yuv420p")
        stream.width, stream.height = size
        stream.codec_context.sample_aspect_ratio = Fraction(aspect)
        for time in range(count):
            frame = numbered(time).reformat(width=size[0], height=size[1])
            frame.pts, frame.time_base = time, Fraction(1, RATE)
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return path
