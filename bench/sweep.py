"""What the ZAR paper's three ablations cost in one pass: `python bench/sweep.py --help`.

Each video runs through the engine twice, in turn: under the default settings, as `zar eval` does, and under all 18
settings of Tables 3, 4 and 5, as `zar ablate` does.  Images are counted where the encoder is called.  Decoding is left
out: both decode the same frames.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro
from inputs import HEIGHT, WIDTH, made_up_names
from measure import Stopwatch
from pydantic import Field
from sides import counted_images

from zar_ray.adaptation.adapter import PlannedVideo, VideoAdapter, make_cases
from zar_ray.adaptation.options import Setting
from zar_ray.data.class_texts import prompts_of
from zar_ray.errors import VideoError
from zar_ray.evaluation.planning import at_one_short_side
from zar_ray.evaluation.spec import ModelViews
from zar_ray.models.clip import ClipModel
from zar_ray.models.loading import load_model
from zar_ray.options.base import Options
from zar_ray.results.case import Case
from zar_ray.study.options import EvalConfig
from zar_ray.study.sweeps import load_sweep, place_settings
from zar_ray.video.reading import VideoInfo

_SWEEPS = ("zar-table3", "zar-table4", "zar-table5")


class SweepOptions(Options):
    """Runs made-up videos through the default settings and through the paper's 18 settings, in turn."""

    model: str = Field(default="ViT-B-32-quickgelu", description="An open_clip model, with random weights.")
    classes: int = Field(default=51, ge=2, description="Candidate classes.")
    frames: tuple[int, ...] = Field(default=(95, 300), description="Videos of so many frames.")
    videos: int = Field(default=2, ge=1, description="Videos of each length.")
    threads: int | None = Field(default=None, ge=1, description="CPU threads; by default PyTorch's choice.")
    json_file: Annotated[Path | None, tyro.conf.arg(name="json")] = Field(
        default=None, description="Write all numbers to this file too."
    )


@dataclass(frozen=True)
class Pair:
    """One video under both.

    Attributes:
        frames: Its frames.
        images: Images encoded, under the default settings and under all.
        seconds: Wall seconds to encode and adapt, likewise.
        cpu_seconds: The process's CPU seconds meanwhile, which other programs on the machine disturb less.
    """

    frames: int
    images: tuple[int, int]
    seconds: tuple[float, float]
    cpu_seconds: tuple[float, float]


class Side:
    """Videos under some settings in one pass.

    Args:
        model: The model.
        names: The candidate classes.
        runs: The options of the settings.
    """

    def __init__(self, model: ClipModel, names: Sequence[str], runs: Sequence[EvalConfig]) -> None:
        self.model = model
        self.settings = [Setting(one, prompts_of([names], one)) for one in runs]
        cases: list[Case] = []
        for number, one in enumerate(self.settings):
            cases += make_cases(one.options, model.fingerprint, one.prompts, number)
        first, *further = self.settings
        planned = tuple((one.options.views, one.options.seed) for one in self.settings)
        self.views = ModelViews(model.fingerprint, "fp32", model.preprocessing, planned, needs_views=True)
        self.adapter = VideoAdapter(model, first.prompts, ("zar",), first.options, cases=cases, further=further)
        # What is made once for a set of classes is no video's.
        self.adapter.class_sets[0].initial_gradients(
            torch.zeros_like(self.adapter.class_sets[0].initial_features)[None]
        )

    def run(self, number: int, frames: int) -> tuple[int, float, float]:
        """Encodes a made-up video's images and adapts to it under every setting.

        Returns:
            Images, wall seconds and CPU seconds.
        """
        info = VideoInfo(frames, 25.0, WIDTH, HEIGHT, frames / 25, "none")
        plan, *further = self.views.plans(f"bench/{number}.mp4", info)
        generator = torch.Generator().manual_seed(number)
        shape = (len(plan.frames), plan.height, plan.width, 3)
        pictures = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        with counted_images(self.model) as images:
            watch, started = Stopwatch(self.model.device), time.process_time()
            (outcome,) = self.adapter.predict([PlannedVideo(plan, pictures, further=tuple(further))])
            seconds, cpu_seconds = watch.lap(), time.process_time() - started
        if isinstance(outcome, VideoError):
            raise outcome
        return images[0], seconds, cpu_seconds


def measure(options: SweepOptions) -> list[Pair]:
    """Runs both sides in turn, the default settings first."""
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    default = EvalConfig(model=options.model, pretrained="random", method=("zar",))
    model = load_model(default)
    names = made_up_names(options.classes)
    runs, placed = place_settings([load_sweep(name) for name in _SWEEPS], default)
    settings = sum(len(one.places) for one in placed)
    print(f"{settings} settings, {len(runs)} distinct", file=sys.stderr)
    alone = Side(model, names, [default])
    sweep = Side(model, names, at_one_short_side(runs, model.preprocessing))
    for side in (alone, sweep):
        side.run(-1, 8)  # the first pass allocates
    pairs = []
    for frames in options.frames:
        for number in range(options.videos):
            own, swept = alone.run(number, frames), sweep.run(number, frames)
            pair = Pair(frames, (own[0], swept[0]), (own[1], swept[1]), (own[2], swept[2]))
            pairs.append(pair)
            ratios = [many / few for few, many in (pair.images, pair.seconds, pair.cpu_seconds)]
            print("{} frames: {:.3f} x images, {:.3f} x time, {:.3f} x CPU".format(frames, *ratios), file=sys.stderr)
    return pairs


def show(options: SweepOptions, pairs: Sequence[Pair]) -> None:
    """Prints a row of bench/RESULTS.md for each length."""
    print("| model | classes | frames | videos | images, default and sweep | images | time | CPU |")
    print("|---|---|---|---|---|---|---|---|")
    for frames in options.frames:
        of_length = [pair for pair in pairs if pair.frames == frames]
        few, many = (sum(pair.images[side] for pair in of_length) for side in (0, 1))
        time_ratio = _ratio([pair.seconds for pair in of_length])
        cpu_ratio = _ratio([pair.cpu_seconds for pair in of_length])
        count = len(of_length)
        print(
            f"| {options.model} | {options.classes} | {frames} | {count} | {few / count:.1f}, {many / count:.1f} "
            f"| {many / few:.2f} | {time_ratio} | {cpu_ratio} |"
        )


def _ratio(pairs: Sequence[tuple[float, float]]) -> str:
    """Of the sums; in brackets the least and the most of single videos."""
    ratios = [many / few for few, many in pairs]
    whole = sum(many for _, many in pairs) / sum(few for few, _ in pairs)
    return f"{whole:.2f} [{min(ratios):.2f}, {max(ratios):.2f}]"


def main() -> int:
    """Measures and prints; returns the exit status."""
    options = tyro.cli(SweepOptions, prog="sweep.py")
    pairs = measure(options)
    show(options, pairs)
    if options.json_file is not None:
        partial = options.json_file.with_name(f".{options.json_file.name}.partial")
        partial.write_text(json.dumps([asdict(pair) for pair in pairs], indent=1) + "\n")
        partial.replace(options.json_file)
    return 0


if __name__ == "__main__":
    sys.exit(main())
