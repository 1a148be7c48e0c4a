"""EZ-CLIP's additions: new ones change little, and the text tower's engine gives what whole prompts give."""

from __future__ import annotations

import copy

import pytest
import torch

from zar_ray.errors import ModelError
from zar_ray.models.architecture import build_clip
from zar_ray.models.attention import attention_rollout
from zar_ray.models.checkpoints import save_checkpoint
from zar_ray.models.clip import ClipModel
from zar_ray.models.exporting import export_checkpoint
from zar_ray.models.parts import frames_of
from zar_ray.models.prompt_passes import FullPass, SharedPrefixPass
from zar_ray.models.systems.ezclip import attach_temporal_adapters
from zar_ray.models.text import PromptedClasses, why_full_pass
from zar_ray.models.vision import unfit_vision
from zar_ray.video.transforms import Preprocessing

NAMES = ("red circle", "green square", "jumping over a small blue bar")


@pytest.fixture
def adapted(clip, architecture):
    """With adapters and prompts that do something."""
    architecture = {**architecture, "temporal_adapters": {"frames": 3}}
    made = build_clip(architecture)
    made.load_state_dict(clip.state_dict(), strict=False)
    generator = torch.Generator().manual_seed(8)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "Adapter" in name or "T_prompt" in name or "temporal" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return ClipModel(made, "ez", Preprocessing(32), architecture)


def test_new_adapters_leave_texts_as_they_were(clip, model, architecture):
    other = copy.deepcopy(clip)
    attach_temporal_adapters(other, 3)
    other = ClipModel(other, "ez", Preprocessing(32), {**architecture, "temporal_adapters": {"frames": 3}})
    classes = PromptedClasses(model, NAMES).initial_features, PromptedClasses(other, NAMES).initial_features
    assert torch.allclose(*classes, atol=1e-6)
    assert frames_of(other.clip.visual) == 3
    assert frames_of(clip.visual) is None


def test_the_shared_prefix_gives_what_whole_prompts_give(adapted):
    """Features, and the gradient of the context, through the adapters of the text tower."""
    assert why_full_pass(adapted) is None
    classes = PromptedClasses(adapted, NAMES)
    embeddings, ends = adapted.embed_tokens(classes.token_ids), classes.token_ids.argmax(dim=1)
    length = len(classes.initial_context)
    places = torch.arange(1, 1 + length).expand(len(NAMES), -1)
    shared = SharedPrefixPass(adapted.text_tower, embeddings, length, ends)
    full = FullPass(adapted, embeddings, places, classes.token_ids)
    contexts = classes.initial_context.expand(2, -1, -1).clone()
    contexts[1] += 0.05
    gradients = []
    for run in (shared, full):
        leaf = contexts.clone().requires_grad_()
        features = run(leaf)
        (features**2).sum().backward()
        gradients.append((features.detach(), leaf.grad))
    assert torch.allclose(gradients[0][0], gradients[1][0], atol=1e-5)
    assert torch.allclose(gradients[0][1], gradients[1][1], rtol=1e-4, atol=1e-4)


def test_the_image_tower_runs_as_open_clip_wrote_it(adapted):
    assert unfit_vision(adapted.clip.visual) == "its image tower reads the frames of a view together"
    pixels = torch.randn(6, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(adapted.encode_images(pixels), adapted.clip.visual(pixels), atol=1e-6)


def test_mixed_precision_stays_close(adapted):
    pixels = torch.randn(6, 3, 32, 32)
    full = adapted.encode_images(pixels)
    mixed = ClipModel(adapted.clip, "ez", Preprocessing(32), adapted.architecture, "bf16").encode_images(pixels)
    assert 0 < (mixed - full).norm() / full.norm() < 0.03


def test_the_order_of_frames_matters(adapted):
    pixels = torch.randn(3, 3, 32, 32)
    forwards, backwards = adapted.encode_images(pixels), adapted.encode_images(pixels.flip(0)).flip(0)
    assert not torch.allclose(forwards, backwards, atol=1e-3)


def test_its_settings_and_weights_are_in_the_fingerprint(adapted, model):
    other = ClipModel(copy.deepcopy(adapted.clip), "ez", Preprocessing(32), adapted.architecture)
    assert other.fingerprint == adapted.fingerprint != model.fingerprint
    scaled = ClipModel(adapted.clip, "ez", Preprocessing(32), {**adapted.architecture, "evaluation_scale": 100})
    assert scaled.fingerprint != adapted.fingerprint
    with torch.no_grad():
        other.clip.visual.transformer.T_prompt_embeddings[0, 0, 0] += 1
    del other.__dict__["fingerprint"]
    assert other.fingerprint != adapted.fingerprint


def test_what_cannot_be_done_with_it_is_one_line(adapted, tmp_path):
    with pytest.raises(ModelError, match="ez: its image tower reads the frames of a view together; attention maps"):
        attention_rollout(adapted, torch.zeros(3, 3, 32, 32))
    save_checkpoint(adapted.clip, adapted.architecture, Preprocessing(32), tmp_path / "a.safetensors")
    with pytest.raises(ModelError, match=r"has more than a CLIP \(temporal_adapters\)"):
        export_checkpoint(tmp_path / "a.safetensors", tmp_path / "out", "open_clip")


def test_a_tower_of_convolutions_is_refused(architecture):
    resnet = {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None}
    with pytest.raises(ModelError, match="temporal prompts need a vision transformer"):
        build_clip({**architecture, "vision_cfg": resnet, "temporal_adapters": {"frames": 3}})
