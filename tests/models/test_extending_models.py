"""docs/extending.md: its example is a model as it stands, a package of its own, from new weights to ZAR on its file."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from outside_package import files_of, install_files
from torch.nn.functional import cross_entropy, normalize

from zar_ray.adaptation.adapter import PlannedVideo, VideoAdapter
from zar_ray.adaptation.options import AdaptationOptions
from zar_ray.data.class_texts import prompts_of
from zar_ray.errors import ConfigError, ModelError
from zar_ray.models.architecture import build_clip, load_architecture
from zar_ray.models.checkpoints import save_checkpoint
from zar_ray.models.clip import ClipModel
from zar_ray.models.importing import plan_import
from zar_ray.models.loading import load_model
from zar_ray.models.options import ModelOptions
from zar_ray.models.prompt_passes import unfit_text
from zar_ray.models.systems.registry import known_systems, registered
from zar_ray.models.vision import unfit_vision
from zar_ray.training.network import VideoTextModel, save_trained
from zar_ray.training.options import TrainConfig
from zar_ray.training.schedule import MULTIPLE, optimiser
from zar_ray.video.options import ViewConfig
from zar_ray.video.plans import plan_views
from zar_ray.video.transforms import Preprocessing

NAMES = ("red circle", "green square", "blue bar")
LABELS = torch.tensor([0, 1, 2, 0])
FRAMES = 3
OWN = {"fusion.inner.weight", "fusion.inner.bias", "fusion.score.weight"}


@pytest.fixture
def blocks():
    return files_of("extending.md", "A new model")


@pytest.fixture
def installing(tmp_path, monkeypatch):
    """Installs packages of files, a folder each; what they add is forgotten after the test."""
    modules = set(sys.modules)

    def add(files, name="package"):
        monkeypatch.syspath_prepend(install_files(tmp_path / name, files))
        registered.cache_clear()

    yield add
    registered.cache_clear()
    for module in set(sys.modules) - modules:
        if module.startswith("zar_framewise"):
            del sys.modules[module]


@pytest.fixture
def example(blocks, installing):
    """The page's package, installed."""
    assert set(blocks) == {"zar_framewise.py", "pyproject.toml"}
    assert len(blocks["zar_framewise.py"].splitlines()) < 80
    installing(blocks)


@pytest.fixture
def plain(tmp_path, architecture):
    """A CLIP that tells pictures apart, which the usual initial weights hardly do."""
    torch.manual_seed(0)
    clip = build_clip(architecture)
    with torch.no_grad():
        for parameter in clip.parameters():
            if parameter.ndim > 1:
                parameter.mul_(3)
    save_checkpoint(clip, architecture, Preprocessing(32), tmp_path / "plain.safetensors", {"name": "plain"})
    return tmp_path / "plain.safetensors"


@pytest.fixture
def started(example, plain):
    """Where `zar train --model framewise` starts."""
    return load_model(ModelOptions(model="framewise", checkpoint=plain, device="cpu"))


@pytest.fixture
def pixels():
    return torch.randn(4, FRAMES, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def network_of(model):
    config = TrainConfig(frames=FRAMES, trains="added", lr=0.002, weight_decay=0.5, decays="all")
    return VideoTextModel(model, prompts_of([NAMES], config)[0], config), config


def trained(model, pixels, steps=12):
    """The network after some steps of the optimiser that training makes, and the loss of each."""
    network, config = network_of(model)
    adam, losses = optimiser(network.trained(), network.rule, config), []
    for group in adam.param_groups:
        group["lr"] = config.lr * group[MULTIPLE]
    for _ in range(steps):
        loss = cross_entropy(network(pixels), LABELS)
        losses.append(loss.item())
        adam.zero_grad()
        loss.backward()
        adam.step()
    return network, losses


def test_it_is_a_model_by_its_name(example, started, plain):
    assert "framewise" in known_systems()
    assert started.architecture["frame_weights"] == {"inner": 128}
    assert (started.name, started.random_weights, started.context) == ("framewise", True, "a photo of a")
    assert (started.frame_independent, started.view_frames, started.averages_frames) == (True, None, False)
    frames = torch.randn(2, 5, 24)
    assert torch.allclose(started.view_features(frames), normalize(frames.mean(dim=1), dim=-1), atol=1e-6)
    before = load_model(ModelOptions(checkpoint=plain, device="cpu"))
    assert started.fingerprint != before.fingerprint
    assert load_architecture("framewise")["frame_weights"] == {"inner": 128}
    with pytest.raises(ModelError, match='no model is called "framewize"; did you mean "framewise"'):
        load_model(ModelOptions(model="framewize", device="cpu"))


def test_training_reaches_the_head_alone_and_lowers_the_loss(started, pixels):
    before = {name: tensor.clone() for name, tensor in started.clip.state_dict().items()}
    network, losses = trained(started, pixels)
    assert losses[-1] < 0.9 * losses[0], losses
    assert network.trained_state().keys() == OWN
    after = started.clip.state_dict()
    assert {name for name in after if not torch.equal(after[name], before[name])} == OWN


def test_training_follows_its_rule(started):
    network, config = network_of(started)
    names = {id(parameter): name for name, parameter in network.trained()}
    found = {}
    for group in optimiser(network.trained(), network.rule, config).param_groups:
        found |= {names[id(one)]: (group[MULTIPLE], group["weight_decay"]) for one in group["params"]}
    assert found == dict.fromkeys(OWN, (10.0, 0.5)) | {"fusion.score.weight": (10.0, 0.0)}


def test_its_file_says_what_it_is(started, pixels, tmp_path):
    network, _ = trained(started, pixels)
    save_trained(network, tmp_path / "mine.safetensors", {})
    loaded = load_model(ModelOptions(checkpoint=tmp_path / "mine.safetensors", device="cpu"))
    assert (loaded.name, loaded.random_weights, loaded.architecture) == ("mine", False, started.architecture)
    assert loaded.context == "a photo of a"
    same = ClipModel(started.clip, "same", started.preprocessing, started.architecture)
    assert loaded.fingerprint == same.fingerprint
    frames = loaded.encode_images(pixels.flatten(0, 1)).unflatten(0, pixels.shape[:2])
    with torch.no_grad():
        videos = network.model.view_features(network.model.clip.visual(pixels.flatten(0, 1)).unflatten(0, (4, FRAMES)))
    assert torch.allclose(loaded.view_features(frames), videos, atol=1e-5)
    assert not torch.allclose(videos, normalize(frames.mean(dim=1), dim=-1), atol=1e-3)
    assert network_of(loaded)[0].rule is network.rule


def test_its_published_file_is_told_by_its_keys(started, pixels, tmp_path):
    network, _ = trained(started, pixels)
    state = network.model.clip.state_dict()
    named = {f"module.{name.replace('fusion.', 'frame_attention.')}": tensor for name, tensor in state.items()}
    torch.save({"model": named, "epoch": 7}, tmp_path / "theirs.pth")
    plan = plan_import(tmp_path / "theirs.pth")
    assert plan.lines()[0].endswith(": Framewise, epoch 7")
    assert (plan.missing, plan.unknown) == ((), ())
    plan.write(tmp_path / "ours.safetensors")
    loaded = load_model(ModelOptions(checkpoint=tmp_path / "ours.safetensors", device="cpu"))
    assert loaded.architecture["system"] == "framewise"
    assert loaded.fingerprint == network.model.fingerprint
    read = load_model(ModelOptions(checkpoint=tmp_path / "theirs.pth", device="cpu"))
    assert read.fingerprint == loaded.fingerprint


def test_zar_goes_on_top(started, pixels):
    network, _ = trained(started, pixels)
    options = AdaptationOptions(
        views=ViewConfig(frames=FRAMES, eval_frames=FRAMES, views_per_rate=1, crops=1), method=("zero_shot", "zar")
    )
    plan = plan_views("a.mp4", 31, 40, 56, options.views, Preprocessing(32), 0)
    shape = (len(plan.frames), plan.height, plan.width, 3)
    frames = np.random.default_rng(0).integers(0, 255, shape, dtype=np.uint8)
    adapter = VideoAdapter(network.model, prompts_of([NAMES], options), options.method, options)
    (outcome,) = adapter.predict([PlannedVideo(plan, frames)])
    zero_shot, zar = (case.decision for case in outcome.cases)
    assert torch.allclose(zar.logits_before, zero_shot.logits_after, atol=1e-5)
    assert not torch.allclose(zar.logits_after, zar.logits_before, atol=1e-4)


def test_its_settings_are_checked(example, architecture):
    with pytest.raises(ModelError, match=r"not an open_clip model config: .*outer"):
        build_clip({**architecture, "frame_weights": {"outer": 3}})


class TestPackagesThatDoNotFit:
    """One line each, that names the package."""

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("code", "message"),
        [
            ("import nothing_of_this_name", 'package zar-framewise: its model "framewise" cannot be loaded (ModuleNot'),
            (
                "SYSTEM = 3",
                'package zar-framewise: "zar_framewise:SYSTEM" of its model "framewise" is no System but a int',
            ),
            (
                "from zar_ray.models.systems.base import System\nSYSTEM = System('xclip', 'Mine')",
                'package zar-framewise: its model is called "xclip", as one of zar-ray is; rename it',
            ),
            (
                "from zar_ray.models.systems.base import System\n"
                "SYSTEM = System('mine', 'Mine', parts={'fusion': print})",
                'package zar-framewise: has a part under the word "fusion", as zar-ray has; rename it',
            ),
        ],
    )
    def test_one(self, blocks, installing, code, message):
        installing({**blocks, "zar_framewise.py": code})
        with pytest.raises(ConfigError) as caught:
            load_model(ModelOptions(pretrained="random", device="cpu"))
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_two_of_one_name(self, blocks, installing):
        installing(blocks)
        description = blocks["pyproject.toml"].replace("zar-framewise", "other").replace("zar_framewise", "other_one")
        installing({"other_one.py": blocks["zar_framewise.py"], "pyproject.toml": description}, "other")
        with pytest.raises(ConfigError, match=r'its model is called "framewise", as one of package [a-z-]+ is; rename'):
            registered()


@pytest.mark.parametrize(("tower", "unfit"), [("visual", unfit_vision), ("transformer", unfit_text)])
def test_what_hooks_into_a_tower_is_never_passed_over(architecture, tower, unfit):
    """The faster passes of our own read a tower's weights, and would not see it."""
    clip = build_clip(architecture)
    read = clip.visual if tower == "visual" else clip
    assert unfit(read) is None
    blocks = (clip.visual.transformer if tower == "visual" else clip.transformer).resblocks
    blocks[1].register_forward_hook(lambda block, inputs, output: 2 * output)
    assert "hooks into its" in unfit(read)
