"""Options of what is read of a video."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from zar_ray.options.base import Options, operational

Decoder = Literal["auto", "decord", "pyav"]


class ViewConfig(Options):
    """Which views of a video the adaptation sees (DESIGN.md, "ZAR, exactly", 1 to 4)."""

    frames: int = Field(default=16, ge=1, description="T, frames a view.")
    eval_frames: int = Field(default=16, ge=1, description="Frames of the evaluation view, which is classified.")
    rates: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field(
        default=(1.0, 0.5, 0.25, 0.125),
        min_length=1,
        description="Segment lengths as shares of the video, one a frame rate.",
    )
    views_per_rate: int = Field(default=4, ge=1, description="M, segments drawn a rate.")
    crops: Literal[1, 3, 5, 9] = Field(default=3, description="N_c, crops a segment.")
    eval_views: str = Field(
        default="1x1",
        pattern=r"^[1-9][0-9]*x[1359]$",
        description="Evaluation views, temporal x spatial, whose scores are averaged, as 4x3; `--views 4x3` for short.",
    )
    short_side: int | None = Field(
        default=None,
        ge=1,
        description="Short side frames are resized to; by default the model's input size, or 8/7 of it for 5 and 9"
        " crops and for checkpoints trained that way.",
    )


class DecodeOptions(Options):
    """How files become frames."""

    decoder: Decoder = Field(default="auto", description="auto: decord where it can, PyAV otherwise; recorded a video.")
    decode_timeout: float = operational(120.0, "Seconds a video may take to decode before it fails.", gt=0)
