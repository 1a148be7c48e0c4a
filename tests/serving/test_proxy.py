"""What stands in front of Ray Serve's proxies reads no more of a body than the service may take."""

from __future__ import annotations

import anyio

from zar_ray.serving.options import LimitConfig
from zar_ray.serving.proxy import CALLBACK, LIMIT_VARIABLE, HoldBack, middlewares


def test_reading_stops_above_the_limit_until_the_answer_is_there():
    read = []

    async def proxy(scope, receive, send):
        with anyio.move_on_after(0.3):
            while True:
                read.append((await receive())["body"])
        await send("answered")

    async def endless():
        return {"type": "http.request", "body": b"x" * 100, "more_body": True}

    sent = []

    async def send(message):
        sent.append(message)

    anyio.run(HoldBack(proxy, limit=1000), {}, endless, send)
    assert sum(map(len, read)) == 1100
    assert sent == ["answered"]


def test_the_limit_is_the_services_own_or_the_one_that_is_set(monkeypatch):
    monkeypatch.delenv(LIMIT_VARIABLE, raising=False)
    (one,) = middlewares()
    assert one.cls is HoldBack
    assert one.kwargs["limit"] > LimitConfig().body_bytes
    monkeypatch.setenv(LIMIT_VARIABLE, "5000000")
    (other,) = middlewares()
    assert other.kwargs["limit"] == one.kwargs["limit"] - LimitConfig().body_bytes + 5000000


def test_ray_serve_finds_it_by_its_name():
    from ray.serve._private.utils import call_function_from_import_path

    assert [one.cls for one in call_function_from_import_path(CALLBACK)] == [HoldBack]
