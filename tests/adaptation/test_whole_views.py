"""Models that encode a view as a whole, and models with a head over its frames, through the adapter."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from zar_ray.adaptation.adapter import PlannedVideo, VideoAdapter, make_cases
from zar_ray.adaptation.options import AdaptationOptions, Setting
from zar_ray.data.class_texts import prompts_of
from zar_ray.errors import ConfigError
from zar_ray.models.architecture import build_clip
from zar_ray.models.clip import ClipModel
from zar_ray.video.options import ViewConfig
from zar_ray.video.pixels import crop_and_normalise
from zar_ray.video.plans import by_view, plan_views, unite
from zar_ray.video.transforms import Preprocessing

NAMES = ("red circle", "green square", "blue bar")
OPTIONS = AdaptationOptions(views=ViewConfig(frames=4, eval_frames=4), encoder_batch=10, method=("zero_shot", "zar"))
PREPROCESSING = Preprocessing(input_size=32)
TINY = {
    "embed_dim": 16,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"width": 16, "heads": 2, "layers": 2},
}
EZCLIP = {"temporal_adapters": {"frames": 4}}
HEADS = [{"head": "LSTM"}, {"head": "Conv_1D"}, {"head": "Transf"}, {"head": "Transf_cls", "frames": 4}]


def make_model(parts):
    torch.manual_seed(5)
    architecture = {**TINY, **parts}
    clip = build_clip(architecture)
    with torch.no_grad():
        for parameter in clip.parameters():
            if parameter.ndim > 1:
                parameter.copy_(torch.randn(parameter.shape) * 0.2)
    return ClipModel(clip, "tiny", PREPROCESSING, architecture)


@pytest.fixture(scope="module")
def ezclip():
    return make_model(EZCLIP)


def planned(name="a.mp4", options=OPTIONS, length=31):
    plan = plan_views(name, length, 48, 80, options.views, PREPROCESSING, seed=0)
    rng = np.random.default_rng(length)
    return PlannedVideo(plan, rng.integers(0, 255, (len(plan.frames), plan.height, plan.width, 3), dtype=np.uint8))


def adapter_of(model, options=OPTIONS, **more):
    return VideoAdapter(model, prompts_of([NAMES], options), options.method, options, **more)


def view_feature(model, video, rows):
    """One view by itself, from its pixels."""
    images = video.plan.images[rows]
    pixels = crop_and_normalise(torch.from_numpy(video.frames), images, video.plan.boxes, PREPROCESSING)
    with torch.no_grad():
        return normalize(model.fuse(model.encode_images(pixels)), dim=-1)


@pytest.mark.parametrize("batch", [1, 10, 64])
def test_every_view_is_encoded_as_it_would_be_alone(ezclip, batch):
    """48 views of which 39 are distinct, 12 of one draw coinciding; passes hold whole views of 4 frames."""
    video = planned()
    options = OPTIONS.model_copy(update={"encoder_batch": batch})
    adapter = adapter_of(ezclip, options)
    (outcome,) = adapter.predict([video])
    assert outcome.views == 48
    distinct = len(np.unique(np.concatenate([video.plan.views, video.plan.evaluation[None]]), axis=0))
    assert outcome.images_encoded == 4 * distinct < 4 * 49
    classes = adapter.class_sets[0]
    expected = classes.logits(view_feature(ezclip, video, video.plan.evaluation), classes.initial_features)
    assert torch.allclose(outcome.cases[0].decision.logits_after, expected, atol=1e-4)
    features = normalize(ezclip.fuse(outcome.embeddings[torch.from_numpy(outcome.plan.views)]), dim=-1)
    for number in (0, 13, 47):
        assert torch.allclose(features[number], view_feature(ezclip, video, video.plan.views[number]), atol=1e-5)


def test_frames_of_a_view_see_each_other(ezclip):
    """The same image in another view has another embedding, so that it cannot be shared."""
    torch.manual_seed(1)
    pixels = torch.randn(8, 3, 32, 32)
    pixels[4] = pixels[0]
    embeddings = ezclip.encode_images(pixels)
    assert not torch.allclose(embeddings[0], embeddings[4], atol=1e-3)
    assert not ezclip.frame_independent


def test_views_do_not_see_each_other(ezclip):
    torch.manual_seed(1)
    pixels = torch.randn(8, 3, 32, 32)
    assert torch.allclose(ezclip.encode_images(pixels)[4:], ezclip.encode_images(pixels[4:]), atol=1e-6)


def test_videos_together_are_as_they_are_alone(ezclip):
    videos = [planned("a.mp4", length=31), planned("b.mp4", length=9), planned("c.mp4", length=60)]
    adapter = adapter_of(ezclip)
    together, alone = adapter.predict(videos), [adapter.predict([video])[0] for video in videos]
    for one, other in zip(together, alone, strict=True):
        for mine, its in zip(one.cases, other.cases, strict=True):
            assert torch.allclose(mine.decision.logits_after, its.decision.logits_after, atol=1e-4)


def test_without_methods_that_need_views_only_the_evaluation_view_is_encoded(ezclip):
    options = OPTIONS.model_copy(update={"method": ("zero_shot",)})
    (outcome,) = adapter_of(ezclip, options).predict([planned(options=options)])
    assert (outcome.images_encoded, outcome.views) == (4, 0)


def test_settings_of_a_sweep_share_the_views_that_they_have_in_common(ezclip):
    fewer = OPTIONS.model_copy(update={"views": ViewConfig(frames=4, eval_frames=4, rates=(1.0, 0.5))})
    whole, alone_plan = planned(), plan_views("a.mp4", 31, 48, 80, fewer.views, PREPROCESSING, seed=0)
    plan, further = unite([whole.plan, alone_plan])
    prompts = prompts_of([NAMES], fewer)
    cases = (
        *make_cases(OPTIONS, ezclip.fingerprint, prompts),
        *make_cases(fewer, ezclip.fingerprint, prompts, setting=1),
    )
    adapter = adapter_of(ezclip, cases=cases, further=[Setting(fewer, prompts)])
    (outcome,) = adapter.predict([PlannedVideo(plan, whole.frames, further=(further,))])
    (alone,) = adapter_of(ezclip).predict([whole])
    few_frames = whole.frames[np.isin(whole.plan.frames, alone_plan.frames)]
    (few,) = adapter_of(ezclip, fewer).predict([PlannedVideo(alone_plan, few_frames)])
    assert outcome.images_encoded == alone.images_encoded > few.images_encoded
    for found, expected in zip(outcome.cases, (*alone.cases, *few.cases), strict=True):
        assert torch.allclose(found.decision.logits_after, expected.decision.logits_after, atol=1e-4)


def test_zar_tunes_the_context_through_adapters_and_shares_the_prefix(ezclip, recwarn):
    adapter = adapter_of(ezclip)
    (outcome,) = adapter.predict([planned()])
    zar = outcome.cases[1].decision
    assert not torch.allclose(zar.logits_before, zar.logits_after, atol=1e-3)
    assert zar.losses.isfinite().all()
    assert not [one for one in recwarn if "run as a whole" in str(one.message)]


@pytest.mark.parametrize("head", HEADS, ids=lambda head: head["head"])
def test_a_head_takes_the_place_of_the_mean(head):
    """Frames stay independent: each distinct image is encoded once, and views are made of the embeddings."""
    model, video = make_model({"fusion": head}), planned()
    adapter = adapter_of(model)
    (outcome,) = adapter.predict([video])
    assert model.frame_independent
    assert outcome.images_encoded == len(video.plan.images)
    classes = adapter.class_sets[0]
    expected = classes.logits(view_feature(model, video, video.plan.evaluation), classes.initial_features)
    assert torch.allclose(outcome.cases[0].decision.logits_after, expected, atol=1e-4)
    plain = ClipModel(copy.deepcopy(model.clip), "plain", PREPROCESSING, TINY)
    del plain.clip.fusion
    (averaged,) = adapter_of(plain).predict([video])
    assert not torch.allclose(averaged.cases[0].decision.logits_after, expected, atol=1e-2)
    assert not torch.allclose(outcome.cases[1].decision.logits_after, expected, atol=1e-3)


def test_the_heads_mean_is_the_mean():
    model, video = make_model({"fusion": {"head": "meanP"}}), planned()
    plain = ClipModel(copy.deepcopy(model.clip), "plain", PREPROCESSING, TINY)
    ours, its = (adapter_of(one).predict([video])[0] for one in (model, plain))
    for mine, other in zip(ours.cases, its.cases, strict=True):
        assert torch.allclose(mine.decision.logits_after, other.decision.logits_after, atol=1e-5)


class TestRefused:
    @pytest.mark.parametrize(
        ("views", "option"),
        [
            (ViewConfig(frames=8, eval_frames=4), "--views.frames 4"),
            (ViewConfig(frames=4, eval_frames=16), "--views.eval-frames 4"),
        ],
    )
    def test_views_of_another_length(self, ezclip, views, option):
        with pytest.raises(ConfigError, match=f"reads views of 4 frames, not of .*; give {option}"):
            adapter_of(ezclip, OPTIONS.model_copy(update={"views": views}))

    def test_views_that_no_method_looks_at_may_have_any(self, ezclip):
        options = OPTIONS.model_copy(update={"method": ("zero_shot",), "views": ViewConfig(frames=8, eval_frames=4)})
        (outcome,) = adapter_of(ezclip, options).predict([planned(options=options)])
        assert torch.isfinite(outcome.cases[0].decision.logits_after).all()

    def test_embeddings_of_frames_by_themselves(self, ezclip):
        plan = planned().plan
        video = PlannedVideo(plan, embeddings=torch.zeros(len(plan.images), 16))
        with pytest.raises(ValueError, match="takes frames, and the video has embeddings"):
            adapter_of(ezclip).predict([video])

    def test_plans_of_other_lengths(self):
        plans = [planned(options=OPTIONS.model_copy(update={"views": ViewConfig(frames=4, eval_frames=5)})).plan]
        with pytest.raises(ValueError, match="views of different lengths"):
            by_view(plans)
