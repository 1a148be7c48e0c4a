"""MEMO and TENT: gradients are the plain ones, the model is never written to, and a stream goes on from its state."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from zar_ray.adaptation.adapter import VideoAdapter
from zar_ray.adaptation.base import Shared, VideoFeatures, averaged
from zar_ray.adaptation.memo import MemoConfig, moving_names, open_memo
from zar_ray.adaptation.tent import TentConfig, norm_names, open_tent
from zar_ray.adaptation.weights import MovingTower
from zar_ray.adaptation.zar import marginal_entropy, mean_entropy
from zar_ray.data.class_texts import prompts_of
from zar_ray.errors import ConfigError, ModelError, VideoError
from zar_ray.models.clip import ClipModel
from zar_ray.models.text import PromptedClasses
from zar_ray.video.pixels import crop_and_normalise

NAMES = ("red circle", "green square", "blue bar")
SHARED = Shared(seed=0, encoder_batch=5)


def bits(model):
    return {name: value.clone() for name, value in model.clip.state_dict().items()}


def by_hand(model, classes, video, names, optimiser, loss_of, steps):
    """The whole thing with autograd through one pass over all images, in a copy of the model."""
    copied = copy.deepcopy(model)
    weights = dict(copied.clip.visual.named_parameters())
    moving = [weights[name].requires_grad_() for name in names]
    stepper, pixels = optimiser(moving), video.pixels
    images = crop_and_normalise(torch.tensor(pixels.frames), pixels.plan.images, pixels.plan.boxes, model.preprocessing)

    def features(rows):
        return normalize(copied.clip.visual(images)[torch.from_numpy(rows)].mean(dim=-2), dim=-1)

    losses = []
    for _ in range(steps):
        stepper.zero_grad()
        loss = loss_of(classes.logits(features(pixels.plan.views), classes.initial_features))
        loss.backward()
        stepper.step()
        losses.append(loss.detach())
    with torch.no_grad():
        return classes.logits(features(pixels.plan.evaluation), classes.initial_features), torch.stack(losses)


@pytest.mark.slow
@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("optimiser", ["adamw", "sgd"])
@pytest.mark.parametrize("parameters", [(), ("transformer.resblocks.0.mlp", "ln_post")])
def test_memo_is_its_definition(tiny_model, classes, make_pixels, steps, optimiser, parameters):
    update = MemoConfig(steps=steps, optimiser=optimiser, parameters=parameters, lr=1e-3)
    video, before = make_pixels(5), bits(tiny_model)
    decision = open_memo(classes, update, SHARED).decide(video)
    made = {
        "adamw": lambda weights: torch.optim.AdamW(weights, lr=1e-3, weight_decay=0.01),
        "sgd": lambda weights: torch.optim.SGD(weights, lr=1e-3, weight_decay=0.01),
    }[optimiser]
    names = moving_names(tiny_model, update)
    assert all(name.startswith(parameters) for name in names) or not parameters
    expected, losses = by_hand(tiny_model, classes, video, names, made, marginal_entropy, steps)
    assert torch.allclose(decision.losses, losses, atol=1e-4)
    assert torch.allclose(decision.logits_after, expected, atol=2e-2 if optimiser == "adamw" else 1e-3)
    assert not torch.equal(decision.logits_after, decision.logits_before)
    assert all(torch.equal(value, before[name]) for name, value in bits(tiny_model).items()), "bit for bit"
    assert not any(weight.requires_grad or weight.grad is not None for weight in tiny_model.clip.parameters())


@pytest.mark.parametrize(("optimiser", "nesterov"), [("sgd", True), ("sgd", False), ("adam", True)])
def test_tent_is_its_definition_and_leaves_no_trace(tiny_model, classes, make_pixels, optimiser, nesterov):
    options = TentConfig(optimiser=optimiser, nesterov=nesterov, lr=1e-2, steps=2)
    video, before = make_pixels(6), bits(tiny_model)
    decision = open_tent(classes, options, SHARED).decide(video)
    made = {
        "sgd": lambda weights: torch.optim.SGD(weights, lr=1e-2, momentum=0.9, nesterov=nesterov),
        "adam": lambda weights: torch.optim.Adam(weights, lr=1e-2),
    }[optimiser]
    names = norm_names(tiny_model)
    assert len(names) == 2 * 4, "ln_pre, ln_post and two in the one block, gain and bias of each"
    expected, losses = by_hand(tiny_model, classes, video, names, made, mean_entropy, 2)
    assert torch.allclose(decision.losses, losses, atol=1e-3)
    assert torch.allclose(decision.logits_after, expected, atol=2e-2)
    open_tent(classes, options, SHARED).decide(make_pixels(7))
    open_memo(classes, MemoConfig(), SHARED).decide(make_pixels(7))
    assert torch.equal(open_tent(classes, options, SHARED).decide(video).logits_after, decision.logits_after)
    assert all(torch.equal(value, before[name]) for name, value in bits(tiny_model).items())


@pytest.mark.parametrize("momentum", [0.9, 0.4, 0.0])
def test_tents_first_step_is_longer_by_its_momentum_as_its_authors_take_it(classes, make_pixels, momentum):
    def moved(**more):
        stream = open_tent(classes, TentConfig(momentum=momentum, lr=1e-2, **more), SHARED)
        before = {name: value.clone() for name, value in stream.state().items()}
        stream.decide(make_pixels(3))
        return torch.cat([(stream.state()[name] - one).flatten() for name, one in before.items() if "/" in name])

    assert torch.allclose(moved(), (1 + momentum) * moved(nesterov=False), atol=1e-6)


def test_memo_may_keep_its_optimiser_for_the_next_video_and_nothing_else(tiny_model, classes, make_pixels):
    options, videos = MemoConfig(stream=True, lr=1e-3), [make_pixels(seed) for seed in range(4)]
    names, stream, found = moving_names(tiny_model, options), open_memo(classes, options, SHARED), []
    for number, video in enumerate(videos):
        found.append(stream.decide(video))
        if number == 1:
            state = {name: value.clone() for name, value in stream.state().items()}
    assert not any(name.startswith("weights/") for name in state)
    alone = [open_memo(classes, options, SHARED).decide(video) for video in videos]
    assert torch.equal(found[0].logits_after, alone[0].logits_after)
    assert not torch.equal(found[1].logits_after, alone[1].logits_after)
    # One optimiser, and before each video the model's own weights.
    held = []

    def made(weights):
        own = torch.optim.AdamW(weights, lr=1e-3, weight_decay=0.01)
        if held:
            own.load_state_dict({**own.state_dict(), "state": held[-1].state_dict()["state"]})
        held.append(own)
        return own

    for video, decision in zip(videos, found, strict=True):
        expected, _ = by_hand(tiny_model, classes, video, names, made, marginal_entropy, 1)
        assert torch.allclose(decision.logits_after, expected, atol=2e-2)
    other = open_memo(classes, options, SHARED)
    other.restore(state)
    assert all(torch.equal(other.decide(videos[n]).logits_after, found[n].logits_after) for n in (2, 3))
    with pytest.raises(VideoError):
        other.decide(VideoFeatures(videos[0].views * torch.nan, videos[0].evaluation, videos[0].pixels))
    assert all(torch.equal(value, stream.state()[name]) for name, value in other.state().items())


def test_the_size_of_a_pass_changes_nothing(tiny_model, classes, make_pixels):
    options = MemoConfig(optimiser="sgd", lr=1e-3)
    expected = open_memo(classes, options, SHARED).decide(make_pixels(1)).logits_after
    for size in (1, 64):
        ours = open_memo(classes, options, Shared(encoder_batch=size)).decide(make_pixels(1))
        assert torch.allclose(ours.logits_after, expected, atol=1e-4)


class TestStream:
    @pytest.fixture
    def online(self):
        return TentConfig(stream=True, lr=1e-2)

    def test_it_learns_from_the_videos_before(self, classes, make_pixels, online):
        stream, videos = open_tent(classes, online, SHARED), [make_pixels(seed) for seed in range(3)]
        first, second, third = (stream.decide(video) for video in videos)
        alone = [open_tent(classes, online, SHARED).decide(video) for video in videos]
        assert torch.equal(first.logits_after, alone[0].logits_after)
        assert not torch.equal(second.logits_after, alone[1].logits_after)
        assert torch.equal(third.logits_before, alone[2].logits_before), "before is the model as it was loaded"
        again = open_tent(classes, online, SHARED)
        for video, expected in zip(videos, (first, second, third), strict=True):
            assert torch.equal(again.decide(video).logits_after, expected.logits_after)
        reversed_order = open_tent(classes, online, SHARED)
        assert not torch.equal(
            [reversed_order.decide(one) for one in videos[::-1]][-1].logits_after, first.logits_after
        )

    @pytest.mark.parametrize("optimiser", ["sgd", "adam"])
    def test_it_goes_on_from_its_state(self, classes, make_pixels, online, optimiser):
        options = online.model_copy(update={"optimiser": optimiser})
        stream = open_tent(classes, options, SHARED)
        for seed in range(2):
            stream.decide(make_pixels(seed))
        state = {name: value.clone() for name, value in stream.state().items()}
        expected = [stream.decide(make_pixels(seed)).logits_after for seed in (2, 3)]
        other = open_tent(classes, options, SHARED)
        other.restore(state)
        assert all(torch.equal(other.decide(make_pixels(n)).logits_after, expected[n - 2]) for n in (2, 3))

    def test_a_video_that_fails_leaves_no_trace(self, classes, make_pixels, online):
        stream, good = open_tent(classes, online, SHARED), make_pixels(0)
        stream.decide(good)
        state = {name: value.clone() for name, value in stream.state().items()}
        for bad in (
            VideoFeatures(good.views, good.evaluation),
            VideoFeatures(good.views * torch.nan, good.evaluation, good.pixels),
            VideoFeatures(good.views[:0], good.evaluation, good.pixels),
        ):
            with pytest.raises(VideoError):
                stream.decide(bad)
        after = stream.state()
        assert after.keys() == state.keys()
        assert all(torch.equal(after[name], value) for name, value in state.items())


def test_images_are_counted(tiny_model, make_planned, small_options):
    video, prompts = make_planned(3), prompts_of([NAMES], small_options)
    shared = len(video.plan.images)
    prediction = VideoAdapter(tiny_model, prompts, ("zar", "memo", "tent"), small_options).predict([video])[0]
    views, evaluation = shared - 3, 3  # centre crops, of other frames than the evaluation view's
    assert len({*video.plan.views.ravel()}) in (views, views + 1, views + 2, views + 3)
    moved = len({*video.plan.views.ravel()}) + evaluation
    assert [case.images for case in prediction.cases] == [shared, shared + moved, shared + moved]
    assert prediction.images_encoded == shared + 2 * moved


def test_before_is_the_zero_shot_decision_and_the_methods_do_not_disturb_each_other(
    tiny_model, make_planned, small_options
):
    prompts = prompts_of([NAMES], small_options)
    names = ("zero_shot", "memo", "zar", "tent", "tpt", "tda")
    together = VideoAdapter(tiny_model, prompts, names, small_options).predict([make_planned(2), make_planned(3)])
    for number, seed in enumerate((2, 3)):
        cases = {case.method: case.decision for case in together[number].cases}
        assert cases.keys() == set(names)
        for decision in cases.values():
            assert torch.allclose(decision.logits_before, cases["zero_shot"].logits_after, atol=1e-5)
        for name in ("memo", "zar", "tent", "tpt"):
            alone = VideoAdapter(tiny_model, prompts, (name,), small_options).predict([make_planned(seed)])[0]
            assert torch.allclose(alone.cases[0].decision.logits_after, cases[name].logits_after, atol=2e-3)


def test_texts_that_cannot_be_tuned_do_for_methods_that_tune_no_context(
    tiny_model, make_planned, small_options, tmp_path
):
    """Descriptions, several a class: what moves the weights or keeps caches takes them."""
    texts = tmp_path / "texts.csv"
    texts.write_text("class,text\n" + "".join(f'{name},"{word} {name}"\n' for name in NAMES for word in ("a", "one")))
    options = small_options.model_copy(update={"class_texts": texts})
    prompts = prompts_of([NAMES], options)
    made = VideoAdapter(tiny_model, prompts, ("memo", "tent", "tda"), options).predict([make_planned(1)])[0]
    assert len(made.cases) == 3
    with pytest.raises(ConfigError, match="tpt tunes one prompt a class"):
        VideoAdapter(tiny_model, prompts, ("tpt",), options)


class TestRefusals:
    def refusal(self, model, method, options):
        with pytest.raises(ModelError) as caught:
            VideoAdapter(model, prompts_of([NAMES], options), (method,), options)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    @pytest.mark.parametrize("method", ["memo", "tent"])
    def test_models_that_encode_frames_together(self, tiny_model, small_options, method):
        class Joint(ClipModel):
            frame_independent = False

        joint = Joint(tiny_model.clip, "joint", tiny_model.preprocessing, tiny_model.architecture)
        assert "encodes the frames of a view together" in self.refusal(joint, method, small_options)

    @pytest.mark.parametrize("method", ["memo", "tent"])
    def test_weights_too_coarse_for_small_steps(self, tiny_model, small_options, method):
        assert "weights are float16" in self.refusal(copy.deepcopy(tiny_model).half(), method, small_options)

    def test_parameters_that_are_not_there(self, tiny_model, small_options):
        options = small_options.model_copy(update={"memo": MemoConfig(parameters=("layers.7",))})
        assert "no parameter of its image tower begins with layers.7" in self.refusal(tiny_model, "memo", options)

    def test_norms_that_tent_cannot_move(self, tiny_model, small_options):
        batch_norms = copy.deepcopy(tiny_model)
        batch_norms.clip.visual.ln_post = torch.nn.BatchNorm1d(32)
        assert "batch norms" in self.refusal(batch_norms, "tent", small_options)
        without = copy.deepcopy(tiny_model)
        for name, module in list(without.clip.visual.named_modules()):
            if isinstance(module, torch.nn.LayerNorm):
                parent, _, own = name.rpartition(".")
                setattr(without.clip.visual.get_submodule(parent), own, torch.nn.Identity())
        assert "no layer norm" in self.refusal(without, "tent", small_options)


@pytest.mark.parametrize("eval_views", ["1x1", "2x3"])
def test_several_evaluation_views_are_averaged(tiny_model, make_pixels, small_options, eval_views):
    views = small_options.views.model_copy(update={"eval_views": eval_views})
    options = small_options.model_copy(update={"views": views})
    classes = PromptedClasses(tiny_model, NAMES)
    video = make_pixels(2, options)
    decision = open_memo(classes, MemoConfig(), SHARED).decide(video)
    assert torch.allclose(
        decision.logits_before, averaged(classes.logits(video.evaluation, classes.initial_features)), atol=1e-5
    )
    assert decision.logits_after.shape == (3,)


@pytest.mark.parametrize("size", [1e-3, 1e-6, 1e-9, 0.0])
def test_small_gradients_keep_their_digits_in_float16(tiny_model, size):
    gradients = {}
    for precision in ("fp32", "fp16"):
        model = ClipModel(
            tiny_model.clip, "tiny", tiny_model.preprocessing, tiny_model.architecture, precision=precision
        )
        tower = MovingTower(model, moving_names(model, MemoConfig()), images_a_pass=3)
        draw = torch.Generator().manual_seed(1)
        images, of_embeddings = torch.randn(5, 3, 32, 32, generator=draw), size * torch.randn(7, 12, generator=draw)
        tower.set_gradients(lambda rows, images=images: images[rows], np.arange(5), of_embeddings)
        gradients[precision] = torch.cat([weight.grad.flatten() for weight in tower.weights.values()])
    exact, half = gradients["fp32"], gradients["fp16"]
    assert (half - exact).norm() <= 0.01 * exact.norm()
