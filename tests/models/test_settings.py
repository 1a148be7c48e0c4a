"""``--settings``: every system in other sizes, from its published file to equal numbers, and what no tensor tells."""

from __future__ import annotations

import warnings

import pytest
import torch
from published_files import OF_BASE, published

from zar_ray.errors import ConfigError, ModelError
from zar_ray.models.architecture import build_clip
from zar_ray.models.checkpoints import save_checkpoint
from zar_ray.models.clip import ClipModel
from zar_ray.models.importing import plan_import
from zar_ray.models.loading import load_model
from zar_ray.models.options import ModelOptions
from zar_ray.models.settings import parsed, told, with_settings
from zar_ray.models.text import PromptedClasses
from zar_ray.training.job import settled
from zar_ray.training.options import TrainConfig
from zar_ray.video.transforms import Preprocessing

NAMES = ("red circle", "high_jump")


def shape(size=32, patch=16, heads=(1, 1), width=64, quick=True):
    vision = {"image_size": size, "layers": 1, "width": width, "patch_size": patch, "head_width": width // heads[0]}
    text = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": heads[1], "layers": 2}
    return {"embed_dim": 16, "quick_gelu": quick, "vision_cfg": vision, "text_cfg": text}


def made(architecture):
    torch.manual_seed(2)
    clip = build_clip(architecture)
    with torch.no_grad():
        for name, one in clip.named_parameters():
            if one.ndim > 1 and "resblocks" in name:
                one.mul_(3)
            elif one.ndim and "token_embedding" not in name:
                one.add_(torch.randn_like(one) * 0.1)
    return ClipModel(clip, "made", Preprocessing(architecture["vision_cfg"]["image_size"]), architecture)


def scores(model, frames):
    """What an evaluation makes of a view of noise."""
    size = model.preprocessing.input_size
    pixels = torch.randn(frames, 3, size, size, generator=torch.Generator().manual_seed(1))
    bare = PromptedClasses(model, NAMES)
    return bare.initial_logits(model.view_features(model.encode_images(pixels)))


def saved(tmp_path, system, model):
    torch.save(published(system, model.clip), tmp_path / "theirs.pth")
    if system not in OF_BASE:
        return tmp_path / "theirs.pth", None
    plain = {key: model.architecture[key] for key in shape()}
    base = build_clip(plain)
    base.token_embedding = model.clip.token_embedding
    save_checkpoint(base, plain, model.preprocessing, tmp_path / "base.safetensors")
    return tmp_path / "theirs.pth", tmp_path / "base.safetensors"


A5 = {"learned_texts": {"prefix": 4, "postfix": 5}, "frame_layers": {"layers": 1, "frames": 3, "heads": 2}}
SCALE = {"evaluation_scale": 1 / 0.07}
CASES = {
    "a5 4+5 vectors, 2 heads": ("a5", 3, A5 | SCALE, {}, "prefix=4 postfix=5 heads=2"),
    "a5 16+16, 8 heads": (
        "a5",
        8,
        {"learned_texts": {"prefix": 16, "postfix": 16}, "frame_layers": {"layers": 2, "frames": 8, "heads": 8}}
        | SCALE,
        {"patch": 32, "size": 64},
        "prefix=16 postfix=16 heads=8",
    ),
    "a5 0+1, no layers": ("a5", 2, {"learned_texts": {"prefix": 0, "postfix": 1}} | SCALE, {}, "prefix=0 postfix=1"),
    "actionclip 7 frames": (
        "actionclip",
        7,
        {"fusion": {"head": "Transf_cls", "layers": 1, "frames": 7}, "evaluation_scale": 100},
        {"patch": 14, "size": 28},
        "",
    ),
    "actionclip as it is meant": (
        "actionclip",
        3,
        {"fusion": {"head": "Conv_1D", "transposes": True}, "evaluation_scale": 100},
        {},
        "transposes=true",
    ),
    "ezclip 16 frames": (
        "ezclip",
        16,
        {"temporal_adapters": {"frames": 16}, "evaluation_scale": 100},
        {"patch": 14, "size": 28},
        "",
    ),
    "ezclip other adapters": (
        "ezclip",
        5,
        {"temporal_adapters": {"frames": 5, "reduction": 8}, "evaluation_scale": 100},
        {"heads": (4, 2), "width": 128},
        "vision_heads=4 text_heads=2",
    ),
    "openvclip 13 frames": ("openvclip", 13, {"neighbour_frames": {"frames": 13, "reach": 2}}, {}, "frames=13 reach=2"),
    "vificlip gelu": ("vificlip", 3, {}, {"quick": False, "patch": 32, "size": 32}, "quick_gelu=false"),
    "vitaclip 16 frames": (
        "vitaclip",
        16,
        {"view_prompts": {"frames": 16, "global_prompts": 3, "context": 5, "class_position": "middle"}},
        {"heads": (2, 1)},
        "class_position=middle vision_heads=2",
    ),
    "vitaclip names first": (
        "vitaclip",
        2,
        {"view_prompts": {"frames": 2, "global_prompts": 1, "context": 4, "class_position": "front"}},
        {"patch": 14, "size": 14},
        "class_position=front",
    ),
    "tcclip": (
        "tcclip",
        3,
        {"video_context": {"frames": 3, "context": 7, "seeds": 0.5, "merged": 2, "vectors": 3}},
        {"size": 64},
        "frames=3 context=7 seeds=0.5 merged=2",
    ),
    "xclip 32 frames": (
        "xclip",
        32,
        {"cross_frames": {"frames": 32, "layers": 2, "prompt_layers": 1}},
        {"patch": 14, "size": 14},
        "",
    ),
    "xclip 336 pixels": (
        "xclip",
        2,
        {"cross_frames": {"frames": 2}},
        {"size": 336, "patch": 112},
        "",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_a_published_file_evaluates_as_what_it_was_made_of(tmp_path, case):
    system, frames, parts, sizes, words = CASES[case]
    model = made(shape(**sizes) | parts | {"system": system})
    file, base = saved(tmp_path, system, model)
    plan = plan_import(file, base, settings=tuple(words.split()))
    assert (plan.missing, plan.unknown) == ((), ())
    assert not any("does not say" in line for line in plan.lines())
    plan.write(tmp_path / "ours.safetensors")
    ours = load_model(ModelOptions(checkpoint=tmp_path / "ours.safetensors", device="cpu"))
    assert torch.allclose(scores(ours, frames), scores(model, frames), atol=1e-4)


ASSUMED = {
    "a5": "prefix=16 postfix=16 heads=8",
    "openvclip": "frames=8 reach=1",
    "vitaclip": "class_position=end",
    "tcclip": "frames=16 context=96 seeds=0.3 merged=70",
}


@pytest.mark.parametrize("system", ASSUMED)
def test_what_a_file_does_not_tell_is_said_and_changes_the_outcome(tmp_path, system):
    case = next(name for name, one in CASES.items() if one[0] == system)
    _, frames, parts, sizes, words = CASES[case]
    model = made(shape(**sizes) | parts | {"system": system})
    file, base = saved(tmp_path, system, model)
    (line,) = [one for one in plan_import(file, base).lines() if one.startswith("assumed")]
    assert line == f"assumed        {ASSUMED[system]}: the file does not say; otherwise: --settings NAME=VALUE"
    given = words.split()[:1]
    rest = " ".join(one for one in ASSUMED[system].split() if one.split("=")[0] != given[0].split("=")[0])
    lines = plan_import(file, base, settings=given).lines()
    assert [one.split(":")[0].removeprefix("assumed").strip() for one in lines if one.startswith("assumed")] == (
        [rest] if rest else []
    )
    if base is None:
        with pytest.warns(UserWarning, match=rf"taken to have {ASSUMED[system]}, which it does not tell"):
            assumed = load_model(ModelOptions(checkpoint=file, device="cpu"))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            right = load_model(ModelOptions(checkpoint=file, settings=words.split(), device="cpu"))
        assert torch.allclose(scores(right, frames), scores(model, frames), atol=1e-4)
        if assumed.view_frames in (None, frames):
            assert not torch.allclose(scores(assumed, frames), scores(model, frames), atol=1e-2)


def test_the_towers_convention_is_said_of_every_file_but_openais(tmp_path):
    model = made(shape(heads=(2, 1)) | {"temporal_adapters": {"frames": 2}})
    file, _ = saved(tmp_path, "ezclip", model)
    said = (
        "by convention  quick_gelu=true vision_heads=1 text_heads=1: no tensor says, as in OpenAI's CLIP; otherwise: "
    )
    assert plan_import(file).lines()[-1] == f"{said}--settings NAME=VALUE"
    marks = {
        "input_resolution": torch.tensor(32),
        "context_length": torch.tensor(77),
        "vocab_size": torch.tensor(49408),
    }
    torch.save({**build_clip(shape()).state_dict(), **marks}, tmp_path / "openai.pt")
    assert not [line for line in plan_import(tmp_path / "openai.pt").lines() if line.startswith("by convention")]


class TestNewWeights:
    """The sizes of what is added to a plain CLIP."""

    @pytest.fixture(scope="class")
    def plain(self, tmp_path_factory):
        file = tmp_path_factory.mktemp("plain") / "plain.safetensors"
        save_checkpoint(build_clip(shape()), shape(), Preprocessing(32), file)
        return file

    def load(self, plain, system, *words):
        return load_model(ModelOptions(checkpoint=plain, model=system, settings=words, device="cpu"))

    @pytest.mark.parametrize(
        ("system", "words", "frames"),
        [
            ("xclip", ("frames=32",), 32),
            ("ezclip", ("frames=16",), 16),
            ("vitaclip", ("frames=16", "context=null"), 16),
            ("a5", ("frames=8", "layers=1", "heads=4", "prefix=2", "postfix=3"), 8),
            ("a5", ("layers=0",), None),
            ("actionclip", ("head=Transf_cls", "frames=5", "layers=1"), 5),
            ("openvclip", ("frames=3", "reach=2"), 3),
            ("tcclip", ("frames=4", "vectors=2", "seeds=1", "biased=false"), 4),
        ],
    )
    def test_they_are_as_asked(self, plain, system, words, frames):
        model = self.load(plain, system, *words)
        assert (model.view_frames, model.random_weights) == (frames, system != "openvclip")
        for name, value in parsed(words).items():
            assert name in {key for part in model.architecture.values() if isinstance(part, dict) for key in part}
            assert value in [
                part[name] for part in model.architecture.values() if isinstance(part, dict) and name in part
            ]

    @pytest.mark.parametrize(
        ("system", "word", "said"),
        [
            ("xclip", "frame=8", 'xclip has no such setting; did you mean "frames"'),
            ("xclip", "frames=eight", "Input should be a valid integer"),
            ("xclip", "frames=true", "Input should be a valid integer"),
            ("xclip", "frames=0", "messages between frames: frames=0, and it takes 1 or more"),
            ("xclip", "frames", "give NAME=VALUE, such as frames=16"),
            ("vitaclip", "context=0", "prompts between frames: context=0, and it takes 1 or more"),
            ("a5", "heads=3", "layers over frames: 3 heads do not share a width of 16"),
            ("a5", "prefix=70", "70 and 16 leave no room; 74 are the most"),
            ("tcclip", "seeds=1.5", "seeds=1.5, and it is a share between 0 and 1"),
            ("vificlip", "depth=3", "vificlip without weights of its own has no such setting"),
            ("xclip", "text_heads=5", "does not divide the tower's width, 16"),
        ],
    )
    def test_what_does_not_fit_is_one_line(self, plain, system, word, said):
        with pytest.raises((ConfigError, ModelError)) as caught:
            self.load(plain, system, word)
        assert said in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_a_tag_says_it_itself(self):
        with pytest.raises(ConfigError, match="--settings frames: ViT-B-16-quickgelu says it itself"):
            load_model(ModelOptions(pretrained="random", settings=("frames=8",), device="cpu"))

    @pytest.mark.parametrize("system", ["xclip", "ezclip", "vitaclip", "a5", "tcclip", "openvclip"])
    def test_a_training_makes_as_many_frames_as_it_reads(self, tmp_path, system):
        options = {"dataset": "d", "output": tmp_path / "o.safetensors", "model": system}
        assert settled(TrainConfig(**options, frames=32)).settings == ("frames=32",)
        assert settled(TrainConfig(**options, frames=32, settings=("frames=8",))).settings == ("frames=8",)
        assert settled(TrainConfig(**options, checkpoint=tmp_path / "c.pt")).settings == ()


def test_words_and_values_are_each_others_inverse():
    architecture = with_settings(shape() | A5, parsed(("prefix=1", "quick_gelu=false", "vision_heads=4")), "it")
    names = ("prefix", "postfix", "heads", "quick_gelu", "vision_heads", "text_heads")
    words = told(architecture, names)
    assert words == "prefix=1 postfix=5 heads=2 quick_gelu=false vision_heads=4 text_heads=1"
    assert with_settings(architecture, parsed(words.split()), "it") == architecture
    assert architecture["vision_cfg"]["head_width"] == 16
    assert A5["learned_texts"]["prefix"] == 4  # what was given stays as it is
