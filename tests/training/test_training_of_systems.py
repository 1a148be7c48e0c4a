"""ActionCLIP and EZ-CLIP in training: gradients where the official code has them, losses that fall, files that load."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed
from torch.nn.parallel import DistributedDataParallel

from zar_ray.data.class_texts import prompts_of
from zar_ray.errors import ConfigError, ModelError
from zar_ray.models.architecture import build_clip, named_architecture
from zar_ray.models.clip import ClipModel
from zar_ray.models.loading import load_model
from zar_ray.models.options import ModelOptions
from zar_ray.models.text import PromptedClasses
from zar_ray.training.network import VideoTextModel, matching_loss, save_trained
from zar_ray.training.options import TrainConfig
from zar_ray.training.schedule import MULTIPLE, optimiser
from zar_ray.video.transforms import Preprocessing

TINY = {
    "embed_dim": 16,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"width": 16, "heads": 2, "layers": 2},
}
FRAMES = 3
PARTS = {
    "meanP": {"fusion": {"head": "meanP"}},
    "LSTM": {"fusion": {"head": "LSTM"}},
    "Conv_1D": {"fusion": {"head": "Conv_1D"}},
    "Transf": {"fusion": {"head": "Transf", "layers": 2}},
    "Transf_cls": {"fusion": {"head": "Transf_cls", "layers": 1, "frames": FRAMES}},
    "ezclip": {"temporal_adapters": {"frames": FRAMES}},
    "a5": {
        "learned_texts": {"prefix": 3, "postfix": 2},
        "frame_layers": {"layers": 1, "frames": FRAMES},
        "evaluation_scale": 1 / 0.07,
    },
    "vitaclip": {"view_prompts": {"frames": FRAMES, "global_prompts": 2, "context": 3}},
    "xclip": {"cross_frames": {"frames": FRAMES}},
    "openvclip": {"neighbour_frames": {"frames": FRAMES, "reach": 1}},
    "tcclip": {"video_context": {"frames": FRAMES, "context": 2, "seeds": 0.5, "merged": 3}},
}
CLASSED = ("openvclip", "tcclip", "vitaclip", "xclip")  # trained against the texts of all classes
MATCHED = [system for system in PARTS if system not in CLASSED]
DROPPED = {
    "ezclip": {"drop_path": 0.4, "attention_dropout": 0.2, "prompt_dropout": 0.3},
    "Transf_cls": {"drop_path": 0.4, "attention_dropout": 0.2, "head_dropout": 0.3},
}
NAMES = ("spinning red star", "rising blue square", "dot")
LABELS = (0, 1, 2, 0)


def model_of(system):
    torch.manual_seed(0)
    architecture = {**TINY, **PARTS[system]}
    clip = build_clip(architecture)
    with torch.no_grad():
        for parameter in clip.parameters():
            if parameter.ndim > 1:  # the usual initial weights tell videos hardly apart
                parameter.mul_(3)
    return ClipModel(clip, system, Preprocessing(32), architecture)


def network_of(system, model=None, **options):
    ez = system == "ezclip"
    own = {"trains": "all", "template": "actionclip"}
    if system in CLASSED:
        own = {"trains": {"vitaclip": "added", "tcclip": "both"}.get(system, "image"), "loss": "classes"}
    if system in ("ezclip", "a5"):
        own = {"trains": "added", "motion_loss": float(ez)}
    config = TrainConfig(**{"frames": FRAMES, "loss": "matching", **own, **options})
    return VideoTextModel(model or model_of(system), prompts_of([NAMES], config)[0], config)


def loss_of(network, pixels, draw=0, system="ezclip"):
    if system in CLASSED:
        return torch.nn.functional.cross_entropy(network(pixels), torch.tensor(LABELS))
    texts = network.draw_texts(LABELS, np.random.default_rng(draw))
    return matching_loss(*network(pixels, texts), torch.tensor(LABELS), float(system == "ezclip"))


def trained(network):
    return [parameter for parameter in network.parameters() if parameter.requires_grad]


@pytest.fixture
def pixels():
    return torch.randn(4, FRAMES, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("grad_checkpointing", [False, True])
@pytest.mark.parametrize("system", PARTS)
def test_gradients_reach_exactly_what_is_trained(pixels, system, grad_checkpointing):
    network = network_of(system, grad_checkpointing=grad_checkpointing)
    loss_of(network, pixels, system=system).backward()
    names = {name for name, _ in network.model.clip.named_parameters()}
    if system == "ezclip":
        names = {name for name in names if "Adapter" in name or name.endswith("T_prompt_embeddings")}
        assert len(names) == 2 * 4 + 2 * 4 + 1
    if system == "a5":
        names = {name for name in names if name == "learned_texts" or name.startswith("fusion.")}
        assert len(names) == 1 + 1 + 12
    if system == "openvclip":
        names = {name for name in names if name.startswith("visual.")}
    if system == "xclip":
        names = {name for name in names if name.startswith(("visual.", "fusion."))}
        assert sum("message_" in name for name in names) == 2 * 8
    if system == "tcclip":
        names -= {"token_embedding.weight"}
        assert sum(name.endswith("local_global_bias_table") for name in names) == 1
    if system == "vitaclip":
        parts = ("summary_", "local_prompts", "global_prompts", "time_embed", "own_context", "logit_scale")
        names = {name for name in names if any(part in name for part in parts)}
        assert len(names) == 2 * (2 + 8 + 1) + 4
    parameters = {name.removeprefix("model.clip."): parameter for name, parameter in network.named_parameters()}
    assert {name for name, parameter in parameters.items() if parameter.grad is not None} == names
    assert network.trained_state().keys() == names


def test_vitaclip_trains_what_the_official_code_names():
    facts = json.loads((Path(__file__).parent.parent / "golden" / "systems.json").read_text())
    architecture = {**facts["architecture"], "view_prompts": {"frames": 4}}
    model = ClipModel(build_clip(architecture), "vita", Preprocessing(32), architecture)
    trained = network_of("vitaclip", model, frames=4).trained_state().keys()
    official = {name.replace("blocks.", "transformer.resblocks.") for name in facts["vitaclip"]["trainable"]}
    assert trained == official - {"prompt_learner.ctx"} | {"own_context"}


def test_ezclip_trains_what_the_official_code_names():
    facts = json.loads((Path(__file__).parent.parent / "golden" / "systems.json").read_text())
    architecture = {**facts["architecture"], "temporal_adapters": {"frames": 4}}
    model = ClipModel(build_clip(architecture), "ez", Preprocessing(32), architecture)
    assert network_of("ezclip", model, frames=4).trained_state().keys() == set(facts["ezclip"]["trainable"])


def test_ezclip_trains_five_million_parameters_of_a_vit_b_16():
    architecture = {**named_architecture("ViT-B-16-quickgelu"), "temporal_adapters": {"frames": 8}}
    with torch.device("meta"):
        model = ClipModel(build_clip(architecture), "ez", Preprocessing(224), architecture)
    model.clip.requires_grad_(False)
    adapters = sum(p.numel() for name, p in model.clip.named_parameters() if "Adapter" in name)
    prompts = model.clip.visual.transformer.T_prompt_embeddings.numel()
    assert adapters + prompts == 5_204_736


@pytest.mark.slow
@pytest.mark.parametrize("system", PARTS)
def test_a_few_steps_lower_the_loss_and_the_file_evaluates_as_it_was_trained(pixels, system, tmp_path):
    network = network_of(system)
    steps = torch.optim.Adam(trained(network), lr=0.01)
    losses = []
    for _ in range(15):
        loss = loss_of(network, pixels, system=system)
        losses.append(loss.item())
        steps.zero_grad()
        loss.backward()
        steps.step()
        network.bound_logit_scale()
    assert losses[-1] < 0.9 * losses[0]
    save_trained(network, tmp_path / "mine.safetensors", {})
    loaded = load_model(ModelOptions(checkpoint=tmp_path / "mine.safetensors", device="cpu"))
    frames = loaded.encode_images(pixels.flatten(0, 1)).unflatten(0, pixels.shape[:2])
    texts = None if system in CLASSED else [(name,) for name in NAMES]
    classes = PromptedClasses(loaded, NAMES, texts=texts)
    with torch.no_grad():
        videos = loaded.view_features(frames)
        logits = network(pixels) if texts is None else network(pixels, classes.token_ids)[0]
    assert torch.allclose(classes.initial_logits(videos), logits, atol=1e-4)


@pytest.mark.parametrize("system", ["Transf", "ezclip", "a5", "vitaclip"])
def test_all_classes_can_be_trained_against_too(pixels, system):
    network = network_of(system, loss="classes", template=None, motion_loss=0.0)
    logits = network(pixels)
    assert logits.shape == (4, 3)
    torch.nn.functional.cross_entropy(logits, torch.tensor(LABELS)).backward()
    assert all(parameter.grad is not None for parameter in trained(network))


@pytest.mark.parametrize("system", MATCHED)
def test_it_can_be_distributed(pixels, system, tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        network = network_of(system)
        parallel = DistributedDataParallel(network)
        texts = network.draw_texts(LABELS, np.random.default_rng(0))
        for _ in range(2):
            matching_loss(*parallel(pixels, texts), torch.tensor(LABELS), 1.0).backward()
    finally:
        torch.distributed.destroy_process_group()
    assert all(parameter.grad is not None for parameter in trained(network))


def test_each_video_draws_a_text_of_its_class():
    network = network_of("meanP")
    known = {tuple(row.tolist()): number // 16 for number, row in enumerate(network._classes.token_ids)}
    drawn = [network.draw_texts(LABELS, np.random.default_rng(seed)) for seed in range(40)]
    for texts in drawn:
        assert [known[tuple(row.tolist())] for row in texts] == list(LABELS)
    assert len({tuple(texts[0].tolist()) for texts in drawn}) > 8
    assert torch.equal(network.draw_texts(LABELS, np.random.default_rng(3)), drawn[3])


def test_xclips_messages_learn_as_fast_as_its_head():
    network = network_of("xclip")
    groups = optimiser(network.trained(), network.rule, TrainConfig(fusion_lr=10.0, decays="all")).param_groups
    fast = {id(parameter) for group in groups if group[MULTIPLE] == 10 for parameter in group["params"]}
    names = {name for name, parameter in network.model.clip.named_parameters() if id(parameter) in fast}
    assert {name for name in names if name.startswith("visual.")} == {
        name for name, _ in network.model.clip.named_parameters() if ".message_" in name
    }
    assert len(names) > 16 + 20


def test_the_head_learns_faster_by_its_multiple():
    network = network_of("Transf", fusion_lr=10.0)
    config = TrainConfig(fusion_lr=10.0, decays="all")
    groups = optimiser(network.trained(), network.rule, config).param_groups
    assert [group[MULTIPLE] for group in groups] == [1.0, 10.0]
    head = {id(parameter) for parameter in network.model.clip.fusion.parameters()}
    assert {id(parameter) for parameter in groups[1]["params"]} == head


class TestRegularisation:
    """What is dropped comes from PyTorch's generator, in training alone; `tests/models` has where and how often."""

    @pytest.mark.parametrize("system", PARTS)
    def test_by_default_nothing_is_dropped_and_nothing_drawn(self, pixels, system):
        network = network_of(system)
        before = torch.get_rng_state()
        loss = loss_of(network, pixels, system=system)
        loss.backward()
        assert torch.equal(torch.get_rng_state(), before)
        assert torch.equal(loss_of(network.eval(), pixels, system=system), loss)

    @pytest.mark.parametrize("system", DROPPED)
    def test_the_generator_settles_what_is_dropped(self, pixels, system):
        network = network_of(system, **DROPPED[system])
        losses = []
        for seed in (1, 1, 2):
            torch.manual_seed(seed)
            losses.append(loss_of(network, pixels, system=system).item())
        assert losses[0] == losses[1] != losses[2]

    @pytest.mark.parametrize("system", DROPPED)
    def test_an_evaluation_drops_nothing(self, pixels, system):
        network, plain = network_of(system, **DROPPED[system]), network_of(system)
        assert not torch.equal(loss_of(network, pixels, system=system), loss_of(plain, pixels, system=system))
        assert torch.equal(loss_of(network.eval(), pixels, system=system), loss_of(plain, pixels, system=system))
        # The hooks that drop keep open_clip's own pass, which rounds in another order than ours.
        ours, theirs = (one.model.encode_images(pixels[0]) for one in (plain, network))
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize("system", DROPPED)
    def test_activations_that_are_computed_again_drop_the_same(self, pixels, system):
        gradients = []
        for grad_checkpointing in (False, True):
            network = network_of(system, grad_checkpointing=grad_checkpointing, **DROPPED[system])
            torch.manual_seed(3)
            loss_of(network, pixels, system=system).backward()
            gradients.append({name: p.grad for name, p in network.named_parameters() if p.grad is not None})
        assert gradients[0].keys() == gradients[1].keys() != set()
        for name, gradient in gradients[0].items():
            assert torch.allclose(gradients[1][name], gradient, atol=1e-6), name

    def test_texts_that_are_kept_lose_nothing(self, pixels):
        """Under --trains image the text tower runs once, before training."""
        options = {"trains": "image", "loss": "classes", "template": None}
        network, plain = network_of("meanP", drop_path=0.9, **options), network_of("meanP", **options)
        assert torch.equal(network._text_features, plain._text_features)
        assert not torch.equal(network(pixels), plain(pixels))


class TestRefused:
    @pytest.mark.parametrize(
        ("system", "options", "message"),
        [
            ("Transf", {"trains": "image"}, "--loss matching: goes with --trains both, all, text or added"),
            ("Transf", {"augment": {"mixup": 0.8}}, "--loss matching: .* mix and smooth none"),
            ("Transf", {"loss": "classes", "motion_loss": 1.0}, "--motion-loss: goes with --loss matching"),
            ("Transf", {"motion_loss": 1.0, "frames": 1}, "--motion-loss: one frame does not move"),
            ("Transf", {"frames": 78}, "reads views of up to 77 frames; give --frames 77"),
            ("Transf_cls", {"frames": 8}, "reads views of 3 frames, not of 8; give --frames 3"),
            ("ezclip", {"frames": 8}, "reads views of 3 frames, not of 8; give --frames 3"),
            ("a5", {"drop_path": 0.1}, "--drop-path: --trains added trains no layers of a5's towers; leave it away"),
            ("Transf_cls", {"trains": "text", "head_dropout": 0.1}, "--head-dropout: --trains text does not train"),
        ],
    )
    def test_options_that_do_not_fit(self, system, options, message):
        with pytest.raises(ConfigError, match=message) as caught:
            network_of(system, **options)
        assert "\n" not in str(caught.value)

    def test_adapters_of_a_model_without(self):
        with pytest.raises(
            ModelError, match="meanP: is a CLIP that nothing was added to; start from --model a5, actionclip"
        ):
            network_of("meanP", trains="added")

    @pytest.mark.parametrize("system", ["ezclip", "xclip"])
    def test_deep_prompts_of_a_model_whose_frames_see_each_other(self, system):
        with pytest.raises(ModelError, match="train it without --trains prompts"):
            network_of(system, trains="prompts", loss="classes", motion_loss=0.0)

    def test_matching_texts_that_follow_the_video(self):
        with pytest.raises(ModelError, match="its texts follow the video; train it with --loss classes"):
            network_of("xclip", loss="matching", trains="both")

    @pytest.mark.parametrize("options", [{"trains": "both"}, {"loss": "matching"}])
    def test_what_vitaclip_is_not_trained_by(self, options):
        with pytest.raises(ModelError, match="has prompts of its own; train them with --trains added --loss classes"):
            network_of("vitaclip", **options)


def test_a_copy_is_a_model_of_its_own(pixels):
    """Hooks hold the towers that they belong to."""
    model = model_of("ezclip")
    other, before = copy.deepcopy(model), model.encode_images(pixels.flatten(0, 1))
    with torch.no_grad():
        other.clip.visual.transformer.T_prompt_embeddings.zero_()
    assert torch.equal(model.encode_images(pixels.flatten(0, 1)), before)
    assert not torch.allclose(other.encode_images(pixels.flatten(0, 1)), before, atol=1e-4)
