"""What Prometheus is told of the ingress: requests by answer, seconds by stage, and what is held at the moment."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from zar_ray.cluster_measures import SECONDS, tell
from zar_ray.serving.admission import Admission
from zar_ray.serving.schema import Classification


class Measures:
    """The measures of one ingress replica; the cluster's Prometheus is told of requests and stages, too.

    Behind several replicas an answer holds those of whichever was asked; the label `replica` tells them apart.

    Args:
        admission: What the replica holds.
        replica: The replica's name.
    """

    def __init__(self, admission: Admission, replica: str) -> None:
        self._registry = CollectorRegistry()
        self._replica = replica
        self._requests = Counter(
            "zar_requests", "Answered requests.", ("replica", "route", "status", "code"), registry=self._registry
        )
        self._seconds = Histogram(
            "zar_stage_seconds",
            "Wall seconds of a stage.",
            ("replica", "stage"),
            buckets=SECONDS,
            registry=self._registry,
        )
        self._images = Counter(
            "zar_images_encoded", "Images that went through the image encoder.", ("replica",), registry=self._registry
        )
        requests = Gauge(
            "zar_requests_held", "Requests that are worked on or wait.", ("replica",), registry=self._registry
        )
        requests.labels(replica).set_function(lambda: admission.requests)
        held = Gauge("zar_body_bytes_held", "Bytes of bodies that are held.", ("replica",), registry=self._registry)
        held.labels(replica).set_function(lambda: admission.bytes)

    def answered(self, route: str, status: int, code: str, seconds: float) -> None:
        """Counts a request.

        Args:
            route: The address as the API has it, not as it was asked for.
            status: The HTTP status.
            code: The problem's code, or ``ok``.
            seconds: Wall seconds from its arrival to its answer.
        """
        self._requests.labels(self._replica, route, str(status), code).inc()
        tell("zar_requests", 1, route=route, status=str(status), code=code)
        self._took("request", seconds)

    def classified(self, result: Classification) -> None:
        """Counts what a classification cost."""
        self._images.labels(self._replica).inc(result.images_encoded)
        for stage, seconds in result.timings.model_dump(exclude={"total"}).items():
            self._took(stage, seconds)

    def _took(self, stage: str, seconds: float) -> None:
        self._seconds.labels(self._replica, stage).observe(seconds)
        tell("zar_stage_seconds", seconds, part="service", stage=stage)

    def text(self) -> bytes:
        """The measures in Prometheus' format."""
        return generate_latest(self._registry)
