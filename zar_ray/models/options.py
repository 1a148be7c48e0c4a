"""Options of the model."""

from __future__ import annotations

from typing import Literal

from zar_ray.data.options import ContextOption
from zar_ray.options.base import operational, option
from zar_ray.options.places import FilePlace

Precision = Literal["fp32", "bf16", "fp16"]

ClassPosition = Literal["end", "middle", "front"]


class ModelOptions(ContextOption):
    """Which weights, and how they run."""

    model: str = option(
        "ViT-B-16-quickgelu",
        "An open_clip model name (OpenAI weights need -quickgelu), or a published system's, see docs/models.md.",
    )
    pretrained: str | None = option(
        "openai", 'An open_clip tag, downloaded on first use; "random" for untrained weights (every output says so).'
    )
    checkpoint: FilePlace | None = option(
        None,
        "A checkpoint (.safetensors or .pt), also at a URI, instead of a tag: zar-ray's, OpenAI's, open_clip's or a"
        " published system's (docs/checkpoints.md).",
    )
    settings: tuple[str, ...] = option(
        (),
        "NAME=VALUE words: what a checkpoint's tensors do not tell, such as heads, and sizes of what a published system"
        " adds anew, such as frames=16 (docs/models.md).",
    )
    precision: Precision = option("fp32", "The image encoder's precision; text and tuning stay float32.")
    device: str = operational("auto", "Device of a worker: auto (a GPU where there is one), cpu or cuda.")
    encoder_batch: int | None = operational(
        None,
        "Images a pass of the image encoder, of as many videos as it takes; by default 64, and 256 on a GPU.",
        ge=1,
    )
