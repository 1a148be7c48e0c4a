"""Real little videos for the tests of datasets."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

FRAMES, WIDTH, HEIGHT, FPS = 6, 48, 32, 12


CODECS = {".mp4": "libx264", ".mkv": "libx264", ".avi": "mpeg4", ".webm": "libvpx"}


@pytest.fixture(scope="session")
def tiny_videos(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A file of each kind by its extension: 6 frames, 48 wide, 32 high, 12 a second."""
    folder = tmp_path_factory.mktemp("tiny")
    return {kind: _write(folder / f"tiny{kind}", codec) for kind, codec in CODECS.items()}


@pytest.fixture(scope="session")
def tiny_video(tiny_videos: dict[str, Path]) -> Path:
    """An H.264 file: 6 frames, 48 wide, 32 high, 12 a second."""
    return tiny_videos[".mp4"]


def _write(path: Path, codec: str) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=Fraction(FPS))
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for index in range(FRAMES):
            picture = np.full((HEIGHT, WIDTH, 3), 30 * index, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.fixture
def put_video(tiny_videos: dict[str, Path]) -> Callable[[Path], Path]:
    """Puts a copy of the little video of the path's kind at a path, folders included."""

    def put(path: Path) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(tiny_videos.get(path.suffix.lower(), tiny_videos[".mp4"]), path)
        return path

    return put
