"""Corruptions held to arrays made here from their formulae, whatever the frame's size; and how they are decoded."""

from __future__ import annotations

import hashlib
import io
import math
import subprocess
import sys
from dataclasses import dataclass

import numpy as np
import pytest
from PIL import Image

from zar_ray.errors import ConfigError, VideoTooLargeError
from zar_ray.video import corrupting
from zar_ray.video.corrupting import corrupter, frames_to_read, require_corruptions
from zar_ray.video.corruptions import FRAME_CORRUPTIONS, NAMES, SEVERITIES, Corruption, corrupt_frame
from zar_ray.video.decoding import Resize, decode_video
from zar_ray.video.limits import DecodeLimits
from zar_ray.video.reading import open_video
from zar_ray.video.transforms import CLIP_SCALING, resize_frame

SIZES = ((1, 1), (7, 13), (96, 64), (65, 131))


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Uint8 (height, width, 3), with coarse and fine structure as photographs have."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)).resize((width, height), 3)
    return np.clip(np.asarray(coarse).astype(int) + rng.integers(-20, 21, (height, width, 3)), 0, 255).astype(np.uint8)


def video(count: int, height: int, width: int) -> list[np.ndarray]:
    return [np.ascontiguousarray(np.roll(picture(height, width), 2 * number, axis=1)) for number in range(count)]


def corrupted(frames: list[np.ndarray], one: Corruption, wanted: list[int], seed: int = 0, name: str = "v"):
    """The wanted frames of a video, by index."""
    places, size = np.array(wanted), frames[0].shape[:2]
    running = corrupter(one, places, size, seed, name, DecodeLimits())
    shown = [pair for n in frames_to_read(places, len(frames), [one]) for pair in running.take(int(n), frames[n])]
    return dict([*shown, *running.end()])


def distance(one: np.ndarray, other: np.ndarray) -> float:
    return float(((one.astype(float) - other) ** 2).mean())


def reflected(frame: np.ndarray, reach: int) -> np.ndarray:
    return np.pad(frame.astype(float), ((reach, reach), (reach, reach), (0, 0)), "reflect")


def near(ours: np.ndarray, expected: np.ndarray) -> bool:
    """Whether values are those expected, but for halves that floating point rounds to either side."""
    return bool((np.abs(ours - expected) <= 0.5 + 1e-6).all())


@pytest.mark.parametrize("name", FRAME_CORRUPTIONS)
@pytest.mark.parametrize("size", SIZES)
def test_any_frame_keeps_its_size_and_kind(name, size):
    for frame in (picture(*size), np.full((*size, 3), 128, np.uint8), picture(*size)[::-1, ::-1]):
        frame.flags.writeable = False
        for severity in SEVERITIES:
            out = corrupt_frame(frame, Corruption(name, severity), 0, "v", 3)
            assert (out.dtype, out.shape) == (np.uint8, frame.shape)


@pytest.mark.parametrize("name", FRAME_CORRUPTIONS)
@pytest.mark.parametrize("seed", [0, 5])
def test_each_severity_is_further_from_the_clean_frame(name, seed):
    frame = picture(96, 128, seed)
    distances = [distance(corrupt_frame(frame, Corruption(name, one), seed, "v", seed), frame) for one in SEVERITIES]
    assert all(a < b for a, b in zip([0.0, *distances], distances, strict=False)), distances


def test_draws_depend_on_the_seed_the_video_and_the_frame_alone():
    frame = picture(33, 47)
    for name in ("gaussian_noise", "shot_noise", "salt_noise", "pepper_noise", "impulse_noise", "rain"):
        one = Corruption(name, 4)
        outs = [corrupt_frame(frame, one, *key) for key in ((0, "a", 0), (1, "a", 0), (0, "b", 0), (0, "a", 1))]
        assert np.array_equal(outs[0], corrupt_frame(frame.copy(), one, 0, "a", 0))
        assert len({out.tobytes() for out in outs}) == 4, name


def test_another_process_draws_the_same():
    code = (
        "import sys, hashlib, numpy as np; from zar_ray.video.corruptions import *\n"
        "frame = np.arange(31 * 17 * 3, dtype=np.int64).reshape(31, 17, 3).astype(np.uint8)\n"
        "out = [corrupt_frame(frame, Corruption(n, s), 7, 'ü/v.mp4', 12) for n in FRAME_CORRUPTIONS for s in (1, 5)]\n"
        "assert not {'torch', 'scipy'} & set(sys.modules)\n"
        "print(hashlib.sha256(b''.join(one.tobytes() for one in out)).hexdigest())"
    )
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    frame = np.arange(31 * 17 * 3, dtype=np.int64).reshape(31, 17, 3).astype(np.uint8)
    ours = [corrupt_frame(frame, Corruption(n, s), 7, "ü/v.mp4", 12) for n in FRAME_CORRUPTIONS for s in (1, 5)]
    assert there == hashlib.sha256(b"".join(one.tobytes() for one in ours)).hexdigest()


@pytest.mark.parametrize("severity", SEVERITIES)
def test_noise_has_the_distribution_of_its_formula(severity):
    grey, count = np.full((256, 256, 3), 130, np.uint8), 256 * 256 * 3

    def of(name: str) -> np.ndarray:
        return corrupt_frame(grey, Corruption(name, severity), 3, "v", 1)

    deviation = (0.08, 0.12, 0.18, 0.26, 0.38)[severity - 1] * 255
    # The normal distribution's mass below each value, clipped at both ends.
    edges = [0.5 * (1 + math.erf((value + 0.5 - 130) / (deviation * math.sqrt(2)))) for value in range(255)]
    measured = np.cumsum(np.bincount(of("gaussian_noise").ravel(), minlength=256))[:255] / count
    assert np.abs(measured - edges).max() < 4 / math.sqrt(count)

    for name, value in (("salt_noise", 255), ("pepper_noise", 0)):
        out = of(name)
        assert set(np.unique(out)) == {130, value}
        assert (out == value).mean() == pytest.approx(severity / 10, abs=0.006)
    share, out = (0.03, 0.06, 0.09, 0.17, 0.27)[severity - 1], of("impulse_noise")
    assert set(np.unique(out)) == {0, 130, 255}
    assert (out == 0).mean() == pytest.approx(share / 2, abs=0.004)
    assert (out == 255).mean() == pytest.approx(share / 2, abs=0.004)

    photons = (60, 25, 12, 5, 3)[severity - 1]
    rate = 130 / 255 * photons
    out, below = of("shot_noise"), 0.0
    for number in range(photons):
        below += math.exp(-rate) * rate**number / math.factorial(number)
        assert (out < 255 * (number + 0.5) / photons).mean() == pytest.approx(below, abs=0.006)


@pytest.mark.parametrize("size", [(1, 1), (40, 53)])
@pytest.mark.parametrize("severity", SEVERITIES)
def test_what_draws_nothing_is_the_reference_array(size, severity):
    frame = picture(*size)
    height, width = size

    def of(name: str) -> np.ndarray:
        return corrupt_frame(frame, Corruption(name, severity), 0, "v", 0)

    share = (0.5, 0.4, 0.3, 0.2, 0.1)[severity - 1]
    means = frame.mean(axis=(0, 1))
    assert near(of("contrast"), np.clip((frame - means) * share + means, 0, 255))

    radius, blur = ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5))[severity - 1]
    soft = 1 if radius <= 8 else 2
    side = np.arange(-radius - soft, radius + soft + 1)
    kernel = np.zeros((len(side), len(side)))
    near_by = range(-soft, soft + 1)
    weights = {(a, b): math.exp(-(a * a + b * b) / (2 * blur * blur)) for a in near_by for b in near_by}
    for y in range(-radius, radius + 1):
        for x in range(-radius, radius + 1):
            if x * x + y * y <= radius * radius:
                for (a, b), weight in weights.items():
                    kernel[y + a + radius + soft, x + b + radius + soft] += weight
    kernel /= kernel.sum()
    padded, expected = reflected(frame, radius + soft), np.zeros(frame.shape)
    for (y, x), weight in np.ndenumerate(kernel):
        expected += weight * padded[y : y + height, x : x + width]
    assert np.abs(of("defocus_blur") - expected).max() <= 0.51

    first, last, step = ((100, 110, 1), (100, 115, 1), (100, 120, 2), (100, 125, 2), (100, 130, 3))[severity - 1]
    zooms = range(first, last + 1, step)
    total = frame.astype(float)
    for zoom in zooms:
        # Bilinear, pixels at their centres; the crop's edge is repeated beyond it.
        lines = []
        for length in size:
            start = (length - length * 100 / zoom) / 2
            at = start + (np.arange(length) + 0.5) * 100 / zoom - 0.5
            lower, upper = (np.clip(np.floor(at) + one, 0, length - 1).astype(int) for one in (0, 1))
            lines.append((lower, upper, at - np.floor(at)))
        (top, bottom, down), (left, right, across) = lines
        rows = frame[top] * (1 - down)[:, None, None] + frame[bottom] * down[:, None, None]
        total += rows[:, left] * (1 - across)[:, None] + rows[:, right] * across[:, None]
    # Each enlarged copy is rounded before the mean is taken.
    assert np.abs(of("zoom_blur") - total / (len(zooms) + 1)).max() <= 1.0

    file = io.BytesIO()
    Image.fromarray(frame).save(file, "JPEG", quality=(25, 18, 15, 10, 7)[severity - 1])
    assert np.array_equal(of("jpeg_compression"), np.asarray(Image.open(file)))


def test_rain_is_drops_on_a_darker_frame():
    frame = np.full((200, 300, 3), 90, np.uint8)
    for severity, (area, length, light) in enumerate(
        ((770, 10, 0.8), (770, 30, 0.8), (770, 60, 0.7), (500, 60, 0.6), (400, 80, 0.5)), start=1
    ):
        out = corrupt_frame(frame, Corruption("rain", severity), 1, "v", 2).astype(int)
        assert (out == out[..., :1]).all(), "drops are grey"
        wet = out[..., 0] > np.median(out)
        assert 0.3 < wet.sum() / (200 * 300 // area * (length + 1)) <= 1.0
        # A drop is its own light and that of its neighbours, averaged: at most as if all nine were drops.
        lit = 90 + int(220 * (1 - 90 / 255) * (1 - 90 / 255))
        most, mean = (lit * 220 + 90 * 35) / 255, out.mean()
        assert light * (90 - mean) + mean - 1 <= out.min() <= out.max() <= light * (most - mean) + mean + 1
        assert out.max() > light * (90 - mean) + mean + 5
    assert np.array_equal(corrupt_frame(frame[:1, :1], Corruption("rain", 5), 0, "v", 0), frame[:1, :1])


@pytest.mark.parametrize("severity", SEVERITIES)
def test_motion_blur_is_the_mean_of_neighbours(severity):
    frames, reach = video(40, 9, 17), (3, 5, 7, 9, 11)[severity - 1]
    wanted = [0, 1, 13, 20, 38, 39]
    found = corrupted(frames, Corruption("motion_blur", severity), wanted)
    assert list(found) == wanted
    for index, out in found.items():
        around = frames[max(0, index - reach) : index + reach]
        assert near(out, np.mean(np.stack(around).astype(float), axis=0))
    assert set(frames_to_read(np.array([30]), 40, [Corruption("motion_blur", severity)])) == set(
        np.clip(range(30 - reach, 30 + reach), 0, 39)
    ) | {30}


def test_re_encoding_depends_on_the_video_alone_and_grows():
    frames = video(24, 64, 96)
    whole = corrupted(frames, Corruption("h265", 3), list(range(24)))
    assert list(whole) == list(range(24))
    some = corrupted(frames, Corruption("h265", 3), [5, 23], seed=9, name="other")
    assert all(np.array_equal(some[index], whole[index]) for index in (5, 23))
    distances = [
        np.mean([distance(out, frames[n]) for n, out in corrupted(frames, Corruption("h265", one), [0, 9, 23]).items()])
        for one in SEVERITIES
    ]
    assert all(a < b for a, b in zip([0.0, *distances], distances, strict=False)), distances


@pytest.mark.parametrize("size", [(1, 1), (33, 47)])
def test_re_encoding_takes_any_size(size):
    found = corrupted(video(3, *size), Corruption("h265", 1), [0, 2])
    assert {out.shape for out in found.values()} == {(*size, 3)}
    assert all(distance(out, video(3, *size)[n]) < 400 for n, out in found.items())


def test_a_missing_encoder_is_one_line(monkeypatch):
    require_corruptions([None, Corruption("rain", 1), Corruption("h265", 2)])
    monkeypatch.setattr(corrupting.av, "codecs_available", {"hevc"})
    with pytest.raises(ConfigError, match=r"^--corruption h265:2: this PyAV has no encoder libx265; leave it out$"):
        require_corruptions([None, Corruption("h265", 2)])
    require_corruptions([Corruption("rain", 1)])


def test_too_many_frames_in_memory_are_refused():
    with pytest.raises(VideoTooLargeError):
        corrupter(Corruption("motion_blur", 5), np.array([0]), (100, 100), 0, "v", DecodeLimits(decoded_bytes=10**5))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gaussian_nois:3", 'no corruption has this name; did you mean "gaussian_noise"'),
        ("rain", "give a severity of 1 to 5, as rain:3"),
        ("rain:0", "give a severity of 1 to 5"),
        ("rain:6", "give a severity of 1 to 5"),
        ("rain:03", "give a severity of 1 to 5"),
        ("clean:1", "no corruption has this name"),
    ],
)
def test_a_mistaken_corruption_is_one_line(text, message):
    with pytest.raises(ConfigError, match=message) as caught:
        Corruption.parse(text)
    assert f"--corruption {text}: " in str(caught.value)
    assert "\n" not in str(caught.value)


def test_corruptions_are_read_as_they_are_shown():
    assert Corruption.parse("clean") is None
    every = [Corruption(name, severity) for name in NAMES for severity in SEVERITIES]
    assert [Corruption.parse(str(one)) for one in every] == every


@dataclass(frozen=True)
class Frames:
    """A plan of frames alone."""

    frames: np.ndarray
    short_side: int = 32


@pytest.mark.parametrize("size", [(48, 64), (51, 37)])
def test_frames_are_corrupted_before_they_are_resized_and_read_once(make_video, tmp_path, size):
    path = make_video(tmp_path / "v.mp4", frames=26, height=size[0] // 2 * 2, width=size[1] // 2 * 2)
    wanted = np.array([2, 3, 17, 25])
    ways = [Resize(side, CLIP_SCALING, one) for side, one in ((32, None), (24, Corruption("salt_noise", 2)))]
    ways += [Resize(32, CLIP_SCALING, Corruption(name, 4)) for name in ("salt_noise", "motion_blur", "h265", "rain")]
    decoded = decode_video(path, lambda _: Frames(wanted), also=ways[1:], draws=(3, "a/v.mp4"), timeout=60)
    with open_video(path) as reader:
        frames = list(reader.read(np.arange(26)))
    for way, got in zip(ways, (decoded.frames, *decoded.also), strict=True):
        for row, index in enumerate(wanted.tolist()):
            one = way.corruption
            expected = frames[index] if one is None else corrupted(frames, one, wanted.tolist(), 3, "a/v.mp4")[index]
            assert np.array_equal(got[row], resize_frame(expected, way.short_side, CLIP_SCALING)), (way, index)
        plan = Frames(wanted, way.short_side)
        alone = decode_video(path, lambda _, plan=plan: plan, corruption=way.corruption, draws=(3, "a/v.mp4"))
        assert np.array_equal(alone.frames, got), "alone it is what it is among others"


def test_flat_frames_of_a_corruption_are_no_frozen_recording(make_video, tmp_path):
    path = make_video(tmp_path / "v.mp4", frames=40)
    plan = Frames(np.arange(40))
    assert decode_video(path, lambda _: plan, corruption=Corruption("contrast", 5)).warning is None


def test_a_frame_of_4k_is_no_trouble():
    frame = np.broadcast_to(picture(1, 3840), (2160, 3840, 3))
    for name in ("salt_noise", "jpeg_compression"):
        assert corrupt_frame(frame, Corruption(name, 1), 0, "v", 0).shape == (2160, 3840, 3)
