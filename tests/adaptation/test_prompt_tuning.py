"""C-TPT, O-TPT and R-TPT on videos: their terms by definition, what decides, and what they leave alone."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize
from zar_by_hand import adapt_zar

from zar_ray.adaptation import ctpt, otpt
from zar_ray.adaptation.base import Decision, Shared, VideoFeatures, with_plain_view
from zar_ray.adaptation.ctpt import CtptConfig, dispersion
from zar_ray.adaptation.methods import get_method
from zar_ray.adaptation.options import AdaptationOptions
from zar_ray.adaptation.otpt import OtptConfig, orthogonality
from zar_ray.adaptation.rtpt import RtptConfig, reliability
from zar_ray.adaptation.tpt import update_of
from zar_ray.adaptation.zar import ZarConfig, tuning_steps
from zar_ray.errors import ConfigError, VideoError
from zar_ray.evaluation.streams import check_methods
from zar_ray.models.clip import ClipModel
from zar_ray.models.text import PromptedClasses
from zar_ray.study.options import EvalConfig

NAMES = ("ctpt", "otpt", "rtpt")


def video(seed, views=24, width=12, dtype=torch.float32):
    drawn = torch.randn(views + 1, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    unit = normalize(drawn, dim=1).to(dtype)
    return VideoFeatures(unit[1:], unit[0])


def decide(name, one, classes, **options):
    method = get_method(name)
    (outcome,) = method.adapt([one], classes, method.options(**options), Shared())
    if isinstance(outcome, VideoError):
        raise outcome
    return outcome


@pytest.fixture(scope="module")
def double(tiny_model, classes):
    return PromptedClasses(copy.deepcopy(tiny_model).double(), classes.class_names)


def unit_features(seed, classes, width):
    return normalize(torch.randn(classes, width, generator=torch.Generator().manual_seed(seed)).double(), dim=1)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 9999), st.integers(1, 7), st.integers(2, 9))
def test_the_dispersion_is_the_mean_distance_from_the_mean(seed, classes, width):
    text = unit_features(seed, classes, width)
    expected = sum(float(torch.dist(one, text.mean(dim=0))) for one in text) / classes
    assert float(dispersion(text)) == pytest.approx(expected, abs=1e-12)
    assert torch.equal(dispersion(text.expand(3, -1, -1)), dispersion(text).expand(3))


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 9999), st.integers(1, 7), st.integers(2, 9))
def test_the_closed_form_is_the_reflections_value_and_gradient(seed, classes, width):
    text = unit_features(seed, classes, width).requires_grad_()
    gram, axes = text @ text.T, torch.eye(classes, dtype=torch.float64)
    distances = []
    for row, axis in zip(gram, axes, strict=True):
        mirror = row - row.norm() * axis
        if mirror.norm() < 1e-9:  # it lies on its axis already
            distances.append(row.norm() - 1)
            continue
        mirror = mirror / mirror.norm()
        distances.append((row - 2 * (mirror @ row) * mirror - axis).norm())
    by_reflection = torch.stack(distances).mean()
    ours = orthogonality(text)
    assert ours.item() == pytest.approx(by_reflection.item(), abs=1e-9)
    assert ours.item() > -1e-12
    if ours.item() > 1e-3:  # at 0 the distance has no gradient
        (expected,), (got,) = torch.autograd.grad(by_reflection, text), torch.autograd.grad(ours, text)
        assert torch.allclose(got, expected, atol=1e-6)


def test_orthogonal_classes_are_not_moved_by_their_term():
    text = torch.eye(5, 8, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(orthogonality(text), text)
    along = (gradient * text).sum(dim=1, keepdim=True) * text
    assert torch.allclose(gradient, along), "the length of a unit feature is nobody's to change"


@pytest.mark.parametrize("name", ["ctpt", "otpt"])
def test_without_weight_it_is_tpts_step_on_the_given_views(double, name):
    one = video(3, dtype=torch.float64)
    found = decide(name, one, double, weight=0, confidence=0.4, steps=2)
    expected = adapt_zar(
        VideoFeatures(with_plain_view(one), one.evaluation), double, ZarConfig(confidence=0.4, steps=2)
    )
    assert torch.equal(found.selected, expected.selected)
    assert torch.allclose(found.losses, expected.losses, atol=1e-8)
    assert torch.allclose(found.logits_after, expected.logits_after, atol=1e-8)


@pytest.mark.parametrize(
    ("options", "term", "better"),
    [
        (CtptConfig(weight=50, steps=4), dispersion, torch.gt),
        (CtptConfig(weight=50, two_step=True, steps=2), dispersion, torch.gt),
        (OtptConfig(weight=18, steps=4), orthogonality, torch.lt),
    ],
)
def test_a_term_moves_the_classes_as_it_should(double, options, term, better):
    objective = (ctpt if isinstance(options, CtptConfig) else otpt).objective_of(options)
    views = video(5, dtype=torch.float64).views[None]
    *_, last = tuning_steps(views, double, update_of(options), objective=objective)
    assert better(term(double.features(last.contexts[0])), term(double.initial_features))


def test_two_steps_take_turns_and_share_an_optimiser(double):
    views, options = video(6, dtype=torch.float64).views[None], CtptConfig(two_step=True, steps=2, weight=3)
    context = double.initial_context.clone().requires_grad_()
    optimiser = torch.optim.AdamW([context], lr=options.lr, weight_decay=options.weight_decay)
    steps = list(tuning_steps(views, double, update_of(options), objective=ctpt.objective_of(options)))
    assert len(steps) == 4
    for number, step in enumerate(steps):
        text = double.features(context)
        log_p = double.logits(views[0], text).log_softmax(dim=1)
        mean = log_p.exp().mean(dim=0)
        loss = -(mean * mean.log()).sum() if number % 2 == 0 else -3 * dispersion(text)
        (context.grad,) = torch.autograd.grad(loss, context)
        assert torch.allclose(step.losses[0], loss)
        assert torch.allclose(step.gradients[0], context.grad, atol=1e-9)
        optimiser.step()
        assert torch.allclose(step.contexts[0], context, atol=1e-8)


def test_the_steps_of_two_step_runs_are_counted():
    options = AdaptationOptions(ctpt=CtptConfig(two_step=True, steps=3), otpt=OtptConfig(steps=2))
    assert [options.context_steps(name) for name in NAMES] == [6, 2, 1]


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 9999), st.integers(2, 12), st.floats(0.01, 1))
def test_a_view_counts_by_its_nearest_others(seed, views, temperature):
    features = unit_features(seed, views, 5)
    neighbours = max(1, views // 2)
    scores, weights = reliability(features, RtptConfig(neighbours=neighbours, temperature=temperature))
    for number, score in enumerate(scores):
        others = [float(features[number] @ one) for place, one in enumerate(features) if place != number]
        nearest = sorted(others, reverse=True)[:neighbours]
        assert float(score) == pytest.approx(sum(nearest) / neighbours)
    assert torch.allclose(weights, (scores / temperature).softmax(dim=0))
    assert float(weights.sum()) == pytest.approx(1)


def test_views_that_coincide_are_neighbours_and_rounding_decides_nothing():
    pair = unit_features(1, 8, 5).float()
    views = torch.cat([pair, pair[:1]])
    scores, weights = reliability(views, RtptConfig(neighbours=3))
    nearest = (pair[0] @ pair[1:].T).sort(descending=True).values
    assert float(scores[0]) == pytest.approx((1 + float(nearest[:2].sum())) / 3, abs=1e-6)
    assert torch.isclose(weights[0], weights[-1])
    # The same numbers a rounding further on: nothing jumps.
    moved, _ = reliability(views * (1 + 1e-6), RtptConfig(neighbours=3))
    assert torch.allclose(moved, scores, atol=1e-5)


def test_an_outlier_has_no_say(classes):
    centre = torch.randn(12, generator=torch.Generator().manual_seed(3))
    views = normalize(centre + 0.1 * torch.randn(25, 12, generator=torch.Generator().manual_seed(4)), dim=1)
    views[7] = normalize(-centre, dim=0)
    _, weights = reliability(views, RtptConfig())
    assert weights[7] < 1e-6


def test_a_decision_is_of_all_views_under_the_tuned_context(double):
    one = video(9, dtype=torch.float64)
    found = decide("rtpt", one, double, confidence=0.3, neighbours=5)
    views = with_plain_view(one)
    update = ZarConfig(confidence=0.3, loss="mean_entropy")
    *_, last = tuning_steps(views[found.selected][None], double, update)
    _, weights = reliability(views, RtptConfig(neighbours=5))
    expected = weights @ double.logits(views, double.features(last.contexts[0]))
    assert torch.allclose(found.logits_after, expected, atol=1e-8)
    assert torch.allclose(found.logits_before, double.initial_logits(one.evaluation), atol=1e-8)


@pytest.mark.parametrize("name", NAMES)
def test_no_video_depends_on_the_others_and_the_classes_stay(double, name):
    before = double.initial_context.clone()
    method, options = get_method(name), {"neighbours": 4} if name == "rtpt" else {}
    many = [video(seed, views, dtype=torch.float64) for seed, views in enumerate([5, 24, 9, 7])]
    together = method.adapt(many, double, method.options(confidence=0.4, **options), Shared())
    for one, decision in zip(many, together, strict=True):
        alone = decide(name, one, double, confidence=0.4, **options)
        assert torch.equal(alone.selected, decision.selected)
        assert torch.allclose(alone.logits_after, decision.logits_after, atol=1e-8)
    assert torch.equal(double.initial_context, before)


@pytest.mark.parametrize("name", NAMES)
def test_equal_views_of_a_still_video_decide(classes, name):
    plain = video(1).evaluation
    found = decide(name, VideoFeatures(plain.expand(24, -1), plain), classes, lr=1e-6)
    assert torch.allclose(found.logits_after, found.logits_before, atol=1e-2)


@pytest.mark.parametrize("name", NAMES)
def test_one_class_is_enough(tiny_model, name):
    found = decide(name, video(2), PromptedClasses(tiny_model, ["run"]))
    assert torch.isfinite(found.logits_after).all()
    assert torch.isfinite(found.losses).all()


@pytest.mark.parametrize("name", ["ctpt", "otpt"])
def test_the_evaluation_view_alone_is_enough(classes, name):
    found = decide(name, VideoFeatures(torch.empty(0, 12), video(2).evaluation), classes)
    assert len(found.view_entropies) == 1
    assert torch.isfinite(found.logits_after).all()


def test_too_few_views_are_the_videos_error_in_one_line(classes):
    method = get_method("rtpt")
    few, enough = method.adapt([video(1, 19), video(2, 20)], classes, method.options(), Shared())
    assert isinstance(few, VideoError)
    assert "by 20 others, and beside the evaluation view there are 19" in str(few)
    assert "\n" not in str(few)
    assert isinstance(enough, Decision)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_not_finite_is_the_videos_error(classes, name):
    method = get_method(name)
    broken = VideoFeatures(torch.full((24, 12), torch.nan), video(1).evaluation)
    found, fine = method.adapt([broken, video(2)], classes, method.options(), Shared())
    assert isinstance(found, VideoError)
    assert "not finite" in str(found)
    assert isinstance(fine, Decision)
    assert torch.isfinite(fine.logits_after).all()


@pytest.mark.parametrize("name", NAMES)
def test_several_texts_a_class_have_no_context_to_tune(tiny_model, name):
    classes = PromptedClasses(tiny_model, ["dot", "bar"], texts=[("a dot", "one dot"), ("a bar", "one bar")])
    with pytest.raises(ConfigError, match="tunes one prompt a class"):
        decide(name, video(1), classes)


def test_crops_are_tpts_own(classes, make_pixels):
    method, tpt, videos = get_method("ctpt"), get_method("tpt"), [make_pixels(seed) for seed in (1, 2)]
    options = method.options(crops=8, weight=0, confidence=0.5)
    expected = tpt.adapt(videos, classes, tpt.options(views=9, confidence=0.5), Shared())
    for one, other in zip(method.adapt(videos, classes, options, Shared()), expected, strict=True):
        assert torch.equal(one.view_entropies, other.view_entropies)
        assert torch.equal(one.selected, other.selected)
        assert torch.allclose(one.logits_after, other.logits_after, atol=2e-3)
        assert one.encoded == other.encoded == 8 * 3


def test_crops_are_counted_as_the_views_they_are(classes, make_pixels):
    one = make_pixels(3)
    assert len(decide("rtpt", one, classes, crops=5, neighbours=5).view_entropies) == 6
    with pytest.raises(VideoError, match="by 6 others, and beside the evaluation view there are 5"):
        decide("rtpt", one, classes, crops=5, neighbours=6)
    with pytest.raises(VideoError, match="works from pixels"):
        decide("otpt", video(1), classes, crops=5)


@pytest.mark.parametrize("name", NAMES)
def test_crops_are_refused_where_there_is_nothing_to_cut(tiny_model, name):
    usual, cropped = EvalConfig(method=(name,), features="x"), EvalConfig(method=(name,), **{name: {"crops": 3}})
    check_methods(usual, [usual])
    for several in ([cropped], [usual, cropped]):
        with pytest.raises(ConfigError, match=f"--features: {name} works from pixels"):
            check_methods(usual, several)

    class Joint(ClipModel):
        frame_independent = False

    joint = Joint(tiny_model.clip, "joint", tiny_model.preprocessing, tiny_model.architecture)
    method = get_method(name)
    assert method.unfit(joint, usual.own(name)) is None
    assert "crops of single frames" in method.unfit(joint, cropped.own(name))
