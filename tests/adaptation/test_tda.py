"""TDA against the rule written out with lists, as the paper describes it."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize

from zar_ray.adaptation.base import Shared, VideoFeatures, entropy
from zar_ray.adaptation.methods import get_method
from zar_ray.adaptation.tda import TdaConfig, TdaStream
from zar_ray.errors import VideoError


def videos(seed, count):
    generator = torch.Generator().manual_seed(seed)
    return [
        VideoFeatures(torch.empty(0, 12), normalize(torch.randn(12, generator=generator), dim=-1)) for _ in range(count)
    ]


def by_hand(classes, given_videos, own):
    """Dictionaries of lists, sorted by entropy, as one would write it first."""
    positive, negative, decided = {}, {}, []
    for video in given_videos:
        logits = classes.logits(video.evaluation, classes.initial_features)
        p, h = logits.softmax(dim=0), float(entropy(logits))
        best = int(p.argmax())

        def put(cache, capacity, best=best, entry=(h, video.evaluation, p)):
            held = cache.setdefault(best, [])
            if len(held) < capacity:
                held.append(entry)
            elif held and entry[0] < held[-1][0]:
                held[-1] = entry
            held.sort(key=lambda one: one[0])

        put(positive, own.positive_capacity)
        low, high = own.negative_entropy
        if low < h / math.log2(len(p)) < high:
            put(negative, own.negative_capacity)
        for name, held in positive.items():
            for _, feature, _ in held:
                logits[name] += own.positive_weight * math.exp(
                    -own.positive_sharpness * (1 - feature @ video.evaluation)
                )
        for held in negative.values():
            for _, feature, of in held:
                mask = (of > own.negative_mask[0]) & (of < own.negative_mask[1])
                near = math.exp(-own.negative_sharpness * (1 - feature @ video.evaluation))
                logits -= own.negative_weight * near * mask
        decided.append(logits)
    return decided


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 999),
    own=st.builds(
        TdaConfig,
        positive_capacity=st.integers(0, 3),
        negative_capacity=st.integers(0, 2),
        negative_entropy=st.sampled_from([(0.2, 0.5), (0.0, 0.7), (0.0, 0.2)]),
    ),
)
def test_it_is_the_rule(classes, seed, own):
    given_videos = videos(seed, 25)
    stream = TdaStream(classes, own, Shared())
    for video, expected in zip(given_videos, by_hand(classes, given_videos, own), strict=True):
        decision = stream.decide(video)
        assert torch.allclose(decision.logits_after, expected, atol=1e-4)
        assert torch.equal(decision.logits_before, classes.logits(video.evaluation, classes.initial_features))


def test_the_same_order_gives_the_same_and_another_order_another(classes):
    adapt, given_videos = get_method("tda").adapt, videos(1, 30)
    first, again = (adapt(given_videos, classes, TdaConfig(), Shared()) for _ in range(2))
    assert all(torch.equal(a.logits_after, b.logits_after) for a, b in zip(first, again, strict=True))
    other = adapt(given_videos[::-1], classes, TdaConfig(), Shared())[::-1]
    assert any(not torch.equal(a.logits_after, b.logits_after) for a, b in zip(first, other, strict=True))


def test_it_goes_on_from_its_state(classes):
    given_videos = videos(2, 20)
    stream = TdaStream(classes, TdaConfig(), Shared())
    for video in given_videos[:10]:
        stream.decide(video)
    state = {name: value.clone() for name, value in stream.state().items()}
    expected = [stream.decide(video).logits_after for video in given_videos[10:]]
    other = TdaStream(classes, TdaConfig(), Shared())
    other.restore(state)
    assert all(torch.equal(other.decide(v).logits_after, e) for v, e in zip(given_videos[10:], expected, strict=True))


def test_a_video_that_fails_leaves_no_trace(classes):
    stream, (good, *_) = TdaStream(classes, TdaConfig(), Shared()), videos(3, 1)
    stream.decide(good)
    before = {name: value.clone() for name, value in stream.state().items()}
    with pytest.raises(VideoError, match="not finite"):
        stream.decide(VideoFeatures(good.views, good.evaluation * torch.nan))
    assert all(torch.equal(value, before[name]) for name, value in stream.state().items())


def test_a_video_that_there_is_no_room_for_leaves_no_trace(classes, monkeypatch):
    stream, (good, next_one) = TdaStream(classes, TdaConfig(), Shared()), videos(3, 2)
    stream.decide(good)
    before = {name: value.clone() for name, value in stream.state().items()}

    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch, "einsum", full)
    with pytest.raises(torch.OutOfMemoryError):
        stream.decide(next_one)
    assert all(torch.equal(value, before[name]) for name, value in stream.state().items())


def test_several_evaluation_views_are_cached_as_their_mean(classes):
    rows = torch.stack([video.evaluation for video in videos(4, 3)])
    stream = TdaStream(classes, TdaConfig(), Shared())
    stream.decide(VideoFeatures(torch.empty(0, 12), rows))
    kept = stream.state()["positive/keys"]
    assert torch.allclose(kept[kept.abs().sum(dim=-1) > 0], normalize(rows.mean(dim=0), dim=-1)[None])
