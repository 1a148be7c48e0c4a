"""The HTTP side of the deployments: receives, and passes what is asked on; it loads no PyTorch.

The ingress hands a decoder's answer on to a model replica before it is there, so that pixels go from one to the other
and never through the ingress.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Sequence
from typing import Any

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
from ray.serve.exceptions import (
    BackPressureError,
    DeploymentUnavailableError,
    RayServeException,
    RequestCancelledError,
)
from ray.serve.handle import DeploymentHandle

from zar_ray.serving.backend import Query, VideoSource
from zar_ray.serving.http_app import build_app
from zar_ray.serving.logs import CHECK_SECONDS, QUIET, log_to_serve, logger
from zar_ray.serving.options import ServeConfig
from zar_ray.serving.problems import RequestError
from zar_ray.serving.proxy import CALLBACK, CALLBACK_VARIABLE
from zar_ray.serving.schema import Classification, ServedMethod, ServedModel, WindowParameters, WindowResult

_LOST = (RayActorError, ObjectLostError, NodeDiedError, WorkerCrashedError)
_READY_SECONDS = 10.0


@serve.deployment(name="ingress", logging_config=QUIET, health_check_period_s=CHECK_SECONDS)
@serve.ingress()
class IngressDeployment:
    """The HTTP side, and its own `Backend`: passes what is asked on to decoders and models, wherever they are.

    Args:
        config: The service's options.
        methods: The methods that requests may choose.
        decoder: The decoder deployment.
        model: The model deployment.
    """

    def __init__(
        self,
        config: ServeConfig,
        methods: Sequence[ServedMethod],
        decoder: DeploymentHandle,
        model: DeploymentHandle,
    ) -> None:
        log_to_serve()
        if os.environ.get(CALLBACK_VARIABLE) != CALLBACK:
            logger.warning(
                "%s is not %s: bodies of any size are held in memory (docs/service.md)", CALLBACK_VARIABLE, CALLBACK
            )
        self._config = config
        self._methods = methods
        self._seconds = config.decode_timeout + config.limits.adapt_seconds + config.limits.wait_seconds
        self._decoder = decoder
        self._model = model
        self._card: ServedModel | None = None

    def __serve_build_asgi_app__(self) -> FastAPI:
        """What Ray Serve asks for once the object is there."""
        replica = serve.get_replica_context().replica_id.unique_id
        return build_app(self._config, self._methods, self, replica)

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
                card = self._card = await asyncio.wait_for(self._model.card.remote(), _READY_SECONDS)
            except (TimeoutError, RayError, DeploymentUnavailableError):
                raise RequestError("not-ready", "no model replica has loaded its weights yet; try again") from None
        return card

    async def _answer(self, response: Any, query: Query) -> Classification:
        answer = await self._in_time(response, query)
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
            raise RequestError("overloaded", "all replicas are busy; try again") from None
        except (RayError, RayServeException) as error:
            cause = error.cause if isinstance(error, RayTaskError) else error
            # Where a model lacks its input because the decoder died, Ray Serve says so in an error of its own.
            if isinstance(cause, RayServeException) and isinstance(cause.__context__, RayActorError):
                cause = cause.__context__
            if isinstance(cause, (*_LOST, TaskCancelledError, DeploymentUnavailableError, RequestCancelledError)):
                logger.warning("request %s lost its replica: %s", query.request_id, type(cause).__name__)
                raise RequestError("replica-lost", "the process that worked on the request ended; try again") from None
            raise
