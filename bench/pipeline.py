"""What the Ray Data job costs on top of its engine: `python bench/pipeline.py --help`.

The same short videos run through the engine in a plain loop and through the evaluation job, in turn, each in a process
of its own on the same cores. Compared is the time between the first and the last tenth of the videos, so that
start-up, which is told apart, is in neither. Memory is that of one more run a side, whose time does not count: sampling
all processes of the job twice a second takes 6 % of two cores.
"""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import matplotlib as mpl
import tyro
from pydantic import Field
from rich.console import Console
from rich.table import Table

from zar_ray.evaluation.stages.decode import DecodeStage
from zar_ray.options.base import Options
from zar_ray.options.layers import conf_dir, read_yaml
from zar_ray.study.options import EvalConfig

# Ignored at either end of a run, as a share of its videos.
_ENDS = 0.1
_SAMPLE_SECONDS = 0.5
_LAPS = "ZAR_BENCH_LAPS"


class PipelineOptions(Options):
    """Runs the evaluation job and a plain loop over the same engine in turn, and compares their wall time."""

    videos: int = Field(default=224, ge=20, description="Short videos; they are drawn first.")
    batch_size: int = Field(
        default=EvalConfig.model_fields["batch_size"].default, ge=1, description="Videos at a time, on both sides."
    )
    num_workers: int | None = Field(
        default=None, ge=1, description="Model replicas of the job, with the cores' threads shared among them."
    )
    repeats: int = Field(default=2, ge=1, description="How often each side runs.")
    json_file: Annotated[Path | None, tyro.conf.arg(name="json")] = Field(
        default=None, description="Write all numbers to this file too."
    )
    plot: Path | None = Field(default=None, description="Draw memory over the run into this picture.")


@dataclass(frozen=True)
class Run:
    """One side, once.

    Attributes:
        startup: Seconds from the start of the process to the first result.
        middle: Seconds between the results at a tenth and at nine tenths of the videos.
        videos: Videos between them.
        stages: Seconds of all videos by what was done; those of different processes may be at the same time.
        memory: (seconds since the start, share of the videos done, bytes in all of the side's processes), where it was
            asked for.
    """

    startup: float
    middle: float
    videos: int
    stages: dict[str, float]
    memory: list[tuple[float, float, int]]

    @property
    def milliseconds(self) -> float:
        """A video, in the middle of the run."""
        return 1e3 * self.middle / self.videos


def make_inputs(folder: Path, options: PipelineOptions) -> EvalConfig:
    """Draws the videos and saves a tiny CLIP with random weights: time does not depend on what weights are."""
    import torch

    from zar_ray.data.synthetic import SyntheticSpec, write_synthetic
    from zar_ray.models.architecture import build_clip
    from zar_ray.models.checkpoints import save_checkpoint
    from zar_ray.video.transforms import Preprocessing

    spec = SyntheticSpec(train_videos=1, val_videos=1, test_videos=-(-options.videos // 32))
    write_synthetic(folder / "videos", spec)
    architecture = read_yaml(conf_dir() / "models" / "demo.yaml")
    torch.manual_seed(0)
    size = architecture["vision_cfg"]["image_size"]
    save_checkpoint(build_clip(architecture), architecture, Preprocessing(input_size=size), folder / "tiny.safetensors")
    return EvalConfig(
        dataset=str(folder / "videos" / "manifest.parquet"),
        split="test",
        limit=options.videos,
        checkpoint=folder / "tiny.safetensors",
        batch_size=options.batch_size,
        num_workers=() if options.num_workers is None else (options.num_workers,),
        mlflow=False,
    )


def run_loop(config: EvalConfig, done: Any, answer: Any) -> None:
    """The engine in a plain loop; answers with the times of its results and the seconds of its stages."""
    from zar_ray.adaptation.adapter import PlannedVideo, VideoAdapter
    from zar_ray.data.class_texts import prompts_of
    from zar_ray.data.manifest import read_manifest
    from zar_ray.models.loading import load_model
    from zar_ray.video.decoding import decode_video
    from zar_ray.video.plans import plan_video

    manifest = read_manifest(Path(str(config.dataset))).select(config.split, config.limit)
    model = load_model(config)
    adapter = VideoAdapter(model, prompts_of([manifest.class_names], config), config.method, config)
    rows = list(manifest.rows())
    times: list[float] = []
    stages = {"decode": 0.0, "predict": 0.0}
    for first in range(0, len(rows), config.batch_size):
        started = time.perf_counter()
        videos = []
        for row in rows[first : first + config.batch_size]:
            planned = _plan_of(row.video_id, plan_video, config, model.preprocessing)
            decoded = decode_video(row.path, planned, model.preprocessing.scaling)
            videos.append(PlannedVideo(planned(decoded.info), decoded.frames))
        between = time.perf_counter()
        adapter.predict(videos)
        stages["decode"] += between - started
        stages["predict"] += time.perf_counter() - between
        times += [time.time()] * len(videos)
        done.value = len(times)
    answer.put((times, stages))


def _plan_of(video_id: str, plan: Callable[..., Any], config: EvalConfig, preprocessing: Any) -> Callable[[Any], Any]:
    return lambda info: plan(video_id, info, config.views, preprocessing, config.seed, needs_views=True)


def run_job(config: EvalConfig, done: Any, answer: Any) -> None:
    """The evaluation job on a Ray of its own; answers as `run_loop` does."""
    import ray
    from ray import cloudpickle

    from zar_ray.data.manifest import read_manifest
    from zar_ray.data.protocols import whole_split
    from zar_ray.evaluation import pipeline
    from zar_ray.evaluation.workload import Workload
    from zar_ray.results.folder import RunFolder
    from zar_ray.results.rows import to_rows
    from zar_ray.storage import Storage

    # Workers cannot import this script.
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    laps = Path(tempfile.mkdtemp(dir=Path(str(config.checkpoint)).parent))
    ray.init(
        address="local",
        include_dashboard=False,
        log_to_driver=False,
        _node_ip_address="127.0.0.1",
        runtime_env={"env_vars": {_LAPS: str(laps)}},
    )
    manifest = read_manifest(Path(str(config.dataset))).select(config.split, config.limit)
    folder = RunFolder(Storage(str(laps / "run")))
    pipeline.DecodeStage, pipeline.AdaptStage = TimedDecode, _timed_adapt()
    advance = pipeline.VideoProgress.advance

    def counted(self: Any, videos: int, failed: int) -> None:
        done.value += videos
        advance(self, videos, failed)

    pipeline.VideoProgress.advance = counted
    workload = Workload.of(manifest, [whole_split(manifest)])
    asked = [pipeline.AskedModel("tiny", (config,))]
    pipeline.evaluate(workload, asked, ["default"], folder, Console(file=io.StringIO()))
    ray.shutdown()
    times = {row.video_id: row.recorded_at for row in to_rows(folder.results()) if row.error is None}
    stages: dict[str, float] = {}
    for file in laps.glob("*.laps"):
        for line in file.read_text().splitlines():
            name, seconds = line.split()
            stages[name] = stages.get(name, 0.0) + float(seconds)
    answer.put((sorted(times.values()), stages))


class TimedDecode(DecodeStage):
    """The first stage, which notes how long a video takes."""

    def decode(self, row: dict[str, Any]) -> dict[str, Any]:
        """See `DecodeStage.decode`."""
        with _lap("decode"):
            return super().decode(row)


def _timed_adapt() -> type:
    """The second stage, which notes how long its parts take; its module loads PyTorch, and decoders must not."""
    from zar_ray.evaluation.stages.adapt import AdaptStage

    class TimedAdapt(AdaptStage):
        def __call__(self, block: Any) -> Any:
            with _lap("adapter"):
                return super().__call__(block)

        def predict(self, replica: Any, videos: Any) -> Any:
            with _lap("predict"):
                return super().predict(replica, videos)

    return TimedAdapt


@contextmanager
def _lap(name: str) -> Iterator[None]:
    started = time.perf_counter()
    try:
        yield
    finally:
        with Path(os.environ[_LAPS], f"{os.getpid()}.laps").open("a") as file:
            file.write(f"{name} {time.perf_counter() - started}\n")


def measure(target: Callable[..., None], config: EvalConfig, *, memory: bool = False) -> Run:
    """Runs one side in a process of its own; with `memory` that of all its processes is sampled, which slows it."""
    context = multiprocessing.get_context("spawn")
    done, answer = context.Value("i", 0), context.Queue()
    process = context.Process(target=target, args=(config, done, answer))
    started = time.time()
    process.start()
    assert process.pid is not None
    watching = _watched(process.pid, started, lambda: done.value / int(config.limit or 1))
    with watching if memory else nullcontext([]) as samples:
        while True:
            try:
                times, stages = answer.get(timeout=1)
                break
            except multiprocessing.queues.Empty:  # type: ignore[attr-defined]
                if not process.is_alive():
                    raise SystemExit(f"bench: {target.__name__} ended with status {process.exitcode}") from None
        process.join()
    first, last = int(_ENDS * len(times)), int((1 - _ENDS) * len(times))
    return Run(times[0] - started, times[last] - times[first], last - first, stages, samples)


@contextmanager
def _watched(pid: int, started: float, share: Callable[[], float]) -> Iterator[list[tuple[float, float, int]]]:
    samples: list[tuple[float, float, int]] = []
    over = threading.Event()

    def sample() -> None:
        while not over.wait(_SAMPLE_SECONDS):
            samples.append((time.time() - started, share(), _memory_below(pid)))

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield samples
    finally:
        over.set()
        thread.join()


def _memory_below(pid: int) -> int:
    """Bytes of a process and its descendants; pages that several share count once (proportional set size)."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            except (OSError, IndexError):
                continue
    family, grew = {pid}, True
    while grew:
        more = {child for child, parent in parents.items() if parent in family} - family
        family, grew = family | more, bool(more)
    total = 0
    for member in family:
        try:
            lines = Path(f"/proc/{member}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += next((1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)
    return total


def growth(run: Run) -> float:
    """How much more memory the last third of the middle of a run holds than the first third, as a share."""
    middle = [held for _, share, held in run.memory if _ENDS <= share <= 1 - _ENDS]
    third = len(middle) // 3
    return median(middle[-third:]) / median(middle[:third]) - 1 if third else float("nan")


def draw(watched: dict[str, Run], path: Path) -> None:
    """Memory over the share of videos done, of both sides."""
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for side, label, colour in (("loop", "plain loop", "#0072b2"), ("job", "Ray Data job, all processes", "#d55e00")):
        points = [(100 * share, held / 2**30) for _, share, held in watched[side].memory if 0 < share < 1]
        axes.plot(*zip(*points, strict=True), color=colour, label=label)
    axes.set(xlabel="videos done (%)", ylabel="memory (GiB)", ylim=(0, None), xlim=(0, 100))
    axes.legend()
    figure.savefig(path, dpi=150)


def show(loops: list[Run], jobs: list[Run], watched: dict[str, Run], console: Console) -> None:
    """Prints the comparison and where the job's time goes."""
    table = Table("", *(f"run {number}" for number in range(1, len(loops) + 1)), box=None)
    table.add_row("loop, ms a video", *(f"{run.milliseconds:.1f}" for run in loops))
    table.add_row("job, ms a video", *(f"{run.milliseconds:.1f}" for run in jobs))
    pairs = list(zip(loops, jobs, strict=True))
    table.add_row("job / loop", *(f"{job.milliseconds / loop.milliseconds:.3f}" for loop, job in pairs))
    table.add_row("start-up of the loop, s", *(f"{run.startup:.1f}" for run in loops))
    table.add_row("start-up of the job, s", *(f"{run.startup:.1f}" for run in jobs))
    console.print(table)
    # The machine's speed may change between a pair's runs, and less so over all of them.
    whole = [sum(run.middle for run in side) / sum(run.videos for run in side) for side in (jobs, loops)]
    console.print(f"job / loop, all runs together: {whole[0] / whole[1]:.3f}")
    console.print("growth of memory: " + ", ".join(f"{side} {growth(run):+.1%}" for side, run in watched.items()))
    for side, runs in (("loop", loops), ("job", jobs)):
        stages = {name: sum(run.stages[name] for run in runs) / len(runs) for name in runs[0].stages}
        console.print(f"{side}: " + ", ".join(f"{name} {seconds:.1f} s" for name, seconds in stages.items()))


def main() -> int:
    """Runs both sides in turn; returns the exit status."""
    options = tyro.cli(PipelineOptions, prog="pipeline.py")
    loops: list[Run] = []
    jobs: list[Run] = []
    with tempfile.TemporaryDirectory() as folder:
        config = make_inputs(Path(folder), options)
        for number in range(options.repeats):
            loops.append(measure(run_loop, config))
            jobs.append(measure(run_job, config))
            print(f"{number + 1} of {options.repeats} runs of each side done", file=sys.stderr)
        watched = {side: measure(run, config, memory=True) for side, run in (("loop", run_loop), ("job", run_job))}
    show(loops, jobs, watched, Console())
    if options.plot is not None:
        draw(watched, options.plot)
    if options.json_file is not None:
        sides = {"loop": loops, "job": jobs}
        values = {side: [asdict(run) for run in (*runs, watched[side])] for side, runs in sides.items()}
        partial = options.json_file.with_name(f".{options.json_file.name}.partial")
        partial.write_text(json.dumps(values, indent=1) + "\n")
        partial.replace(options.json_file)
    return 0


if __name__ == "__main__":
    sys.exit(main())
