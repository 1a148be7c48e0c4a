"""X-CLIP's additions: frames of a view together, texts that follow each video, and what its files say."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from zar_ray.adaptation.adapter import PlannedVideo, VideoAdapter
from zar_ray.adaptation.options import AdaptationOptions
from zar_ray.data.class_texts import prompts_of
from zar_ray.errors import ConfigError
from zar_ray.models.architecture import build_clip
from zar_ray.models.clip import ClipModel
from zar_ray.models.importing import plan_import
from zar_ray.models.loading import load_model
from zar_ray.models.options import ModelOptions
from zar_ray.models.parts import following_head
from zar_ray.models.text import PromptedClasses
from zar_ray.video.options import ViewConfig
from zar_ray.video.plans import plan_views
from zar_ray.video.transforms import IMAGENET_MEAN, Preprocessing

NAMES = ("red circle", "green square", "blue bar")
ZERO_SHOT = {"method": ("zero_shot",), "views": ViewConfig(frames=3, eval_frames=3)}


@pytest.fixture
def xclip(clip, architecture):
    torch.manual_seed(6)
    architecture = {**architecture, "cross_frames": {"frames": 3, "layers": 1, "prompt_layers": 2}}
    made = build_clip(architecture)
    made.load_state_dict(clip.state_dict(), strict=False)
    with torch.no_grad():
        made.fusion.prompts_generator.alpha.fill_(0.5)
    return ClipModel(made, "xclip", Preprocessing(32), architecture)


def planned(options, length=20, seed=0):
    plan = plan_views("a.mp4", length, 32, 40, options.views, Preprocessing(32), seed=0)
    rng = np.random.default_rng(seed)
    return PlannedVideo(plan, rng.integers(0, 255, (len(plan.frames), plan.height, plan.width, 3), dtype=np.uint8))


def test_frames_see_their_view_and_no_other(xclip):
    torch.manual_seed(1)
    pixels = torch.randn(6, 3, 32, 32)
    together = xclip.encode_images(pixels)
    assert together.shape == (6, 24 + 4 * 64)
    assert torch.allclose(together[3:], xclip.encode_images(pixels[3:]), atol=1e-5)
    pixels[0] += 1
    assert not torch.allclose(xclip.encode_images(pixels)[1], together[1], atol=1e-3)
    assert (xclip.frame_independent, xclip.view_frames, xclip.texts_follow_videos) == (False, 3, True)


def test_each_video_has_texts_of_its_own(xclip):
    classes, head = PromptedClasses(xclip, NAMES), following_head(xclip.clip)
    torch.manual_seed(2)
    frames = torch.randn(2, 3, 24 + 4 * 64)
    with torch.no_grad():
        features = xclip.view_features(frames)
        logits = classes.initial_logits(features)
        texts = xclip.encode_embedded_text(xclip.embed_tokens(classes.token_ids), classes.token_ids)
        for video, found in zip(features, logits, strict=True):
            own = normalize(head.text_embeddings(texts, video[None, 24:])[0], dim=-1)
            assert torch.allclose(xclip.logit_scale * own @ video[:24], found, atol=1e-4)
    assert torch.allclose(xclip.embedding_part(features).norm(dim=-1), torch.ones(2))
    assert torch.allclose(classes.initial_logits(features[0]), logits[0], atol=1e-4)


@pytest.mark.parametrize("eval_views", ["1x1", "2x3"])
def test_an_evaluation_classifies_views_as_wholes(xclip, eval_views):
    views = ViewConfig(frames=3, eval_frames=3, eval_views=eval_views)
    options = AdaptationOptions(**{**ZERO_SHOT, "views": views}, encoder_batch=4)
    adapter = VideoAdapter(xclip, prompts_of([NAMES], options), options.method, options)
    videos = [planned(options), planned(options, 9, seed=1)]
    together, alone = adapter.predict(videos), [adapter.predict([video])[0] for video in videos]
    for one, other in zip(together, alone, strict=True):
        assert one.cases[0].decision.logits_after.shape == (3,)
        assert torch.allclose(one.cases[0].decision.logits_after, other.cases[0].decision.logits_after, atol=1e-4)


class TestRefused:
    def test_tuning(self, xclip):
        options = AdaptationOptions(views=ZERO_SHOT["views"])
        with pytest.raises(ConfigError, match=r"xclip has none there; use --method zero_shot$"):
            VideoAdapter(xclip, prompts_of([NAMES], options), ("zar",), options)

    def test_several_texts_without_their_probabilities(self, xclip):
        texts = [("a", "b"), ("c", "d"), ("e", "f")]
        with pytest.raises(ConfigError, match="give --template-average probabilities, or one text a class"):
            PromptedClasses(xclip, NAMES, texts=texts)
        averaged = PromptedClasses(xclip, NAMES, texts=texts, average="probabilities")
        frames = torch.randn(2, 3, 24 + 4 * 64)
        with torch.no_grad():
            scores = averaged.initial_logits(xclip.view_features(frames)).exp()
        assert torch.allclose(scores.sum(dim=-1), torch.ones(2), atol=1e-5)

    def test_a_context(self, xclip):
        with pytest.raises(ConfigError, match="xclip: reads class names without a context"):
            PromptedClasses(xclip, NAMES, "a photo of")


@pytest.mark.parametrize("prefix", ["", "module."])
def test_its_published_file_is_imported(xclip, tmp_path, prefix):
    state = xclip.clip.state_dict()
    saved = {prefix + name.removeprefix("fusion."): tensor for name, tensor in state.items()}
    torch.save({"model": saved, "optimizer": {}, "max_accuracy": 1.0, "epoch": 4}, tmp_path / "x.pth")
    plan = plan_import(tmp_path / "x.pth")
    assert plan.lines()[0].endswith("X-CLIP, epoch 4")
    assert (plan.missing, plan.unknown) == ((), ())
    plan.write(tmp_path / "o.safetensors")
    model = load_model(ModelOptions(checkpoint=tmp_path / "o.safetensors", device="cpu"))
    assert model.architecture["cross_frames"] == xclip.architecture["cross_frames"]
    assert (model.preprocessing.mean, model.preprocessing.short_side) == (IMAGENET_MEAN, 36)
    loaded = model.clip.state_dict()
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in state.items())
