import copy

import numpy as np
import pytest
import torch

from zar_ray.adaptation.adapter import PlannedVideo, VideoAdapter, make_cases
from zar_ray.adaptation.options import AdaptationOptions, Setting
from zar_ray.adaptation.zar import ZarConfig
from zar_ray.data.class_texts import prompts_of
from zar_ray.errors import ConfigError, NoRoomError, VideoError
from zar_ray.models.clip import ClipModel
from zar_ray.video.options import ViewConfig
from zar_ray.video.pixels import crop_and_normalise
from zar_ray.video.plans import plan_views, unite
from zar_ray.video.transforms import Preprocessing

NAMES = ("red circle", "green square", "blue bar")
OPTIONS = AdaptationOptions(views=ViewConfig(frames=4, eval_frames=5), encoder_batch=7)
PREPROCESSING = Preprocessing(input_size=32)
PROMPTS = prompts_of([NAMES], OPTIONS)


class Counting(ClipModel):
    """Remembers the images it was given."""

    def __init__(self, model):
        super().__init__(model.clip, model.name, model.preprocessing, model.architecture)
        self.seen = []

    def encode_images(self, pixels):
        self.seen.append(pixels)
        return super().encode_images(pixels)


@pytest.fixture
def plan():
    return plan_views("a/b.mp4", 31, 48, 80, OPTIONS.views, PREPROCESSING, seed=0)


@pytest.fixture
def frames(plan):
    rng = np.random.default_rng(0)
    return rng.integers(0, 255, (len(plan.frames), plan.height, plan.width, 3), dtype=np.uint8)


def test_each_distinct_image_is_encoded_once(tiny_model, plan, frames):
    model = Counting(tiny_model)
    prediction = VideoAdapter(model, PROMPTS, ("zero_shot", "zar"), OPTIONS)(frames, plan)
    assert max(map(len, model.seen)) == 7
    encoded = torch.cat(model.seen)
    assert len(encoded) == len(plan.images) == prediction.images_encoded
    assert len(torch.unique(encoded.flatten(1), dim=0)) == len(encoded)
    assert prediction.views == 48
    assert [case.method for case in prediction.cases] == ["zero_shot", "zar"]
    assert prediction.encode_seconds > 0


def test_a_compiler_is_tried_once_a_model_however_many_adapters_it_has(tiny_model, monkeypatch):
    """`zar predict --seeds` makes one a seed; each trial takes seconds."""
    tried = []
    monkeypatch.setattr("zar_ray.adaptation.adapter.require_compiler", tried.append)
    model, options = Counting(tiny_model), OPTIONS.model_copy(update={"compile": True})
    for _ in range(3):
        VideoAdapter(model, PROMPTS, ("zero_shot",), options)
    assert tried == [model.device]
    assert model.compiled


@pytest.mark.parametrize("crops", [1, 3, 5, 9])
def test_images_encoded_are_the_plans_distinct_ones_whatever_the_crops(tiny_model, crops):
    options = OPTIONS.model_copy(update={"views": ViewConfig(frames=4, eval_frames=5, crops=crops)})
    plan = plan_views("a/b.mp4", 31, 48, 80, options.views, PREPROCESSING, seed=0)
    shape = (len(plan.frames), plan.height, plan.width, 3)
    frames = np.random.default_rng(0).integers(0, 255, shape, dtype=np.uint8)
    model = Counting(tiny_model)
    prediction = VideoAdapter(model, PROMPTS, ("zar",), options)(frames, plan)
    of_views = {(int(frame), int(box)) for frame, box in plan.images[plan.views.ravel()]}
    of_evaluation = {(int(frame), int(box)) for frame, box in plan.images[plan.evaluation]}
    assert sum(map(len, model.seen)) == prediction.images_encoded == len(of_views | of_evaluation)
    # the four samples of the whole video are one segment: each counts as a view, and costs nothing more
    assert prediction.views == 4 * 4 * crops
    assert np.array_equal(plan.views[:crops], plan.views[crops : 2 * crops])


def test_zero_shot_alone_encodes_the_evaluation_view(tiny_model, plan, frames):
    model = Counting(tiny_model)
    both = VideoAdapter(tiny_model, PROMPTS, ("zero_shot", "zar"), OPTIONS)(frames, plan)
    alone = VideoAdapter(model, PROMPTS, ("zero_shot",), OPTIONS)(frames, plan)
    assert sum(map(len, model.seen)) == alone.images_encoded == 5
    assert alone.views == 0
    assert torch.allclose(alone.cases[0].decision.logits_after, both.cases[0].decision.logits_after, atol=1e-4)
    short = plan.evaluation_only()
    kept = frames[np.isin(plan.frames, short.frames)]
    given = VideoAdapter(tiny_model, PROMPTS, ("zero_shot",), OPTIONS)(kept, short)
    assert torch.equal(given.cases[0].decision.logits_after, alone.cases[0].decision.logits_after)


def test_the_decision_before_is_the_zero_shot_decision(tiny_model, plan, frames):
    zero_shot, zar = VideoAdapter(tiny_model, PROMPTS, ("zero_shot", "zar"), OPTIONS)(frames, plan).cases
    assert torch.equal(zero_shot.decision.logits_after, zar.decision.logits_before)
    assert not torch.equal(zar.decision.logits_before, zar.decision.logits_after)
    assert len(zar.decision.selected) == 38


@pytest.mark.parametrize("batch", [1, 1000])
def test_the_size_of_a_pass_changes_nothing(tiny_model, plan, frames, batch):
    def logits(options):
        return VideoAdapter(tiny_model, PROMPTS, ("zar",), options)(frames, plan).cases[0].decision.logits_after

    assert torch.allclose(logits(OPTIONS), logits(OPTIONS.model_copy(update={"encoder_batch": batch})), atol=1e-4)


def test_view_features_are_those_of_each_view_encoded_by_itself(tiny_model, plan, frames):
    decision = VideoAdapter(tiny_model, PROMPTS, ("zar",), OPTIONS)(frames, plan).cases[0].decision
    classes = VideoAdapter(tiny_model, PROMPTS, ("zar",), OPTIONS).class_sets[0]
    for row in (0, 17, 47):
        images = plan.images[plan.views[row]]
        pixels = crop_and_normalise(torch.from_numpy(frames), images, plan.boxes, PREPROCESSING)
        feature = torch.nn.functional.normalize(tiny_model.encode_images(pixels).mean(dim=0), dim=0)
        p = classes.logits(feature, classes.initial_features).softmax(dim=0)
        assert torch.isclose(decision.view_entropies[row], -(p * p.log()).sum(), atol=1e-4)


def test_read_only_frames_and_tensors_are_welcome(tiny_model, plan, frames):
    adapter = VideoAdapter(tiny_model, PROMPTS, ("zar",), OPTIONS)
    expected = adapter(frames, plan).cases[0].decision.logits_after
    frozen = frames.copy()
    frozen.flags.writeable = False
    assert torch.equal(adapter(frozen, plan).cases[0].decision.logits_after, expected)
    assert torch.equal(adapter(torch.from_numpy(frames), plan).cases[0].decision.logits_after, expected)


def test_frames_of_another_plan_are_refused(tiny_model, plan, frames):
    with pytest.raises(ValueError, match="and the plan's are"):
        VideoAdapter(tiny_model, PROMPTS, ("zar",), OPTIONS)(frames[1:], plan)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    ],
)
def test_running_out_of_memory_is_the_videos_failure(tiny_model, plan, frames, error):
    """Raised by hand: a test cannot fill a GPU."""

    class Full(ClipModel):
        def encode_images(self, pixels):
            raise error

    model = Full(tiny_model.clip, "full", PREPROCESSING, tiny_model.architecture)
    with pytest.raises(
        NoRoomError, match="out of memory encoding one image by itself; leave the process more"
    ) as caught:
        VideoAdapter(model, PROMPTS, ("zar",), OPTIONS)(frames, plan)
    assert caught.value.stage == "encode"


def test_other_failures_of_the_encoder_stay_what_they_are(tiny_model, plan, frames):
    broken = copy.deepcopy(tiny_model)
    broken.clip.visual.proj = None
    broken.clip.visual.conv1 = torch.nn.Identity()
    with pytest.raises(RuntimeError):
        VideoAdapter(broken, PROMPTS, ("zar",), OPTIONS)(frames, plan)


class TestSettings:
    """A sweep's settings in one pass."""

    def settings(self):
        side = {"short_side": 37}
        options = [
            OPTIONS.model_copy(update={"views": OPTIONS.views.model_copy(update={**side, **views}), **others})
            for views, others in (
                ({}, {}),
                ({}, {"zar": ZarConfig(confidence=0.1, steps=2)}),
                ({"rates": (0.5,)}, {}),
                ({"crops": 9, "eval_frames": 3}, {}),
                ({}, {"context": "a photo of the"}),
                ({}, {"class_position": "front"}),
            )
        ]
        return [Setting(one, prompts_of([NAMES], one)) for one in options]

    def planned(self, settings):
        def plan(options):
            return plan_views("a/b.mp4", 31, 48, 80, options.views, PREPROCESSING, seed=0)

        own = [plan(one.options) for one in settings]
        first, *further = unite(own)
        frames = np.random.default_rng(0).integers(0, 255, (31, first.height, first.width, 3), dtype=np.uint8)
        alone = [PlannedVideo(one, frames[one.frames]) for one in own]
        return PlannedVideo(first, frames[first.frames], further=tuple(further)), alone

    def adapter(self, model, settings, methods=("zero_shot", "zar")):
        options = [one.options.model_copy(update={"method": methods}) for one in settings]
        cases = [
            case for n, one in enumerate(settings) for case in make_cases(options[n], model.fingerprint, one.prompts, n)
        ]
        return VideoAdapter(model, settings[0].prompts, methods, options[0], cases=cases, further=settings[1:])

    @pytest.mark.parametrize("methods", [("zero_shot", "zar"), ("zero_shot",)])
    def test_each_setting_decides_as_it_would_alone(self, tiny_model, methods):
        settings = self.settings()
        together, alone = self.planned(settings)
        model = Counting(tiny_model)
        (prediction,) = self.adapter(model, settings, methods).predict([together])
        assert sum(map(len, model.seen)) == prediction.images_encoded
        assert len(torch.unique(torch.cat(model.seen).flatten(1), dim=0)) == prediction.images_encoded
        if "zar" in methods:
            assert prediction.images_encoded == len(together.plan.images)
        expected = [
            case
            for setting, video in zip(settings, alone, strict=True)
            for case in VideoAdapter(tiny_model, setting.prompts, methods, setting.options).predict([video])[0].cases
        ]
        assert [one.case_id for one in prediction.cases] == [one.case_id for one in expected]
        for ours, theirs in zip(prediction.cases, expected, strict=True):
            assert torch.allclose(ours.decision.logits_before, theirs.decision.logits_before, atol=1e-4)
            assert torch.allclose(ours.decision.logits_after, theirs.decision.logits_after, atol=1e-4)
            assert ours.images == theirs.images

    def test_what_settings_have_in_common_is_made_once(self, tiny_model):
        settings = self.settings()
        adapter = self.adapter(tiny_model, settings)
        classes = [adapter._classes[number][0] for number in range(len(settings))]
        assert len({id(one) for one in classes}) == 3

    def test_a_setting_that_cannot_decide_leaves_the_others(self, tiny_model):
        settings = self.settings()[:2]
        settings[1] = Setting(
            settings[1].options.model_copy(update={"zar": ZarConfig(lr=1e30, steps=2)}), settings[1].prompts
        )
        together, _ = self.planned(settings)
        (prediction,) = self.adapter(tiny_model, settings, ("zar",)).predict([together])
        assert len(prediction.cases) == 1
        assert "not finite" in str(prediction.failures[1])
        settings[0] = settings[1]
        (failed,) = self.adapter(tiny_model, settings, ("zar",)).predict([self.planned(settings)[0]])
        assert isinstance(failed, VideoError)

    def test_plans_of_other_images_are_refused(self):
        plans = [plan_views("a", 31, 48, 80, OPTIONS.views, PREPROCESSING, seed=seed) for seed in (0, 1)]
        frames = np.zeros((len(plans[0].frames), plans[0].height, plans[0].width, 3), np.uint8)
        with pytest.raises(ValueError, match="different images"):
            PlannedVideo(plans[0], frames, further=(plans[1],))


class TestCases:
    def test_a_case_is_class_set_model_method_and_setting(self):
        def ids(options=OPTIONS, model="abc", names=NAMES):
            return tuple(case.case_id for case in make_cases(options, model, prompts_of([names], options)))

        first = ids()
        assert [case.method for case in make_cases(OPTIONS, "abc", PROMPTS)] == ["zero_shot", "zar"]
        assert [name.rpartition("-")[0] for name in first] == ["zero_shot", "zar"]
        assert ids() == first
        for other in (ids(model="abd"), ids(names=NAMES[::-1]), ids(OPTIONS.model_copy(update={"seed": 1}))):
            assert not set(other) & set(first)
        # how a run is carried out is not part of it, and ZAR's settings are ZAR's alone
        assert ids(OPTIONS.model_copy(update={"encoder_batch": 3})) == first
        tuned = ids(OPTIONS.model_copy(update={"zar": ZarConfig(lr=0.1)}))
        assert tuned[0] == first[0]
        assert tuned[1] != first[1]

    def test_given_cases_name_the_results(self, tiny_model, plan, frames):
        cases = make_cases(OPTIONS, "of another run", PROMPTS)
        adapter = VideoAdapter(tiny_model, PROMPTS, OPTIONS.method, OPTIONS, cases=cases)
        assert [case.case_id for case in adapter(frames, plan).cases] == [case.case_id for case in cases]

    def test_mistakes_are_found_at_once(self, tiny_model):
        with pytest.raises(ConfigError, match="did you mean"):
            VideoAdapter(tiny_model, PROMPTS, ("zarr",), OPTIONS)
        with pytest.raises(ConfigError, match="read the same"):
            VideoAdapter(tiny_model, prompts_of([("run", "Run")], OPTIONS), ("zar",), OPTIONS)
