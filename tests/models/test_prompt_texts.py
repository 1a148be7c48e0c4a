"""Texts instead of the one prompt, against open_clip's own ensemble and a pass over whole prompts."""

from __future__ import annotations

import warnings
from dataclasses import replace

import open_clip
import pytest
import torch
from torch.nn.functional import normalize

from zar_ray.data.class_texts import class_prompts, load_templates
from zar_ray.errors import ConfigError
from zar_ray.models.clip import ClipModel
from zar_ray.models.prompt_passes import SharedPrefixPass
from zar_ray.models.text import PromptedClasses
from zar_ray.video.transforms import Preprocessing

NAMES = ("ApplyEyeMakeup", "Archery", "high_jump", "YoYo")


def prompted(model, names=NAMES, context="a video of a", **choices):
    prompts = class_prompts(names, context, **choices)
    return PromptedClasses(model, prompts.names, prompts.context, texts=prompts.texts)


@pytest.mark.parametrize("template", ["actionclip", "clip_kinetics", "clip_ucf101", "{}", "{}, an action", "a {}"])
def test_untuned_features_are_open_clips_ensemble(model, clip, template):
    classes = prompted(model, style="split_camel_case", template=template)
    plain = ["Apply Eye Makeup", "Archery", "high jump", "Yo Yo"]
    templates = load_templates(template)
    expected = open_clip.build_zero_shot_classifier(clip, open_clip.tokenize, plain, templates).T
    assert torch.allclose(classes.initial_features, expected, atol=1e-6)
    assert not classes.initial_features.requires_grad
    assert classes.token_ids.shape == (4 * len(templates), 77)
    assert len(classes) == 4


def test_each_text_weighs_the_same_whatever_its_passes(model, clip, monkeypatch):
    """Classes with unequally many texts, cut into passes anywhere."""
    monkeypatch.setattr("zar_ray.models.text._TEXTS_A_PASS", 2)
    texts = [["someone runs", "a very fast and long run on a track", "running"], ["a jump"]]
    classes = PromptedClasses(model, ["run", "jump"], texts=texts)
    with torch.no_grad():
        encoded = [clip.encode_text(model.tokenize(own), normalize=True).mean(dim=0) for own in texts]
    assert torch.allclose(classes.initial_features, normalize(torch.stack(encoded), dim=-1), atol=1e-6)


def test_a_tower_that_sees_ahead_reads_whole_texts():
    config = {
        "embed_dim": 24,
        "quick_gelu": True,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16, "head_width": 64},
        "text_cfg": {"width": 64, "heads": 1, "layers": 2, "no_causal_mask": True},
    }
    torch.manual_seed(5)
    clip = open_clip.CustomTextCLIP(**config).eval()
    model = ClipModel(clip, "ahead", Preprocessing(32), config)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing is tuned, so no pass takes longer
        classes = prompted(model, template="actionclip")
    plain = [name.replace("_", " ") for name in NAMES]
    expected = open_clip.build_zero_shot_classifier(clip, open_clip.tokenize, plain, load_templates("actionclip")).T
    assert torch.allclose(classes.initial_features, expected, atol=1e-6)


def test_the_default_prompt_as_a_template_is_the_default_prompt(model):
    ours, template = PromptedClasses(model, NAMES), prompted(model, template="a video of a {}.")
    assert torch.equal(ours.token_ids, template.token_ids)
    assert torch.equal(ours.initial_context, template.initial_context)
    assert torch.equal(ours.initial_features, template.initial_features)
    assert ours.tokens == template.tokens


@pytest.mark.parametrize("template", ["a photo of {}, a type of action.", "the_person is doing {}", "look: {}"])
def test_the_words_in_front_are_tuned_and_the_suffix_stays(model, template):
    classes = prompted(model, style="split_camel_case", template=template)
    classes.require_tunable("zar")
    assert isinstance(classes._run, SharedPrefixPass)
    words = template.partition("{}")[0].replace("_", " ").strip()
    ids = model.tokenize([words])
    length = int(ids.argmax()) - 1
    assert torch.equal(classes.initial_context, model.embed_tokens(ids)[0, 1 : 1 + length])

    tower = model.text_tower

    def plain(context):
        embedded = tower.token_embedding(classes.token_ids)
        prompts = torch.cat([embedded[:, :1], context.expand(4, -1, -1), embedded[:, 1 + length :]], dim=1)
        states = tower.transformer(prompts + tower.positional_embedding, attn_mask=tower.attn_mask)
        ends = tower.ln_final(states)[torch.arange(4), classes.token_ids.argmax(dim=1)]
        return normalize(ends @ tower.text_projection, dim=-1)

    torch.manual_seed(1)
    weights = torch.randn(3, 4, 24)
    untuned = classes.initial_context.clone().requires_grad_()
    assert torch.allclose(classes.initial_features, plain(untuned), atol=1e-5)
    for kept, weight in zip(classes.initial_gradients(weights), weights, strict=True):
        (expected,) = torch.autograd.grad((plain(untuned) * weight).sum(), untuned)
        assert torch.allclose(kept, expected, atol=1e-5, rtol=1e-4)
        assert expected.abs().max() > 0

    tuned = (classes.initial_context + 0.1 * torch.randn(length, 64)).requires_grad_()
    ours, theirs = classes.features(tuned), plain(tuned)
    assert torch.allclose(ours, theirs, atol=1e-5)
    gradients = [torch.autograd.grad((features * weights[0]).sum(), tuned)[0] for features in (ours, theirs)]
    assert torch.allclose(*gradients, atol=1e-5, rtol=1e-4)


def test_a_rephrased_name_can_be_tuned_as_a_name(model):
    texts = {"Archery": ("shooting arrows",), "YoYo": ("playing with a yo-yo",)}
    theirs = prompted(model, ("Archery", "YoYo"), template="a video of a {}.", class_texts=texts)
    ours = PromptedClasses(model, ["shooting arrows", "playing with a yo-yo"])
    assert torch.equal(ours.initial_features, theirs.initial_features)
    assert torch.equal(ours.initial_context, theirs.initial_context)


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        (
            {"template": "clip_kinetics"},
            'zar tunes one prompt a class, and "ApplyEyeMakeup" has 28; use --method zero_shot, or one text a class'
            ' in a single template such as "a video of a {}."',
        ),
        (
            {"class_texts": {name: ["one"] if name == "Archery" else [name, "two"] for name in NAMES}},
            '"ApplyEyeMakeup" has 2; use --method zero_shot',
        ),
        (
            {"template": "{}, an action"},
            'zar tunes the words in front of a class name, and "ApplyEyeMakeup, an action" does not start with "a video'
            ' of a"; use --method zero_shot',
        ),
        ({"template": "{}"}, '"ApplyEyeMakeup" does not start with'),
        ({"template": "{}", "context": " "}, 'in front of a class name, and "ApplyEyeMakeup" has none'),
        (
            {
                "class_texts": {
                    name: [f"a video of a {name}" if name == "Archery" else f"{name} " * 6] for name in NAMES
                }
            },
            f'"{("ApplyEyeMakeup " * 6)[:80]}…" does not start with "a video of a"',
        ),
        ({"template": "a video of a-{}"}, None),
        ({"template": "a videoof{}"}, '"a videoofApplyEyeMakeup" does not start with "a videoof"'),
    ],
)
def test_what_cannot_be_tuned_is_refused_in_one_line(model, choices, message):
    classes = prompted(model, **choices)
    if message is None:
        classes.require_tunable("zar")
        return
    assert classes.initial_features.shape == (4, 24)
    with pytest.raises(ConfigError) as caught:
        classes.require_tunable("zar")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    context = torch.zeros(4, 64)
    for tune in (
        lambda: classes.initial_context,
        lambda: classes.tokens,
        lambda: classes.features(context),
        lambda: classes.initial_gradients(torch.zeros(1, 4, 24)),
    ):
        with pytest.raises(ConfigError, match="the method tunes"):
            tune()


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([["runs"], []], 'class "jump" has no text'),
        ([["runs"], ["jumps", " _ "]], 'a text of class "jump" is empty'),
        ([["runs", "moves"], ["moves", "Runs"]], 'class names "run" and "jump" read the same'),
        ([["runs"], ["a " * 76]], r'"a a .*…", a text of class "jump", is 78 tokens long and the model reads 77'),
    ],
)
def test_texts_that_cannot_be_used(model, texts, message):
    with pytest.raises(ConfigError, match=message):
        PromptedClasses(model, ["run", "jump"], texts=texts)


def test_texts_go_with_all_classes_and_without_a_position(model):
    with pytest.raises(ValueError, match="zip"):
        PromptedClasses(model, ["run", "jump"], texts=[["runs"]])
    with pytest.raises(ConfigError, match='class position "front" goes without a template'):
        PromptedClasses(model, ["run"], position="front", texts=[["runs"]])


def test_classes_may_share_a_text_but_not_all(model):
    classes = PromptedClasses(model, ["run", "jump"], texts=[["moves", "runs"], ["moves", "jumps"]])
    assert not torch.allclose(*classes.initial_features)


class TestAveragedProbabilities:
    """As ActionCLIP scores: each template's softmax over the classes, then their mean."""

    @pytest.fixture
    def prompts(self):
        return replace(class_prompts(NAMES, "a video of a", template="actionclip"), average="probabilities")

    @pytest.mark.parametrize("shape", [(24,), (3, 24), (2, 3, 24)])
    def test_each_template_has_its_own_softmax(self, model, prompts, shape):
        videos = torch.nn.functional.normalize(torch.randn(shape, generator=torch.Generator().manual_seed(1)), dim=-1)
        found = PromptedClasses.of(model, prompts).initial_logits(videos)
        scores = []
        for template in load_templates("actionclip"):
            one = PromptedClasses.of(model, class_prompts(NAMES, "a video of a", template=template))
            scores.append(one.logits(torch.atleast_2d(videos), one.initial_features).softmax(dim=-1))
        expected = torch.stack(scores).mean(dim=0).reshape(found.shape)
        assert torch.allclose(found.exp(), expected, atol=1e-5)
        by_features = PromptedClasses.of(model, replace(prompts, average="features"))
        assert not torch.allclose(by_features.initial_logits(videos).softmax(dim=-1), expected, atol=1e-5)

    def test_of_one_text_there_is_nothing_to_average(self, model):
        one = class_prompts(NAMES, "a video of a", template="{}, an action")
        video = torch.nn.functional.normalize(torch.randn(24), dim=0)
        found = [
            PromptedClasses.of(model, prompts).initial_logits(video)
            for prompts in (one, replace(one, average="probabilities"))
        ]
        assert torch.equal(*found)

    def test_it_is_part_of_what_a_case_is(self, prompts):
        assert prompts.identity != replace(prompts, average="features").identity

    def test_classes_of_different_numbers_of_texts_are_refused(self, model):
        texts = (("one", "two"), ("three",))
        with pytest.raises(ConfigError, match="needs as many texts as the others; here one has 1 and another 2"):
            PromptedClasses(model, ("a", "b"), texts=texts, average="probabilities")
