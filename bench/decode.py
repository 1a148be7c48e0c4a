"""CPU time of decoding and resizing, and the cores that a GPU wants for it: `python bench/decode.py --help`.

The frames that the default plan names are read by every reader that is here, of real files (`--videos`) and of
generated ones of 1080p. Counted is the CPU time of the process and its children, in turn, the least of some rounds; and
every reader's frames are held against those of a plain decoding of the whole file.
"""

from __future__ import annotations

import importlib.util
import json
import math
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import av
import av.error
import av.logging
import numpy as np
import tyro
from pydantic import Field
from rich import box
from rich.console import Console
from rich.table import Table

from zar_ray.errors import VideoError, ZarError
from zar_ray.evaluation.supply import PEAKS
from zar_ray.options.base import Options
from zar_ray.video.decoding import decode_video
from zar_ray.video.options import Decoder, Resizer, ViewConfig
from zar_ray.video.plans import ViewPlan, plan_video
from zar_ray.video.reading import VideoInfo, has_decord, open_video, probe_video
from zar_ray.video.transforms import Preprocessing, as_pillow, resize_frame

# GFLOPs an image as papers count them, and the share of a GPU's peak that an encoder is taken to reach.
MODELS = {"ViT-B/32": 4.4, "ViT-B/16": 17.6, "ViT-L/14": 81.1}
SHARE = 0.5
CODECS = {
    "h264": ("libx264", {"preset": "medium", "crf": "23"}),
    "hevc": ("libx265", {"preset": "ultrafast", "crf": "26", "x265-params": "log-level=0"}),
    "vp9": ("libvpx-vp9", {"deadline": "realtime", "cpu-used": "8", "b": "4M"}),
    "av1": ("libsvtav1", {"preset": "12", "crf": "35"}),
}
# What resizes: Pillow itself, its sums compiled, and PyTorch.
KERNELS = ("pillow", "pil", "torch")
_FEWEST = 30  # frames of a video that is worth measuring
Read = Callable[[Path, np.ndarray], Any]


class DecodeBenchOptions(Options):
    """Holds readers, resizing and shipping side by side."""

    videos: Path | None = Field(default=None, description="A folder of real files, of which those without fault count.")
    codecs: tuple[str, ...] = Field(default=tuple(CODECS), description="Codecs of the generated files.")
    frames: int = Field(default=60, ge=2, description="Frames of the generated files.")
    size: tuple[int, int] = Field(default=(1920, 1080), description="Their width and height.")
    rounds: int = Field(default=2, ge=1, description="Of which the least counts.")
    gpus: tuple[str, ...] = Field(default=("H100", "A100", "L4"), description="GPUs to feed.")
    json_file: Annotated[Path | None, tyro.conf.arg(name="json")] = Field(
        default=None, description="Write all numbers to this file too."
    )


def plan(info: VideoInfo, needs_views: bool = True) -> ViewPlan:
    """The default views of a video at 224 pixels."""
    return plan_video("bench", info, ViewConfig(), Preprocessing(224), 0, needs_views=needs_views)


def by_reader(decoder: Decoder) -> Read:
    """zar-ray's own reader."""

    def read(path: Path, indices: np.ndarray) -> list[np.ndarray]:
        with open_video(path, decoder) as reader:
            return list(reader.read(indices))

    return read


def by_pyav(kind: str, threads: int) -> Read:
    """PyAV alone, with one of its kinds of threads: frames are counted as they come."""

    def read(path: Path, indices: np.ndarray) -> list[np.ndarray]:
        wanted, last = set(indices.tolist()), int(indices[-1])
        av.logging.set_level(None)  # a thread with something to say would wait for Python, which waits for the thread
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            stream.codec_context.thread_type, stream.codec_context.thread_count = kind, threads
            found = []
            for index, frame in enumerate(container.decode(stream)):
                if index in wanted:
                    found.append(frame.to_ndarray(format="rgb24"))
                if index == last:
                    break
        return found

    return read


def by_torchcodec(path: Path, indices: np.ndarray) -> np.ndarray:
    """torchcodec, on one thread of the CPU."""
    from torchcodec.decoders import VideoDecoder  # type: ignore[import-not-found]

    decoder = VideoDecoder(str(path), dimension_order="NHWC", num_ffmpeg_threads=1)
    return decoder.get_frames_at(indices.tolist()).data.numpy()


def by_command(program: str) -> Read:
    """The ffmpeg command, which writes the frames into a pipe."""

    def read(path: Path, indices: np.ndarray) -> np.ndarray:
        info = probe_video(path)
        # in groups: FFmpeg takes no sums of more than a hundred
        groups = [indices[start : start + 20].tolist() for start in range(0, len(indices), 20)]
        chosen = "+".join("(" + "+".join(f"eq(n\\,{index})" for index in group) + ")" for group in groups)
        command = [program, "-v", "error", "-threads", "1", "-i", str(path), "-vf", f"select={chosen}"]
        command += ["-fps_mode", "passthrough", "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
        done = subprocess.run(command, capture_output=True, check=True)
        return np.frombuffer(done.stdout, np.uint8).reshape(-1, info.height, info.width, 3)

    return read


def readers() -> dict[str, Read]:
    """All that are here, by name."""
    found: dict[str, Read] = {"zar-ray, pyav": by_reader("pyav")}
    if has_decord():
        found["zar-ray, decord"] = by_reader("decord")
    for kind, threads in (("NONE", 1), ("SLICE", 2), ("FRAME", 2), ("AUTO", 0)):
        found[f"PyAV {kind} {threads}"] = by_pyav(kind, threads)
    if importlib.util.find_spec("torchcodec") is not None:
        found["torchcodec"] = by_torchcodec
        found["zar-ray, torchcodec"] = by_reader("torchcodec")
    if (program := shutil.which("ffmpeg")) is not None:
        found["ffmpeg command"] = by_command(program)
    return found


def least_cpu(call: Callable[[], Any], rounds: int) -> float:
    """CPU milliseconds of a call, this process's and its children's: the least of some rounds."""
    taken = []
    for _ in range(rounds):
        before = _cpu_seconds()
        call()
        taken.append(_cpu_seconds() - before)
    return 1000 * min(taken)


def _cpu_seconds() -> float:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def placed(frames: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> str:
    """Whether a reader gives the right frames: ``equal``, ``right`` but for another conversion to RGB, or ``wrong``."""
    if len(frames) != len(expected):
        return "wrong"
    pairs = list(zip(frames, expected, strict=True))
    if all(np.array_equal(one, other) for one, other in pairs):
        return "equal"
    near = max(float(np.abs(one[::4, ::4].astype(int) - other[::4, ::4]).mean()) for one, other in pairs)
    return "right" if near < 3 else "wrong"


def measure(path: Path, rounds: int) -> dict[str, Any]:
    """One video's figures, in CPU milliseconds."""
    info = probe_video(path)
    views = plan(info)
    expected = by_pyav("NONE", 1)(path, views.frames)
    row: dict[str, Any] = {
        "video": path.name,
        "frames": [info.frames, len(views.frames), len(views.images), len(plan(info, needs_views=False).images)],
        "size": [info.width, info.height],
        "read": {},
        "found": {},
    }
    for name, read in readers().items():
        try:
            row["found"][name] = placed(read(path, views.frames), expected)
            row["read"][name] = least_cpu(lambda read=read: read(path, views.frames), rounds)
        except (ZarError, RuntimeError, OSError, subprocess.CalledProcessError) as error:
            row["found"][name] = " ".join(str(error).split())[:60]
    ways: list[tuple[Decoder, str]] = [("auto", "pillow"), ("auto", "pil"), ("auto", "torch")]
    if has_decord():
        ways.insert(0, ("decord", "pillow"))
    calls = {}
    for decoder, kernel in ways:
        calls[f"{decoder}, {kernel}"] = call = partial(by_kernel, kernel, partial(decode_video, path, plan), decoder)
        try:
            call()
        except VideoError:
            del calls[f"{decoder}, {kernel}"]
    # in turn, as the machine's speed changes
    taken = [{name: least_cpu(call, 1) for name, call in calls.items()} for _ in range(rounds)]
    row["whole"] = {name: min(one[name] for one in taken) for name in calls}
    for kernel in KERNELS:
        one = partial(
            by_kernel, kernel, lambda resizer: [resize_frame(frame, 224, resizer=resizer) for frame in expected]
        )
        row[f"resize {kernel}"] = least_cpu(one, rounds)
    resized = decode_video(path, plan).frames
    row["crop"] = least_cpu(lambda: [np.ascontiguousarray(resized[:, :, x : x + 224]) for x in _lefts(resized)], rounds)
    row["ship"] = least_cpu(resized.tobytes, rounds)
    return row


def by_kernel(kernel: str, work: Callable[..., Any], decoder: Decoder | None = None) -> None:
    """Work with one of `KERNELS`: a run's `--resize pil` is compiled but for a process's first videos."""
    as_pillow.never_compile()
    if kernel == "pil":
        as_pillow.compile_for(math.inf)
    resizer: Resizer = "torch" if kernel == "torch" else "pil"
    work(resizer=resizer) if decoder is None else work(resizer=resizer, decoder=decoder)


def _lefts(frames: np.ndarray) -> tuple[int, ...]:
    room = frames.shape[2] - 224
    return (0, room // 2, room) if room > 0 else (0,)


def generate(folder: Path, options: DecodeBenchOptions) -> Iterator[Path]:
    """Files of moving clouds with grain; codecs that this FFmpeg cannot write are left out."""
    width, height = options.size
    rng = np.random.default_rng(0)
    scene = np.kron(rng.integers(30, 225, (height // 40 + 6, width // 40 + 6, 3)), np.ones((40, 40, 1))).astype(
        np.int16
    )
    grain = rng.integers(-6, 7, (height, width, 3), np.int16)
    for name in options.codecs:
        codec, how = CODECS[name]
        path = folder / f"{name}.{'webm' if name == 'vp9' else 'mp4'}"
        try:
            with av.open(str(path), "w") as container:
                stream: Any = container.add_stream(codec, rate=30, options=how)
                stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
                for number in range(options.frames):
                    part = scene[number * 2 : number * 2 + height, number * 3 : number * 3 + width] + np.roll(
                        grain, number
                    )
                    frame = av.VideoFrame.from_ndarray(np.clip(part, 0, 255).astype(np.uint8), format="rgb24")
                    container.mux(stream.encode(frame))
                container.mux(stream.encode(None))
        except (av.error.FFmpegError, ValueError) as error:
            print(f"bench: {name}: cannot be written here ({error})", file=sys.stderr)
            continue
        yield path


def cores(cpu: float, images: float, gflops: float, gpu: str) -> float:
    """Cores that one GPU wants, of the CPU milliseconds of a video and its images."""
    return cpu / (1000 * images * gflops * 2e9 / (PEAKS[gpu] * 1e12 * SHARE))


def show(rows: Sequence[dict[str, Any]], options: DecodeBenchOptions, console: Console) -> None:
    """Prints the tables."""
    names = [name for name in readers() if any(name in row["read"] for row in rows)]
    reading = Table("reader", *(row["video"] for row in rows), title="reading, CPU ms a video", box=box.SIMPLE)
    for name in names:
        cells = [f"{row['read'][name]:.0f} {row['found'][name]}" if name in row["read"] else "-" for row in rows]
        reading.add_row(name, *cells)
    console.print(reading)
    whole = Table("what", *(row["video"] for row in rows), "mean", title="CPU ms a video", box=box.SIMPLE)
    parts = [(f"decode and resize: {name}", lambda row, name=name: row["whole"].get(name)) for name in _whole(rows)]
    parts += [
        (key, lambda row, key=key: row[key]) for key in (*(f"resize {kernel}" for kernel in KERNELS), "crop", "ship")
    ]
    for name, value in parts:
        values = [value(row) for row in rows]
        mean = f"{np.mean([one for one in values if one is not None]):.1f}" if None not in values else "-"
        whole.add_row(name, *("-" if one is None else f"{one:.1f}" for one in values), mean)
    console.print(whole)
    table = Table("size", "model", "method", "resize", *options.gpus, title="cores a GPU", box=box.SIMPLE)
    for size in dict.fromkeys(tuple(row["size"]) for row in rows):
        same = [row for row in rows if tuple(row["size"]) == size]
        for model, gflops in MODELS.items():
            for method, place in (("zar", 2), ("zero_shot", 3)):
                for resizer in ("pil", "torch"):
                    # zero_shot decodes as far, and resizes 16 frames
                    cpu = float(np.mean([_cpu(row, resizer, place) for row in same]))
                    images = float(np.mean([row["frames"][place] for row in same]))
                    wanted = [f"{cores(cpu, images, gflops, gpu):.1f}" for gpu in options.gpus]
                    table.add_row(f"{size[0]}×{size[1]}", model, method, resizer, *wanted)
    console.print(table)


def _whole(rows: Sequence[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row["whole"]))


def _cpu(row: dict[str, Any], resizer: str, place: int) -> float:
    cpu = row["whole"][f"auto, {resizer}"]
    if place == 3:
        cpu -= row[f"resize {resizer}"] * max(0.0, 1 - row["frames"][3] / row["frames"][1])
    return cpu


def main(argv: Sequence[str]) -> int:
    """Runs the bench; returns the exit status."""
    options = tyro.cli(DecodeBenchOptions, args=list(argv), prog="decode.py")
    unknown = [name for name in options.gpus if name not in PEAKS]
    if unknown:
        print(f"bench: --gpus {' '.join(unknown)}: known are {', '.join(PEAKS)}", file=sys.stderr)
        return 1
    rows = []
    with tempfile.TemporaryDirectory(prefix="zar-bench-") as folder:
        real = sorted(path for path in options.videos.iterdir() if path.is_file()) if options.videos else []
        for path in [*real, *generate(Path(folder), options)]:
            try:
                if decode_video(path, plan).warning is not None or probe_video(path).frames < _FEWEST:
                    continue
            except VideoError:
                continue
            print(path.name, file=sys.stderr, flush=True)
            rows.append(measure(path, options.rounds))
    if not rows:
        print("bench: no videos that can be read; name a folder with --videos, or --codecs", file=sys.stderr)
        return 1
    show(rows, options, Console(width=200))
    if options.json_file is not None:
        options.json_file.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
