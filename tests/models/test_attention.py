"""Attention maps: the tower is left as it was, rollout belongs to the image, relevance to the class's text."""

from __future__ import annotations

import copy

import open_clip
import pytest
import torch
from torch.nn.functional import normalize

from zar_ray.adaptation.base import VideoFeatures
from zar_ray.adaptation.zar import ZarConfig, tuned_features
from zar_ray.errors import ModelError
from zar_ray.models.architecture import build_clip
from zar_ray.models.attention import (
    attend,
    attention_rollout,
    class_relevance,
    gather_relevance,
    logit_gradients,
    roll_out,
    unfit_attention,
)
from zar_ray.models.clip import ClipModel
from zar_ray.models.text import PromptedClasses
from zar_ray.video.transforms import Preprocessing


@pytest.fixture(scope="module")
def pixels():
    return torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def classes(model):
    return PromptedClasses(model, ("red circle", "green square", "blue bar"))


def attention_of(model):
    """What goes into each block's attention and comes out of it, by hooks of the test's own."""
    seen = []
    hooks = [
        block.attn.register_forward_hook(lambda module, inputs, output: seen.append((module, inputs[0], output[0])))
        for block in model.clip.visual.transformer.resblocks
    ]
    return seen, hooks


def test_recomputed_attention_gives_the_blocks_own_output(model, pixels):
    seen, hooks = attention_of(model)
    try:
        with torch.no_grad():
            model.clip.visual(pixels)
    finally:
        for hook in hooks:
            hook.remove()
    assert len(seen) == 2
    for module, x, expected in seen:
        output, weights = attend(module, x)
        assert (output - expected).abs().max() < 1e-5
        _, theirs = module(x, x, x, need_weights=True, average_attn_weights=False)
        assert (weights - theirs).abs().max() < 1e-6


def test_attention_with_its_batch_second_is_the_same():
    torch.manual_seed(0)
    first, second = (torch.nn.MultiheadAttention(16, 4, batch_first=batch_first) for batch_first in (True, False))
    second.load_state_dict(first.state_dict())
    x = torch.randn(2, 5, 16)
    ours, weights = attend(first, x)
    theirs, same = attend(second, x.transpose(0, 1))
    assert torch.equal(ours, theirs.transpose(0, 1))
    assert torch.equal(weights, same)


def test_the_tower_is_left_as_it_was(model, pixels, classes):
    before = model.encode_images(pixels)
    attention_rollout(model, pixels)
    class_relevance(model, pixels, classes.initial_features)
    assert torch.equal(model.encode_images(pixels), before)
    assert not any(block.attn._forward_hooks for block in model.clip.visual.transformer.resblocks)
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_rolled_out_attention_is_a_distribution_and_follows_the_blocks():
    weights = torch.rand(2, 3, 4, 6, 6, generator=torch.Generator().manual_seed(1)).softmax(dim=-1)
    rolled = roll_out(list(weights))
    assert rolled.min() >= 0
    assert torch.allclose(rolled.sum(dim=-1), torch.ones(3, 6))
    same = torch.eye(6)
    first, second = ((one.mean(dim=1) + same) / 2 for one in weights)
    assert torch.allclose(rolled, second @ first)


def test_a_rollout_has_a_map_a_frame(model, pixels):
    maps = attention_rollout(model, pixels)
    assert maps.shape == (5, 2, 2)
    assert not maps.requires_grad
    assert ((maps > 0) & (maps < 1)).all()
    assert torch.allclose(maps[3:], attention_rollout(model, pixels[3:]), atol=1e-6)


def test_gradients_of_a_view_s_logit_are_those_of_finite_differences():
    generator = torch.Generator().manual_seed(2)
    embeddings = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    texts = normalize(torch.randn(2, 4, generator=generator, dtype=torch.float64), dim=-1)

    def logits(frames):
        return 7.0 * texts @ normalize(frames.mean(dim=0), dim=-1)

    found = logit_gradients(embeddings, texts, 7.0, lambda frames: frames.mean(dim=0))
    for frame, place in ((0, 0), (2, 3)):
        step = torch.zeros_like(embeddings)
        step[frame, place] = 1e-6
        slope = (logits(embeddings + step) - logits(embeddings - step)) / 2e-6
        assert torch.allclose(found[:, frame, place], slope, rtol=1e-6)


def test_relevance_is_that_of_one_graph_through_the_whole_view(model, pixels, classes):
    """The rule as the paper has it: all frames in one graph, from the logit back to each block's attention."""
    weights = []
    hooks = [
        block.attn.register_forward_hook(lambda module, inputs, _: recorded(weights, *attend(module, inputs[0])))
        for block in model.clip.visual.transformer.resblocks
    ]
    try:
        view = normalize(model.clip.visual(pixels).mean(dim=0), dim=-1)
    finally:
        for hook in hooks:
            hook.remove()
    logit = model.logit_scale * classes.initial_features[1] @ view
    gradients = torch.autograd.grad(logit, weights)
    expected = gather_relevance(weights, gradients)[:, 0, 1:].unflatten(-1, (2, 2))
    for frames_a_pass in (1, 4, 64):
        (found,) = class_relevance(model, pixels, classes.initial_features[1:2], frames_a_pass)
        assert found.shape == (5, 2, 2)
        assert (found - expected).abs().max() <= 1e-5 * expected.max()
    assert expected.min() >= 0
    assert expected.max() > 0


def recorded(weights, output, of_block):
    weights.append(of_block)
    return output, None


def test_gathered_relevance_counts_positive_parts_block_after_block():
    weights = [torch.tensor([[[[0.25, 0.75], [0.5, 0.5]]]]), torch.tensor([[[[0.5, 0.5], [1.0, 0.0]]]])]
    gradients = [torch.tensor([[[[4.0, -4.0], [2.0, 2.0]]]]), torch.tensor([[[[0.0, 2.0], [-1.0, 9.0]]]])]
    # By hand: block 1 gives I + [[1, 0], [1, 1]]; block 2 adds [[0, 1], [0, 0]] times that.
    assert gather_relevance(weights, gradients).tolist() == [[[3.0, 2.0], [1.0, 2.0]]]


def test_tuning_moves_relevance_and_not_rollout(model, pixels, classes):
    embeddings = model.encode_images(pixels)
    view = normalize(embeddings.mean(dim=0), dim=-1)
    before = classes.initial_features
    rollout = attention_rollout(model, pixels)
    tuned = tuned_features(VideoFeatures(normalize(embeddings, dim=-1), view), classes, ZarConfig(lr=0.05, steps=3))
    assert torch.equal(attention_rollout(model, pixels), rollout)

    old, new = class_relevance(model, pixels, torch.stack([before[0], tuned[0]]))
    assert (old - new).abs().max() > 1e-3 * old.max()
    other_class, _ = class_relevance(model, pixels, before[1:])
    assert (old - other_class).abs().max() > 1e-3 * old.max()


def test_towers_without_a_class_token_s_attention_are_refused(architecture, pixels):
    torch.manual_seed(0)
    architecture["vision_cfg"] |= {"layers": [1, 1, 1, 1], "width": 32, "patch_size": None}
    resnet = ClipModel(build_clip(architecture), "a-resnet", Preprocessing(32), architecture)
    for maps in (attention_rollout, lambda *given: class_relevance(*given, torch.eye(1, 24))):
        with pytest.raises(ModelError, match="a-resnet: its image tower is a ModifiedResNet") as caught:
            maps(resnet, pixels)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "reason"),
    [({"pool_type": "avg"}, "pools otherwise"), ({"block_type": "custom"}, "CustomResidualAttentionBlock")],
)
def test_other_vision_transformers_are_refused(architecture, change, reason):
    architecture["vision_cfg"] |= change
    assert reason in unfit_attention(build_clip(architecture).visual)


def test_further_tokens_are_refused_where_they_take_part(clip, architecture, pixels):
    prompted = copy.deepcopy(clip)
    prompted.visual.transformer.register_forward_pre_hook(
        lambda _, inputs: (torch.cat([inputs[0], inputs[0][:, :3]], dim=1),)
    )
    model = ClipModel(prompted, "prompted", Preprocessing(32), architecture)
    with pytest.raises(ModelError, match="prompted: its image tower has 8 tokens for 4 patches"):
        attention_rollout(model, pixels)
    assert not any(block.attn._forward_hooks for block in prompted.visual.transformer.resblocks)


@pytest.mark.parametrize("name", ["ViT-B-32", "ViT-B-16-quickgelu", "ViT-L-14-336"])
def test_open_clips_published_transformers_are_fit(name):
    with torch.device("meta"):
        assert unfit_attention(open_clip.create_model(name, device="meta").visual) is None
