"""Compiled resizing gives Pillow's values, is begun where it pays, and leaves to Pillow what it cannot do."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

import zar_ray
from zar_ray.video import resampling
from zar_ray.video.decoding import decode_video
from zar_ray.video.options import ViewConfig
from zar_ray.video.plans import plan_video
from zar_ray.video.resampling import FILTERS, Resampler, compiled, order_of
from zar_ray.video.sandbox import DecoderProcess
from zar_ray.video.sandbox_process import DecodeRequest
from zar_ray.video.transforms import Preprocessing, as_pillow

lengths = st.integers(1, 400)
filters = st.sampled_from(sorted(FILTERS))


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def pillows(frame: np.ndarray, height: int, width: int, interpolation: str) -> np.ndarray:
    return np.asarray(Image.fromarray(np.ascontiguousarray(frame)).resize((width, height), FILTERS[interpolation]))


@pytest.fixture
def afresh():
    """What is known of compiled code and sizes is forgotten, before and after."""
    for known in (compiled, order_of):
        known.cache_clear()
    yield
    for known in (compiled, order_of):
        known.cache_clear()


@settings(max_examples=60, deadline=None)
@given(lengths, lengths, lengths, lengths, filters, st.integers(0, 3), st.sampled_from([0, 1, 61]), st.integers(0, 9))
@example(37, 59, 19, 83, "bicubic", 0, 0, 0)  # of these Pillow resizes the columns first
@example(1, 1, 1, 1, "bilinear", 0, 0, 0)
@example(400, 1, 1, 400, "bicubic", 1, 0, 0)
def test_every_value_is_pillows(rows, columns, height, width, interpolation, turns, padding, seed):
    """Also of turned frames, which lie in memory the other way round, and of padded rows."""
    frame = np.rot90(noise(rows, columns + padding, seed)[:, :columns], turns)
    ours = Resampler(pays=0).resize(frame, height, width, interpolation)
    assert np.array_equal(ours, pillows(frame, height, width, interpolation))


@pytest.mark.parametrize("interpolation", FILTERS)
@pytest.mark.parametrize(
    ("size", "wanted"),
    [
        ((256, 340), (224, 297)),
        ((340, 256), (297, 224)),
        ((240, 320), (256, 341)),
        ((1080, 1920), (224, 398)),
        ((2160, 3840), (336, 597)),
        ((96, 64), (336, 224)),
        ((16384, 3), (224, 40)),
        ((3, 16384), (40, 224)),
    ],
)
def test_frames_of_videos_are_resized_by_compiled_sums(size, wanted, interpolation, monkeypatch):
    """And not by Pillow, which would give its own values."""
    order = order_of(*size, *wanted, interpolation)
    assert order is not None
    frame = noise(*size, seed=1)
    expected = pillows(frame, *wanted, interpolation)
    monkeypatch.setattr(resampling, "_by_pillow", lambda *_: pytest.fail("Pillow resized"))
    assert np.array_equal(Resampler(pays=0).resize(frame, *wanted, interpolation), expected)


def test_pillow_begins_with_either_axis_and_so_do_the_sums():
    orders = {order_of(37, 59, height, width, "bicubic") for height in (19, 71) for width in (23, 83)}
    assert orders == set(resampling.ORDERS)


def test_frames_of_a_gigabyte_are_pillows():
    """No second one is made to find out how Pillow resizes it."""
    assert order_of(2**14, 2**14, 224, 224, "bicubic") is None


def test_black_and_white_stay_within_eight_bits():
    """Bicubic sums go below 0 and above 255 beside edges."""
    frame = np.zeros((60, 80, 3), np.uint8)
    frame[20:40, 30:50] = 255
    for height, width in ((45, 60), (120, 160)):
        ours = Resampler(pays=0).resize(frame, height, width, "bicubic")
        assert np.array_equal(ours, pillows(frame, height, width, "bicubic"))


def test_compiling_begins_once_it_pays(monkeypatch):
    asked = []
    monkeypatch.setattr(resampling, "compiled", lambda: asked.append(1))
    one, frame = Resampler(pays=3 * (30 * 40 + 15 * 20)), noise(30, 40)
    for number in range(5):
        assert np.array_equal(one.resize(frame, 15, 20, "bicubic"), pillows(frame, 15, 20, "bicubic"))
        assert len(asked) == max(0, number - 2)


def test_long_runs_compile_at_once_and_short_ones_and_confined_processes_do_not(monkeypatch):
    asked = []
    monkeypatch.setattr(resampling, "compiled", lambda: asked.append(1))
    one, frame = Resampler(), noise(30, 40)
    one.compile_for(1e6)
    one.resize(frame, 15, 20, "bicubic")
    assert not asked
    one.compile_for(1e12)
    one.resize(frame, 15, 20, "bicubic")
    assert asked == [1]
    one.never_compile()
    one.resize(frame, 15, 20, "bicubic")
    assert asked == [1]


def test_without_numba_pillow_resizes(monkeypatch, afresh):
    monkeypatch.setattr(resampling.importlib.util, "find_spec", lambda name: None)
    frame = noise(30, 40)
    assert np.array_equal(Resampler(pays=0).resize(frame, 15, 20, "bicubic"), pillows(frame, 15, 20, "bicubic"))
    assert compiled() is None


@pytest.mark.process
def test_with_a_numba_that_does_not_load_pillow_resizes_and_it_is_said(tmp_path):
    """As where a file of one's own is called as a module that it looks for."""
    (tmp_path / "coverage.py").write_text("")
    script = (
        "import numpy as np\n"
        "from zar_ray.video.transforms import as_pillow, resize_frame\n"
        "as_pillow.pays = 0\n"
        "print(resize_frame(np.zeros((20, 30, 3), np.uint8), 10).shape)\n"
    )
    env = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{Path(zar_ray.__file__).parents[1]}"}
    done = subprocess.run(
        [sys.executable, "-W", "default", "-c", script], capture_output=True, text=True, check=True, env=env
    )
    assert done.stdout.split() == ["(10,", "15,", "3)"]
    assert "numba is installed and cannot be loaded" in done.stderr


def test_where_nothing_can_be_written_it_is_compiled_all_the_same(monkeypatch, afresh):
    import numba

    compile_, kept = numba.njit, []

    def nowhere_to_write(signature, cache=False, **how):
        kept.append(cache)
        if cache:
            raise RuntimeError("cannot cache function '_weigh': no locator available")
        return compile_(signature, **how)

    monkeypatch.setattr(numba, "njit", nowhere_to_write)
    frame = noise(30, 40)
    assert np.array_equal(Resampler(pays=0).resize(frame, 15, 20, "bicubic"), pillows(frame, 15, 20, "bicubic"))
    assert kept == [True, False]


def test_sums_that_are_not_pillows_are_not_used(monkeypatch, afresh):
    right = compiled()

    def wrong(rows, first, weights, into, total):
        right(rows, first, weights, into, total)
        into[0] ^= 1

    monkeypatch.setattr(resampling, "compiled", lambda: wrong)
    frame = noise(30, 40)
    assert order_of(30, 40, 15, 20, "bicubic") is None
    assert np.array_equal(Resampler(pays=0).resize(frame, 15, 20, "bicubic"), pillows(frame, 15, 20, "bicubic"))


@pytest.mark.process
def test_numba_is_loaded_by_those_alone_who_resize_much():
    script = (
        "import sys, numpy as np, zar_ray.evaluation.stages.decode\n"
        "from zar_ray.video.transforms import as_pillow, resize_frame\n"
        "frame = np.zeros((20, 30, 3), np.uint8)\n"
        "resize_frame(frame, 10)\n"
        "print('numba' in sys.modules)\n"
        "as_pillow.pays = 900\n"
        "resize_frame(frame, 10)\n"
        "resize_frame(frame, 10)\n"
        "print('numba' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]


@pytest.mark.process
def test_a_confined_process_stays_with_pillow(samples):
    """Compiling takes memory, and its limit is for videos."""
    request = DecodeRequest("a", ViewConfig(frames=8), 0, Preprocessing(1200), needs_views=True)
    frames = 0
    with DecoderProcess() as process:
        while frames * 1200 * 1200 < 2 * resampling._PAYS:
            frames += len(process.decode(samples["long group"].path, request, 60.0).frames)
        mapped = Path(f"/proc/{process.pid}/maps").read_text()
    assert "_imaging" in mapped
    assert "llvmlite" not in mapped


@pytest.mark.parametrize("name", ["cleaning_pool_k400.mp4", "apply_eye_makeup_ucf101.avi", "man_and_dog_5fps.mp4"])
def test_real_videos_have_the_same_pixels(shared, name, monkeypatch):
    def few(info):
        return plan_video("a", info, ViewConfig(frames=4, views_per_rate=1), Preprocessing(224), 0, needs_views=True)

    found = []
    for pays in (None, 0):
        monkeypatch.setattr(as_pillow, "pays", pays)
        found.append(decode_video(shared / "videos" / name, few).frames)
    assert np.array_equal(*found)
