"""The model replicas, which answer."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import torch
from ray import serve

from zar_ray.data.probing import usable_cpus
from zar_ray.serving.backend import DecodingNeeds, Job
from zar_ray.serving.classifier import Classifier
from zar_ray.serving.logs import QUIET, log_to_serve, log_trouble
from zar_ray.serving.methods import ServiceOptions
from zar_ray.serving.problems import RequestError
from zar_ray.serving.schema import Classification, ServedModel


@serve.deployment(name="model", logging_config=QUIET)
class ModelDeployment:
    """Holds one model replica, and answers requests that come while it is busy together.

    Windows of long videos are never among whole videos: the two take turns, so that whole videos wait for one window at
    most, or for half a batch of them on a GPU.

    Args:
        config: The service's options.
    """

    def __init__(self, config: ServiceOptions) -> None:
        log_to_serve()
        torch.set_num_threads(config.threads or usable_cpus())
        self._classifier = Classifier(config)
        self._classifier.warm_up()
        self._seconds = config.limits.adapt_seconds
        on_cpu = self._classifier.model.device.type == "cpu"
        for method, most in ((self._videos, config.batch), (self._windows, 1 if on_cpu else max(1, config.batch // 2))):
            together: Any = method
            together.set_max_batch_size(most)
            together.set_batch_wait_timeout_s(config.batch_wait)

    async def classify(self, job: Job | RequestError) -> Classification | RequestError:
        """Answers about one decoded video or window; what is wrong with one comes through as it is."""
        if isinstance(job, RequestError):
            return job
        started = time.monotonic()
        answer = await (self._videos(job) if job.decoded.span is None else self._windows(job))
        log_trouble(job.query.request_id, "answer", time.monotonic() - started, self._seconds, answer)
        return answer

    @serve.batch
    async def _videos(self, jobs: list[Job]) -> list[Classification | RequestError]:
        return await asyncio.to_thread(self._classifier.answer, jobs)

    @serve.batch
    async def _windows(self, jobs: list[Job]) -> list[Classification | RequestError]:
        return await asyncio.to_thread(self._classifier.answer, jobs)

    async def card(self) -> ServedModel:
        """What the service says of its model."""
        return self._classifier.card

    async def decoding_needs(self) -> DecodingNeeds:
        """What decoders must know to plan the model's views."""
        return self._classifier.decoding_needs
