"""The shared prefix against the plain pass over all 77 tokens, which a test writes out itself."""

from __future__ import annotations

import copy

import open_clip
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize

from zar_ray.models.architecture import build_clip
from zar_ray.models.clip import ClipModel
from zar_ray.models.prompt_passes import FullPass, SharedPrefixPass
from zar_ray.models.text import PromptedClasses, why_full_pass
from zar_ray.video.transforms import Preprocessing

WORDS = ("run", "jump", "Apply_Eye_Makeup", "ride", "a", "juggling", "soccer", "yo-yo", "high", "(x)", "straßenbahn")
NAMES = st.lists(
    st.lists(st.sampled_from(WORDS), min_size=1, max_size=9).map(" ".join),
    min_size=1,
    max_size=12,
    unique_by=lambda name: name.replace("_", " ").lower(),
)
CONTEXTS = st.lists(st.sampled_from(("a", "video", "of", "the", "person")), min_size=1, max_size=7).map(" ".join)


@pytest.fixture(scope="module")
def double(clip, architecture_of):
    return ClipModel(copy.deepcopy(clip).double(), "double", Preprocessing(32), architecture_of)


@pytest.fixture(scope="module")
def architecture_of():
    return {"vision_cfg": {}, "text_cfg": {}}


def plain_features(model, classes, context):
    """As CoOp and TPT write it: all positions of every prompt, under the tower's own mask."""
    tower, length = model.text_tower, context.shape[0]
    embedded = tower.token_embedding(classes.token_ids)
    prompts = torch.cat([embedded[:, :1], context.expand(len(classes), -1, -1), embedded[:, 1 + length :]], dim=1)
    states = tower.transformer(prompts + tower.positional_embedding, attn_mask=tower.attn_mask)
    ends = tower.ln_final(states)[torch.arange(len(classes)), classes.token_ids.argmax(dim=1)]
    return normalize(ends @ tower.text_projection, dim=-1)


def largest_difference(ours, theirs):
    return float((ours - theirs).detach().norm() / theirs.detach().norm())


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "tolerance"), [("model", 1e-5), ("double", 1e-10)])
@settings(max_examples=12, deadline=None)
@given(names=NAMES, words=CONTEXTS, batch=st.integers(1, 3), seed=st.integers(0, 99))
def test_features_and_gradients_are_those_of_the_plain_pass(request, kind, tolerance, names, words, batch, seed):
    model = request.getfixturevalue(kind)
    classes = PromptedClasses(model, names, words)
    assert isinstance(classes._run, SharedPrefixPass)
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, *classes.initial_context.shape)
    contexts = (classes.initial_context + 0.1 * torch.randn(shape, generator=generator)).to(model.dtype)
    contexts.requires_grad_()
    weights = torch.randn(batch, len(names), 24, generator=generator).to(model.dtype)

    ours = classes.features(contexts)
    theirs = torch.stack([plain_features(model, classes, context) for context in contexts])
    assert largest_difference(ours, theirs) < tolerance
    (our_gradient,) = torch.autograd.grad((ours * weights).sum(), contexts)
    (their_gradient,) = torch.autograd.grad((theirs * weights).sum(), contexts)
    assert largest_difference(our_gradient, their_gradient) < tolerance

    # the graph of the untuned context, kept for all videos, gives the same as a graph of its own
    untuned = classes.initial_context.clone().requires_grad_()
    features = plain_features(model, classes, untuned)
    assert largest_difference(classes.initial_features, features) < tolerance
    for _ in range(2):
        kept = classes.initial_gradients(weights)
        for one, weight in zip(kept, weights, strict=True):
            (expected,) = torch.autograd.grad((features * weight).sum(), untuned, retain_graph=True)
            assert largest_difference(one, expected) < tolerance


def test_each_token_is_run_once_and_nothing_is_padded(model):
    names = ["run", "jump rope", "play a very long game of chess", "swim"]
    classes = PromptedClasses(model, names)
    own = [len(open_clip.get_tokenizer("ViT-B-32").encode(name)) + 2 for name in names]  # ".", end of text
    assert classes.tokens == 1 + 4 + sum(own)


def test_the_trail_of_the_untuned_context_is_left_once(model, monkeypatch):
    """With one step a video costs no forward pass for its gradient: the one kept serves all."""
    classes = PromptedClasses(model, ["run", "jump"])
    runs = []
    run = SharedPrefixPass._run
    monkeypatch.setattr(
        SharedPrefixPass,
        "_run",
        lambda self, contexts, record: runs.append(len(contexts)) or run(self, contexts, record),
    )
    _ = classes.initial_features
    for _ in range(5):
        classes.initial_gradients(torch.randn(3, 2, 24))
    assert runs == [1, 1]


class TestOtherTowers:
    def custom(self, clip, **text):
        config = {
            "embed_dim": 24,
            "quick_gelu": True,
            "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 16, "head_width": 64},
            "text_cfg": {"width": 64, "heads": 1, "layers": 2, **text},
        }
        torch.manual_seed(5)
        return ClipModel(open_clip.CustomTextCLIP(**config).eval(), "custom", Preprocessing(32), config)

    def test_open_clips_custom_text_layout_shares_the_prefix(self, clip):
        model = self.custom(clip)
        classes = PromptedClasses(model, ["run", "jump rope"])
        assert isinstance(classes._run, SharedPrefixPass)
        with torch.no_grad():
            expected = model.clip.encode_text(classes.token_ids, normalize=True)
        assert torch.allclose(classes.initial_features, expected, atol=1e-6)
        assert len(model.fingerprint) == 12

    @pytest.mark.parametrize(
        ("text", "reason"),
        [
            ({"no_causal_mask": True}, "its text tower is not causal"),
            ({"ls_init_value": 0.1}, "in its text tower, its blocks scale their outputs"),
        ],
    )
    def test_a_tower_of_another_shape_runs_whole_prompts_and_says_so(self, clip, text, reason):
        model = self.custom(clip, **text)
        with pytest.warns(UserWarning, match=f"custom: {reason}; every prompt is run as a whole"):
            classes = PromptedClasses(model, ["run", "jump rope"])
        assert why_full_pass(model) == reason
        assert isinstance(classes._run, FullPass)
        assert classes.tokens == 2 * (77 if "no_causal_mask" in text else 9)
        with torch.no_grad():
            expected = model.clip.encode_text(classes.token_ids, normalize=True)
        assert torch.allclose(classes.initial_features, expected, atol=1e-6)
        contexts = (classes.initial_context + 0.1 * torch.randn(3, 4, 64)).requires_grad_()
        together = classes.features(contexts)
        alone = torch.stack([plain_features(model, classes, context) for context in contexts])
        assert torch.allclose(together, alone, atol=1e-5)
        weights = torch.randn(3, 2, 24)
        untuned = classes.initial_context.clone().requires_grad_()
        for kept, weight in zip(classes.initial_gradients(weights), weights, strict=True):
            (expected,) = torch.autograd.grad((plain_features(model, classes, untuned) * weight).sum(), untuned)
            assert torch.allclose(kept, expected, atol=1e-5)

    def test_plain_gelu(self, architecture):
        architecture["quick_gelu"] = False
        torch.manual_seed(1)
        model = ClipModel(build_clip(architecture).eval(), "gelu", Preprocessing(32), architecture)
        classes = PromptedClasses(model, ["run", "jump rope"])
        with torch.no_grad():
            expected = plain_features(model, classes, classes.initial_context)
        assert torch.allclose(classes.initial_features, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("position", "prompts"),
    [
        ("front", ["Apply Eye Makeup a video of a.", "run a video of a."]),
        ("middle", ["a video Apply Eye Makeup of a.", "a video run of a."]),
    ],
)
def test_names_in_front_and_in_the_middle_read_as_the_plain_prompts(model, clip, position, prompts):
    with pytest.warns(UserWarning, match="class names stand before context vectors"):
        classes = PromptedClasses(model, ["Apply_Eye_Makeup", "run"], position=position)
    assert torch.equal(classes.token_ids, model.tokenize(prompts))
    words = model.embed_tokens(model.tokenize(["a video of a"]))[0, 1:5]
    assert torch.equal(classes.initial_context, words)
    with pytest.warns(UserWarning, match="class names stand before context vectors"):
        other = PromptedClasses(model, ["Apply_Eye_Makeup", "run"], "the picture shows one", position)
    with torch.no_grad():
        expected = clip.encode_text(classes.token_ids, normalize=True)
        assert torch.allclose(classes.features(other.initial_context), other.initial_features, atol=1e-6)
    assert torch.allclose(classes.initial_features, expected, atol=1e-6)
    context = classes.initial_context.clone().requires_grad_()
    classes.features(context).sum().backward()
    assert context.grad.abs().min(dim=1).values.ne(0).all()
