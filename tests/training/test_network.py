"""What training trains: gradients where they belong, the logits of evaluation, files that load again."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.distributed
from torch.nn.functional import cosine_similarity, cross_entropy, normalize
from torch.nn.parallel import DistributedDataParallel

from zar_ray.data.class_texts import ClassPrompts, class_prompts, prompts_of, read_context_file
from zar_ray.errors import ConfigError, ModelError
from zar_ray.models.architecture import build_clip
from zar_ray.models.clip import ClipModel
from zar_ray.models.learned_context import parse_context
from zar_ray.models.loading import load_model
from zar_ray.models.options import ModelOptions
from zar_ray.models.text import PromptedClasses
from zar_ray.training.network import MAX_LOGIT_SCALE, VideoTextModel, save_trained
from zar_ray.training.options import TrainConfig
from zar_ray.training.worker import weightings
from zar_ray.video.transforms import Preprocessing

ARCHITECTURE = {
    "embed_dim": 16,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "layers": 3, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"width": 16, "heads": 2, "layers": 3},
}
NAMES = ("spinning red star", "rising blue square", "dot")
WAYS = ("both", "image", "text", "prompts", "context")


def config_of(trains, **options):
    return TrainConfig(trains=trains, prompt_vectors=2, prompt_depth=2, **options)


def network_of(model, trains="both", **options):
    config = config_of(trains, **options)
    return VideoTextModel(model, prompts_of([NAMES], config)[0], config)


def evaluated(model, classes, pixels):
    """What `zar eval` makes of the same pixels."""
    with torch.no_grad():
        videos = torch.stack([model.encode_images(one).mean(dim=0) for one in pixels])
        return classes.logits(normalize(videos, dim=-1), classes.initial_features)


@pytest.fixture
def model():
    torch.manual_seed(0)
    clip = build_clip(ARCHITECTURE)
    with torch.no_grad():
        for parameter in clip.parameters():
            if parameter.ndim > 1:  # the usual initial weights tell videos hardly apart
                parameter.mul_(3)
    return ClipModel(clip, "tiny", Preprocessing(32), ARCHITECTURE)


@pytest.fixture
def pixels():
    return torch.randn(4, 2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def labels():
    return torch.tensor([0, 1, 2, 0])


def trained_names(model, trains, from_scratch):
    """The parameters of `model.clip` that are to be trained, and ``context``."""
    names = {name for name, _ in model.clip.named_parameters()}
    image = {name for name in names if name.startswith("visual.")}
    text = names - image - {"logit_scale"} - ({"token_embedding.weight"} if not from_scratch else set())
    return {
        "both": image | text | {"logit_scale"},
        "image": image,
        "text": text,
        "prompts": {"visual.deep_prompts", "deep_prompts"},
        "context": {"context"},
    }[trains]


@pytest.mark.parametrize("grad_checkpointing", [False, True])
@pytest.mark.parametrize("from_scratch", [False, True])
@pytest.mark.parametrize("trains", WAYS)
def test_gradients_reach_exactly_what_is_trained(model, pixels, labels, trains, from_scratch, grad_checkpointing):
    architecture = "tiny" if from_scratch else None
    network = network_of(model, trains, architecture=architecture, grad_checkpointing=grad_checkpointing)
    cross_entropy(network(pixels), labels).backward()
    expected = trained_names(model, trains, from_scratch)
    parameters = {name.removeprefix("model.clip."): parameter for name, parameter in network.named_parameters()}
    assert {name for name, parameter in parameters.items() if parameter.grad is not None} == expected
    assert {name for name, parameter in parameters.items() if parameter.requires_grad} == expected
    assert network.trained_state().keys() == expected
    # A key's bias moves no attention: the softmax is over one shift.
    gradients = {name: parameter.grad for name, parameter in parameters.items() if parameter.grad is not None}
    assert not [name for name, gradient in gradients.items() if not gradient.any() and "in_proj_bias" not in name]


@pytest.mark.slow
@pytest.mark.parametrize("trains", WAYS)
def test_activation_checkpointing_changes_no_gradient(model, pixels, labels, trains):
    gradients = []
    for grad_checkpointing in (False, True):
        network = network_of(copy.deepcopy(model), trains, grad_checkpointing=grad_checkpointing)
        cross_entropy(network(pixels), labels).backward()
        gradients.append({n: p.grad for n, p in network.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys() != set()
    for name, gradient in gradients[0].items():
        assert torch.allclose(gradients[1][name], gradient, atol=1e-6), name


@pytest.mark.parametrize("trains", WAYS)
def test_training_sees_the_logits_that_evaluation_sees(model, pixels, trains):
    """Before training, and after a step of it on the weights that the step left."""
    network = network_of(model, trains)
    steps = torch.optim.AdamW(trained(network), lr=0.01)
    for _ in range(2):
        logits = network(pixels)
        assert torch.allclose(logits, evaluated(model, classes_of(network), pixels), atol=1e-4)
        cross_entropy(logits, torch.tensor([0, 1, 2, 0])).backward()
        steps.step()


@pytest.mark.parametrize("trains", ["both", "image", "text", "context"])
def test_a_template_is_read_as_evaluation_reads_it(model, pixels, trains):
    template = "{}, an action" if trains != "context" else "a clip of a {}, an action"
    network = network_of(model, trains, name_style="lower_case", template=template)
    (prompts,) = prompts_of([NAMES], TrainConfig(name_style="lower_case", template=template))
    assert torch.allclose(network(pixels), evaluated(model, PromptedClasses.of(model, prompts), pixels), atol=1e-4)


def classes_of(network):
    """The classes as evaluation would make them of what is saved."""
    if network.context is not None:
        return PromptedClasses(network.model, NAMES, network.learned_context({}))
    return PromptedClasses(network.model, NAMES)


def trained(network):
    return [parameter for parameter in network.parameters() if parameter.requires_grad]


def vectors_of(network):
    return network.trained_state()["context"]


@pytest.mark.parametrize("trains", WAYS)
def test_a_few_steps_lower_the_loss(model, pixels, labels, trains):
    network = network_of(model, trains)
    steps = torch.optim.Adam(trained(network), lr=0.02)
    losses = []
    for _ in range(20):
        loss = cross_entropy(network(pixels), labels)
        losses.append(loss.item())
        steps.zero_grad()
        loss.backward()
        steps.step()
        network.bound_logit_scale()
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize("grad_checkpointing", [False, True])
@pytest.mark.parametrize("trains", WAYS)
def test_it_can_be_distributed(model, pixels, labels, trains, grad_checkpointing, tmp_path):
    """DistributedDataParallel refuses a second pass where a parameter took no part in the first."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        network = network_of(model, trains, grad_checkpointing=grad_checkpointing)
        parallel = DistributedDataParallel(network)
        for _ in range(2):
            cross_entropy(parallel(pixels), labels).backward()
    finally:
        torch.distributed.destroy_process_group()
    assert all(parameter.grad is not None for parameter in trained(network))


def test_mixed_precision_leaves_texts_and_logits_in_float32(model, pixels):
    network = network_of(model)
    full = network(pixels)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = network(pixels)
    assert mixed.dtype == torch.float32
    assert 0 < (mixed - full).abs().max() < 0.2


def test_the_video_is_the_mean_of_its_frames_embeddings(model):
    network = network_of(model)
    frame = torch.randn(1, 1, 3, 32, 32)
    with torch.no_grad():
        once, thrice = network(frame), network(frame.expand(1, 3, -1, -1, -1))
    assert cosine_similarity(once, thrice).item() == pytest.approx(1, abs=1e-5)


def test_frozen_texts_are_computed_once_and_follow_the_module(model, pixels, monkeypatch):
    network = network_of(model, "image")
    monkeypatch.setattr(ClipModel, "encode_embedded_text", None)
    assert network(pixels).shape == (4, 3)
    assert network.state_dict().keys() == {f"model.clip.{name}" for name in model.clip.state_dict()}
    assert all(tensor.is_meta for tensor in network.to("meta").buffers())


@pytest.mark.parametrize("trains", WAYS)
@pytest.mark.parametrize("architecture", ["demo", None])
def test_the_logit_scale_is_bounded_from_scratch_alone(model, trains, architecture):
    """CLIP's own training bounds it; no published fine-tuning does, and CLIP's own is at the bound."""
    network = network_of(model, trains, architecture=architecture)
    with torch.no_grad():
        model.clip.logit_scale.fill_(5.0)
    network.bound_logit_scale()
    assert model.logit_scale == pytest.approx(
        MAX_LOGIT_SCALE if trains == "both" and architecture else 148.413, rel=1e-4
    )


def test_it_stays_in_evaluation_mode(model):
    network = network_of(model)
    network.train()
    assert not any(module.training for module in network.modules())


class TestState:
    @pytest.mark.parametrize("trains", WAYS)
    def test_it_holds_all_that_training_changes(self, model, pixels, labels, trains):
        start = copy.deepcopy(model)
        network = network_of(model, trains)
        steps = torch.optim.Adam(trained(network), lr=0.02)
        cross_entropy(network(pixels), labels).backward()
        steps.step()
        another = network_of(start, trains)
        assert not torch.equal(another(pixels), network(pixels))
        optimised = list(map(id, trained(another)))
        another.load_trained_state(network.trained_state(), "step 1")
        assert torch.equal(another(pixels), network(pixels))
        # an optimiser made before keeps its hold
        assert list(map(id, trained(another))) == optimised

    def test_a_state_of_other_options_is_refused_and_changes_nothing(self, model, pixels):
        network = network_of(model, "prompts")
        before = network(pixels)
        state = {name: torch.zeros_like(tensor) for name, tensor in network.trained_state().items()}
        with pytest.raises(ModelError, match=r"step 9: deep_prompts is missing .*\(--trains prompts\); continue"):
            network.load_trained_state({"visual.deep_prompts": state["visual.deep_prompts"]}, "step 9")
        with pytest.raises(ModelError, match=r"step 9: context is \(2, 16\) and should be left out"):
            network.load_trained_state({**state, "context": torch.zeros(2, 16)}, "step 9")
        with pytest.raises(ModelError, match=r"visual.deep_prompts is \(1, 2, 32\) and should be \(2, 2, 32\)"):
            network.load_trained_state({**state, "visual.deep_prompts": torch.zeros(1, 2, 32)}, "step 9")
        assert torch.equal(network(pixels), before)


class TestSaved:
    @pytest.mark.parametrize("trains", ["both", "image", "text", "prompts"])
    def test_a_checkpoint_evaluates_as_it_was_trained(self, model, pixels, labels, trains, tmp_path):
        network = network_of(model, trains)
        steps = torch.optim.Adam(trained(network), lr=0.02)
        cross_entropy(network(pixels), labels).backward()
        steps.step()
        file = tmp_path / "made" / "mine.safetensors"
        save_trained(network, file, {"training": {"steps": 1}})
        loaded = load_model(ModelOptions(checkpoint=file))
        assert loaded.name == "mine"
        assert torch.allclose(evaluated(loaded, PromptedClasses(loaded, NAMES), pixels), network(pixels), atol=1e-4)
        assert [one.name for one in file.parent.iterdir()] == [file.name]

    def test_a_context_is_saved_for_its_model(self, model, pixels, labels, tmp_path):
        network = network_of(model, "context", context="a clip of")
        fingerprint = model.fingerprint
        steps = torch.optim.Adam(trained(network), lr=0.02)
        cross_entropy(network(pixels), labels).backward()
        steps.step()
        file = tmp_path / "made" / "mine.safetensors"
        save_trained(network, file, {"training": {"steps": 1}})
        saved = parse_context(file.read_bytes(), str(file))
        assert (saved.start, saved.model_name, saved.model_fingerprint) == ("a clip of", "tiny", fingerprint)
        assert saved.notes == {"training": {"steps": 1}}
        classes = PromptedClasses.of(model, ClassPrompts(NAMES, read_context_file(file)))
        assert torch.equal(classes.initial_context, vectors_of(network))
        assert torch.allclose(evaluated(model, classes, pixels), network(pixels), atol=1e-4)


class TestContext:
    def test_it_starts_from_its_words(self, model, pixels):
        network = network_of(model, "context", context="a clip of")
        assert torch.equal(vectors_of(network), PromptedClasses(model, NAMES, "a clip of").initial_context)

    def test_it_starts_from_random_vectors_of_its_seed(self, model, pixels):
        first, again, other = (
            vectors_of(network_of(model, "context", context_vectors=70, seed=seed)) for seed in (3, 3, 4)
        )
        assert first.shape == (70, 16)
        assert torch.equal(first, again)
        assert not torch.equal(first, other)
        assert first.std().item() == pytest.approx(0.02, rel=0.1)
        assert network_of(model, "context", context_vectors=5).learned_context({}).start == "random"

    def test_it_goes_on_from_a_learned_one(self, model, pixels, tmp_path):
        network = network_of(model, "context", context_vectors=5)
        file = tmp_path / "context.safetensors"
        save_trained(network, file, {})
        further = network_of(model, "context", context=str(file))
        assert torch.equal(vectors_of(further), vectors_of(network))
        assert further.learned_context({}).start == "random"
        assert torch.equal(further(pixels), network(pixels))

    def test_frozen_texts_may_stand_in_a_learned_one(self, model, pixels, tmp_path):
        network = network_of(model, "context", context_vectors=5)
        file = tmp_path / "context.safetensors"
        save_trained(network, file, {})
        assert torch.allclose(network_of(model, "image", context=str(file))(pixels), network(pixels), atol=1e-5)


def test_fixed_texts_are_the_mean_of_a_classs_several(model):
    config = config_of("image")
    prompts = class_prompts(NAMES, config.context, template="actionclip")
    network = VideoTextModel(model, prompts, config)
    pixels = torch.randn(2, 16, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(network(pixels), evaluated(model, PromptedClasses.of(model, prompts), pixels), atol=1e-4)


class TestTowardsTheStart:
    """Losses under weights between the start's and the network's own, as Open-VCLIP takes them."""

    @pytest.mark.parametrize(("trains", "share"), [("image", 0.0), ("image", 0.35), ("both", 1.0)])
    def test_gradients_are_those_at_the_mixture(self, model, trains, share):
        network, start = network_of(model, trains, frames=4, interpolated_loss=0.5), copy.deepcopy(model)
        pixels, labels = torch.randn(3, 4, 3, 32, 32), torch.tensor([0, 2, 1])
        with torch.no_grad():
            for _, parameter in network.trained():
                parameter.add_(torch.randn_like(parameter) * 0.1)
        own = {name: one.clone() for name, one in network.trained_state().items()}
        with network.towards_start(share):
            cross_entropy(network(pixels), labels).backward()
        assert all(torch.equal(network.trained_state()[name], one) for name, one in own.items())

        mixed = copy.deepcopy(start)
        with torch.no_grad():
            before, state = start.clip.state_dict(), mixed.clip.state_dict()
            for name, one in own.items():
                state[name].copy_(share * before[name] + (1 - share) * one)
        expected = network_of(mixed, trains, frames=4)
        cross_entropy(expected(pixels), labels).backward()
        grads = {name: parameter.grad for name, parameter in expected.trained()}
        for name, parameter in network.trained():
            assert torch.allclose(parameter.grad, grads[name], rtol=1e-3, atol=1e-5), name

    def test_they_are_left_as_they_were_by_an_error_too(self, model):
        network = network_of(model, "image", interpolated_loss=1.0)
        with torch.no_grad():
            network.model.clip.visual.proj.add_(1)
        own = network.model.clip.visual.proj.detach().clone()

        def fail():
            with network.towards_start(1.0):
                assert torch.allclose(network.model.clip.visual.proj, own - 1, atol=1e-5)
                raise RuntimeError

        with pytest.raises(RuntimeError):
            fail()
        assert torch.equal(network.model.clip.visual.proj, own)
        with network.towards_start(None):
            assert torch.equal(network.model.clip.visual.proj, own)

    def test_shares_are_drawn_every_step_within_their_bounds(self):
        config = config_of("image", interpolated_loss=0.5, interpolated_share=(0.2, 0.3))
        drawn = [weightings(step, config) for step in range(50)]
        assert all(own == (None, 1.0) and 0.2 <= share <= 0.3 and weight == 0.5 for own, (share, weight) in drawn)
        assert len({share for _, (share, _) in drawn}) == 50
        assert weightings(7, config) == drawn[7] != weightings(7, config.model_copy(update={"seed": 1}))
        assert weightings(7, config_of("image")) == [(None, 1.0)]

    def test_what_does_not_go_together_is_refused(self, model):
        with pytest.raises(ConfigError, match=r"--interpolated-share 0\.6 0\.2: the lower bound comes first"):
            network_of(model, interpolated_share=(0.6, 0.2))
        with pytest.raises(ConfigError, match="--interpolated-loss: goes with --loss classes"):
            network_of(model, loss="matching", interpolated_loss=0.5)


class TestRefused:
    """Each in one line that says what to do."""

    @pytest.mark.parametrize("trains", [way for way in WAYS if way != "image"])
    def test_several_texts_a_class(self, model, trains):
        config = config_of(trains)
        prompts = class_prompts(NAMES, config.context, template="actionclip")
        with pytest.raises(ConfigError, match=r'one text a class, and "spinning red star" has \d+; give one template'):
            VideoTextModel(model, prompts, config)

    def test_a_template_without_a_context_to_train(self, model):
        with pytest.raises(ConfigError, match=r"--trains context tunes .* use --trains text, or"):
            network_of(model, "context", template="{}, an action")

    def test_context_vectors_without_training_a_context(self, model):
        with pytest.raises(ConfigError, match="--context-vectors: --trains text trains no context"):
            network_of(model, "text", context_vectors=4)

    def test_random_vectors_and_a_learned_context(self, model, tmp_path):
        file = tmp_path / "context.safetensors"
        save_trained(network_of(model, "context"), file, {})
        with pytest.raises(ConfigError, match=r"--context-vectors and --context .*context.safetensors: give one"):
            network_of(model, "context", context=str(file), context_vectors=4)
        with pytest.raises(ConfigError, match=r"--context .*context.safetensors: --trains both reads words"):
            network_of(model, "both", context=str(file))

    def test_random_vectors_and_a_template(self, model):
        with pytest.raises(ConfigError, match="--context-vectors: goes without a template"):
            network_of(model, "context", template="a clip of a {}.", context_vectors=4)

    @pytest.mark.parametrize("trains", [way for way in WAYS if way != "prompts"])
    def test_a_model_with_prompts_to_train_otherwise(self, model, trains):
        network_of(model, "prompts")
        with pytest.raises(ModelError, match="has prompt vectors in its layers; train them with --trains prompts"):
            network_of(model, trains)

    def test_prompts_of_other_sizes(self, model, pixels):
        first = network_of(model, "prompts")
        assert torch.equal(network_of(model, "prompts", seed=5)(pixels), first(pixels))
        config = TrainConfig(trains="prompts", prompt_vectors=3, prompt_depth=2)
        with pytest.raises(ModelError, match="has 2 prompt vectors in 2 layers; go on with --prompt-vectors 2"):
            VideoTextModel(model, prompts_of([NAMES], config)[0], config)
