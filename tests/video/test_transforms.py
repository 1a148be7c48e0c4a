"""Resizing, crops and normalisation against torchvision's, on which CLIP's own preprocessing is built."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as functional
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision import transforms

from zar_ray.errors import ConfigError
from zar_ray.video.options import ViewConfig
from zar_ray.video.pixels import crop_and_normalise
from zar_ray.video.transforms import (
    CropBox,
    Preprocessing,
    Scaling,
    crop_boxes,
    resize_frame,
    resized_size,
    short_side_for,
)

thoroughly = settings(max_examples=100, deadline=None)

CLIP = Preprocessing(224)
lengths = st.integers(1, 4000)


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@thoroughly
@given(lengths, lengths, st.integers(1, 600))
def test_resized_size_is_torchvisions(height, width, short_side):
    expected = transforms.functional._compute_resized_output_size((height, width), [short_side])
    assert resized_size(height, width, short_side) == tuple(expected)


def test_long_side_truncates():
    assert resized_size(256, 340, 224) == (224, 297)
    assert resized_size(340, 256, 224) == (297, 224)


@pytest.mark.parametrize("size", [(256, 340), (340, 256), (27, 35), (300, 300), (224, 400), (1, 1)])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_resize_is_torchvisions_on_pil(size, interpolation):
    frame = noise(*size)
    resize = transforms.Resize(96, transforms.InterpolationMode(interpolation))
    expected = np.asarray(resize(Image.fromarray(frame)))
    assert np.array_equal(resize_frame(frame, 96, Scaling(interpolation)), expected)


@pytest.mark.parametrize("size", [(256, 340), (340, 256), (27, 35), (1, 1), (720, 1280), (2, 9)])
@pytest.mark.parametrize("short_side", [224, 31])
@pytest.mark.parametrize("resizer", ["pil", "torch"])
def test_plain_bilinear_is_pytorchs_without_antialiasing(size, short_side, resizer):
    """But for the rounding to whole numbers, half of one of 255."""
    frame = noise(*size)
    ours = resize_frame(frame, short_side, Scaling("plain_bilinear"), resizer)
    pixels = torch.from_numpy(frame.copy()).permute(2, 0, 1)[None].double()
    exact = torch.nn.functional.interpolate(pixels, ours.shape[:2], mode="bilinear", align_corners=False)[0]
    assert ours.dtype == np.uint8
    assert np.abs(ours - exact.permute(1, 2, 0).numpy()).max() <= 0.5 + 1e-3


@thoroughly
@given(st.integers(1, 500), st.integers(0, 400), st.integers(0, 400), st.sampled_from([1, 3, 5, 9]))
def test_crops_lie_inside_the_frame(size, down, right, crops):
    height, width = size + down, size + right
    named = crop_boxes(height, width, size, crops)
    assert len(named) == crops
    assert len({name for name, _ in named}) == crops
    for _, box in named:
        assert 0 <= box.top <= height - size
        assert 0 <= box.left <= width - size
        assert box.size == size
    fewer = {1: 1, 3: 1, 5: 3, 9: 5}[crops]
    assert set(crop_boxes(height, width, size, fewer)) <= set(named)


@given(st.integers(1, 400), st.integers(0, 300), st.booleans())
def test_three_crops_at_the_inputs_size_are_vificlips_but_for_odd_rooms(size, room, upright):
    """Its offsets are 0, half the room rounded down, and twice that."""
    shape = (size + room, size) if upright else (size, size + room)
    found = sorted(box.top if upright else box.left for _, box in crop_boxes(*shape, size, 3))
    theirs = [0, room // 2, 2 * (room // 2)]
    assert np.abs(np.subtract(found, theirs)).max() <= room % 2


@thoroughly
@given(st.integers(1, 60), st.integers(0, 40), st.integers(0, 40))
def test_centre_is_torchvisions(size, down, right):
    frame = noise(size + down, size + right)
    ((name, box),) = crop_boxes(size + down, size + right, size, 1)
    expected = functional.center_crop(torch.from_numpy(frame).permute(2, 0, 1), [size, size]).permute(1, 2, 0)
    assert name == "centre"
    cropped = frame[box.top : box.top + size, box.left : box.left + size]
    assert np.array_equal(cropped, expected.numpy())


def test_named_crops_of_landscape_portrait_and_square():
    assert crop_boxes(224, 297, 224, 3) == (
        ("left", CropBox(0, 0, 224)),
        ("centre", CropBox(0, 36, 224)),  # 36.5 goes to the even side
        ("right", CropBox(0, 73, 224)),
    )
    assert crop_boxes(299, 224, 224, 3) == (
        ("top", CropBox(0, 0, 224)),
        ("centre", CropBox(38, 0, 224)),  # and 37.5 too
        ("bottom", CropBox(75, 0, 224)),
    )
    assert [name for name, _ in crop_boxes(256, 256, 224, 3)] == ["left", "centre", "right"]
    assert {name: (box.top, box.left) for name, box in crop_boxes(256, 340, 224, 9)} == {
        "left": (16, 0),
        "centre": (16, 58),
        "right": (16, 116),
        "top": (0, 58),
        "bottom": (32, 58),
        "top left": (0, 0),
        "top right": (0, 116),
        "bottom left": (32, 0),
        "bottom right": (32, 116),
    }
    assert [name for name, _ in crop_boxes(340, 256, 224, 5)] == ["top", "centre", "bottom", "left", "right"]


def test_impossible_crops_are_refused():
    with pytest.raises(ValueError, match="crop of 224 pixels does not fit into a frame of 300×200"):
        crop_boxes(200, 300, 224, 1)
    with pytest.raises(ValueError, match="4 crops"):
        crop_boxes(256, 300, 224, 4)


def test_one_short_side_a_run():
    assert short_side_for(ViewConfig(), CLIP) == 224
    assert short_side_for(ViewConfig(crops=1), CLIP) == 224
    assert short_side_for(ViewConfig(crops=5), CLIP) == 256
    assert short_side_for(ViewConfig(crops=9), CLIP) == 256
    assert short_side_for(ViewConfig(crops=5), Preprocessing(32)) == 37  # 36.57
    assert short_side_for(ViewConfig(), Preprocessing(224, short_side=256)) == 256
    assert short_side_for(ViewConfig(crops=9), Preprocessing(224, short_side=240)) == 240
    assert short_side_for(ViewConfig(crops=9), Preprocessing(224, short_side=224)) == 256
    assert short_side_for(ViewConfig(crops=9, short_side=300), CLIP) == 300
    with pytest.raises(ConfigError, match=r"views\.short_side is 223"):
        short_side_for(ViewConfig(short_side=223), CLIP)


@pytest.mark.parametrize("size", [(256, 340), (340, 256), (227, 224), (31, 999)])
def test_preprocessing_is_clips(size):
    """Resize, centre crop, `ToTensor` and `Normalize` of openai/CLIP, to the last bit."""
    preprocessing = Preprocessing(64)
    clip = transforms.Compose(
        [
            transforms.Resize(64, transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(64),
            transforms.ToTensor(),
            transforms.Normalize(preprocessing.mean, preprocessing.std),
        ]
    )
    frames = [noise(*size, seed=seed) for seed in range(3)]
    expected = torch.stack([clip(Image.fromarray(frame)) for frame in frames])

    resized = torch.from_numpy(np.stack([resize_frame(frame, 64) for frame in frames]))
    ((_, centre),) = crop_boxes(*resized.shape[1:3], 64, 1)
    pixels = crop_and_normalise(resized, np.array([[0, 0], [1, 0], [2, 0]]), (centre,), preprocessing)
    assert pixels.dtype == torch.float32
    assert torch.equal(pixels, expected)


def test_crops_come_in_the_order_of_the_images():
    frames = torch.from_numpy(np.stack([noise(12, 20, seed) for seed in range(4)]))
    boxes = tuple(box for _, box in crop_boxes(12, 20, 8, 9))
    images = np.random.default_rng(1).integers(0, (4, 9), (50, 2))
    plain = Preprocessing(8, mean=(0.0, 0.0, 0.0), std=(1 / 255, 1 / 255, 1 / 255))
    pixels = crop_and_normalise(frames, images, boxes, plain)
    for (row, number), image in zip(images, pixels, strict=True):
        top, left = boxes[number].top, boxes[number].left
        expected = frames[row, top : top + 8, left : left + 8].permute(2, 0, 1)
        assert torch.equal(image.round().to(torch.uint8), expected)
    assert torch.equal(crop_and_normalise(frames, torch.from_numpy(images), boxes, plain), pixels)
    assert crop_and_normalise(frames, images[:0], boxes, plain).shape == (0, 3, 8, 8)


def test_read_only_plans_are_fine(recwarn):
    frames = torch.zeros((1, 8, 8, 3), dtype=torch.uint8)
    images = np.zeros((1, 2), np.int64)
    images.setflags(write=False)
    crop_and_normalise(frames, images, (CropBox(0, 0, 8),), Preprocessing(8))
    assert not recwarn.list


def test_boxes_must_be_of_the_input_size():
    with pytest.raises(ValueError, match=r"crops of \(8, 8, 3\) for a model of 16×16 pixels"):
        crop_and_normalise(
            torch.zeros((1, 20, 20, 3), dtype=torch.uint8),
            np.zeros((1, 2), np.int64),
            (CropBox(0, 0, 8),),
            Preprocessing(16),
        )
