"""Apple's GPUs have no float64: nothing that runs on a model's device may make any."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from zar_ray.adaptation.adapter import VideoAdapter
from zar_ray.adaptation.methods import METHODS
from zar_ray.adaptation.onzeta import OnzetaConfig
from zar_ray.adaptation.options import AdaptationOptions
from zar_ray.adaptation.rtpt import RtptConfig
from zar_ray.data.class_texts import prompts_of
from zar_ray.models.attention import class_relevance
from zar_ray.training.augmentation import mix
from zar_ray.training.network import VideoTextModel
from zar_ray.training.options import AugmentConfig, TrainConfig
from zar_ray.training.schedule import optimiser
from zar_ray.video.pixels import normalise

NAMES = ("red circle", "green square", "blue bar")


class NoFloat64(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        result = function(*arguments, **(options or {}))
        for one in tree_leaves(result):
            assert not isinstance(one, torch.Tensor) or one.dtype != torch.float64, f"{function} makes float64"
        return result


def test_it_would_be_noticed():
    with pytest.raises(AssertionError, match="makes float64"), NoFloat64():
        torch.ones(2).double()
    with pytest.raises(AssertionError, match="makes float64"), NoFloat64():
        torch.from_numpy(np.ones(2)).to("cpu", copy=True)


@pytest.mark.parametrize("method", METHODS)
def test_methods(tiny_model, make_planned, small_options, method):
    told = {"onzeta": OnzetaConfig(videos=2), "rtpt": RtptConfig(neighbours=1)}
    options = small_options.model_copy(update={"method": (method,), **told})
    with NoFloat64():
        adapter = VideoAdapter(tiny_model, prompts_of([NAMES], options), options.method, options)
        outcomes = adapter.predict([make_planned(3), make_planned(4)])
    assert all(torch.isfinite(one.cases[0].decision.logits_after).all() for one in outcomes)


def test_explanations(tiny_model):
    with NoFloat64():
        class_relevance(tiny_model, torch.randn(3, 3, 32, 32), torch.randn(2, 12))


@pytest.mark.parametrize("augment", [{}, {"mixup": 0.8, "label_smoothing": 0.1}, {"cutmix": 1.0, "cutmix_share": 1.0}])
def test_a_step_of_training(tiny_model, augment):
    import copy

    config = TrainConfig(micro_batch=4, frames=2, augment=AugmentConfig(**augment), clip_grad=1.0)
    model = copy.deepcopy(tiny_model)
    decoded = np.random.default_rng(0).integers(0, 255, (4, 2, 32, 32, 3), dtype=np.uint8)
    with NoFloat64():
        network = VideoTextModel(model, prompts_of([NAMES], AdaptationOptions())[0], config)
        steps = optimiser(network.trained(), network.rule, config)
        pixels = normalise(torch.from_numpy(decoded).flatten(0, 1), model.preprocessing).unflatten(0, (4, 2))
        labels = torch.tensor([0, 1, 2, 0])
        pixels, targets = mix(pixels, labels, len(NAMES), config.augment, np.random.default_rng(1))
        torch.nn.functional.cross_entropy(network(pixels).float(), targets).backward()
        steps.step()
