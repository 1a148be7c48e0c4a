"""One pass of the image encoder three ways: open_clip's own call with and without its fused path, and ours."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch
from measure import Stopwatch, count_flops, matmul_peak, product_share
from reference import fast_path

from zar_ray.models.clip import ClipModel
from zar_ray.models.precision import exact_float32

_CPU_ROUNDS, _GPU_ROUNDS = 3, 20


@dataclass(frozen=True)
class EncoderFacts:
    """The image encoder by itself; images are encoded from pixels that are cropped and normalised already.

    Attributes:
        images: Images in the pass that was timed.
        open_clip_seconds: Of `clip.visual` as it is shipped; the median of a few alternating rounds.
        unfused_seconds: Of the same call with the attention kernel that ours uses.
        our_seconds: Of `ClipModel.encode_images`.
        open_clip_flops: An image's operations in open_clip's pass, two a multiplication with addition.
        our_flops: In ours, which computes the class token alone in the last block.
        open_clip_product_share: Share of the pass that matrix products, convolution and attention take.
        our_product_share: The same of ours.
        peak_flops: A second, of the machine's fastest large matrix product of the same type.
    """

    images: int
    open_clip_seconds: float
    unfused_seconds: float
    our_seconds: float
    open_clip_flops: int
    our_flops: int
    open_clip_product_share: float
    our_product_share: float
    peak_flops: float

    @property
    def fused_is_faster(self) -> bool:
        """Which of open_clip's two ways the reference takes: the faster."""
        return self.open_clip_seconds <= self.unfused_seconds

    @property
    def reference_to_open_clip(self) -> float:
        """How long the reference's encoding takes as a multiple of open_clip's own call; at most 1."""
        return min(self.open_clip_seconds, self.unfused_seconds) / self.open_clip_seconds

    @property
    def open_clip_to_ours(self) -> float:
        """How much faster than open_clip's own call ours is."""
        return self.open_clip_seconds / self.our_seconds


def measure_encoder(model: ClipModel, encoder_batch: int, autocast: torch.dtype | None) -> EncoderFacts:
    """Times, counts and profiles one pass each way.

    Args:
        model: The model, on its device.
        encoder_batch: Images a pass.
        autocast: The type of products; None for float32.
    """
    device, size = model.device, model.preprocessing.input_size
    pixels = torch.randn(encoder_batch, 3, size, size, generator=torch.Generator().manual_seed(0)).to(device)
    pixels = pixels.contiguous(memory_format=torch.channels_last)  # as `normalise` makes them

    def open_clip_call(count: int = encoder_batch) -> None:
        with (
            torch.inference_mode(),
            exact_float32(),
            torch.autocast(device.type, dtype=autocast, enabled=autocast is not None),
        ):
            model.clip.visual(pixels[:count])

    def unfused_call() -> None:
        with fast_path(False):
            open_clip_call()

    def our_call(count: int = encoder_batch) -> None:
        model.encode_images(pixels[:count])

    def open_clip_image() -> None:
        with fast_path(False):
            open_clip_call(1)  # the fused path hides its products from the counter

    dtype = autocast or model.dtype
    peak = matmul_peak(device, dtype)
    stock, unfused, ours = _alternate((open_clip_call, unfused_call, our_call), device)
    return EncoderFacts(
        images=encoder_batch,
        open_clip_seconds=stock,
        unfused_seconds=unfused,
        our_seconds=ours,
        open_clip_flops=count_flops(open_clip_image),
        our_flops=count_flops(lambda: our_call(1)),
        open_clip_product_share=product_share(open_clip_call, device),
        our_product_share=product_share(our_call, device),
        # once more after the work: a shared machine's speed changes
        peak_flops=max(peak, matmul_peak(device, dtype)),
    )


def _alternate(calls: tuple[Callable[[], None], ...], device: torch.device) -> list[float]:
    """Median seconds of each call, one after another in rounds, after one call each that is not counted."""
    for call in calls:
        call()
    rounds = []
    for _ in range(_GPU_ROUNDS if device.type == "cuda" else _CPU_ROUNDS):
        watch = Stopwatch(device)
        seconds = []
        for call in calls:
            call()
            seconds.append(watch.lap())
        rounds.append(seconds)
    return [statistics.median(column) for column in zip(*rounds, strict=True)]
