"""Whether a machine's cores decode as fast as its GPUs encode: an estimate before a run, of a short measurement."""

from __future__ import annotations

import math
import re
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray

from zar_ray.data.synthetic import write_video
from zar_ray.evaluation.planning import PlannedModel
from zar_ray.evaluation.resources import Resources
from zar_ray.video.decoding import decode_video
from zar_ray.video.options import DecodeOptions, ViewConfig
from zar_ray.video.plans import plan_video
from zar_ray.video.reading import VideoInfo
from zar_ray.video.transforms import Preprocessing, as_pillow

# Dense bf16 (fp16 where there is none), in 1e12 operations a second, as the makers' data sheets have them.
PEAKS = {
    **{"B300": 2250.0, "B200": 2250.0, "GH200": 989.0, "H200": 989.0, "H100": 989.0, "A100": 312.0, "V100": 125.0},
    **{"L40S": 362.0, "L40": 181.0, "L4": 121.0, "A10G": 70.0, "A10": 125.0, "A40": 150.0, "T4": 65.0},
}
# Of the peak that an image encoder is taken to reach: what it needs is said rather too high than too low.
_PEAK_SHARE = 0.5

OPERATIONS = 2e9
"""In a GFLOP as papers count."""

_SIZE, _FRAMES, _FPS = (256, 340), 60, 30
KINETICS = VideoInfo(300, float(_FPS), _SIZE[1], _SIZE[0], 10.0, "pyav")
_LABEL = "accelerator_type:"

Plans = Sequence[tuple[ViewConfig, Preprocessing, float]]
"""Of each model the views, what it wants of pixels and its GFLOPs an image."""

USUAL_PLANS: Plans = ((ViewConfig(), Preprocessing(224), 17.6),)
"""ViT-B/16's, by default options."""


@dataclass(frozen=True)
class Supply:
    """What decodes and what waits for it.

    Attributes:
        gpus: How many GPUs.
        name: Their name.
        cores: CPU cores that decode.
        decode_seconds: A core's seconds a video.
        encode_seconds: A GPU's seconds a video.
    """

    gpus: int
    name: str
    cores: int
    decode_seconds: float
    encode_seconds: float

    @property
    def wanted(self) -> float:
        """Cores that keep the GPUs busy."""
        return self.gpus * self.decode_seconds / self.encode_seconds

    @property
    def warning(self) -> str | None:
        """One line where the cores do not suffice."""
        if self.wanted <= self.cores:
            return None
        return (
            f"{self.gpus} × {self.name} want about {self.wanted:.0f} cores to decode for them, there are {self.cores}: "
            f"expect {self.cores / self.wanted:.0%} of their speed (docs/performance.md)"
        )


def peak_of(name: str) -> float | None:
    """A GPU's 1e12 operations a second by its name, as the driver or Ray has it; None of one that is not known.

    Nor is it of a part of one (MIG).
    """
    words = set(re.split(r"[^A-Z0-9]+", name.upper()))
    if "MIG" in words:
        return None
    return next((peak for model, peak in PEAKS.items() if model in words), None)


def reached(peak: float) -> float:
    """Operations a second that an image encoder is taken to reach on a GPU of such a peak."""
    return peak * 1e12 * _PEAK_SHARE


def supply(
    gpus: Sequence[str],
    cores: int,
    options: DecodeOptions | None = None,
    plans: Plans = USUAL_PLANS,
    video: VideoInfo = KINETICS,
    needs_views: bool = True,
) -> Supply | None:
    """Measures decoding here and estimates the rest; None without GPUs, or with such as are not known.

    Args:
        gpus: Their names; the first one's speed is taken for all.
        cores: That decode.
        options: How videos are read.
        plans: What models look at.
        video: What the videos are like; by default Kinetics'.
        needs_views: Whether the methods look at other views than the evaluation view.
    """
    peak = peak_of(gpus[0]) if gpus else None
    if peak is None:
        return None
    operations, _ = encoder_operations(plans, video, needs_views=needs_views)
    views, pixels, _ = plans[0]
    decode = decode_seconds(options or DecodeOptions(), views, pixels, video, needs_views)
    return Supply(len(gpus), gpus[0], cores, decode, operations / reached(peak))


def encoder_operations(plans: Plans, video: VideoInfo, *, needs_views: bool) -> tuple[float, int]:
    """Operations of all models' image encoders for such a video, and the first one's images."""
    counts = [len(plan_video("", video, *one[:2], 0, needs_views=needs_views).images) for one in plans]
    return sum(count * one[2] * OPERATIONS for count, one in zip(counts, plans, strict=True)), counts[0]


def tuning_operations(models: Sequence[PlannedModel]) -> float:
    """Operations of all models' text towers for a video."""
    return OPERATIONS * sum(sum(cost.tuning_gflops.values()) for model in models for cost in model.costs)


def warning_for_run(models: Sequence[PlannedModel], resources: Resources, videos: pa.Table) -> str | None:
    """What `Supply.warning` says of a run on the joined cluster over the videos of some manifest rows."""
    gpus = _cluster_gpus()[: int(resources.workers * resources.worker_gpus)]
    found = run_plans(models, videos) if gpus else None
    if found is None:
        return None
    plans, video, needs_views = found
    supplied = supply(gpus, resources.decoders, models[0].settings[0].options, plans, video, needs_views)
    return None if supplied is None else supplied.warning


def run_plans(models: Sequence[PlannedModel], videos: pa.Table) -> tuple[Plans, VideoInfo, bool] | None:
    """A run's plans, the mean of its videos, and whether its methods want views; None if no video is known."""
    known = videos.filter(pc.field("frames") > 0)
    if not len(known):
        return None
    middle = {name: np.mean(known[name].to_numpy()) for name in ("frames", "width", "height", "duration")}
    frames, width, height = (max(1, round(middle[name])) for name in ("frames", "width", "height"))
    video = VideoInfo(frames, 0.0, width, height, float(middle["duration"]), "pyav")
    plans = [(model.settings[0].options.views, model.preprocessing, model.costs[0].image_gflops) for model in models]
    return plans, video, any(model.views().needs_views for model in models)


def decode_seconds(
    options: DecodeOptions, views: ViewConfig, pixels: Preprocessing, video: VideoInfo, needs_views: bool
) -> float:
    """CPU seconds that a core here takes to decode and resize such a video: a short one's, by their pixels."""
    rng = np.random.default_rng(0)
    height, width = _SIZE
    # what cameras see moves and has grain: as many bits as Kinetics' files have
    scene = np.kron(rng.integers(40, 215, (height // 16 + 4, width // 10 + 4, 3)), np.ones((16, 10, 1)))
    shifted = (scene[n % 48 : n % 48 + height, n % 40 : n % 40 + width] for n in range(_FRAMES))
    frames = np.stack([np.clip(one + rng.normal(0, 4, one.shape), 0, 255).astype(np.uint8) for one in shifted])
    # its plan names the same share of its frames
    named = plan_video("", video, views, pixels, 0, needs_views=needs_views)
    chosen = np.unique(np.linspace(0, _FRAMES - 1, max(1, len(named.frames) * _FRAMES // video.frames)).astype(int))
    with tempfile.TemporaryDirectory(prefix="zar-supply-") as folder:
        path = Path(folder) / "trial.mp4"
        write_video(path, frames, _FPS)
        taken = []
        as_pillow.compile_for(math.inf)  # as in a run that goes on
        for _ in range(2):  # the first time libraries are loaded
            started = time.thread_time()
            decode_video(
                path, lambda _: _Chosen(chosen, named.short_side), decoder=options.decoder, resizer=options.resize
            )
            taken.append(time.thread_time() - started)
    return min(taken) * video.frames * video.width * video.height / (_FRAMES * height * width)


@dataclass(frozen=True, eq=False)
class _Chosen:
    frames: np.ndarray
    short_side: int


def _cluster_gpus() -> list[str]:
    """The names of the joined cluster's GPUs, the first node's kind for all; empty where Ray knows none."""
    resources = ray.cluster_resources()
    kinds = sorted(name.removeprefix(_LABEL) for name in resources if name.startswith(_LABEL))
    return kinds[:1] * int(resources.get("GPU", 0.0))
