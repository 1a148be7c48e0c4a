"""What tuning is said to cost is what it computes."""

import pytest
import torch

from zar_ray.adaptation.base import Shared
from zar_ray.adaptation.methods import get_method
from zar_ray.adaptation.options import AdaptationOptions
from zar_ray.adaptation.tpt import TptConfig
from zar_ray.adaptation.zar import ZarConfig
from zar_ray.data.class_texts import ClassPrompts, ContextFile, class_prompts
from zar_ray.models.cost import counted, step_gflops, weightless
from zar_ray.models.learned_context import RANDOM, LearnedContext, save_context

NAMES = ("red circle", "green square that is large", "blue bar")


@pytest.fixture(scope="module")
def shape(tiny_model):
    return weightless(tiny_model.architecture, "tiny", tiny_model.preprocessing)


def test_a_step_more_takes_what_is_counted_of_a_step(tiny_model, shape, classes, make_pixels):
    def tuned(steps: int) -> float:
        return counted(lambda: get_method("zar").adapt([video], classes, ZarConfig(steps=steps), Shared()))

    video = make_pixels(0)
    tuned(1)  # makes the pass of the untuned context, once for all videos
    prompts = ClassPrompts(classes.class_names, "a video of a")
    # Beside the text tower's passes a step has the logits of the views, which are next to nothing.
    assert tuned(1) == pytest.approx(step_gflops(shape, prompts), rel=0.05)
    assert tuned(3) - tuned(2) == pytest.approx(step_gflops(shape, prompts), rel=0.05)


def test_more_classes_take_more(shape):
    few, many = class_prompts(NAMES[:2], "a photo of a"), class_prompts(NAMES, "a photo of a")
    assert step_gflops(shape, few) < step_gflops(shape, many)


def test_a_learned_context_takes_what_as_many_words_take(tmp_path, shape):
    path = tmp_path / "context.safetensors"
    save_context(LearnedContext(torch.zeros(4, 16), RANDOM, "another", "abc"), path)
    learned = class_prompts(NAMES, ContextFile(str(path), path.read_bytes()))
    assert step_gflops(shape, learned) == step_gflops(shape, class_prompts(NAMES, "a photo of a"))


def test_methods_that_tune_no_context_have_no_steps_of_it():
    options = AdaptationOptions(zar=ZarConfig(steps=3), tpt=TptConfig(steps=2))
    assert {name: options.context_steps(name) for name in ("zero_shot", "zar", "tpt", "memo", "tda")} == {
        "zero_shot": 0,
        "zar": 3,
        "tpt": 2,
        "memo": 0,
        "tda": 0,
    }
