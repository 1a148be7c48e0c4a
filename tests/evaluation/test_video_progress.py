"""What a bar and a log say of how far a run is: no rate before there is one, and none of what failed."""

from __future__ import annotations

import io
import re

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from zar_ray.evaluation import progress
from zar_ray.evaluation.progress import VideoProgress
from zar_ray.evaluation.spec import STATUS_SCHEMA


class Clock:
    """A clock that stands until it is told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


def log(blocks: list[tuple[float, int, int]], total: int, done: int = 0, terminal: bool = False) -> str:
    """What is printed of blocks, each so many seconds after the one before, of so many videos, some failed."""
    clock, stream = Clock(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(progress, "time", clock)
        console = Console(file=stream, force_terminal=terminal, width=120, color_system=None)
        with VideoProgress(console, total, done) as shown:
            for seconds, videos, failed in blocks:
                clock.now += seconds
                shown.advance(videos, failed)
    return stream.getvalue()


def test_rates_begin_with_the_first_block_and_say_what_passes_before_it():
    said = log([(60, 8, 0), (10, 8, 0), (10, 8, 0)], total=48).splitlines()
    assert said == [
        "starting workers, first block ...",
        "evaluating: 8/48 videos",
        "evaluating: 16/48 videos, 0.80/s, about 40 s left",
        "evaluating: 24/48 videos, 0.80/s, about 30 s left",
    ]


def test_blocks_that_come_together_have_no_rate_yet():
    said = log([(60, 8, 0), (0.01, 4, 0)], total=12).splitlines()
    assert said[-1] == "evaluating: 12/12 videos"


def test_failed_videos_and_earlier_ones_are_no_speed():
    said = log([(1, 50, 50), (30, 4, 0), (10, 8, 4)], total=112, done=38).splitlines()
    assert said[-1] == "evaluating (54 failed): 100/112 videos, 0.40/s, about 30 s left"
    # Those that are broken from the start are no first block.
    assert "starting workers, first block (50 failed): 88/112 videos" not in said
    assert log([(11, 5, 5)], total=9).splitlines()[-1] == "starting workers, first block (5 failed): 5/9 videos"


def test_where_all_failed_the_end_is_said_all_the_same():
    assert log([(1, 3, 3)], total=3).splitlines()[-1] == "starting workers, first block (3 failed): 3/3 videos"


def test_a_bar_says_the_same():
    said = log([(60, 8, 0), (10, 8, 2)], total=24, terminal=True)
    assert "starting workers, first block" in said
    assert "evaluating (2 failed)" in said
    assert re.search(r"16/24 +videos .*0\.60/s, about 13 s left", said)


@given(
    start=st.floats(0.01, 1e4),
    seconds=st.floats(1.01, 1e3),
    blocks=st.lists(st.integers(0, 8), min_size=1, max_size=6),
)
def test_no_start_up_moves_a_rate(start, seconds, blocks):
    """`blocks` are how many of eight videos failed, in each block after the first."""
    rest = [(seconds, 8, failed) for failed in blocks]
    said = log([(start, 8, 0), *rest], total=8 * (len(blocks) + 1)).splitlines()[-1]
    finished = sum(8 - failed for failed in blocks)
    assert ("/s" in said) == (finished > 0)
    if finished:
        assert f"{finished / (seconds * len(blocks)):.2f}/s, about 0 s left" in said


def test_what_workers_tell_of_their_loads_is_kept_and_listeners_hear_all_rows():
    heard = []
    with VideoProgress(Console(file=io.StringIO()), 6, listener=heard.append) as shown:
        for load in (2.5, None, 4.0):
            rows = [
                {"video_id": name, "failed": False, "seconds_load": own} for name, own in (("a", load), ("b", None))
            ]
            shown.count(pa.Table.from_pylist(rows, schema=STATUS_SCHEMA))
    assert shown.loads == [2.5, 4.0]
    assert [len(status) for status in heard] == [2, 2, 2]
