"""Options of the model."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from zar_ray.options.base import Options, operational

Precision = Literal["fp32", "bf16", "fp16"]

CONTEXT = "a video of a"
"""The context's words where neither the user nor the model's system names others."""

ClassPosition = Literal["end", "middle", "front"]


class ModelOptions(Options):
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
    context: str | None = Field(
        default=None,
        min_length=1,
        description="The words the context vectors start from, or the .safetensors file of a learned context; by"
        ' default those of the model\'s system (docs/models.md), else "a video of a".',
    )
    precision: Precision = Field(
        default="fp32", description="The image encoder's precision; text and tuning stay float32."
    )
    device: str = operational("auto", "Device of a worker: auto, cpu or cuda.")
    encoder_batch: int = operational(64, "Images a pass of the image encoder, of as many videos as it takes.", ge=1)
