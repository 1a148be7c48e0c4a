"""Label sets kept within a bound on bytes."""

from __future__ import annotations

import gc

import pytest
import torch

from zar_ray.data.class_texts import ClassPrompts, prompts_of
from zar_ray.data.options import PromptOptions
from zar_ray.data.probing import usable_memory
from zar_ray.models.text import PromptedClasses
from zar_ray.models.text_cache import TextCache, device_memory

LABELS = tuple(
    f"{verb} a {thing}" for verb in ("ride", "paint", "lift") for thing in ("horse", "boat", "very long rope")
)


def prompts(*labels) -> ClassPrompts:
    (of_set,) = prompts_of([labels], PromptOptions())
    return of_set


def cache_of(model, bound) -> TextCache:
    made = TextCache(model, 0.1)
    made.bound = bound
    return made


def use(cache, *labels) -> PromptedClasses:
    """As a request with `zar` does."""
    classes = cache(prompts(*labels), "end")
    classes.initial_gradients(torch.randn(2, *classes.initial_features.shape))
    cache.settle()
    return classes


def has_trail(classes) -> bool:
    return "_trail" in vars(classes)


def test_what_is_counted_is_what_is_there(model):
    def storages():
        # By their own types: those that other tests leave behind may have no memory.
        kinds = (torch.Tensor, torch.nn.Parameter)
        found = [one.untyped_storage() for one in gc.get_objects() if type(one) in kinds and one.device.type == "cpu"]
        return {one.data_ptr(): one.nbytes() for one in found}

    others = storages()
    gc.freeze()  # they are passed over from now on: all tests' objects are a million
    for labels in (LABELS, LABELS[:1], tuple("abcdefgh")):
        classes = None  # the last ones' memory may be taken again
        gc.collect()
        before = others | storages()
        classes = PromptedClasses.of(model, prompts(*labels))
        weights = torch.randn(1, *classes.initial_features.shape)
        classes.initial_gradients(weights)
        before[weights.untyped_storage().data_ptr()] = 0
        gc.collect()
        measured = sum(size for place, size in storages().items() if place not in before)
        assert classes.held_bytes == pytest.approx(measured, rel=0.1)
        assert classes.held_bytes > 2 * (classes.forget_trail() or classes.held_bytes)


def test_the_trail_pays_from_the_second_time_on(model):
    cache = cache_of(model, 10**9)
    first = use(cache, *LABELS)
    assert not has_trail(first)
    held = cache.held_bytes
    assert use(cache, *LABELS) is first
    assert has_trail(first)
    assert cache.held_bytes > 2 * held


def test_those_asked_for_least_recently_go_first(model):
    one = PromptedClasses.of(model, prompts("a", "b"))
    _ = one.initial_features
    cache = cache_of(model, int(2.5 * one.held_bytes))
    kept = use(cache, "a", "b")
    use(cache, "c", "d")
    assert cache(prompts("a", "b"), "end") is kept
    vars(cache)["_again"].clear()
    cache.settle()
    use(cache, "e", "f")
    assert len(cache) == 2
    assert cache.held_bytes <= cache.bound
    assert cache(prompts("a", "b"), "end") is kept
    assert len(cache) == 2


def test_a_set_larger_than_the_bound_is_answered_and_not_kept(model):
    small = PromptedClasses.of(model, prompts("a", "b"))
    _ = small.initial_features
    cache = cache_of(model, int(1.2 * small.held_bytes))
    kept = use(cache, "a", "b")
    large = use(cache, *LABELS, *tuple("pqrstuvw"))
    assert large.initial_features.shape[0] == len(LABELS) + 8
    assert len(cache) == 1
    assert use(cache, "a", "b") is kept
    assert not has_trail(kept)  # it alone is too large
    assert len(cache) == 1
    nothing = cache_of(model, 0)
    use(nothing, "a", "b")
    assert len(nothing) == 0


def test_a_prompt_that_cannot_be_read_leaves_nothing_behind(model):
    cache = cache_of(model, 10**9)
    with pytest.raises(Exception, match="tokens long"):
        cache(prompts("a " * 90, "b"), "end")
    cache.settle()
    assert len(cache) == 0


def test_the_bound_is_a_share_of_the_devices_memory(model, monkeypatch):
    assert TextCache(model, 0.25).bound == int(0.25 * usable_memory())
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda device: type("Gpu", (), {"total_memory": 80 * 2**30})
    )
    assert device_memory(torch.device("cuda")) == 80 * 2**30
