"""Methods whose passes do not fit decide as they would with more memory; injected, as a test cannot fill a GPU."""

from __future__ import annotations

import gc
import random
import weakref
from dataclasses import replace

import pytest
import torch
from refused_operations import Refusing

from zar_ray.adaptation.adapter import VideoAdapter
from zar_ray.adaptation.base import Decision, Shared
from zar_ray.adaptation.memo import MemoConfig, open_memo
from zar_ray.adaptation.methods import METHODS
from zar_ray.adaptation.tent import TentConfig, open_tent
from zar_ray.adaptation.tpt import TptConfig, encode_crops
from zar_ray.adaptation.weights import MovingStream, MovingTower
from zar_ray.adaptation.zar import ZarConfig, adapt_zar_batch
from zar_ray.data.class_texts import prompts_of
from zar_ray.errors import DeviceLostError, NoRoomError
from zar_ray.models.clip import ClipModel
from zar_ray.models.fitting import Fitting
from zar_ray.models.text import PromptedClasses

NAMES = ("red circle", "green square", "blue bar")


class Limited(ClipModel):
    """Has room for so many images a pass."""

    room = 10**6

    def __init__(self, model):
        super().__init__(model.clip, model.name, model.preprocessing, model.architecture)
        self.passes = []

    def encode_images(self, pixels):
        if len(pixels) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        self.passes.append(len(pixels))
        return super().encode_images(pixels)


@pytest.fixture
def limited(tiny_model):
    return Limited(tiny_model)


@pytest.fixture
def few_texts(monkeypatch):
    """Room for so many videos a pass of the text tower; gives those that did not fit, with their features."""

    def make(room):
        asked, features = [], PromptedClasses.features

        def limited_features(self, contexts):
            assert not any(held() is not None for _, held in asked), "what did not fit is free by now"
            if contexts.ndim == 3 and len(contexts) > room:
                made = features(self, contexts)
                asked.append((len(contexts), weakref.ref(made)))
                raise torch.OutOfMemoryError("CUDA out of memory")
            return features(self, contexts)

        monkeypatch.setattr(PromptedClasses, "features", limited_features)
        return asked

    return make


@pytest.mark.parametrize(("videos", "room", "steps"), [(7, 3, 1), (5, 1, 2), (4, 3, 2)])
def test_fewer_videos_are_tuned_to_together(limited, make_pixels, few_texts, videos, room, steps):
    classes, update = PromptedClasses(limited, NAMES), ZarConfig(steps=steps)
    given = [make_pixels(seed) for seed in range(videos)]
    expected = adapt_zar_batch(given, classes, update)
    failed = few_texts(room)
    gc.collect()
    gc.disable()
    try:
        for one, other in zip(adapt_zar_batch(given, classes, update), expected, strict=True):
            assert isinstance(one, Decision)
            assert torch.allclose(one.logits_after, other.logits_after, atol=2e-3)
            assert torch.equal(one.selected, other.selected)
        assert failed
        tries = len(failed)
        adapt_zar_batch(given, classes, update)
        assert len(failed) == tries, "the number is remembered"
    finally:
        gc.enable()


def test_a_video_that_does_not_fit_alone_is_told_the_way_out(limited, make_pixels, few_texts):
    classes = PromptedClasses(limited, NAMES)
    assert len(classes.initial_features) == 3
    few_texts(0)
    outcomes = adapt_zar_batch([make_pixels(1), make_pixels(2)], classes, ZarConfig())
    assert [type(one) for one in outcomes] == [NoRoomError] * 2
    assert str(outcomes[0]) == (
        "out of memory tuning the context of one video over 3 classes; leave the process more memory (fewer of them on"
        " a device), or take a smaller model, or fewer classes"
    )


@pytest.mark.parametrize("room", [7, 2, 1])
@pytest.mark.parametrize("augmix", [False, True])
def test_tpts_crops_are_the_same_in_smaller_passes(limited, make_pixels, room, augmix):
    video, options, shared = make_pixels(3), TptConfig(views=5, augmix=augmix), Shared(encoder_batch=8)
    expected = encode_crops(video, limited, options, shared)
    limited.room, limited.passes = room, []
    assert torch.allclose(encode_crops(video, limited, options, shared), expected, atol=1e-5)
    assert sum(limited.passes) >= 12
    assert max(limited.passes) <= room
    limited.room = 0
    with pytest.raises(NoRoomError, match="one of TPT's crops by itself"):
        encode_crops(video, limited, options, shared)


@pytest.fixture
def few_moving(monkeypatch):
    """Room for so many images a pass of a moving tower; memory runs out after a pass that has left its gradients."""

    def make(room):
        encode, passes = MovingTower.encode, []

        def limited_encode(self, pixels):
            found = encode(self, pixels)
            if not found.requires_grad:
                return found
            passes.append(len(pixels))
            if len(pixels) > room and len(passes) > 1:

                def full(_, weights=self.weights):
                    for one in weights.values():  # as where some layers had added theirs by then
                        one.grad = torch.full_like(one, 1e3)
                    raise torch.OutOfMemoryError("CUDA out of memory")

                found.register_hook(full)
            return found

        monkeypatch.setattr(MovingTower, "encode", limited_encode)
        return passes

    return make


@pytest.mark.parametrize("kind", ["memo", "tent"])
def test_a_towers_gradients_are_the_same_in_smaller_passes(limited, make_pixels, few_moving, kind):
    classes, video, shared = PromptedClasses(limited, NAMES), make_pixels(4), Shared(encoder_batch=3)

    def decide():
        if kind == "memo":
            return open_memo(classes, MemoConfig(lr=1e-3, steps=2, optimiser="sgd"), shared).decide(video)
        return open_tent(classes, TentConfig(lr=1e-2, steps=2), shared).decide(video)

    expected = decide()
    passes = few_moving(1)
    found = decide()
    assert passes[:2] == [3, 3]
    assert torch.allclose(found.logits_after, expected.logits_after, atol=1e-3)
    assert torch.allclose(found.losses, expected.losses, atol=1e-4)
    assert limited.moving_passes.of(3) == 1
    assert limited.image_passes.of(3) == 3, "what passes without gradients is another matter"


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("no room"), RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED")]
)
def test_a_method_that_does_not_fit_leaves_the_others_their_decisions(
    limited, make_planned, small_options, monkeypatch, error
):
    def full(self, *_):
        raise error

    monkeypatch.setattr(MovingTower, "__init__", full)
    adapter = VideoAdapter(limited, prompts_of([NAMES], small_options), ("zar", "memo"), small_options)
    (outcome,) = adapter.predict([make_planned(1)])
    assert isinstance(outcome, NoRoomError)
    assert str(outcome).startswith("out of memory in memo over 3 classes; leave the process more memory")
    alone = VideoAdapter(limited, prompts_of([NAMES], small_options), ("zar",), small_options)
    assert alone.predict([make_planned(1)])[0].cases


def test_a_video_that_a_method_has_no_room_for_leaves_the_others_theirs(
    limited, make_planned, small_options, monkeypatch
):
    decide = MovingStream.decide

    def full_of_one(self, video):
        if video.pixels.video_id == "noise/2.mp4":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return decide(self, video)

    monkeypatch.setattr(MovingStream, "decide", full_of_one)
    adapter = VideoAdapter(limited, prompts_of([NAMES], small_options), ("memo",), small_options)
    first, bad, last = adapter.predict([make_planned(seed) for seed in (1, 2, 3)])
    assert isinstance(bad, NoRoomError)
    for seed, found in ((1, first), (3, last)):
        (alone,) = adapter.predict([make_planned(seed)])
        assert torch.allclose(found.cases[0].decision.logits_after, alone.cases[0].decision.logits_after, atol=1e-4)


def test_a_lost_device_is_no_videos_failure(limited, make_planned, small_options):
    def lost(pixels):
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    limited.encode_images = lost
    adapter = VideoAdapter(limited, prompts_of([NAMES], small_options), ("zar",), small_options)
    with pytest.raises(DeviceLostError):
        adapter.predict([make_planned(1)])


@pytest.fixture
def make_adapter(tiny_model, small_options):
    """An adapter of one method, as a stream or not, with passes of any size; None where the method is no such thing."""

    def make(name, stream):
        told = {"method": (name,), "onzeta": {"videos": 5}, "tpt": {"views": 4}, "rtpt": {"neighbours": 3}}
        own = METHODS[name].options
        if own is not None and "stream" in own.model_fields:
            told[name] = {"stream": stream}
        elif stream != (METHODS[name].open_stream is not None):
            return None
        options = type(small_options)(views=small_options.views, encoder_batch=4, **told)
        for passes in ("image_passes", "moving_passes", "text_passes"):
            setattr(tiny_model, passes, Fitting(passes))
        return VideoAdapter(tiny_model, prompts_of([NAMES], options), options.method, options)

    yield make
    for passes in ("image_passes", "moving_passes", "text_passes"):
        setattr(tiny_model, passes, Fitting(passes))


def places(count, most):
    return sorted(random.Random(count).sample(range(1, count + 1), min(most, count)))


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_memory_that_runs_out_once_anywhere_costs_no_decision(make_adapter, make_planned, name):
    if make_adapter(name, stream=False) is None:
        return
    videos = [make_planned(seed) for seed in range(2)]
    adapter = make_adapter(name, stream=False)
    with Refusing() as counting:
        expected = [one.cases[0] for one in adapter.predict(videos)]
    for at in places(counting.count, 10):
        adapter = make_adapter(name, stream=False)
        with Refusing(at):
            outcomes = adapter.predict(videos)
        for one, other in zip(outcomes, expected, strict=True):
            assert not isinstance(one, Exception), f"operation {at}: {one}"
            (case,) = one.cases
            assert torch.allclose(case.decision.logits_after, other.decision.logits_after, atol=2e-2), at
            assert (case.text_tokens, case.gradient_tokens) == (other.text_tokens, other.gradient_tokens), at


@pytest.mark.slow
@pytest.mark.parametrize("forever", [False, True])
@pytest.mark.parametrize("name", METHODS)
def test_a_stream_has_not_seen_a_video_that_memory_ran_out_with(make_adapter, make_planned, name, forever):
    if make_adapter(name, stream=True) is None:
        return
    first = make_adapter(name, stream=True)
    first.predict([make_planned(0), make_planned(1)])
    known = {place: value.clone() for place, value in first.stream_state().items()}
    with Refusing() as counting:
        first.predict([make_planned(2)])
    failed = 0
    for at in places(counting.count, 16):
        adapter = make_adapter(name, stream=True)
        adapter.predict([make_planned(3)])
        adapter.restore_streams({place: value.clone() for place, value in known.items()})
        with Refusing(at, forever=forever):
            (outcome,) = adapter.predict([make_planned(2)])
        if isinstance(outcome, NoRoomError):
            failed += 1
            state = adapter.stream_state()
            assert state.keys() == known.keys(), at
            assert all(torch.equal(state[place], value) for place, value in known.items()), at
    assert failed


def test_a_stream_sees_the_videos_beside_one_that_does_not_fit(make_adapter, make_planned, monkeypatch):
    adapter = make_adapter("tda", stream=True)
    (stream,) = adapter._streams.values()
    decide, asked = stream.decide, []

    def full(video):
        asked.append(video)
        if len(asked) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return decide(video)

    monkeypatch.setattr(stream, "decide", full)
    outcomes = adapter.predict([make_planned(seed) for seed in range(3)])
    assert [isinstance(one, NoRoomError) for one in outcomes] == [False, True, False]
    assert len(asked) == 3, "each is seen once"


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_a_device_that_is_lost_anywhere_is_said_to_be(make_adapter, make_planned, name):
    for stream in (False, True):
        if (adapter := make_adapter(name, stream)) is None:
            continue
        with Refusing() as counting:
            adapter.predict([make_planned(0)])
        for at in places(counting.count, 5):
            adapter = make_adapter(name, stream)
            gone = torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
            with Refusing(at, gone, forever=True), pytest.raises(DeviceLostError):
                adapter.predict([make_planned(0)])


@pytest.mark.parametrize("stored", [False, True])
def test_what_is_done_between_passes_is_halved_too(make_adapter, make_planned, monkeypatch, stored):
    adapter, videos = make_adapter("zar", stream=False), [make_planned(seed) for seed in range(3)]
    expected = adapter.predict(videos)
    if stored:
        videos = [
            replace(one, frames=None, embeddings=made.embeddings) for one, made in zip(videos, expected, strict=True)
        ]
    together, most = VideoAdapter._encode_together, [1]

    def full(self, some):
        if len(some) > most[0]:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return together(self, some)

    monkeypatch.setattr(VideoAdapter, "_encode_together", full)
    for one, other in zip(adapter.predict(videos), expected, strict=True):
        assert torch.allclose(one.cases[0].decision.logits_after, other.cases[0].decision.logits_after, atol=2e-3)
    most[0] = 0
    assert [str(one).partition(";")[0] for one in adapter.predict(videos)] == [
        "out of memory with one video's embeddings"
    ] * 3
