"""The rows of one case: in their videos' order, and copied only where they must be."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from zar_ray.results.case_rows import by_video, codes_of, of_case


def rows(videos: list[str], cases: list[str]) -> pa.Table:
    half = len(videos) // 2
    table = pa.table({"video_id": pa.array(videos, pa.string()), "case_id": pa.array(cases, pa.string())})
    return pa.concat_tables([table.slice(0, half), table.slice(half)])


@given(st.lists(st.text(max_size=3), unique=True, max_size=12), st.randoms())
def test_rows_are_put_into_their_videos_order(videos, random):
    ordered = by_video(rows(sorted(videos, key=str.encode), ["a"] * len(videos)))
    random.shuffle(videos)
    found = by_video(rows(videos, ["a"] * len(videos)))
    assert found["video_id"].to_pylist() == ordered["video_id"].to_pylist() == sorted(videos, key=str.encode)


@given(st.lists(st.sampled_from("abc"), max_size=9))
def test_the_rows_of_a_case_are_its_own(cases):
    videos = [f"v{number}" for number in range(len(cases))]
    found = of_case(rows(videos, cases), "b")
    assert found["video_id"].to_pylist() == np.array(videos, object)[np.array(cases, object) == "b"].tolist()


@given(st.lists(st.text(max_size=2), max_size=9), st.booleans())
def test_sources_are_numbers_in_their_order(sources, in_order):
    sources = sorted(set(sources), key=str.encode) if in_order else sources
    column = rows(sources, ["a"] * len(sources))["video_id"]
    known = sorted(set(sources), key=str.encode)
    assert codes_of([column]).tolist() == [known.index(one) for one in sources]
    assert codes_of([column, column]).tolist() == [known.index(one) for one in sources] * 2


def test_what_needs_no_copy_is_none():
    table = rows(["a", "b", "c"], ["x"] * 3)
    assert by_video(table) is table
    assert of_case(table, "x") is table
