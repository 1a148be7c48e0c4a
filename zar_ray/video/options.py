"""Options of what is read of a video."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from zar_ray.options.base import Options, operational, option

Decoder = Literal["auto", "decord", "pyav", "torchcodec", "torchcodec-nvdec"]
Resizer = Literal["pil", "torch"]
Sampling = Literal["parts", "segments", "ticks", "stride", "dense"]


class ViewConfig(Options):
    """Which views of a video the adaptation sees (DESIGN.md, "ZAR, exactly", 1 to 4)."""

    frames: int = option(16, "T, frames a view.", ge=1)
    eval_frames: int = option(16, "Frames of the evaluation view, which is classified.", ge=1)
    rates: tuple[Annotated[float, Field(gt=0, le=1)], ...] = option(
        (1.0, 0.5, 0.25, 0.125), "Segment lengths as shares of the video, one a frame rate.", min_length=1
    )
    views_per_rate: int = option(4, "M, segments drawn a rate.", ge=1)
    crops: Literal[1, 3, 5, 9] = option(3, "N_c, crops a segment.")
    eval_views: str = option(
        "1x1",
        "Evaluation views, temporal x spatial, whose scores are averaged, as 4x3; `--views 4x3` for short.",
        pattern=r"^[1-9][0-9]*x[1359]$",
    )
    eval_sampling: Sampling = option(
        "parts",
        "Which frames an evaluation view has: the centres of equal parts; or as a published system's code: segments"
        " (ViFi-CLIP, X-CLIP), ticks (ActionCLIP, EZ-CLIP), stride (Vita-CLIP), dense (A5); docs/models.md.",
    )
    eval_stride: int = option(16, "Frames from one to the next of an evaluation view, under stride.", ge=1)
    short_side: int | None = option(
        None,
        "Short side frames are resized to; by default the model's input size, or 8/7 of it for 5 and 9"
        " crops and for checkpoints trained that way.",
        ge=1,
    )


class DecodeOptions(Options):
    """How files become frames."""

    decoder: Decoder = option("auto", "auto: PyAV, which reads most files; recorded a video. torchcodec is an extra.")
    resize: Resizer = option("pil", "torch: PyTorch's faster kernel, with two values of a thousand other than pil's.")
    decode_timeout: float = operational(120.0, "Seconds a video may take to decode before it fails.", gt=0)
