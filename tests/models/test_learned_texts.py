"""A5's vectors around class names: where they stand, what reads them, and what they rule out."""

from __future__ import annotations

import pytest
import torch

from zar_ray.adaptation.adapter import VideoAdapter
from zar_ray.adaptation.options import AdaptationOptions
from zar_ray.data.class_texts import class_prompts, prompts_of
from zar_ray.errors import ConfigError, ModelError
from zar_ray.models.architecture import build_clip
from zar_ray.models.clip import ClipModel
from zar_ray.models.importing import plan_import
from zar_ray.models.loading import load_model
from zar_ray.models.options import ModelOptions
from zar_ray.models.text import PromptedClasses
from zar_ray.models.tokens import clip_tokenizer
from zar_ray.video.options import ViewConfig
from zar_ray.video.transforms import Preprocessing

NAMES = ("red circle", "high_jump", "wow!")
PARTS = {"learned_texts": {"prefix": 3, "postfix": 2}, "frame_layers": {"layers": 1, "frames": 4}}


@pytest.fixture
def a5(clip, architecture):
    torch.manual_seed(6)
    architecture = {**architecture, "embed_dim": 24, **PARTS, "evaluation_scale": 1 / 0.07}
    made = build_clip(architecture)
    made.load_state_dict(clip.state_dict(), strict=False)
    with torch.no_grad():
        made.learned_texts.normal_(std=0.1)
    return ClipModel(made, "a5", Preprocessing(32), architecture)


def test_names_stand_between_their_vectors(a5):
    ids = a5.tokenize(["red circle"])
    tokenizer = clip_tokenizer()
    own, (start,), (end,) = tokenizer.encode("red circle"), tokenizer.start, tokenizer.end
    assert ids[0].tolist() == [start, -1, -1, -1, *own, -1, -1, end, *[-1] * (77 - len(own) - 7)]
    embeddings, clip = a5.embed_tokens(ids)[0], a5.clip
    assert torch.equal(embeddings[1:4], clip.learned_texts[1:4])
    assert torch.equal(embeddings[4], clip.token_embedding.weight[own[0]])
    behind = 4 + len(own)
    assert torch.equal(embeddings[behind : behind + 2], clip.learned_texts[behind : behind + 2])


def test_an_exclamation_mark_is_no_vector(a5):
    """Its token is number 0, which the official code uses as the placeholder."""
    assert clip_tokenizer().encode("!;")[0] == 0
    ids = a5.tokenize(["wow!;"])
    place = int((ids[0] == 0).nonzero())
    assert torch.equal(a5.embed_tokens(ids)[0, place], a5.clip.token_embedding.weight[0])


def test_classes_are_read_as_whole_texts_with_their_vectors(a5):
    classes = PromptedClasses(a5, NAMES)
    ids = a5.tokenize(["red circle", "high jump", "wow!"])
    with torch.no_grad():
        expected = a5.encode_embedded_text(a5.embed_tokens(ids), ids)
    assert torch.allclose(classes.initial_features, torch.nn.functional.normalize(expected, dim=-1), atol=1e-6)
    assert classes.logits(expected[0] / expected[0].norm(), classes.initial_features)[0] == pytest.approx(1 / 0.07)
    texts = class_prompts(NAMES, "a video of a", template="a video of {}")
    assert not torch.allclose(PromptedClasses.of(a5, texts).initial_features, classes.initial_features, atol=1e-3)


def test_a_long_name_is_refused_by_all_that_it_takes(a5):
    with pytest.raises(ConfigError, match="is 78 tokens long and the model reads 77"):
        a5.tokenize(["run " * 71])
    a5.tokenize(["run " * 70])


class TestRefused:
    def test_a_context_of_ones_own(self, a5):
        with pytest.raises(ConfigError, match="a5: reads class names without a context; leave --context"):
            PromptedClasses(a5, NAMES, "a photo of")
        with pytest.raises(ConfigError, match="leave --context"):
            PromptedClasses(a5, NAMES, position="front")

    def test_tuning(self, a5):
        options = AdaptationOptions(views=ViewConfig(frames=4, eval_frames=4))
        with pytest.raises(ConfigError, match=r"a5 has none there; use --method zero_shot$"):
            VideoAdapter(a5, prompts_of([NAMES], options), ("zar",), options)
        VideoAdapter(a5, prompts_of([NAMES], options), ("zero_shot",), options)

    def test_views_of_another_length(self, a5):
        options = AdaptationOptions(views=ViewConfig(frames=4, eval_frames=16))
        with pytest.raises(ConfigError, match=r"reads views of 4 frames, not of 16; give --views.eval-frames 4"):
            VideoAdapter(a5, prompts_of([NAMES], options), ("zero_shot",), options)


class TestImport:
    def published(self, a5, layers=True):
        state = a5.clip.state_dict()
        named = {f"clipmodel.{name}": tensor for name, tensor in state.items() if not name.startswith("fusion.")}
        named["embedding.weight"] = named.pop("clipmodel.learned_texts")
        named |= {name.removeprefix("fusion."): tensor for name, tensor in state.items() if name.startswith("fusion.")}
        if not layers:
            named = {name: tensor for name, tensor in named.items() if not name.startswith("temporalModelling.")}
        return {"state_dict": named, "optimizer": {}, "iteration": 9}

    def test_it_is_imported_with_the_published_numbers_of_vectors(self, a5, tmp_path):
        torch.save(self.published(a5), tmp_path / "best.pth")
        plan = plan_import(tmp_path / "best.pth")
        assert plan.lines()[0].endswith(": A5")
        assert (plan.missing, plan.unknown) == ((), ())
        plan.write(tmp_path / "o.safetensors")
        model = load_model(ModelOptions(checkpoint=tmp_path / "o.safetensors", device="cpu"))
        assert model.architecture["learned_texts"] == {"prefix": 16, "postfix": 16}
        assert (model.view_frames, model.frame_independent) == (4, True)
        assert model.logit_scale == pytest.approx(1 / 0.07)
        state = model.clip.state_dict()
        assert all(torch.equal(state[name], tensor) for name, tensor in a5.clip.state_dict().items())

    def test_without_layers_over_frames_they_are_averaged(self, a5, tmp_path):
        torch.save(self.published(a5, layers=False), tmp_path / "best.pth")
        plan = plan_import(tmp_path / "best.pth")
        assert plan.checkpoint.left_out == {"temporalEmbedding.weight": "its fusion head does not read it"}
        plan.write(tmp_path / "o.safetensors")
        model = load_model(ModelOptions(checkpoint=tmp_path / "o.safetensors", device="cpu"))
        frames = torch.randn(2, 7, 24)
        assert torch.equal(model.fuse(frames), frames.mean(dim=1))

    def test_a_file_without_its_clip_is_refused(self, a5, tmp_path):
        content = self.published(a5)
        del content["state_dict"]["clipmodel.visual.proj"]
        torch.save(content, tmp_path / "best.pth")
        with pytest.raises(ModelError, match=r"lacks visual\.proj"):
            plan_import(tmp_path / "best.pth")
