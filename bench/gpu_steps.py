"""The steps of `bench/on_gpu.sh`, a function each: what a GPU computes, and how fast.

A step is told its `Size` and a `note`, which takes figures as they are measured: a step whose time is over keeps those
that it has noted. This module loads nothing but Python's own; each step loads what it needs.
"""

from __future__ import annotations

import math
import os
import re
import shutil
import statistics
import subprocess
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

ENCODER_BATCHES = (64, 256, 512)
TEXT_BATCHES = (1, 8)
LSTM_METHODS = ("memo", "tent")

Note = Callable[..., None]

# What their makers state of dense bf16 products, FLOP a second, by the beginning of what PyTorch calls them.
_STATED_PEAKS = {
    "NVIDIA B200": 2.25e15,
    "NVIDIA GH200": 9.89e14,
    "NVIDIA H200 NVL": 8.35e14,
    "NVIDIA H200": 9.89e14,
    "NVIDIA H100 PCIe": 7.56e14,
    "NVIDIA H100 NVL": 8.35e14,
    "NVIDIA H100": 9.89e14,
    "NVIDIA A100": 3.12e14,
    "NVIDIA L40S": 3.62e14,
    "NVIDIA L4": 1.21e14,
    "NVIDIA A10": 1.25e14,
}

# Of logits that span some tens. A GPU adds float32 in another order; a step of the optimiser makes more of that.
_TOLERANCES = {"before": 2e-3, "after": 5e-2}

_MODEL = "ViT-B-16-quickgelu"
_SMALL_MODEL = "ViT-B-32-quickgelu"
_TINY = {
    "embed_dim": 32,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}
_ROUNDS = 10
_MIB = 2**20


class WrongError(Exception):
    """A number is not what it must be; the message says which."""


class NotMeasuredError(Exception):
    """A step cannot be done here; the message says why."""


@dataclass(frozen=True)
class Size:
    """How much a step does: what a GPU is measured by, or in miniature on the CPU."""

    dry: bool

    @classmethod
    def of(cls, dry: bool) -> Size:
        """The size of a run; in miniature, what measures the machine's products does not need long ones."""
        if dry:
            import measure

            measure._CPU_PRODUCTS = ((256, 256, 256),)
        return cls(dry)

    @property
    def device(self) -> str:
        """What is measured.

        Raises:
            NotMeasuredError: There is no GPU.
        """
        import torch

        if self.dry:
            return "cpu"
        if not torch.cuda.is_available():
            raise NotMeasuredError("there is no GPU that PyTorch can use; --dry runs on the CPU")
        return "cuda"

    def of_model(self, folder: Path, name: str = _MODEL) -> dict[str, Any]:
        """Options of a model with random weights: the one of that name, or a tiny one."""
        if self.dry:
            return {"checkpoint": save_tiny(folder), "pretrained": "random"}
        return {"model": name, "pretrained": "random"}


def save_tiny(folder: Path, **parts: Any) -> Path:
    """A tiny CLIP whose random weights are wide enough for its decisions to differ, with `parts` of a system."""
    import torch

    from zar_ray.models.architecture import build_clip
    from zar_ray.models.checkpoints import save_checkpoint
    from zar_ray.video.transforms import Preprocessing

    torch.manual_seed(5)
    architecture = {**_TINY, **parts}
    clip = build_clip(architecture)
    with torch.no_grad():
        for parameter in clip.parameters():
            if parameter.ndim > 1:
                parameter.copy_(torch.randn(parameter.shape) * 0.2)
    place = folder / "tiny.safetensors"
    save_checkpoint(clip, architecture, Preprocessing(input_size=32), place)
    return place


@contextmanager
def _folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def machine(size: Size, note: Note) -> None:
    """What the figures belong to."""
    import torch

    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    note(torch=torch.__version__, cpus=cpus, compiler=_compiler() or "none")
    if size.device == "cuda":
        name = torch.cuda.get_device_name()
        asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        note(gpu=name, stated_peak=stated_peak(name))
        if shutil.which(asked[0]):
            driver = subprocess.run(asked, capture_output=True, text=True, check=False).stdout
            note(driver=driver.partition("\n")[0] or None)


def stated_peak(name: str) -> float | None:
    """What the maker of the GPU of that name states of bf16 products, FLOP a second; None of an unknown one."""
    if " MIG " in name:
        return None  # a part of one
    # An L40 is no L4.
    peaks = (peak for beginning, peak in _STATED_PEAKS.items() if re.match(rf"{beginning}(?![A-Z0-9])", name))
    return next(peaks, None)


def _compiler() -> str | None:
    return next((name for name in (os.environ.get("CC"), "cc", "gcc", "clang") if name and shutil.which(name)), None)


def methods(size: Size, note: Note) -> None:
    """Every method's logits on the GPU against the CPU's; in miniature, against those of other passes."""
    from zar_ray.adaptation.methods import METHODS

    with _folder() as folder:
        place = save_tiny(folder)
        found: dict[str, dict[str, float]] = {}
        wrong: list[str] = []
        for name in METHODS:
            # What one method says of itself hides nothing of the others.
            try:
                found[name] = _compare(place, (name,), size)
            except Exception as error:  # noqa: BLE001  what is wrong with one is told of it
                wrong.append(f"{name}: {type(error).__name__}: {' '.join(str(error).split())[:120]}")
                continue
            wrong += [
                f"{name}: logits {part} differ by {found[name][part]:.1e}, more than {tolerance:.0e}"
                for part, tolerance in _TOLERANCES.items()
                if not found[name][part] <= tolerance
            ]
            for part in _TOLERANCES:
                differences = {name: one[part] for name, one in found.items()}
                worst = max(differences.values(), key=lambda value: (value != value, value))  # NaN is the worst
                note(**{f"difference_{part}": worst, f"differences_{part}": differences})
            note(compared=f"{len(found)} of {len(METHODS)}")
    if wrong:
        note(wrong=wrong)
        raise WrongError("; ".join(wrong))


def lstm(size: Size, note: Note) -> None:
    """The methods that go back through ActionCLIP's LSTM head, on the GPU against the CPU."""
    with _folder() as folder:
        place = save_tiny(folder, fusion={"head": "LSTM"})
        for name in LSTM_METHODS:
            found = _compare(place, (name,), size)["after"]
            note(**{f"difference_{name}": found})
            if not found <= _TOLERANCES["after"]:
                raise WrongError(f"{name}: logits differ by {found:.1e}, more than {_TOLERANCES['after']:.0e}")


def _compare(place: Path, names: Sequence[str], size: Size) -> dict[str, float]:
    """The largest differences of methods' logits, before and after, between the CPU and what is measured."""
    import torch

    expected = _decisions(place, names, "cpu", 64)
    found = _decisions(place, names, size.device, 7 if size.dry else 64)
    if not all(torch.isfinite(one.logits_after).all() for one in found):
        raise WrongError(f"{' and '.join(names)}: logits are not finite")
    pairs = list(zip(found, expected, strict=True))
    return {
        part: max(
            float((getattr(one, f"logits_{part}") - getattr(other, f"logits_{part}")).abs().max())
            for one, other in pairs
        )
        for part in _TOLERANCES
    }


def _decisions(place: Path, names: Sequence[str], device: str, encoder_batch: int) -> list[Any]:
    """What methods decide of three little videos of different lengths, one decision a video and method."""
    from inputs import made_up_names, make_video

    from zar_ray.adaptation.adapter import VideoAdapter
    from zar_ray.adaptation.options import AdaptationOptions
    from zar_ray.data.class_texts import prompts_of
    from zar_ray.models.loading import load_model

    told: dict[str, Any] = {"onzeta": {"videos": 3}}  # which it must know of its stream
    options = AdaptationOptions(
        checkpoint=place, device=device, method=tuple(names), encoder_batch=encoder_batch, **told
    )
    model = load_model(options)
    adapter = VideoAdapter(model, prompts_of([made_up_names(6)], options), options.method, options)
    videos = [make_video(number, 20 + 11 * number, model.preprocessing, seed=3) for number in range(3)]
    videos = [replace(video, frames=video.frames.numpy()) for video in videos]  # type: ignore[union-attr]
    return [case.decision for outcome in adapter.predict(videos) for case in _predicted(outcome).cases]


def _predicted(outcome: Any) -> Any:
    """A prediction; what came in place of one, or of a case of it, is wrong."""
    errors = [outcome] if isinstance(outcome, Exception) else list(outcome.failures.values())
    if errors:
        raise WrongError(str(errors[0]))
    return outcome


def out_of_memory(size: Size, note: Note) -> None:
    """A pass that the memory is far too small for gives what small passes give, and leaves nothing behind."""
    from inputs import made_up_names, make_video

    from zar_ray.adaptation.adapter import VideoAdapter
    from zar_ray.adaptation.options import AdaptationOptions
    from zar_ray.data.class_texts import prompts_of
    from zar_ray.models.loading import load_model

    with _folder() as folder:
        told = size.of_model(folder, _SMALL_MODEL)
        small = AdaptationOptions(**told, device=size.device, method=("zar",), encoder_batch=16)
        model, prompts = load_model(small), prompts_of([made_up_names(6)], small)
    frames, count = (20, 2) if size.dry else (300, 4)
    videos = [make_video(number, frames, model.preprocessing, seed=3) for number in range(count)]

    def logits(options: AdaptationOptions) -> list[Any]:
        adapter = VideoAdapter(model, prompts, options.method, options)
        return [_predicted(one).cases[0].decision.logits_after for one in adapter.predict(videos)]

    expected, large = logits(small), small.model_copy(update={"encoder_batch": 100_000})
    with _refusing(model) if size.dry else _little_memory() as state:
        found = logits(large)
        note(**state())
    difference = max(float((one - other).abs().max()) for one, other in zip(found, expected, strict=True))
    note(difference=difference)
    if not state()["refused"]:
        raise RuntimeError("the memory was not too small")
    if not difference <= _TOLERANCES["after"]:
        raise WrongError(f"logits differ by {difference:.1e}, more than {_TOLERANCES['after']:.0e}")


@contextmanager
def _refusing(model: Any) -> Iterator[Callable[[], dict[str, Any]]]:
    """A model whose encoder runs out of memory with more than 16 images."""
    import torch

    refused, encode = [0], model.encode_images

    def bounded(pixels: torch.Tensor) -> torch.Tensor:
        if len(pixels) > 16:
            refused[0] += 1
            raise torch.OutOfMemoryError("CUDA out of memory")
        return encode(pixels)

    model.__dict__["encode_images"] = bounded
    try:
        yield lambda: {"refused": refused[0]}
    finally:
        del model.__dict__["encode_images"]


@contextmanager
def _little_memory() -> Iterator[Callable[[], dict[str, Any]]]:
    """A quarter of a gigabyte more than was in use at most."""
    import torch

    torch.cuda.empty_cache()
    allowed = torch.cuda.max_memory_allocated() + 256 * _MIB
    before, refused = torch.cuda.memory_allocated(), torch.cuda.memory_stats().get("num_ooms", 0)
    torch.cuda.set_per_process_memory_fraction(min(1.0, allowed / torch.cuda.mem_get_info()[1]))
    try:
        yield lambda: {
            "refused": torch.cuda.memory_stats().get("num_ooms", 0) - refused,
            "held": (torch.cuda.memory_allocated() - before) / _MIB,
        }
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def synchronisations(size: Size, note: Note) -> None:
    """How often ZAR waits for the GPU without being told to, for videos of 10 s."""
    import torch
    from inputs import made_up_names, make_video
    from sides import OurSide

    from zar_ray.adaptation.options import AdaptationOptions
    from zar_ray.models.loading import load_model

    with _folder() as folder:
        precision = "fp32" if size.dry else "bf16"
        options = AdaptationOptions(
            **size.of_model(folder), device=size.device, method=("zar",), encoder_batch=256, precision=precision
        )
        model = load_model(options)
    videos, classes, frames = (2, 6, 20) if size.dry else (8, 160, 300)
    ours = OurSide(model, made_up_names(classes), options)
    made = [make_video(number, frames, model.preprocessing, seed=3) for number in range(videos)]
    ours.adapter.predict(made)
    if size.device == "cpu":
        raise NotMeasuredError("only a GPU is waited for")
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            ours.adapter.predict(made)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    waits = [one for one in said if "synchroniz" in str(one.message)]
    places = Counter(f"{Path(one.filename).name}:{one.lineno}" for one in waits).most_common(12)
    most = ", ".join(f"{place} ({count})" for place, count in places[:3]) or "nowhere"
    note(a_video=len(waits) / videos, most=most, places=dict(places))


def encoder(size: Size, note: Note) -> None:
    """The image encoder in bf16 by itself, at several batch sizes."""
    _measure_encoder(size, note, compiled=False)


def encoder_compiled(size: Size, note: Note) -> None:
    """The same, compiled."""
    if size.dry:
        raise NotMeasuredError("compiling takes too long to try it in miniature")
    if _compiler() is None:
        raise NotMeasuredError("torch.compile needs a C compiler, and there is none")
    _measure_encoder(size, note, compiled=True)


def _measure_encoder(size: Size, note: Note, compiled: bool) -> None:
    import torch
    from encoder import measure_encoder

    from zar_ray.models.loading import load_model
    from zar_ray.models.options import ModelOptions

    with _folder() as folder:
        precision = "fp32" if size.dry else "bf16"
        model = load_model(ModelOptions(**size.of_model(folder), device=size.device, precision=precision))
    stated = stated_peak(torch.cuda.get_device_name()) if size.device == "cuda" else None
    if compiled:
        model.compile_image_encoder()
    for batch in (2,) if size.dry else ENCODER_BATCHES:
        facts = measure_encoder(model, batch, None if size.dry else torch.bfloat16)
        reached = batch * facts.our_flops / facts.our_seconds
        figures = {
            "images_per_second": batch / facts.our_seconds,
            "of_product": reached / facts.peak_flops,
            "of_peak": stated and reached / stated,
            "facts": asdict(facts),
        }
        note(**{f"{name}_{batch}": value for name, value in figures.items()})


def text_step(size: Size, note: Note) -> None:
    """ZAR's step on given view features, by the videos that it takes together."""
    import torch
    from inputs import VIEWS, made_up_names, make_features
    from measure import Stopwatch
    from sides import OurSide

    from zar_ray.adaptation.options import AdaptationOptions
    from zar_ray.models.loading import load_model

    with _folder() as folder:
        options = AdaptationOptions(**size.of_model(folder), device=size.device, method=("zar",))
        model = load_model(options)
    ours = OurSide(model, made_up_names(6 if size.dry else 160), options)
    for batch in TEXT_BATCHES:
        given = [make_features(number, ours.classes.initial_features, 0, VIEWS) for number in range(batch)]

        def step(videos: Sequence[Any] = given) -> None:
            ours.run(videos, adapt=True, watch_memory=False)

        step()
        watch, seconds = Stopwatch(model.device), []
        for _ in range(2 if size.dry else _ROUNDS):
            step()
            seconds.append(watch.lap())
        kernels = _kernels(step) if torch.device(size.device).type == "cuda" else None
        note(**{f"milliseconds_{batch}": 1e3 * statistics.median(seconds) / batch, f"kernels_{batch}": kernels})


def _kernels(call: Callable[[], None]) -> int | None:
    """Kernels that a call runs on the GPU; None where they cannot be seen."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        call()
        torch.cuda.synchronize()
    on_gpu = [one.name for one in profiler.events() or () if one.device_type.name == "CUDA"]
    # A step has some: where none is seen, the profiler may not look, as in some containers.
    return sum(not name.startswith(("Memcpy", "Memset")) for name in on_gpu) or None


def k600_row(size: Size, note: Note) -> None:
    """The row of bench/RESULTS.md with 160 classes and videos of 300 frames: ours against the plain loop."""
    import adapt

    with _folder() as folder:
        told = {
            **size.of_model(folder),
            **{"device": size.device, "precision": "bf16", "class_count": 160, "frames": (300,), "videos": 32},
            **{"batch": 8, "encoder_batch": 512, "reference_videos": 4},
        }
        if size.dry:
            told |= {"precision": "fp32", "class_count": 6, "frames": (20,), "videos": 2}
            told |= {"batch": 2, "encoder_batch": 50, "reference_videos": 1}
        report = adapt.run(adapt.BenchOptions.model_validate(told))
    (load,) = report.loads
    total, agreement = load.ratios["total"], load.agreement
    note(
        videos_per_second=load.videos_per_second,
        ratio=total and total.of_means,
        encoder_share=load.encoder_share,
        of_product=load.encoder_share_of_peak,
        same_top1=agreement and agreement.same_top1 / agreement.decided,
        report=asdict(report),
    )


def training_step(size: Size, note: Note) -> None:
    """Forward and backward of one micro-batch in bf16."""
    from train import measure_step

    from zar_ray.training.options import TrainConfig

    videos, frames, classes = (1, 2, 6) if size.dry else (8, 8, 100)
    with _folder() as folder:
        options = TrainConfig.model_validate(
            {
                **size.of_model(folder),
                **{"device": size.device, "frames": frames, "precision": "fp32" if size.dry else "bf16"},
            }
        )
        facts = measure_step(options, videos, classes)
    note(
        images_per_second=facts.images / facts.seconds,
        of_product=facts.peak_share,
        memory=facts.bytes_an_image / _MIB,
        facts=asdict(facts),
    )


def decode(size: Size, note: Note) -> None:
    """What up to 16 processes decode and resize together, of videos of 10 s for ZAR's views."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    processes, seconds, frames = (1, 0.3, 30) if size.dry else (min(16, cpus), 15.0, 300)
    with _folder() as folder, ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        paths = [str(_write_video(folder / "video.mp4", frames))] * processes
        list(pool.map(decode_for, paths, [0.1] * processes))
        told = list(pool.map(decode_for, paths, [seconds] * processes))
    videos = sum(count for count, _, _ in told)
    note(
        videos_per_second=sum(count / wall for count, wall, _ in told),
        cpu=1e3 * sum(cpu for _, _, cpu in told) / videos,
        processes=processes,
    )


def decode_for(path: str, seconds: float) -> tuple[int, float, float]:
    """Decodes a video again and again for so long; videos, wall seconds and CPU seconds."""
    from zar_ray.video.decoding import decode_video
    from zar_ray.video.options import ViewConfig
    from zar_ray.video.plans import plan_video
    from zar_ray.video.transforms import Preprocessing, as_pillow

    as_pillow.compile_for(math.inf)  # as in a run that goes on, where there is numba
    preprocessing, videos = Preprocessing(input_size=224), 0
    started, cpu = time.monotonic(), time.process_time()
    while not videos or time.monotonic() - started < seconds:
        name = f"{videos}.mp4"
        decode_video(
            path,
            lambda info, name=name: plan_video(name, info, ViewConfig(), preprocessing, 0, needs_views=True),
            preprocessing.scaling,
        )
        videos += 1
    return videos, time.monotonic() - started, time.process_time() - cpu


def _write_video(path: Path, frames: int) -> Path:
    """An H.264 video of 340×256 pixels whose picture moves."""
    import av
    import numpy as np

    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (32, 43, 3), np.uint8).repeat(8, axis=0).repeat(8, axis=1)[:256, :340]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = 340, 256, "yuv420p"
        for number in range(frames):
            moved = np.ascontiguousarray(np.roll(picture, 3 * number, axis=1))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(moved, format="rgb24")))
        container.mux(stream.encode(None))
    return path
