"""Mutated video files, each made from its seed and number alone: real little files, hurt in the ways that files are.

Beside what befalls any file (flipped bits, missing, moved and repeated pieces, two files in one) the pieces of which
ISO media (mp4, mov, 3gp), RIFF (avi) and EBML (mkv, webm) files are made have their sizes, counts and fields changed,
which reaches further into a demuxer than noise does.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np

# Name, encoder, pixels and the container's options.
_KINDS: tuple[tuple[str, str, str, dict[str, str]], ...] = (
    ("h264.mp4", "libx264", "yuv420p", {}),
    ("faststart.mp4", "libx264", "yuv420p", {"movflags": "faststart"}),
    ("fragments.mp4", "libx264", "yuv420p", {"movflags": "frag_keyframe+empty_moov"}),
    ("hevc.mp4", "libx265", "yuv420p10le", {}),
    ("av1.mp4", "libsvtav1", "yuv420p", {}),
    ("mpeg4.mov", "mpeg4", "yuv420p", {}),
    ("h263.3gp", "h263", "yuv420p", {}),
    ("h264.mkv", "libx264", "yuv420p", {}),
    ("ffv1.mkv", "ffv1", "yuv420p", {}),
    ("vp8.webm", "libvpx", "yuv420p", {}),
    ("vp9.webm", "libvpx-vp9", "yuv420p", {}),
    ("mpeg4.avi", "mpeg4", "yuv420p", {}),
    ("jpeg.avi", "mjpeg", "yuvj420p", {}),
    ("h264.ts", "libx264", "yuv420p", {}),
    ("mpeg1.mpg", "mpeg1video", "yuv420p", {}),
    ("h264.flv", "libx264", "yuv420p", {}),
    ("wmv2.wmv", "wmv2", "yuv420p", {}),
    ("animated.gif", "gif", "rgb8", {}),
)
_FRAMES, _HEIGHT, _WIDTH = 24, 144, 176  # a size that H.263 has
_LARGEST = 800_000  # bytes; larger files would cost the time of many small ones


def encode(path: Path, encoder: str, pixels: str, container: dict[str, str]) -> Path:
    """Encodes a second of noise that moves, with something bright in it."""
    noise = np.random.default_rng(0).integers(0, 120, (_HEIGHT, _WIDTH, 3), np.uint8)
    with av.open(str(path), "w", options=container) as file:
        stream = file.add_stream(encoder, rate=25, options={"x265-params": "log-level=0"})
        stream.width, stream.height, stream.pix_fmt = _WIDTH, _HEIGHT, pixels
        stream.codec_context.thread_count = 1
        for number in range(_FRAMES):
            picture = np.roll(noise, 5 * number, axis=1)
            picture[30:60, 4 * number : 4 * number + 30] = 255
            file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        file.mux(stream.encode(None))
    return path


def seed_files(folder: Path, samples: Path | None = None) -> list[Path]:
    """A little video of each kind, and the smaller ones of a folder of samples, where there is one."""
    folder.mkdir(parents=True, exist_ok=True)
    made = [encode(folder / name, *how) for name, *how in _KINDS]
    found = sorted(samples.glob("*.*")) if samples is not None and samples.is_dir() else []
    return [*made, *(path for path in found if path.suffix != ".md" and 0 < path.stat().st_size <= _LARGEST)]


@dataclass(frozen=True)
class Mutant:
    """A mutated file.

    Attributes:
        name: Its number, what was done to it, and the file that it was.
        content: Its bytes.
    """

    name: str
    content: bytes


def mutants(seeds: Sequence[Path], count: int, seed: int) -> Iterator[Mutant]:
    """So many mutated files; each depends on the seed and its number alone, so that it can be made again by itself."""
    contents = [(path.name, path.read_bytes()) for path in seeds]
    for number in range(count):
        rng = random.Random(f"{seed}/{number}")
        name, content = contents[number % len(contents)]
        other = rng.choice(contents)[1]
        done = []
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            way = rng.choice(WAYS)
            content = way(content, other, rng) or content
            done.append(way.__name__)
        yield Mutant(f"{number:05d}-{'+'.join(done)}-{name}", content)


def flips(content: bytes, _: bytes, rng: random.Random) -> bytes:
    """Flips single bits anywhere."""
    hurt = bytearray(content)
    for _ in range(rng.choice((1, 4, 16, 64))):
        hurt[rng.randrange(len(hurt))] ^= 1 << rng.randrange(8)
    return bytes(hurt)


def burst(content: bytes, _: bytes, rng: random.Random) -> bytes:
    """Overwrites a stretch with zeros, ones or noise."""
    start, end = _stretch(content, rng)
    fill = rng.choice((b"\0", b"\xff", None))
    return content[:start] + (rng.randbytes(end - start) if fill is None else fill * (end - start)) + content[end:]


def cut_off(content: bytes, _: bytes, rng: random.Random) -> bytes:
    """Ends the file early."""
    return content[: rng.randrange(1, len(content) + 1)]


def cut_out(content: bytes, _: bytes, rng: random.Random) -> bytes:
    """Takes a stretch out."""
    start, end = _stretch(content, rng)
    return content[:start] + content[end:]


def swapped(content: bytes, _: bytes, rng: random.Random) -> bytes:
    """Exchanges two stretches that follow each other."""
    start, end = _stretch(content, rng)
    middle = rng.randint(start, end)
    return content[:start] + content[middle:end] + content[start:middle] + content[end:]


def repeated(content: bytes, _: bytes, rng: random.Random) -> bytes:
    """Repeats a stretch."""
    start, end = _stretch(content, rng)
    return content[:end] + content[start:end] * rng.choice((1, 2, 10)) + content[end:]


def inserted(content: bytes, _: bytes, rng: random.Random) -> bytes:
    """Puts noise in."""
    at = rng.randrange(len(content) + 1)
    return content[:at] + rng.randbytes(rng.choice((1, 3, 64, 5000))) + content[at:]


def spliced(content: bytes, other: bytes, rng: random.Random) -> bytes:
    """Goes on as another file."""
    return content[: rng.randrange(1, len(content) + 1)] + other[rng.randrange(len(other)) :]


def extremes(content: bytes, _: bytes, rng: random.Random) -> bytes:
    """Sets numbers near the beginning or the end, where headers and indices are, to the least or the most there is."""
    hurt = bytearray(content)
    for _ in range(rng.choice((1, 2, 4))):
        near = rng.randrange(min(len(hurt), 2048))
        _set(hurt, near if rng.random() < 0.7 else max(0, len(hurt) - 1 - near), rng.choice((1, 2, 4, 8)), rng)
    return bytes(hurt)


def sizes(content: bytes, _: bytes, rng: random.Random) -> bytes | None:
    """Changes what pieces say of their own size, so that those inside or behind them are read as something else."""
    pieces = pieces_of(content)
    if not pieces:
        return None
    hurt = bytearray(content)
    for piece in rng.choices(pieces, k=rng.choice((1, 1, 2))):
        _set(hurt, piece.size_at, piece.size_bytes, rng)
    return bytes(hurt)


def fields(content: bytes, _: bytes, rng: random.Random) -> bytes | None:
    """Sets numbers within pieces: counts of tables, pictures' sides, rates, offsets."""
    pieces = [one for one in pieces_of(content) if not one.holds_pieces and one.body < one.end]
    if not pieces:
        return None
    hurt = bytearray(content)
    for piece in rng.choices(pieces, k=rng.choice((1, 1, 2, 4))):
        length = piece.end - piece.body
        if length <= 8:
            _set(hurt, piece.body, length, rng)
        else:
            _set(hurt, piece.body + 2 * rng.randrange(min(length, 96) // 2), rng.choice((2, 4, 4, 8)), rng)
    return bytes(hurt)


def rearranged(content: bytes, _: bytes, rng: random.Random) -> bytes | None:
    """Takes a piece out, doubles it, or puts it where another one begins."""
    pieces = pieces_of(content)
    if not pieces:
        return None
    piece = rng.choice(pieces)
    whole = content[piece.start : piece.end]
    match rng.randrange(3):
        case 0:
            return content[: piece.start] + content[piece.end :]
        case 1:
            return content[: piece.end] + whole + content[piece.end :]
        case _:
            at = rng.choice(pieces).start
            return content[:at] + whole + content[at:]


WAYS: tuple[Callable[[bytes, bytes, random.Random], bytes | None], ...] = (
    flips,
    burst,
    cut_off,
    cut_out,
    swapped,
    repeated,
    inserted,
    spliced,
    extremes,
    # they find most
    *(sizes, sizes),
    *(fields, fields, fields),
    rearranged,
)


def _stretch(content: bytes, rng: random.Random) -> tuple[int, int]:
    start = rng.randrange(len(content))
    return start, min(len(content), start + rng.choice((1, 8, 100, 1000, len(content) // 4 + 1)))


def _set(hurt: bytearray, at: int, length: int, rng: random.Random) -> None:
    """Sets a number to an extreme, to nearly what it was, or to anything."""
    length = min(length, len(hurt) - at)
    if length < 1:
        return
    most = 1 << 8 * length
    order = rng.choice(("big", "little"))
    before = int.from_bytes(hurt[at : at + length], order)
    extreme = (0, 1, most - 1, most // 2, most // 2 - 1, most // 16, 0xFFFF, 0x4000)
    value = rng.choice((rng.choice(extreme), before + rng.choice((-1, 1, 8)), before * 2, rng.randrange(most)))
    hurt[at : at + length] = (value % most).to_bytes(length, order)


@dataclass(frozen=True)
class Piece:
    """A box, chunk or element of a file.

    Attributes:
        start: Where it begins.
        body: Where its content begins.
        end: Where it ends.
        size_at: Where its size stands.
        size_bytes: How long its size is.
        holds_pieces: Whether its content is pieces.
    """

    start: int
    body: int
    end: int
    size_at: int
    size_bytes: int
    holds_pieces: bool


def pieces_of(content: bytes) -> list[Piece]:
    """All pieces of a file at every depth; none of a file of another make."""
    if content[4:8] in (b"ftyp", b"moov", b"mdat", b"free", b"wide"):
        return list(_boxes(content, 0, len(content)))
    if content[:4] == b"RIFF":
        return list(_chunks(content, 0, len(content)))
    if content[:4] == b"\x1a\x45\xdf\xa3":
        return list(_elements(content, 0, len(content)))
    return []


_BOXES = b"moov trak mdia minf stbl edts dinf mvex moof traf udta".split()


def _boxes(content: bytes, at: int, end: int) -> Iterator[Piece]:
    while at + 8 <= end:
        size, kind = int.from_bytes(content[at : at + 4], "big"), content[at + 4 : at + 8]
        upto = end if size == 0 else min(end, at + max(size, 8))
        yield Piece(at, at + 8, upto, at, 4, kind in _BOXES)
        if kind in _BOXES:
            yield from _boxes(content, at + 8, upto)
        at = upto


def _chunks(content: bytes, at: int, end: int) -> Iterator[Piece]:
    while at + 8 <= end:
        size, kind = int.from_bytes(content[at + 4 : at + 8], "little"), content[at : at + 4]
        upto = min(end, at + 8 + size)
        holds = kind in (b"RIFF", b"LIST")
        yield Piece(at, at + 8, upto, at + 4, 4, holds)
        if holds:
            yield from _chunks(content, at + 12, upto)
        at = upto + size % 2


# Segment, Info, Tracks, TrackEntry, Video, Cluster, BlockGroup, Cues, CuePoint, CueTrackPositions, SeekHead, Seek.
_MASTERS = {
    *(0x18538067, 0x1549A966, 0x1654AE6B, 0xAE, 0xE0, 0x1F43B675, 0xA0, 0x1C53BB6B, 0xBB, 0xB7, 0x114D9B74, 0x4DBB),
    0x1A45DFA3,
}


def _elements(content: bytes, at: int, end: int) -> Iterator[Piece]:
    while at + 2 <= end and content[at] and content[at] >= 0x10:
        size_at = at + 9 - content[at].bit_length()
        if size_at >= end or not content[size_at]:
            return
        size_bytes = 9 - content[size_at].bit_length()
        body = size_at + size_bytes
        size = int.from_bytes(content[size_at:body], "big") & ((1 << 7 * size_bytes) - 1)
        unknown = size == (1 << 7 * size_bytes) - 1
        upto = end if unknown else min(end, body + size)
        holds = int.from_bytes(content[at:size_at], "big") in _MASTERS
        yield Piece(at, body, upto, size_at, size_bytes, holds)
        if holds:
            yield from _elements(content, body, upto)
        at = max(upto, at + 1)
