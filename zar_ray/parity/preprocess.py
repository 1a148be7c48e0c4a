"""The system ``preprocess``: decoding, resizing, cropping and normalising real videos, and which frames are sampled.

Integers (decoded and resized pixels, by value or by SHA-256; sampled indices) must be equal. A video's time stamps are
not compared: nothing here reads them.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn.functional import adaptive_avg_pool2d

from zar_ray.errors import ConfigError
from zar_ray.parity.fixture import Evidence, Fixture
from zar_ray.video.decoding import decode_video
from zar_ray.video.pixels import crop_and_normalise
from zar_ray.video.reading import VideoInfo, open_video
from zar_ray.video.sampling import part_centres
from zar_ray.video.transforms import Preprocessing, crop_boxes


class _Wanted(NamedTuple):
    frames: np.ndarray
    short_side: int


class _Pixels(NamedTuple):
    """n frames of a video: uint8 (n, H, W, 3), (n, h, w, 3) and (n, R, R, 3), and float32 (n, 3, R, R)."""

    info: VideoInfo
    raw: np.ndarray
    resized: np.ndarray
    crop: np.ndarray
    normalised: torch.Tensor


def preprocess(fixture: Fixture) -> Evidence:
    """Decodes and transforms a fixture's videos as an evaluation does, and samples frames."""
    order = np.array(fixture.fact(tuple[int, ...], "config", "frame_indices"), dtype=np.int64)
    mean, std = (fixture.fact(tuple[float, float, float], "config", key) for key in ("mean", "std"))
    preprocessing = Preprocessing(fixture.fact(int, "config", "n_px"), mean, std)
    evidence = Evidence({"frame_indices": order})
    for match in filter(None, (re.fullmatch(r"sample/N(\d+)_T(\d+)", name) for name in fixture.arrays)):
        frames, count = map(int, match.groups())
        evidence.arrays[match[0]] = part_centres(0, frames, count, frames)
    for name, facts in fixture.fact(dict[str, dict[str, Any]], "clips", default={}).items():
        path = _find(fixture, fixture.fact(str, "clips", name, "file"))
        pixels = _read(path, order, preprocessing)
        evidence.add(_measure(fixture, name, pixels), name)
        evidence.facts.update({f"{name}/{key}": values for key, values in _facts(facts, path, pixels).items()})
    return evidence


def _find(fixture: Fixture, file: str) -> Path:
    """A video: under the folder that was named, or under the nearest above the fixture that has it."""
    for folder in [fixture.videos] if fixture.videos else fixture.folder.resolve().parents:
        if (folder / file).is_file():
            return folder / file
    where = fixture.videos or f"a folder above {fixture.folder}"
    raise ConfigError(f"{fixture.name}: its video {file} is not in {where}; name the folder that has it with --videos")


def _read(path: Path, order: np.ndarray, preprocessing: Preprocessing) -> _Pixels:
    size = preprocessing.input_size
    distinct, rows = np.unique(order, return_inverse=True)
    decoded = decode_video(path, lambda _: _Wanted(distinct, size), preprocessing.scaling)
    # Evaluations see resized frames only; the full ones come from the decoder that gave those.
    with open_video(path, "pyav" if decoded.info.decoder == "pyav" else "decord") as reader:
        raw = np.stack(list(reader.read(distinct)))[rows]
    resized = decoded.frames[rows]
    ((_, box),) = crop_boxes(resized.shape[1], resized.shape[2], size, 1)
    images = np.stack([np.arange(len(order)), np.zeros(len(order), dtype=np.int64)], axis=1)
    crop = resized[:, box.top : box.top + box.size, box.left : box.left + box.size]
    normalised = crop_and_normalise(torch.from_numpy(resized), images, (box,), preprocessing)
    return _Pixels(decoded.info, raw, resized, crop, normalised)


def _facts(facts: dict[str, Any], path: Path, pixels: _Pixels) -> dict[str, tuple[object, object]]:
    """What is written down of a video, each with what is found here; a digest that nothing makes with None."""
    _, height, width, _ = pixels.resized.shape
    found = {
        "file_sha256": _sha256(path.read_bytes()),
        "bytes": path.stat().st_size,
        "n_frames_decord": pixels.info.frames,
        "frames_shape": list(pixels.raw.shape),
        "frames_sha256": _sha256(pixels.raw.tobytes()),
        "resized_WxH": [width, height],
        "avg_fps": float(pixels.info.fps),
    }
    pairs = {key.removesuffix("_decord"): (facts[key], ours) for key, ours in found.items() if key in facts}
    pictures = {"per_frame_sha256": pixels.raw, f"crop{pixels.crop.shape[1]}_u8_sha256": pixels.crop}
    for key in [key for key in facts if "sha256" in key and key not in found]:
        theirs, ours = facts[key], pictures.get(key)
        if ours is None or not isinstance(theirs, list):
            pairs[key] = theirs, None
            continue
        if len(theirs) != len(ours):
            pairs[f"{key}/count"] = len(theirs), len(ours)
        digests = zip(theirs, (_sha256(picture.tobytes()) for picture in ours), strict=False)
        pairs |= {f"{key}/{number}": pair for number, pair in enumerate(digests)}
    return pairs


def _measure(fixture: Fixture, name: str, pixels: _Pixels) -> dict[str, np.ndarray | torch.Tensor]:
    """Every array of a video; sizes of grids and windows are those of the fixture's arrays."""
    frames, normalised = torch.from_numpy(pixels.raw).permute(0, 3, 1, 2).double(), pixels.normalised.double()

    def size(key: str, first: int = 2) -> tuple[int, int]:
        shape = fixture.arrays.get(f"{name}/{key}", np.zeros(())).shape
        return (shape[first], shape[first + 1]) if len(shape) == 4 else (1, 1)

    (corner_height, corner_width), (height, width) = size("clip_corner"), size("crop_centre_u8", first=1)
    top, left = (pixels.crop.shape[1] - height) // 2, (pixels.crop.shape[2] - width) // 2
    return {
        "frame_mean": frames.mean(dim=(2, 3)),
        "frame_grid": adaptive_avg_pool2d(frames, size("frame_grid")),
        "clip_mean": normalised.mean(dim=(2, 3)),
        "clip_std": normalised.std(dim=(2, 3)),
        "clip_grid": adaptive_avg_pool2d(normalised, size("clip_grid")),
        "clip_corner": normalised[:, :, :corner_height, :corner_width],
        "crop_centre_u8": pixels.crop[:, top : top + height, left : left + width],
    }


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
