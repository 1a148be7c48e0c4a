"""Options of the model."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from zar_ray.data.options import ContextOption
from zar_ray.options.base import operational

Precision = Literal["fp32", "bf16", "fp16"]

ClassPosition = Literal["end", "middle", "front"]


class ModelOptions(ContextOption):
    """Which weights, and how they run."""

    model: str = Field(
        default="ViT-B-16-quickgelu",
        description="An open_clip model name (OpenAI weights need -quickgelu), or a published system's, see"
        " docs/models.md.",
    )
    pretrained: str | None = Field(
        default="openai",
        description='An open_clip tag, downloaded on first use; "random" for untrained weights (every output says so).',
    )
    checkpoint: Path | None = Field(
        default=None,
        description="A local checkpoint (.safetensors or .pt) instead of a tag: zar-ray's, OpenAI's, open_clip's or a"
        " published system's (docs/checkpoints.md).",
    )
    precision: Precision = Field(
        default="fp32", description="The image encoder's precision; text and tuning stay float32."
    )
    device: str = operational("auto", "Device of a worker: auto, cpu or cuda.")
    encoder_batch: int = operational(64, "Images a pass of the image encoder, of as many videos as it takes.", ge=1)
