"""The model replicas, which answer."""

from __future__ import annotations

import asyncio
from typing import Any

import torch
from ray import serve

from zar_ray.data.probing import usable_cpus
from zar_ray.serving.backend import DecodingNeeds, Job
from zar_ray.serving.classifier import Classifier
from zar_ray.serving.logs import CHECK_SECONDS, QUIET, log_to_serve
from zar_ray.serving.methods import ServiceOptions
from zar_ray.serving.problems import RequestError
from zar_ray.serving.schema import Classification, ServedModel


@serve.deployment(name="model", logging_config=QUIET, health_check_period_s=CHECK_SECONDS)
class ModelDeployment:
    """Holds one model replica, and answers requests that come while it is busy together.

    Args:
        config: The service's options.
    """

    def __init__(self, config: ServiceOptions) -> None:
        log_to_serve()
        torch.set_num_threads(config.threads or usable_cpus())
        self._classifier = Classifier(config)
        self._classifier.warm_up()
        together: Any = self._together
        together.set_max_batch_size(config.batch)
        together.set_batch_wait_timeout_s(config.batch_wait)

    async def classify(self, job: Job | RequestError) -> Classification | RequestError:
        """Answers about one decoded video; what is wrong with one comes through as it is."""
        return job if isinstance(job, RequestError) else await self._together(job)

    @serve.batch
    async def _together(self, jobs: list[Job]) -> list[Classification | RequestError]:
        return await asyncio.to_thread(self._classifier.answer, jobs)

    async def card(self) -> ServedModel:
        """What the service says of its model."""
        return self._classifier.card

    async def decoding_needs(self) -> DecodingNeeds:
        """What decoders must know to plan the model's views."""
        return self._classifier.decoding_needs
