from dataclasses import replace
from importlib.metadata import EntryPoint

import pytest
import torch
from shipped import shipped_methods

from zar_ray.adaptation import methods
from zar_ray.adaptation.base import Shared, VideoFeatures
from zar_ray.adaptation.methods import METHODS, get_method, offered_methods
from zar_ray.adaptation.options import AdaptationOptions, method_groups
from zar_ray.errors import ConfigError, VideoError
from zar_ray.options.layers import validate


def test_methods_are_known_by_their_names():
    training_free = {"zero_shot", "zero", "mta", "vte"}
    tuned = {"zar", "tpt", "memo", "tent", "tps", "ctpt", "otpt", "rtpt"}
    streams = {"tda", "boostadapter", "dmn", "dpe", "onzeta", "ecalp", "dynaprompt"}
    assert training_free | tuned | streams <= set(shipped_methods()) <= set(METHODS)
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


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("nowhere.at.all:METHOD", r'"own" cannot be loaded \(ModuleNotFoundError'),
        ("zar_ray.adaptation.tpt:METHODS", r'"own" cannot be loaded \(AttributeError'),
        ("zar_ray.adaptation.tpt:TptConfig", 'of its method "own" is no Method but a ModelMetaclass'),
        ("zar_ray.adaptation.tpt:METHOD", 'its method is called "tpt", as one of zar-ray is; rename it'),
    ],
)
def test_a_package_whose_method_cannot_be_used_is_named_in_one_line(monkeypatch, value, said):
    entry = EntryPoint("own", value, methods.ENTRY_POINTS)
    monkeypatch.setattr("zar_ray.packages.entry_points", lambda group: [entry])
    with pytest.raises(ConfigError, match=said) as caught:
        offered_methods()
    assert str(caught.value).startswith(f"package {value}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"zar": {"betas": [0.9, 1.0]}}, "zar.betas.1: Input should be less than 1"),
        ({"zar": {"lr": float("inf")}}, "zar.lr: Input should be a finite number"),
        ({"tda": {"negative_entropy": [0.5, 0.2]}}, "tda.negative_entropy: .*0.5 0.2: the lower bound comes first"),
        ({"boostadapter": {"negative_mask": [1.0, 0.03]}}, "1 0.03: the lower bound comes first"),
    ],
)
def test_a_number_that_no_method_could_work_with_is_refused_in_one_line(values, said):
    with pytest.raises(ConfigError, match=said) as caught:
        validate(AdaptationOptions, values, "options")
    assert "\n" not in str(caught.value)


def test_a_method_is_not_called_as_an_option(monkeypatch):
    monkeypatch.setitem(METHODS, "seed", replace(get_method("tpt"), name="seed"))
    with pytest.raises(ConfigError, match='a method with options is called "seed", as another option is'):
        type("Another", (AdaptationOptions,), {})


def test_each_method_finds_its_own_options():
    options = AdaptationOptions()
    assert method_groups() == tuple(name for name in METHODS if get_method(name).options is not None)
    assert all(type(options.own(name)) is get_method(name).options for name in method_groups())
    assert options.own("zero_shot") is None
    with pytest.raises(ConfigError, match='no method is called "zra"'):
        options.own("zra")
