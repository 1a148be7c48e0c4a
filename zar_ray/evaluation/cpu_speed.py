"""How long videos take on CPUs, and what would be faster: computed of operations, with this machine's speed measured.

A block of a ViT-B/16 is timed, as encoders do nearly all of what a run computes; that takes a fraction of a second.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import pyarrow as pa
import torch

from zar_ray.evaluation.planning import PlannedModel
from zar_ray.evaluation.resources import Resources
from zar_ray.evaluation.supply import (
    KINETICS,
    PEAKS,
    USUAL_PLANS,
    Plans,
    encoder_operations,
    reached,
    run_plans,
    tuning_operations,
)
from zar_ray.models.architecture import named_architecture
from zar_ray.models.cost import image_gflops, weightless
from zar_ray.models.options import Precision
from zar_ray.video.options import ViewConfig
from zar_ray.video.reading import VideoInfo
from zar_ray.video.transforms import Preprocessing

_WIDTH, _HEADS, _TOKENS, _IMAGES = 768, 12, 197, 2
_TRIALS = 3
_WORTH_SAYING = 60.0  # seconds of a run
_CLEARLY_FASTER = 1.2
_SMALLER = "ViT-B-32-quickgelu"
_SHOWN_GPUS = ("L4", "H100")


@dataclass(frozen=True)
class CpuTime:
    """What a video takes on CPUs.

    Attributes:
        plans: Of each model the views, what it wants of pixels and its GFLOPs an image.
        tuning: Operations of the text towers.
        video: What videos are like.
        threads: CPU threads of a replica.
        precision: The image encoder's.
        needs_views: Whether the methods look at other views than the evaluation view.
    """

    plans: Plans
    tuning: float
    video: VideoInfo
    threads: int
    precision: Precision
    needs_views: bool

    @property
    def encoding(self) -> tuple[float, int]:
        """Operations of the image encoders, and the first one's images."""
        return encoder_operations(self.plans, self.video, needs_views=self.needs_views)

    @property
    def images(self) -> int:
        """That the first model encodes for it."""
        return self.encoding[1]

    @property
    def seconds(self) -> float:
        """Of a model replica."""
        encoder = self.encoding[0] / operations_a_second(self.precision)
        return (encoder + self.tuning / operations_a_second()) / self.threads

    @property
    def faster(self) -> tuple[str, ...]:
        """What would be faster, a way each."""
        operations = self.encoding[0] + self.tuning
        gpus = (f"{name} {spoken(operations / reached(PEAKS[name]))}" for name in _SHOWN_GPUS)
        ways = [f"a GPU (est: {', '.join(gpus)})"]
        gain = operations_a_second("bf16") / operations_a_second()
        if self.precision == "fp32" and gain > _CLEARLY_FASTER:
            ways.append(f"--precision bf16 (encodes {gain:.1f} times as fast here)")
        few = replace(self, plans=[(_fewer(views), pixels, gflops) for views, pixels, gflops in self.plans]).images
        if few < self.images:
            ways.append(f"fewer views (--views.views-per-rate 1: {few} images)")
        share = _smaller_gflops() / max(gflops for *_, gflops in self.plans)
        if share < 1 / _CLEARLY_FASTER:
            ways.append(f"a smaller model (--model {_SMALLER}: {share:.0%} of the operations an image)")
        return tuple(ways)

    def described(self, videos: int, workers: int) -> str:
        """A line about a run of so many videos on so many replicas."""
        whole = spoken(videos * self.seconds / workers)
        return (
            f"on CPUs as here a video takes about {spoken(self.seconds)} of {self.threads} "
            f"thread{'s' * (self.threads != 1)} ({self.images} images), {videos} videos {whole}; {self.ways}"
        )

    @property
    def ways(self) -> str:
        """What would be faster, in words."""
        return f"faster: {'; '.join(self.faster)}"


def spoken(seconds: float) -> str:
    """A time as people say it."""
    for unit, size in (("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.2g} s"


@cache
def operations_a_second(precision: Precision = "fp32") -> float:
    """What an encoder's block reaches on one thread of this machine's CPU in that precision, whatever else runs."""
    kept = torch.get_num_threads()
    kind = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    block = torch.nn.TransformerEncoderLayer(_WIDTH, _HEADS, 4 * _WIDTH, activation="gelu", batch_first=True)
    block = block.eval().to(kind)
    tokens = torch.zeros(_IMAGES, _TOKENS, _WIDTH, dtype=kind)
    taken = []
    try:
        torch.set_num_threads(1)
        with torch.no_grad():
            for _ in range(_TRIALS):
                started = time.thread_time()
                block(tokens)
                taken.append(time.thread_time() - started)
    finally:
        torch.set_num_threads(kept)
    # Of a token: queries, keys, values, their projection and the two layers behind; scores and their sums.
    multiplications = 12 * _WIDTH**2 + 2 * _TOKENS * _WIDTH
    return 2 * _IMAGES * _TOKENS * multiplications / min(taken)


def usual_cpu_time(threads: int) -> CpuTime:
    """The same of ViT-B/16 and Kinetics' videos, by default options, without tuning's part."""
    return CpuTime(USUAL_PLANS, 0.0, KINETICS, threads, "fp32", needs_views=True)


def cpu_time_of_run(models: Sequence[PlannedModel], videos: pa.Table, threads: int) -> CpuTime | None:
    """The same of a run over the videos of some manifest rows; None where nothing is known of them."""
    found = run_plans(models, videos)
    if found is None:
        return None
    plans, video, needs_views = found
    own = models[0].settings[0].options
    return CpuTime(plans, tuning_operations(models), video, threads, own.precision, needs_views)


def said_at_start(models: Sequence[PlannedModel], resources: Resources, videos: pa.Table) -> str | None:
    """A line about a run on CPUs; None of one on GPUs, and of one that takes no minute."""
    if resources.worker_gpus or resources.device not in ("cpu", "auto"):
        return None
    found = cpu_time_of_run(models, videos, resources.threads)
    if found is None or found.seconds * len(videos) / resources.workers < _WORTH_SAYING:
        return None
    return found.described(len(videos), resources.workers)


def _fewer(views: ViewConfig) -> ViewConfig:
    return views.model_copy(update={"views_per_rate": 1})


@cache
def _smaller_gflops() -> float:
    return image_gflops(weightless(named_architecture(_SMALLER), _SMALLER, Preprocessing(224)))
