"""Passes of the image encoder over several videos."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zar_ray.errors import NoRoomError, VideoError
from zar_ray.models.clip import ClipModel
from zar_ray.models.packing import ImageSet, encode_packed
from zar_ray.video.pixels import crop_and_normalise
from zar_ray.video.transforms import CropBox


class Watched(ClipModel):
    """Remembers the sizes of its passes, and has no memory for those that hold a picture of one colour only."""

    def __init__(self, model):
        super().__init__(model.clip, model.name, model.preprocessing, model.architecture)
        self.passes = []

    def encode_images(self, pixels):
        self.passes.append(len(pixels))
        if (pixels.flatten(2).std(dim=2).amax(dim=1) < 1e-6).any():
            raise torch.OutOfMemoryError("no room")
        return super().encode_images(pixels)


def images(count, seed, height=40, width=56, plain=False):
    """Frames of any size with `count` distinct images."""
    rng = np.random.default_rng(seed)
    boxes = (CropBox(0, 0, 32), CropBox(4, 12, 32), CropBox(8, 24, 32))
    frames = rng.integers(0, 256, ((count + 2) // 3, height, width, 3), dtype=np.uint8)
    pairs = np.stack([np.arange(count) // 3, np.arange(count) % 3], axis=1)
    return ImageSet(np.zeros_like(frames) if plain else frames, pairs, boxes)


@settings(max_examples=30, deadline=None)
@given(counts=st.lists(st.integers(1, 20), min_size=1, max_size=5), a_pass=st.integers(1, 25))
def test_every_image_is_encoded_once_and_passes_are_full(model, counts, a_pass):
    watched = Watched(model)
    sets = [images(count, seed, height=40 + seed, width=60 - seed) for seed, count in enumerate(counts)]
    embeddings = encode_packed(watched, sets, a_pass)
    assert sum(watched.passes) == sum(counts)
    assert all(size == a_pass for size in watched.passes[:-1])
    for one, found in zip(sets, embeddings, strict=True):
        pixels = crop_and_normalise(torch.from_numpy(one.frames), one.images, one.boxes, model.preprocessing)
        assert torch.allclose(found, model.encode_images(pixels), atol=1e-5)


def test_too_little_memory_costs_the_videos_that_do_not_fit_alone(model):
    watched = Watched(model)
    sets = [images(4, 0), images(5, 1), images(9, 2, plain=True), images(7, 3), images(3, 4)]
    outcomes = encode_packed(watched, sets, 6)
    failed = [isinstance(outcome, VideoError) for outcome in outcomes]
    assert failed == [False, False, True, False, False]
    assert isinstance(outcomes[2], NoRoomError)
    assert outcomes[2].stage == "encode"
    assert str(outcomes[2]).startswith("out of memory encoding one image by itself; leave the process more memory")
    assert [len(outcome) for outcome in outcomes if not isinstance(outcome, VideoError)] == [4, 5, 7, 3]


class Room(ClipModel):
    """Has memory for so many images a pass."""

    def __init__(self, model, room, view=None):
        super().__init__(model.clip, model.name, model.preprocessing, model.architecture)
        self.room, self.view, self.passes, self.pixels, self.alive = room, view, [], [], 0

    frame_independent = property(lambda self: self.view is None)
    view_frames = property(lambda self: self.view)

    def encode_images(self, pixels):
        self.alive += sum(one() is not None for one in self.pixels)
        self.pixels = [weakref.ref(pixels)]
        if len(pixels) > self.room:
            activations = pixels + 1
            self.pixels.append(weakref.ref(activations))
            raise torch.OutOfMemoryError("no room")
        self.passes.append(len(pixels))
        return super().encode_images(pixels)


@settings(max_examples=30, deadline=None)
@given(
    counts=st.lists(st.integers(1, 6), min_size=1, max_size=4),
    a_pass=st.integers(1, 40),
    room=st.integers(1, 20),
    view=st.sampled_from([None, 1, 2, 3]),
)
def test_passes_are_halved_until_they_fit_and_nothing_else_changes(model, counts, a_pass, room, view):
    sets = [images(count * (view or 1), seed) for seed, count in enumerate(counts)]
    small = Room(model, max(room, view or 1), view)
    for found, expected in zip(encode_packed(small, sets, a_pass), encode_packed(model, sets, 64), strict=True):
        assert torch.allclose(found, expected, atol=1e-5)
    assert all(one % (view or 1) == 0 for one in small.passes), "views pass as wholes"
    halved, passes = small.image_passes.of(10**6), len(small.passes)
    encode_packed(small, sets, a_pass)
    assert small.image_passes.of(10**6) == halved
    if halved < 10**6:
        assert small.passes[passes] <= max(halved, view or 1), "begins with what is known to fit"


def test_pixels_are_free_before_the_next_try(model):
    """A test of references, as a GPU's memory follows them; the collector of cycles has no part in it."""
    small = Room(model, 3)
    gc.collect()
    gc.disable()
    try:
        encode_packed(small, [images(20, 0), images(9, 1)], 16)
        assert small.passes == [2] * 14 + [1]
        assert small.alive == 0
    finally:
        gc.enable()


def test_other_failures_are_not_mistaken_for_it(model):
    class Broken(ClipModel):
        def encode_images(self, pixels):
            raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    broken = Broken(model.clip, model.name, model.preprocessing, model.architecture)
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        encode_packed(broken, [images(2, 0)], 4)


def test_frames_in_shared_memory_are_read_in_place(model, recwarn):
    one = images(4, 0)
    one.frames.flags.writeable = False
    encode_packed(model, [one], 4)
    assert not recwarn.list


def test_crops_of_another_size_are_refused(model):
    one = images(4, 0)
    with pytest.raises(ValueError, match="for a model of 32×32 pixels"):
        encode_packed(model, [ImageSet(one.frames, one.images, tuple(CropBox(0, 0, 24) for _ in range(3)))], 4)
