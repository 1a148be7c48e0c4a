"""A training step's speed and memory: what docs/training.md works expected times out from.

python bench/train.py --model ViT-B-16-quickgelu --videos 1 --frames 8

One forward and backward pass of one micro-batch, with random pixels: operations, seconds, the share of the machine's
fastest matrix product that is reached, and peak memory, with and without gradient checkpointing.
"""

from __future__ import annotations

import json
import statistics
from dataclasses import asdict, dataclass
from typing import Annotated

import torch
import tyro
from measure import PeakMemory, Stopwatch, count_flops, keep_freed_memory, machine_facts, matmul_peak
from torch.nn.functional import cross_entropy

from zar_ray.data.class_texts import prompts_of
from zar_ray.models.devices import pick_device
from zar_ray.models.loading import load_model
from zar_ray.models.options import ModelOptions
from zar_ray.training.network import VideoTextModel
from zar_ray.training.options import TrainConfig

_ROUNDS = 3


@dataclass(frozen=True)
class StepFacts:
    """One micro-batch's forward and backward pass.

    Attributes:
        grad_checkpointing: Whether activations were computed twice rather than kept.
        images: Frames in the micro-batch.
        flops: Operations of the pass, two a multiplication with addition.
        seconds: The median of a few passes.
        peak_share: Of the fastest matrix product of the machine, reached over the pass.
        bytes_an_image: Peak memory above weights and gradients, by images.
    """

    grad_checkpointing: bool
    images: int
    flops: int
    seconds: float
    peak_share: float
    bytes_an_image: float


def measure_step(options: TrainConfig, videos: int, classes: int) -> StepFacts:
    """Measures one micro-batch.

    Args:
        options: Model, frames, precision and gradient checkpointing.
        videos: Videos in it.
        classes: Class texts, which every micro-batch reads.
    """
    device = pick_device(options.device)
    named = {"model": options.model, "checkpoint": options.checkpoint, "pretrained": "random"}
    model = load_model(ModelOptions.model_validate(named), device)
    (prompts,) = prompts_of([[f"class number {number}" for number in range(classes)]], options)
    network = VideoTextModel(model, prompts, options)
    size = model.preprocessing.input_size
    pixels = torch.randn(videos, options.frames, 3, size, size, device=device)
    labels = torch.zeros(videos, dtype=torch.int64, device=device)
    dtype = torch.bfloat16 if options.precision == "bf16" else torch.float32

    def step() -> None:
        with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
            logits = network(pixels)
        cross_entropy(logits, labels).backward()

    step()  # gradients exist from here on
    flops = count_flops(step)
    with PeakMemory(device) as memory:
        step()
    seconds, watch = [], Stopwatch(device)
    for _ in range(_ROUNDS):
        step()
        seconds.append(watch.lap())
    images = videos * options.frames
    rate = flops / statistics.median(seconds)
    return StepFacts(
        options.grad_checkpointing,
        images,
        flops,
        statistics.median(seconds),
        rate / matmul_peak(device, dtype),
        (memory.peak or 0) / images,
    )


def main(
    model: Annotated[str, tyro.conf.arg(help="An open_clip name.")] = "ViT-B-16-quickgelu",
    videos: int = 1,
    frames: int = 8,
    classes: int = 20,
    precision: str = "fp32",
    device: str = "auto",
) -> None:
    """Prints a line without and one with gradient checkpointing, and all numbers as JSON."""
    keep_freed_memory()
    print(json.dumps(machine_facts(pick_device(device))))
    for checkpointing in (False, True):
        values = {"model": model, "frames": frames, "precision": precision, "device": device}
        options = TrainConfig.model_validate({**values, "grad_checkpointing": checkpointing})
        facts = measure_step(options, videos, classes)
        print(
            f"{model}, gradient checkpointing {'on' if checkpointing else 'off'}: {facts.images} images,"
            f" {facts.flops / facts.images / 1e9:.1f} GFLOP an image, {facts.images / facts.seconds:.2f} images/s,"
            f" {facts.peak_share:.0%} of the fastest product, {facts.bytes_an_image / 2**20:.0f} MiB an image"
        )
        print(json.dumps(asdict(facts)))


if __name__ == "__main__":
    tyro.cli(main)
