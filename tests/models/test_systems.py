"""`--model NAME` of published systems: from a plain CLIP, from their own files, and from each other's."""

from __future__ import annotations

import pytest
import torch

from zar_ray.errors import ConfigError, ModelError
from zar_ray.models import systems
from zar_ray.models.architecture import build_clip, named_architecture, read_architecture
from zar_ray.models.checkpoints import save_checkpoint
from zar_ray.models.loading import load_model
from zar_ray.models.options import ModelOptions
from zar_ray.models.systems import find_system, known_systems
from zar_ray.training.inputs import load_architecture
from zar_ray.video.transforms import Preprocessing


@pytest.fixture
def plain(tmp_path, clip, architecture):
    save_checkpoint(clip, architecture, Preprocessing(32), tmp_path / "plain.safetensors", {"name": "plain"})
    return tmp_path / "plain.safetensors"


def load(checkpoint, name):
    return load_model(ModelOptions(model=name, checkpoint=checkpoint, device="cpu"))


def test_the_shipped_systems_build_on_a_clip_of_open_clips():
    assert known_systems() == ("a5", "actionclip", "ezclip", "vificlip", "vitaclip", "xclip")
    assert {find_system(name).clip for name in known_systems()} == {"ViT-B-16-quickgelu"}
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
    assert loaded.architecture == architecture


def test_vificlip_starts_from_a_plain_clip_as_it_is(plain, architecture):
    loaded = load(plain, "vificlip")
    assert (loaded.name, loaded.architecture, loaded.random_weights) == ("plain", architecture, False)
    assert (find_system("vificlip").additions, find_system("vificlip").optional) == ({}, ("deep_prompts",))
    assert load_architecture("vificlip") == named_architecture("ViT-B-16-quickgelu")


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


def test_untrained_weights_can_be_asked_for(monkeypatch, tmp_path):
    """As any model's; the description's own sizes are a ViT-B/16's, so smaller ones stand in."""
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "small.yaml").write_text("clip: RN50\nfusion: {head: LSTM}\n")
    monkeypatch.setattr(systems, "conf_dir", lambda: tmp_path)
    system = find_system("small")
    assert (system.clip, system.additions) == ("RN50", {"fusion": {"head": "LSTM"}})
    assert known_systems() == ("small",)


def test_an_architecture_may_build_on_a_name(tmp_path, architecture):
    file = tmp_path / "mine.yaml"
    file.write_text("clip: ViT-B-32-quickgelu\ntemporal_adapters: {frames: 2}\n")
    read = read_architecture(file)
    assert read["vision_cfg"]["patch_size"] == 32
    assert read["temporal_adapters"] == {"frames": 2}
    file.write_text("clip: [1]\n")
    with pytest.raises(ConfigError, match=r"mine\.yaml: clip: must be the name of a model of open_clip's"):
        read_architecture(file)


def test_two_parts_may_be_in_one_model(architecture):
    parts = {"fusion": {"head": "Transf", "layers": 1}, "temporal_adapters": {"frames": 2}}
    names = build_clip({**architecture, **parts}).state_dict()
    assert any(name.startswith("fusion.") for name in names)
    assert any("Adapter" in name for name in names)
