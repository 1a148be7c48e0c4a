"""The HTTP side of the deployments: receives, and passes what is asked on; it loads no PyTorch.

The ingress hands a decoder's answer on to a model replica before it is there, and decoders ask the model about windows
themselves, so that pixels go from one to the other and never through the ingress.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from zar_ray.serving.backend import Query, VideoSource
from zar_ray.serving.calls import in_time
from zar_ray.serving.http_app import build_app
from zar_ray.serving.logs import CHECK_SECONDS, QUIET, log_to_serve, logger
from zar_ray.serving.options import ServeConfig
from zar_ray.serving.problems import RequestError
from zar_ray.serving.proxy import CALLBACK, CALLBACK_VARIABLE
from zar_ray.serving.schema import Classification, ServedMethod, ServedModel, WindowParameters, WindowResult

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
        return _unless_wrong(await in_time(self._model.classify.remote(decoded), self._seconds, query))

    async def classify_windows(
        self, video: VideoSource, query: Query, windows: WindowParameters
    ) -> AsyncGenerator[WindowResult]:
        """See `zar_ray.serving.backend.Backend`."""
        found: Any = self._decoder.options(stream=True).classify_windows.remote(video, query, windows)
        # The decoder looks at the times itself, unless it hangs.
        seconds = self._config.limits.stream_seconds + self._seconds
        try:
            while True:
                try:
                    result = await in_time(anext(found), seconds, query)
                except StopAsyncIteration:
                    return
                yield _unless_wrong(result)
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


def _unless_wrong(answer: Any) -> Any:
    """An answer; raises what came in its place."""
    if isinstance(answer, RequestError):
        raise answer
    return answer
