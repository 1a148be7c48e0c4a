"""View plans: the rules of the method, and that a plan depends on nothing but what it is told."""

from __future__ import annotations

from fractions import Fraction
from math import floor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from zar_ray.errors import ConfigError, VideoError
from zar_ray.video.options import ViewConfig
from zar_ray.video.plans import ViewPlan, plan_views, segment_length, unite
from zar_ray.video.sampling import evaluated_frames, part_centres
from zar_ray.video.transforms import Preprocessing, crop_boxes

CLIP = Preprocessing(224)

# rate, sample, start and length for 300 frames and seed 3
PINNED = [
    (1.0, 0, 0, 300),
    (1.0, 1, 0, 300),
    (1.0, 2, 0, 300),
    (1.0, 3, 0, 300),
    (0.5, 0, 11, 150),
    (0.5, 1, 124, 150),
    (0.5, 2, 135, 150),
    (0.5, 3, 102, 150),
    (0.25, 0, 169, 75),
    (0.25, 1, 136, 75),
    (0.25, 2, 129, 75),
    (0.25, 3, 10, 75),
    (0.125, 0, 233, 38),
    (0.125, 1, 163, 38),
    (0.125, 2, 174, 38),
    (0.125, 3, 35, 38),
]

DEFAULT = ViewConfig()
thoroughly = settings(max_examples=80, deadline=None)

view_configs = st.builds(
    ViewConfig,
    frames=st.integers(1, 33),
    eval_frames=st.integers(1, 33),
    rates=st.lists(
        st.sampled_from([1.0, 0.5, 0.3, 0.25, 0.125, 1 / 3, 0.999]), min_size=1, max_size=4, unique=True
    ).map(tuple),
    views_per_rate=st.integers(1, 5),
    crops=st.sampled_from([1, 3, 5, 9]),
)
videos = st.tuples(st.text(max_size=8), st.integers(1, 2000), st.integers(1, 1200), st.integers(1, 1200))


def plan_of(video, views: ViewConfig = DEFAULT, seed: int = 0, preprocessing: Preprocessing = CLIP) -> ViewPlan:
    return plan_views(*video, views, preprocessing, seed)


def used(plan: ViewPlan, rows: np.ndarray) -> list[tuple[int, int, int, int]]:
    """Frame and box of each image, in words that do not depend on the plan's own numbering."""
    return [(int(plan.frames[f]), *vars(plan.boxes[b]).values()) for f, b in plan.images[rows]]


def views_by_origin(plan: ViewPlan) -> dict[tuple, list]:
    return {
        (origin.rate, origin.sample, origin.crop): used(plan, row)
        for origin, row in zip(plan.origins, plan.views, strict=True)
    }


@thoroughly
@given(videos, view_configs, st.integers(0, 2**40))
def test_every_plan_is_sound(video, views, seed):
    plan = plan_of(video, views, seed)
    total = len(views.rates) * views.views_per_rate * views.crops

    assert plan.views.shape == (total, views.frames)
    assert plan.evaluation.shape == (views.eval_frames,)
    assert len(plan.origins) == total
    assert (np.diff(plan.frames) > 0).all()
    assert plan.frames[0] >= 0
    assert plan.frames[-1] < video[1]
    assert len(set(plan.boxes)) == len(plan.boxes)
    assert len({tuple(pair) for pair in plan.images}) == len(plan.images)
    for array in (plan.frames, plan.images, plan.views, plan.evaluation):
        assert array.dtype == np.int64
    # nothing is decoded, cut or encoded that no view uses
    assert set(np.concatenate([plan.views.ravel(), plan.evaluation])) == set(range(len(plan.images)))
    assert set(plan.images[:, 0]) == set(range(len(plan.frames)))
    assert set(plan.images[:, 1]) == set(range(len(plan.boxes)))


@thoroughly
@given(videos, view_configs, st.integers(0, 9))
def test_views_are_what_their_origin_says(video, views, seed):
    plan = plan_of(video, views, seed)
    boxes = dict(crop_boxes(plan.height, plan.width, 224, views.crops))
    for origin, row in zip(plan.origins, plan.views, strict=True):
        assert 0 <= origin.start <= origin.start + origin.length <= video[1]
        images = used(plan, row)
        frames = [image[0] for image in images]
        expected = [
            min(floor(origin.start + (i + Fraction(1, 2)) * Fraction(origin.length, views.frames)), video[1] - 1)
            for i in range(views.frames)
        ]
        assert frames == expected
        assert {image[1:] for image in images} == {tuple(vars(boxes[origin.crop]).values())}


@thoroughly
@given(videos, view_configs, st.integers(0, 9))
def test_evaluation_view_is_the_whole_video_under_the_centre_crop(video, views, seed):
    plan = plan_of(video, views, seed)
    ((_, centre),) = crop_boxes(plan.height, plan.width, 224, 1)
    frames = part_centres(0, video[1], views.eval_frames, video[1])
    assert used(plan, plan.evaluation) == [(int(frame), *vars(centre).values()) for frame in frames]


@thoroughly
@given(videos, view_configs, st.integers(0, 9), st.data())
def test_dropping_rates_samples_or_crops_leaves_the_other_views(video, views, seed, data):
    fewer = views.model_copy(
        update={
            "rates": tuple(data.draw(st.permutations(views.rates)))[: data.draw(st.integers(1, len(views.rates)))],
            "views_per_rate": data.draw(st.integers(1, views.views_per_rate)),
            "crops": data.draw(st.sampled_from([n for n in (1, 3, 5, 9) if n <= views.crops])),
            "short_side": 256,
        }
    )
    everything = views_by_origin(plan_of(video, views.model_copy(update={"short_side": 256}), seed))
    for origin, images in views_by_origin(plan_of(video, fewer, seed)).items():
        assert everything[origin] == images


several_configs = st.lists(st.tuples(view_configs, st.integers(0, 3), st.booleans()), min_size=1, max_size=5)


@thoroughly
@given(videos, several_configs)
def test_united_plans_name_each_image_once_and_keep_every_view(video, configs):
    plans = []
    for views, seed, alone in configs:
        plan = plan_of(video, views.model_copy(update={"short_side": 256}), seed)
        plans.append(plan.evaluation_only() if alone else plan)
    united = unite(plans)
    shared = united[0]
    everything = set()
    for plan, one in zip(plans, united, strict=True):
        assert views_by_origin(one) == views_by_origin(plan)
        assert used(one, one.evaluation) == used(plan, plan.evaluation)
        assert one.origins == plan.origins
        assert one.images is shared.images
        assert one.count_images(with_views=True) == len(plan.images)
        assert one.count_images(with_views=False) == len(plan.evaluation_only().images)
        everything |= set(used(plan, np.arange(len(plan.images))))
    images = used(shared, np.arange(len(shared.images)))
    assert len(images) == len(set(images))
    assert set(images) == everything
    assert set(shared.images[:, 0]) == set(range(len(shared.frames)))
    assert set(shared.images[:, 1]) == set(range(len(shared.boxes)))
    assert (np.diff(shared.frames) > 0).all()


@thoroughly
@given(videos, view_configs, st.integers(0, 9))
def test_a_plan_united_with_itself_is_itself(video, views, seed):
    plan = plan_of(video, views, seed)
    united = unite([plan, plan])
    assert len(united) == 2
    for one in united:
        for name in ("frames", "images", "views", "evaluation"):
            assert np.array_equal(getattr(one, name), getattr(plan, name))
        assert one.boxes == plan.boxes


def test_the_papers_18_settings_need_little_more_than_nine_crops():
    """At most 3.3 times the images of one default run, wherever the frames suffice."""
    rates, crops = ((1.0, 0.5, 0.25, 0.125), (1.0, 0.5, 0.25), (1.0, 0.5), (1.0,)), (1, 3, 5, 9)
    for frames in (95, 300, 3000):
        video = ("a/b.mp4", frames, 240, 320)
        swept = unite(
            [plan_of(video, ViewConfig(rates=one, short_side=256)) for one in rates]
            + [plan_of(video, ViewConfig(crops=one, short_side=256)) for one in crops]
        )
        assert len(swept[0].images) <= 3.3 * len(plan_of(video).images)


def test_plans_of_different_frame_sizes_share_nothing():
    video = ("a/b.mp4", 50, 240, 320)
    with pytest.raises(ValueError, match="different sizes"):
        unite([plan_of(video), plan_of(video, ViewConfig(crops=9))])


@thoroughly
@given(videos, st.integers(0, 9))
def test_plan_of_the_evaluation_view_alone(video, seed):
    plan = plan_of(video, seed=seed)
    alone = plan.evaluation_only()
    assert used(alone, alone.evaluation) == used(plan, plan.evaluation)
    assert alone.views.shape == (0, 16)
    assert alone.origins == ()
    assert set(alone.evaluation) == set(range(len(alone.images)))
    assert set(alone.images[:, 0]) == set(range(len(alone.frames)))
    assert len(alone.boxes) == 1


def test_default_plan_has_39_distinct_views():
    """Unless two segments of a rate happen to start alike."""
    plan = plan_of(("riding/b.mp4", 300, 256, 340))
    distinct = {tuple(row) for row in plan.views}
    assert plan.views.shape == (48, 16)
    assert tuple(plan.evaluation) in distinct
    assert len(distinct) == 39


@pytest.mark.parametrize(("frames", "low", "high"), [(95, 225, 250), (300, 425, 465)])
def test_default_plan_shares_most_images(frames, low, high):
    counts = [len(plan_of((f"{i}.mp4", frames, 256, 340)).images) for i in range(30)]
    assert low < np.mean(counts) < high


def test_crops_that_coincide_cost_one_image():
    square = plan_of(("a.mp4", 300, 256, 256))
    assert square.views.shape == (48, 16)
    assert len(square.boxes) == 1
    assert len(square.images) == len(square.frames)


def test_starts_are_what_they_were():
    """These numbers are part of what a seed means: a change makes every earlier result unrepeatable."""
    plan = plan_of(("ApplyEyeMakeup/v_g01_c01.avi", 300, 240, 320), ViewConfig(crops=1), seed=3)
    starts = [(origin.rate, origin.sample, origin.start, origin.length) for origin in plan.origins]
    assert starts == PINNED


def test_seed_and_id_choose_the_starts():
    def starts(seed, name):
        return [origin.start for origin in plan_of((name, 300, 256, 340), seed=seed).origins]

    assert starts(0, "a.mp4") == starts(0, "a.mp4")
    assert starts(0, "a.mp4") != starts(1, "a.mp4")
    assert starts(0, "a.mp4") != starts(0, "b.mp4")
    # parts of the key do not run into each other
    assert starts(1, "2.mp4") != starts(12, ".mp4")


def test_plans_do_not_depend_on_order():
    names = [f"{i}.mp4" for i in range(6)]
    forward = {name: plan_of((name, 200, 256, 340)).views.tobytes() for name in names}
    backward = {name: plan_of((name, 200, 256, 340)).views.tobytes() for name in reversed(names)}
    assert forward == backward


def test_starts_are_uniform():
    # N = 20, q = 1/2: eleven starts, each drawn about 400 times of 4400
    views = ViewConfig(rates=(0.5,), views_per_rate=4400, crops=1, frames=1)
    starts = [origin.start for origin in plan_of(("a.mp4", 20, 256, 340), views).origins]
    counts = np.bincount(starts, minlength=11)
    assert len(counts) == 11
    assert np.abs(counts - 400).max() < 5 * 400**0.5


@pytest.mark.parametrize(
    ("frames", "rate", "length"),
    [
        (1, 0.125, 1),
        (3, 0.125, 1),
        (4, 0.125, 1),
        (12, 0.125, 2),
        (300, 0.5, 150),
        (95, 0.25, 24),
        (94, 0.25, 24),
        (5, 0.3, 2),
        (15, 0.1, 2),
        (3, 1 / 3, 1),
        (7, 1.0, 7),
    ],
)
def test_segment_length_rounds_halves_up_and_exactly(frames, rate, length):
    """94/4 = 23.5, 5 · 0.3 = 1.5, 12/8 = 1.5 go up; 0.3 and 0.1 count as the decimals that they are."""
    assert segment_length(frames, rate) == length


def test_short_segments_repeat_frames():
    assert part_centres(0, 3, 8, 3).tolist() == [0, 0, 0, 1, 1, 2, 2, 2]
    assert part_centres(7, 1, 4, 8).tolist() == [7, 7, 7, 7]


def test_frames_are_exact_where_floating_point_is_not():
    # the fourth of 7 parts of 122 frames has its centre at 61 exactly; 3.5 · (122 / 7) is 60.999…
    assert floor(3.5 * (122 / 7)) == 60
    assert part_centres(0, 122, 7, 122)[3] == 61


def test_unusable_videos_and_options_say_so():
    with pytest.raises(VideoError, match="0 frames of 340×256") as caught:
        plan_of(("a.mp4", 0, 256, 340))
    assert caught.value.stage == "plan"
    with pytest.raises(ConfigError, match=r"views.short_side is 200.*224"):
        plan_of(("a.mp4", 30, 256, 340), ViewConfig(short_side=200))


def test_several_evaluation_views_share_the_parts_of_a_video():
    def view(number, views):
        return evaluated_frames("parts", number, views, 8, 100, lambda below: pytest.fail("draws"), 16).tolist()

    frames = [view(number, 4) for number in range(4)]
    for views in zip(*frames, strict=True):
        assert list(views) == sorted(views)
    assert sorted(index for view in frames for index in view) == part_centres(0, 100, 32, 100).tolist()
    assert view(0, 1) == part_centres(0, 100, 8, 100).tolist()


def test_multi_view_testing_plans_moments_times_spots():
    one = plan_views("a", 60, 64, 96, ViewConfig(), Preprocessing(32), seed=0)
    several = plan_views("a", 60, 64, 96, ViewConfig(eval_views="4x3"), Preprocessing(32), seed=0)
    assert several.evaluation.shape == (12, 16)
    assert one.evaluation.shape == (16,)
    assert len({tuple(row) for row in several.evaluation.tolist()}) == 12
    assert [tuple(several.images[row]) for row in several.views.ravel()[:5]] == [
        (several.frames.tolist().index(one.frames[frame]), several.boxes.index(one.boxes[box]))
        for frame, box in one.images[one.views.ravel()[:5]]
    ]
    alone = several.evaluation_only()
    assert alone.evaluation.shape == (12, 16)
    assert set(alone.evaluation.ravel().tolist()) == set(range(len(alone.images)))
    with pytest.raises(ValidationError):
        ViewConfig(eval_views="4x2")
