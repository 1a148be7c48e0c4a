"""The way back through the text tower, written out: against autograd, in every form, and in how few kernels."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize
from torch.utils._python_dispatch import TorchDispatchMode

from zar_ray.adaptation.base import VideoFeatures
from zar_ray.adaptation.zar import ZarConfig, adapt_zar_batch
from zar_ray.data.classes import class_list
from zar_ray.models.architecture import build_clip
from zar_ray.models.clip import ClipModel
from zar_ray.models.prompt_passes import SharedPrefixPass
from zar_ray.models.systems.ezclip import attach_temporal_adapters
from zar_ray.models.text import PromptedClasses
from zar_ray.video.transforms import Preprocessing

# What makes no kernel of its own: views, and memory that is not written to.
_FREE = (
    *("view", "_unsafe_view", "as_strided", "expand", "permute", "transpose", "t", "slice", "select", "unsqueeze"),
    *("squeeze", "unbind", "split", "split_with_sizes", "alias", "detach", "unflatten", "empty", "new_empty"),
    *("empty_like", "empty_strided", "_local_scalar_dense", "lift_fresh", "detach_", "_reshape_alias"),
)


class Kernels(TorchDispatchMode):
    """Counts operations that would each be a kernel of a GPU, or several."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.removeprefix("aten::")
        if name not in _FREE:
            self.names.append(name)
        return func(*args, **(kwargs or {}))


def text_model(width=32, heads=2, layers=2, quick=True, dtype=torch.float64, seed=0):
    architecture = {
        "embed_dim": 24,
        "quick_gelu": quick,
        "vision_cfg": {"image_size": 32, "layers": layers, "width": 64, "patch_size": 16, "head_width": 64},
        "text_cfg": {"width": width, "heads": heads, "layers": layers},
    }
    torch.manual_seed(seed)
    clip = build_clip(architecture).to(dtype)
    with torch.no_grad():
        for parameter in clip.parameters():
            # Norms and biases of their usual beginning would hide what is left out of them.
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return ClipModel(clip, "tiny", Preprocessing(32), architecture)


def both_forms(model, names, context=None):
    """The classes with every length in a group of its own, and all padded to one."""
    made = []
    for padded in (False, True):
        classes = PromptedClasses(model, names, context)
        embeddings, ends = model.embed_tokens(classes.token_ids), classes.token_ids.argmax(dim=1)
        length = len(classes.initial_context)
        classes._run = SharedPrefixPass(model.text_tower, embeddings, length, ends, padded=padded)
        made.append(classes)
    return made


def autograd_gradients(classes, weights):
    leaf = classes.initial_context.clone().requires_grad_()
    features = classes.features(leaf)
    return torch.stack([torch.autograd.grad(features, leaf, one, retain_graph=True)[0] for one in weights])


WORDS = st.sampled_from(("run", "jump", "juggling", "soccer", "yo-yo", "high", "(x)", "straßenbahn", "a"))
NAMES = st.lists(
    st.lists(WORDS, min_size=1, max_size=9).map(" ".join), min_size=1, max_size=9, unique_by=lambda name: name.lower()
)


@pytest.mark.slow
@settings(max_examples=12, deadline=None)
@given(
    names=NAMES,
    words=st.lists(st.sampled_from(("a", "video", "of", "person")), min_size=1, max_size=16).map(" ".join),
    shape=st.sampled_from(((32, 2), (24, 3), (16, 1), (40, 5))),
    layers=st.integers(1, 3),
    quick=st.booleans(),
    batch=st.integers(1, 9),
    seed=st.integers(0, 99),
)
def test_gradients_are_autograds_in_both_forms(names, words, shape, layers, quick, batch, seed):
    model = text_model(*shape, layers, quick, seed=seed)
    weights = torch.randn(batch, len(names), 24, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    apart, padded = both_forms(model, names, words)
    expected = autograd_gradients(apart, weights)
    for classes in (apart, padded):
        found = classes.initial_gradients(weights)
        assert torch.allclose(found, expected, rtol=1e-8, atol=1e-10 * float(expected.abs().max()))
        assert torch.allclose(classes.initial_features, apart.initial_features, atol=1e-12)
        assert torch.allclose(autograd_gradients(classes, weights), expected, rtol=1e-8, atol=1e-12)
    contexts = apart.initial_context + torch.randn(batch, *apart.initial_context.shape, dtype=torch.float64)
    assert torch.allclose(apart.features(contexts), padded.features(contexts), atol=1e-11)


def test_gradients_are_those_of_finite_differences():
    (apart, padded), step = both_forms(text_model(), ["run", "play a very long game of chess", "swim"]), 1e-5
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(1, 3, 24, dtype=torch.float64, generator=generator)
    direction = torch.randn(apart.initial_context.shape, dtype=torch.float64, generator=generator)
    for classes in (apart, padded):
        values = [
            (classes.features(apart.initial_context + sign * step * direction) * weight).sum() for sign in (1, -1)
        ]
        expected = (values[0] - values[1]) / (2 * step)
        assert float((classes.initial_gradients(weight)[0] * direction).sum()) == pytest.approx(
            float(expected), rel=1e-6
        )


@pytest.mark.parametrize("batch", [1, 3])
def test_adapters_are_gone_back_through(batch):
    model = text_model()
    other = copy.deepcopy(model.clip)
    attach_temporal_adapters(other, 3)
    with torch.no_grad():
        for name, parameter in other.named_parameters():
            if "Adapter" in name:
                parameter.copy_(torch.randn(parameter.shape) * 0.2)
    adapted = ClipModel(other.double(), "ez", Preprocessing(32), model.architecture)
    weights = torch.randn(batch, 2, 24, dtype=torch.float64)
    for classes in both_forms(adapted, ["run", "jump over the rope"]):
        assert isinstance(classes._run, SharedPrefixPass)
        expected = autograd_gradients(classes, weights)
        assert torch.allclose(classes.initial_gradients(weights), expected, rtol=1e-8, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("names", ["kinetics600_zero_shot_1", "kinetics600_zero_shot_3"])
def test_a_text_step_of_twelve_layers_is_fewer_than_600_kernels(batch, names):
    """One step of `zar` from views' features to decisions, as it is on a GPU; 4,081 of eight videos before."""
    model = text_model(layers=12, dtype=torch.float32)
    names = class_list(names)
    assert len(names) == 160
    _, classes = both_forms(model, names)
    generator = torch.Generator().manual_seed(0)
    drawn = [normalize(torch.randn(49, 24, generator=generator), dim=-1) for _ in range(batch)]
    videos = [VideoFeatures(one[:-1], one[-1]) for one in drawn]
    adapt_zar_batch(videos, classes, ZarConfig())
    with Kernels() as kernels:
        adapt_zar_batch(videos, classes, ZarConfig())
    assert len(kernels.names) < 600


def test_later_steps_and_other_numbers_of_videos_decide_alike_in_both_forms():
    model = text_model(dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    drawn = [normalize(torch.randn(9, 24, generator=generator), dim=-1) for _ in range(5)]
    videos = [VideoFeatures(one[:-1], one[-1]) for one in drawn]
    apart, padded = (
        adapt_zar_batch(videos, classes, ZarConfig(steps=3))
        for classes in both_forms(model, ["run", "jump rope", "a b c d"])
    )
    for one, other in zip(apart, padded, strict=True):
        assert torch.allclose(one.logits_after, other.logits_after, atol=1e-3)
