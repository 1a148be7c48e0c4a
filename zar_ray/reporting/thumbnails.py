"""A few small frames of a video, as pictures inside a page."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from zar_ray.data.manifest import VideoRow
from zar_ray.errors import VideoError
from zar_ray.reporting.pages import Picture
from zar_ray.video.decoding import decode_video
from zar_ray.video.plans import evaluation_view_frames
from zar_ray.video.reading import VideoInfo

_FRAMES = 4
_SHORT_SIDE = 120
_QUALITY = 80


@dataclass(frozen=True, eq=False)
class _Frames:
    """The part of a view plan that decoding needs."""

    frames: np.ndarray
    short_side: int = _SHORT_SIDE


def thumbnails(video: VideoRow, config: Mapping[str, Any]) -> tuple[Picture, ...]:
    """Some frames of a video's evaluation view, evenly spread.

    Args:
        video: Its row of the run's manifest.
        config: The run's resolved options, as plain JSON values.

    Raises:
        VideoError: The file is not there, or is not as the manifest says, or cannot be decoded.
    """
    if not Path(video.path).is_file():
        raise VideoError(f"there is no {video.path}", stage="open")

    def plan_of(info: VideoInfo) -> _Frames:
        frames = np.unique(evaluation_view_frames(0, 1, config["views"]["eval_frames"], info.frames))
        count = min(_FRAMES, len(frames))
        return _Frames(frames[(2 * np.arange(count) + 1) * len(frames) // (2 * count)])

    decoded = decode_video(video.path, plan_of, decoder=config["decoder"], timeout=config["decode_timeout"])
    return tuple(
        _picture(frame, f"{video.video_id}, picture {number} of {len(decoded.frames)}")
        for number, frame in enumerate(decoded.frames, start=1)
    )


def _picture(frame: np.ndarray, alt: str) -> Picture:
    file = io.BytesIO()
    Image.fromarray(frame).save(file, format="JPEG", quality=_QUALITY)
    return Picture.of(file.getvalue(), "image/jpeg", alt)
