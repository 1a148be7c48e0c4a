"""The service's errors: each has an HTTP status and a code that stays the same."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from zar_ray.errors import (
    ConfigError,
    DecoderClosedError,
    DecoderStartError,
    VideoError,
    VideoTooLargeError,
    ZarError,
)

_RETRY_SECONDS = 5
# code -> (status, title)
PROBLEMS: dict[str, tuple[int, str]] = {
    "bad-request": (400, "The request cannot be read"),
    "unauthorized": (401, "A valid bearer token is needed"),
    "forbidden": (403, "The service does not answer this host or origin"),
    "not-found": (404, "There is nothing at this address"),
    "method-not-allowed": (405, "The address does not take this method"),
    "slow-head": (408, "The request took too long to begin"),
    "body-too-large": (413, "The body is larger than the service takes"),
    "unsupported-media-type": (415, "The body is of a kind that the service does not take"),
    "invalid-parameters": (422, "A parameter does not fit"),
    "path-not-allowed": (422, "The path is not beneath a root of the service"),
    "unusable-video": (422, "The video cannot be used"),
    "video-too-large": (422, "The video is beyond the service's limits"),
    "head-too-large": (431, "The request's headers are larger than the service takes"),
    "internal-error": (500, "The service failed"),
    "not-ready": (503, "The service is starting"),
    "overloaded": (503, "The service is at capacity"),
    "replica-lost": (503, "The process that worked on the request ended"),
    "timeout": (504, "The request took too long"),
}

# What is said where no more is known.
_DETAILS = {
    "internal-error": "the service failed on this request; its log says why",
    "overloaded": "all replicas are busy; try again",
    "replica-lost": "the process that worked on the request ended; try again",
}


@dataclass(eq=False)
class RequestError(ZarError):
    """An error as the service answers it.

    Attributes:
        code: One of `PROBLEMS`.
        detail: What is wrong with this very request, in one line; some codes have one by default.
        retry_after: Seconds after which the same request may succeed; every 503 says so, by default 5.
    """

    code: str
    detail: str = ""
    retry_after: int | None = None

    def __post_init__(self) -> None:
        self.detail = self.detail or _DETAILS[self.code]
        if self.retry_after is None and self.status == 503:
            self.retry_after = _RETRY_SECONDS

    def __str__(self) -> str:
        return self.detail

    @property
    def status(self) -> int:
        """The HTTP status."""
        return PROBLEMS[self.code][0]

    @property
    def title(self) -> str:
        """The kind of error, for people."""
        return PROBLEMS[self.code][1]


def refusal_of(error: VideoError | ConfigError) -> RequestError:
    """What `zar_ray.video.sandbox.DecoderProcess` says of a video, as the service answers it."""
    kinds = {
        VideoTooLargeError: "video-too-large",
        DecoderStartError: "internal-error",
        DecoderClosedError: "replica-lost",
        ConfigError: "internal-error",
    }
    return RequestError(kinds.get(type(error), "unusable-video"), str(error))


def at_capacity(count: int, what: str, retry_after: int) -> RequestError:
    """What is said where there are as many of some kind of requests as there may be."""
    detail = f"{count} {what} are worked on or waiting; try again in {retry_after} s"
    return RequestError("overloaded", detail, retry_after)


def problem_of(error: RequestError, request_id: str) -> dict[str, Any]:
    """A problem document (RFC 9457), as `zar_ray.serving.schema.ProblemDocument` describes it."""
    return {
        "type": "about:blank",
        "title": error.title,
        "status": error.status,
        "code": error.code,
        "detail": error.detail,
        "request_id": request_id,
    }
