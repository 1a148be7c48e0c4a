"""The Ray Serve deployments: an ingress that receives, decoders on CPUs, and model replicas that answer.

The ingress hands a decoder's answer on to a model replica before it is there, so that pixels go from one to the other
and never through the ingress.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from typing import Any

import ray
import torch
from fastapi import FastAPI
from ray import serve
from ray.exceptions import (
    NodeDiedError,
    ObjectLostError,
    RayActorError,
    RayError,
    RayTaskError,
    TaskCancelledError,
    WorkerCrashedError,
)
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RequestCancelledError
from ray.serve.handle import DeploymentHandle

from zar_ray.data.probing import usable_cpus
from zar_ray.serving.backend import Job, Query, VideoSource
from zar_ray.serving.classifier import Classifier, needs_views
from zar_ray.serving.http_app import build_app
from zar_ray.serving.options import ServeConfig
from zar_ray.serving.problems import RequestError
from zar_ray.serving.proxy import CALLBACK, CALLBACK_VARIABLE
from zar_ray.serving.sandbox import DecodedWindow, DecodeRequest, DecoderProcess, PlannedVideo
from zar_ray.serving.schema import Classification, ServedModel, WindowParameters, WindowResult
from zar_ray.video.transforms import Preprocessing

logger = logging.getLogger("zar_ray.serving")

# The ingress logs each request once, with its id; a line more a hop would cost some milliseconds and say no more.
_QUIET = {"enable_access_log": False}
_LOST = (RayActorError, ObjectLostError, NodeDiedError, WorkerCrashedError)
_READY_SECONDS = 10.0
_RETRY_SECONDS = 5


@dataclass(frozen=True)
class WindowPlace:
    """Where in its video a window lies; see `WindowResult`."""

    number: int
    start: float
    end: float
    start_frame: int


@serve.deployment(name="model", logging_config=_QUIET)
class ModelDeployment:
    """Holds one model replica, and answers requests that come while it is busy together.

    Args:
        config: The service's options.
    """

    def __init__(self, config: ServeConfig) -> None:
        _log_to_serve()
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

    async def preprocessing(self) -> Preprocessing:
        """What decoders must know to plan the model's views."""
        return self._classifier.model.preprocessing


@serve.deployment(name="decoder", logging_config=_QUIET)
class DecoderDeployment:
    """Holds one decoding process, which takes one video at a time.

    Args:
        config: The service's options.
        model: The model deployment.
    """

    async def __init__(self, config: ServeConfig, model: DeploymentHandle) -> None:
        _log_to_serve()
        self._config = config
        self._process = DecoderProcess(config.limits)
        self._preprocessing: Preprocessing = await model.preprocessing.remote()
        await asyncio.to_thread(self._process.start)

    async def decode(self, video: VideoSource, query: Query) -> Job | RequestError:
        """A whole video's frames, or what is wrong with it."""
        source = _source(video)
        request = self._request(video, query)
        try:
            decoded = await asyncio.to_thread(self._process.decode, source, request, self._config.decode_timeout)
        except RequestError as error:
            return error
        return _job(video, query, decoded, first_frame=0)

    async def decode_windows(
        self, video: VideoSource, query: Query, windows: WindowParameters
    ) -> AsyncIterator[RequestError | tuple[WindowPlace, list[ray.ObjectRef]]]:
        """A long video's windows, each with a reference to its frames; or at the end what is wrong with it."""
        found: Any = self._process.decode_windows(
            _source(video),
            self._request(video, query),
            windows.window,
            windows.stride,
            self._config.limits.windows,
            self._config.decode_timeout,
        )
        step: asyncio.Future[DecodedWindow | None] | None = None
        try:
            while True:
                step = asyncio.ensure_future(asyncio.to_thread(next, found, None))
                # Shielded: where the client leaves, the thread goes on, and what runs in it cannot be closed meanwhile.
                window = await asyncio.shield(step)
                if window is None:
                    return
                job = _job(video, query, window, window.start_frame)
                yield WindowPlace(window.number, window.start, window.end, window.start_frame), [ray.put(job)]
        except RequestError as error:
            yield error
        finally:
            if step is not None:
                await asyncio.wait([step])
            await asyncio.to_thread(found.close)

    def _request(self, video: VideoSource, query: Query) -> DecodeRequest:
        return DecodeRequest(
            video.name, query.options, self._preprocessing, needs_views(query.options), self._config.decoder
        )

    def __del__(self) -> None:
        process = getattr(self, "_process", None)
        if process is not None:  # else it could not be started
            process.close()


@serve.deployment(name="ingress", logging_config=_QUIET)
@serve.ingress()
class IngressDeployment:
    """The HTTP side: receives bodies, and passes what is asked on.

    Args:
        config: The service's options.
        decoder: The decoder deployment.
        model: The model deployment.
    """

    def __init__(self, config: ServeConfig, decoder: DeploymentHandle, model: DeploymentHandle) -> None:
        _log_to_serve()
        if os.environ.get(CALLBACK_VARIABLE) != CALLBACK:
            logger.warning(
                "%s is not %s: proxies hold bodies of any size (docs/service.md)", CALLBACK_VARIABLE, CALLBACK
            )
        self._config = config
        self._backend = ServeBackend(config, decoder, model)

    def __serve_build_asgi_app__(self) -> FastAPI:
        """What Ray Serve asks for once the object is there."""
        return build_app(self._config, self._backend, serve.get_replica_context().replica_id.unique_id)


class ServeBackend:
    """The `Backend` of the ingress: decoders and model replicas, wherever in the cluster they are.

    Args:
        config: The service's options.
        decoder: The decoder deployment.
        model: The model deployment.
    """

    def __init__(self, config: ServeConfig, decoder: DeploymentHandle, model: DeploymentHandle) -> None:
        self._seconds = config.decode_timeout + config.limits.adapt_seconds + config.limits.wait_seconds
        self._decoder = decoder
        self._model = model
        self._card: ServedModel | None = None

    async def classify(self, video: VideoSource, query: Query) -> Classification:
        """See `zar_ray.serving.backend.Backend`."""
        decoded = self._decoder.decode.remote(video, query)
        return await self._answer(self._model.classify.remote(decoded), query)

    async def classify_windows(
        self, video: VideoSource, query: Query, windows: WindowParameters
    ) -> AsyncGenerator[WindowResult]:
        """See `zar_ray.serving.backend.Backend`."""
        found: Any = self._decoder.options(stream=True).decode_windows.remote(video, query, windows)
        try:
            while True:
                try:
                    item = await self._in_time(anext(found), query)
                except StopAsyncIteration:
                    return
                if isinstance(item, RequestError):
                    raise item
                place, (frames,) = item
                result = await self._answer(self._model.classify.remote(frames), query)
                yield WindowResult(
                    number=place.number,
                    start=place.start,
                    end=place.end,
                    start_frame=place.start_frame,
                    result=result,
                )
        finally:
            found.cancel()

    async def model(self) -> ServedModel:
        """See `zar_ray.serving.backend.Backend`."""
        card = self._card
        if card is None:
            try:
                card = self._card = await asyncio.wait_for(_awaited(self._model.card.remote()), _READY_SECONDS)
            except (TimeoutError, RayError, DeploymentUnavailableError):
                raise RequestError(
                    "not-ready", "no model replica has loaded its weights yet; try again", _RETRY_SECONDS
                ) from None
        return card

    async def _answer(self, response: Any, query: Query) -> Classification:
        answer = await self._in_time(_awaited(response), query)
        if isinstance(answer, RequestError):
            raise answer
        return answer

    async def _in_time(self, awaited: Any, query: Query) -> Any:
        """What is awaited; what Ray has against it becomes the request's answer."""
        try:
            return await asyncio.wait_for(awaited, self._seconds)
        except TimeoutError:
            raise RequestError("timeout", f"took longer than {self._seconds:g} s, waiting included") from None
        except BackPressureError:
            raise RequestError("overloaded", "all replicas are busy; try again", _RETRY_SECONDS) from None
        except (RayError, DeploymentUnavailableError, RequestCancelledError) as error:
            cause = error.cause if isinstance(error, RayTaskError) else error
            if isinstance(cause, (*_LOST, TaskCancelledError, DeploymentUnavailableError, RequestCancelledError)):
                logger.warning("request %s lost its replica: %s", query.request_id, type(cause).__name__)
                raise RequestError(
                    "replica-lost", "the process that worked on the request ended; try again", _RETRY_SECONDS
                ) from None
            raise


async def _awaited(response: Any) -> Any:
    return await response


def _source(video: VideoSource) -> Any:
    return video.path if video.content is None else video.content


def _job(video: VideoSource, query: Query, decoded: PlannedVideo | DecodedWindow, first_frame: int) -> Job:
    return Job(
        query=query,
        name=video.name,
        info=decoded.info,
        warning=decoded.warning,
        plan=decoded.plan,
        frames=decoded.frames,
        first_frame=first_frame,
        decode_seconds=decoded.seconds,
    )


def _log_to_serve() -> None:
    """Ray Serve's log files take the service's lines too; without this they would go nowhere."""
    logger.setLevel(logging.INFO)
    for handler in logging.getLogger("ray.serve").handlers:
        if handler not in logger.handlers:
            logger.addHandler(handler)
