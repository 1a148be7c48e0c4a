"""The system ``preprocess``: decoding, resizing, cropping and normalising real videos, and which frames are sampled.

Whatever is an integer (decoded and resized pixels, by value or by SHA-256; sampled indices) must be equal. Normalised
pixels and their averages may differ by 1e-5, averages of uint8 pixels by 1e-3, frames a second by 1e-3. A video's
time stamps are not compared: nothing here reads them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import adaptive_avg_pool2d

from zar_ray.errors import ConfigError
from zar_ray.parity.checks import ArrayCheck, Evidence, Measured, compare, equal, miss, sha256
from zar_ray.parity.fixture import FileFormat, Fixture
from zar_ray.video.decoding import decode_video
from zar_ray.video.pixels import crop_and_normalise
from zar_ray.video.plans import segment_frames
from zar_ray.video.reading import VideoInfo, open_video
from zar_ray.video.transforms import Preprocessing, crop_boxes

NORMALISED, AVERAGES, RATE, EXACT = 1e-5, 1e-3, 1e-3, 0.0

_SAMPLE = re.compile(r"sample/N(?P<frames>\d+)_T(?P<count>\d+)")


class PreprocessConfig(FileFormat):
    """``config`` of this system."""

    frame_indices: tuple[int, ...]
    n_px: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


class VideoFacts(FileFormat):
    """What is written down of a video, as far as it is compared."""

    file: str
    file_sha256: str | None = None
    bytes: int | None = None
    n_frames_decord: int | None = None
    avg_fps: float | None = None
    frames_shape: tuple[int, ...] | None = None
    frames_sha256: str | None = None
    per_frame_sha256: tuple[str, ...] | None = None
    resized_WxH: tuple[int, int] | None = None  # noqa: N815 (the fixture's word)


@dataclass(frozen=True)
class _Wanted:
    frames: np.ndarray
    short_side: int


@dataclass(frozen=True, eq=False)
class _Pixels:
    """n frames of a video: uint8 (n, H, W, 3), (n, h, w, 3) and (n, R, R, 3), and float32 (n, 3, R, R)."""

    info: VideoInfo
    raw: np.ndarray
    resized: np.ndarray
    crop: np.ndarray
    normalised: torch.Tensor


def check_preprocess(fixture: Fixture, videos: Path | None) -> Evidence:
    """Decodes and transforms a fixture's videos as an evaluation does, and samples frames.

    Args:
        fixture: The fixture.
        videos: Folder that the fixture's video files are looked up under; by default the nearest folder above the
            fixture that has them.

    Raises:
        ConfigError: A video is not there, or the fixture lacks something.
        VideoError: A video cannot be read.
    """
    config = fixture.read(PreprocessConfig, fixture.file.config, "config")
    checks: list[ArrayCheck] = []
    measured = {"frame_indices": Measured(np.array(config.frame_indices), EXACT)}
    for name in fixture.arrays:
        match = _SAMPLE.fullmatch(name)
        if match:
            frames = int(match["frames"])
            measured[name] = Measured(segment_frames(0, frames, int(match["count"]), frames), EXACT)
    for name, values in fixture.file.clips.items():
        facts = fixture.read(VideoFacts, values, f"clips.{name}")
        path = _find(fixture, facts.file, videos)
        pixels = _read(path, config)
        checks += _check_facts(fixture.label(name), facts, path, pixels)
        checks += _check_crops(fixture.label(name), values, pixels.crop)
        measured |= {f"{name}/{key}": value for key, value in _measure(fixture, name, pixels).items()}
    return Evidence(checks, measured)


def _find(fixture: Fixture, file: str, videos: Path | None) -> Path:
    folders = [videos] if videos is not None else list(fixture.folder.resolve().parents)
    for folder in folders:
        if (folder / file).is_file():
            return folder / file
    where = str(videos) if videos is not None else f"a folder above {fixture.folder}"
    raise ConfigError(f"{fixture.name}: its video {file} is not in {where}; name the folder that has it with --videos")


def _read(path: Path, config: PreprocessConfig) -> _Pixels:
    order = np.array(config.frame_indices, dtype=np.int64)
    distinct, rows = np.unique(order, return_inverse=True)
    preprocessing = Preprocessing(config.n_px, config.mean, config.std)
    decoded = decode_video(path, lambda _: _Wanted(distinct, config.n_px), preprocessing.interpolation)
    # Evaluations see resized frames only; the full ones come from the decoder that gave those.
    with open_video(path, "pyav" if decoded.info.decoder == "pyav" else "decord") as reader:
        raw = np.stack(list(reader.read(distinct)))[rows]
    resized = decoded.frames[rows]
    ((_, box),) = crop_boxes(resized.shape[1], resized.shape[2], config.n_px, 1)
    images = np.stack([np.arange(len(order)), np.zeros(len(order), dtype=np.int64)], axis=1)
    return _Pixels(
        info=decoded.info,
        raw=raw,
        resized=resized,
        crop=resized[:, box.top : box.top + box.size, box.left : box.left + box.size],
        normalised=crop_and_normalise(torch.from_numpy(resized), images, (box,), preprocessing),
    )


def _check_facts(name: str, facts: VideoFacts, path: Path, pixels: _Pixels) -> list[ArrayCheck]:
    height, width = pixels.resized.shape[1:3]
    exact = {
        "file_sha256": (facts.file_sha256, lambda: sha256(path.read_bytes())),
        "bytes": (facts.bytes, lambda: path.stat().st_size),
        "n_frames": (facts.n_frames_decord, lambda: pixels.info.frames),
        "frames_shape": (facts.frames_shape, lambda: pixels.raw.shape),
        "frames_sha256": (facts.frames_sha256, lambda: sha256(pixels.raw.tobytes())),
        "resized_WxH": (facts.resized_WxH, lambda: (width, height)),
    }
    checks = [equal(f"{name}/{key}", theirs, ours()) for key, (theirs, ours) in exact.items() if theirs is not None]
    if facts.avg_fps is not None:
        checks.append(compare(f"{name}/avg_fps", np.array(facts.avg_fps), Measured(np.array(pixels.info.fps), RATE)))
    if facts.per_frame_sha256 is not None:
        checks += _check_each(f"{name}/per_frame_sha256", facts.per_frame_sha256, pixels.raw)
    return checks


def _check_crops(name: str, values: dict[str, object], crop: np.ndarray) -> list[ArrayCheck]:
    """The digests of a video that are not among its facts: of its crops, whose size is part of their key."""
    checks: list[ArrayCheck] = []
    for key, digests in values.items():
        if "sha256" not in key or key in VideoFacts.model_fields:
            continue
        if key == f"crop{crop.shape[1]}_u8_sha256" and isinstance(digests, list):
            checks += _check_each(f"{name}/{key}", digests, crop)
        else:
            checks.append(miss(f"{name}/{key}", "not compared: nothing here makes it"))
    return checks


def _check_each(name: str, digests: list[str] | tuple[str, ...], pictures: np.ndarray) -> list[ArrayCheck]:
    checks = [equal(f"{name}/count", len(digests), len(pictures))] if len(digests) != len(pictures) else []
    for number, (theirs, ours) in enumerate(zip(digests, pictures, strict=False)):
        checks.append(equal(f"{name}/{number}", theirs, sha256(ours.tobytes())))
    return checks


def _measure(fixture: Fixture, name: str, pixels: _Pixels) -> dict[str, Measured]:
    """Every array of a video; sizes of grids and windows are those of the fixture's arrays."""
    frames = torch.from_numpy(pixels.raw).permute(0, 3, 1, 2).double()
    normalised = pixels.normalised.double()
    measured = {
        "frame_mean": Measured(frames.mean(dim=(2, 3)), AVERAGES),
        "clip_mean": Measured(normalised.mean(dim=(2, 3)), NORMALISED),
        "clip_std": Measured(normalised.std(dim=(2, 3)), NORMALISED),
    }

    def shape(key: str) -> tuple[int, ...]:
        reference = fixture.arrays.get(f"{name}/{key}")
        return () if reference is None else reference.shape

    if len(shape("frame_grid")) == 4:
        height, width = shape("frame_grid")[2:]
        measured["frame_grid"] = Measured(adaptive_avg_pool2d(frames, (height, width)), AVERAGES)
    if len(shape("clip_grid")) == 4:
        height, width = shape("clip_grid")[2:]
        measured["clip_grid"] = Measured(adaptive_avg_pool2d(normalised, (height, width)), NORMALISED)
    if len(shape("clip_corner")) == 4:
        height, width = shape("clip_corner")[2:]
        measured["clip_corner"] = Measured(normalised[:, :, :height, :width], NORMALISED)
    if len(shape("crop_centre_u8")) == 4:
        height, width = shape("crop_centre_u8")[1:3]
        top, left = (pixels.crop.shape[1] - height) // 2, (pixels.crop.shape[2] - width) // 2
        measured["crop_centre_u8"] = Measured(pixels.crop[:, top : top + height, left : left + width], EXACT)
    return measured
