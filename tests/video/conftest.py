"""Little real video files of every kind, whose pictures carry their number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

_STEP, _DARKEST = 24, 16  # ten levels of brightness, far enough apart for any codec


def numbered_picture(number: int, height: int = 48, width: int = 64) -> np.ndarray:
    """uint8 (height, width, 3): the brightness of the left half is the first digit, of the right half the second."""
    picture = np.empty((height, width, 3), np.uint8)
    picture[:, : width // 2] = _DARKEST + _STEP * (number // 10)
    picture[:, width // 2 :] = _DARKEST + _STEP * (number % 10)
    return picture


def read_number(picture: np.ndarray) -> int:
    """The number of a `numbered_picture` after coding; edges between the halves are left out."""
    width = picture.shape[1]
    tens, ones = (part.mean() for part in (picture[:, : width // 2 - 1], picture[:, width // 2 + 1 :]))
    return 10 * round((tens - _DARKEST) / _STEP) + round((ones - _DARKEST) / _STEP)


def write(
    path: Path,
    pictures: Sequence[np.ndarray],
    codec: str = "libx264",
    pixels: str = "yuv420p",
    options: dict[str, str] | None = None,
    times: list[int] | None = None,
    rotation: int = 0,
    container: dict[str, str] | None = None,
    b_frames: int | None = None,
) -> Path:
    """Encodes pictures at 30 a second, or shown at `times` in thousandths of a second."""
    with av.open(str(path), "w", options=container or {}) as file:
        stream = file.add_stream(codec, rate=30, options=options or {})
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = pixels
        stream.codec_context.thread_count = 1
        if b_frames is not None:
            stream.codec_context.max_b_frames = b_frames
        if rotation:
            stream.set_display_rotation(rotation)
        if times:
            stream.codec_context.time_base = Fraction(1, 1000)
        for index, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            if times:
                frame.pts, frame.time_base = times[index], Fraction(1, 1000)
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return path


@dataclass(frozen=True)
class Sample:
    """A file, and what must be found in it."""

    path: Path
    frames: int
    height: int = 48
    width: int = 64
    decoder: str = "decord"


_B_FRAMES = {"x264-params": "keyint=250:bframes=3:b-adapt=0:open-gop=1", "crf": "16"}
_SHORT_GOP = {"x264-params": "keyint=12:min-keyint=12:scenecut=0:bframes=3:b-adapt=0:open-gop=1", "crf": "16"}


@pytest.fixture(scope="session")
def samples(tmp_path_factory) -> dict[str, Sample]:
    """One file of each kind that must be read, by name."""
    root = tmp_path_factory.mktemp("kinds")
    hundred = [numbered_picture(number) for number in range(100)]
    thirty = hundred[:30]

    def sample(name: str, pictures=thirty, decoder: str = "decord", **how) -> Sample:
        path = write(root / name, pictures, **how)
        return Sample(path, len(pictures), *pictures[0].shape[:2], decoder=decoder)

    return {
        "long group": sample("long.mp4", hundred, options=_B_FRAMES),
        "open groups": sample("groups.mp4", hundred, options=_SHORT_GOP),
        "matroska": sample("matroska.mkv", hundred, options=_SHORT_GOP),
        "h264 avi": sample("h264.avi", options=_SHORT_GOP),
        "mpeg4 avi": sample("mpeg4.avi", hundred, codec="mpeg4", b_frames=2, options={"qmin": "1", "qmax": "3"}),
        "motion jpeg": sample("jpeg.avi", codec="mjpeg", pixels="yuvj420p"),
        "vp8": sample("vp8.webm", codec="libvpx", options={"auto-alt-ref": "1", "lag-in-frames": "16", "b": "1M"}),
        "vp9": sample("vp9.webm", codec="libvpx-vp9", options={"cpu-used": "8", "deadline": "realtime", "crf": "20"}),
        "hevc of ten bits": sample(
            "hevc.mp4", codec="libx265", pixels="yuv420p10le", options={"x265-params": "log-level=0", "crf": "16"}
        ),
        "variable rate": sample(
            "variable.mp4", times=[33 * i + 7 * (i % 5) + 400 * (i // 10) for i in range(30)], options=_B_FRAMES
        ),
        "odd size": sample("odd.mkv", [numbered_picture(i, 27, 35) for i in range(30)], codec="ffv1", pixels="yuv420p"),
        "padded rows": sample("padded.mov", [numbered_picture(i, 64, 48) for i in range(30)], options={"crf": "16"}),
        "tiny": sample("tiny.mkv", [numbered_picture(i, 8, 16) for i in range(30)], codec="ffv1", pixels="yuv444p"),
        "grey": sample("grey.avi", codec="ffv1", pixels="gray"),
        "one frame": sample("one.mp4", thirty[:1]),
        "three frames": sample("three.mp4", thirty[:3], options=_B_FRAMES),
        "gif": sample("animated.gif", codec="gif", pixels="rgb8", decoder="pyav"),
        "av1": sample("av1.mp4", codec="libsvtav1", options={"preset": "12", "crf": "20"}, decoder="pyav"),
        "transport stream": sample("stream.ts", options=_SHORT_GOP, decoder="pyav"),
        "mpeg": sample("old.mpg", codec="mpeg1video", b_frames=2, options={"qmin": "1", "qmax": "3"}, decoder="pyav"),
        "flash": sample("flash.flv", options=_B_FRAMES, decoder="pyav"),
    }


KINDS = (
    "long group",
    "open groups",
    "matroska",
    "h264 avi",
    "mpeg4 avi",
    "motion jpeg",
    "vp8",
    "vp9",
    "hevc of ten bits",
    "variable rate",
    "odd size",
    "padded rows",
    "tiny",
    "grey",
    "one frame",
    "three frames",
    "gif",
    "av1",
    "transport stream",
    "mpeg",
    "flash",
)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "kind" in metafunc.fixturenames:
        metafunc.parametrize("kind", KINDS)


@pytest.fixture
def sample(samples, kind) -> Sample:
    """Each of the `samples` in turn."""
    return samples[kind]


@pytest.fixture(scope="session")
def number_of():
    """Reads the number off a decoded picture."""
    return read_number


@pytest.fixture(scope="session")
def write_video():
    """The writer of video files from pictures."""
    return write


@pytest.fixture(scope="session")
def picture_of():
    """The painter of numbered pictures."""
    return numbered_picture


@pytest.fixture(scope="session")
def whole_file(tmp_path_factory) -> Path:
    """An mp4 of 100 numbered, noisy frames in one group, its index before its data, so that it can be cut and hurt."""
    rng = np.random.default_rng(0)
    pictures = [
        np.clip(numbered_picture(i, 120, 160) + rng.integers(-10, 10, (120, 160, 3)), 0, 255).astype(np.uint8)
        for i in range(100)
    ]
    return write(
        tmp_path_factory.mktemp("whole") / "whole.mp4",
        pictures,
        options={"x264-params": "keyint=250:bframes=3", "crf": "28"},
        container={"movflags": "faststart"},
    )


@pytest.fixture
def cut(whole_file, tmp_path) -> Path:
    """That file without its last two per cent."""
    data = whole_file.read_bytes()
    path = tmp_path / "cut.mp4"
    path.write_bytes(data[: int(0.98 * len(data))])
    return path


@pytest.fixture
def hurt_tail(whole_file, tmp_path) -> Path:
    """That file with its last five per cent zeroed."""
    data = bytearray(whole_file.read_bytes())
    start = int(0.95 * len(data))
    data[start:] = bytes(len(data) - start)
    path = tmp_path / "tail.mp4"
    path.write_bytes(data)
    return path


@pytest.fixture
def hurt_middle(whole_file, tmp_path) -> Path:
    """That file with one per cent in its middle zeroed."""
    data = bytearray(whole_file.read_bytes())
    start, size = len(data) // 2, len(data) // 100
    data[start : start + size] = bytes(size)
    path = tmp_path / "middle.mp4"
    path.write_bytes(data)
    return path


@pytest.fixture
def headless_groups(tmp_path, samples) -> Path:
    """A file that begins, as recordings do, in the middle of a group: what precedes its key frame cannot be decoded."""
    path = tmp_path / "recording.mkv"
    with av.open(str(samples["matroska"].path)) as source, av.open(str(path), "w") as target:
        stream = source.streams.video[0]
        copy = target.add_stream_from_template(stream)
        for number, packet in enumerate(source.demux(stream)):
            if packet.dts is not None and number >= 5:
                packet.stream = copy
                target.mux(packet)
    return path
