"""Batches of videos against the loop over single ones, which the reference holds too in test_zar.py."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize
from zar_by_hand import adapt_zar

from zar_ray.adaptation import zar
from zar_ray.adaptation.base import Decision, VideoFeatures
from zar_ray.adaptation.zar import ZarConfig, adapt_zar_batch
from zar_ray.errors import VideoError
from zar_ray.models.text import PromptedClasses


def video(seed, views, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    rows = normalize(torch.randn(views + 1, 12, generator=generator, dtype=torch.float64), dim=-1).to(dtype)
    return VideoFeatures(rows[:-1], rows[-1])


@pytest.fixture(scope="module")
def double(tiny_model, classes):
    return PromptedClasses(copy.deepcopy(tiny_model).double(), classes.class_names)


@pytest.mark.parametrize(("kind", "tolerance"), [("classes", 2e-3), ("double", 1e-8)])
@settings(max_examples=25, deadline=None)
@given(
    views=st.lists(st.integers(1, 20), min_size=1, max_size=5),
    seed=st.integers(0, 999),
    steps=st.integers(1, 3),
    confidence=st.sampled_from([0.1, 0.5, 0.8, 1.0]),
)
def test_a_batch_decides_as_each_video_alone(request, kind, tolerance, views, seed, steps, confidence):
    classes = request.getfixturevalue(kind)
    options = ZarConfig(steps=steps, confidence=confidence)
    videos = [video(seed + number, count, classes.model.dtype) for number, count in enumerate(views)]
    for one, decision in zip(videos, adapt_zar_batch(videos, classes, options), strict=True):
        expected = adapt_zar(one, classes, options)
        assert isinstance(decision, Decision)
        assert torch.equal(decision.selected, expected.selected)
        assert torch.allclose(decision.view_entropies, expected.view_entropies, atol=1e-5)
        assert torch.allclose(decision.logits_before, expected.logits_before, atol=1e-5)
        assert torch.allclose(decision.losses, expected.losses, atol=tolerance)
        assert torch.allclose(decision.logits_after, expected.logits_after, atol=tolerance)


def test_the_company_of_other_videos_changes_nothing(classes):
    alone = adapt_zar_batch([video(1, 9)], classes, ZarConfig())[0]
    together = adapt_zar_batch([video(0, 30), video(1, 9), video(2, 1)], classes, ZarConfig())[1]
    assert isinstance(alone, Decision)
    assert isinstance(together, Decision)
    assert torch.allclose(alone.logits_after, together.logits_after, atol=1e-4)
    assert torch.equal(alone.selected, together.selected)


def test_what_fails_for_one_video_fails_for_it_alone(classes):
    good = [video(number, 5) for number in range(3)]
    broken = VideoFeatures(good[0].views, good[0].evaluation * torch.nan)
    half_broken = VideoFeatures(torch.cat([good[0].views, good[0].views[:1] * torch.inf]), good[0].evaluation)
    without = VideoFeatures(good[0].views[:0], good[0].evaluation)
    outcomes = adapt_zar_batch([good[0], broken, good[1], half_broken, without, good[2]], classes, ZarConfig())
    reasons = [str(outcome) if isinstance(outcome, VideoError) else None for outcome in outcomes]
    assert reasons == [
        None,
        "logits before adaptation are not finite",
        None,
        "logits of the views are not finite",
        "ZAR needs views, and the plan has none",
        None,
    ]
    assert {outcome.stage for outcome in outcomes if isinstance(outcome, VideoError)} == {"adapt"}
    for outcome, one in zip([outcomes[0], outcomes[2], outcomes[5]], good, strict=True):
        assert torch.allclose(outcome.logits_after, adapt_zar(one, classes, ZarConfig()).logits_after, atol=1e-4)
    assert isinstance(adapt_zar_batch([broken], classes, ZarConfig())[0], VideoError)
    assert adapt_zar_batch([], classes, ZarConfig()) == []


def test_a_step_that_leaves_the_numbers_is_the_videos_failure(classes, monkeypatch):
    """Made so by hand: a layer norm brings back whatever AdamW does to the context."""
    features, factors = classes.features, torch.tensor([1, torch.nan])[:, None, None]
    monkeypatch.setattr(classes, "features", lambda contexts: features(contexts) * factors)
    good, bad = adapt_zar_batch([video(0, 5), video(1, 5)], classes, ZarConfig())
    assert isinstance(good, Decision)
    assert isinstance(bad, VideoError)
    assert str(bad) == "logits after adaptation are not finite"


def test_memory_is_bounded_by_cutting_batches(classes, monkeypatch):
    videos = [video(number, 4) for number in range(7)]
    whole = adapt_zar_batch(videos, classes, ZarConfig(steps=2))
    sizes = []
    together = zar._adapt_together
    monkeypatch.setattr(zar, "_TOKENS_AT_ONCE", 3 * classes.tokens)
    monkeypatch.setattr(zar, "_adapt_together", lambda part, *rest: sizes.append(len(part)) or together(part, *rest))
    cut = adapt_zar_batch(videos, classes, ZarConfig(steps=2))
    assert sizes == [3, 3, 1]
    for one, other in zip(whole, cut, strict=True):
        assert torch.allclose(one.logits_after, other.logits_after, atol=1e-3)


def test_nothing_is_left_behind(classes):
    before = classes.initial_context.clone()
    first = adapt_zar_batch([video(3, 6)], classes, ZarConfig(steps=2))[0]
    adapt_zar_batch([video(4, 6), video(5, 2)], classes, ZarConfig(lr=1.0))
    again = adapt_zar_batch([video(3, 6)], classes, ZarConfig(steps=2))[0]
    assert torch.equal(classes.initial_context, before)
    assert torch.equal(first.logits_after, again.logits_after)


def test_several_evaluation_views_decide_by_their_mean_probability(classes):
    one = video(3, 7)
    views = torch.stack([video(number, 1).evaluation for number in range(3)])
    several = VideoFeatures(one.views, views)
    (batched,) = adapt_zar_batch([several], classes, ZarConfig())
    alone = [adapt_zar(VideoFeatures(one.views, view), classes, ZarConfig()).logits_after for view in views]
    expected = torch.stack(alone).softmax(dim=-1).mean(dim=0)
    assert isinstance(batched, Decision)
    for decision in (batched, adapt_zar(several, classes, ZarConfig())):
        assert torch.allclose(decision.logits_after.softmax(dim=-1), expected, atol=1e-4)
        assert decision.logits_after.shape == (len(classes),)
