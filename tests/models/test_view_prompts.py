"""Vita-CLIP's additions: views apart, a context of the model's own, and what its files say."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from zar_ray.adaptation.adapter import PlannedVideo, VideoAdapter
from zar_ray.adaptation.options import AdaptationOptions
from zar_ray.data.class_texts import prompts_of
from zar_ray.errors import ConfigError, ModelError
from zar_ray.models.architecture import build_clip
from zar_ray.models.clip import ClipModel
from zar_ray.models.importing import plan_import
from zar_ray.models.loading import load_model
from zar_ray.models.options import ModelOptions
from zar_ray.models.text import PromptedClasses, why_full_pass
from zar_ray.video.options import ViewConfig
from zar_ray.video.plans import plan_views
from zar_ray.video.transforms import Preprocessing

NAMES = ("red circle", "green square", "jumping over a small blue bar")


@pytest.fixture
def vita(clip, architecture):
    torch.manual_seed(6)
    architecture = {**architecture, "view_prompts": {"frames": 3, "global_prompts": 2, "context": 5}}
    made = build_clip(architecture)
    made.load_state_dict(clip.state_dict(), strict=False)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "prompts" in name or "time_embed" in name or name == "own_context":
                parameter.normal_(std=0.3)
    return ClipModel(made, "vita", Preprocessing(32), architecture)


def test_frames_see_their_view_and_no_other(vita):
    torch.manual_seed(1)
    pixels = torch.randn(6, 3, 32, 32)
    together = vita.encode_images(pixels)
    assert torch.allclose(together[3:], vita.encode_images(pixels[3:]), atol=1e-5)
    pixels[0] += 1
    assert not torch.allclose(vita.encode_images(pixels)[1], together[1], atol=1e-3)
    assert (vita.frame_independent, vita.view_frames) == (False, 3)


def test_the_context_is_the_models_own_and_zar_tunes_it(vita):
    classes = PromptedClasses(vita, NAMES)
    assert torch.equal(classes.initial_context, vita.clip.own_context)
    assert why_full_pass(vita) is None
    options = AdaptationOptions(views=ViewConfig(frames=3, eval_frames=3))
    plan = plan_views("a.mp4", 20, 32, 40, options.views, Preprocessing(32), seed=0)
    frames = np.random.default_rng(0).integers(0, 255, (len(plan.frames), plan.height, plan.width, 3), dtype=np.uint8)
    adapter = VideoAdapter(vita, prompts_of([NAMES], options), ("zar",), options)
    (outcome,) = adapter.predict([PlannedVideo(plan, frames)])
    decision = outcome.cases[0].decision
    assert not torch.allclose(decision.logits_before, decision.logits_after, atol=1e-3)


@pytest.mark.parametrize(
    "choice", [{"context": "a photo of"}, {"position": "front"}, {"texts": [("a",), ("b",), ("c",)]}]
)
def test_another_context_is_refused(vita, choice):
    with pytest.raises(ConfigError, match="has learnt 5 vectors to stand in front of class names; leave --context"):
        PromptedClasses(vita, NAMES, **choice)


def official(vita, context=None):
    """The file that the official code would save of it, with a bias of the patches that is not zero."""
    state, found = vita.clip.state_dict(), {}
    bias = torch.full((64,), 0.25)
    state["visual.positional_embedding"] = state["visual.positional_embedding"].clone()
    state["visual.positional_embedding"][1:] -= bias
    renamed = {"class_embedding": "cls_token", "positional_embedding": "pos_embed", "conv1": "patch_embed.proj"}
    renamed |= {"ln_1": "norm1", "ln_2": "norm2", "c_fc": "fc1", "c_proj": "fc2", "transformer.resblocks": "blocks"}
    for name, tensor in state.items():
        if name.startswith("visual."):
            for ours, theirs in renamed.items():
                name = name.replace(ours, theirs)
            if ".attn.in_proj_" in name:
                place, _, kind = name.partition("in_proj_")
                found |= {f"{place}{one}_proj.{kind}": part for one, part in zip("qkv", tensor.chunk(3), strict=True)}
            else:
                found[name] = tensor
        elif name != "own_context":
            found[name if name == "logit_scale" else f"textual.{name}"] = tensor
    found["visual.patch_embed.proj.bias"] = bias
    found["prompt_learner.ctx"] = state["own_context"] if context is None else context
    found["prompt_learner.token_prefix"] = torch.zeros(3, 1, 64)
    return {"model": {f"module.{name}": tensor.half() for name, tensor in found.items()}, "next_step": 3}


class TestImport:
    def test_it_computes_what_was_saved(self, vita, tmp_path):
        torch.save(official(vita), tmp_path / "vita.pth")
        plan = plan_import(tmp_path / "vita.pth")
        assert plan.lines()[0].endswith(": Vita-CLIP")
        assert (plan.missing, plan.unknown) == ((), ())
        assert set(plan.checkpoint.left_out) == {"module.prompt_learner.token_prefix"}
        plan.write(tmp_path / "o.safetensors")
        model = load_model(ModelOptions(checkpoint=tmp_path / "o.safetensors", device="cpu"))
        assert model.architecture["view_prompts"] == vita.architecture["view_prompts"]
        pixels = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(2))
        assert torch.allclose(model.encode_images(pixels), vita.encode_images(pixels), atol=2e-2)
        texts = [PromptedClasses(one, NAMES).initial_features for one in (model, vita)]
        assert torch.allclose(*texts, atol=2e-2)

    def test_contexts_of_the_trainings_classes_are_left_out_and_words_stand_there(self, vita, tmp_path):
        torch.save(official(vita, torch.zeros(3, 5, 64)), tmp_path / "vita.pth")
        plan = plan_import(tmp_path / "vita.pth")
        assert "a context for each class" in plan.checkpoint.left_out["module.prompt_learner.ctx"]
        plan.write(tmp_path / "o.safetensors")
        model = load_model(ModelOptions(checkpoint=tmp_path / "o.safetensors", device="cpu"))
        assert len(PromptedClasses(model, NAMES, "a photo of a").initial_context) == 4

    @pytest.mark.parametrize(
        ("lost", "message"),
        [
            ("visual.blocks.1.attn.k_proj.bias", "has queries, keys or values alone for .*1.attn.in_proj_bias"),
            ("visual.time_embed", "a Vita-CLIP checkpoint without visual.time_embed"),
        ],
    )
    def test_a_file_that_is_not_whole_is_refused(self, vita, tmp_path, lost, message):
        content = official(vita)
        del content["model"][f"module.{lost}"]
        torch.save(content, tmp_path / "vita.pth")
        with pytest.raises(ModelError, match=message) as caught:
            plan_import(tmp_path / "vita.pth")
        assert "\n" not in str(caught.value)
