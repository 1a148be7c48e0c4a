"""ZERO, MTA, VTE and TPS on videos: what they decide by, on any classes, and what they leave alone."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize

from zar_ray.adaptation.base import Decision, Shared, VideoFeatures
from zar_ray.adaptation.methods import get_method
from zar_ray.adaptation.mta import MtaConfig, find_mode
from zar_ray.adaptation.zero import vote
from zar_ray.errors import VideoError
from zar_ray.models.text import PromptedClasses

NAMES = ("zero", "mta", "vte", "tps")


def video(seed, views=9, width=12):
    drawn = torch.randn(views + 1, width, generator=torch.Generator().manual_seed(seed))
    return VideoFeatures(normalize(drawn[1:], dim=1), normalize(drawn[0], dim=0))


def decide(name, one, classes, **options):
    method = get_method(name)
    (outcome,) = method.adapt([one], classes, method.options(**options), Shared())
    if isinstance(outcome, VideoError):
        raise outcome
    return outcome


@pytest.mark.parametrize("name", NAMES)
def test_equal_views_decide_as_the_evaluation_view(classes, name):
    plain = video(1).evaluation
    same = VideoFeatures(plain.expand(7, -1), plain)
    found = decide(name, same, classes)
    assert found.logits_after.argmax() == found.logits_before.argmax()
    if name in ("mta", "vte"):
        assert torch.allclose(found.logits_after, found.logits_before, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_no_video_depends_on_the_others_and_nothing_is_kept(classes, name):
    method, many = get_method(name), [video(seed) for seed in range(4)]
    together = method.adapt(many, classes, method.options(), Shared())
    alone = [method.adapt([one], classes, method.options(), Shared())[0] for one in reversed(many)]
    for one, other in zip(together, reversed(alone), strict=True):
        assert torch.equal(one.logits_after, other.logits_after)


@pytest.mark.parametrize("name", NAMES)
def test_one_view_and_one_class_are_enough(tiny_model, name):
    classes = PromptedClasses(tiny_model, ["run"])
    lone = VideoFeatures(torch.empty(0, 12), video(2).evaluation)
    assert torch.isfinite(decide(name, lone, classes).logits_after).all()


@pytest.mark.parametrize("name", NAMES)
def test_what_is_not_finite_is_the_videos_error(classes, name):
    broken = VideoFeatures(torch.full((3, 12), torch.nan), video(1).evaluation)
    with pytest.raises(VideoError, match="not finite"):
        decide(name, broken, classes)


@pytest.mark.parametrize("name", NAMES)
def test_an_evaluation_view_that_is_not_finite_is_the_videos_error_wherever_it_stands(classes, name):
    whole = video(1)
    several = torch.stack([whole.evaluation, whole.evaluation * torch.nan])
    with pytest.raises(VideoError, match="not finite"):
        decide(name, VideoFeatures(whole.views, several), classes)


def test_a_mode_that_no_view_is_near_is_the_videos_error(classes):
    centre = normalize(torch.randn(12, generator=torch.Generator().manual_seed(2)), dim=0)
    apart = VideoFeatures(torch.cat([-centre.expand(30, -1), centre.expand(1, -1)]), centre)
    with pytest.raises(VideoError, match="not finite"):
        decide("mta", apart, classes, inlierness=1e-4, affinity=1e4)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("average", ["features", "probabilities"])
def test_several_texts_a_class_do(tiny_model, name, average):
    texts = [("a red circle", "circle, red"), ("a dot", "one dot"), ("bars", "a bar")]
    classes = PromptedClasses(tiny_model, ["red circle", "dot", "bar"], texts=texts, average=average)
    found = decide(name, video(3), classes)
    assert isinstance(found, Decision)
    assert found.logits_after.shape == (3,)


def test_votes_are_counts_and_their_shares_the_probabilities(classes):
    found = decide("zero", video(4, views=19), classes, confidence=0.5)
    shares = found.logits_after.softmax(dim=0) * 10
    assert torch.allclose(shares, shares.round(), atol=1e-4)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 24), st.integers(2, 9), st.floats(0.05, 1.0))
def test_a_vote_is_of_the_confident_views_and_a_tie_is_broken_once(seed, views, count, confidence):
    cosines = torch.rand(views, count, generator=torch.Generator().manual_seed(seed))
    ballot = vote(20 * cosines, cosines, confidence)
    tops = cosines[ballot.selected].argmax(dim=1)
    assert torch.allclose(ballot.votes, torch.bincount(tops, minlength=count).float())
    broken = len(ballot.tied) > 1 and len(ballot.selected) < views
    assert float((ballot.decided - ballot.votes).sum()) == pytest.approx(float(broken))
    if broken:
        others = cosines[ballot.order[len(ballot.selected) :]].argmax(dim=1)
        agreeing = [int(top) for top in others if int(top) in ballot.tied.tolist()]
        if agreeing:
            assert int(ballot.decided.argmax()) == agreeing[0]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 60))
def test_the_mode_is_among_the_views_and_any_order_of_the_others_gives_it(seed, views):
    generator = torch.Generator().manual_seed(seed)
    features = normalize(torch.randn(8, generator=generator) + 0.4 * torch.randn(views, 8, generator=generator), dim=1)
    logits = 20 * features @ normalize(torch.randn(8, 5, generator=generator), dim=0)
    found = find_mode(features.double(), logits.double(), MtaConfig())
    assert found.modes[-1].norm() == pytest.approx(1)
    assert found.inlierness.sum(dim=1).allclose(found.inlierness.new_ones(5))
    order = torch.cat([torch.zeros(1, dtype=torch.int64), 1 + torch.randperm(views - 1, generator=generator)])
    again = find_mode(features[order].double(), logits[order].double(), MtaConfig())
    assert torch.allclose(again.modes[-1], found.modes[-1], atol=1e-5)


def test_an_outlier_weighs_next_to_nothing():
    generator = torch.Generator().manual_seed(1)
    centre = torch.randn(8, generator=generator)
    views = normalize(centre + 0.2 * torch.randn(20, 8, generator=generator), dim=1)
    views[7] = normalize(-centre, dim=0)
    texts = normalize(torch.stack([centre, -centre, torch.randn(8, generator=generator)]), dim=1)
    found = find_mode(views, 50 * views @ texts.T, MtaConfig())
    assert found.weights[7] < 1e-3 * found.weights.max()


def test_a_shift_lowers_the_entropy_and_leaves_the_classes_alone(classes):
    before = classes.initial_features.clone()
    found = decide("tps", video(5), classes, steps=4, lr=0.02)
    assert found.losses is not None
    assert found.losses[-1] < found.losses[0]
    assert torch.equal(classes.initial_features, before)
