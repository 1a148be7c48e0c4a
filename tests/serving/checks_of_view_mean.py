"""What holds where docs/extending.md's package is installed: `tests/integration/test_extending_package.py` runs it."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from zar_ray.adaptation.adapter import PlannedVideo, VideoAdapter, make_cases
from zar_ray.adaptation.methods import get_method
from zar_ray.adaptation.options import AdaptationOptions, PredictConfig, method_groups
from zar_ray.adaptation.predict import predict
from zar_ray.data.class_texts import prompts_of
from zar_ray.models.loading import load_model
from zar_ray.models.options import ModelOptions
from zar_ray.serving.application import options_of
from zar_ray.video.options import ViewConfig
from zar_ray.video.plans import plan_views

NAMES = ("red circle", "green square", "blue bar")
SMALL = AdaptationOptions(
    method=("view_mean", "zar"), views=ViewConfig(frames=2, eval_frames=3, views_per_rate=1, crops=1)
)


@pytest.fixture(scope="module")
def model(tiny_checkpoint):
    return load_model(ModelOptions(checkpoint=tiny_checkpoint), "cpu")


def planned(model, seed):
    plan = plan_views(f"noise/{seed}.mp4", 31, 40, 56, SMALL.views, model.preprocessing, SMALL.seed)
    shape = (len(plan.frames), plan.height, plan.width, 3)
    frames = np.random.default_rng(seed).integers(0, 255, shape, dtype=np.uint8)
    return PlannedVideo(plan, frames, video_id=f"noise/{seed}.mp4")


def with_own(**own):
    return AdaptationOptions.model_validate({**SMALL.model_dump(), "view_mean": own})


def test_it_runs_beside_the_others(model):
    prompts = prompts_of([NAMES], SMALL)
    adapter = VideoAdapter(model, prompts, ("zero_shot", "zar", "view_mean"), SMALL)
    for outcome in adapter.predict([planned(model, 0), planned(model, 1)]):
        zero_shot, zar, mean = (case.decision for case in outcome.cases)
        assert torch.allclose(mean.logits_before, zero_shot.logits_after, atol=1e-5)
        assert torch.equal(mean.selected, zar.selected), "its own share of views has ZAR's default"
        assert torch.isclose(mean.logits_after.softmax(dim=0).sum(), torch.tensor(1.0))
        assert not torch.allclose(mean.logits_after.softmax(dim=0), mean.logits_before.softmax(dim=0))
    fewer = VideoAdapter(model, prompts, ("view_mean",), with_own(keep=0.3)).predict([planned(model, 0)])[0]
    assert len(fewer.cases[0].decision.selected) == 1


def test_a_video_without_views_costs_itself(model):
    bare = planned(model, 0).evaluation_only()
    adapter = VideoAdapter(model, prompts_of([NAMES], SMALL), ("view_mean",), SMALL)
    failure, fine = adapter.predict([bare, planned(model, 1)])
    assert "view_mean needs views" in str(failure)
    assert len(fine.cases) == 1


def test_its_case_follows_its_own_options_and_no_others():
    prompts = prompts_of([NAMES], SMALL)

    def ids(options):
        return [case.case_id for case in make_cases(options, "abc", prompts)]

    own, zar = ids(SMALL)
    assert ids(with_own(keep=0.5)) == [ids(with_own(keep=0.5))[0], zar] != [own, zar]
    assert ids(with_own(mean_of="logits"))[0] not in (own, ids(with_own(keep=0.5))[0])
    for group in ("zar", "tpt", "memo", "tent"):
        changed = AdaptationOptions.model_validate({**SMALL.model_dump(), group: {"steps": 7}})
        assert ids(changed)[0] == own
    assert method_groups()[-1] == "view_mean"


@pytest.fixture
def video(make_video, tmp_path):
    return make_video(tmp_path / "a.mp4", frames=30, seed=3)


def local(model, video, decoder, **own):
    options = PredictConfig.model_validate({"videos": (str(video),), "method": ("view_mean",), "view_mean": own})
    (ranking,) = predict(model, NAMES, options, decoder)
    return {one.label: pytest.approx(one.score, abs=1e-6) for one in ranking.after}


def scores(answer):
    assert answer.status_code == 200, answer.text
    return {one["label"]: one["score"] for one in answer.json()["after"]}


def test_the_service_takes_its_options_in_a_request(served, model, video, decoder):
    client, _ = served(methods=["view_mean", "zar"], roots=[str(video.parent)], view_mean={"mean_of": "logits"})
    offered = client.get("/v1/methods").json()["methods"][0]
    assert (offered["name"], offered["description"]) == ("view_mean", "the mean of the confident views")
    properties = offered["options"]["properties"]
    assert properties["keep"]["description"] == "Share of views, lowest entropy first, that decide."
    assert {name: one["default"] for name, one in properties.items()} == {"keep": 0.8, "mean_of": "logits"}

    def ask(options):
        form = {"candidate_labels": list(NAMES), **({} if options is None else {"options": json.dumps(options)})}
        return client.post("/v1/classify", files={"video": (video.name, video.read_bytes())}, data=form)

    usual, fewer = (local(model, video, decoder, mean_of="logits", **own) for own in ({}, {"keep": 0.1}))
    assert scores(ask(None)) == usual != fewer
    assert scores(ask({"keep": 0.1})) == fewer
    body = {"path": video.name, "candidate_labels": list(NAMES), "options": {"keep": 0.1, "mean_of": "probabilities"}}
    assert scores(client.post("/v1/classify", json=body)) == local(model, video, decoder, keep=0.1)
    refused = ask({"keep": 2})
    assert refused.status_code == 422
    assert refused.json()["detail"] == "options.keep: 2 is greater than the maximum of 1"
    assert 'did you mean "keep"' in ask({"kep": 0.1}).json()["detail"]


def test_the_service_is_configured_with_it():
    options = options_of({"methods": "[view_mean]", "view_mean": "{keep: 0.5}"})
    assert options.own("view_mean").keep == 0.5
    assert get_method("view_mean").options is type(options.own("view_mean"))
