"""How systems draw their new weights, and what of X-CLIP decays, as the official codes have it, whatever the sizes."""

import math

import pytest
import torch

from zar_ray.models.architecture import build_clip
from zar_ray.models.systems.registry import find_system
from zar_ray.training.options import TrainConfig
from zar_ray.training.schedule import optimiser


def clip_with(patch, width, text_width, **parts):
    torch.manual_seed(patch + width)
    vision = {"image_size": 2 * patch, "layers": 3, "width": width, "head_width": 16, "patch_size": patch}
    text = {"width": text_width, "heads": 2, "layers": 2}
    return build_clip({"embed_dim": 48, "quick_gelu": True, "vision_cfg": vision, "text_cfg": text, **parts})


def assert_uniform(tensor, bound):
    assert tensor.abs().max() <= bound
    assert tensor.abs().max() > 0.9 * bound
    assert tensor.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.1)


@pytest.mark.parametrize(("patch", "width"), [(14, 64), (16, 128), (32, 96)])
def test_ezclips_prompts_have_the_bound_of_patches_of_16_pixels(patch, width):
    clip = clip_with(patch, width, 32, temporal_adapters={"frames": 5})
    assert_uniform(clip.visual.transformer.T_prompt_embeddings, math.sqrt(6 / (3 * 16 * 16 + width)))


@pytest.mark.parametrize(("patch", "width"), [(14, 64), (16, 128), (32, 96)])
def test_vitaclips_new_weights(patch, width):
    clip = clip_with(patch, width, 32, view_prompts={"frames": 16, "global_prompts": 4, "context": 16})
    bound = math.sqrt(6 / (3 * patch * patch + width))
    assert_uniform(clip.visual.global_prompts, bound)
    for block in clip.visual.transformer.resblocks:
        assert_uniform(block.local_prompts, bound)
        attention = block.summary_attn_layer
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj, attention.out_proj):
            assert_uniform(projection.weight, math.sqrt(6 / (2 * width)))
            assert not projection.bias.any()
    for drawn in (clip.visual.time_embed, clip.own_context):
        assert drawn.std().item() == pytest.approx(0.02, rel=0.1)


def test_vitaclips_published_sizes_have_the_published_deviations():
    """0.036 for the prompts and the queries of a ViT-B/16."""
    assert math.sqrt(6 / (3 * 16 * 16 + 768)) / math.sqrt(3) == pytest.approx(0.036, abs=1e-3)
    assert math.sqrt(6 / (2 * 768)) / math.sqrt(3) == pytest.approx(0.036, abs=1e-3)


@pytest.mark.parametrize(("patch", "layers"), [(16, 1), (32, 2)])
def test_xclips_head_starts_small_and_its_positions_never_decay(patch, layers):
    clip = clip_with(patch, 64, 32, cross_frames={"frames": 4, "layers": layers, "prompt_layers": layers})
    head = clip.fusion
    for part in (head.mit, head.prompts_generator):
        for module in part.modules():
            if isinstance(module, torch.nn.Linear):
                assert module.weight.std().item() == pytest.approx(0.02, rel=0.15)
                assert module.bias is None or not module.bias.any()
    named = [(name, one) for name, one in clip.named_parameters() if name.startswith(("visual.", "fusion."))]
    names = {id(one): name for name, one in named}
    config = TrainConfig(decays="matrices", weight_decay=0.3)
    groups = optimiser(named, find_system("xclip").training, config).param_groups
    free = {names[id(one)] for group in groups if not group["weight_decay"] for one in group["params"]}
    assert free == {name for name, one in named if one.ndim == 1 or "positional_embedding" in name}
    assert {"visual.positional_embedding", "fusion.mit.positional_embedding", "fusion.prompts_generator.alpha"} <= free
