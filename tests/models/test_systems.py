"""`--model NAME` of published systems: from a plain CLIP, from their own files, and from each other's."""

from __future__ import annotations

import json

import pytest
import torch
from shipped import shipped_systems

from zar_ray.data.class_texts import prompts_of, with_words
from zar_ray.errors import ConfigError, ModelError
from zar_ray.models.architecture import build_clip, load_architecture, model_name, named_architecture
from zar_ray.models.checkpoints import save_checkpoint
from zar_ray.models.exporting import export_checkpoint
from zar_ray.models.loading import load_model
from zar_ray.models.merging import merge_checkpoints
from zar_ray.models.options import ModelOptions
from zar_ray.models.systems.registry import find_system, known_systems
from zar_ray.models.text import PromptedClasses, default_words, remark_on_words
from zar_ray.training.options import TrainConfig
from zar_ray.video.transforms import Preprocessing

NAMES = ("red circle", "green square")


@pytest.fixture
def plain(tmp_path, clip, architecture):
    save_checkpoint(clip, architecture, Preprocessing(32), tmp_path / "plain.safetensors", {"name": "plain"})
    return tmp_path / "plain.safetensors"


def load(checkpoint, name):
    return load_model(ModelOptions(model=name, checkpoint=checkpoint, device="cpu"))


def test_the_shipped_systems_build_on_a_clip_of_open_clips():
    published = {"a5", "actionclip", "ezclip", "openvclip", "tcclip", "vificlip", "vitaclip", "xclip"}
    assert published <= set(shipped_systems()) <= set(known_systems())
    assert {find_system(name).clip for name in published} == {"ViT-B-16-quickgelu"}
    assert find_system("ViT-B-16-quickgelu") is None
    assert find_system("demo") is None  # an architecture to train from scratch


@pytest.mark.parametrize(("name", "part"), [("actionclip", "fusion"), ("ezclip", "temporal_adapters")])
def test_a_plain_clip_gets_new_weights_the_same_every_time(plain, clip, name, part):
    first, again = load(plain, name), load(plain, name)
    assert (first.name, first.fingerprint) == (name, again.fingerprint)
    assert part in first.architecture
    assert first.random_weights
    assert (first.logit_scale, first.preprocessing) == (100, Preprocessing(32, short_side=36))
    state = first.clip.state_dict()
    assert all(torch.equal(state[key], tensor) for key, tensor in clip.state_dict().items())


def test_a_systems_own_checkpoint_is_taken_as_it_is(plain, tmp_path):
    ours = load(plain, "ezclip")
    save_checkpoint(ours.clip, ours.architecture, ours.preprocessing, tmp_path / "ez.safetensors", {"name": "ez"})
    default = ModelOptions.model_fields["model"].default
    for name in ("ezclip", default):
        loaded = load(tmp_path / "ez.safetensors", name)
        assert (loaded.name, loaded.fingerprint, loaded.random_weights) == ("ez", ours.fingerprint, False)
    with pytest.raises(ModelError, match="ez: has temporal_adapters, which --model actionclip has not; leave --model"):
        load(tmp_path / "ez.safetensors", "actionclip")


@pytest.mark.parametrize("prompted", [False, True])
def test_vificlip_takes_its_checkpoints_with_prompts_and_without(tmp_path, architecture, prompted):
    """Both kinds, in zar-ray's format; `tests/models/test_importing.py` has the published files."""
    architecture |= {"deep_prompts": {"vectors": 3, "depth": 2}} if prompted else {}
    own = Preprocessing(32, short_side=36, interpolation="bilinear")
    save_checkpoint(build_clip(architecture), architecture, own, tmp_path / "vifi.safetensors", {"name": "vifi"})
    loaded = load(tmp_path / "vifi.safetensors", "vificlip")
    assert (loaded.name, loaded.preprocessing, loaded.random_weights) == ("vifi", own, False)
    assert loaded.architecture == {**architecture, "system": "vificlip"}


def test_vificlip_starts_from_a_plain_clip_as_it_is(plain, architecture):
    loaded, before = load(plain, "vificlip"), load_model(ModelOptions(checkpoint=plain, device="cpu"))
    assert (loaded.name, loaded.random_weights) == ("plain", False)
    assert loaded.architecture == {**architecture, "system": "vificlip"}
    assert loaded.fingerprint == before.fingerprint
    assert (find_system("vificlip").additions, find_system("vificlip").optional) == ({}, ("deep_prompts",))
    assert load_architecture("vificlip") == {**named_architecture("ViT-B-16-quickgelu"), "system": "vificlip"}


class TestSystemOfACheckpoint:
    """Which system weights are of is written down with them, and is no part of what they are."""

    def test_what_adds_nothing_is_a_clip_to_start_from(self, plain, tmp_path):
        ours = load(plain, "vificlip")
        save_checkpoint(ours.clip, ours.architecture, ours.preprocessing, tmp_path / "v.safetensors", {"name": "v"})
        started = load(tmp_path / "v.safetensors", "xclip")
        assert (started.name, started.architecture["system"], started.random_weights) == ("xclip", "xclip", True)
        assert load_model(ModelOptions(checkpoint=tmp_path / "v.safetensors")).architecture["system"] == "vificlip"

    def test_one_whose_package_is_not_here_is_one_line(self, clip, architecture, tmp_path):
        file = tmp_path / "far.safetensors"
        save_checkpoint(clip, {**architecture, "system": "far"}, Preprocessing(32), file)
        with pytest.raises(ModelError, match=r'of the system "far", which is not here; install the package') as caught:
            load_model(ModelOptions(checkpoint=file, device="cpu"))
        assert "\n" not in str(caught.value)

    def test_it_is_still_the_clip_it_was_in_other_formats(self, plain, tmp_path):
        ours = load(plain, "vificlip")
        save_checkpoint(ours.clip, ours.architecture, ours.preprocessing, tmp_path / "v.safetensors")
        export_checkpoint(tmp_path / "v.safetensors", tmp_path / "folder", "open_clip")
        written = json.loads((tmp_path / "folder" / "open_clip_config.json").read_text())
        assert "system" not in written["model_cfg"]
        named = {**named_architecture("ViT-B-32-quickgelu"), "system": "vificlip"}
        assert model_name(named) == "ViT-B-32-quickgelu"

    def test_a_mixture_is_of_the_one_whose_pixels_it_has(self, plain, tmp_path):
        ours, tuned = load(plain, "vificlip"), tmp_path / "v.safetensors"
        save_checkpoint(ours.clip, ours.architecture, Preprocessing(32, short_side=36), tuned)
        merge_checkpoints((plain, tuned), (0.5, 0.5), tmp_path / "m.safetensors", pixels_of=tuned)
        mixed = load_model(ModelOptions(checkpoint=tmp_path / "m.safetensors", device="cpu"))
        assert (mixed.architecture["system"], mixed.context) == ("vificlip", "a photo of a")
        assert mixed.preprocessing.short_side == 36


class TestPrompt:
    """The words that a system's checkpoints were trained with stand where the user names none."""

    @pytest.fixture
    def vificlip(self, plain):
        return load(plain, "vificlip")

    def features(self, model, **options):
        (prompts,) = prompts_of([NAMES], TrainConfig(**options))
        return PromptedClasses.of(model, prompts).initial_features

    def test_vificlip_reads_a_photo_of_a(self, vificlip):
        assert vificlip.context == "a photo of a"
        own = self.features(vificlip)
        assert torch.equal(own, self.features(vificlip, context="a photo of a"))
        assert torch.allclose(own, self.features(vificlip, template="a photo of a {}."), atol=1e-6)
        assert torch.equal(own, PromptedClasses(vificlip, NAMES).initial_features)

    def test_it_is_said_and_written_down_where_no_words_are_given(self, vificlip, plain):
        clip = load_model(ModelOptions(checkpoint=plain, device="cpu"))
        assert 'its prompts start with "a photo of a"' in str(remark_on_words(vificlip, TrainConfig()))
        assert remark_on_words(clip, TrainConfig()) is None
        for given in ({"context": "a clip of"}, {"template": "{}, an action"}):
            options = TrainConfig(**given)
            assert remark_on_words(vificlip, options) is None
            prompts = prompts_of([NAMES], options)
            assert with_words(options, prompts, default_words(vificlip)) == (options, prompts)
        options, prompts = with_words(TrainConfig(), prompts_of([NAMES], TrainConfig()), default_words(vificlip))
        assert options.context == "a photo of a"
        assert prompts == prompts_of([NAMES], options)

    def test_models_that_take_no_words_have_none_to_write_down(self, plain):
        for name in ("xclip", "a5", "vitaclip"):
            assert default_words(load(plain, name)) is None, name

    def test_other_words_can_be_given(self, vificlip, plain):
        clip = load_model(ModelOptions(checkpoint=plain, device="cpu"))
        assert clip.context == "a video of a"
        given = self.features(vificlip, context="a video of a")
        assert torch.equal(given, self.features(clip))
        assert not torch.allclose(given, self.features(vificlip), atol=1e-4)


@pytest.mark.parametrize(
    ("parts", "asked", "message"),
    [
        ({"fusion": {"head": "LSTM"}}, "vificlip", "has fusion, which --model vificlip has not; leave --model away"),
        ({"deep_prompts": {"vectors": 2, "depth": 1}}, "actionclip", "has deep_prompts, which --model actionclip"),
    ],
)
def test_vificlip_is_told_apart_from_the_others(tmp_path, architecture, parts, asked, message):
    architecture |= parts
    save_checkpoint(build_clip(architecture), architecture, Preprocessing(32), tmp_path / "o.safetensors")
    with pytest.raises(ModelError, match=message):
        load(tmp_path / "o.safetensors", asked)


def test_an_architecture_may_build_on_a_name(tmp_path, architecture):
    file = tmp_path / "mine.yaml"
    file.write_text("clip: ViT-B-32-quickgelu\ntemporal_adapters: {frames: 2}\n")
    read = load_architecture(str(file))
    assert read["vision_cfg"]["patch_size"] == 32
    assert read["temporal_adapters"] == {"frames": 2}
    file.write_text("clip: [1]\n")
    with pytest.raises(ConfigError, match=r"mine\.yaml: clip: must be the name of a model of open_clip's"):
        load_architecture(str(file))
    with pytest.raises(ConfigError, match='--architecture ezclp: no such name or file; did you mean "ezclip"'):
        load_architecture("ezclp")
    assert load_architecture("demo")["embed_dim"] == 128


def test_two_parts_may_be_in_one_model(architecture):
    parts = {"fusion": {"head": "Transf", "layers": 1}, "temporal_adapters": {"frames": 2}}
    names = build_clip({**architecture, **parts}).state_dict()
    assert any(name.startswith("fusion.") for name in names)
    assert any("Adapter" in name for name in names)
