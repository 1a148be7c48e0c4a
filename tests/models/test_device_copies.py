"""How often a pass waits for its device: copies to it that are not queued, counted with the weights on ``meta``."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from zar_ray.adaptation.fusion import video_features
from zar_ray.models.cost import weightless
from zar_ray.models.packing import ImageSet, encode_packed, images_at_once
from zar_ray.video.options import ViewConfig
from zar_ray.video.pixels import send, to_device
from zar_ray.video.plans import plan_views
from zar_ray.video.transforms import Preprocessing

PIXELS = Preprocessing(224)
TINY = {
    "embed_dim": 16,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 224, "layers": 1, "width": 32, "head_width": 16, "patch_size": 32},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


class Waits(TorchDispatchMode):
    """Counts copies between the CPU and another device, and values that are read."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        name = func._schema.name
        if name in ("aten::_local_scalar_dense", "aten::nonzero", "aten::equal"):
            self.count += 1
        if name in ("aten::_to_copy", "aten::copy_"):
            source = args[0] if name == "aten::_to_copy" else args[1]
            self.count += (source.device.type == "cpu") != (result.device.type == "cpu")
        return result


@pytest.mark.parametrize(("frames", "views"), [(300, ViewConfig()), (95, ViewConfig()), (300, ViewConfig(crops=1))])
def test_a_video_is_sent_in_one_copy_of_frames_and_one_of_indices_a_pass(frames, views):
    """64 images a pass: a ten-second video of 48 views and 441 images took 45 copies, and takes 9."""
    model = weightless(TINY, "tiny", PIXELS)
    plan = plan_views("a.mp4", frames, 256, 340, views, PIXELS, 0)
    pixels = np.zeros((len(plan.frames), plan.height, plan.width, 3), dtype=np.uint8)
    one = ImageSet(pixels, plan.images, plan.boxes)
    with torch.no_grad():
        encode_packed(model, [one], 64)  # mean and standard deviation go once
        with Waits() as waits, model.unchanged():
            (embeddings,) = encode_packed(model, [one], 64)
            video_features(embeddings, plan)
    passes = -(-len(plan.images) // 64)
    assert waits.count <= passes + 2


def test_a_block_looks_at_the_weights_once(model, monkeypatch):
    looks = []
    monkeypatch.setattr("zar_ray.models.clip.unfit_vision", lambda visual: looks.append(1))
    images = torch.randn(2, 3, 32, 32)
    with model.unchanged():
        inside = [model.encode_images(images) for _ in range(3)]
    assert len(looks) == 1
    assert torch.equal(inside[0], model.encode_images(images))
    assert len(looks) == 2


def test_weights_that_change_after_a_block_are_seen(model):
    images = torch.randn(2, 3, 32, 32)
    with model.unchanged():
        before = model.encode_images(images)
    with torch.no_grad():
        model.clip.visual.proj.mul_(2)
    try:
        assert torch.allclose(model.encode_images(images), 2 * before, rtol=1e-4, atol=1e-5)
    finally:
        with torch.no_grad():
            model.clip.visual.proj.div_(2)


def test_the_scale_of_logits_is_read_once_until_it_changes(model):
    first = model.logit_scale
    with Waits() as waits:
        assert [model.logit_scale for _ in range(5)] == [first] * 5
    assert waits.count == 0
    with torch.no_grad():
        model.clip.logit_scale.add_(1)
    try:
        assert model.logit_scale == pytest.approx(first * np.e, rel=1e-5)
    finally:
        with torch.no_grad():
            model.clip.logit_scale.sub_(1)


def test_indices_of_all_shapes_arrive_as_they_were():
    arrays = [np.arange(6).reshape(2, 3), np.empty((0, 2), dtype=np.int64), np.array(7), np.arange(4)[::-1]]
    for one, sent in zip(arrays, to_device(arrays, torch.device("cpu")), strict=True):
        assert torch.equal(sent, torch.from_numpy(np.array(one, order="C")))
    for one, sent in zip(arrays, to_device(arrays, torch.device("meta")), strict=True):
        assert tuple(sent.shape) == one.shape


class Gpu:
    """A device that takes what it is given; PyTorch here knows none."""

    type = "cuda"


@pytest.mark.parametrize("error", [None, torch.AcceleratorError("CUDA error: out of memory")])
def test_what_cannot_be_pinned_is_sent_all_the_same(monkeypatch, error):
    pinned, sent = [], []

    def pin(tensor):
        if error is not None:
            raise error
        pinned.append(tensor.clone())
        return pinned[-1]

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    monkeypatch.setattr(torch.Tensor, "to", lambda tensor, device, non_blocking: sent.append(tensor) or tensor)
    given, device = torch.arange(3), Gpu()
    assert torch.equal(send(given, device), given)
    (indices,) = to_device([np.arange(4)], device)
    assert torch.equal(indices, torch.arange(4))
    assert len(sent) == 2
    assert len(pinned) == (2 if error is None else 0)


def test_a_gpu_takes_larger_passes():
    assert images_at_once(None, torch.device("cuda")) == 256
    assert images_at_once(None, torch.device("cpu")) == 64
    assert images_at_once(7, torch.device("cuda")) == 7
