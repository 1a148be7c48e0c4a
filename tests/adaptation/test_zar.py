import copy
import math
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize
from zar_by_hand import adapt_zar

from zar_ray.adaptation.base import VideoFeatures, entropy, select_confident
from zar_ray.adaptation.fusion import video_features
from zar_ray.adaptation.zar import ZarConfig, adapt_zar_batch, marginal_entropy, tuned_features, tuning_steps
from zar_ray.errors import VideoError
from zar_ray.models.text import PromptedClasses

LOGITS = st.lists(st.lists(st.floats(-120, 120, width=32), min_size=4, max_size=4), min_size=1, max_size=9)


def features(seed, views=6, size=12, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    rows = normalize(torch.randn(views + 1, size, generator=generator, dtype=torch.float64), dim=-1).to(dtype)
    return VideoFeatures(rows[:-1], rows[-1])


def adapt(video, classes, options):
    """The decision about one video, or its error raised."""
    (outcome,) = adapt_zar_batch([video], classes, options)
    if isinstance(outcome, VideoError):
        raise outcome
    return outcome


@pytest.mark.parametrize("rule", [adapt, adapt_zar])
class TestAgainstTheReference:
    @pytest.mark.parametrize("case", ["from_frames", "from_pixels"])
    def test_every_step(self, golden, case, rule):
        arrays, facts = golden.arrays, golden.facts
        classes = PromptedClasses(golden.model, facts["class_names"], facts["context"])
        ids = arrays["token_ids"]
        assert np.array_equal(classes.token_ids[:, : ids.shape[1]], ids)
        assert not classes.token_ids[:, ids.shape[1] :].any()

        def close(ours, name, tolerance):
            assert np.abs(ours.numpy() - arrays[name]).max() <= tolerance, name

        close(classes.initial_context, "context", 0)
        close(classes.initial_features, "text", 1e-5)
        frames = golden.input(case)
        embeddings = frames.flatten(0, 1)
        if case == "from_pixels":
            embeddings = golden.model.encode_images(embeddings)
        rows = np.arange(len(embeddings)).reshape(frames.shape[:2])
        video = video_features(embeddings, SimpleNamespace(views=rows[:-1], evaluation=rows[-1]))
        close(video.views, f"{case}/views", 1e-5)
        for fraction in facts["cases"][case]["fractions"]:
            options = ZarConfig(confidence=fraction, steps=facts["steps"], lr=facts["lr"])
            decision = rule(video, classes, options)
            tuned = f"{case}/{fraction}"
            close(decision.view_entropies, f"{case}/entropies", 1e-4)
            close(decision.logits_before, f"{case}/logits", 1e-4)
            close(decision.selected, f"{tuned}/selected", 0)
            close(decision.losses, f"{tuned}/losses", 1e-5)
            for step, trace in enumerate(tuning_steps(video.views[decision.selected][None], classes, options)):
                shorter = rule(video, classes, options.model_copy(update={"steps": step + 1}))
                assert np.abs(trace.contexts[0].numpy() - arrays[f"{tuned}/contexts"][step]).max() <= (
                    1e-4 if step else 1e-6
                )
                assert np.abs(trace.gradients[0].numpy() - arrays[f"{tuned}/gradients"][step]).max() <= 2e-5
                after = np.abs(shorter.logits_after.numpy() - arrays[f"{tuned}/logits"][step]).max()
                assert after <= (1e-2 if step else 1e-4)


class TestEntropy:
    @settings(deadline=None)
    @given(LOGITS)
    def test_agrees_with_float64(self, rows):
        logits = torch.tensor(rows)
        expected = scipy.stats.entropy(scipy.special.softmax(logits.double().numpy(), axis=-1), axis=-1)
        assert np.allclose(entropy(logits).numpy(), expected, atol=3e-5)

    @settings(deadline=None)
    @given(LOGITS)
    def test_of_the_mean_agrees_with_float64(self, rows):
        logits = torch.tensor(rows)
        mean = scipy.special.softmax(logits.double().numpy(), axis=-1).mean(axis=0)
        assert math.isclose(float(marginal_entropy(logits)), scipy.stats.entropy(mean), abs_tol=3e-5)

    def test_survives_probabilities_that_underflow(self):
        logits = torch.tensor([[300.0, 0.0, -300.0]], requires_grad=True)
        loss = marginal_entropy(logits)
        loss.backward()
        assert loss == 0
        assert torch.isfinite(logits.grad).all()


class TestSelection:
    @settings(deadline=None)
    @given(st.lists(st.floats(0, 5), min_size=1, max_size=60), st.floats(0.001, 1))
    def test_keeps_the_lowest_by_rising_entropy(self, values, fraction):
        entropies = torch.tensor(values, dtype=torch.float64)
        selected = select_confident(entropies, fraction)
        assert len(selected) == max(1, math.floor(len(values) * fraction))
        kept = entropies[selected].tolist()
        assert kept == sorted(values)[: len(kept)]
        assert len(set(selected.tolist())) == len(selected)

    @pytest.mark.parametrize(
        ("views", "fraction", "count"), [(48, 0.8, 38), (48, 0.1, 4), (48, 1.0, 48), (3, 0.1, 1), (100, 0.29, 28)]
    )
    def test_counts_as_the_reference_does(self, views, fraction, count):
        assert len(select_confident(torch.rand(views), fraction)) == count

    def test_equal_entropies_keep_their_order(self):
        assert select_confident(torch.tensor([1.0, 0.5, 0.5, 0.5]), 0.5).tolist() == [1, 2]


class TestStep:
    def test_gradient_is_that_of_the_loss(self, tiny_model):
        double = copy.deepcopy(tiny_model).double()
        classes = PromptedClasses(double, ("red circle", "dot", "blue bar"))
        views = features(0, views=3, dtype=torch.float64).views
        context = classes.initial_context.clone().requires_grad_()

        def loss(context):
            return marginal_entropy(classes.logits(views, classes.features(context)))

        assert torch.autograd.gradcheck(loss, (context,), eps=1e-6, atol=1e-6)
        (step,) = tuning_steps(views[None], classes, ZarConfig())
        assert torch.allclose(step.gradients[0], torch.autograd.grad(loss(context), context)[0])

    def test_first_step_is_adamws(self, classes):
        options = ZarConfig(lr=0.01, weight_decay=0.1, betas=(0.5, 0.9), eps=1e-3)
        (step,) = tuning_steps(features(1).views[None], classes, options)
        gradient = step.gradients[0]
        decayed = classes.initial_context * (1 - 0.01 * 0.1)
        # bias correction cancels both betas at the first step
        assert torch.allclose(step.contexts[0], decayed - 0.01 * gradient / (gradient.abs() + 1e-3), atol=1e-7)

    def test_float32_agrees_with_float64(self, tiny_model, classes):
        double = PromptedClasses(copy.deepcopy(tiny_model).double(), classes.class_names)
        for seed in range(3):
            single = adapt(features(seed), classes, ZarConfig())
            exact = adapt(features(seed, dtype=torch.float64), double, ZarConfig())
            assert torch.equal(single.selected, exact.selected)
            assert torch.allclose(single.view_entropies.double(), exact.view_entropies, atol=1e-5)
            assert torch.allclose(single.logits_after.double(), exact.logits_after, atol=1e-4)

    @settings(max_examples=15, deadline=None)
    @given(st.integers(0, 2**16))
    def test_a_small_step_lowers_the_loss(self, classes, seed):
        first, second = tuning_steps(features(seed).views[None], classes, ZarConfig(lr=1e-5, weight_decay=0, steps=2))
        assert second.losses <= first.losses + 1e-6


class TestAdaptZar:
    def test_a_video_leaves_nothing_behind(self, classes):
        options = ZarConfig(steps=2)
        initial = classes.initial_context.clone()
        first = adapt(features(1), classes, options)
        adapt(features(2), classes, options)
        again = adapt(features(1), classes, options)
        assert torch.equal(first.logits_after, again.logits_after)
        assert torch.equal(classes.initial_context, initial)

    def test_works_where_gradients_are_off(self, classes):
        expected = adapt(features(1), classes, ZarConfig())
        with torch.no_grad():
            assert torch.equal(adapt(features(1), classes, ZarConfig()).logits_after, expected.logits_after)

    def test_only_the_selected_views_count(self, classes):
        video = features(3, views=10)
        options = ZarConfig(confidence=0.5)
        decision = adapt(video, classes, options)
        others = [row for row in range(10) if row not in decision.selected.tolist()]
        views = video.views.clone()
        views[others[0]] = views[others[1]]
        changed = adapt(VideoFeatures(views, video.evaluation), classes, options)
        assert torch.equal(changed.logits_after, decision.logits_after)
        assert not torch.equal(changed.view_entropies, decision.view_entropies)

    @pytest.mark.parametrize("where", ["views", "evaluation"])
    def test_what_is_not_a_number_is_refused(self, classes, where):
        video = features(1)
        getattr(video, where).view(-1)[0] = torch.nan
        with pytest.raises(VideoError, match="not finite") as caught:
            adapt(video, classes, ZarConfig())
        assert caught.value.stage == "adapt"

    def test_views_are_needed(self, classes):
        with pytest.raises(VideoError, match="needs views"):
            adapt(VideoFeatures(torch.empty(0, 12), features(1).evaluation), classes, ZarConfig())


@pytest.mark.parametrize("steps", [1, 3])
def test_tuned_features_are_those_of_the_decision(classes, steps):
    video, options = features(5), ZarConfig(steps=steps, lr=0.05, confidence=0.5)
    after = classes.logits(video.evaluation, tuned_features(video, classes, options))
    decision = adapt(video, classes, options)
    assert torch.allclose(after, decision.logits_after, atol=1e-5)
    assert not torch.allclose(after, decision.logits_before, atol=1e-3)
