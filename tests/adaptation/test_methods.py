import pytest
import torch

from zar_ray.adaptation.base import VideoFeatures
from zar_ray.adaptation.methods import METHODS, get_method
from zar_ray.config import AdaptationOptions
from zar_ray.errors import ConfigError, VideoError


def test_methods_are_known_by_their_names():
    assert set(METHODS) == {"zero_shot", "zar"}
    assert all(get_method(name).name == name for name in METHODS)
    assert not get_method("zero_shot").needs_views


@pytest.mark.parametrize(("name", "guess"), [("zeroshot", "zero_shot"), ("zra", "zar")])
def test_misspelt_method_suggests_the_right_one(name, guess):
    with pytest.raises(ConfigError, match=f'no method is called "{name}"; did you mean "{guess}"'):
        get_method(name)


def test_zero_shot_decides_by_the_evaluation_view(classes):
    evaluation = torch.nn.functional.normalize(torch.ones(12), dim=0)
    decision = get_method("zero_shot").adapt(
        VideoFeatures(torch.empty(0, 12), evaluation), classes, AdaptationOptions()
    )
    expected = classes.logits(evaluation, classes.initial_features)
    assert torch.equal(decision.logits_before, expected)
    assert torch.equal(decision.logits_after, expected)
    assert decision.selected is None
    with pytest.raises(VideoError, match="not finite"):
        get_method("zero_shot").adapt(
            VideoFeatures(torch.empty(0, 12), evaluation * torch.inf), classes, AdaptationOptions()
        )
