"""What a job and the service tell the cluster's Prometheus, and that it costs nothing where no Ray runs."""

from __future__ import annotations

import io
from collections import Counter
from types import SimpleNamespace

import pytest
from ray.util import metrics
from rich.console import Console

from zar_ray import cluster_measures
from zar_ray.evaluation.progress import VideoProgress
from zar_ray.serving.admission import Admission
from zar_ray.serving.measures import Measures
from zar_ray.serving.options import LimitConfig
from zar_ray.serving.schema import Timings


@pytest.fixture
def recorded(monkeypatch):
    """What reaches Ray: measures, values and tags."""
    seen: list[tuple[str, float, dict[str, str]]] = []

    def record(self, value, tags=None):
        assert set(tags or ()) == set(self._tag_keys), self._name
        seen.append((self._name, value, dict(tags or {})))

    monkeypatch.setattr(metrics.Metric, "_record", record)
    return seen


@pytest.fixture
def told(recorded, monkeypatch):
    """The same, as if a Ray ran."""
    monkeypatch.setattr(cluster_measures.ray, "is_initialized", lambda: True)
    return recorded


def sums(told, name):
    """A measure's values by its tags' values, added up."""
    added: Counter = Counter()
    for one, value, tags in told:
        if one == name:
            added[tuple(tags.values())] += value
    return dict(added)


def test_nothing_is_told_without_ray(begin, tiny_checkpoint, recorded, monkeypatch):
    monkeypatch.setattr(cluster_measures.ray, "is_initialized", lambda: False)  # another test's may run
    run = begin("run", tiny_checkpoint)
    run.evaluate(run.todo)
    with VideoProgress(Console(file=io.StringIO()), 3) as progress:
        progress.advance(3, 1)
    assert recorded == []


def test_videos_by_outcome_and_those_that_are_left(told):
    with VideoProgress(Console(file=io.StringIO()), total=12, done=2) as progress:
        progress.advance(4, failed=1)
        progress.advance(3, failed=3)
    assert sums(told, "zar_videos") == {("finished",): 3, ("failed",): 4}
    assert [value for name, value, _ in told if name == "zar_videos_left"] == [10, 6, 3]


@pytest.mark.parametrize("methods", [("zero_shot",), ("zero_shot", "zar")])
def test_seconds_of_each_stage(begin, tiny_checkpoint, told, methods):
    run = begin("run", tiny_checkpoint, method=methods)
    run.evaluate(run.todo)
    told_of = [(tags["part"], tags["stage"]) for name, _, tags in told if name == "zar_stage_seconds"]
    videos, rows = len(run.workload.manifest), run.rows
    assert Counter(told_of) == {("job", "decode"): videos, ("job", "encode"): videos, ("job", "adapt"): len(rows)}
    seconds = sums(told, "zar_stage_seconds")
    assert seconds["job", "adapt"] == pytest.approx(sum(row.seconds_adapt for row in rows))
    of_videos = {row.video_id: row for row in rows}.values()
    assert seconds["job", "decode"] == pytest.approx(sum(row.seconds_decode for row in of_videos), rel=1e-4)


def test_requests_and_stages_of_the_service(told):
    measures = Measures(Admission(LimitConfig()), "replica-1")
    timings = Timings(receive=0.1, decode=0.2, encode=0.3, adapt=0.4, explain=0.0, total=1.5)
    measures.classified(SimpleNamespace(images_encoded=5, timings=timings))  # type: ignore[arg-type]
    measures.answered("/v1/classify", 200, "ok", 1.5)
    measures.answered("/v1/classify", 503, "overloaded", 0.01)
    assert sums(told, "zar_requests") == {("/v1/classify", "200", "ok"): 1, ("/v1/classify", "503", "overloaded"): 1}
    seconds = sums(told, "zar_stage_seconds")
    assert {stage: seconds["service", stage] for stage in ("receive", "decode", "encode", "adapt")} == {
        "receive": 0.1,
        "decode": 0.2,
        "encode": 0.3,
        "adapt": 0.4,
    }
    assert seconds["service", "request"] == pytest.approx(1.51)
    assert ("service", "total") not in seconds
    assert b'zar_stage_seconds_count{replica="replica-1",stage="request"} 2.0' in measures.text()
