"""A model replica: questions that share passes are answered as lone ones are, and a bad one costs its own answer."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from refused_operations import Refusing

from zar_ray.errors import ConfigError, DeviceLostError
from zar_ray.models.fitting import Fitting
from zar_ray.models.text import PromptedClasses
from zar_ray.results.certainty import SCORES
from zar_ray.serving.backend import Job, Query
from zar_ray.serving.classifier import Classifier
from zar_ray.serving.methods import ServiceOptions, require_methods
from zar_ray.serving.problems import RequestError
from zar_ray.video.plans import plan_video
from zar_ray.video.reading import VideoInfo
from zar_ray.video.sandbox_process import DecodedViews

LABELS = ("riding a horse", "walking the dog", "cooking an egg")


@pytest.fixture(scope="module")
def classifier(tiny_checkpoint):
    return Classifier(ServiceOptions(checkpoint=tiny_checkpoint, device="cpu"))


def job(classifier, number, labels=LABELS, method="zar", **query):
    info = VideoInfo(20 + number, 25.0, 48, 36, 1.0, "none")
    plan = plan_video(
        f"{number}.mp4", info, classifier.config.views, classifier.model.preprocessing, 0, needs_views=True
    )
    frames = np.random.default_rng(number).integers(0, 255, (len(plan.frames), plan.height, plan.width, 3), np.uint8)
    views = DecodedViews(frames, plan, info, None, 0.1)
    return Job(Query(f"request-{number}", labels, method, **query), f"{number}.mp4", views)


def scores(answer):
    return [(one.label, pytest.approx(one.score, abs=1e-6)) for one in answer.after]


def test_together_they_are_answered_as_alone(classifier, monkeypatch):
    jobs = [job(classifier, number) for number in range(3)]
    jobs += [job(classifier, 3, labels=("a", "b")), job(classifier, 4, method="zero_shot")]
    alone = [classifier.answer([one])[0] for one in jobs]
    passes = []
    encode = classifier.model.encode_images
    monkeypatch.setattr(classifier.model, "encode_images", lambda pixels: passes.append(len(pixels)) or encode(pixels))
    together = classifier.answer(jobs)
    assert [answer.request_id for answer in together] == [f"request-{number}" for number in range(5)]
    assert [scores(answer) for answer in together] == [scores(answer) for answer in alone]
    assert sum(passes) == sum(answer.images_encoded for answer in alone)
    of_three = sum(answer.images_encoded for answer in alone[:3])
    assert len(passes) <= -(-of_three // 64) + 4, "the three of one kind fill the encoder's passes together"


def test_what_goes_wrong_costs_its_own_answer(classifier, monkeypatch):
    good, broken = job(classifier, 1), job(classifier, 2)
    whole = classifier._answer_alike

    def breaks(jobs):
        if broken in jobs:
            raise ZeroDivisionError("a secret")
        return whole(jobs)

    monkeypatch.setattr(classifier, "_answer_alike", breaks)
    first, second = classifier.answer([good, broken])
    assert first.request_id == "request-1"
    assert isinstance(second, RequestError)
    assert (second.code, "secret" in second.detail) == ("internal-error", False)


def test_memory_that_does_not_suffice_is_halved_or_said(classifier, monkeypatch, caplog):
    jobs = [job(classifier, number) for number in range(2)]
    expected, encode, room = classifier.answer(jobs), classifier.model.encode_images, [10]

    def limited(pixels):
        if len(pixels) > room[0]:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return encode(pixels)

    monkeypatch.setattr(classifier.model, "encode_images", limited)
    monkeypatch.setattr(classifier.model, "image_passes", Fitting("images a pass"))
    for _ in range(2):
        assert [scores(answer) for answer in classifier.answer(jobs)] == [scores(answer) for answer in expected]
    assert [line for line in caplog.messages if "out of memory" in line] == [
        "out of memory with 64 images a pass: goes on with 8"
    ]
    room[0] = 0
    assert {answer.code for answer in classifier.answer(jobs)} == {"overloaded"}
    room[0] = 10**6
    monkeypatch.setattr("zar_ray.serving.classifier.explain", lambda *_: limited(range(10**7)))
    (answer,) = classifier.answer([job(classifier, 1, explain=True)])
    assert answer.explanation is None
    assert "not enough memory" in answer.explanation_missing


@pytest.mark.parametrize("place", ["of", "features"])
def test_kept_label_sets_make_room_for_those_that_are_asked_for(classifier, monkeypatch, place):
    """Memory is short while more than one set is held, as it may be read, or its context tuned."""
    classifier, short = Classifier(classifier.config), [1]
    whole = getattr(PromptedClasses, place)

    def limited(*given):
        if len(classifier._texts) + (place == "of") > short[0]:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(*given)

    monkeypatch.setattr(PromptedClasses, place, limited)
    sets = [("g", "h"), ("i", "j"), ("k", "l", "m")]
    answers = [classifier.answer([job(classifier, 1, labels=labels)])[0] for labels in sets]
    assert [answer.candidates for answer in answers] == [2, 2, 3]
    short[0] = 0
    (answer,) = classifier.answer([job(classifier, 1, labels=("n", "o"))])
    assert answer.code == "overloaded"
    assert answer.detail.startswith("out of memory")
    short[0] = 1
    (answer,) = classifier.answer([job(classifier, 1, labels=("n", "o"))])
    assert answer.candidates == 2


@pytest.mark.slow
@pytest.mark.parametrize("method", ["zar", "zero_shot"])
def test_wherever_memory_or_the_device_goes_questions_are_told(classifier, monkeypatch, method):
    monkeypatch.setattr(classifier._texts, "settle", lambda: None)  # which computes nothing

    def jobs():
        return [job(classifier, number, ("p", "q", "r"), method, explain=True) for number in range(2)]

    def asked(*told, **forever):
        classifier._texts.clear()
        for passes in ("image_passes", "text_passes"):
            setattr(classifier.model, passes, Fitting(passes))
        with Refusing(*told, **forever) as refusing:
            return classifier.answer(jobs()), refusing.count

    asked()
    expected, count = asked()
    for at in sorted(random.Random(0).sample(range(1, count + 1), 20)):
        found, _ = asked(at)
        for one, other in zip(found, expected, strict=True):
            assert not isinstance(one, RequestError), f"operation {at}: {one.detail}"
            assert [score.label for score in one.after] == [score.label for score in other.after]
        gone = torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
        with pytest.raises(DeviceLostError):
            asked(at, gone, forever=True)


def test_a_lost_device_is_no_questions_failure(classifier, monkeypatch):
    def lost(pixels):
        raise torch.AcceleratorError("CUDA error: device-side assert triggered")

    for place in ("encode_images", "explain"):
        with monkeypatch.context() as patch:
            if place == "explain":
                patch.setattr("zar_ray.serving.classifier.explain", lambda *_: lost(None))
            else:
                patch.setattr(classifier.model, place, lost)
            with pytest.raises(DeviceLostError, match="device-side assert"):
                classifier.answer([job(classifier, 1, explain=True), job(classifier, 2)])
    assert classifier.answer([job(classifier, 1)])[0].request_id == "request-1"


def test_labels_that_the_model_cannot_tell_apart_are_named(classifier):
    (answer,) = classifier.answer([job(classifier, 1, labels=("a b", "a_b"))])
    assert isinstance(answer, RequestError)
    assert (answer.code, "read the same" in answer.detail) == ("invalid-parameters", True)


def test_text_features_of_recent_label_sets_are_kept(classifier, monkeypatch):
    made = []
    of = PromptedClasses.of
    monkeypatch.setattr(PromptedClasses, "of", lambda *args: made.append(args[1].names) or of(*args))
    classifier = Classifier(classifier.config)
    sets = [("g", "h"), ("i", "j"), ("k", "l")]
    for labels in (sets[0], sets[1], sets[0], sets[2], sets[0], sets[1]):
        classifier.answer([job(classifier, 1, labels=labels, method="zero_shot")])
        if len(made) == 1:
            classifier._texts.bound = int(2.5 * classifier._texts.held_bytes)
    assert made == [sets[0], sets[1], sets[2], sets[1]], "the least recently used makes room"


@pytest.mark.parametrize("method", ["tpt", "memo", "tent"])
def test_methods_that_work_from_pixels_or_move_weights_answer_too(classifier, method):
    one = job(classifier, 1, method=method, explain=True)
    (answer,) = classifier.answer([one])
    assert answer.method == method
    assert {label.label for label in answer.after} == set(LABELS)
    assert answer.explanation is None
    assert method in answer.explanation_missing
    (again,) = classifier.answer([one])
    assert scores(again) == scores(answer), "nothing of one answer is left for the next"


def test_methods_that_remember_videos_are_not_served(tiny_checkpoint):
    for options in ({"methods": ["tda"]}, {"methods": ["tent"], "tent": {"stream": True}}):
        with pytest.raises(ConfigError, match="depends on the order of videos"):
            require_methods(ServiceOptions(checkpoint=tiny_checkpoint, **options))
    require_methods(ServiceOptions(checkpoint=tiny_checkpoint, methods=("zar", "tpt", "memo", "tent", "zero_shot")))


def test_warm_up_tries_every_method(tiny_checkpoint):
    classifier = Classifier(ServiceOptions(checkpoint=tiny_checkpoint, device="cpu"))
    asked = []
    whole = classifier._answer_alike
    classifier._answer_alike = lambda jobs: asked.append(jobs[0].query.method) or whole(jobs)
    classifier.warm_up()
    assert asked == ["zar", "zero_shot"]


@pytest.mark.parametrize("score", SCORES)
def test_a_decision_that_is_too_unsure_is_rejected(classifier, score):
    (plain,) = classifier.answer([job(classifier, 1)])
    assert (plain.reject, plain.certainty) == (None, None)
    (asked,) = classifier.answer([job(classifier, 1, reject_below=-1e9, reject_score=score)])
    assert (asked.reject, asked.after) == (False, plain.after)
    measured = {"max_probability": plain.after[0].score, "entropy": -plain.entropy_after}
    assert asked.certainty == pytest.approx(measured.get(score, asked.certainty), abs=1e-5)
    told = {"reject_score": score, "reject_below": asked.certainty + 1e-3}
    (rejected,) = classifier.answer([job(classifier, 1, **told)])
    assert (rejected.reject, rejected.certainty) == (True, pytest.approx(asked.certainty, abs=1e-5))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_cannot_be_told_is_not_rejected_but_an_error(classifier, monkeypatch, value):
    monkeypatch.setattr("zar_ray.serving.classifier.certainties", lambda logits: {"max_probability": value})
    good, (answer,) = job(classifier, 2), classifier.answer([job(classifier, 1, reject_below=0.5)])
    assert isinstance(answer, RequestError)
    assert answer.code == "unusable-video"
    assert "how sure the decision is cannot be told" in answer.detail
    assert classifier.answer([good])[0].reject is None
