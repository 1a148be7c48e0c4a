"""Which frames the published systems read: their rules in whole numbers, and what their official code gave for some."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zar_ray.video.options import ViewConfig
from zar_ray.video.plans import plan_views
from zar_ray.video.sampling import drawn_frames, evaluated_frames, part_centres
from zar_ray.video.transforms import Preprocessing

frame_counts = st.integers(1, 400)
view_lengths = st.sampled_from([1, 2, 3, 7, 8, 16, 32])
WAYS = ("segments", "ticks", "stride", "dense")


def no_draw(below):
    pytest.fail("nothing is drawn here")


def replay(*numbers):
    """Draws these numbers, each of which must be below what it is drawn from."""
    left = list(numbers)

    def draw(below):
        assert left[0] < below
        return left.pop(0)

    return draw


def highest(below):
    return below - 1


def lowest(below):
    return 0


def evaluated(sampling, count, frames, number=0, views=1, stride=16, draw=no_draw):
    return evaluated_frames(sampling, number, views, count, frames, draw, stride).tolist()


@given(st.sampled_from(WAYS), view_lengths, frame_counts, st.integers(1, 20), st.sampled_from([lowest, highest]))
def test_every_frame_is_one_of_the_videos(sampling, count, frames, stride, draw):
    for chosen in (
        drawn_frames(sampling, count, frames, draw, stride),
        *(evaluated_frames(sampling, number, 3, count, frames, draw, stride) for number in range(3)),
    ):
        assert (chosen.shape, chosen.dtype) == ((count,), np.int64)
        assert chosen.min() >= 0
        assert chosen.max() < frames
        if frames >= count:
            assert (np.diff(chosen) >= 0).all()


class TestEvaluation:
    @given(view_lengths, frame_counts)
    def test_ticks_lie_half_a_frame_before_the_centres_of_parts(self, count, frames):
        ticks = evaluated("ticks", count, frames)
        if count == 1:
            assert ticks == [frames // 2]
        elif frames <= count:
            assert ticks == [part * frames // count for part in range(count)]
        else:
            exact = [(part + Fraction(1, 2)) * frames / count - Fraction(1, 2) for part in range(count)]
            assert ticks == [math.floor(one) for one in exact]
            assert {1, 0} >= set(part_centres(0, frames, count, frames) - ticks)

    @given(view_lengths, frame_counts)
    def test_one_view_of_segments_is_the_centres(self, count, frames):
        assert evaluated("segments", count, frames) == part_centres(0, frames, count, frames).tolist()

    @given(view_lengths, frame_counts, st.integers(1, 40), st.integers(1, 5))
    def test_strided_views_spread_from_the_first_frame_to_the_last(self, count, frames, stride, views):
        found = [evaluated("stride", count, frames, number, views, stride) for number in range(views)]
        span = (count - 1) * stride + 1
        if span >= frames:
            assert found == [[min(step * stride, frames - 1) for step in range(count)]] * views
            return
        assert all(set(np.diff(view)) <= {stride} for view in found)
        starts = [view[0] for view in found]
        if views == 1:
            assert starts == [(frames - span) // 2]
        else:
            assert (starts[0], found[-1][-1]) == (0, frames - 1)
            assert max(np.diff(starts)) - min(np.diff(starts)) <= 1

    @pytest.mark.parametrize(
        ("sampling", "count", "frames", "expected"),
        [
            ("ticks", 8, 95, [5, 17, 29, 41, 52, 64, 76, 88]),
            ("ticks", 16, 10, [0, 0, 1, 1, 2, 3, 3, 4, 5, 5, 6, 6, 7, 8, 8, 9]),
            ("segments", 8, 95, [5, 17, 29, 41, 53, 65, 77, 89]),
        ],
    )
    def test_published_one_view(self, sampling, count, frames, expected):
        assert evaluated(sampling, count, frames) == expected

    def test_published_strided_views(self):
        found = [evaluated("stride", 4, 95, number, 3, 16)[0] for number in range(3)]
        assert found == [0, 23, 46]
        assert evaluated("stride", 8, 95) == [0, 16, 32, 48, 64, 80, 94, 94]


class TestTraining:
    @given(st.integers(1, 40), frame_counts)
    def test_segments_are_whole_frames_long_and_leave_the_rest(self, count, frames):
        length = frames // count
        if length:
            first, last = (drawn_frames("segments", count, frames, draw, 16) for draw in (lowest, highest))
            assert first.tolist() == [part * length for part in range(count)]
            assert last.tolist() == [part * length + length - 1 for part in range(count)]

    @given(st.integers(1, 40), frame_counts)
    def test_ticks_share_a_videos_frames_out(self, count, frames):
        first, last = (drawn_frames("ticks", count, frames, draw, 16) for draw in (lowest, highest))
        if frames > count:
            assert (first[0], last[-1]) == (0, frames - 1)
            assert (first[1:] == last[:-1] + 1).all()
        else:
            assert set(first) == set(last) == set(range(frames))

    @given(view_lengths, frame_counts, st.integers(1, 40))
    def test_strides_start_anywhere_that_they_fit(self, count, frames, stride):
        first, last = (drawn_frames("stride", count, frames, draw, stride) for draw in (lowest, highest))
        assert first[0] == 0
        if (count - 1) * stride < frames:
            assert last[-1] == frames - 1
            assert set(np.diff(last)) <= {stride}
        else:
            assert last.tolist() == [min(step, (frames - 1) // stride) * stride for step in range(count)]

    @pytest.mark.parametrize(
        ("sampling", "count", "frames", "draws", "expected"),
        [
            ("segments", 4, 30, (6, 0, 3, 2), [6, 7, 17, 23]),
            ("segments", 8, 3, (), [0, 0, 1, 1, 2, 2, 2, 0]),
            ("ticks", 4, 30, (6, 0, 6, 2), [6, 7, 21, 24]),
            ("ticks", 5, 3, (2, 0), [0, 0, 1, 2, 2]),
            ("stride", 4, 60, (11,), [11, 27, 43, 59]),
            ("stride", 4, 40, (), [0, 16, 32, 32]),
            ("dense", 4, 30, (0, 0, 25), [25, 26, 27, 28]),
            ("dense", 4, 30, (1, 1, 10), [21, 23, 25, 27]),
            ("dense", 4, 30, (5, 3, 2), [10, 14, 17, 21]),
            ("dense", 4, 9, (5, 0, 4), [4, 5, 6, 7]),
            ("dense", 4, 3, (), [0, 1, 2, 2]),
        ],
    )
    def test_published_draws(self, sampling, count, frames, draws, expected):
        assert drawn_frames(sampling, count, frames, replay(*draws), 16).tolist() == expected


class TestPlans:
    def plan(self, **options):
        return plan_views(options.pop("video", "a.mp4"), 200, 64, 96, ViewConfig(**options), Preprocessing(32), seed=1)

    def frames(self, **options):
        plan = self.plan(**options)
        return [plan.frames[plan.images[view][:, 0]].tolist() for view in np.atleast_2d(plan.evaluation)]

    @pytest.mark.parametrize("sampling", ["ticks", "stride"])
    def test_evaluation_views_are_sampled_as_told(self, sampling):
        found = self.frames(eval_sampling=sampling, eval_frames=8, eval_views="3x1", eval_stride=5)
        assert found == [evaluated(sampling, 8, 200, number, 3, 5) for number in range(3)]

    @pytest.mark.parametrize("sampling", ["dense", "segments"])
    def test_drawn_views_depend_on_the_video_the_seed_and_the_view_alone(self, sampling):
        options = {"eval_sampling": sampling, "eval_frames": 8, "eval_views": "5x1"}
        found = self.frames(**options)
        assert found == self.frames(**options, rates=(1.0,))
        assert len({tuple(view) for view in found}) == 5
        assert found != self.frames(**options, video="b.mp4")

    def test_other_views_stay_as_they_were(self):
        plans = [self.plan(eval_sampling=sampling, eval_frames=8) for sampling in ("parts", "dense")]
        one, two = (plan.frames[plan.images[plan.views.ravel(), 0]].tolist() for plan in plans)
        assert one == two
