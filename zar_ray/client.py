"""A client of the service; it loads neither Ray nor PyTorch.

with Client("http://127.0.0.1:8000") as client:
    answer = client.classify("dance.mp4", ["dancing ballet", "zumba"])
    print(answer.after[0].label)
"""

from __future__ import annotations

import email.utils
import io
import json
import os
import random
import ssl
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypedDict, TypeVar, Unpack

import httpx2
from pydantic import BaseModel, ValidationError

from zar_ray.errors import ConfigError, ZarError
from zar_ray.options.base import without_password
from zar_ray.serving.schema import (
    Classification,
    LabelSetList,
    MethodList,
    ModelList,
    ProblemDocument,
    StreamEnd,
    WindowResult,
)

_CONNECT_SECONDS = 10.0
# Who is told to come back later than this is better off with the error.
_LONGEST_WAIT = 60.0
# Clients that were refused together would otherwise come back together; a share of the wait.
_SPREAD = 0.25
_M = TypeVar("_M", bound=BaseModel)


@dataclass(eq=False)
class ServiceError(ZarError):
    """What the service refused or could not do, or why it could not be reached.

    Attributes:
        url: The service.
        detail: What went wrong, in one line.
        status: The HTTP status; None where no answer came.
        code: The service's own code, which stays the same (`zar_ray.serving.problems.PROBLEMS`); ``unreachable``,
            ``timeout``, ``stream-cut`` or ``unexpected-answer`` where it is the client that noticed.
        request_id: What the service's logs call the request.
        retry_after: Seconds after which the same request may succeed.
    """

    url: str
    detail: str
    status: int | None = None
    code: str = "unreachable"
    request_id: str | None = None
    retry_after: float | None = None

    def __str__(self) -> str:
        status = "" if self.status is None else f"{self.status} "
        request = f", request {self.request_id}" if self.request_id else ""
        return f"{self.url}: {self.detail} ({status}{self.code}{request})"


class Asked(TypedDict, total=False):
    """What is asked of a video; what is left out, or None, is the service's default.

    Attributes:
        label_set: The name of a label set of the service, in the place of labels.
        template: The prompt, with {} where the label goes.
        method: One of `Client.methods`.
        top_k: Labels to return.
        steps: Tuning steps.
        options: The method's own options, such as ``{"confidence": 0.5}``.
        seed: Seed of the views.
        explain: Also return frames, and what in them speaks for the top label.
        on_server: The video is a path on the server, beneath one of its roots; nothing is sent.
    """

    label_set: str | None
    template: str | None
    method: str | None
    top_k: int | None
    steps: int | None
    options: Mapping[str, Any] | None
    seed: int | None
    explain: bool
    on_server: bool


class Client:
    """Asks a running service; threads may share one.

    Args:
        url: Where the service is, such as ``http://127.0.0.1:8000``.
        token: A bearer token, where the service wants one.
        timeout: Seconds to wait for an answer, or for the next window of a stream.
        retries: How often a request is sent again that was refused with status 503 and a time to come back
            (Retry-After). Nothing else is sent twice.

    Raises:
        ConfigError: The URL or the token cannot be one.
    """

    def __init__(self, url: str, token: str | None = None, timeout: float = 300.0, retries: int = 3) -> None:
        try:
            parsed = httpx2.URL(url)
        except httpx2.InvalidURL as error:
            raise ConfigError(f"{without_password(url)}: is no URL ({error})") from None
        if parsed.scheme not in ("http", "https") or not parsed.host:
            raise ConfigError(f"{without_password(url)}: is no URL of a service, such as http://127.0.0.1:8000")
        if token is not None and not (token.isascii() and token.isprintable() and token and " " not in token):
            # said here, because an error from below would show the token
            raise ConfigError("the token is empty, or holds spaces or signs that no token has")
        self.url = without_password(url).rstrip("/")
        self._timeout = timeout
        self._retries = retries
        self._http = httpx2.Client(
            base_url=parsed,
            headers={} if token is None else {"Authorization": f"Bearer {token}"},
            timeout=httpx2.Timeout(timeout, connect=min(timeout, _CONNECT_SECONDS)),
            # To load the system's certificates takes longer than a request; http needs none, and without any nobody
            # is trusted.
            verify=parsed.scheme == "https" or ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT),
        )

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes its connections."""
        self._http.close()

    def classify(
        self,
        video: str | os.PathLike[str] | BinaryIO,
        labels: Sequence[str] | None = None,
        **asked: Unpack[Asked],
    ) -> Classification:
        """Ranks labels for a video, before and after adaptation.

        Args:
            video: A file's path, or a file that is open for reading bytes; it is sent as it is read.
            labels: The labels to choose among, or else a `label_set` is asked for.
            asked: See `Asked`.

        Raises:
            ServiceError: The service refused or failed, or cannot be reached.
            ConfigError: Neither labels nor a label set are given, or both.
            OSError: The file cannot be read.
        """
        with _content(video, labels, asked) as content, self._response("/v1/classify", content) as response:
            return self._read(Classification, response)

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
        seen = 0
        with (
            _content(video, labels, asked, window=window, stride=stride) as content,
            self._response("/v1/classify:stream", content) as response,
        ):
            # An explained window is larger than an event may be by default.
            for sent in httpx2.EventSource(response, max_event_size=None):
                if sent.event == "window":
                    seen += 1
                    yield self._parsed(WindowResult, sent.data, response)
                elif sent.event == "error":
                    raise self._refusal(self._parsed(ProblemDocument, sent.data, response))
                elif sent.event == "end":
                    if self._parsed(StreamEnd, sent.data, response).windows == seen:
                        return
                    break
        raise ServiceError(
            self.url,
            f"the stream was cut off after {seen} windows; send the request again",
            code="stream-cut",
            request_id=response.headers.get("X-Request-ID"),
        )

    def models(self) -> ModelList:
        """The served models.

        Raises:
            ServiceError: The service refused or failed, or cannot be reached.
        """
        with self._response("/v1/models") as response:
            return self._read(ModelList, response)

    def methods(self) -> MethodList:
        """The methods that requests may choose, with the schemas of their options.

        Raises:
            ServiceError: The service refused or failed, or cannot be reached.
        """
        with self._response("/v1/methods") as response:
            return self._read(MethodList, response)

    def labels(self) -> LabelSetList:
        """The service's label sets.

        Raises:
            ServiceError: The service refused or failed, or cannot be reached.
        """
        with self._response("/v1/labels") as response:
            return self._read(LabelSetList, response)

    def ready(self) -> bool:
        """Whether the service has loaded its weights and classified a first video; False while it is starting.

        Raises:
            ServiceError: It cannot be reached, or answers anything else.
        """
        try:
            with self._response("/readyz", retries=0):
                return True
        except ServiceError as error:
            if error.status == 503:
                return False
            raise

    @contextmanager
    def _response(
        self, path: str, content: dict[str, Any] | None = None, retries: int | None = None
    ) -> Iterator[httpx2.Response]:
        """The answer to a request, with status 200 and its body yet to be read."""
        try:
            with closing(self._answer(path, content, self._retries if retries is None else retries)) as response:
                yield response
        except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
            detail = f"nothing answers there ({_reason(error)}); start the service with `make serve`, or mend the URL"
            raise ServiceError(self.url, detail) from None
        except httpx2.TimeoutException:
            detail = f"no answer within {self._timeout:g} s; give the client a longer timeout, or less to do"
            raise ServiceError(self.url, detail, code="timeout") from None
        except httpx2.HTTPError as error:
            detail = f"the connection broke ({_reason(error)}); send the request again, or see the service's log"
            raise ServiceError(self.url, detail) from None

    def _answer(self, path: str, content: dict[str, Any] | None, retries: int) -> httpx2.Response:
        if content is not None and not _repeatable(content):
            retries = 0
        while True:
            request = self._http.build_request("GET" if content is None else "POST", path, **content or {})
            response = self._http.send(request, stream=True)
            if response.status_code == 200:
                return response
            error = self._error(response)
            again = error.status == 503 and error.retry_after is not None and error.retry_after <= _LONGEST_WAIT
            if not again or retries == 0:
                raise error
            retries -= 1
            time.sleep((error.retry_after or 0) * (1 + _SPREAD * random.random()))

    def _error(self, response: httpx2.Response) -> ServiceError:
        """What an answer other than 200 says; closes it."""
        with closing(response):
            content = response.read()
        wait = _seconds(response.headers.get("Retry-After"))
        try:
            return self._refusal(ProblemDocument.model_validate_json(content), wait)
        except ValidationError:
            detail = f"answered {response.status_code} {response.reason_phrase}, not as the service does; is it there?"
            name = response.headers.get("X-Request-ID")
            return ServiceError(self.url, detail, response.status_code, "unexpected-answer", name, wait)

    def _refusal(self, problem: ProblemDocument, retry_after: float | None = None) -> ServiceError:
        return ServiceError(self.url, problem.detail, problem.status, problem.code, problem.request_id, retry_after)

    def _read(self, kind: type[_M], response: httpx2.Response) -> _M:
        return self._parsed(kind, response.read(), response)

    def _parsed(self, kind: type[_M], content: bytes | str, response: httpx2.Response) -> _M:
        try:
            return kind.model_validate_json(content)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "all of it"
            detail = f"the answer is not what this version of the client knows ({where}: {first['msg']})"
            name = response.headers.get("X-Request-ID")
            raise ServiceError(self.url, detail, response.status_code, "unexpected-answer", name) from None


def _parameters(labels: Sequence[str] | None, asked: Asked, **more: float | None) -> dict[str, Any]:
    """The fields of a request that are given; the service checks the values."""
    unknown = asked.keys() - Asked.__annotations__.keys()
    if unknown:
        raise TypeError(f"unexpected arguments: {', '.join(sorted(unknown))}")
    if (labels is None) == (asked.get("label_set") is None):
        raise ConfigError("give either labels or the name of a label_set")
    if isinstance(labels, str):
        raise ConfigError(f'labels: give a list of labels, such as ["{labels}", "..."], rather than one string')
    fields = {
        "candidate_labels": labels and list(labels),
        "hypothesis_template": asked.get("template"),
        **asked,
        **more,
    }
    own = ("template", "on_server")
    return {
        name: value for name, value in fields.items() if name not in own and value is not None and value is not False
    }


@contextmanager
def _content(
    video: str | os.PathLike[str] | BinaryIO, labels: Sequence[str] | None, asked: Asked, **more: float | None
) -> Iterator[dict[str, Any]]:
    """A request's body, as httpx's arguments; a file that is opened for it is closed again."""
    parameters, on_server = _parameters(labels, asked, **more), asked.get("on_server", False)
    if not isinstance(video, str | os.PathLike):
        if on_server:
            raise ConfigError("on_server takes the path of a file on the server, not an open file")
        yield _form(video, str(getattr(video, "name", "video")), parameters)
    elif on_server:
        yield {"json": {"path": os.fspath(video), **parameters}}
    else:
        with Path(video).open("rb") as file:
            yield _form(file, os.fspath(video), parameters)


def _form(file: BinaryIO, name: str, parameters: dict[str, Any]) -> dict[str, Any]:
    labels = parameters.get("candidate_labels", ())
    if len(labels) == 1 and "," in labels[0]:
        # The service reads a field that stands alone as a list between commas, for people who write forms by hand.
        quoted = '"' + labels[0].replace('"', '""') + '"'
        parameters = {**parameters, "candidate_labels": quoted}
    if "options" in parameters:
        parameters = {**parameters, "options": json.dumps(parameters["options"])}
    # The file's name goes with it: with the seed it keys the view plan.
    return {"data": parameters, "files": {"video": (Path(name).name, file, "application/octet-stream")}}


def _repeatable(content: dict[str, Any]) -> bool:
    """Whether a body can be sent again: not one that is read from a pipe."""
    try:
        return "files" not in content or content["files"]["video"][1].seekable()
    except (AttributeError, io.UnsupportedOperation):
        return False


def _seconds(retry_after: str | None) -> float | None:
    """The header Retry-After, which is in seconds or a date."""
    if retry_after is None:
        return None
    try:
        return max(0.0, float(retry_after))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(retry_after).timestamp() - time.time())
    except ValueError:
        return None


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
