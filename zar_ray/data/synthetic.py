"""The demo's data set: small H.264 videos of coloured shapes that move, drawn here, so nothing is downloaded.

A class is one motion, one colour and one shape ("spinning red star").  Some combinations are for training and others,
disjoint, for the zero-shot test; every motion, colour and shape occurs in training, so a model that has learnt the
words can name a combination it has never seen.  A moving shape leaves a fading trail, so a single frame shows most of
a motion.

The folder holds two manifests, one a set of class names::

    manifest.parquet    splits "test" (unseen combinations) and "shifted" (the same videos, spoilt)
    training.parquet    splits "train" and "val" (fresh videos of the training combinations)
"""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import itertools
import json
import math
import shutil
import uuid
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import av
import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from zar_ray.data.manifest import Manifest, VideoRow, read_manifest, write_manifest
from zar_ray.data.probing import Failure, Progress, in_processes
from zar_ray.errors import ManifestError
from zar_ray.options.places import at_home

Split = Literal["train", "val", "test", "shifted"]

MOTIONS = ("spinning", "sliding", "rising", "falling", "circling", "zigzagging")
COLOURS = {
    "red": (222, 42, 42),
    "green": (40, 185, 60),
    "blue": (50, 85, 235),
    "yellow": (240, 222, 50),
    "purple": (150, 50, 195),
    "white": (242, 242, 242),
}
SHIFTS = ("noise", "brightness", "blur")

WIDTH, HEIGHT = 96, 64  # pixels; wider than high, so that crops differ
UNSEEN_MANIFEST = "manifest.parquet"
TRAINING_MANIFEST = "training.parquet"
_SPEC_FILE = "spec.json"
# To be raised whenever the drawing changes, so that a data set drawn by older code is written anew.
_DRAWING = 1
_DRAWING_SECONDS = 300.0  # of one video, which takes a fraction of a second
_SUPERSAMPLING = 3
_TRAIL_DECAY = 0.88
_TRAIL_OPACITY = 0.7


@dataclass(frozen=True)
class SyntheticSpec:
    """What is written; the same spec always gives the same videos."""

    train_classes: int = 150  # combinations to train on
    unseen_classes: int = 32  # combinations, none of them among the former, for the zero-shot test
    train_videos: int = 8  # a training class
    val_videos: int = 2  # fresh ones, a training class
    test_videos: int = 6  # an unseen class; the shifted split has as many
    frames: tuple[int, int] = (24, 64)  # least and greatest number of frames of a video
    seed: int = 0


class _Task(NamedTuple):
    """One video to draw."""

    split: Split
    class_name: str
    number: int

    @property
    def video_id(self) -> str:
        return f"{self.split}/{self.class_name.replace(' ', '_')}/{self.number:03d}.mp4"


def _regular(*radii: float) -> np.ndarray:
    """Corners (P, 2) at equal angles about the centre, the first above it."""
    angles = np.arange(len(radii)) * 2 * math.pi / len(radii) - math.pi / 2
    return np.array(radii)[:, None] * np.stack([np.cos(angles), np.sin(angles)], 1)


def _crescent() -> np.ndarray:
    outer = np.linspace(0.28 * math.pi, 1.72 * math.pi, 24)
    inner, tip = outer[::-1], np.cos(outer[0])
    edge = 1.1 * np.stack([np.cos(outer), np.sin(outer)], 1)
    bite = 1.1 * np.stack([(np.cos(inner) - tip) * 0.35 + tip, np.sin(inner)], 1)
    return np.concatenate([edge, bite]) + np.array([0.25, 0.0])


_CROSS = [(-0.26, -1.15), (0.26, -1.15), (0.26, -0.26), (1.15, -0.26), (1.15, 0.26), (0.26, 0.26)]
# Corners (P, 2) of shapes of about unit radius, y downwards.
SHAPES = {
    "star": _regular(*[1.25, 0.4] * 5),
    "square": 0.88 * np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)], float),
    "triangle": _regular(1.15, 1.15, 1.15),
    "cross": np.array([*_CROSS, *((-x, -y) for x, y in _CROSS)]),
    "bar": np.array([(-1.3, -0.3), (1.3, -0.3), (1.3, 0.3), (-1.3, 0.3)]),
    "crescent": _crescent(),
}


def combinations(spec: SyntheticSpec) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Chooses the classes.

    Returns:
        The names of the training and the unseen combinations, such as "spinning red star", each sorted, disjoint; each
        motion, colour and shape occurs in training.

    Raises:
        ManifestError: There are not so many combinations, or too few to train on for every attribute to occur.
    """
    everything = [" ".join(parts) for parts in itertools.product(MOTIONS, COLOURS, SHAPES)]
    wanted = spec.train_classes + spec.unseen_classes
    if wanted > len(everything) or spec.train_classes < len(MOTIONS) or spec.unseen_classes < 1:
        raise ManifestError(
            f"demo: {spec.train_classes} training and {spec.unseen_classes} unseen classes; there must be at least "
            f"{len(MOTIONS)} and 1, and together at most {len(everything)}"
        )
    rng = _generator(spec.seed, "classes")
    # Six combinations that have every motion, colour and shape between them, then others by chance.
    parts = (rng.permutation(list(words)) for words in (MOTIONS, COLOURS, SHAPES))
    covering = [" ".join(words) for words in zip(*parts, strict=True)]
    rest = [name for name in everything if name not in covering]
    mixed = covering + [rest[i] for i in rng.permutation(len(rest))]
    return tuple(sorted(mixed[: spec.train_classes])), tuple(sorted(mixed[spec.train_classes : wanted]))


def write_synthetic(
    folder: Path,
    spec: SyntheticSpec | None = None,
    *,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Path:
    """Writes the data set, or finds it written already.

    The videos are written beside their place and the folder is renamed when all of it is there, so a folder that
    exists is complete.  A folder that was written by another spec, or lacks a file, is replaced.  Two writers of
    the same folder take turns.

    Args:
        folder: Where the data set shall lie; its parents are made.
        spec: What to write; by default the demo's 1,884 videos, about 20 MB.
        workers: Processes; by default one a CPU.
        progress: Called with the number of videos written and the number to write.

    Returns:
        The path of `manifest.parquet`; `training.parquet` lies beside it.

    Raises:
        ManifestError: The folder cannot be written, or holds something that this function did not write.
    """
    spec = spec or SyntheticSpec()
    folder = at_home(folder)
    manifest = folder / UNSEEN_MANIFEST
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with folder.with_name(f".{folder.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # the system frees it when the holder dies
            if _is_written(folder, spec):
                return manifest
            if folder.exists() and not (folder / _SPEC_FILE).exists() and any(folder.iterdir()):
                raise ManifestError(f"{folder}: holds something else than the demo's data; name another folder")
            for stale in folder.parent.glob(f".{folder.name}.partial-*"):  # of a writer that was killed
                shutil.rmtree(stale)
            fresh = folder.with_name(f".{folder.name}.partial-{uuid.uuid4().hex[:8]}")
            try:
                _write(fresh, folder, spec, workers, progress)
                if folder.exists():
                    shutil.rmtree(folder)
                fresh.rename(folder)
            finally:
                shutil.rmtree(fresh, ignore_errors=True)
    except OSError as error:
        raise ManifestError(f"{folder}: the demo's videos cannot be written ({error})") from error
    return manifest


def _is_written(folder: Path, spec: SyntheticSpec) -> bool:
    try:
        if (folder / _SPEC_FILE).read_text(encoding="utf-8") != _describe(spec):
            return False
        manifests = [read_manifest(folder / name) for name in (UNSEEN_MANIFEST, TRAINING_MANIFEST)]
    except (FileNotFoundError, ManifestError):
        return False
    # The paths are absolute: a folder that was moved is written anew.
    return all(Path(row.path).is_file() and row.path.startswith(f"{folder}/") for m in manifests for row in m.rows())


def _describe(spec: SyntheticSpec) -> str:
    return json.dumps({"drawing": _DRAWING, **dataclasses.asdict(spec)}, indent=1) + "\n"


def _write(folder: Path, final: Path, spec: SyntheticSpec, workers: int | None, progress: Progress | None) -> None:
    train, unseen = combinations(spec)
    plan: tuple[tuple[Split, tuple[str, ...], int], ...] = (
        ("train", train, spec.train_videos),
        ("val", train, spec.val_videos),
        ("test", unseen, spec.test_videos),
        ("shifted", unseen, spec.test_videos),
    )
    tasks = [_Task(split, name, n) for split, names, videos in plan for name in names for n in range(videos)]
    for place in sorted({(folder / task.video_id).parent for task in tasks}):
        place.mkdir(parents=True)
    answers = in_processes(tasks, partial(_draw_file, folder, spec), workers, _DRAWING_SECONDS, progress)
    failed = next((answer for answer in answers if isinstance(answer, Failure)), None)
    if failed is not None:
        raise ManifestError(f"{folder}: a process that drew videos failed ({failed.message})")
    rows = []
    for task in tasks:
        frames, fps = _length(task, spec)
        rows.append(
            VideoRow(
                video_id=task.video_id,
                path=str(final / task.video_id),
                label_id=(unseen if task.class_name in unseen else train).index(task.class_name),
                class_name=task.class_name,
                split=task.split,
                frames=frames,
                fps=float(fps),
                width=WIDTH,
                height=HEIGHT,
                duration=frames / fps,
                size=(folder / task.video_id).stat().st_size,
            )
        )
    for manifest, names in ((TRAINING_MANIFEST, train), (UNSEEN_MANIFEST, unseen)):
        own = [row for row in rows if row.class_name in names]
        write_manifest(Manifest.of(own, names, final, "demo"), folder / manifest)
    (folder / _SPEC_FILE).write_text(_describe(spec), encoding="utf-8")


def _draw_file(root: Path, spec: SyntheticSpec, task: _Task) -> None:
    _, fps = _length(task, spec)
    write_video(root / task.video_id, draw(*task, spec), fps)


def write_video(path: Path, frames: np.ndarray, fps: int) -> None:
    """Writes frames, uint8 (F, H, W, 3) RGB of even size, as an H.264 mp4 file."""
    # One thread and a constant quantiser: x264's rate control was seen to give other bytes from run to run.
    options = {"preset": "veryfast", "qp": "21", "threads": "1"}
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options=options)
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def draw(split: Split, class_name: str, number: int, spec: SyntheticSpec) -> np.ndarray:
    """Draws one video.

    Returns:
        uint8 (F, H, W, 3). A shifted video is the test video of the same number, with noise, another brightness or
        blur, in turn.
    """
    task = _Task(split, class_name, number)
    motion, colour_name, shape_name = class_name.split()
    frames, _ = _length(task, spec)
    rng = _task_generator(task, spec, "scene")
    radius = HEIGHT * rng.uniform(0.2, 0.25)
    x, y, angle = _motion(motion, frames, radius, rng)
    outline = SHAPES[shape_name] * radius
    colour = np.clip(np.array(COLOURS[colour_name]) + rng.uniform(-14, 14, 3), 0, 255).astype(np.float32)
    background = _background(rng)

    shape = np.stack([_mask(outline, *at) for at in zip(x, y, angle, strict=True)])
    trail = np.empty_like(shape)
    fading = np.zeros_like(shape[0])
    jumped = np.hypot(np.diff(x, prepend=x[0]), np.diff(y, prepend=y[0])) > HEIGHT / 4
    for i, mask in enumerate(shape):  # a shape that enters the picture anew has left no trail yet
        fading = trail[i] = mask if jumped[i] else np.maximum(fading * _TRAIL_DECAY, mask)
    opacity = np.maximum(shape, trail * _TRAIL_OPACITY)[..., None]
    picture = background + opacity * (colour - background)
    if split == "shifted":
        picture = _shift(picture, SHIFTS[number % len(SHIFTS)], _task_generator(task, spec, "shift"))
    return np.clip(picture + 0.5, 0, 255).astype(np.uint8)


def _generator(*key: object) -> np.random.Generator:
    digest = hashlib.sha256("\0".join(map(str, key)).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "little"))


def _task_generator(task: _Task, spec: SyntheticSpec, part: str) -> np.random.Generator:
    """A shifted video shares all but its shift with the test video of the same number."""
    split = "test" if task.split == "shifted" else task.split
    return _generator(spec.seed, part, split, task.class_name, task.number)


def _length(task: _Task, spec: SyntheticSpec) -> tuple[int, int]:
    """Number of frames, and frames a second."""
    rng = _task_generator(task, spec, "length")
    return int(rng.integers(spec.frames[0], spec.frames[1] + 1)), int(rng.choice((24, 25, 30)))


def _motion(motion: str, frames: int, radius: float, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """Centre in pixels and angle in radians, each (F,). All but the edges of a path lie in the central square."""
    time = np.arange(frames) + rng.uniform(0, 60)
    way = rng.choice((-1.0, 1.0))
    middle_x = np.full(frames, WIDTH / 2 + rng.uniform(-6, 6))
    middle_y = np.full(frames, HEIGHT / 2 + rng.uniform(-6, 6))
    tilt = np.full(frames, math.radians(rng.uniform(-12, 12)))
    if motion == "spinning":
        return middle_x, middle_y, way * time * math.radians(rng.uniform(14, 20))
    if motion == "sliding":
        return middle_x + 20 * _triangle_wave(time / rng.uniform(22, 30)), middle_y, tilt
    if motion in ("rising", "falling"):
        margin = 0.6 * radius
        travelled = margin + (time * rng.uniform(2.2, 3.0)) % (HEIGHT - 2 * margin)
        return middle_x, travelled if motion == "falling" else HEIGHT - travelled, tilt
    if motion == "circling":
        turn = way * time * 2 * math.pi / rng.uniform(20, 28)
        reach = rng.uniform(14, 18)
        return middle_x + reach * np.cos(turn), middle_y + reach * np.sin(turn), tilt
    across, up = rng.uniform(44, 56), rng.uniform(9, 12)  # zigzagging
    return middle_x + 24 * _triangle_wave(time / across), middle_y + 14 * _triangle_wave(time / up), tilt


def _triangle_wave(phase: np.ndarray) -> np.ndarray:
    """Goes linearly between -1 and 1 and back, once as the phase grows by 1."""
    return 4 * np.abs(phase % 1 - 0.5) - 1


def _mask(outline: np.ndarray, x: float, y: float, angle: float) -> np.ndarray:
    """How much of each pixel the shape covers: float32 (H, W) in [0, 1]."""
    cos, sin = math.cos(angle), math.sin(angle)
    corners = (outline @ np.array([(cos, sin), (-sin, cos)]) + (x, y)) * _SUPERSAMPLING
    canvas = Image.new("L", (WIDTH * _SUPERSAMPLING, HEIGHT * _SUPERSAMPLING))
    ImageDraw.Draw(canvas).polygon([(float(a), float(b)) for a, b in corners], fill=255)
    return np.asarray(canvas.reduce(_SUPERSAMPLING), np.float32) / 255


def _background(rng: np.random.Generator) -> np.ndarray:
    """A dim, nearly grey texture: clouds, stripes, squares or a gradient; float32 (H, W, 3)."""
    down, across = np.mgrid[:HEIGHT, :WIDTH].astype(np.float32)
    angle = rng.uniform(0, math.pi)
    along = across * math.cos(angle) + down * math.sin(angle)
    width = rng.uniform(5, 16)
    kind = rng.integers(4)
    if kind == 0:
        texture = np.sin(along * math.pi / width)
    elif kind == 1:
        beside = down * math.cos(angle) - across * math.sin(angle)
        texture = np.sign(np.sin(along * math.pi / width) * np.sin(beside * math.pi / width))
    elif kind == 2:
        texture = along / 48 - (along / 48).mean()
    else:
        coarse = Image.fromarray((rng.random((6, 9)) * 255).astype(np.uint8))
        texture = np.asarray(coarse.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC), np.float32) / 64 - 2
    tint = rng.uniform(45, 115) + rng.uniform(-12, 12, 3)
    return (tint + texture[..., None] * rng.uniform(4, 14)).astype(np.float32)


def _shift(picture: np.ndarray, shift: str, rng: np.random.Generator) -> np.ndarray:
    """Spoils a video, float32 (F, H, W, 3), the same way in all its frames."""
    if shift == "noise":
        return picture + rng.normal(0, rng.uniform(20, 40), picture.shape).astype(np.float32)
    if shift == "brightness":
        return picture * rng.uniform(0.35, 0.55) if rng.random() < 0.5 else picture * rng.uniform(1.1, 1.3) + 45
    blur = ImageFilter.GaussianBlur(rng.uniform(1.5, 2.5))
    clipped = np.clip(picture, 0, 255).astype(np.uint8)
    return np.stack([np.asarray(Image.fromarray(frame).filter(blur), np.float32) for frame in clipped])
