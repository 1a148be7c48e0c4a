"""The decoder replicas, each with a process that reads strangers' files; they load no PyTorch."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import ray
from ray import serve
from ray.serve.handle import DeploymentHandle

from zar_ray.serving.backend import DecodedViews, DecodingNeeds, Job, Query, VideoSource
from zar_ray.serving.logs import CHECK_SECONDS, QUIET, log_to_serve
from zar_ray.serving.options import ServeConfig
from zar_ray.serving.problems import RequestError
from zar_ray.serving.sandbox import DecoderProcess
from zar_ray.serving.sandbox_process import DecodeRequest
from zar_ray.serving.schema import WindowParameters
from zar_ray.serving.windows import WindowSpan


@serve.deployment(name="decoder", logging_config=QUIET, health_check_period_s=CHECK_SECONDS)
class DecoderDeployment:
    """Holds one decoding process, which takes one video at a time.

    Args:
        config: The service's options.
        model: The model deployment.
    """

    async def __init__(self, config: ServeConfig, model: DeploymentHandle) -> None:
        log_to_serve()
        self._config = config
        self._process = DecoderProcess(config.limits)
        self._needs: DecodingNeeds = await model.decoding_needs.remote()
        await asyncio.to_thread(self._process.start)

    async def decode(self, video: VideoSource, query: Query) -> Job | RequestError:
        """A whole video's frames, or what is wrong with it."""
        request, seconds = self._request(video, query), self._config.decode_timeout
        try:
            decoded = await asyncio.to_thread(self._process.decode, video.source, request, seconds)
        except RequestError as error:
            return error
        return Job(query, video.name, decoded)

    async def decode_windows(
        self, video: VideoSource, query: Query, windows: WindowParameters
    ) -> AsyncIterator[RequestError | tuple[WindowSpan, list[ray.ObjectRef]]]:
        """A long video's windows, each with a reference to its frames; or at the end what is wrong with it."""
        found: Any = self._process.decode_windows(
            video.source, self._request(video, query), windows, self._config.decode_timeout
        )
        step: asyncio.Future[DecodedViews | None] | None = None
        try:
            while True:
                step = asyncio.ensure_future(asyncio.to_thread(next, found, None))
                # Shielded: where the client leaves, the thread goes on, and what runs in it cannot be closed meanwhile.
                window = await asyncio.shield(step)
                if window is None:
                    return
                assert window.span is not None
                yield window.span, [ray.put(Job(query, video.name, window))]
        except RequestError as error:
            yield error
        finally:
            if step is not None:
                await asyncio.wait([step])
            await asyncio.to_thread(found.close)

    def _request(self, video: VideoSource, query: Query) -> DecodeRequest:
        config, needs = self._config, self._needs
        return DecodeRequest(
            video.name,
            config.views,
            query.seed,
            needs.preprocessing,
            query.method in needs.methods_with_views,
            config.decoder,
        )

    def __del__(self) -> None:
        process = getattr(self, "_process", None)
        if process is not None:  # else it could not be started
            process.close()
