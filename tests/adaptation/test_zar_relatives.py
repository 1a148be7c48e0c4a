"""ZAR's relatives: each option by its definition, and the batched rule held to the plain one under all of them."""

from __future__ import annotations

import copy
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize
from zar_by_hand import adapt_zar

from zar_ray.adaptation.adapter import VideoAdapter, make_cases
from zar_ray.adaptation.base import Decision, VideoFeatures, doubt, entropy
from zar_ray.adaptation.fusion import video_features
from zar_ray.adaptation.options import Setting
from zar_ray.adaptation.zar import ZarConfig, adapt_zar_batch, marginal_entropy, mean_entropy, tuned_features
from zar_ray.data.class_texts import prompts_of
from zar_ray.errors import ModelError
from zar_ray.models.clip import ClipModel
from zar_ray.models.text import PromptedClasses
from zar_ray.options.base import meaning
from zar_ray.study.options import EvalConfig

LOGITS = st.lists(st.lists(st.floats(-60, 60, width=32), min_size=4, max_size=4), min_size=1, max_size=9)
FUSIONS = ("embedding", "image", "decision")


def video(seed, views, dtype=torch.float32, evaluations=1):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(views + evaluations, 12, generator=generator, dtype=torch.float64)
    rows = normalize(rows, dim=-1).to(dtype)
    return VideoFeatures(rows[:views], rows[views] if evaluations == 1 else rows[views:])


@pytest.fixture(scope="module")
def double(tiny_model, classes):
    return PromptedClasses(copy.deepcopy(tiny_model).double(), classes.class_names)


@given(LOGITS)
def test_a_margin_is_the_gap_between_the_two_likeliest_classes(rows):
    logits = torch.tensor(rows, dtype=torch.float64)
    ordered = logits.softmax(dim=-1).sort(dim=-1, descending=True).values
    margin = -doubt(logits, "margin")
    assert torch.allclose(margin, ordered[:, 0] - ordered[:, 1])
    assert (margin >= 0).all()
    assert (margin <= 1).all()
    assert torch.equal(doubt(logits, "entropy"), entropy(logits))


def test_the_margin_over_one_class_is_certainty():
    assert torch.equal(doubt(torch.zeros(3, 1), "margin"), -torch.ones(3))


@given(LOGITS)
def test_the_mean_of_entropies_is_at_most_the_entropy_of_the_mean(rows):
    """Entropy is concave; the two agree where all views say the same."""
    logits = torch.tensor(rows, dtype=torch.float64)
    assert mean_entropy(logits) <= marginal_entropy(logits) + 1e-9
    same = logits[:1].expand(5, -1)
    assert torch.allclose(mean_entropy(same), marginal_entropy(same))


@given(seed=st.integers(0, 99), frames=st.integers(1, 5))
def test_decision_level_features_give_the_mean_of_the_frames_logits(seed, frames):
    generator = torch.Generator().manual_seed(seed)
    embeddings = 3 * torch.randn(6 * frames, 12, generator=generator, dtype=torch.float64)
    text = normalize(torch.randn(5, 12, generator=generator, dtype=torch.float64), dim=-1)
    rows = np.arange(6 * frames).reshape(6, frames)
    plan = SimpleNamespace(views=rows[:5], evaluation=rows[5])
    fused = video_features(embeddings, plan, fusion="decision")
    of_frames = (normalize(embeddings, dim=-1) @ text.T).reshape(6, frames, 5).mean(dim=1)
    assert torch.allclose(torch.cat([fused.views, fused.evaluation[None]]) @ text.T, of_frames)
    images = video_features(embeddings, plan, fusion="image")
    assert torch.equal(torch.cat([images.views, images.evaluation]), normalize(embeddings, dim=-1))


@pytest.mark.parametrize("fusion", FUSIONS)
def test_views_of_one_frame_are_the_same_at_every_level(fusion):
    embeddings = torch.randn(7, 12, generator=torch.Generator().manual_seed(0))
    plan = SimpleNamespace(views=np.arange(6)[:, None], evaluation=np.array([6]))
    ours, usual = video_features(embeddings, plan, fusion=fusion), video_features(embeddings, plan)
    assert torch.allclose(ours.views, usual.views, atol=1e-6)
    assert torch.allclose(ours.evaluation.reshape(-1), usual.evaluation, atol=1e-6)


@pytest.mark.parametrize(("kind", "tolerance"), [("classes", 2e-3), ("double", 1e-8)])
@settings(max_examples=25, deadline=None)
@given(
    views=st.lists(st.integers(1, 12), min_size=1, max_size=4),
    seed=st.integers(0, 999),
    evaluations=st.integers(1, 3),
    update=st.builds(
        ZarConfig,
        steps=st.integers(1, 2),
        confidence=st.sampled_from([0.1, 0.5, 1.0]),
        selection=st.sampled_from(["entropy", "margin"]),
        loss=st.sampled_from(["mean_probability", "mean_entropy"]),
        decision=st.sampled_from(["evaluation", "selected"]),
    ),
)
def test_a_batch_decides_as_each_video_alone(request, kind, tolerance, views, seed, evaluations, update):
    classes = request.getfixturevalue(kind)
    videos = [video(seed + n, count, classes.model.dtype, evaluations) for n, count in enumerate(views)]
    for one, decision in zip(videos, adapt_zar_batch(videos, classes, update), strict=True):
        expected = adapt_zar(one, classes, update)
        assert isinstance(decision, Decision)
        assert torch.equal(decision.selected, expected.selected)
        assert torch.allclose(decision.view_entropies, expected.view_entropies, atol=1e-5)
        assert torch.allclose(decision.losses, expected.losses, atol=tolerance)
        assert torch.allclose(decision.logits_after, expected.logits_after, atol=tolerance)
        assert torch.allclose(decision.logits_before, expected.logits_before, atol=1e-5)


def test_a_decision_by_the_selected_views_is_their_mean_probability(classes):
    one, update = video(3, 8), ZarConfig(decision="selected", confidence=0.5)
    (decision,) = adapt_zar_batch([one], classes, update)
    logits = classes.logits(one.views[decision.selected], tuned_features(one, classes, update))
    assert torch.allclose(decision.logits_after.softmax(dim=0), logits.softmax(dim=-1).mean(dim=0), atol=1e-6)
    (plain,) = adapt_zar_batch([one], classes, ZarConfig(confidence=0.5))
    assert torch.equal(decision.logits_before, plain.logits_before), "the baseline is the same whatever decides"


def test_settings_of_one_pass_are_those_of_their_own_runs(tiny_model, make_planned, small_options):
    """A sweep over all relatives: one encoding, and each setting as if it ran alone."""
    names = [("red circle", "green square", "blue bar")]
    updates = [
        {},
        *({"fusion": level} for level in FUSIONS[1:]),
        {"fusion": "image", "loss": "mean_entropy"},
        {"selection": "margin", "confidence": 0.5},
        {"decision": "selected"},
    ]
    runs = [small_options.model_copy(update={"method": ("zar",), "zar": ZarConfig(**one)}) for one in updates]
    prompts = [prompts_of(names, run) for run in runs]
    made = [
        make_cases(run, tiny_model.fingerprint, of, n) for n, (run, of) in enumerate(zip(runs, prompts, strict=True))
    ]
    cases = [case for of_run in made for case in of_run]
    assert len({case.case_id for case in cases}) == len(updates)
    video = make_planned(0)
    together = VideoAdapter(
        tiny_model,
        prompts[0],
        ("zar",),
        runs[0],
        cases,
        [Setting(*one) for one in zip(runs[1:], prompts[1:], strict=True)],
    ).predict([replace(video, further=(video.plan,) * (len(runs) - 1))])[0]
    assert together.images_encoded == len(video.plan.images)
    decisions = []
    for run, of, case in zip(runs, prompts, together.cases, strict=True):
        alone = VideoAdapter(tiny_model, of, ("zar",), run).predict([video])[0].cases[0]
        assert alone.case_id == case.case_id
        assert torch.allclose(alone.decision.logits_after, case.decision.logits_after, atol=1e-5)
        decisions.append(case.decision)
    assert [len(one.view_entropies) for one in decisions] == [4, 8, 4, 8, 4, 4]
    for number, one in enumerate(decisions):
        assert not any(torch.allclose(one.logits_after, other.logits_after, atol=1e-4) for other in decisions[:number])


@pytest.mark.parametrize(
    "changed", [{"selection": "margin"}, {"loss": "mean_entropy"}, {"decision": "selected"}, {"fusion": "image"}]
)
def test_another_setting_is_another_case(changed):
    usual, other = EvalConfig(), EvalConfig(zar=ZarConfig(**changed))
    prompts = prompts_of([("a", "b")], usual)
    (zero_shot, zar), (same, different) = (make_cases(one, "abc", prompts) for one in (usual, other))
    assert (zero_shot.case_id == same.case_id, zar.case_id == different.case_id) == (True, False)
    assert meaning(other)["zar"] == {**meaning(usual)["zar"], **changed}


def test_a_model_without_embeddings_of_frames_has_no_other_fusion(tiny_model, small_options):
    class Joint(ClipModel):
        frame_independent = False

    joint = Joint(tiny_model.clip, "joint", tiny_model.preprocessing, tiny_model.architecture)
    names = [("red circle", "green square")]
    for level in FUSIONS[1:]:
        options = small_options.model_copy(update={"zar": ZarConfig(fusion=level)})
        with pytest.raises(ModelError, match=f"joint: zar cannot serve it: .*fusion {level} takes them one by one"):
            VideoAdapter(joint, prompts_of(names, options), ("zar",), options)
    VideoAdapter(joint, prompts_of(names, small_options), ("zar",), small_options)
