"""Keeps Ray Serve from holding bodies that the service will refuse.

Its proxy reads a body as fast as it comes, whatever the replica behind it makes of it, so that a large one fills its
memory before the replica can say no. Behind HAProxy the replica's own server does the same. Ray Serve calls
`middlewares` in each of them that finds ``RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=zar_ray.serving.proxy.middlewares``
in its environment. It holds for all applications of the cluster.
"""

from __future__ import annotations

import asyncio
import os

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from zar_ray.serving.options import LimitConfig

CALLBACK_VARIABLE = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
CALLBACK = "zar_ray.serving.proxy.middlewares"
LIMIT_VARIABLE = "ZAR_SERVE_BODY_BYTES"
# The replica must see that a body is beyond its limit.
_MARGIN = 2**20


class HoldBack:
    """Stops reading a body a little above a limit; the rest waits in the client until the answer is there.

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


def middlewares() -> list[Middleware]:
    """What Ray Serve puts in front of a proxy; the limit is ``ZAR_SERVE_BODY_BYTES``, by default the service's own."""
    limit = int(os.environ.get(LIMIT_VARIABLE) or LimitConfig().body_bytes)
    return [Middleware(HoldBack, limit=limit + _MARGIN)]
