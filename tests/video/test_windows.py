"""Windows of a video: where they lie, and how long each of its frames is held."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zar_ray.errors import VideoTooLargeError
from zar_ray.video.options import ViewConfig
from zar_ray.video.reading import VideoInfo
from zar_ray.video.sandbox_process import DecodeRequest
from zar_ray.video.transforms import Preprocessing
from zar_ray.video.windows import WindowCut, WindowSchedule, cut_windows

SECONDS = st.one_of(st.floats(0.01, 50), st.integers(1, 50).map(float))
RATES = st.one_of(st.floats(1, 120), st.sampled_from([25.0, 30.0, 30000 / 1001]))


@pytest.mark.slow
@given(frames=st.integers(1, 2000), fps=RATES, length=SECONDS, stride=SECONDS)
@settings(deadline=None, max_examples=300)
def test_windows_lie_a_stride_apart_and_cover_the_video(frames, fps, length, stride):
    try:
        spans = cut_windows(frames, fps, WindowCut(length, stride), 5000)
    except VideoTooLargeError:
        assert frames / (stride * fps) > 4999
        return
    assert [span.number for span in spans] == list(range(len(spans)))
    assert spans[0].start_frame == 0
    covered = set()
    for span in spans:
        assert span.start == pytest.approx(span.number * stride)
        assert abs(span.start_frame - span.number * stride * fps) <= 0.5 + 1e-2
        assert span.frames >= 1
        assert span.start_frame + span.frames <= frames
        full = span.number * stride + length <= frames / fps
        if full:
            assert abs(span.frames - length * fps) <= 1.01
            assert span.end == pytest.approx(span.start + length)
        else:
            # to the last frame, or all but what rounding leaves of it
            assert span.start_frame + span.frames >= frames - 1
        covered.update(range(span.start_frame, span.start_frame + span.frames))
    # the next one would start after the last frame
    assert len(spans) * stride * fps >= frames - 0.5 - 1e-2
    if stride <= length:
        assert covered == set(range(frames))


@given(
    frames=st.integers(1, 400),
    length=st.floats(0.1, 10),
    stride=st.floats(0.1, 10),
    rates=st.sampled_from([(1.0,), (1.0, 0.5, 0.25, 0.125), (0.125,)]),
)
@settings(deadline=None, max_examples=100)
def test_frames_are_held_only_while_a_window_needs_them(frames, length, stride, rates):
    info = VideoInfo(frames, 25.0, 64, 48, frames / 25, "pyav")
    wanted = DecodeRequest("a.mp4", ViewConfig(rates=rates), 0, Preprocessing(32), True)
    spans = cut_windows(frames, 25.0, WindowCut(length, stride), 5000)
    plans = [wanted.plan_window(info, span) for span in spans]
    schedule = WindowSchedule(spans, plans)
    held, due, most = set(), 0, 0
    for row in range(len(schedule.frames)):
        held.add(row)
        most = max(most, len(held))
        while due < len(spans) and schedule.complete[due] == row:
            assert held.issuperset(schedule.rows[due].tolist())
            assert np.array_equal(schedule.frames[schedule.rows[due]], spans[due].start_frame + plans[due].frames)
            held = {one for one in held if schedule.last_use[one] > due}
            due += 1
    assert (due, held) == (len(spans), set())
    assert most == schedule.most_held
