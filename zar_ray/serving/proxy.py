"""What the service adds to Ray Serve's HTTP proxy: limits on what is sent, and answers in the service's own form.

Ray Serve calls `middlewares` in each proxy that finds
``RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=zar_ray.serving.proxy.middlewares`` in its environment, and in the same
place the limits are (docs/service.md). It holds for all applications of the cluster. A proxy that died is away for as
long as this takes to import, so it imports next to nothing that Ray Serve's proxy does not.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import uuid
from asyncio import Transport
from http import HTTPStatus
from typing import Any

import uvicorn.config
from starlette.datastructures import MutableHeaders
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from zar_ray.serving.problems import RequestError, at_capacity, problem_of

CALLBACK_VARIABLE = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
CALLBACK = "zar_ray.serving.proxy.middlewares"
BODY_VARIABLE = "ZAR_SERVE_BODY_BYTES"
REQUESTS_VARIABLE = "ZAR_SERVE_REQUESTS"
RETRY_VARIABLE = "ZAR_SERVE_RETRY_AFTER"
HEAD_VARIABLE = "ZAR_SERVE_HEAD_SECONDS"
# Those of `zar_ray.serving.options.LimitConfig`, which takes longer to import than all of this.
BODY_BYTES = 256 * 2**20
HEAD_SECONDS = 10.0
RETRY_AFTER = 2
# The replica must see that a body is beyond its limit.
_MARGIN = 2**20
_HEAD_BYTES = 2**16
REQUEST_ID = re.compile(r"[A-Za-z0-9_.-]{1,64}")
# Ray Serve reads these headers of anybody, decodes them without a check, and logs them.
_OF_SERVE = re.compile(rb"x.request.(id|timeout.seconds|disconnect.disabled)|x.session.id|serve.multiplexed.model.id")
# The proxy's own answers, by their status, and what it says for itself.
_OWN_ANSWERS = {404: "not-ready", 408: "timeout", 429: "overloaded", 503: "not-ready"}
_DETAILS = {
    "not-ready": "the service is not there yet; try again",
    "timeout": "took longer than Ray Serve's request_timeout_s",
    "internal-error": "Ray Serve's proxy failed on this request; its log says why",
}
_SOON = 1
_READY_SECONDS = 5.0

logger = logging.getLogger("ray.serve")


class HoldBack:
    """Stops reading a body a little above a limit; the rest waits in the client until the answer is there.

    The proxy by itself reads on as fast as it comes, whatever the replica behind it makes of it, so that a large body
    fills its memory before the replica can say no.

    Args:
        app: The proxy.
        limit: Bytes.
    """

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self._app = app
        self._limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on."""
        read = 0

        async def held_back() -> Message:
            nonlocal read
            if read > self._limit:
                # The proxy gives up reading when the replica has answered.
                await asyncio.Event().wait()
            message = await receive()
            read += len(message.get("body", b""))
            return message

        await self._app(scope, held_back, send)


class Desk:
    """Gives each request one id, refuses those beyond capacity, and says in the service's form what the proxy says.

    To refuse here costs a fraction of what it costs in the ingress, and what is saved there answers others.

    Args:
        app: The proxy.
        requests: POST requests that may be under way at a time; None for any number.
        retry_after: Seconds after which a refused client may try again.
    """

    def __init__(self, app: ASGIApp, requests: int | None, retry_after: int) -> None:
        self._app = app
        self._requests = requests
        self._retry_after = retry_after
        self._under_way = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request, or passes it on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _identify(scope)
        if sum(len(name) + len(value) for name, value in scope["headers"]) > _HEAD_BYTES:
            await _send(RequestError("head-too-large", f"headers have more than {_HEAD_BYTES} bytes"), request_id, send)
        elif scope["method"] != "POST":
            await self._pass_on(request_id, scope, receive, send)
        elif self._requests is not None and self._under_way >= self._requests:
            await _send(at_capacity(self._under_way, "requests", self._retry_after), request_id, send)
        else:
            self._under_way += 1
            try:
                await self._pass_on(request_id, scope, receive, send)
            finally:
                self._under_way -= 1

    async def _pass_on(self, request_id: str, scope: Scope, receive: Receive, send: Send) -> None:
        # Without an ingress replica a request waits for one; who asks whether it is there is told that it is not.
        ready = scope["path"].endswith("/readyz")
        started, code = False, "not-ready" if ready else "replica-lost"

        async def answered(message: Message) -> None:
            nonlocal started, code
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["X-Request-ID"] = request_id
                if _is_own(scope, headers) and message["status"] in _OWN_ANSWERS:
                    code = _OWN_ANSWERS[message["status"]]
                    return
                started = True
            if started:
                await send(message)

        try:
            async with asyncio.timeout(_READY_SECONDS if ready else None):
                await self._app(scope, receive, answered)
        except Exception as error:
            if started:
                raise
            if not (ready and isinstance(error, TimeoutError)):
                logger.exception("request %s failed", request_id)
                code = "internal-error"
        if not started:
            soon = _SOON if code == "not-ready" else None
            await _send(RequestError(code, _DETAILS.get(code, ""), soon), request_id, send)


def _identify(scope: Scope) -> str:
    """Leaves nothing in a request's head that Ray Serve would stumble over or log whole, and gives it an id."""
    kept, request_id = [], uuid.uuid4().hex
    for name, value in scope["headers"]:
        if _OF_SERVE.fullmatch(name):
            text = value.decode("latin-1")
            if not REQUEST_ID.fullmatch(text):
                continue
            if name == b"x-request-id":
                request_id = text
                continue
        kept.append((name, value))
    scope["headers"] = [*kept, (b"x-request-id", request_id.encode())]
    return request_id


def _is_own(scope: Scope, headers: MutableHeaders) -> bool:
    """Whether an answer is Ray Serve's proxy's, which gives no length, and not an application's."""
    text = headers.get("content-type", "").startswith("text/plain")
    return text and "content-length" not in headers and not scope["path"].startswith("/-/")


async def _send(error: RequestError, request_id: str, send: Send) -> None:
    headers, body = _answer(error, request_id)
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _answer(error: RequestError, request_id: str) -> tuple[list[tuple[bytes, bytes]], bytes]:
    """An error's headers and body."""
    body = json.dumps(problem_of(error, request_id), separators=(",", ":")).encode()
    headers = {
        "content-type": "application/problem+json",
        "content-length": str(len(body)),
        "x-request-id": request_id,
        "x-content-type-options": "nosniff",
        **({} if error.retry_after is None else {"retry-after": str(error.retry_after)}),
    }
    return [(name.encode(), value.encode()) for name, value in headers.items()], body


class HeadLimits:
    """Lets go of a client that does not finish a request's head; to be mixed into one of uvicorn's HTTP protocols."""

    seconds = HEAD_SECONDS
    cycle: Any
    loop: asyncio.AbstractEventLoop
    transport: Transport
    _timer: asyncio.TimerHandle | None = None
    _unread = 0

    def connection_made(self, transport: Transport) -> None:
        """A client is there."""
        super().connection_made(transport)  # type: ignore[misc]
        self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """It is gone."""
        self._stop_timer()
        super().connection_lost(exc)  # type: ignore[misc]

    def data_received(self, data: bytes) -> None:
        """Takes what came; time runs while no request is under way."""
        if self._timer is None and not self._is_busy():
            self._start_timer()
        self._unread += len(data)
        super().data_received(data)  # type: ignore[misc]
        if self._is_busy() or self.transport.get_protocol() is not self:  # which is so after a WebSocket's upgrade
            self._stop_timer()
        # h11 has a limit of its own.
        if self._unread > _HEAD_BYTES and hasattr(self, "parser"):
            self._refuse(RequestError("head-too-large", f"the head has more than {_HEAD_BYTES} bytes"))

    def on_headers_complete(self) -> None:
        """A head is read; of httptools' protocol."""
        self._unread = 0
        super().on_headers_complete()  # type: ignore[misc]

    def on_body(self, body: bytes) -> None:
        """A part of a body is read; of httptools' protocol."""
        self._unread = 0
        super().on_body(body)  # type: ignore[misc]

    def send_400_response(self, msg: str) -> None:
        """Where uvicorn cannot read a request."""
        self._refuse(RequestError("bad-request", msg))

    def _is_busy(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _start_timer(self) -> None:
        late = RequestError("slow-head", f"the request's head took longer than {self.seconds:g} s to arrive")
        self._timer = self.loop.call_later(self.seconds, self._refuse, late)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _refuse(self, error: RequestError) -> None:
        self._stop_timer()
        if self.transport.is_closing():
            return
        headers, body = _answer(error, uuid.uuid4().hex)
        start = f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}\r\nconnection: close\r\n".encode()
        head = b"".join(b"%s: %s\r\n" % pair for pair in headers)
        self.transport.write(start + head + b"\r\n" + body)
        self.transport.close()


class Protocol(HeadLimits, AutoHTTPProtocol):
    """uvicorn's HTTP protocol with `HeadLimits`."""


def middlewares() -> list[Middleware]:
    """What Ray Serve puts in front of a proxy, with the limits of the environment, by default the service's own.

    By default any number of requests may be under way: a cluster may have several ingress replicas, which count too.
    """
    Protocol.seconds = float(os.environ.get(HEAD_VARIABLE) or HEAD_SECONDS)
    uvicorn.config.HTTP_PROTOCOLS["auto"] = f"{__name__}:{Protocol.__name__}"
    requests = os.environ.get(REQUESTS_VARIABLE)
    return [
        Middleware(HoldBack, limit=int(os.environ.get(BODY_VARIABLE) or BODY_BYTES) + _MARGIN),
        Middleware(
            Desk,
            requests=int(requests) if requests else None,
            retry_after=int(os.environ.get(RETRY_VARIABLE) or RETRY_AFTER),
        ),
    ]
