"""Decoding by a plan: the plan's frames, resized, within bounds of memory and time."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest

from zar_ray.errors import VideoError, VideoTooLargeError
from zar_ray.video.decoding import Resize, decode_video
from zar_ray.video.limits import DecodeLimits
from zar_ray.video.options import ViewConfig
from zar_ray.video.plans import plan_views
from zar_ray.video.reading import VideoInfo, has_decord, open_video, probe_video
from zar_ray.video.transforms import Preprocessing, Scaling, resize_frame


@dataclass(frozen=True)
class Frames:
    """A plan of frames alone."""

    frames: np.ndarray
    short_side: int = 32


class LargePictures(Sequence):
    """120 pictures of 1080p, ever brighter, painted when they are asked for."""

    def __len__(self) -> int:
        return 120

    def __getitem__(self, index) -> np.ndarray:
        if index >= len(self):
            raise IndexError
        return np.full((1080, 1920, 3), 2 * index, np.uint8)


def default_plan(info: VideoInfo):
    return plan_views("a.mp4", info.frames, info.height, info.width, ViewConfig(), Preprocessing(32), 0)


def all_frames(info: VideoInfo) -> Frames:
    return Frames(np.arange(info.frames))


def test_every_kind_is_decoded_by_the_default_plan(sample, number_of):
    """Also videos of one frame, or of fewer than a view needs."""
    plan = default_plan(probe_video(sample.path))
    decoded = decode_video(sample.path, default_plan, expected=probe_video(sample.path), timeout=60)
    assert decoded.frames.shape == (len(plan.frames), plan.height, plan.width, 3)
    assert decoded.frames.dtype == np.uint8
    assert decoded.frames.flags["C_CONTIGUOUS"]
    assert [number_of(frame) for frame in decoded.frames] == plan.frames.tolist()
    assert decoded.warning is None
    assert decoded.seconds > 0


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_frames_are_resized_one_by_one(samples, interpolation):
    path = samples["open groups"].path
    wanted = np.array([0, 7, 50, 99])
    decoded = decode_video(path, lambda _: Frames(wanted, 33), Scaling(interpolation))
    with open_video(path) as reader:
        for row, frame in enumerate(reader.read(wanted)):
            assert np.array_equal(decoded.frames[row], resize_frame(frame, 33, Scaling(interpolation)))


@pytest.mark.parametrize("change", [{"frames": 99}, {"width": 63}, {"height": 50}])
def test_a_file_that_is_not_the_manifests_is_an_error(samples, change):
    path = samples["long group"].path
    expected = replace(probe_video(path), **change)
    with pytest.raises(VideoError) as caught:
        decode_video(path, default_plan, expected=expected)
    assert caught.value.stage == "open"
    assert str(caught.value) == (
        f"100 frames of 64×48, but the manifest has {expected.frames} of {expected.width}×{expected.height}; "
        "index the data set again"
    )


def test_the_manifests_decoder_may_be_another(samples):
    path = samples["long group"].path
    other = probe_video(path, "decord" if has_decord() else "pyav")
    assert decode_video(path, default_plan, expected=other).info.decoder == "pyav"


def test_time_runs_out(samples):
    for decoder in ("auto", "pyav"):
        with pytest.raises(VideoError, match="took longer than 1e-06 s to decode") as caught:
            decode_video(samples["long group"].path, default_plan, decoder=decoder, timeout=1e-6)
        assert caught.value.stage == "decode"


@pytest.mark.skipif(not has_decord(), reason="decord has no wheel for this platform")
def test_where_decord_gives_up_pyav_reads(hurt_tail):
    decoded = decode_video(hurt_tail, all_frames)
    assert decoded.info.decoder == "pyav"
    assert "cannot be decoded" in str(decoded.warning)
    with pytest.raises(VideoError, match="decord gives up"):
        decode_video(hurt_tail, all_frames, decoder="decord")


def test_what_cannot_be_decoded_is_an_error(hurt_middle):
    with pytest.raises(VideoError, match="decoding fails near frame") as caught:
        decode_video(hurt_middle, default_plan)
    assert caught.value.stage == "decode"


def test_frames_beyond_the_limit_are_refused_before_they_are_made(samples):
    path = samples["open groups"].path
    size = 3 * 100 * 32 * 42
    limits = DecodeLimits(decoded_bytes=size)
    assert decode_video(path, all_frames, limits=limits).frames.nbytes == size
    with pytest.raises(VideoTooLargeError, match=f"100 frames of 44×33 .* the limit is {size} bytes") as caught:
        decode_video(path, all_frames, limits=limits, also=[Resize(33, Scaling())])
    assert caught.value.stage == "plan"


def test_a_strip_does_not_fill_the_memory(shared):
    """Its short side grows 56-fold, and its long one with it."""
    with pytest.raises(VideoTooLargeError, match="take 7526400000 bytes; the limit is 1073741824 bytes"):
        decode_video(
            shared / "videos" / "hard" / "strip2000x4.mp4", lambda info: Frames(np.arange(info.frames), short_side=224)
        )


def test_a_plans_own_error_is_passed_on(samples):
    def refuse(info):
        raise VideoError("no plan", stage="plan")

    with pytest.raises(VideoError, match="no plan") as caught:
        decode_video(samples["long group"].path, refuse)
    assert caught.value.stage == "plan"


def test_a_frozen_stretch_is_reported(tmp_path, picture_of, write_video):
    """Damage that was encoded anew leaves no other trace."""
    numbers = [*range(60), *[82] * 35, *range(15, 20)]
    path = write_video(tmp_path / "frozen.mp4", [picture_of(n) for n in numbers], options={"crf": "20"})
    decoded = decode_video(path, all_frames)
    assert decoded.warning == "the picture stands still in frames 60 to 94 (1.2 s), as damaged recordings do"


@pytest.mark.parametrize("numbers", [[5] * 60, list(range(60)), [*range(80), *[80] * 12], [*range(30), *[31] * 60]])
def test_still_videos_and_short_rests_are_not(tmp_path, picture_of, write_video, numbers):
    path = write_video(tmp_path / "fine.mp4", [picture_of(n) for n in numbers], options={"crf": "20"})
    assert decode_video(path, all_frames).warning is None


@pytest.mark.skipif(sys.platform != "linux", reason="reads a process's peak memory from /proc")
@pytest.mark.process
def test_full_frames_do_not_pile_up(tmp_path, write_video):
    """120 frames of 1080p are 750 MB; a worker that decodes them holds a few at a time."""
    path = write_video(tmp_path / "large.mp4", LargePictures(), options={"preset": "ultrafast", "crf": "30"})
    code = (
        "import sys\n"
        "import numpy as np\n"
        "from zar_ray.video.decoding import decode_video\n"
        "from zar_ray.video.transforms import as_pillow\n"
        "as_pillow.never_compile()\n"  # which takes memory of its own, once
        "class Plan: frames, short_side = np.arange(120), 224\n"
        "def peak(): return int(next(x for x in open('/proc/self/status') if x.startswith('VmHWM')).split()[1])\n"
        "before = peak()\n"
        "decoded = decode_video(sys.argv[1], lambda info: Plan)\n"
        "print(decoded.info.frames, round(float(decoded.frames[100].mean())), (peak() - before) // 1024)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    frames, brightness, megabytes = map(int, done.stdout.split())
    assert frames == 120
    assert abs(brightness - 200) < 4
    # the resized frames are 32 MB of it
    assert megabytes < 200
