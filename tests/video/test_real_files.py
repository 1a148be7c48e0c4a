"""The sample videos of the real data sets, and the pixels that the reference implementations get from them."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest

from zar_ray.errors import VideoError
from zar_ray.video.decoding import decode_video
from zar_ray.video.options import ViewConfig
from zar_ray.video.plans import plan_views
from zar_ray.video.reading import has_decord, open_video, probe_video
from zar_ray.video.transforms import Preprocessing, crop_boxes, resize_frame

GOOD = {
    "apply_eye_makeup_ucf101.avi": (164, 240, 320),
    "arm_wrestling_k400.mp4": (280, 256, 340),
    "basketball_shooting.mp4": (300, 240, 426),
    "clean_and_jerk.mp4": (355, 240, 320),
    "cleaning_pool_32frames.mp4": (32, 256, 340),
    "cleaning_pool_k400.mp4": (300, 256, 340),
    "flipping_pancake_k400.mkv": (310, 240, 426),
    "man_and_dog_5fps.mp4": (40, 480, 640),
    "rotated_270.mov": (3, 568, 320),
    "rotated_90.mov": (3, 568, 320),
}
BAD = {
    "corrupt_decode_error.mp4": ("decode", "decoding fails near frame 30 of 50: Invalid data"),
    "empty.mp4": ("open", "empty file"),
    "text.mp4": ("open", "not a video, or a damaged one: moov atom not found"),
    "truncated.mp4": ("open", "not a video, or a damaged one: moov atom not found"),
}


def plan(info):
    return plan_views("a", info.frames, info.height, info.width, ViewConfig(), Preprocessing(224), 0)


@pytest.mark.slow
@pytest.mark.parametrize("name", GOOD)
def test_good_files(shared, name):
    path, damaged = shared / "videos" / name, name == "arm_wrestling_k400.mp4"
    decoded = decode_video(path, plan, timeout=60)
    assert (decoded.info.frames, decoded.info.height, decoded.info.width) == GOOD[name]
    assert decoded.info.decoder == "pyav"
    assert (decoded.warning is not None) == damaged
    if has_decord():
        assert np.array_equal(decode_video(path, plan, decoder="decord", timeout=60).frames, decoded.frames)
    with open_video(path) as reader:
        everything = list(reader.read(range(reader.info.frames)))
    named = [resize_frame(everything[number], 224) for number in plan(decoded.info).frames]
    assert np.array_equal(np.stack(named), decoded.frames), "whichever frames are wanted, they are the same"


@pytest.mark.parametrize("name", BAD)
def test_bad_files(shared, name):
    stage, reason = BAD[name]
    with pytest.raises(VideoError) as caught:
        decode_video(shared / "videos" / name, plan, timeout=60)
    assert caught.value.stage == stage
    assert str(caught.value).startswith(reason)


def test_last_frame_of_a_ucf101_file(shared):
    """decord's own seeking gives the frame before it."""
    path = shared / "videos" / "apply_eye_makeup_ucf101.avi"
    with open_video(path) as reader:
        (alone,) = reader.read([163])
        *_, before, last = reader.read(range(164))
    assert np.array_equal(alone, last)
    assert not np.array_equal(alone, before)


def test_pixels_are_the_references(shared):
    """Decoded frames and CLIP's crops of them, by their SHA-256."""
    fixture = json.loads((shared / "golden" / "open" / "preprocess" / "fixture.json").read_text())
    indices = fixture["config"]["frame_indices"]
    for facts in fixture["clips"].values():
        path = shared / facts["file"]
        assert probe_video(path).frames == facts["n_frames_decord"]
        with open_video(path) as reader:
            frames = list(reader.read(indices))
        assert [hashlib.sha256(frame.tobytes()).hexdigest() for frame in frames] == facts["per_frame_sha256"]
        resized = [resize_frame(frame, 224) for frame in frames]
        assert resized[0].shape[1::-1] == tuple(facts["resized_WxH"])
        ((_, box),) = crop_boxes(*resized[0].shape[:2], 224, 1)
        crops = [frame[box.top : box.top + 224, box.left : box.left + 224] for frame in resized]
        assert [hashlib.sha256(crop.tobytes()).hexdigest() for crop in crops] == facts["crop224_u8_sha256"]
