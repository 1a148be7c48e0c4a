"""What the two clients of the service have in common: requests, errors, and when one is sent again; no connection."""

from __future__ import annotations

import email.utils
import io
import json
import os
import random
import ssl
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any, BinaryIO, TypedDict, TypeVar

import httpx2
from pydantic import BaseModel, ValidationError

from zar_ray.errors import ConfigError, ZarError, reason_of
from zar_ray.options.base import without_password
from zar_ray.serving.schema import ProblemDocument, StreamEnd, WindowResult
from zar_ray.untrusted import storable

_CONNECT_SECONDS = 10.0
# Who is told to come back later than this is better off with the error.
_LONGEST_WAIT = 60.0
# Clients that were refused together would otherwise come back together; a share of the wait.
_SPREAD = 0.25
M = TypeVar("M", bound=BaseModel)


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

    @property
    def means_starting(self) -> bool:
        """Whether nothing listens yet, or what listens has not loaded its weights."""
        return self.status == 503 or (self.status is None and self.code == "unreachable")

    def __str__(self) -> str:
        status = "" if self.status is None else f"{self.status} "
        request = f", request {self.request_id}" if self.request_id else ""
        return f"{self.url}: {self.detail} ({status}{self.code}{request})"


class Asked(TypedDict, total=False):
    """What is asked of a video; what is left out, or None, is the service's default.

    Attributes:
        label_set: The name of a label set of the service, in the place of labels.
        template: The prompt, with {} where the label goes.
        method: One of the client's `methods`.
        top_k: Labels to return.
        steps: Tuning steps.
        options: The method's own options, such as ``{"confidence": 0.5}``.
        seed: Seed of the views.
        seeds: In its place several, over which the scores become means; of whole videos only.
        reject_below: The threshold below which a decision is rejected, see `zar report threshold`.
        reject_score: The score that it is of: max_probability, margin, energy or entropy.
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
    seeds: list[int] | tuple[int, ...] | None
    reject_below: float | None
    reject_score: str | None
    explain: bool
    on_server: bool


class Wire:
    """A service's address, and how what comes from it is read.

    Args:
        url: Where the service is, such as ``http://127.0.0.1:8000``.
        token: A bearer token, where the service wants one.
        timeout: Seconds to wait for an answer, or for the next window of a stream.
        retries: How often a request is sent again that was refused with status 503 and a time to come back
            (Retry-After), which is waited for with some jitter. Nothing else is sent twice.

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
        self._connection: dict[str, Any] = {
            "base_url": parsed,
            "headers": {} if token is None else {"Authorization": f"Bearer {token}"},
            "timeout": httpx2.Timeout(timeout, connect=min(timeout, _CONNECT_SECONDS)),
            # To load the system's certificates takes longer than a request; http needs none, and without any nobody
            # is trusted.
            "verify": parsed.scheme == "https" or ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT),
            # What the environment says of proxies is for other machines.
            "trust_env": not _is_this_machine(parsed.host),
        }

    @contextmanager
    def _told_apart(self) -> Iterator[None]:
        """Turns what breaks a connection into what a user can do about it."""
        try:
            yield
        except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
            detail = f"nothing answers there ({reason_of(error)}); start the service with `make serve`, or mend the URL"
            raise ServiceError(self.url, detail) from None
        except httpx2.TimeoutException:
            detail = f"no answer within {self._timeout:g} s; give the client a longer timeout, or less to do"
            raise ServiceError(self.url, detail, code="timeout") from None
        except httpx2.HTTPError as error:
            detail = f"the connection broke ({reason_of(error)}); send the request again, or see the service's log"
            raise ServiceError(self.url, detail) from None

    def _attempts(self, content: dict[str, Any] | None) -> int:
        """How often a request may be sent again."""
        return self._retries if content is None or _repeatable(content) else 0

    def _wait(self, error: ServiceError, retries: int) -> float:
        """Seconds after which a refused request is sent again.

        Raises:
            ServiceError: It is not.
        """
        after = error.retry_after
        if error.status != 503 or after is None or after > _LONGEST_WAIT or retries <= 0:
            raise error
        return after * (1 + _SPREAD * random.random())

    def _error(self, response: httpx2.Response, content: bytes) -> ServiceError:
        """What an answer other than 200 says."""
        wait = _seconds(response.headers.get("Retry-After"))
        try:
            return self._refusal(ProblemDocument.model_validate_json(content), wait)
        except ValidationError:
            detail = f"answered {response.status_code} {response.reason_phrase}, not as the service does; is it there?"
            return self._unexpected(response, detail, wait)

    def _refusal(self, problem: ProblemDocument, retry_after: float | None = None) -> ServiceError:
        return ServiceError(self.url, problem.detail, problem.status, problem.code, problem.request_id, retry_after)

    def _parsed(self, kind: type[M], content: bytes | str, response: httpx2.Response) -> M:
        try:
            return kind.model_validate_json(content)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "all of it"
            detail = f"the answer is not what this version of the client knows ({where}: {first['msg']})"
            raise self._unexpected(response, detail) from None

    def _unexpected(self, response: httpx2.Response, detail: str, retry_after: float | None = None) -> ServiceError:
        name = response.headers.get("X-Request-ID")
        return ServiceError(self.url, detail, response.status_code, "unexpected-answer", name, retry_after)


class Windows:
    """Reads the events of a stream of windows one by one, and knows whether it ended well.

    Attributes:
        ended: Whether all windows have been seen.
    """

    def __init__(self, wire: Wire, response: httpx2.Response) -> None:
        self._wire = wire
        self._response = response
        self._seen = 0
        self.ended = False

    def read(self, event: httpx2.ServerSentEvent) -> WindowResult | None:
        """A window, where the event is one.

        Raises:
            ServiceError: It is an error, or an end that does not fit what was seen.
        """
        wire, response = self._wire, self._response
        if event.event == "window":
            self._seen += 1
            return wire._parsed(WindowResult, event.data, response)
        if event.event == "error":
            raise wire._refusal(wire._parsed(ProblemDocument, event.data, response))
        if event.event == "end":
            self.ended = wire._parsed(StreamEnd, event.data, response).windows == self._seen
            if not self.ended:
                raise self.cut()
        return None

    def cut(self) -> ServiceError:
        """What it means that the stream is over and `ended` is false."""
        return ServiceError(
            self._wire.url,
            f"the stream was cut off after {self._seen} windows; send the request again",
            code="stream-cut",
            request_id=self._response.headers.get("X-Request-ID"),
        )


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
def body_of(
    video: str | os.PathLike[str] | BinaryIO, labels: Sequence[str] | None, asked: Asked, **more: float | None
) -> Iterator[dict[str, Any]]:
    """A request's body, as httpx's arguments; a file that is opened for it is closed again."""
    parameters, on_server = _parameters(labels, asked, **more), asked.get("on_server", False)
    if not isinstance(video, str | os.PathLike):
        if on_server:
            raise ConfigError("on_server takes the path of a file on the server, not an open file")
        yield _form(video, str(getattr(video, "name", "video")), parameters)
    elif on_server:
        yield {"json": _sendable({"path": os.fspath(video), **parameters})}
    else:
        with Path(video).open("rb") as file:
            yield _form(file, os.fspath(video), parameters)


def _form(file: BinaryIO, name: str, parameters: dict[str, Any]) -> dict[str, Any]:
    labels = _sendable(parameters).get("candidate_labels", ())
    if len(labels) == 1 and "," in labels[0]:
        # The service reads a field that stands alone as a list between commas, for people who write forms by hand.
        quoted = '"' + labels[0].replace('"', '""') + '"'
        parameters = {**parameters, "candidate_labels": quoted}
    if "options" in parameters:
        parameters = {**parameters, "options": json.dumps(parameters["options"])}
    # The file's name goes with it: with the seed it keys the view plan.
    return {"data": parameters, "files": {"video": (storable(Path(name).name), file, "application/octet-stream")}}


def _sendable(values: dict[str, Any]) -> dict[str, Any]:
    """The same values, if JSON and UTF-8 have them."""
    try:
        json.dumps(values, ensure_ascii=False, allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise ConfigError(f"what is asked cannot be sent: {reason_of(error)}") from None
    return values


def _is_this_machine(host: str) -> bool:
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


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
