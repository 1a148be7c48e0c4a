"""Layouts of checkpoints that people have, and models that describe themselves in a folder."""

from __future__ import annotations

import json
import warnings

import open_clip
import pytest
import torch
from safetensors.torch import save_file
from text_kits import tiny_tokenizer
from transformers import CLIPConfig
from transformers import CLIPModel as HuggingFaceClip

from zar_ray.errors import ModelError
from zar_ray.models.architecture import build_clip
from zar_ray.models.exporting import export_checkpoint
from zar_ray.models.loading import load_model
from zar_ray.models.options import ModelOptions
from zar_ray.models.text import PromptedClasses
from zar_ray.video.transforms import CLIP_MEAN, Preprocessing

NAMES = ["run", "red_circle", "jump"]
SIGLIP_PIXELS = {
    "mean": [0.5, 0.5, 0.5],
    "std": [0.5, 0.5, 0.5],
    "interpolation": "bicubic",
    "resize_mode": "squash",
}


def of_file(path, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that QuickGELU is assumed
        return load_model(ModelOptions(checkpoint=path, device="cpu", **options))


@pytest.fixture
def state(clip):
    return dict(clip.state_dict())


@pytest.mark.slow
@pytest.mark.parametrize(
    "prefix", ["_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "model.", "module.model.", "model._orig_mod."]
)
@pytest.mark.parametrize("wrapper", [None, "state_dict", "model"])
def test_what_wraps_a_model_is_taken_off(tmp_path, state, model, prefix, wrapper):
    wrapped = {f"{prefix}{name}": tensor for name, tensor in state.items()}
    torch.save(wrapped if wrapper is None else {wrapper: wrapped, "epoch": 3}, tmp_path / "it.pt")
    assert of_file(tmp_path / "it.pt").fingerprint == model.fingerprint


@pytest.mark.parametrize("text_prefix", ["", "text."])
def test_of_a_teacher_and_a_student_one_is_read_and_both_are_named(tmp_path, state, model, text_prefix):
    towers = {"visual": "", "logit_scale": ""}
    named = {f"{towers.get(name.split('.')[0], text_prefix)}{name}": tensor for name, tensor in state.items()}
    both = {f"student.{name}": tensor for name, tensor in named.items()}
    both |= {f"teacher.{name}": tensor * 0.5 for name, tensor in named.items()}
    torch.save({"state_dict": both}, tmp_path / "both.pt")
    with pytest.warns(UserWarning, match=r"both\.pt: holds the models student, teacher; student is read"):
        loaded = load_model(ModelOptions(checkpoint=tmp_path / "both.pt", device="cpu"))
    assert loaded.fingerprint == model.fingerprint


@pytest.mark.parametrize("prefix", ["visual.", ""])
def test_an_image_tower_alone_is_refused_with_the_reason(tmp_path, clip, prefix):
    torch.save({f"{prefix}{name}": one for name, one in clip.visual.state_dict().items()}, tmp_path / "tower.pt")
    with pytest.raises(ModelError, match=r"tower\.pt: holds an image tower alone.*zar checkpoint import") as caught:
        of_file(tmp_path / "tower.pt")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("layers", "width"), [((1, 2), (64, 128)), ((3, 1), (128, 64))])
def test_hugging_faces_clip_gives_its_own_features(tmp_path, layers, width):
    towers = [
        {
            "hidden_size": wide,
            "intermediate_size": 4 * wide,
            "num_hidden_layers": deep,
            "num_attention_heads": wide // 64,
        }
        for deep, wide in zip(layers, width, strict=True)
    ]
    text = {**towers[0], "vocab_size": 49408, "bos_token_id": 49406, "eos_token_id": 49407, "projection_dim": 24}
    vision = {**towers[1], "image_size": 64, "patch_size": 16, "projection_dim": 24}
    torch.manual_seed(1)
    theirs = HuggingFaceClip(CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)).eval()
    save_file({name: one.contiguous() for name, one in theirs.state_dict().items()}, tmp_path / "model.safetensors")
    ours = of_file(tmp_path / "model.safetensors")
    ids, pixels = ours.tokenize(["a red circle", "jump"]), torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        whole = theirs(input_ids=ids, pixel_values=pixels, attention_mask=torch.ones_like(ids))
        texts = ours.encode_embedded_text(ours.embed_tokens(ids), ids)
    normalize = torch.nn.functional.normalize
    assert torch.allclose(normalize(texts, dim=-1), whole.text_embeds, atol=1e-5)
    assert torch.allclose(normalize(ours.encode_images(pixels), dim=-1), whole.image_embeds, atol=1e-5)
    assert ours.logit_scale == pytest.approx(float(theirs.logit_scale.exp()))


def hugging_face(folder, act="quick_gelu", heads=(2, 4), eps=1e-5, size=64, patch=16, ratio=4, **config):
    """A `CLIPModel` of one layer, saved as transformers saves it; its weights attend and are no noise."""
    towers = [
        {
            **{"hidden_size": wide, "intermediate_size": ratio * wide, "num_hidden_layers": 1},
            **{"num_attention_heads": count, "hidden_act": act, "layer_norm_eps": eps},
        }
        for count, wide in zip(heads, (16, 64), strict=True)
    ]
    text = {**towers[0], "eos_token_id": 49407}
    vision = {**towers[1], "image_size": size, "patch_size": patch}
    torch.manual_seed(3)
    whole = HuggingFaceClip(CLIPConfig(text_config=text, vision_config=vision, projection_dim=24, **config)).eval()
    with torch.no_grad():
        for one in whole.parameters():
            if one.ndim > 1:
                one.mul_(8)
    whole.save_pretrained(folder)
    return whole


def features_agree(ours, theirs, size=64):
    ids, pixels = ours.tokenize(["a red circle", "jump"]), torch.rand(2, 3, size, size)
    with torch.no_grad():
        whole = theirs(input_ids=ids, pixel_values=pixels, attention_mask=torch.ones_like(ids))
        texts = ours.encode_embedded_text(ours.embed_tokens(ids), ids)
    normalize = torch.nn.functional.normalize
    return torch.allclose(normalize(texts, dim=-1), whole.text_embeds, atol=1e-5) and torch.allclose(
        normalize(ours.encode_images(pixels), dim=-1), whole.image_embeds, atol=1e-5
    )


class TestHuggingFaceConfig:
    """`config.json` beside the weights tells what no tensor does."""

    @pytest.mark.parametrize(
        "sizes",
        [
            {},
            {"act": "gelu", "heads": (1, 2)},
            {"heads": (8, 1), "size": 70, "patch": 14},
            {"eps": 1e-3, "size": 64, "patch": 32},
            {"act": "gelu", "ratio": 2},
        ],
    )
    def test_heads_activation_and_norms_are_its(self, tmp_path, recwarn, sizes):
        theirs = hugging_face(tmp_path, **sizes)
        ours = load_model(ModelOptions(checkpoint=tmp_path / "model.safetensors", device="cpu"))
        assert features_agree(ours, theirs, sizes.get("size", 64))
        assert ours.preprocessing == Preprocessing(sizes.get("size", 64))
        folder = load_model(ModelOptions(model=f"local-dir:{tmp_path}", device="cpu"))
        assert folder.fingerprint == ours.fingerprint
        assert not [one for one in recwarn.list if "read as OpenAI" in str(one.message)]

    def test_without_it_what_was_assumed_is_said_and_settings_say_otherwise(self, tmp_path):
        theirs = hugging_face(tmp_path, act="gelu")
        (tmp_path / "config.json").unlink()
        said = r"heads of width 64.*\(quick_gelu=true vision_heads=1 text_heads=1\).*--settings quick_gelu=false"
        with pytest.warns(UserWarning, match=said):
            ours = load_model(ModelOptions(checkpoint=tmp_path / "model.safetensors", device="cpu"))
        assert not features_agree(ours, theirs)
        words = ("quick_gelu=false", "vision_heads=4", "text_heads=2")
        ours = load_model(ModelOptions(checkpoint=tmp_path / "model.safetensors", settings=words, device="cpu"))
        assert features_agree(ours, theirs)

    def test_settings_come_before_it(self, tmp_path):
        theirs = hugging_face(tmp_path)
        options = ModelOptions(checkpoint=tmp_path / "model.safetensors", settings=("vision_heads=2",), device="cpu")
        assert not features_agree(load_model(options), theirs)

    @pytest.mark.parametrize("content", ["{", "[]", '{"model_type": "siglip"}'])
    def test_anothers_config_says_nothing(self, tmp_path, content):
        hugging_face(tmp_path)
        (tmp_path / "config.json").write_text(content)
        with pytest.warns(UserWarning, match="read as OpenAI's CLIP"):
            load_model(ModelOptions(checkpoint=tmp_path / "model.safetensors", device="cpu"))
        with pytest.raises(ModelError, match=r"has no open_clip_config\.json, nor a config\.json of a CLIPModel"):
            load_model(ModelOptions(model=f"local-dir:{tmp_path}", device="cpu"))

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            (("vision_config", "hidden_act", "gelu_new"), "activations are gelu_new, quick_gelu"),
            (("text_config", "num_attention_heads", 3), "text_config: num_attention_heads does not divide"),
            (("vision_config", "patch_size", "x"), "is no config of a CLIPModel"),
            (("vision_config", "num_hidden_layers", 2), "is missing"),
            (("vision_config", "image_size", 128), "positional_embedding is 17×64 and should be 65×64"),
        ],
    )
    def test_one_that_does_not_fit_is_one_line(self, tmp_path, change, said):
        hugging_face(tmp_path)
        file = tmp_path / "config.json"
        content = json.loads(file.read_text())
        content[change[0]][change[1]] = change[2]
        file.write_text(json.dumps(content))
        with pytest.raises(ModelError, match=said) as caught:
            load_model(ModelOptions(checkpoint=tmp_path / "model.safetensors", device="cpu"))
        assert "\n" not in str(caught.value)


@pytest.fixture
def siglip_folder(tmp_path):
    """A SigLIP2 of one layer as a repository of the hub has it, with its tokenizer."""
    folder = tmp_path / "models" / "tiny-siglip2"
    _, size = tiny_tokenizer("timm/ViT-B-16-SigLIP2", folder)
    text = {
        **{"context_length": 16, "vocab_size": size, "hf_tokenizer_name": "timm/not-there", "width": 16, "heads": 2},
        **{"layers": 1, "no_causal_mask": True, "proj_bias": True, "pool_type": "last", "norm_kwargs": {"eps": 1e-06}},
        **{"tokenizer_kwargs": {"clean": "canonicalize"}, "act_kwargs": {"approximate": "tanh"}},
    }
    vision = {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16}
    config = {"embed_dim": 24, "init_logit_bias": -10, "custom_text": True, "vision_cfg": vision, "text_cfg": text}
    torch.manual_seed(2)
    save_file(open_clip.CustomTextCLIP(**{k: v for k, v in config.items() if k != "custom_text"}).state_dict(),
              folder / "open_clip_model.safetensors")  # fmt: skip
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": SIGLIP_PIXELS}))
    return folder


class TestFolders:
    def test_it_brings_weights_tokenizer_and_pixels(self, siglip_folder):
        ours = load_model(ModelOptions(model=f"local-dir:{siglip_folder}", device="cpu"))
        theirs, _, _ = open_clip.create_model_and_transforms(f"local-dir:{siglip_folder}")
        ids = open_clip.get_tokenizer(f"local-dir:{siglip_folder}")(["Red circle!", "jump"])
        assert torch.equal(ours.tokenize(["Red circle!", "jump"]), ids)
        with torch.no_grad():
            texts = ours.encode_embedded_text(ours.embed_tokens(ids), ids)
            assert torch.allclose(texts, theirs.encode_text(ids), atol=1e-6)
            images = torch.rand(2, 3, 32, 32)
            logits = theirs.eval().get_logits(images, ids)[0]
        classes = PromptedClasses(ours, NAMES, texts=[("Red circle!",), ("jump",), ("run",)])
        mine = classes.logits(
            torch.nn.functional.normalize(ours.encode_images(images), dim=-1), classes.initial_features
        )
        assert torch.allclose(mine[:, :2], logits, atol=1e-4)
        assert ours.preprocessing == Preprocessing(32, (0.5,) * 3, (0.5,) * 3, resize_mode="squash")
        assert ours.name == "tiny-siglip2"

    def test_it_is_exported_whole(self, siglip_folder, tmp_path):
        out = tmp_path / "exported"
        export_checkpoint(f"local-dir:{siglip_folder}", out, "open_clip")
        first = load_model(ModelOptions(model=f"local-dir:{siglip_folder}", device="cpu"))
        again = load_model(ModelOptions(model=f"local-dir:{out}", device="cpu"))
        assert again.fingerprint == first.fingerprint
        assert again.preprocessing == first.preprocessing
        assert (out / "tokenizer.json").is_file()

    def test_a_file_beside_its_config_is_read_by_it(self, siglip_folder):
        ours = load_model(ModelOptions(model=f"local-dir:{siglip_folder}", device="cpu"))
        beside = of_file(siglip_folder / "open_clip_model.safetensors", model=f"local-dir:{siglip_folder}")
        assert (beside.fingerprint, beside.preprocessing) == (ours.fingerprint, ours.preprocessing)

    @pytest.mark.parametrize(
        ("break_it", "said"),
        [
            (lambda folder: (folder / "open_clip_config.json").unlink(), r"has no open_clip_config\.json"),
            (lambda folder: (folder / "open_clip_config.json").write_text("{"), "cannot be read as open_clip's config"),
            (lambda folder: (folder / "open_clip_config.json").write_text('{"model_cfg": 3}'), "cannot be read"),
            (lambda folder: (folder / "open_clip_model.safetensors").unlink(), "holds no weights"),
            (
                lambda folder: (folder / "open_clip_model.safetensors").write_text(
                    "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
                ),
                "is a Git LFS pointer",
            ),
            (
                lambda folder: (folder / "open_clip_model.safetensors").write_text("<!DOCTYPE html><html>"),
                "is a web page",
            ),
            (lambda folder: (folder / "tokenizer.json").write_text("{}"), "tokenizer .* cannot be loaded"),
        ],
    )
    def test_what_is_broken_is_one_line(self, siglip_folder, break_it, said):
        break_it(siglip_folder)
        with pytest.raises(ModelError, match=said) as caught:
            load_model(ModelOptions(model=f"local-dir:{siglip_folder}", device="cpu"))
        assert "\n" not in str(caught.value)

    def test_names_that_are_none_are_one_line(self, tmp_path, monkeypatch):
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        asked = {
            "local-dir:/nowhere/at/all": "no such folder",
            "hf-hub:siglip": r"is no repository of the hub; name one as hf-hub:ORG/NAME",
            "hf-hub:some/one": r"some/one is not in the cache and cannot be downloaded \(HF_HUB_OFFLINE is set\)",
        }
        for name, said in asked.items():
            with pytest.raises(ModelError, match=said):
                load_model(ModelOptions(model=name, device="cpu"))

    def test_another_tag_is_refused(self, siglip_folder):
        with pytest.raises(ModelError, match="brings its own weights; leave --pretrained away"):
            load_model(ModelOptions(model=f"local-dir:{siglip_folder}", pretrained="webli", device="cpu"))


class TestPixelsOfFiles:
    """A bare file of weights does not say what it expects of its pixels."""

    @pytest.fixture
    def file(self, tmp_path, architecture, monkeypatch):
        path = tmp_path / "weights.safetensors"
        save_file(build_clip(architecture).state_dict(), path)
        monkeypatch.setattr("zar_ray.models.loading.named_architecture", lambda name: dict(architecture))
        return path

    def test_they_are_those_of_its_name(self, file):
        loaded = of_file(file, model="PE-Core-B-16")
        assert loaded.preprocessing == Preprocessing(32, (0.5,) * 3, (0.5,) * 3, "bilinear", resize_mode="squash")
        assert of_file(file, model="ViT-B-16").preprocessing == Preprocessing(32)

    @pytest.mark.parametrize("name", ["ViT-L-14", "ViT-H-14", "ViT-H-14-quickgelu"])
    def test_where_weights_of_a_name_differ_one_line_asks(self, file, name):
        with pytest.raises(ModelError, match=rf"weights of {name} differ in what they expect .* --pretrained \(") as it:
            of_file(file, model=name)
        assert "\n" not in str(it.value)
        tag = {"ViT-L-14": "laion2b_s32b_b82k"}.get(name, "dfn5b")
        pixels = of_file(file, model=name, pretrained=tag).preprocessing
        assert (pixels.mean, pixels.resize_mode) == (
            ((0.5,) * 3, "shortest") if name == "ViT-L-14" else (CLIP_MEAN, "squash")
        )

    def test_a_config_beside_it_comes_first(self, file, architecture):
        config = {"model_cfg": architecture, "preprocess_cfg": {**SIGLIP_PIXELS, "resize_mode": "longest"}}
        (file.parent / "open_clip_config.json").write_text(json.dumps(config))
        assert of_file(file).preprocessing.resize_mode == "longest"
        assert of_file(file, model="ViT-L-14").preprocessing.mean == (0.5, 0.5, 0.5)

    @pytest.mark.parametrize(
        "wrong", [{"mean": "grey"}, {"std": [None, 1, 1]}, {"mean": {"r": 0.5}}, {"mean": [0.5, 0.5]}]
    )
    def test_pixels_that_are_no_numbers_are_refused_in_one_line(self, file, architecture, wrong):
        config = {"model_cfg": architecture, "preprocess_cfg": wrong}
        (file.parent / "open_clip_config.json").write_text(json.dumps(config))
        with pytest.raises(ModelError, match=r"the mean, standard deviation or fill colour .* is none"):
            of_file(file)

    @pytest.mark.parametrize("size", ["large", [32], None, [32, 32, 32], 0])
    def test_a_size_that_is_none_is_refused_in_one_line(self, file, architecture, size):
        vision = {**architecture["vision_cfg"], "image_size": size}
        config = {"model_cfg": {**architecture, "vision_cfg": vision}}
        (file.parent / "open_clip_config.json").write_text(json.dumps(config))
        with pytest.raises(ModelError, match="for the size of pictures, and it is a number of pixels, or two"):
            of_file(file)

    @pytest.mark.parametrize("way", ["file", "folder"])
    def test_far_more_layers_than_there_are_tensors_are_not_built(self, file, architecture, way):
        text = {**architecture["text_cfg"], "layers": 10**20}
        config = {"model_cfg": {**architecture, "text_cfg": text}}
        (file.parent / "open_clip_config.json").write_text(json.dumps(config))
        options = {"model": f"local-dir:{file.parent}"} if way == "folder" else {"checkpoint": file}
        with pytest.raises(ModelError, match=r"claims to have 1\d+ layers, and holds"):
            load_model(ModelOptions(**options, device="cpu"))
