"""Prompt vectors in the layers of both towers, against the two passes written out."""

from __future__ import annotations

import copy
import pickle
import warnings

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from zar_ray.adaptation.adapter import VideoAdapter
from zar_ray.adaptation.options import AdaptationOptions
from zar_ray.data.class_texts import prompts_of
from zar_ray.errors import ConfigError, ModelError
from zar_ray.models.architecture import build_clip, model_name
from zar_ray.models.checkpoints import save_checkpoint
from zar_ray.models.clip import ClipModel
from zar_ray.models.deep_prompts import attach_deep_prompts
from zar_ray.models.learned_context import LearnedContext
from zar_ray.models.loading import load_model
from zar_ray.models.options import ModelOptions
from zar_ray.models.parts import DEEP_PROMPTS
from zar_ray.models.prompt_passes import FullPass, SharedPrefixPass
from zar_ray.models.text import PromptedClasses, why_full_pass
from zar_ray.models.vision import unfit_vision
from zar_ray.video.options import ViewConfig
from zar_ray.video.plans import plan_views
from zar_ray.video.transforms import Preprocessing

NAMES = ("Apply_Eye_Makeup", "YoYo", "high jump (athletics)")
PLAIN = {
    "embed_dim": 24,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "layers": 3, "width": 64, "patch_size": 16, "head_width": 64},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 3},
}
DEPTHS = (1, 2, 3)


def deep_model(depth=2, vectors=4):
    architecture = {**copy.deepcopy(PLAIN), DEEP_PROMPTS: {"vectors": vectors, "depth": depth}}
    torch.manual_seed(3)
    model = ClipModel(build_clip(architecture), "deep", Preprocessing(32), architecture)
    for prompts in (model.clip.visual.deep_prompts, model.clip.deep_prompts):
        prompts.mul_(20)  # new ones are so small that their absence would hardly be seen
    return model


def plain_image_pass(clip, pixels):
    """The image tower as ViFi-CLIP's code describes it, over open_clip's blocks without their hooks."""
    tower, prompts = clip.visual, clip.visual.deep_prompts
    patches = tower.conv1(pixels).flatten(2).mT
    tokens = torch.cat([tower.class_embedding.expand(len(pixels), 1, -1), patches], dim=1) + tower.positional_embedding
    x = tower.ln_pre.forward(torch.cat([tokens, prompts[0].expand(len(pixels), -1, -1)], dim=1))
    own = tokens.shape[1]
    for layer, block in enumerate(tower.transformer.resblocks):
        if 0 < layer < len(prompts):
            x = torch.cat([x[:, :own], prompts[layer].expand(len(pixels), -1, -1)], dim=1)
        x = block.forward(x)
    return tower.ln_post(x[:, 0]) @ tower.proj


def plain_text_pass(model, name, first):
    """One class's text, with `first` (n, W) as the vectors that the first layer reads."""
    tower, prompts = model.clip, model.clip.deep_prompts
    ids = model.tokenize([f"{name.replace('_', ' ')}."])
    own = tower.token_embedding(ids)[0, : int(ids.argmax()) + 1]
    count = first.shape[0]
    x = (torch.cat([own[:1], first, own[1:]]) + tower.positional_embedding[: len(own) + count])[None]
    mask = tower.attn_mask[: x.shape[1], : x.shape[1]]
    for layer, block in enumerate(tower.transformer.resblocks):
        if 0 < layer < len(prompts):
            x = torch.cat([x[:, :1], prompts[layer][None], x[:, 1 + count :]], dim=1)
        x = block.forward(x, attn_mask=mask)
    return normalize(tower.ln_final(x[0, -1]) @ tower.text_projection, dim=-1)


@pytest.fixture(params=DEPTHS)
def model(request):
    return deep_model(request.param)


@pytest.fixture
def pixels():
    return torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_images_are_encoded_with_the_vectors_of_every_layer(model, pixels):
    assert unfit_vision(model.clip.visual) is None
    with torch.no_grad():
        expected = plain_image_pass(model.clip, pixels)
        assert torch.allclose(model.clip.visual(pixels), expected, atol=1e-5)
    assert torch.allclose(model.encode_images(pixels), expected, atol=1e-5)


@pytest.mark.parametrize("full", [False, True])
def test_texts_and_their_gradients_are_those_of_the_plain_pass(model, full, monkeypatch):
    if full:
        monkeypatch.setattr("zar_ray.models.text.unfit_text", lambda tower: "told so by the test")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore" if full else "error")
        classes = PromptedClasses(model, NAMES)
    assert isinstance(classes._run, FullPass if full else SharedPrefixPass)
    assert torch.equal(classes.initial_context, model.clip.deep_prompts[0])
    tuned = (classes.initial_context + 0.1).requires_grad_()
    prompts = model.clip.deep_prompts.requires_grad_()
    weights = torch.randn(3, 24, generator=torch.Generator().manual_seed(1))
    results = []
    for features in (classes.features(tuned), torch.stack([plain_text_pass(model, name, tuned) for name in NAMES])):
        gradients = torch.autograd.grad((features * weights).sum(), [tuned, prompts], allow_unused=True)
        results.append((features, *gradients))
    for ours, theirs in zip(*results, strict=True):
        assert (ours is None) == (theirs is None)
        assert ours is None or torch.allclose(ours, theirs, atol=1e-5, rtol=1e-4)
    # with one layer alone, the tuned context stands for all of it
    assert (results[0][2] is None) == (len(prompts) == 1)
    prompts.requires_grad_(False)
    (kept,) = classes.initial_gradients(weights[None])
    start = classes.initial_context.clone().requires_grad_()
    untuned = torch.stack([plain_text_pass(model, name, start) for name in NAMES])
    (expected,) = torch.autograd.grad((untuned * weights).sum(), start)
    assert torch.allclose(kept, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.slow
def test_every_vector_makes_a_difference(pixels):
    model = deep_model(depth=3)
    images, texts = model.encode_images(pixels), PromptedClasses(model, NAMES).initial_features
    for layer in range(3):
        for number in range(4):
            other = copy.deepcopy(model)
            with torch.no_grad():
                other.clip.visual.deep_prompts[layer, number].neg_()
                other.clip.deep_prompts[layer, number].neg_()
            assert not torch.allclose(other.encode_images(pixels), images, atol=1e-4)
            assert not torch.allclose(PromptedClasses(other, NAMES).initial_features, texts, atol=1e-4)


def test_mixed_precision_is_near_full(pixels):
    model = deep_model()
    mixed = ClipModel(model.clip, "mixed", Preprocessing(32), model.architecture, precision="bf16")
    full = model.encode_images(pixels)
    assert 0 < (mixed.encode_images(pixels) - full).norm() / full.norm() < 0.02


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_reads_its_own_vectors(copied, pixels):
    model = deep_model()
    before = model.encode_images(pixels)
    other = copied(model)
    with torch.no_grad():
        other.clip.visual.deep_prompts.neg_()
        assert not torch.allclose(other.clip.visual(pixels), before, atol=1e-3)
        assert torch.allclose(model.clip.visual(pixels), before, atol=1e-5)


def test_a_checkpoint_brings_its_vectors(pixels, tmp_path):
    model = deep_model()
    file = tmp_path / "deep.safetensors"
    save_checkpoint(model.clip, model.architecture, model.preprocessing, file, {"name": "deep"})
    loaded = load_model(ModelOptions(checkpoint=file))
    assert loaded.fingerprint == model.fingerprint
    assert loaded.architecture == model.architecture
    assert torch.equal(loaded.encode_images(pixels), model.encode_images(pixels))
    assert torch.equal(PromptedClasses(loaded, NAMES).initial_features, PromptedClasses(model, NAMES).initial_features)
    assert model_name(model.architecture) is None
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


def test_both_methods_run_and_tune_the_first_layers_vectors():
    model = deep_model()
    options = AdaptationOptions(views=ViewConfig(frames=4, eval_frames=4))
    plan = plan_views("a/b.mp4", 31, 48, 80, options.views, Preprocessing(32), seed=0)
    frames = np.random.default_rng(0).integers(0, 255, (len(plan.frames), plan.height, plan.width, 3), np.uint8)
    assert why_full_pass(model) is None
    adapter = VideoAdapter(model, prompts_of([NAMES], options), options.method, options)
    zero_shot, zar = (case.decision for case in adapter(frames, plan).cases)
    assert torch.equal(zar.logits_before, zero_shot.logits_after)
    assert not torch.allclose(zar.logits_after, zar.logits_before, atol=1e-4)
    assert zar.losses is not None
    assert zar.losses.isfinite().all()


class TestRefused:
    @pytest.mark.parametrize(
        "choices",
        [{"context": "a clip of"}, {"texts": [["one"], ["two"], ["three"]]}, {"position": "middle"}],
    )
    def test_words_in_the_vectors_places(self, choices):
        with pytest.raises(ConfigError, match="deep: has learnt 4 vectors to stand in front of class names; leave"):
            PromptedClasses(deep_model(), NAMES, **choices)

    def test_a_learned_context_in_the_vectors_places(self):
        model = deep_model()
        context = LearnedContext(torch.zeros(2, 32), "random", model.name, model.fingerprint)
        with pytest.raises(ConfigError, match="has learnt 4 vectors"):
            PromptedClasses(model, NAMES, context)

    def test_more_layers_than_there_are(self):
        with pytest.raises(ModelError, match="--prompt-depth 4: a tower of this model has 3 layers; choose a smaller"):
            attach_deep_prompts(build_clip(PLAIN), 4, 4)

    def test_image_towers_without_a_class_token(self):
        resnet = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 16, "patch_size": None}
        with pytest.raises(ModelError, match="need a vision transformer with a class token"):
            attach_deep_prompts(build_clip({**PLAIN, "vision_cfg": resnet}), 4, 2)
        averaged = {**PLAIN["vision_cfg"], "pool_type": "avg"}
        with pytest.raises(ModelError, match="need a vision transformer with a class token"):
            attach_deep_prompts(build_clip({**PLAIN, "vision_cfg": averaged}), 4, 2)

    def test_sizes_that_are_none(self):
        with pytest.raises(ModelError, match="not an open_clip model config"):
            build_clip({**PLAIN, DEEP_PROMPTS: {"number": 4}})
