"""Which packets of a stream show a frame, and which frame: with most files that is known without decoding.

A packet is no frame. H.264 may code the two fields of a picture apart, VP8 and VP9 have pictures that are only there to
predict others from, and MPEG-4 and AVI say with a few bytes, or none, that a picture stands for another frame. Where the
packets do not tell, the whole stream is decoded, once more than reading it does.
"""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass

import av
import av.error
import av.logging
from av.video.stream import VideoStream

from zar_ray.video.streams import Deadline, decode_all, ffmpeg_messages

# Codecs whose packets tell. Others may mean a repeated picture by a packet that FFmpeg's decoder gives nothing for.
_TELLING = {"apng", "av1", "gif", "h264", "hevc", "mpeg1video", "mpeg2video", "mpeg4", "vp8", "vp9", "vvc"}
# Codecs in whose headers a change of size is looked for; others that change are read by PyAV, or end in an error.
_TRACED = {"h264", "hevc", "vp8", "vp9"}
# Bytes below which a packet without a frame repeats the one before; MPEG-4's are of up to 20.
_TINY = 64
_MPEG4_PICTURE = b"\0\0\1\xb6"
_MPEG4_SIZE = re.compile(rb"\x00\x00\x01[\x20-\x2f].*?(?=\x00\x00\x01)", re.DOTALL)
# What FFmpeg says of headers, as "951  pic_width_in_mbs_minus1  00111 = 6".
_SIZE_SAID = re.compile(r"(?:frame|pic|^\d+ +)_?(?:width|height)\w* +[01]+ = (\d+)\s*$")


@dataclass(frozen=True)
class Shown:
    """The frames that a stream shows.

    Attributes:
        frames: N, those that repeat the one before among them.
        positions: Number of a packet to the index of its frame; empty where frames are counted as they come, because
            the container has no reliable times.
        repeats: Indices of the frames that repeat the one before, which no decoder gives.
        packets: The stream's packets.
        field_rate: Frames a second of a stream whose packets are fields, which containers count as frames.
    """

    frames: int
    positions: dict[int, int]
    repeats: frozenset[int] = frozenset()
    packets: int = 0
    field_rate: float | None = None


class PacketCounter:
    """Looks at a stream's packets, one after another, before they are decoded.

    Args:
        stream: The stream, open.
        timed: Whether the container holds times at which frames are shown.
    """

    def __init__(self, stream: VideoStream, timed: bool) -> None:
        codec = stream.codec_context.codec
        self._codec = codec.canonical_name
        self._stream = stream
        self._timed = timed
        self._doubtful = not codec.intra_only and self._codec not in _TELLING
        self._times: list[tuple[int | None, int | None]] = []
        self._shown: list[int] = []
        self._sizes: list[int] = []
        self._owed = False
        self._progressive: set[bool] = set()
        self._sizes_said: set[object] = set()
        self._headers = self._read_headers() if self._codec in _TRACED else None

    def add(self, packet: av.Packet) -> None:
        """Takes the next packet, as the container gives it."""
        number = len(self._times)
        self._times.append((packet.pts, packet.dts))
        self._sizes.append(packet.size)
        if not packet.is_discard and not self._is_hidden(packet):
            self._shown.append(number)
        self._doubtful |= not packet.size
        if self._codec == "mpeg4" and packet.size:
            content = bytes(packet)
            self._sizes_said.update(_MPEG4_SIZE.findall(content))
            # Two pictures in one packet are made up for by an empty one that repeats nothing, there or further on.
            if content.count(_MPEG4_PICTURE) > 1:
                self._owed = True
            elif packet.size < _TINY:
                self._doubtful |= not self._owed
                self._owed = False
        elif self._headers is not None and packet.is_keyframe:
            self._read_headers(packet)

    @property
    def changes_size(self) -> bool:
        """Whether headers say different sizes of the picture, as far as they were looked at."""
        return len(self._sizes_said) > 1

    @property
    def has_rests(self) -> bool:
        """Whether frames of an AVI file, whose times of decoding count its frames, are without content."""
        _, last = self._times[-1] if self._times else (None, None)
        return last is not None and last >= sum(size > 0 for size in self._sizes)

    def count(self, path: str, deadline: Deadline, first: int | None) -> Shown:
        """Counts, once all packets were added; decodes the whole file where they do not tell.

        Args:
            path: The file.
            deadline: When to give up decoding.
            first: The packet of the first frame that came, if nothing was wrong before; those that came before it, and
                would be shown before it, need others that are not there.
        """
        order: list[int] = []
        failed: set[int] = set()
        shown = self._shown
        decoded = self._doubtful or (self._codec == "h264" and self._progressive != {True})
        if decoded:
            for number, found in decode_all(path, deadline):
                if isinstance(found, av.error.FFmpegError):
                    failed.add(number)
                else:
                    order += [frame.pts for frame in found if frame.pts is not None]
        given = set(order)
        if len(given) < len(order):
            return Shown(len(order), {}, packets=len(self._times))
        if decoded and self._codec in ("h264", "vp8", "vp9"):
            shown = [number for number in shown if number in given or number in failed or not self._sizes[number]]
        times = {number: self._times[number][0] for number in shown}
        reliable = self._timed and None not in times.values() and len(set(times.values())) == len(times)
        if reliable:
            shown = sorted(shown, key=times.__getitem__)
            if first in times:
                shown = [number for number in shown if number >= first or times[number] > times[first]]
        ranks = {number: index for index, number in enumerate(shown)}
        without = [number for number in shown if decoded and number not in given]
        if reliable:
            positions = ranks
        else:
            free = sorted(set(range(len(shown))) - {ranks[number] for number in without})
            positions = dict(zip((number for number in order if number in ranks), free, strict=False))
        repeats = {ranks[number] for number in without if number not in failed and self._sizes[number] < _TINY}
        return Shown(len(shown), positions, frozenset(repeats), len(self._times), self._field_rate(sorted(shown)))

    def _field_rate(self, shown: list[int]) -> float | None:
        """Frames a second by the times of decoding, where a stream has more packets than frames."""
        times = [time for time in (self._times[number][1] for number in shown) if time is not None]
        if self._codec != "h264" or len(shown) == len(self._shown) or len(times) < 2 or times[0] >= times[-1]:
            return None
        assert self._stream.time_base is not None
        return float((len(times) - 1) / ((times[-1] - times[0]) * self._stream.time_base))

    def _is_hidden(self, packet: av.Packet) -> bool:
        """Whether a VP8 or VP9 picture is only there for others to be predicted from, as its first byte says."""
        if not packet.size or self._codec not in ("vp8", "vp9"):
            return False
        content = memoryview(packet)
        if self._codec == "vp8":
            return not content[0] & 0x10
        # several frames in one packet, of which one is shown, end with a byte of their own
        together = content[-1] & 0xE0 == 0xC0
        shows = 0x05 if content[0] & 0x30 == 0x30 else 0x0A  # profile 3 has one more bit before these
        return not together and not content[0] & shows

    def _read_headers(self, packet: av.Packet | None = None) -> av.BitStreamFilterContext | None:
        """Notes what headers, the container's or a key packet's own, say of the picture's size and of fields."""
        found: list[tuple[int, str, str]] = []
        headers = None
        with contextlib.suppress(av.error.FFmpegError), ffmpeg_messages(av.logging.INFO) as found:
            if packet is None:
                headers = av.BitStreamFilterContext("trace_headers", in_stream=self._stream)
            elif self._headers is not None:
                self._headers.filter(av.Packet(bytes(packet)))
        self._progressive.update(text.rstrip().endswith("= 1") for _, _, text in found if "frame_mbs_only_flag" in text)
        if size := tuple(said[1] for _, _, text in found if (said := _SIZE_SAID.search(text))):
            self._sizes_said.add(size)
        return headers
