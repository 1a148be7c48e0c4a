"""What reports take of a run's rows and manifest: of the right videos, in the order that was asked for."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pyarrow as pa

from zar_ray.reporting.html_report import _stage_times
from zar_ray.reporting.run_data import StudyData


def test_files_are_those_of_the_videos_in_the_order_asked_for():
    columns = {
        "video_id": ["a", "b", "c", "d"],
        "path": ["/a", "/tar", "s3://c", "/d"],
        "member": [None, "b", None, None],
    }
    study = cast(Any, SimpleNamespace(_manifest=SimpleNamespace(table=pa.table(columns))))
    found = StudyData.paths(study, pa.array(["d", "x", "b", "a", "c"]))
    assert found == ["/d", None, None, "/a", None]


def test_times_are_of_videos_and_of_each_methods_own_rows():
    columns = {
        "video_id": ["a", "a", "b", "b"],
        "method": ["zar", "tpt"] * 2,
        "seconds_decode": [0.1, 0.1, 0.3, 0.3],
        "seconds_encode": [None] * 4,
        "seconds_adapt": [1.0, 5.0, 2.0, None],
    }
    read = pa.table(
        columns, schema=pa.schema([(name, pa.float64() if "sec" in name else pa.string()) for name in columns])
    )
    study = cast(Any, SimpleNamespace(stored=SimpleNamespace(read=lambda names: read.select(list(names)))))
    assert [row[:3] for row in _stage_times(study)] == [
        ("decoding", "2", "200.0"),
        ("adaptation, zar", "2", "1,500.0"),
        ("adaptation, tpt", "1", "5,000.0"),
    ]
