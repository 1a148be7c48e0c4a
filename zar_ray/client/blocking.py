"""The client that waits for its answers."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any, BinaryIO, Unpack

import httpx2

from zar_ray.client.wire import Asked, M, ServiceError, Windows, Wire, body_of
from zar_ray.serving.schema import Classification, LabelSetList, MethodList, ModelList, WindowResult


class Client(Wire):
    """Asks a running service; threads may share one. Its arguments are those of `zar_ray.client.wire.Wire`.

    All methods raise `ServiceError` where the service refused or failed, or cannot be reached.
    """

    def __init__(self, url: str, token: str | None = None, timeout: float = 300.0, retries: int = 3) -> None:
        super().__init__(url, token, timeout, retries)
        self._http = httpx2.Client(**self._connection)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes its connections."""
        self._http.close()

    def classify(
        self, video: str | os.PathLike[str] | BinaryIO, labels: Sequence[str] | None = None, **asked: Unpack[Asked]
    ) -> Classification:
        """Ranks labels for a video, before and after adaptation.

        Args:
            video: A file's path, or a file that is open for reading bytes; it is sent as it is read.
            labels: The labels to choose among, or else a `label_set` is asked for.
            asked: See `Asked`.

        Raises:
            ServiceError: The service refused or failed, or cannot be reached.
            ConfigError: Neither labels nor a label set are given, or both; or something that cannot be sent.
            OSError: The file cannot be read.
        """
        with body_of(video, labels, asked) as content:
            return self._read(Classification, "/v1/classify", content)

    def classify_windows(
        self,
        video: str | os.PathLike[str] | BinaryIO,
        labels: Sequence[str] | None = None,
        *,
        window: float | None = None,
        stride: float | None = None,
        **asked: Unpack[Asked],
    ) -> Iterator[WindowResult]:
        """Classifies a long video window by window; other arguments and errors as in `classify`.

        Args:
            video: A file's path, or a file that is open for reading bytes.
            labels: The labels to choose among.
            window: Seconds of a window.
            stride: Seconds from one window's start to the next.
            asked: See `Asked`.

        Yields:
            Each window as soon as the service has classified it. Where this ends without an error, there were no
            further ones.
        """
        with (
            body_of(video, labels, asked, window=window, stride=stride) as content,
            self._response("/v1/classify:stream", content) as response,
        ):
            windows = Windows(self, response)
            # An explained window is larger than an event may be by default.
            for event in httpx2.EventSource(response, max_event_size=None):
                window_result = windows.read(event)
                if window_result is not None:
                    yield window_result
                elif windows.ended:
                    return
        raise windows.cut()

    def models(self) -> ModelList:
        """The served models."""
        return self._read(ModelList, "/v1/models")

    def methods(self) -> MethodList:
        """The methods that requests may choose, with the schemas of their options."""
        return self._read(MethodList, "/v1/methods")

    def labels(self) -> LabelSetList:
        """The service's label sets."""
        return self._read(LabelSetList, "/v1/labels")

    def ready(self) -> bool:
        """Whether the service has loaded its weights and classified a first video; False while it is starting.

        Raises:
            ServiceError: Something else answers there.
        """
        try:
            with self._response("/readyz", retries=0):
                return True
        except ServiceError as error:
            if error.means_starting:
                return False
            raise

    def _read(self, kind: type[M], path: str, content: dict[str, Any] | None = None) -> M:
        with self._response(path, content) as response:
            return self._parsed(kind, response.read(), response)

    @contextmanager
    def _response(
        self, path: str, content: dict[str, Any] | None = None, retries: int | None = None
    ) -> Iterator[httpx2.Response]:
        """The answer to a request, with status 200 and its body yet to be read."""
        left = self._attempts(content) if retries is None else retries
        with self._told_apart(), closing(self._answer(path, content, left)) as response:
            yield response

    def _answer(self, path: str, content: dict[str, Any] | None, retries: int) -> httpx2.Response:
        while True:
            request = self._http.build_request("GET" if content is None else "POST", path, **content or {})
            response = self._http.send(request, stream=True)
            if response.status_code == 200:
                return response
            with closing(response):
                error = self._error(response, response.read())
            time.sleep(self._wait(error, retries))
            retries -= 1
