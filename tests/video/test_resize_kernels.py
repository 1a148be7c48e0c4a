"""`--resize torch` gives what torchvision gives, and nearly what PIL gives; PIL's users never load PyTorch."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms.v2 import functional

from zar_ray.evaluation.feature_store import feature_space
from zar_ray.options.base import meaning
from zar_ray.serving.options import ServeConfig
from zar_ray.video.decoding import Resize, decode_video
from zar_ray.video.options import DecodeOptions, ViewConfig
from zar_ray.video.plans import plan_video
from zar_ray.video.sandbox import DecoderProcess
from zar_ray.video.sandbox_process import DecodeRequest
from zar_ray.video.transforms import Preprocessing, Scaling, resize_frame, resized_size

MODES = {"bicubic": functional.InterpolationMode.BICUBIC, "bilinear": functional.InterpolationMode.BILINEAR}


def clouds(height: int, width: int, seed: int) -> np.ndarray:
    """A picture with slopes and edges, with little noise: what cameras see."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    picture = np.zeros((height, width, 3))
    for channel in range(3):
        for _ in range(4):
            fy, fx, phase = (*rng.uniform(0, 0.2, 2), rng.uniform(0, 6))
            picture[..., channel] += np.sin(fy * y + fx * x + phase)
    picture = 128 + 30 * picture + rng.normal(0, 3, picture.shape)
    picture[height // 3 : height // 2, width // 4 : width // 2] = rng.uniform(0, 255, 3)
    return np.clip(picture, 0, 255).astype(np.uint8)


@settings(max_examples=40, deadline=None)
@given(
    height=st.integers(16, 300),
    width=st.integers(16, 300),
    short_side=st.integers(8, 256),
    mode=st.sampled_from(sorted(MODES)),
    seed=st.integers(0, 99),
    turns=st.integers(0, 3),
)
def test_the_kernel_is_torchvisions(height, width, short_side, mode, seed, turns):
    """Also of turned frames, which lie in memory the other way round, of padded rows, and of enlarged ones."""
    padded = clouds(height, width + 5, seed)[:, :width]
    frame = np.rot90(padded, turns)
    size = resized_size(*frame.shape[:2], short_side)
    ours = resize_frame(frame, short_side, Scaling(mode), "torch")
    pixels = torch.from_numpy(np.ascontiguousarray(frame)).permute(2, 0, 1)
    theirs = functional.resize(pixels, list(size), interpolation=MODES[mode], antialias=True).permute(1, 2, 0).numpy()
    assert ours.dtype == np.uint8
    assert ours.flags.c_contiguous or ours.shape[:2] == frame.shape[:2]
    assert np.array_equal(ours, theirs)


@pytest.mark.parametrize("padding", [0, 1, 5, 64])
@pytest.mark.parametrize("turns", range(4))
def test_padded_and_turned_rows_are_pils_pixels(padding, turns):
    padded = clouds(61, 83 + padding, 1)
    frame = np.rot90(padded[:, :83], turns)
    expected = Image.fromarray(np.ascontiguousarray(frame)).resize(
        resized_size(*frame.shape[:2], 40)[::-1], Image.Resampling.BICUBIC
    )
    assert np.array_equal(resize_frame(frame, 40), np.asarray(expected))


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_few_values_differ_from_pils_and_by_little(mode):
    differ = []
    for seed, (height, width, side) in enumerate(
        [(256, 340, 224), (240, 320, 224), (240, 426, 256), (1080, 1920, 224)]
    ):
        frame = clouds(height, width, seed)
        by_pil, by_torch = (resize_frame(frame, side, Scaling(mode), way).astype(int) for way in ("pil", "torch"))
        assert np.abs(by_pil - by_torch).max() <= 2
        differ.append((by_pil != by_torch).mean())
    assert 0 < np.mean(differ) < 0.01


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_real_frames_differ_in_two_values_of_a_thousand(shared, mode):
    def few(info):
        return plan_video("a", info, ViewConfig(frames=4, views_per_rate=1), Preprocessing(224), 0, needs_views=True)

    way = Scaling(mode)
    for name in ("cleaning_pool_k400.mp4", "apply_eye_makeup_ucf101.avi", "man_and_dog_5fps.mp4"):
        ways = [
            decode_video(shared / "videos" / name, few, way, also=[Resize(112, way)], resizer=resizer)
            for resizer in ("pil", "torch")
        ]
        for first, second in zip(*((one.frames, *one.also) for one in ways), strict=True):
            difference = np.abs(first.astype(int) - second)
            assert difference.max() <= 2
            assert 0 < (difference > 0).mean() < 0.005


def test_the_kernel_is_a_part_of_what_a_run_and_its_features_are():
    assert meaning(DecodeOptions(resize="torch")) != meaning(DecodeOptions())
    assert (DecodeOptions().resize, ServeConfig().resize) == ("pil", "torch")
    spaces = [feature_space("weights", "fp32", "auto", Preprocessing(224), resizer) for resizer in ("pil", "torch")]
    assert spaces[0] != spaces[1]
    assert torch.__version__.partition("+")[0] in spaces[1]["resize"]


@pytest.mark.process
def test_decoding_processes_resize_as_they_were_told(samples):
    """With PyTorch loaded before the process confines itself: its limit on memory is for videos."""
    request = DecodeRequest("a", ViewConfig(frames=4), 0, Preprocessing(32), needs_views=True)
    path = samples["long group"].path
    for resizer in ("pil", "torch"):
        with DecoderProcess(resizer=resizer) as process:
            decoded = process.decode(path, request, 60.0)
        expected = decode_video(path, request.plan, resizer=resizer)
        assert np.array_equal(decoded.frames, expected.frames)


@pytest.mark.process
def test_pytorch_is_loaded_where_its_kernel_is_asked_for_and_nowhere_else():
    script = (
        "import sys, numpy as np, zar_ray.video.sandbox, zar_ray.evaluation.stages.decode\n"
        "from zar_ray.video.transforms import Scaling, resize_frame\n"
        "frame = np.zeros((20, 30, 3), np.uint8)\n"
        "resize_frame(frame, 10)\n"
        "print('torch' in sys.modules)\n"
        "resize_frame(frame, 10, Scaling('bicubic'), 'torch')\n"
        "print('torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]
