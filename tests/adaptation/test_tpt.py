"""TPT against its definition: which pixels its views are, and the update that the reference vectors hold."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import normalize
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms.v2 import functional
from zar_by_hand import adapt_zar

from zar_ray.adaptation.adapter import VideoAdapter
from zar_ray.adaptation.augmix import Draws
from zar_ray.adaptation.base import Decision, Shared, VideoFeatures
from zar_ray.adaptation.random_boxes import random_box
from zar_ray.adaptation.tpt import TptConfig, adapt_tpt, encode_crops, random_view, update_of
from zar_ray.adaptation.zar import ZarConfig, adapt_zar_batch
from zar_ray.data.class_texts import prompts_of
from zar_ray.errors import ModelError, VideoError
from zar_ray.models.clip import ClipModel
from zar_ray.models.text import PromptedClasses
from zar_ray.video.options import ViewConfig
from zar_ray.video.pixels import normalise

NAMES = ("red circle", "green square", "blue bar")
SHARED = Shared(seed=0, encoder_batch=5)


def with_tpt(options, **values):
    return options.model_copy(update={"tpt": TptConfig(**values)})


def box_of(height, width, options, draws):
    return random_box(height, width, options.scale, options.ratio, draws.uniform, draws.below)


def test_a_shape_that_no_frame_has_is_a_line_of_pixels_at_least():
    for ratio in ((1000.0, 1000.0), (0.001, 0.001)):
        _, _, down, across = box_of(224, 224, TptConfig(ratio=ratio), Draws(1))
        assert {down, across} == {1, 224}


@given(
    height=st.integers(16, 300),
    width=st.integers(16, 300),
    low=st.floats(0.05, 1),
    narrow=st.floats(0.2, 1),
    key=st.integers(0, 10**6),
)
def test_a_crop_lies_in_the_frame_and_is_of_the_area_and_shape_asked_for(height, width, low, narrow, key):
    options = TptConfig(scale=(low, 1.0), ratio=(narrow, 1 / narrow))
    top, left, down, across = box_of(height, width, options, Draws(key))
    assert 0 <= top <= top + down <= height
    assert 0 <= left <= left + across <= width
    assert down > 0
    assert across > 0
    slack = 1 + 1 / min(down, across)
    assert narrow / slack**2 <= across / down <= slack**2 / narrow


def test_crops_and_flips_are_spread_as_they_should_be():
    options, boxes = TptConfig(flip=0.25), []
    frames = torch.arange(224, dtype=torch.uint8).expand(1, 3, 224, 224)
    flipped = 0
    for key in range(400):
        boxes.append(box_of(224, 224, options, Draws(key)))
        view = random_view(frames, options, 32, Draws(key))
        flipped += bool(view[0, 0, 0, 0] > view[0, 0, -1, 0])
    areas, shapes = (
        np.array([f(h, w) for _, _, h, w in boxes]) for f in (lambda h, w: h * w / 224**2, lambda h, w: w / h)
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        theirs = [RandomResizedCrop.get_params(frames, list(options.scale), list(options.ratio)) for _ in range(4000)]
    quarters = [0.05, 0.25, 0.5, 0.75, 0.95]
    for ours, expected in (
        (areas, [h * w / 224**2 for _, _, h, w in theirs]),
        (shapes, [w / h for _, _, h, w in theirs]),
    ):
        assert np.quantile(ours, quarters) == pytest.approx(np.quantile(expected, quarters), abs=0.05)
    assert flipped / 400 == pytest.approx(0.25, abs=0.07)


def test_a_view_is_all_frames_under_one_crop(tiny_model, make_pixels):
    options = TptConfig(views=7)
    video = make_pixels(4)
    pixels = video.pixels
    crops = encode_crops(video, tiny_model, options, SHARED)
    assert crops.shape == (6, 3, 12)
    rows = pixels.plan.images[pixels.plan.evaluation, 0]
    frames = torch.tensor(pixels.frames[rows]).permute(0, 3, 1, 2)
    for number, got in enumerate(crops, 1):
        draws = Draws(SHARED.seed, pixels.video_id, "tpt", number)
        box = box_of(*frames.shape[-2:], options, draws)
        cut = functional.resized_crop(frames, *box, [32, 32], antialias=True)
        cut = cut.flip(-1) if draws.uniform() < 0.5 else cut
        expected = tiny_model.encode_images(normalise(cut.permute(0, 2, 3, 1), tiny_model.preprocessing))
        assert torch.allclose(got, expected, atol=1e-5)


def test_view_zero_is_the_evaluation_view_and_the_update_is_zars(tiny_model, classes, make_pixels):
    options = TptConfig(views=9, confidence=0.5, steps=2)
    videos = [make_pixels(seed) for seed in (1, 2)]
    for video, decision in zip(videos, adapt_tpt(videos, classes, options, SHARED), strict=True):
        crops = normalize(encode_crops(video, tiny_model, options, SHARED).mean(dim=1), dim=-1)
        features = VideoFeatures(torch.cat([video.evaluation[None], crops]), video.evaluation)
        expected = adapt_zar(features, classes, ZarConfig(confidence=0.5, steps=2))
        assert isinstance(decision, Decision)
        assert torch.allclose(decision.view_entropies, expected.view_entropies, atol=1e-4)
        assert torch.equal(decision.selected, expected.selected)
        assert torch.allclose(decision.logits_after, expected.logits_after, atol=2e-3)
        assert torch.allclose(decision.logits_before, expected.logits_before, atol=1e-5)
        assert decision.encoded == 8 * 3


def test_a_video_of_one_frame_is_the_papers_picture(tiny_model, classes, make_pixels, small_options):
    options = small_options.model_copy(update={"views": ViewConfig(frames=1, eval_frames=1)})
    (decision,) = adapt_tpt([make_pixels(0, options)], classes, TptConfig(), SHARED)
    assert len(decision.view_entropies) == 64
    assert len(decision.selected) == 6
    assert decision.encoded == 63


def test_the_update_is_the_reference_implementations(golden):
    """The vectors are those of TPT's own code: with its 10 % of the views, tpt's update must give them."""
    arrays, facts = golden.arrays, golden.facts
    classes = PromptedClasses(golden.model, facts["class_names"], facts["context"])
    frames = golden.input("from_frames")
    views = normalize(frames.mean(dim=1), dim=-1)
    assert 0.1 in facts["cases"]["from_frames"]["fractions"]
    for steps in range(1, facts["steps"] + 1):
        video, update = VideoFeatures(views[:-1], views[-1]), update_of(TptConfig(steps=steps))
        (decision,) = adapt_zar_batch([video], classes, update)
        assert np.array_equal(decision.selected, arrays["from_frames/0.1/selected"])
        expected = arrays["from_frames/0.1/logits"][steps - 1].reshape(-1)
        assert np.abs(decision.logits_after.numpy() - expected).max() <= (1e-4 if steps == 1 else 1e-2)


@pytest.mark.parametrize("augmix", [False, True])
def test_the_same_video_gets_the_same_views_wherever_it_is(tiny_model, make_planned, small_options, augmix):
    options = with_tpt(small_options, views=5, augmix=augmix)
    prompts = prompts_of([NAMES], options)

    def logits(*seeds):
        made = VideoAdapter(tiny_model, prompts, ("tpt",), options).predict([make_planned(one) for one in seeds])
        return [one.cases[0].decision.logits_after for one in made]

    alone, first = logits(3)[0], logits(3, 8)[0]
    assert torch.equal(alone, logits(3)[0])
    assert torch.allclose(alone, first, atol=2e-3)
    assert torch.allclose(alone, logits(8, 3)[1], atol=2e-3)
    other = VideoAdapter(tiny_model, prompts, ("tpt",), options.model_copy(update={"seed": 1}))
    entropies = other.predict([make_planned(3)])[0].cases[0].decision.view_entropies
    ours = VideoAdapter(tiny_model, prompts, ("tpt",), options).predict([make_planned(3)])[0].cases[0].decision
    assert torch.isclose(entropies[0], ours.view_entropies[0], atol=1e-5)
    assert not torch.isclose(entropies[1:], ours.view_entropies[1:]).any()


def test_images_are_counted_and_shared(tiny_model, make_planned, small_options):
    options = with_tpt(small_options, views=5)
    prompts = prompts_of([NAMES], options)
    alone = VideoAdapter(tiny_model, prompts, ("tpt",), options).predict([make_planned(3)])[0]
    assert alone.images_encoded == 3 + 4 * 3, "the evaluation view, and four crops of its frames"
    assert alone.cases[0].images == alone.images_encoded
    both = VideoAdapter(tiny_model, prompts, ("zero_shot", "zar", "tpt"), options).predict([make_planned(3)])[0]
    assert both.images_encoded == len(make_planned(3).plan.images) + 4 * 3
    assert torch.equal(both.cases[0].decision.logits_after, both.cases[2].decision.logits_before)
    assert torch.allclose(both.cases[2].decision.logits_after, alone.cases[0].decision.logits_after, atol=2e-3)


def test_what_cannot_be_done_is_said(tiny_model, classes, make_pixels, small_options):
    video = make_pixels(1)
    stored = VideoFeatures(video.views, video.evaluation)
    fine, failure = adapt_tpt([video, stored], classes, TptConfig(views=3), SHARED)
    assert isinstance(fine, Decision)
    assert isinstance(failure, VideoError)
    assert "works from pixels" in str(failure)

    class Joint(ClipModel):
        frame_independent = False

    joint = Joint(tiny_model.clip, "joint", tiny_model.preprocessing, tiny_model.architecture)
    with pytest.raises(ModelError, match="joint: tpt cannot serve it: it encodes the frames of a view together"):
        VideoAdapter(joint, prompts_of([NAMES], small_options), ("tpt",), small_options)


@pytest.mark.parametrize("values", [{"scale": (0.5, 0.1)}, {"scale": (0.5, 1.5)}, {"ratio": (0.0, 1.0)}])
def test_impossible_crops_are_refused(values):
    with pytest.raises(ValueError, match=r"give the smaller first|at most the whole frame"):
        TptConfig(**values)
