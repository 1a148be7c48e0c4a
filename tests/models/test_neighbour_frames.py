"""Open-VCLIP: attention to the frames beside each frame, cosines averaged over frames, its files and mixtures."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from zar_ray.adaptation.adapter import PlannedVideo, VideoAdapter
from zar_ray.adaptation.options import AdaptationOptions
from zar_ray.adaptation.zar import ZarConfig
from zar_ray.data.class_texts import prompts_of
from zar_ray.errors import ConfigError, ModelError
from zar_ray.models.architecture import build_clip
from zar_ray.models.checkpoints import save_checkpoint
from zar_ray.models.clip import ClipModel
from zar_ray.models.importing import plan_import
from zar_ray.models.loading import load_model
from zar_ray.models.merging import merge_checkpoints
from zar_ray.models.options import ModelOptions
from zar_ray.models.text import PromptedClasses
from zar_ray.video.options import ViewConfig
from zar_ray.video.plans import plan_views
from zar_ray.video.transforms import Preprocessing

NAMES = ("red circle", "green square")
TEXT = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 1, "layers": 1}
USUAL = {"frames": 4, "reach": 1}


def shape(size=32, patch=16, width=64, layers=2):
    vision = {"image_size": size, "layers": layers, "width": width, "patch_size": patch, "head_width": 64}
    return {"embed_dim": 24, "quick_gelu": True, "vision_cfg": vision, "text_cfg": dict(TEXT)}


def made(parts=USUAL, seed=0, **sizes):
    torch.manual_seed(seed)
    architecture = shape(**sizes) | ({"neighbour_frames": parts} if parts else {})
    clip = build_clip(architecture)
    with torch.no_grad():
        for one in clip.visual.parameters():
            one.mul_(2) if one.ndim > 1 else one.add_(torch.randn_like(one) * 0.1)  # the usual ones hardly attend
    return ClipModel(clip, "openvclip", Preprocessing(architecture["vision_cfg"]["image_size"]), architecture)


@pytest.fixture(scope="module")
def openvclip():
    return made()


def slowly(model, views, reach):
    """Embeddings (n, T, D) of pixels (n, T, 3, R, R) in float64, one query of one head at a time."""
    w = {name: one.double() for name, one in model.clip.visual.state_dict().items()}
    heads = model.clip.visual.transformer.resblocks[0].attn.num_heads
    patch = w["conv1.weight"].shape[-1]

    def norm(x, name):
        centred = x - x.mean(dim=-1, keepdim=True)
        return (
            centred / (centred.square().mean(dim=-1, keepdim=True) + 1e-5).sqrt() * w[f"{name}.weight"]
            + w[f"{name}.bias"]
        )

    def tokens_of(image):
        rows = [
            (w["conv1.weight"] * image[:, top : top + patch, left : left + patch].double()).sum(dim=(1, 2, 3))
            for top in range(0, image.shape[1] - patch + 1, patch)
            for left in range(0, image.shape[2] - patch + 1, patch)
        ]
        return norm(torch.stack([w["class_embedding"], *rows]) + w["positional_embedding"], "ln_pre")

    def attended(frames, block):
        projected = []
        for frame in frames:
            q, k, v = (
                norm(frame, f"{block}.ln_1") @ w[f"{block}.attn.in_proj_weight"].T + w[f"{block}.attn.in_proj_bias"]
            ).chunk(3, -1)
            projected.append((q, k, v))
        out = []
        for t, (query, own_keys, _) in enumerate(projected):
            found = torch.zeros_like(query)
            for head in range(heads):
                part = slice(head * query.shape[1] // heads, (head + 1) * query.shape[1] // heads)
                for token in range(len(query)):
                    scores, values = [], []
                    for other in range(t - reach, t + reach + 1):
                        for place in range(len(own_keys)):
                            inside = 0 <= other < len(frames)
                            key = (
                                projected[other][1][place, part]
                                if inside
                                else torch.zeros(part.stop - part.start).double()
                            )
                            scores.append((query[token, part] * key).sum() / (part.stop - part.start) ** 0.5)
                            values.append(projected[other][2][place, part] if inside else torch.zeros_like(key))
                    shares = torch.stack(scores).exp()
                    found[token, part] = (shares[:, None] * torch.stack(values)).sum(dim=0) / shares.sum()
            out.append(found @ w[f"{block}.attn.out_proj.weight"].T + w[f"{block}.attn.out_proj.bias"])
        return out

    embedded = []
    for view in views:
        frames = [tokens_of(image) for image in view]
        for layer in range(model.architecture["vision_cfg"]["layers"]):
            block = f"transformer.resblocks.{layer}"
            frames = [x + one for x, one in zip(frames, attended(frames, block), strict=True)]
            for t, x in enumerate(frames):
                wide = norm(x, f"{block}.ln_2") @ w[f"{block}.mlp.c_fc.weight"].T + w[f"{block}.mlp.c_fc.bias"]
                wide = wide / (1 + (-1.702 * wide).exp())
                frames[t] = x + wide @ w[f"{block}.mlp.c_proj.weight"].T + w[f"{block}.mlp.c_proj.bias"]
        embedded.append(torch.stack([norm(x[0], "ln_post") @ w["proj"] for x in frames]))
    return torch.stack(embedded)


@pytest.mark.parametrize(
    ("frames", "reach", "patch", "size", "width"),
    [
        (1, 1, 16, 32, 64),
        (4, 1, 14, 28, 128),
        (8, 1, 32, 64, 64),
        (13, 1, 16, 16, 64),
        (4, 2, 32, 32, 128),
        (3, 3, 16, 32, 64),
    ],
)
def test_it_computes_the_formula(frames, reach, patch, size, width):
    model = made({"frames": frames, "reach": reach}, seed=frames, size=size, patch=patch, width=width)
    views = torch.randn(2 if frames < 8 else 1, frames, 3, size, size)
    ours = model.encode_images(views.flatten(0, 1)).unflatten(0, views.shape[:2])
    assert torch.allclose(ours.double(), slowly(model, views, reach), atol=2e-5)


def test_where_a_view_ends_zeros_take_part(openvclip):
    """So even one frame alone is another embedding than CLIP's, and views of the same frames have other ends."""
    alone, plain = made({"frames": 1, "reach": 1}), made(None)
    plain.clip.load_state_dict(alone.clip.state_dict())
    image = torch.randn(1, 3, 32, 32)
    assert not torch.allclose(alone.encode_images(image), plain.encode_images(image), atol=1e-3)
    without = made({"frames": 1, "reach": 0})
    assert torch.allclose(without.encode_images(image), plain.encode_images(image), atol=1e-5)
    still = openvclip.encode_images(image.expand(4, -1, -1, -1))
    assert torch.allclose(still[0], still[3], atol=1e-5)  # the ends are alike
    assert not torch.allclose(still[0], still[1], atol=1e-3)


def test_frames_see_their_view_and_no_other(openvclip):
    pixels = torch.randn(8, 3, 32, 32)
    together = openvclip.encode_images(pixels)
    assert torch.allclose(together[4:], openvclip.encode_images(pixels[4:]), atol=1e-5)
    assert (openvclip.frame_independent, openvclip.view_frames) == (False, 4)
    with pytest.raises(ConfigError, match="reads views of 4 frames, not of 8"):
        openvclip.require_frames(8, "--frames")


def test_a_views_logits_are_the_mean_of_its_frames(openvclip):
    frames = torch.randn(3, 4, 24)
    classes = PromptedClasses(openvclip, NAMES)
    ours = classes.initial_logits(openvclip.view_features(frames))
    each = F.normalize(frames, dim=-1) @ classes.initial_features.T * openvclip.logit_scale
    assert torch.allclose(ours, each.mean(dim=1), atol=1e-4)
    renormalised = F.normalize(F.normalize(frames, dim=-1).mean(dim=1), dim=-1)
    assert not torch.allclose(ours, renormalised @ classes.initial_features.T * openvclip.logit_scale, atol=1e-2)


def test_zar_tunes_its_context(openvclip):
    options = AdaptationOptions(views=ViewConfig(frames=4, eval_frames=4, views_per_rate=2, crops=1))
    plan = plan_views("a.mp4", 20, 32, 40, options.views, Preprocessing(32), seed=0)
    frames = np.random.default_rng(0).integers(0, 255, (len(plan.frames), plan.height, plan.width, 3), dtype=np.uint8)
    adapter = VideoAdapter(openvclip, prompts_of([NAMES], options), ("zero_shot", "zar"), options)
    (outcome,) = adapter.predict([PlannedVideo(plan, frames)])
    plain, tuned = (case.decision for case in outcome.cases)
    assert torch.allclose(plain.logits_after, tuned.logits_before, atol=1e-4)
    assert not torch.allclose(tuned.logits_before, tuned.logits_after, atol=1e-5)
    other = options.model_copy(update={"zar": ZarConfig(fusion="decision")})
    with pytest.raises(ModelError, match="encodes the frames of a view together"):
        VideoAdapter(openvclip, prompts_of([NAMES], other), ("zar",), other)


@pytest.mark.parametrize("settings", [{"frames": 0}, {"frames": 4, "reach": -1}])
def test_numbers_out_of_range_are_refused(settings):
    with pytest.raises(ModelError, match=r"attention to neighbouring frames: .* and it takes"):
        build_clip(shape() | {"neighbour_frames": settings})


class TestFiles:
    def save(self, model, path, cfg=None, prefix="model.", **more):
        state = {f"{prefix}{name}": one for name, one in model.clip.state_dict().items()}
        torch.save({"model_state": state} | ({} if cfg is None else {"cfg": cfg, "epoch": 21}) | more, path)

    @pytest.mark.parametrize("prefix", ["model.", "module.model."])
    def test_a_published_file_is_told_and_what_is_assumed_is_said(self, tmp_path, prefix):
        model = made({"frames": 8, "reach": 1}, seed=5, patch=14, size=28)
        self.save(model, tmp_path / "swa.pth", prefix=prefix)
        plan = plan_import(tmp_path / "swa.pth")
        assert plan.lines()[0].endswith(": Open-VCLIP")
        assert any("frames=8 reach=1: the file does not say; otherwise: --settings" in line for line in plan.lines())
        assert (plan.missing, plan.unknown) == ((), ())
        plan.write(tmp_path / "o.safetensors")
        loaded = load_model(ModelOptions(checkpoint=tmp_path / "o.safetensors", device="cpu"))
        pixels = torch.randn(8, 3, 28, 28)
        assert torch.equal(loaded.encode_images(pixels), model.encode_images(pixels))
        assert loaded.preprocessing == Preprocessing(28, interpolation="bilinear")
        with pytest.warns(UserWarning, match=r"an? Open-VCLIP file, taken to have frames=8 reach=1, which it does not"):
            assert load_model(ModelOptions(checkpoint=tmp_path / "swa.pth", device="cpu")).view_frames == 8

    def test_settings_say_what_no_tensor_does(self, tmp_path, recwarn):
        model = made({"frames": 5, "reach": 2}, seed=5)
        self.save(model, tmp_path / "swa.pth")
        plan = plan_import(tmp_path / "swa.pth", settings=("frames=5", "reach=2"))
        assert not any("does not say" in line for line in plan.lines())
        plan.write(tmp_path / "o.safetensors")
        options = ModelOptions(checkpoint=tmp_path / "swa.pth", settings=("frames=5", "reach=2"), device="cpu")
        read = [ModelOptions(checkpoint=tmp_path / "o.safetensors", device="cpu"), options]
        pixels = torch.randn(5, 3, 32, 32)
        for one in map(load_model, read):
            assert torch.equal(one.encode_images(pixels), model.encode_images(pixels))
        assert not recwarn.list

    @pytest.mark.parametrize(
        ("way", "reach"), [("expand_temporal_view", 1), ("expand_temporal_view_step3", 3), ("null", 0)]
    )
    def test_a_trainings_file_has_its_configuration(self, tmp_path, way, reach):
        cfg = f"DATA:\n  NUM_FRAMES: 13\nMODEL:\n  TEMPORAL_MODELING_TYPE: {way}\n"
        self.save(made(seed=1), tmp_path / "e.pyth", cfg, optimizer_state={})
        plan = plan_import(tmp_path / "e.pyth")
        assert plan.architecture["neighbour_frames"] == {"frames": 13, "reach": reach}
        assert (plan.checkpoint.epoch, plan.checkpoint.assumed) == (21, ())

    def test_another_way_is_refused_and_what_is_no_yaml_says_nothing(self, tmp_path):
        self.save(made(), tmp_path / "c.pyth", "MODEL:\n  TEMPORAL_MODELING_TYPE: channel_shift\n")
        with pytest.raises(ModelError, match=r"c\.pyth: its frames see each other by channel_shift, and zar-ray has"):
            plan_import(tmp_path / "c.pyth")
        self.save(made(), tmp_path / "d.pyth", "!!python/object:x {")
        assert plan_import(tmp_path / "d.pyth").checkpoint.assumed == ("frames", "reach")

    def test_a_plain_clip_under_another_word_is_none(self, tmp_path):
        torch.save(
            {"state_dict": {f"model.{n}": t for n, t in made(None).clip.state_dict().items()}}, tmp_path / "l.pt"
        )
        with pytest.warns(UserWarning, match="read as OpenAI's CLIP"):
            assert load_model(ModelOptions(checkpoint=tmp_path / "l.pt", device="cpu")).frame_independent


class TestMixtures:
    @pytest.fixture
    def files(self, tmp_path, openvclip):
        plain = made(None, seed=4)
        own = Preprocessing(32, interpolation="bilinear")
        save_checkpoint(plain.clip, plain.architecture, plain.preprocessing, tmp_path / "clip.safetensors")
        tuned = openvclip.architecture | {"system": "openvclip"}
        save_checkpoint(openvclip.clip, tuned, own, tmp_path / "tuned.safetensors")
        return tmp_path / "clip.safetensors", tmp_path / "tuned.safetensors"

    @pytest.mark.parametrize(("turned", "pixels_of"), [(False, 1), (True, 0)])
    def test_clip_and_what_was_tuned_from_it_are_mixed_and_keep_its_attention(self, tmp_path, files, turned, pixels_of):
        order = files[::-1] if turned else files
        merge_checkpoints(order, (0.3, 0.7), tmp_path / "m.safetensors", pixels_of=files[pixels_of])
        mixed, plain, tuned = (
            load_model(ModelOptions(checkpoint=file, device="cpu")) for file in (tmp_path / "m.safetensors", *files)
        )
        assert mixed.architecture == tuned.architecture
        assert mixed.preprocessing.interpolation == ("bicubic", "bilinear")[pixels_of]
        share, expected = (0.7, 0.3)[turned], copy.deepcopy(tuned)
        with torch.no_grad():
            for name, one in expected.clip.named_parameters():
                one.copy_(share * one.double() + (1 - share) * plain.clip.state_dict()[name].double())
        pixels = torch.randn(4, 3, 32, 32)
        assert torch.allclose(mixed.encode_images(pixels), expected.encode_images(pixels), atol=1e-5)

    def test_parts_that_differ_are_refused(self, tmp_path, files):
        other = made({"frames": 8, "reach": 1})
        save_checkpoint(other.clip, other.architecture, Preprocessing(32), tmp_path / "8.safetensors")
        with pytest.raises(ModelError, match="cannot be merged: neighbour_frames is"):
            merge_checkpoints((files[1], tmp_path / "8.safetensors"), None, tmp_path / "m.safetensors")
        three = (files[0], files[1], tmp_path / "8.safetensors")
        with pytest.raises(ModelError, match="cannot be merged: neighbour_frames is"):
            merge_checkpoints(three, None, tmp_path / "m.safetensors", pixels_of=files[0])
