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


@pytest.fixture(scope="session")
def tiny_video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An H.264 file: 6 frames, 48 wide, 32 high, 12 a second."""
    path = tmp_path_factory.mktemp("tiny") / "tiny.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(FPS))
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for index in range(FRAMES):
            picture = np.full((HEIGHT, WIDTH, 3), 30 * index, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.fixture
def put_video(tiny_video: Path) -> Callable[[Path], Path]:
    """Puts a copy of the little video at a path, folders included."""

    def put(path: Path) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(tiny_video, path)
        return path

    return put
