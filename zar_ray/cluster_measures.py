"""What a cluster's Prometheus is told of jobs and of the service.

Ray gathers it from all processes and shows it on each node's metrics port, where a name begins with ``ray_`` and a
counter's ends with ``_total``. deploy/grafana draws it.
"""

from __future__ import annotations

import functools

import ray
from ray.util.metrics import Counter, Gauge, Histogram

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Upper ends of the buckets of seconds."""

_COUNTERS = {
    "zar_videos": ("Videos of jobs that are done with, by outcome.", ("outcome",)),
    "zar_requests": ("Answered requests of the service.", ("route", "status", "code")),
}
_GAUGES = {"zar_videos_left": ("Videos that a job has still to do.", ())}
_HISTOGRAMS = {"zar_stage_seconds": ("Wall seconds of a stage, of jobs and of the service.", ("part", "stage"))}


def tell(name: str, value: float | None, **tags: str) -> None:
    """Adds to a counter, sets a gauge or observes a histogram's value; nothing without Ray, or of None.

    Args:
        name: A measure of this module's.
        value: What is added, set or observed; seconds of a histogram.
        **tags: All of the measure's tags.
    """
    if value is None or not ray.is_initialized():
        return
    measure = _measure(name)
    if isinstance(measure, Gauge):
        measure.set(value, tags)
    elif isinstance(measure, Histogram):
        measure.observe(value, tags)
    elif value > 0:
        measure.inc(value, tags)


@functools.cache
def _measure(name: str) -> Counter | Gauge | Histogram:
    if name in _COUNTERS:
        return Counter(name, *_COUNTERS[name])
    if name in _GAUGES:
        return Gauge(name, *_GAUGES[name])
    description, tags = _HISTOGRAMS[name]
    return Histogram(name, description, list(SECONDS), tags)
