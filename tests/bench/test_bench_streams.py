"""The bench of streams: what it counts as completed, and what whole videos pay."""

from __future__ import annotations

import io
import time

import pytest
from rich.console import Console

from zar_ray.client import ServiceError


@pytest.fixture(scope="module")
def bench(load_bench):
    return load_bench("streams")


def test_the_price_is_a_ratio_of_95th_percentiles(bench):
    assert bench.ratio([2.0] * 20, [1.0] * 20) == 2.0
    assert bench.ratio([0.0, 1.0], [0.0, 2.0]) == pytest.approx(0.5)
    assert bench.ratio([], [1.0]) is None


def test_whole_videos_are_asked_again_and_errors_counted(bench):
    answers = iter([1, 2, ServiceError("u", "no", 503, "overloaded", retry_after=0.0), 3])

    def ask():
        answer = next(answers)
        if isinstance(answer, ServiceError):
            raise answer

    whole = bench.ask_whole(ask, lambda count: count < 4)
    assert (len(whole.seconds), whole.errors) == (3, {"overloaded": 1})


def test_a_stream_completes_with_every_window_and_an_end(bench):
    outcomes = iter([6, 5, ServiceError("u", "lost", 503, "replica-lost"), 6])

    def stream():
        outcome = next(outcomes)
        if isinstance(outcome, ServiceError):
            raise outcome
        time.sleep(0.05)
        return outcome

    options = bench.StreamsBenchOptions(streams=4, at_once=1)  # so that errors come in order
    found = bench.stream_beside(stream, 6, lambda: time.sleep(0.01), 10.0, options)
    assert (found.asked, found.completed, found.errors) == (4, 2, {"5 windows": 1, "replica-lost": 1})
    assert found.beside.seconds
    said = io.StringIO()
    bench.show([found], bench.Whole([0.01], {}), Console(file=said, width=150))
    assert "2 of 4 (1 5 windows) (1 replica-lost)" in said.getvalue()


def test_the_video_is_as_long_as_it_is_asked_to_be(bench, tmp_path):
    from zar_ray.video.reading import open_video

    with open_video(bench.make_long_video(tmp_path / "a.mp4", 2.0), "pyav") as reader:
        assert (reader.info.frames, reader.info.duration) == (50, 2.0)
