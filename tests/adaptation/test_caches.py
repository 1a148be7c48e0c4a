"""BoostAdapter, DMN and DPE against their rules written out with lists, and on any videos, classes and models."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save
from torch.nn.functional import normalize

from zar_ray.adaptation.adapter import VideoAdapter
from zar_ray.adaptation.base import Shared, VideoFeatures, entropy
from zar_ray.adaptation.boostadapter import BoostAdapterConfig, BoostAdapterStream
from zar_ray.adaptation.caches import ConfidentCache
from zar_ray.adaptation.dmn import DmnConfig, DmnStream, weighted_sum
from zar_ray.adaptation.dpe import DpeConfig, DpeStream
from zar_ray.adaptation.methods import get_method
from zar_ray.adaptation.options import AdaptationOptions
from zar_ray.data.class_texts import prompts_of
from zar_ray.data.options import PromptOptions
from zar_ray.errors import ModelError, VideoError
from zar_ray.models.architecture import build_clip
from zar_ray.models.clip import ClipModel
from zar_ray.models.text import PromptedClasses
from zar_ray.video.options import ViewConfig
from zar_ray.video.transforms import Preprocessing

NAMES = ("boostadapter", "dmn", "dpe")
# By method and besides the defaults: a small memory, negative caches that fill, prototypes that move with each video.
EAGER = {
    "boostadapter": {"decision": "selected", "lent_capacity": 2, "lent": 0.4, "negative_entropy": (0.0, 1.0)},
    "dmn": {"capacity": 2, "confidence": 0.4},
    "dpe": {"tuned_on": "evaluation", "sure_below": 1.0, "text_lr": 0.05},
}


def videos(seed, count, views=7, evaluations=0):
    """Videos whose views are alike; of one evaluation view, or of several."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(count, 1, 12, generator=generator)
    rows = normalize(centres + torch.randn(count, views + max(1, evaluations), 12, generator=generator), dim=-1)
    return [VideoFeatures(one[:views], one[views:] if evaluations else one[views]) for one in rows]


def open_stream(name, classes, **options):
    method = get_method(name)
    return method.open_stream(classes, method.options(**options), Shared())


def held(stream):
    return {name: value.clone() for name, value in stream.state().items()}


def confident(rows, share):
    """Rows of logits by entropy, so many of them."""
    order = sorted(range(len(rows)), key=lambda row: float(entropy(rows[row])))
    return order[: max(1, int(len(rows) * share))]


def boosted_by_hand(classes, given_videos, own):
    texts, log_k = classes.initial_features, math.log2(len(classes))
    positive, negative, decided = {}, {}, []
    for video in given_videos:
        rows = torch.cat([video.evaluation[None], video.views])
        logits = classes.logits(rows, texts)
        feature, start, p = rows[0], logits[0], logits[0].softmax(dim=0)
        if own.decision == "selected":
            chosen = confident(logits, own.confidence)
            feature, start = rows[chosen].mean(dim=0), logits[chosen].mean(dim=0)
            p = logits[chosen].softmax(dim=1).mean(dim=0)
        h, best = float(-(p * p.log()).sum()), int(start.argmax())

        def put(cache, of, entry, capacity):
            kept = sorted([*cache.get(of, []), entry], key=lambda one: one[0])
            cache[of] = kept[:capacity]

        put(positive, best, (h, feature), own.positive_capacity)
        low, high = own.negative_entropy
        if low < h / log_k < high:
            negative[best] = [*negative.get(best, []), (feature, p)][-own.negative_capacity :]
        copy = {of: list(kept) for of, kept in positive.items()}
        for view in confident(logits, own.lent):
            entry = float(entropy(logits[view])), rows[view]
            put(copy, int(logits[view].argmax()), entry, own.positive_capacity + own.lent_capacity)
        after = start.clone()
        for of, kept in copy.items():
            for _, key in kept:
                after[of] += own.positive_weight * math.exp(-own.positive_sharpness * (1 - key @ feature))
        for kept in negative.values():
            for key, of_key in kept:
                mask = (of_key > own.negative_mask[0]) & (of_key < own.negative_mask[1])
                after -= own.negative_weight * math.exp(-own.negative_sharpness * (1 - key @ feature)) * mask
        decided.append(after)
    return decided


def recalled_by_hand(classes, given_videos, own):
    texts = classes.initial_features
    memory, decided = [[] for _ in texts], []
    for video in given_videos:
        x = video.evaluation
        logits = classes.logits(torch.cat([x[None], video.views]), texts)
        p = logits.softmax(dim=1)
        doubts = -(p * (p + 1e-6).log()).sum(dim=1)
        chosen = sorted(range(len(p)), key=lambda row: float(doubts[row]))[: max(1, int(len(p) * own.confidence))]
        mean = p[chosen].mean(dim=0)
        entries = memory[int(mean.argmax())]
        entry = float(-(mean * (mean + 1e-8).log()).sum()), x
        entries.append(entry)
        if len(entries) > own.capacity:
            entries.remove(max(entries, key=lambda one: one[0]))
        read = []
        for of, text in zip(memory, texts, strict=True):
            rows = torch.stack([*(feature for _, feature in of), text])
            weights = (-own.sharpness * (1 - rows @ x)).exp()
            read.append(normalize(weights @ rows, dim=0))
        decided.append(logits[0].softmax(dim=0) + own.weight * classes.logits(x, torch.stack(read)).softmax(dim=0))
    return decided


def evolved_by_hand(classes, given_videos, own):
    """With the optimiser that the authors name, and prototypes as a dictionary."""
    prototypes, updates, cache, decided = classes.initial_features, 0, {}, []
    log_k, scale = math.log2(len(classes)), classes.model.logit_scale
    for video in given_videos:
        rows = torch.cat([video.evaluation[None], video.views])
        if own.tuned_on == "evaluation":
            rows = rows[:1]
        of_texts = torch.zeros_like(prototypes, requires_grad=True)
        logits = scale * rows @ normalize(prototypes + of_texts, dim=1).T
        chosen = confident(logits.detach(), own.confidence)
        mean, feature = logits[chosen].mean(dim=0), rows[chosen].mean(dim=0)
        p = logits[chosen].softmax(dim=1).mean(dim=0).detach()
        entries = cache.setdefault(int(mean.argmax()), [])
        entries.append((float(-(p * p.log()).sum()) / log_k, feature))
        entries.sort(key=lambda one: one[0])
        del entries[own.capacity :]
        of_classes = sorted(cache)
        means = torch.stack([torch.stack([key for _, key in cache[of]]).mean(dim=0) for of in of_classes])
        of_images = torch.zeros_like(means, requires_grad=True)

        def scored(start, x, of_classes=of_classes, means=means, of_images=of_images):
            near = own.weight * (-own.sharpness * (1 - normalize(means + of_images, dim=1) @ x)).exp()
            return start + torch.eye(len(start))[of_classes].T @ near

        image, text = normalize(means + of_images, dim=1), normalize(prototypes + of_texts, dim=1)[of_classes]
        toward = -(image @ text.T / own.temperature).log_softmax(dim=1).diagonal().mean()
        (entropy(scored(mean, feature)) + own.alignment * toward).backward()
        groups = [{"params": [of_texts], "lr": own.text_lr}, {"params": [of_images], "lr": own.image_lr}]
        torch.optim.AdamW(groups, eps=own.eps, weight_decay=0.1).step()
        with torch.no_grad():
            moved = normalize(prototypes + of_texts, dim=1)
            logits = scale * rows @ moved.T
            if own.decision == "selected":
                chosen = confident(logits, own.confidence)
                after = scored(logits[chosen].mean(dim=0), rows[chosen].mean(dim=0))
            else:
                after = scored(logits[0], rows[0])
            if float(entropy(after)) / log_k < own.sure_below:
                updates += 1
                prototypes = (prototypes * updates + moved) / (updates + 1)
        decided.append(after)
    return decided


@settings(max_examples=8, deadline=None)
@given(
    st.integers(0, 999),
    st.integers(0, 11),
    st.builds(
        BoostAdapterConfig,
        decision=st.sampled_from(["evaluation", "selected"]),
        confidence=st.sampled_from([0.1, 0.4]),
        lent=st.sampled_from([0.3, 1.0]),
        lent_capacity=st.integers(0, 3),
        positive_capacity=st.integers(1, 3),
        negative_capacity=st.integers(1, 2),
        negative_entropy=st.sampled_from([(0.2, 0.5), (0.0, 0.7)]),
    ),
)
def test_boostadapter_is_the_rule(classes, seed, views, own):
    given_videos = videos(seed, 15, views)
    stream = BoostAdapterStream(classes, own, Shared())
    for video, expected in zip(given_videos, boosted_by_hand(classes, given_videos, own), strict=True):
        decision = stream.decide(video)
        assert torch.allclose(decision.logits_after, expected, atol=1e-4)
        assert torch.equal(decision.logits_before, classes.logits(video.evaluation, classes.initial_features))


@settings(max_examples=8, deadline=None)
@given(
    st.integers(0, 999),
    st.integers(0, 11),
    st.builds(
        DmnConfig,
        confidence=st.sampled_from([0.1, 0.4]),
        capacity=st.integers(1, 4),
        sharpness=st.floats(0, 9),
        weight=st.sampled_from([0.0, 0.3, 1.0, 10.0]),
    ),
)
def test_dmn_is_the_rule(classes, seed, views, own):
    given_videos = videos(seed, 15, views)
    stream = DmnStream(classes, own, Shared())
    for video, expected in zip(given_videos, recalled_by_hand(classes, given_videos, own), strict=True):
        shares = stream.decide(video).logits_after.softmax(dim=0)
        assert torch.allclose(shares * (1 + own.weight), expected, atol=1e-4)


@settings(max_examples=5, deadline=None)
@given(
    st.integers(0, 999),
    st.integers(0, 11),
    st.builds(
        DpeConfig,
        tuned_on=st.sampled_from(["selected", "evaluation"]),
        decision=st.sampled_from(["selected", "evaluation"]),
        confidence=st.sampled_from([0.1, 0.4]),
        capacity=st.integers(1, 3),
        text_lr=st.sampled_from([6e-4, 0.01]),
        image_lr=st.sampled_from([6e-4, 0.01]),
        alignment=st.sampled_from([0.0, 0.5, 2.5]),
        sure_below=st.sampled_from([0.1, 0.5]),
    ),
)
def test_dpe_is_the_rule(classes, seed, views, own):
    given_videos = videos(seed, 10, views)
    stream = DpeStream(classes, own, Shared())
    for video, expected in zip(given_videos, evolved_by_hand(classes, given_videos, own), strict=True):
        assert torch.allclose(stream.decide(video).logits_after, expected, atol=1e-3)


@pytest.mark.parametrize("options", [{}, EAGER], ids=["default", "eager"])
@pytest.mark.parametrize("name", NAMES)
def test_it_goes_on_from_its_saved_state_to_the_same_bits(classes, name, options):
    own, given_videos = options.get(name, {}), videos(2, 24)
    whole = open_stream(name, classes, **own)
    expected = [whole.decide(video).logits_after for video in given_videos]
    first = open_stream(name, classes, **own)
    for at, video in enumerate(given_videos):
        if at % 5 == 0:
            saved, first = save(first.state()), open_stream(name, classes, **own)
            first.restore(load(saved))
        assert torch.equal(first.decide(video).logits_after, expected[at])
    assert all(torch.equal(value, whole.state()[part]) for part, value in first.state().items())


@pytest.mark.parametrize("name", NAMES)
def test_the_order_counts_and_a_stream_of_its_own_starts_anew(classes, name):
    method, given_videos = get_method(name), videos(1, 16)
    told = classes, method.options(**EAGER[name]), Shared()
    first, again = (method.adapt(given_videos, *told) for _ in range(2))
    assert all(torch.equal(a.logits_after, b.logits_after) for a, b in zip(first, again, strict=True))
    other = method.adapt(given_videos[::-1], *told)[::-1]
    assert any(not torch.equal(a.logits_after, b.logits_after) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_a_video_that_fails_leaves_no_trace(classes, name):
    stream, (good, *_) = open_stream(name, classes, **EAGER[name]), videos(3, 1)
    stream.decide(good)
    before = held(stream)
    broken = [VideoFeatures(good.views, good.evaluation * torch.nan)]
    if name != "dpe":  # which looks at the evaluation view alone here
        broken.append(VideoFeatures(good.views * torch.inf, good.evaluation))
    for video in broken:
        with pytest.raises(VideoError, match="not finite"):
            stream.decide(video)
        assert all(torch.equal(value, before[part]) for part, value in stream.state().items())


@pytest.mark.parametrize("name", NAMES)
def test_a_state_is_not_written_to_by_later_videos(classes, name):
    stream = open_stream(name, classes, **EAGER[name])
    for video in videos(5, 6):
        state = stream.state()
        before = {part: value.clone() for part, value in state.items()}
        stream.decide(video)
        assert all(torch.equal(value, before[part]) for part, value in state.items())


@pytest.mark.parametrize("name", NAMES)
def test_one_class_and_one_view_are_enough(tiny_model, name):
    stream = open_stream(name, PromptedClasses(tiny_model, ["run"]))
    for video in videos(4, 5, views=0):
        assert torch.isfinite(stream.decide(video).logits_after).all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("average", ["features", "probabilities"])
def test_several_evaluation_views_and_several_texts_a_class_do(tiny_model, name, average):
    texts = [("a red circle", "circle, red"), ("a dot", "one dot"), ("bars", "a bar")]
    classes = PromptedClasses(tiny_model, ["red circle", "dot", "bar"], texts=texts, average=average)
    stream = open_stream(name, classes)
    for video in videos(6, 6, evaluations=3):
        found = stream.decide(video)
        assert found.logits_before.shape == found.logits_after.shape == (3,)
        assert torch.isfinite(found.logits_after).all()


@pytest.fixture(scope="module")
def following():
    """A model whose texts follow the video, as X-CLIP's do."""
    torch.manual_seed(6)
    architecture = {
        "embed_dim": 16,
        "quick_gelu": True,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
        "text_cfg": {"width": 16, "heads": 2, "layers": 1},
        "cross_frames": {"frames": 2, "layers": 1, "prompt_layers": 1},
    }
    clip = build_clip(architecture)
    with torch.no_grad():
        clip.fusion.prompts_generator.alpha.fill_(0.5)
    return ClipModel(clip, "following", Preprocessing(32), architecture)


@pytest.mark.parametrize("name", ["boostadapter", "dmn"])
def test_texts_that_follow_the_video_do(following, name):
    classes = PromptedClasses(following, ["red circle", "dot", "bar"])
    torch.manual_seed(1)
    frames = torch.randn(8, 5, 2, following.encode_images(torch.zeros(2, 3, 32, 32)).shape[-1])
    stream = open_stream(name, classes, **EAGER[name])
    for rows in following.view_features(frames):
        found = stream.decide(VideoFeatures(rows[1:], rows[0]))
        assert torch.equal(found.logits_before, classes.initial_logits(rows[0]))
        assert torch.isfinite(found.logits_after).all()
    kept = next(value for part, value in stream.state().items() if part.endswith(("keys", "features")))
    assert kept.shape[-1] == 16


def test_text_prototypes_are_not_carried_where_texts_follow_the_video(following):
    options = AdaptationOptions(method=("dpe",), views=ViewConfig(frames=2, eval_frames=2))
    with pytest.raises(ModelError, match="dpe cannot serve it: its texts follow the video"):
        VideoAdapter(following, prompts_of([["dot", "bar"]], PromptOptions()), ["dpe"], options)


def test_a_memory_grows_with_its_fullest_class_and_no_further(classes):
    stream = open_stream("dmn", classes, capacity=3)
    for video in videos(7, 40):
        stream.decide(video)
        state = stream.state()
        assert state["features"].shape[1] == int(state["counts"].max()) <= 3
        empty = torch.arange(state["features"].shape[1]) >= state["counts"][:, None]
        assert not state["features"][empty].any()


@given(st.integers(0, 999), st.floats(0, 20))
def test_a_sum_of_probabilities_is_made_of_logits(seed, weight):
    one, other = 30 * torch.randn(2, 6, generator=torch.Generator().manual_seed(seed))
    expected = (one.softmax(dim=0) + weight * other.softmax(dim=0)) / (1 + weight)
    assert torch.allclose(weighted_sum(one, other, weight).exp(), expected, atol=1e-5)


def test_a_lent_copy_has_more_places_and_the_cache_stays():
    cache = ConfidentCache.empty(2, 2, torch.zeros(3))
    for number in (3.0, 1.0, 2.0):
        cache.offer(1, torch.full((3,), number), torch.tensor(number))
    copy = cache.copy(1)
    copy.offer(1, torch.full((3,), 9.0), torch.tensor(9.0))
    copy.offer(0, torch.full((3,), 5.0), torch.tensor(5.0))
    assert copy.keys[1, :, 0].tolist() == [1, 2, 9]
    assert copy.counts.tolist() == [1, 3]
    assert cache.keys[1, :, 0].tolist() == [1, 2]
    assert cache.counts.tolist() == [0, 2]
