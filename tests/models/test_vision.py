"""The image tower against open_clip's own forward pass."""

from __future__ import annotations

import copy
import shutil

import pytest
import torch

from zar_ray.models.architecture import build_clip
from zar_ray.models.clip import ClipModel
from zar_ray.models.devices import require_compiler
from zar_ray.models.vision import VisionTower, unfit_vision
from zar_ray.video.transforms import Preprocessing


@pytest.fixture(scope="module")
def pixels():
    return torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("quick", [True, False])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_embeddings_are_open_clips(architecture, pixels, quick, dtype, tolerance):
    architecture["quick_gelu"] = quick
    torch.manual_seed(2)
    clip = build_clip(architecture).eval().to(dtype)
    model = ClipModel(clip, "tiny", Preprocessing(32), architecture)
    with torch.no_grad():
        expected = clip.encode_image(pixels.to(dtype))
    for layout in (torch.contiguous_format, torch.channels_last):
        ours = model.encode_images(pixels.contiguous(memory_format=layout))
        assert ours.dtype == dtype
        assert (ours - expected).norm() / expected.norm() < tolerance


def test_changed_and_converted_weights_are_noticed(clip, architecture, pixels):
    model = ClipModel(copy.deepcopy(clip), "tiny", Preprocessing(32), architecture)
    before = model.encode_images(pixels)
    ready = model._vision_tower()
    assert model._vision_tower() is ready
    with torch.no_grad():
        model.clip.visual.transformer.resblocks[0].ln_2.weight.mul_(1.5)
    changed = model.encode_images(pixels)
    assert not torch.allclose(changed, before, atol=1e-4)
    with torch.no_grad():
        assert torch.allclose(changed, model.clip.encode_image(pixels), atol=1e-5)
    assert torch.allclose(model.double().encode_images(pixels), changed.double(), atol=1e-5)


def test_weights_are_shared_and_not_copied(clip):
    tower = VisionTower(clip.visual, torch.float32)
    block = clip.visual.transformer.resblocks[0]
    assert tower.blocks[0].widen_weight.data_ptr() == block.mlp.c_fc.weight.data_ptr()
    assert tower.blocks[0].project_weight.data_ptr() == block.attn.in_proj_weight.data_ptr()


def test_other_image_towers_run_as_open_clip_wrote_them(architecture):
    architecture["vision_cfg"] = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 16, "patch_size": None}
    torch.manual_seed(0)
    clip = build_clip(architecture).eval()
    assert unfit_vision(clip.visual) == "its image tower is a ModifiedResNet, not a vision transformer of open_clip"
    pixels = torch.randn(2, 3, 32, 32)
    model = ClipModel(clip, "resnet", Preprocessing(32), architecture)
    with torch.no_grad():
        assert torch.allclose(model.encode_images(pixels), clip.encode_image(pixels), atol=1e-6)


@pytest.mark.parametrize(
    ("option", "reason"),
    [
        ({"ls_init_value": 0.1}, "its blocks scale their outputs"),
        ({"pool_type": "avg"}, "pools otherwise"),
        ({"attentional_pool": True}, "pools otherwise"),
        ({"patch_dropout": 0.5}, "drops patches"),
    ],
)
def test_towers_of_another_shape_are_told_apart(architecture, option, reason):
    architecture["vision_cfg"].update(option)
    clip = build_clip(architecture).eval()
    assert reason in unfit_vision(clip.visual)
    pixels = torch.randn(2, 3, 32, 32)
    model = ClipModel(clip, "other", Preprocessing(32), architecture)
    with torch.no_grad():
        assert torch.allclose(model.encode_images(pixels), clip.encode_image(pixels), atol=1e-6)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no compiler on this machine")
def test_compiled_or_not_makes_no_difference(clip, architecture, pixels):
    require_compiler(torch.device("cpu"))
    eager = ClipModel(clip, "tiny", Preprocessing(32), architecture)
    compiled = ClipModel(clip, "tiny", Preprocessing(32), architecture)
    compiled.compile_image_encoder()
    for count in (5, 3):
        assert torch.allclose(compiled.encode_images(pixels[:count]), eager.encode_images(pixels[:count]), atol=1e-5)
