"""The client that lets other work go on while it waits."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Any, BinaryIO, Unpack

import httpx2

from zar_ray.client.wire import Asked, M, ServiceError, Windows, Wire, body_of
from zar_ray.serving.schema import Classification, LabelSetList, MethodList, ModelList, WindowResult


class AsyncClient(Wire):
    """Asks a running service from an event loop; its arguments and methods are those of `Client`, to be awaited.

    All methods raise `ServiceError` where the service refused or failed, or cannot be reached.
    """

    def __init__(self, url: str, token: str | None = None, timeout: float = 300.0, retries: int = 3) -> None:
        super().__init__(url, token, timeout, retries)
        self._http = httpx2.AsyncClient(**self._connection)

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes its connections."""
        await self._http.aclose()

    async def classify(
        self, video: str | os.PathLike[str] | BinaryIO, labels: Sequence[str] | None = None, **asked: Unpack[Asked]
    ) -> Classification:
        """Ranks labels for a video; see `zar_ray.client.Client.classify`."""
        with body_of(video, labels, asked) as content:
            return await self._read(Classification, "/v1/classify", content)

    async def classify_windows(
        self,
        video: str | os.PathLike[str] | BinaryIO,
        labels: Sequence[str] | None = None,
        *,
        window: float | None = None,
        stride: float | None = None,
        **asked: Unpack[Asked],
    ) -> AsyncIterator[WindowResult]:
        """Classifies a long video window by window; see `zar_ray.client.Client.classify_windows`."""
        with body_of(video, labels, asked, window=window, stride=stride) as content:
            async with self._response("/v1/classify:stream", content) as response:
                windows = Windows(self, response)
                # An explained window is larger than an event may be by default.
                async for event in httpx2.EventSource(response, max_event_size=None):
                    window_result = windows.read(event)
                    if window_result is not None:
                        yield window_result
                    elif windows.ended:
                        return
        raise windows.cut()

    async def models(self) -> ModelList:
        """The served models."""
        return await self._read(ModelList, "/v1/models")

    async def methods(self) -> MethodList:
        """The methods that requests may choose, with the schemas of their options."""
        return await self._read(MethodList, "/v1/methods")

    async def labels(self) -> LabelSetList:
        """The service's label sets."""
        return await self._read(LabelSetList, "/v1/labels")

    async def ready(self) -> bool:
        """Whether the service has loaded its weights; see `zar_ray.client.Client.ready`."""
        try:
            async with self._response("/readyz", retries=0):
                return True
        except ServiceError as error:
            if error.means_starting:
                return False
            raise

    async def _read(self, kind: type[M], path: str, content: dict[str, Any] | None = None) -> M:
        async with self._response(path, content) as response:
            return self._parsed(kind, await response.aread(), response)

    @asynccontextmanager
    async def _response(
        self, path: str, content: dict[str, Any] | None = None, retries: int | None = None
    ) -> AsyncIterator[httpx2.Response]:
        """The answer to a request, with status 200 and its body yet to be read."""
        left = self._attempts(content) if retries is None else retries
        with self._told_apart():
            async with aclosing(await self._answer(path, content, left)) as response:
                yield response

    async def _answer(self, path: str, content: dict[str, Any] | None, retries: int) -> httpx2.Response:
        while True:
            request = self._http.build_request("GET" if content is None else "POST", path, **content or {})
            response = await self._http.send(request, stream=True)
            if response.status_code == 200:
                return response
            async with aclosing(response):
                error = self._error(response, await response.aread())
            await asyncio.sleep(self._wait(error, retries))
            retries -= 1
