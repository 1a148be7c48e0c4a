"""The model replicas, which answer."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from contextvars import Context

import torch
from ray import serve

from zar_ray.cluster import reserved_gpus, share_of_gpu, worker_device
from zar_ray.data.probing import usable_cpus
from zar_ray.errors import ConfigError, DeviceLostError
from zar_ray.models.device_faults import answers
from zar_ray.serving.backend import DecodingNeeds, Job
from zar_ray.serving.classifier import Classifier
from zar_ray.serving.logs import CHECK_SECONDS, QUIET, log_stage, log_to_serve, logger
from zar_ray.serving.methods import ServiceOptions
from zar_ray.serving.problems import RequestError
from zar_ray.serving.schema import Classification, ServedModel

_Answer = Classification | RequestError


@serve.deployment(name="model", logging_config=QUIET, health_check_period_s=CHECK_SECONDS)
class ModelDeployment:
    """Holds one model replica, and answers requests that come while it is busy together.

    Windows of long videos are never among whole videos: the two take turns, so that whole videos wait for one window at
    most, or for half a batch of them on a GPU. This is not `serve.batch`, which (Ray 2.60) closes a batch as soon as it
    holds a request, though the one before is still worked on.

    Args:
        config: The service's options.
    """

    def __init__(self, config: ServiceOptions) -> None:
        log_to_serve()
        torch.set_num_threads(config.threads or usable_cpus())
        # Ray's own options, which say how many GPUs it reserves, may come after the application was built.
        gpus = reserved_gpus()
        if config.device.startswith("cuda") and not gpus:
            raise ConfigError(f"device {config.device}: the model has num_gpus: 0; give it a GPU, or device: cpu")
        # Replicas that share a GPU share what label sets' texts may keep of its memory.
        own = {"device": worker_device(config.device, gpus), "text_memory": config.text_memory * share_of_gpu()}
        self._classifier = Classifier(config.model_copy(update=own))
        self._classifier.warm_up()
        self._config = config
        on_cpu = self._classifier.model.device.type == "cpu"
        self._videos: deque[tuple[Job, asyncio.Future[_Answer]]] = deque()
        self._windows: deque[tuple[Job, asyncio.Future[_Answer]]] = deque()
        self._turns = ((self._videos, config.batch), (self._windows, 1 if on_cpu else max(1, config.batch // 2)))
        self._work: asyncio.Task[None] | None = None
        self._lost: DeviceLostError | None = None

    async def check_health(self) -> None:
        """Ray Serve replaces a replica of which this raises three times, a second apart.

        Raises:
            DeviceLostError: The device is lost; it is asked where nothing is computed.
        """
        device, idle = self._classifier.model.device, self._work is None or self._work.done()
        if self._lost is None and idle and not await asyncio.to_thread(answers, device):
            self._lost = DeviceLostError(f"{device}: answers nothing any more")
        if self._lost is not None:
            raise self._lost

    async def classify(self, job: Job | RequestError) -> _Answer:
        """Answers about one decoded video or window; what is wrong with one comes through as it is."""
        if isinstance(job, RequestError):
            return job
        if self._lost is not None:
            return _device_lost()
        started, answer = time.monotonic(), asyncio.get_running_loop().create_future()
        (self._videos if job.decoded.span is None else self._windows).append((job, answer))
        if self._work is None or self._work.done():
            # In a context of its own: Ray Serve's log lines would name the request that began it.
            self._work = asyncio.create_task(self._answer_all(), context=Context())
        outcome = await answer
        log_stage(
            job.query.request_id, "answer", time.monotonic() - started, self._config.limits.adapt_seconds, outcome
        )
        return outcome

    async def _answer_all(self) -> None:
        """Answers until nobody waits."""
        while self._videos or self._windows:
            for waiting, most in self._turns:
                if self._config.batch_wait and 0 < len(waiting) < most:
                    await asyncio.sleep(self._config.batch_wait)
                taken = [waiting.popleft() for _ in range(min(most, len(waiting)))]
                # those whose clients are still there
                if taken := [(job, answer) for job, answer in taken if not answer.done()]:
                    outcomes = await asyncio.to_thread(self._answer, [job for job, _ in taken])
                    for (_, answer), outcome in zip(taken, outcomes, strict=True):
                        if not answer.done():
                            answer.set_result(outcome)

    def _answer(self, jobs: list[Job]) -> list[_Answer]:
        try:
            return self._classifier.answer(jobs)
        except DeviceLostError as error:
            self._lost = error
            logger.critical("this replica is to be replaced: %s", error)
            return [_device_lost() for _ in jobs]
        except Exception:
            # They wait for an answer, whatever it is.
            logger.exception("questions %s failed", ", ".join(job.query.request_id for job in jobs))
            return [RequestError("internal-error") for _ in jobs]

    async def card(self) -> ServedModel:
        """What the service says of its model."""
        return self._classifier.card

    async def decoding_needs(self) -> DecodingNeeds:
        """What decoders must know to plan the model's views."""
        return self._classifier.decoding_needs


def _device_lost() -> RequestError:
    return RequestError("replica-lost", "the device that worked on the request is lost, and is replaced; try again")
