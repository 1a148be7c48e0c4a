"""TC-CLIP's additions: context tokens of a view, prompts that follow the video, and what its files say."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from zar_ray.adaptation.adapter import PlannedVideo, VideoAdapter
from zar_ray.adaptation.options import AdaptationOptions
from zar_ray.data.class_texts import prompts_of
from zar_ray.errors import ConfigError, ModelError
from zar_ray.models.architecture import build_clip
from zar_ray.models.clip import ClipModel
from zar_ray.models.importing import plan_import
from zar_ray.models.loading import load_model
from zar_ray.models.options import ModelOptions
from zar_ray.models.parts import following_head
from zar_ray.models.systems.tcclip import merge_tokens
from zar_ray.models.text import PromptedClasses, encode_tokens
from zar_ray.video.options import ViewConfig
from zar_ray.video.plans import plan_views
from zar_ray.video.transforms import IMAGENET_MEAN, Preprocessing

NAMES = ("red circle", "GreenSquare", "Blue_bar that moves")
SHAPE = {
    "embed_dim": 64,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 48, "layers": 3, "width": 128, "patch_size": 8, "head_width": 64},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 2},
}
USUAL = {"frames": 3, "context": 7, "seeds": 0.3, "merged": 5, "vectors": 4, "biased": True}
WIDTH = 64 + 7 * 64  # of a frame's embedding


def made(**settings):
    torch.manual_seed(6)
    architecture = copy.deepcopy(SHAPE) | {"video_context": USUAL | settings}
    clip = build_clip(architecture)
    with torch.no_grad():
        for name, one in clip.named_parameters():
            if name.endswith("bias_table") or "class_embedding" in name or "positional" in name:
                one.normal_()
            elif "resblocks" in name and one.ndim > 1:  # the usual initial weights hardly attend
                one.mul_(2)
    return ClipModel(clip, "tcclip", Preprocessing(48), architecture)


@pytest.fixture(scope="module")
def tcclip():
    return made()


def plain_merging(tokens, left, merged):
    """Lists of tokens, one pair after another; each a list of the first tokens that it holds."""
    held = [[number] for number in range(len(tokens))]
    while len(held) > left:
        means = [tokens[own].mean(0) for own in held]
        scores = [
            max((float(F.cosine_similarity(means[a], means[b], dim=0)), -b) for b in range(1, len(held), 2))
            for a in range(0, len(held), 2)
        ]
        order = sorted(range(len(scores)), key=lambda one: -scores[one][0])
        going = order[: min(merged, len(held) // 2, len(held) - left)]
        for one in going:
            held[-scores[one][1]] += held[2 * one]
        held = [held[2 * one] for one in order[len(going) :]] + held[1::2]
    return held


def plain(model, pixels, names):
    """The whole model in float64, frame by frame and pair by pair, with none of its own passes."""
    clip, sizes = model.clip, model.architecture["video_context"]
    w = {name: one.double() for name, one in clip.state_dict().items()}

    def norm(x, name):
        return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"])

    def mlp(x, name):
        inner = F.linear(norm(x, f"{name}.ln_2"), w[f"{name}.mlp.c_fc.weight"], w[f"{name}.mlp.c_fc.bias"])
        inner = inner * torch.sigmoid(1.702 * inner)
        return x + F.linear(inner, w[f"{name}.mlp.c_proj.weight"], w[f"{name}.mlp.c_proj.bias"])

    def attend(x, others, name, bias):
        weights, biases = w[f"{name}.in_proj_weight"].chunk(3), w[f"{name}.in_proj_bias"].chunk(3)
        q, k, v = (F.linear(one, a, b) for one, a, b in zip((x, others, others), weights, biases, strict=True))
        found, shares = [], []
        for head in range(x.shape[-1] // 64):
            part = slice(64 * head, 64 * head + 64)
            shares.append((q[:, part] @ k[:, part].T / 8 + (0 if bias is None else bias(head))).softmax(-1))
            found.append(shares[-1] @ v[:, part])
        out = F.linear(torch.cat(found, -1), w[f"{name}.out_proj.weight"], w[f"{name}.out_proj.bias"])
        return out, torch.stack(shares).mean(0)

    def tower(view):
        patches = F.conv2d(view.double(), w["visual.conv1.weight"], stride=8).flatten(2).mT
        frames = [
            norm(
                torch.cat([w["visual.class_embedding"][None], one]) + w["visual.positional_embedding"], "visual.ln_pre"
            )
            for one in patches
        ]
        context = frames[0][:0]
        for layer in range(3):
            name, after, seeds = f"visual.transformer.resblocks.{layer}", [], []
            table = w.get(f"{name}.attn.local_global_bias_table")
            for x in frames:
                normed = norm(x, f"{name}.ln_1")
                others = torch.cat([normed, norm(context, f"{name}.ln_1")])

                def bias(head, own=len(x), whole=len(others), table=table):  # noqa: B008 (it binds)
                    row = torch.zeros(whole, dtype=torch.float64)
                    if table is not None:
                        row[:own], row[own:] = table[head, 0, 0], table[head, 0, 1]
                    return row

                out, shares = attend(normed, others, f"{name}.attn", bias)
                after.append(x + out)
                best = shares[0, 1 : len(x)].argsort(descending=True)[: int(sizes["seeds"] * (len(x) - 1))]
                seeds.append(after[-1][1:][best])
            held = plain_merging(torch.cat(seeds), sizes["context"], sizes["merged"])
            context = mlp(torch.stack([torch.cat(seeds)[own].mean(0) for own in held]), name)
            frames = [mlp(x, name) for x in after]
        project = w["visual.proj"]
        return (
            torch.stack([norm(x[0], "visual.ln_post") @ project for x in frames]),
            norm(context, "visual.ln_post") @ project,
        )

    def text(name, context):
        start = " ".join(["x"] * sizes["vectors"]) if sizes["vectors"] != 4 else "a photo of a"
        ids = model.tokenizer.framed(model.tokenizer.encode(f"{start} {name}."))
        x, last = w["token_embedding.weight"][ids], 1 + sizes["vectors"]
        x = torch.cat([x[:1], w["fusion.ctx"], x[last:]]) + w["positional_embedding"][: len(ids)]
        for layer in range(2):
            if layer == 1:
                own = "fusion.prompt_generation_layer.0"
                out, _ = attend(norm(x[1:last], f"{own}.ln_1"), norm(context, f"{own}.ln_1_kv"), f"{own}.attn", None)
                x = torch.cat([x[:1], mlp(x[1:last] + out, own), x[last:]])
            block = f"transformer.resblocks.{layer}"
            normed = norm(x, f"{block}.ln_1")
            causal = torch.full((len(x), len(x)), float("-inf"), dtype=torch.float64).triu(1)
            out, _ = attend(normed, normed, f"{block}.attn", lambda _, causal=causal: causal)
            x = mlp(x + out, block)
        return norm(x[-1], "ln_final") @ w["text_projection"]

    logits = []
    for view in pixels:
        frames, context = tower(view)
        video = F.normalize(frames.mean(0), dim=0)
        logits.append([model.logit_scale * float(video @ F.normalize(text(name, context), dim=0)) for name in names])
    return torch.tensor(logits)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"context": 11, "merged": 100, "biased": False},
        {"frames": 2, "context": 5, "merged": 1, "seeds": 0.25},
        {"frames": 4, "context": 40, "seeds": 0.19, "vectors": 6},  # fewer seeds than context tokens
        {"frames": 1, "context": 1, "seeds": 1.0, "vectors": 1},
    ],
)
def test_it_is_what_a_plain_computation_gives(settings):
    model = made(**settings)
    torch.manual_seed(1)
    pixels = torch.randn(2, model.view_frames, 3, 48, 48)
    frames = model.encode_images(pixels.flatten(0, 1)).unflatten(0, pixels.shape[:2])
    found = PromptedClasses(model, NAMES).initial_logits(model.view_features(frames))
    read = ("red circle", "Green Square", "Blue bar that moves")
    assert torch.allclose(found, plain(model, pixels, read).float(), atol=2e-4)
    assert found.std(dim=0).min() > 1e-2  # each text's score depends on the video


@pytest.mark.parametrize(("count", "left", "merged"), [(21, 4, 6), (8, 4, 100), (9, 1, 3), (5, 5, 2), (3, 7, 1)])
def test_tokens_are_merged_as_pair_by_pair(count, left, merged):
    torch.manual_seed(count)
    tokens = torch.randn(2, count, 5)
    found, groups = merge_tokens(tokens, left, merged)
    for own, mean, group in zip(tokens, found, groups, strict=True):
        held = plain_merging(own, left, merged)
        assert [sorted(one) for one in held] == [(group == one).nonzero()[:, 0].tolist() for one in range(len(mean))]
        assert torch.allclose(mean, torch.stack([own[one].mean(0) for one in held]), atol=1e-5)


def test_frames_see_their_view_and_no_other(tcclip):
    torch.manual_seed(1)
    pixels = torch.randn(6, 3, 48, 48)
    together = tcclip.encode_images(pixels)
    assert together.shape == (6, WIDTH)
    assert torch.allclose(together[3:], tcclip.encode_images(pixels[3:]), atol=1e-5)
    pixels[0] = torch.randn(3, 48, 48)
    assert not torch.allclose(tcclip.encode_images(pixels)[1], together[1], atol=1e-3)
    assert (tcclip.frame_independent, tcclip.view_frames, tcclip.texts_follow_videos) == (False, 3, True)


def test_texts_of_all_lengths_have_one_width(tcclip):
    classes = PromptedClasses(tcclip, [*NAMES, " ".join(["long"] * 30)])
    whole = encode_tokens(tcclip, classes.token_ids)
    assert whole.shape == (4, 77 * 64 + 1)
    context = torch.randn(2, 7 * 64)
    with torch.no_grad():
        texts = following_head(tcclip.clip).text_embeddings(whole, context)
        alone = following_head(tcclip.clip).text_embeddings(encode_tokens(tcclip, classes.token_ids[:1]), context)
    assert texts.shape == (2, 4, 64)
    assert torch.allclose(texts[:, :1], alone, atol=1e-5)


def test_a_copy_is_a_model_of_its_own(tcclip):
    other, pixels = copy.deepcopy(tcclip), torch.randn(3, 3, 48, 48)
    before = [PromptedClasses(one, NAMES).encode_texts() for one in (tcclip, other)]
    assert torch.equal(*before)
    with torch.no_grad():
        tcclip_ctx = tcclip.clip.fusion.ctx.clone()
        other.clip.fusion.ctx.zero_()
        other.clip.visual.ln_post.bias.add_(1)
    assert torch.equal(PromptedClasses(tcclip, NAMES).encode_texts(), before[0])
    assert not torch.equal(PromptedClasses(other, NAMES).encode_texts(), before[1])
    assert not torch.allclose(other.encode_images(pixels), tcclip.encode_images(pixels), atol=1e-2)
    assert torch.equal(tcclip.clip.fusion.ctx, tcclip_ctx)


def test_mixed_precision_stays_near(tcclip):
    torch.manual_seed(4)
    pixels = torch.randn(3, 3, 48, 48)
    exact, mixed = tcclip.encode_images(pixels), copy.deepcopy(tcclip)
    mixed.precision = "bf16"
    found = mixed.encode_images(pixels)
    # Context tokens may be of other seeds then.
    assert F.cosine_similarity(found[:, :64], exact[:, :64]).min() > 0.9


def planned(options, length=20, seed=0):
    plan = plan_views("a.mp4", length, 48, 60, options.views, Preprocessing(48), seed=0)
    rng = np.random.default_rng(seed)
    return PlannedVideo(plan, rng.integers(0, 255, (len(plan.frames), plan.height, plan.width, 3), dtype=np.uint8))


@pytest.mark.parametrize("eval_views", ["1x1", "2x3"])
def test_an_evaluation_classifies_views_as_wholes(tcclip, eval_views):
    views = ViewConfig(frames=3, eval_frames=3, eval_views=eval_views)
    options = AdaptationOptions(method=("zero_shot",), views=views, encoder_batch=4)
    adapter = VideoAdapter(tcclip, prompts_of([NAMES], options), options.method, options)
    videos = [planned(options), planned(options, 9, seed=1)]
    together, alone = adapter.predict(videos), [adapter.predict([video])[0] for video in videos]
    for one, other in zip(together, alone, strict=True):
        assert one.cases[0].decision.logits_after.shape == (3,)
        assert torch.allclose(one.cases[0].decision.logits_after, other.cases[0].decision.logits_after, atol=1e-3)


class TestRefused:
    def test_tuning(self, tcclip):
        options = AdaptationOptions(views=ViewConfig(frames=3, eval_frames=3))
        with pytest.raises(ConfigError, match=r"tcclip has none there; use --method zero_shot$"):
            VideoAdapter(tcclip, prompts_of([NAMES], options), ("zar",), options)

    def test_a_context_and_other_frames(self, tcclip):
        with pytest.raises(ConfigError, match="tcclip: reads class names without a context"):
            PromptedClasses(tcclip, NAMES, "a photo of")
        with pytest.raises(ConfigError, match="reads views of 3 frames, not of 8"):
            tcclip.require_frames(8, "--views.frames")

    def test_an_empty_text(self, tcclip):
        with pytest.raises(ConfigError, match="is empty"):
            PromptedClasses(tcclip, ("a", "b"), texts=[("x",), (" ",)])

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"embed_dim": 32}, "texts as wide as embeddings, not 64 and 32"),
            ({"video_context": USUAL | {"seeds": 1.5}}, "it is a share between 0 and 1"),
            ({"video_context": USUAL | {"merged": 0}}, "it takes 1 or more"),
        ],
    )
    def test_what_does_not_fit(self, change, message):
        with pytest.raises(ModelError, match=message):
            build_clip(SHAPE | {"video_context": USUAL} | change)


class TestPublishedFile:
    """Under the published names; the configuration beside the weights says what no tensor tells."""

    def save(self, model, path, config=None, drop=()):
        saved = {}
        for name, one in model.clip.state_dict().items():
            if name in ("fusion.ctx", "token_embedding.weight"):
                continue
            if name.startswith("visual.") and ".in_proj_" in name:
                kind = name.rpartition("_")[2]
                for which, part in zip("qkv", one.chunk(3), strict=True):
                    own = name.replace(f"in_proj_{kind}", f"{which}_proj.{kind}")
                    saved[own.replace("visual.", "image_encoder.", 1)] = part
            elif name.startswith("visual."):
                saved[name.replace("visual.", "image_encoder.", 1)] = one
            elif name != "logit_scale":
                saved[f"text_encoder.{name.removeprefix('fusion.')}"] = one
        saved |= {"logit_scale": model.clip.logit_scale, "prompt_learner.ctx": model.clip.fusion.ctx}
        saved |= {"prompt_learner.token_prefix": torch.zeros(3, 1, 64)}
        content = {f"module.{name}": one.detach() for name, one in saved.items() if name not in drop}
        told = {} if config is None else {"config": config}
        torch.save({"model": content, "optimizer": {}, "epoch": 9, **told}, path)
        torch.save({**made_plain(model)}, path.with_name("base.pt"))

    def test_it_is_imported_whole(self, tcclip, tmp_path):
        config = {"num_frames": 3, "trainer": {"context_token_k": 7, "seed_token_a": 0.3, "tome_r": 5}}
        self.save(tcclip, tmp_path / "t.pth", config)
        with pytest.warns(UserWarning, match="read as OpenAI's CLIP"):
            plan = plan_import(tmp_path / "t.pth", tmp_path / "base.pt")
        assert plan.lines()[0].endswith("TC-CLIP, epoch 9")
        assert (plan.missing, plan.unknown, plan.from_base) == ((), (), ("token_embedding.weight",))
        plan.write(tmp_path / "o.safetensors")
        model = load_model(ModelOptions(checkpoint=tmp_path / "o.safetensors", device="cpu"))
        assert model.architecture["video_context"] == USUAL
        assert model.preprocessing.mean == IMAGENET_MEAN
        state, loaded = tcclip.clip.state_dict(), model.clip.state_dict()
        assert loaded.keys() == state.keys()
        assert all(torch.equal(loaded[name], tensor) for name, tensor in state.items())

    def test_without_a_configuration_it_has_a_new_models(self, tcclip, tmp_path):
        self.save(tcclip, tmp_path / "t.pth")
        with pytest.warns(UserWarning, match="read as OpenAI's CLIP"):
            sizes = plan_import(tmp_path / "t.pth", tmp_path / "base.pt").architecture["video_context"]
        assert (sizes["frames"], sizes["context"], sizes["seeds"]) == (16, 96, 0.3)

    def test_one_that_is_not_whole_is_refused(self, tcclip, tmp_path):
        self.save(tcclip, tmp_path / "t.pth", drop=("prompt_learner.ctx",))
        with pytest.raises(ModelError, match=r"a TC-CLIP checkpoint without prompt_learner\.ctx"):
            plan_import(tmp_path / "t.pth")


def made_plain(model):
    state = model.clip.state_dict()
    return {name: one for name, one in state.items() if not name.startswith("fusion.") and "bias_table" not in name}
