import pytest
import torch

from zar_ray.errors import ConfigError
from zar_ray.models.text import PromptedClasses

NAMES = ("Apply_Eye_Makeup", "YoYo", "high jump (athletics)")


def test_untuned_features_are_those_of_the_plain_prompts(model, clip):
    classes = PromptedClasses(model, NAMES)
    prompts = ["a video of a Apply Eye Makeup.", "a video of a YoYo.", "a video of a high jump (athletics)."]
    with torch.no_grad():
        expected = clip.encode_text(model.tokenize(prompts), normalize=True)
    assert torch.equal(classes.token_ids, model.tokenize(prompts))
    assert torch.allclose(classes.initial_features, expected, atol=1e-6)
    assert classes.class_names == NAMES
    assert len(classes) == 3


def test_context_starts_as_the_embeddings_of_its_words(model):
    classes = PromptedClasses(model, NAMES, "a_photo of")
    ids = model.tokenize(["a photo of"])
    assert torch.equal(classes.initial_context, model.embed_tokens(ids)[0, 1:4])


def test_a_context_takes_the_place_of_its_words(model):
    """Tuned to the embeddings of other words, the prompts read as those words."""
    classes, others = (
        PromptedClasses(model, NAMES, "a video of a"),
        PromptedClasses(model, NAMES, "the picture shows one"),
    )
    assert torch.allclose(classes.features(others.initial_context), others.initial_features, atol=1e-6)


def test_logits_are_scaled_cosines(model):
    classes = PromptedClasses(model, NAMES)
    video = torch.nn.functional.normalize(torch.randn(2, 24), dim=-1)
    logits = classes.logits(video, classes.initial_features)
    cosines = torch.nn.functional.cosine_similarity(video[:, None], classes.initial_features[None], dim=-1)
    assert torch.allclose(logits, cosines / 0.07, atol=1e-5)
    assert torch.allclose(classes.logits(video[0], classes.initial_features), logits[0], atol=1e-5)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ((), "no class names are given"),
        (("run", " _ "), "class name 2 of 2 is empty"),
        (("ride bike", "run", "Ride_Bike"), '"ride bike" and "Ride_Bike" read the same'),
        (("run", "run"), '"run" and "run" read the same'),
        (("run", "jump " * 80), r'"a video of a jump jump .* 87 tokens long'),
    ],
)
def test_class_names_that_cannot_be_used(model, names, message):
    with pytest.raises(ConfigError, match=message):
        PromptedClasses(model, names)


@pytest.mark.parametrize("context", ["", " ", "_"])
def test_a_context_needs_words(model, context):
    with pytest.raises(ConfigError, match="context"):
        PromptedClasses(model, NAMES, context)
