"""Opening videos: which decoder reads a file, and what is known of it.

decord comes first. PyAV reads what decord cannot: other codecs (AV1), other containers (GIF, MPEG-TS), damaged files,
videos so large that decord's decoding ahead would fill the memory, and everything on platforms without decord. Both
give the same frames under the same indices, and the one that gave them is recorded.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager

from zar_ray.errors import ConfigError
from zar_ray.video.inspection import Deadline, Inspection, inspect_video
from zar_ray.video.options import Decoder
from zar_ray.video.readers import DecordError, DecordReader, PyavReader, VideoInfo, VideoReader

# decord may decode all frames ahead of their use; a worker's memory should not depend on how far it gets.
_DECORD_BYTES = 256 * 2**20


def probe_video(path: str | os.PathLike[str], decoder: Decoder = "auto") -> VideoInfo:
    """What a manifest records of a file; decodes its first frame only.

    Args:
        path: The file.
        decoder: Which decoder is to read it.

    Raises:
        VideoError: The file is no video that can be read (stage ``open``).
        ConfigError: The decoder is not installed.
    """
    with open_video(path, decoder) as reader:
        return reader.info


@contextmanager
def open_video(
    path: str | os.PathLike[str], decoder: Decoder = "auto", deadline: Deadline | None = None
) -> Iterator[VideoReader]:
    """Opens a video for reading and closes it however the block ends.

    Args:
        path: The file.
        decoder: ``decord`` or ``pyav``; ``auto`` takes decord where it suits the file.
        deadline: When to give up opening; a file's packets are all looked at.

    Raises:
        VideoError: The file is no video that can be read (stage ``open``).
        ConfigError: The decoder is not installed.
    """
    if decoder == "decord" and not has_decord():
        raise ConfigError("decord is not installed here; use --decoder auto or --decoder pyav")
    reader = _open(inspect_video(path, deadline), decoder)
    try:
        yield reader
    finally:
        reader.close()


def has_decord() -> bool:
    """Whether decord is installed; there are wheels for Linux on x86-64 only."""
    return importlib.util.find_spec("decord") is not None


def _open(inspection: Inspection, decoder: Decoder) -> VideoReader:
    if decoder == "decord":
        return DecordReader(inspection)
    fits = 3 * inspection.frames * inspection.width * inspection.height <= _DECORD_BYTES
    if decoder == "auto" and has_decord() and fits:
        try:
            return DecordReader(inspection)
        except DecordError:
            return PyavReader(inspection)
    return PyavReader(inspection)
