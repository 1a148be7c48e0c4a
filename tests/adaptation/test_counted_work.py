"""What a case costs, counted by hand: images encoded, and tokens of contexts forward and back."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from zar_ray.adaptation.adapter import VideoAdapter
from zar_ray.adaptation.options import AdaptationOptions
from zar_ray.data.class_texts import prompts_of
from zar_ray.models.text import PromptedClasses
from zar_ray.video.options import ViewConfig

NAMES = ("red circle", "green square", "a much longer blue bar", "dot")
VIEWS = (
    ViewConfig(frames=2, eval_frames=3, views_per_rate=1, crops=1),
    ViewConfig(frames=3, eval_frames=2, views_per_rate=2, crops=3, rates=(1.0, 0.5)),
    ViewConfig(frames=4, eval_frames=4, rates=(0.25,), crops=5, eval_views="2x3"),
)


def tokens_of_a_context(model, words: str = "a video of") -> int:
    """The start and the context once, then each name with what ends it."""
    encode = model.tokenizer.encode
    return 1 + len(encode(words)) + sum(len(encode(f"{name}.")) + 1 for name in NAMES)


@pytest.fixture
def work(tiny_model, make_planned):
    """What each method costs each of three videos, adapted to together, and the videos' plans."""

    def measure(views: ViewConfig, **options):
        told = AdaptationOptions.model_validate(
            {"views": views, "method": ("zero_shot", "zar", "tpt", "tda"), "context": "a video of", **options}
        )
        adapter = VideoAdapter(tiny_model, prompts_of([NAMES], told), told.method, told)
        videos = [make_planned(seed, told) for seed in (1, 2, 3)]
        return [video.plan for video in videos], adapter.predict(videos), adapter

    return measure


@pytest.mark.parametrize("views", VIEWS)
@pytest.mark.parametrize(("zar_steps", "tpt_steps", "crops"), [(1, 1, 4), (3, 2, 6)])
def test_costs_are_those_counted_by_hand(work, tiny_model, views, zar_steps, tpt_steps, crops):
    plans, predictions, _ = work(views, zar={"steps": zar_steps}, tpt={"steps": tpt_steps, "views": crops})
    tokens = tokens_of_a_context(tiny_model)
    for plan, prediction in zip(plans, predictions, strict=True):
        evaluation = len({tuple(plan.images[row]) for row in plan.evaluation.ravel()})
        every = len({tuple(plan.images[row]) for row in [*plan.evaluation.ravel(), *plan.views.ravel()]})
        own_crops = (crops - 1) * plan.evaluation.shape[-1]
        expected = {
            "zero_shot": (evaluation, 0, 0),
            # A step goes back once; the first context's pass is all videos', each later one's is the video's own.
            "zar": (every, zar_steps * tokens, zar_steps * tokens),
            "tpt": (evaluation + own_crops, tpt_steps * tokens, tpt_steps * tokens),
        }
        found = {one.method: (one.images, one.text_tokens, one.gradient_tokens) for one in prediction.cases}
        assert found.pop("tda")[1:] == (0, 0)
        assert found == expected
        assert prediction.images_encoded == every + own_crops


@pytest.mark.parametrize("views", VIEWS[:2])
def test_a_cache_looks_at_its_views(work, views):
    plans, predictions, adapter = work(views)
    tda = next(method for method in adapter.methods if method.name == "tda")
    for plan, prediction in zip(plans, predictions, strict=True):
        images = next(one.images for one in prediction.cases if one.method == "tda")
        assert images == plan.count_images(with_views=tda.needs_views)
        assert images <= len(np.unique(plan.images, axis=0))


def test_what_runs_is_counted_however_it_is_run(tiny_model):
    tokens = tokens_of_a_context(tiny_model)
    for position, kind in (("end", "SharedPrefixPass"), ("middle", "FullPass")):
        classes = PromptedClasses(tiny_model, NAMES, "a video of", position)
        assert type(classes._run).__name__ == kind
        of_one = classes.tokens
        assert of_one == (tokens if position == "end" else len(NAMES) * int(classes.token_ids.argmax(1).max() + 1))
        assert classes.initial_features.shape[0] == len(NAMES)
        assert (classes.counted.forward, classes.counted.backward) == (0, 0), "that pass is all videos'"
        contexts = classes.initial_context.expand(2, -1, -1).clone().requires_grad_()
        features = classes.features(contexts)
        assert (classes.counted.forward, classes.counted.backward) == (2 * of_one, 0)
        torch.autograd.grad(features.sum(), contexts)
        classes.initial_gradients(torch.ones(3, *classes.initial_features.shape))
        assert (classes.counted.forward, classes.counted.backward) == (2 * of_one, 5 * of_one)
