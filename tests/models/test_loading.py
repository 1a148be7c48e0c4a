import time
import urllib.error
import warnings

import huggingface_hub
import pytest
import torch
from safetensors.torch import save_file

from zar_ray.errors import ModelError
from zar_ray.models import loading
from zar_ray.models.architecture import build_clip, named_architecture
from zar_ray.models.checkpoints import save_checkpoint
from zar_ray.models.devices import pick_device
from zar_ray.models.loading import hub_problem, load_model
from zar_ray.models.options import ModelOptions
from zar_ray.video.transforms import Preprocessing

SMALL = "ViT-S-32-alt"  # the fewest parameters among open_clip's models


@pytest.fixture
def no_network(monkeypatch, tmp_path):
    """A machine that never downloaded anything and cannot: names do not resolve."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(loading.hub, "ENDPOINT", "https://hub.invalid")


def test_own_checkpoint_describes_itself(tmp_path, clip, architecture):
    path = tmp_path / "tiny.safetensors"
    preprocessing = Preprocessing(32, interpolation="bilinear", short_side=40)
    save_checkpoint(clip, architecture, preprocessing, path, notes={"name": "tiny demo"})
    model = load_model(ModelOptions(checkpoint=path, model="ViT-L-14", precision="bf16", device="cpu"))
    assert (model.name, model.preprocessing, model.precision) == ("tiny demo", preprocessing, "bf16")
    assert not model.random_weights
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_openai_layout_is_inferred_and_says_what_it_assumes(tmp_path, clip):
    torch.save(clip.state_dict(), tmp_path / "mine.pt")
    with pytest.warns(UserWarning, match=r"mine\.pt: read as OpenAI's CLIP, with QuickGELU"):
        model = load_model(ModelOptions(checkpoint=tmp_path / "mine.pt", device="cpu"))
    assert model.preprocessing == Preprocessing(32)
    assert type(model.clip.transformer.resblocks[0].mlp.gelu).__name__ == "QuickGELU"


def test_openai_marks_need_no_warning(tmp_path, clip):
    marks = {
        "input_resolution": torch.tensor(32),
        "context_length": torch.tensor(77),
        "vocab_size": torch.tensor(49408),
    }
    torch.save({**clip.state_dict(), **marks}, tmp_path / "openai.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_model(ModelOptions(checkpoint=tmp_path / "openai.pt", device="cpu"))


def test_a_named_architecture_must_fit(tmp_path, clip):
    torch.save(clip.state_dict(), tmp_path / "mine.pt")
    with pytest.raises(ModelError, match=r"mine\.pt: .* should be .*--model"):
        load_model(ModelOptions(checkpoint=tmp_path / "mine.pt", model=SMALL, device="cpu"))


def test_a_named_architecture_decides_the_activation(tmp_path, monkeypatch, clip, architecture):
    plain = {**architecture, "quick_gelu": False}
    monkeypatch.setattr(loading, "named_architecture", lambda name: plain)
    torch.save(clip.state_dict(), tmp_path / "mine.pt")
    model = load_model(ModelOptions(checkpoint=tmp_path / "mine.pt", model="a plain one", device="cpu"))
    assert type(model.clip.transformer.resblocks[0].mlp.gelu).__name__ == "GELU"


def test_fingerprint_is_of_the_model_not_of_the_file(tmp_path, clip, architecture):
    def fingerprint(path):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return load_model(ModelOptions(checkpoint=path, device="cpu")).fingerprint

    halves = {name: tensor.half() for name, tensor in clip.state_dict().items()}
    torch.save({"state_dict": halves}, tmp_path / "a.pt")
    save_file(halves, tmp_path / "b.safetensors")
    save_checkpoint(halves, architecture, Preprocessing(32), tmp_path / "c.safetensors")
    save_checkpoint(halves, {**architecture, "quick_gelu": False}, Preprocessing(32), tmp_path / "gelu.safetensors")
    halves["logit_scale"] = halves["logit_scale"] + 1
    save_checkpoint(halves, architecture, Preprocessing(32), tmp_path / "other.safetensors")

    same = {fingerprint(tmp_path / name) for name in ("a.pt", "b.safetensors", "c.safetensors")}
    assert len(same) == 1
    assert fingerprint(tmp_path / "gelu.safetensors") not in same
    assert fingerprint(tmp_path / "other.safetensors") not in same


def test_random_weights_are_the_same_every_time_and_say_so():
    torch.manual_seed(1)
    first = load_model(ModelOptions(model=SMALL, pretrained="random", device="cpu"))
    torch.manual_seed(2)
    state = torch.random.get_rng_state()
    second = load_model(ModelOptions(model=SMALL, pretrained="random", device="cpu"))
    assert first.fingerprint == second.fingerprint
    assert first.random_weights
    assert torch.equal(state, torch.random.get_rng_state())


def test_without_network_both_ways_out_are_named_at_once(no_network):
    started = time.monotonic()
    with pytest.raises(ModelError) as caught:
        load_model(ModelOptions(device="cpu"))
    assert time.monotonic() - started < 20
    message = str(caught.value)
    assert "ViT-B-16-quickgelu openai" in message
    assert "--checkpoint FILE" in message
    assert "bring that machine's" in message
    assert "\n" not in message


def test_offline_mode_is_respected(monkeypatch):
    monkeypatch.setattr(loading.hub, "HF_HUB_OFFLINE", True)
    assert hub_problem() == "HF_HUB_OFFLINE is set"


def test_an_unwilling_hub_counts_as_reached(monkeypatch):
    def refuse(*args, **kwargs):
        raise urllib.error.HTTPError("https://hub.invalid", 403, "forbidden", None, None)  # type: ignore[arg-type]

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    assert hub_problem() is None


@pytest.mark.parametrize("asked", ["RN50", "RN50-quickgelu"])
def test_weights_of_a_tag_bring_their_own_activation(monkeypatch, tmp_path, asked):
    """OpenAI's weights under the plain name would silently give wrong features."""
    torch.manual_seed(0)
    config = named_architecture("RN50-quickgelu")
    config["vision_cfg"] |= {"layers": [1, 1, 1, 1], "width": 8}
    config["text_cfg"] |= {"layers": 1, "width": 64, "heads": 1}
    path = tmp_path / "weights.safetensors"
    save_file(build_clip(config).state_dict(), path)
    monkeypatch.setattr(loading, "cached_weights", lambda model, tag: path)
    monkeypatch.setattr(loading, "named_architecture", lambda name: {**config, "quick_gelu": name != "RN50"})
    model = load_model(ModelOptions(model=asked, pretrained="openai", device="cpu"))
    assert model.name == "RN50-quickgelu"
    assert type(model.clip.transformer.resblocks[0].mlp.gelu).__name__ == "QuickGELU"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "ViT-B-16-quikgelu"}, 'did you mean "ViT-B-16-quickgelu"'),
        ({"model": "actoinclip"}, 'did you mean "actionclip"'),
        ({"model": "vificlp", "checkpoint": "mine.safetensors"}, 'did you mean "vificlip"'),
        ({"pretrained": "opnai"}, 'has no weights called "opnai"; did you mean "openai"'),
        ({"pretrained": None}, "no weights are named; give --checkpoint FILE"),
        ({"pretrained": "random", "device": "tpu0"}, "device"),
        ({"checkpoint": "gone.pt"}, r"gone\.pt: no such checkpoint file"),
    ],
)
def test_mistakes_are_one_line(options, message):
    with pytest.raises(ModelError, match=message) as caught:
        load_model(ModelOptions(**{"device": "cpu", **options}))
    assert "\n" not in str(caught.value)


def test_a_file_given_as_a_tag_is_told_apart(tmp_path):
    (tmp_path / "weights.pt").touch()
    with pytest.raises(ModelError, match="give files with --checkpoint"):
        load_model(ModelOptions(pretrained=str(tmp_path / "weights.pt"), device="cpu"))


def test_a_gpu_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto") == torch.device("cpu")
    with pytest.raises(ModelError, match="--device cpu"):
        pick_device("cuda")
