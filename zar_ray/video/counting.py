"""Which packets of a stream show a frame, and which frame: with most files that is known without decoding.

A packet is no frame. H.264 may code the two fields of a picture apart, VP8 and VP9 have pictures that are only there to
predict others from, and MPEG-4 and AVI say with a few bytes, or none, that a picture stands for another frame. Where
the packets do not tell, the whole stream is decoded.
"""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass
from fractions import Fraction

import av
import av.error
import av.logging
from av.video.stream import VideoStream

from zar_ray.video.streams import Deadline, decode_all, ffmpeg_messages

# Codecs whose packets tell. Others may mean a repeated picture by a packet that FFmpeg's decoder gives nothing for.
_TELLING = {"apng", "av1", "gif", "h264", "hevc", "mpeg1video", "mpeg2video", "mpeg4", "vp8", "vp9", "vvc"}
_HIDING = {"h264", "vp8", "vp9"}
# Bytes below which a packet without a frame repeats the one before; MPEG-4's are of up to 20.
_TINY = 64
_MPEG4_PICTURE = b"\0\0\1\xb6"
_MPEG4_HEADER = re.compile(rb"\x00\x00\x01[\x20-\x2f].*?(?=\x00\x00\x01)", re.DOTALL)
# What FFmpeg says of the picture's size and of fields, as "951   pic_width_in_mbs_minus1   00111 = 6".
_SAID = re.compile(r"^\d+ +((?:frame_|pic_)?(?:width|height|mbs_only)\w*) +[01]+ = (\d+)\s*$")


@dataclass(frozen=True)
class Shown:
    """The frames that a stream shows.

    Attributes:
        packets: The stream's packets.
        frames: N, those that repeat the one before among them.
        positions: Number of a packet to the index of its frame; empty where the container has no reliable times, and
            frames are counted as they come.
        repeats: Indices of the frames that repeat the one before, which no decoder gives.
        span: Seconds from the first to the last frame, by the times of decoding; None where there are none.
        times: When the frames are shown, in ticks, ascending; empty where the container does not say reliably.
        tick: Seconds of a tick.
    """

    packets: int
    frames: int
    positions: dict[int, int]
    repeats: frozenset[int] = frozenset()
    span: float | None = None
    times: tuple[int, ...] = ()
    tick: float = 0.0


class PacketCounter:
    """Looks at a stream's packets, one after another, before they are decoded.

    Attributes:
        codec: The codec's name.
        has_rests: Whether there were packets without content, or places for them.

    Args:
        stream: The stream, open.
        timed: Whether the container holds times at which frames are shown.
    """

    def __init__(self, stream: VideoStream, timed: bool) -> None:
        self.codec = stream.codec_context.codec.canonical_name
        self.has_rests = False
        self._stream, self._timed = stream, timed
        self._doubtful = not stream.codec_context.codec.intra_only and self.codec not in _TELLING
        self._packets: list[tuple[int | None, int | None, int]] = []  # time shown, time of decoding, bytes
        self._shown: list[int] = []
        self._owed = False
        self._headers: set[tuple[tuple[str, ...], ...]] = set()
        self._tracer: av.BitStreamFilterContext | None = None
        if self.codec in ("h264", "hevc", "vp8", "vp9"):
            self._trace(None)

    @property
    def changes_size(self) -> bool:
        """Whether the headers that were looked at differ."""
        return len(self._headers) > 1

    def add(self, packet: av.Packet) -> None:
        """Takes the next packet, as the container gives it."""
        content = bytes(packet)
        number = len(self._packets)
        if not packet.is_discard and not self._is_hidden(content):
            self._shown.append(number)
        self._packets.append((packet.pts, packet.dts, packet.size))
        # AVI's times of decoding count its frames
        self.has_rests |= not content or (not self._timed and (packet.dts or 0) > number)
        if self._tracer is not None and packet.is_keyframe and content:
            self._trace(content)
        if self.codec == "mpeg4" and content:
            self._headers.update(((found.hex(),),) for found in _MPEG4_HEADER.findall(content))
            # Two pictures in one packet are made up for by an empty one that repeats nothing, there or further on.
            if content.count(_MPEG4_PICTURE) > 1:
                self._owed = True
            elif len(content) < _TINY:
                self._doubtful |= not self._owed
                self._owed = False

    def count(self, path: str, deadline: Deadline) -> Shown:
        """Counts, once all packets of a file were added; decodes it, until the deadline, where they do not tell."""
        fields = self.codec == "h264" and not all(("frame_mbs_only_flag", "1") in one for one in self._headers or [()])
        decode = self._doubtful or self.has_rests or fields
        order: list[int] = []
        failed: set[int] = set()
        for number, found in decode_all(path, deadline) if decode else ():
            if isinstance(found, av.error.FFmpegError):
                failed.add(number)
            else:
                order += [frame.pts for frame in found if frame.pts is not None]
        given = set(order)
        if len(given) < len(order):  # several frames in a packet
            return Shown(len(self._packets), len(order), {})
        shown = self._shown
        if decode and self.codec in _HIDING:
            shown = [number for number in shown if number in given | failed or not self._packets[number][2]]
        times = {number: self._packets[number][0] for number in shown}
        reliable = self._timed and None not in times.values() and len(set(times.values())) == len(times)
        ranks = {n: rank for rank, n in enumerate(sorted(shown, key=lambda n: times[n] or 0) if reliable else shown)}
        positions = ranks if reliable else {}
        without = {number: ranks[number] for number in shown if decode and number not in given}
        if decode and not reliable:
            free = sorted(set(ranks.values()) - set(without.values()))
            positions = dict(zip((number for number in order if number in ranks), free, strict=False))
        repeats = {rank for n, rank in without.items() if n not in failed and self._packets[n][2] < _TINY}
        decoded_at = [time for time in (self._packets[number][1] for number in shown) if time is not None]
        ticks = decoded_at[-1] - decoded_at[0] if len(decoded_at) == len(shown) > 1 else None
        tick = self._stream.time_base or Fraction(0)
        shown_at = tuple(sorted(time for time in times.values() if time is not None)) if reliable and tick else ()
        # exact until here: 99 frames of 1/25 s are 25 a second, not 24.999999999999996
        span = float(ticks * tick) if ticks and tick else None
        return Shown(len(self._packets), len(shown), positions, frozenset(repeats), span, shown_at, float(tick))

    def _is_hidden(self, content: bytes) -> bool:
        """Whether a VP8 or VP9 picture is only there for others to be predicted from, as its first byte says."""
        if not content or self.codec not in ("vp8", "vp9"):
            return False
        if self.codec == "vp8":
            return not content[0] & 0x10
        # several frames in one packet, of which one is shown, end with a byte of their own
        together = content[-1] & 0xE0 == 0xC0
        profile_3 = content[0] & 0x30 == 0x30  # has one more bit before these
        return not together and not content[0] & (0x05 if profile_3 else 0x0A)

    def _trace(self, content: bytes | None) -> None:
        """Notes what headers say, a key packet's own or, without its content, the container's."""
        with contextlib.suppress(av.error.FFmpegError), ffmpeg_messages(av.logging.INFO) as found:
            if self._tracer is None:
                self._tracer = av.BitStreamFilterContext("trace_headers", in_stream=self._stream)
            else:
                self._tracer.filter(av.Packet(content))
        # what was said before an error counts too
        if said := tuple(match.groups() for _, _, text in found if (match := _SAID.match(text))):
            self._headers.add(said)
