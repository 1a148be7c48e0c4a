"""docs/extending.md: its example is a model as it stands, from new weights to ZAR on its checkpoint."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy, normalize

from zar_ray.adaptation.adapter import PlannedVideo, VideoAdapter
from zar_ray.adaptation.options import AdaptationOptions
from zar_ray.data.class_texts import prompts_of
from zar_ray.errors import ModelError
from zar_ray.models import systems
from zar_ray.models.architecture import PARTS, build_clip
from zar_ray.models.checkpoints import save_checkpoint
from zar_ray.models.clip import ClipModel
from zar_ray.models.loading import load_model
from zar_ray.models.options import ModelOptions
from zar_ray.models.prompt_passes import unfit_text
from zar_ray.models.vision import unfit_vision
from zar_ray.training.network import VideoTextModel, save_trained
from zar_ray.training.options import TrainConfig
from zar_ray.video.options import ViewConfig
from zar_ray.video.plans import plan_views
from zar_ray.video.transforms import Preprocessing

NAMES = ("red circle", "green square", "blue bar")
LABELS = torch.tensor([0, 1, 2, 0])
FRAMES = 3


@pytest.fixture
def example(repository, tmp_path, monkeypatch):
    """The example's names, after its part and its YAML were entered."""
    page = (repository / "docs" / "extending.md").read_text(encoding="utf-8")
    (code,) = [code for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "PART =" in code]
    (description,) = re.findall(r"`conf/models/framewise\.yaml` .*?```yaml\n(.*?)```", page, re.DOTALL)
    assert len(code.splitlines()) < 60
    found: dict = {}
    exec(compile(code, "docs/extending.md", "exec"), found)
    monkeypatch.setitem(PARTS, found["PART"].word, found["PART"])
    (tmp_path / "conf" / "models").mkdir(parents=True)
    (tmp_path / "conf" / "models" / "framewise.yaml").write_text(description)
    monkeypatch.setattr(systems, "conf_dir", lambda: tmp_path / "conf")
    return found


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
    config = TrainConfig(frames=FRAMES, trains="added")
    return VideoTextModel(model, prompts_of([NAMES], config)[0], config)


def trained(model, pixels, steps=12):
    """The network after some steps, and the loss of each."""
    network = network_of(model)
    chosen = [parameter for parameter in network.parameters() if parameter.requires_grad]
    adam, losses = torch.optim.Adam(chosen, lr=0.02), []
    for _ in range(steps):
        loss = cross_entropy(network(pixels), LABELS)
        losses.append(loss.item())
        adam.zero_grad()
        loss.backward()
        adam.step()
    return network, losses


def test_it_is_a_model_by_its_name(example, started, plain):
    assert systems.known_systems() == ("framewise",)
    assert started.architecture["frame_weights"] == {"inner": 128}
    assert (started.name, started.random_weights) == ("framewise", True)
    assert (started.frame_independent, started.view_frames, started.averages_frames) == (True, None, False)
    frames = torch.randn(2, 5, 24)
    assert torch.allclose(started.view_features(frames), normalize(frames.mean(dim=1), dim=-1), atol=1e-6)
    before = load_model(ModelOptions(checkpoint=plain, device="cpu"))
    assert started.fingerprint != before.fingerprint


def test_training_reaches_the_head_alone_and_lowers_the_loss(started, pixels):
    before = {name: tensor.clone() for name, tensor in started.clip.state_dict().items()}
    network, losses = trained(started, pixels)
    assert losses[-1] < 0.9 * losses[0], losses
    own = {"fusion.inner.weight", "fusion.inner.bias", "fusion.score.weight"}
    assert network.trained_state().keys() == own
    after = started.clip.state_dict()
    assert {name for name in after if not torch.equal(after[name], before[name])} == own


def test_its_file_says_what_it_is(started, pixels, tmp_path):
    network, _ = trained(started, pixels)
    save_trained(network, tmp_path / "mine.safetensors", {})
    loaded = load_model(ModelOptions(checkpoint=tmp_path / "mine.safetensors", device="cpu"))
    assert (loaded.name, loaded.random_weights, loaded.architecture) == ("mine", False, started.architecture)
    same = ClipModel(started.clip, "same", started.preprocessing, started.architecture)
    assert loaded.fingerprint == same.fingerprint
    frames = loaded.encode_images(pixels.flatten(0, 1)).unflatten(0, pixels.shape[:2])
    with torch.no_grad():
        videos = network.model.view_features(network.model.clip.visual(pixels.flatten(0, 1)).unflatten(0, (4, FRAMES)))
    assert torch.allclose(loaded.view_features(frames), videos, atol=1e-5)
    assert not torch.allclose(videos, normalize(frames.mean(dim=1), dim=-1), atol=1e-3)


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


@pytest.mark.parametrize(("tower", "unfit"), [("visual", unfit_vision), ("transformer", unfit_text)])
def test_what_hooks_into_a_tower_is_never_passed_over(architecture, tower, unfit):
    """The faster passes of our own read a tower's weights, and would not see it."""
    clip = build_clip(architecture)
    read = clip.visual if tower == "visual" else clip
    assert unfit(read) is None
    blocks = (clip.visual.transformer if tower == "visual" else clip.transformer).resblocks
    blocks[1].register_forward_hook(lambda block, inputs, output: 2 * output)
    assert "hooks into its" in unfit(read)
