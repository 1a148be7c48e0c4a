"""docs/extending.md: its example is a method as it stands."""

from __future__ import annotations

import re

import pytest
import torch

from zar_ray.adaptation import methods
from zar_ray.adaptation.adapter import VideoAdapter, make_cases
from zar_ray.adaptation.zar import ZarConfig
from zar_ray.data.class_texts import prompts_of
from zar_ray.errors import VideoError

NAMES = ("red circle", "green square", "blue bar")


@pytest.fixture
def example(repository, monkeypatch):
    """The example's names, after its method was entered into the registry."""
    page = (repository / "docs" / "extending.md").read_text(encoding="utf-8")
    (code,) = [code for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "METHOD =" in code]
    assert len(code.splitlines()) < 60
    found: dict = {}
    exec(compile(code, "docs/extending.md", "exec"), found)
    monkeypatch.setitem(methods.METHODS, found["METHOD"].name, found["METHOD"])
    return found


def test_the_example_runs_beside_the_others(example, tiny_model, make_planned, small_options):
    prompts = prompts_of([NAMES], small_options)
    adapter = VideoAdapter(tiny_model, prompts, ("zero_shot", "zar", "view_mean"), small_options)
    for outcome in adapter.predict([make_planned(0), make_planned(1)]):
        zero_shot, zar, mean = (case.decision for case in outcome.cases)
        assert torch.allclose(mean.logits_before, zero_shot.logits_after, atol=1e-5)
        assert torch.equal(mean.selected, zar.selected)
        assert torch.isclose(mean.logits_after.softmax(dim=0).sum(), torch.tensor(1.0))
        assert not torch.allclose(mean.logits_after.softmax(dim=0), mean.logits_before.softmax(dim=0))


def test_its_case_follows_the_options_that_it_declares(example, small_options):
    prompts = prompts_of([NAMES], small_options)

    def case(**changed):
        options = small_options.model_copy(update={"method": ("view_mean",), **changed})
        return make_cases(options, "abc", prompts)[0].case_id

    assert case() == case() != case(zar=ZarConfig(confidence=0.5))


def test_its_errors_are_the_videos_own(example, classes, make_pixels, small_options):
    video = make_pixels(0)
    bare = type(video)(video.views[:0], video.evaluation)
    failure, fine = example["METHOD"].adapt([bare, video], classes, small_options)
    assert isinstance(failure, VideoError)
    assert not isinstance(fine, VideoError)
