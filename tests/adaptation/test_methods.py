import pytest
import torch

from zar_ray.adaptation.base import Shared, VideoFeatures
from zar_ray.adaptation.methods import METHODS, get_method
from zar_ray.errors import ConfigError, VideoError


def test_methods_are_known_by_their_names():
    assert set(METHODS) == {"zero_shot", "zar", "tpt", "memo", "tent", "tda"}
    assert all(get_method(name).name == name for name in METHODS)
    assert not get_method("zero_shot").needs_views


@pytest.mark.parametrize(("name", "guess"), [("zeroshot", "zero_shot"), ("zra", "zar")])
def test_misspelt_method_suggests_the_right_one(name, guess):
    with pytest.raises(ConfigError, match=f'no method is called "{name}"; did you mean "{guess}"'):
        get_method(name)


def test_zero_shot_decides_by_the_evaluation_view(classes):
    evaluation = torch.nn.functional.normalize(torch.ones(12), dim=0)
    videos = [VideoFeatures(torch.empty(0, 12), evaluation * scale) for scale in (1, torch.inf)]
    decision, failure = get_method("zero_shot").adapt(videos, classes, None, Shared())
    expected = classes.logits(evaluation, classes.initial_features)
    assert torch.equal(decision.logits_before, expected)
    assert torch.equal(decision.logits_after, expected)
    assert decision.selected is None
    assert isinstance(failure, VideoError)
    assert "not finite" in str(failure)
