"""What the service adds to Ray Serve's proxy, between a uvicorn on loopback and something in the proxy's place."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
import threading
import time
from contextlib import closing, contextmanager

import anyio
import pytest
import requests
import uvicorn
from ray.serve._private.http_util import RequestIdMiddleware, convert_object_to_asgi_messages
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from zar_ray.serving import proxy
from zar_ray.serving.options import LimitConfig
from zar_ray.serving.problems import PROBLEMS
from zar_ray.serving.proxy import CALLBACK, Desk, HeadLimits, HoldBack, middlewares

# It serves for seconds, to clients that are slow.
pytestmark = pytest.mark.process


class Httptools(HeadLimits, HttpToolsProtocol):
    seconds = 0.5


class H11(HeadLimits, H11Protocol):
    seconds = 0.5


both = pytest.mark.parametrize("protocol", [Httptools, H11])


async def hello(scope, receive, send):
    """A replica: its answer to a body comes when all of it is there."""
    assert scope["type"] == "http"
    while (await receive()).get("more_body"):
        pass
    seen = dict(scope["headers"]).get(b"x-request-id", b"").decode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(seen))]})
    await send({"type": "http.response.body", "body": seen.encode()})


@contextmanager
def serving(app, protocol="auto", requests=None):
    """Serves as Ray Serve's proxy does; gives the port."""
    inner = Desk(HoldBack(RequestIdMiddleware(app), 2**20), requests, 3)
    with closing(socket.create_server(("127.0.0.1", 0), backlog=2048)) as listening:
        config = uvicorn.Config(
            lambda: inner, factory=True, http=protocol, lifespan="off", log_config=None, access_log=False
        )
        server = uvicorn.Server(config)
        server.install_signal_handlers = lambda: None
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        try:
            yield listening.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join()


def everything(connection):
    """All that comes until the server hangs up."""
    parts = []
    while part := connection.recv(2**16):
        parts.append(part)
    return b"".join(parts)


def problem(raw, code):
    """The one answer that was read from a socket, which must be a problem document."""
    head, _, body = raw.partition(b"\r\n\r\n")
    document = json.loads(body)
    assert document["code"] == code
    assert head.startswith(b"HTTP/1.1 %d " % PROBLEMS[code][0])
    assert b"\r\ncontent-type: application/problem+json\r\n" in head
    assert head.lower().count(b"x-request-id:") == 1
    return document


def connected(port):
    return closing(socket.create_connection(("127.0.0.1", port), timeout=20))


@both
@pytest.mark.parametrize("start", [b"", b"POST /v1/classify HTTP/1.1\r\nHost: a\r\nX-A"])
def test_a_head_that_does_not_come_is_given_up(protocol, start):
    with serving(hello, protocol) as port, connected(port) as connection:
        began = time.monotonic()
        connection.sendall(start)
        problem(everything(connection), "slow-head")
        assert 0.3 < time.monotonic() - began < 5


@both
def test_a_head_that_drips_is_given_up_too_also_on_a_connection_that_was_used(protocol):
    with serving(hello, protocol) as port, connected(port) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nX-Request-ID: mine\r\n\r\n")
        assert connection.recv(2**16).endswith(b"mine")
        connection.sendall(b"GET / HTTP/1.1\r\n")
        began = time.monotonic()
        try:
            while time.monotonic() - began < 5:
                time.sleep(0.1)
                connection.sendall(b"a: b\r\n")
                connection.settimeout(0.01)
                try:
                    if answer := connection.recv(2**16):
                        break
                except TimeoutError:
                    connection.settimeout(20)
        except OSError:
            pytest.fail("closed without an answer")
        problem(answer, "slow-head")
        assert time.monotonic() - began < 5


@both
def test_a_request_and_its_body_have_as_long_as_they_need(protocol):
    with serving(hello, protocol) as port, connected(port) as connection:
        connection.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 2\r\n\r\n")
        time.sleep(1)
        connection.sendall(b"ab")
        assert everything(connection).startswith(b"HTTP/1.1 200 ")
        with connected(port) as other:  # nor is a connection cut that waits for its next request
            other.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            other.recv(2**16)
            time.sleep(1)
            other.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            assert everything(other).startswith(b"HTTP/1.1 200 ")


@both
def test_many_half_open_requests_keep_nobody_out_and_are_gone_after_the_limit(protocol):
    with serving(hello, protocol) as port:
        half = [socket.create_connection(("127.0.0.1", port), timeout=20) for _ in range(1100)]
        try:
            for one in half:
                one.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n")
            assert requests.get(f"http://127.0.0.1:{port}/", timeout=5).status_code == 200
            for one in half:
                assert everything(one).startswith(b"HTTP/1.1 408 ")
        finally:
            for one in half:
                one.close()


@both
def test_a_head_without_end_is_refused_before_it_is_held(protocol):
    with serving(hello, protocol) as port, connected(port) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nCookie: ")
        sent = 0
        try:
            while sent < 2**24:
                connection.sendall(b"b" * 2**16)
                sent += 2**16
        except OSError:
            pass
        assert sent < 2**24, "what the two ends of the connection hold"


@both
def test_a_head_with_many_cookies_is_taken_and_one_beyond_all_measure_refused(protocol):
    with serving(hello, protocol) as port:
        url = f"http://127.0.0.1:{port}/"
        assert requests.get(url, headers={"Cookie": "a=" + 20_000 * "b"}, timeout=20).status_code == 200
        answer = requests.get(url, headers={"Cookie": "a=" + 100_000 * "b"}, timeout=20)
        assert answer.status_code in (400, 431)
        assert answer.json()["code"] in ("bad-request", "head-too-large")


@both
def test_what_is_no_request_gets_a_document(protocol):
    with serving(hello, protocol) as port, connected(port) as connection:
        connection.sendall(b"\x16\x03\x01 hello\r\n\r\n")
        problem(everything(connection), "bad-request")


@pytest.mark.parametrize("sent", ["ünlautere", "a" * 30_000, "two words", None])
def test_there_is_one_request_id_and_it_is_one_that_logs_can_show(sent):
    headers = {} if sent is None else {"X-Request-ID": sent.encode()}
    with serving(hello) as port:
        answer = requests.get(f"http://127.0.0.1:{port}/", headers=headers, timeout=20)
        assert answer.status_code == 200
        assert len(answer.text) == 32
        assert answer.headers["x-request-id"] == answer.text, "one, and the same as behind it"
        answer = requests.get(f"http://127.0.0.1:{port}/", headers={"X-Request-ID": "mine"}, timeout=20)
        assert (answer.headers["x-request-id"], answer.text) == ("mine", "mine")


def test_headers_that_ray_serve_reads_of_anybody_are_short_ascii_or_gone():
    seen = {}

    async def replica(scope, receive, send):
        seen.update(scope["headers"])
        await hello(scope, receive, send)

    headers = {
        "Serve-Multiplexed-Model-Id": "a" * 30_000,
        "serve_multiplexed_model_id": "ä".encode(),
        "X-Session-Id": "two words",
        "X-Request-Timeout-Seconds": "5",
        "X-Other": "ä".encode(),
    }
    with serving(replica) as port:
        assert requests.get(f"http://127.0.0.1:{port}/", headers=headers, timeout=20).status_code == 200
    assert seen[b"x-request-timeout-seconds"] == b"5"
    assert seen[b"x-other"] == "ä".encode()
    assert not [name for name in seen if b"serve" in name or b"session" in name]


@pytest.mark.parametrize(
    ("said", "status", "code", "soon"),
    [
        ("Path '/readyz' not found.", 404, "not-ready", "1"),
        ("The deployment is unavailable.", 503, "not-ready", "1"),
        ("Dropped.", 429, "overloaded", "5"),
        ("timed out", 408, "timeout", None),
    ],
)
def test_what_the_proxy_says_itself_is_a_document(said, status, code, soon):
    async def own(scope, receive, send):
        for message in convert_object_to_asgi_messages(said, status_code=status):
            await send(message)

    with serving(own) as port:
        answer = requests.get(f"http://127.0.0.1:{port}/readyz", timeout=20)
        health = requests.get(f"http://127.0.0.1:{port}/-/healthz", timeout=20)
    assert (answer.status_code, answer.json()["code"]) == (PROBLEMS[code][0], code)
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers.get("retry-after") == soon
    assert answer.json()["request_id"] == answer.headers["x-request-id"]
    assert (health.status_code, health.text) == (status, said), "Ray's own"


def test_a_replica_that_died_and_a_proxy_that_failed_are_documents():
    async def nothing(scope, receive, send):
        if scope["path"] == "/fail":
            raise ValueError("failed")

    with serving(nothing) as port:
        lost = requests.get(f"http://127.0.0.1:{port}/", timeout=20)
        failed = requests.get(f"http://127.0.0.1:{port}/fail", timeout=20)
    assert (lost.status_code, lost.json()["code"]) == (503, "replica-lost")
    assert lost.headers["retry-after"]
    assert (failed.status_code, failed.json()["code"]) == (500, "internal-error")


@pytest.mark.parametrize("swallows", [False, True])
def test_it_is_not_ready_while_nothing_answers_behind_it(swallows, monkeypatch):
    monkeypatch.setattr(proxy, "_READY_SECONDS", 0.2)

    async def waiting(scope, receive, send):
        if scope["path"] == "/readyz":
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:  # as Ray Serve does with it
                if not swallows:
                    raise
            return
        await asyncio.sleep(0.5)
        await hello(scope, receive, send)

    with serving(waiting) as port:
        answer = requests.get(f"http://127.0.0.1:{port}/readyz", timeout=20)
        assert (answer.status_code, answer.json()["code"]) == (503, "not-ready")
        assert requests.get(f"http://127.0.0.1:{port}/other", timeout=20).status_code == 200


def test_answers_of_applications_stay_as_they_are():
    async def other(scope, receive, send):
        headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", b"4")]
        await send({"type": "http.response.start", "status": 404, "headers": headers})
        await send({"type": "http.response.body", "body": b"gone"})

    with serving(other) as port:
        answer = requests.get(f"http://127.0.0.1:{port}/", timeout=20)
    assert (answer.status_code, answer.text) == (404, "gone")


def test_beyond_capacity_the_proxy_refuses_before_anything_is_read():
    over, asked = threading.Event(), []

    async def busy(scope, receive, send):
        asked.append(scope["path"])
        if scope["path"] == "/v1/classify":
            while not over.is_set():
                await asyncio.sleep(0.01)
        await hello(scope, receive, send)

    with serving(busy, requests=2) as port:
        url, answers = f"http://127.0.0.1:{port}", []
        threads = [
            threading.Thread(target=lambda: answers.append(requests.post(f"{url}/v1/classify", timeout=20)))
            for _ in range(2)
        ]
        for thread in threads:
            thread.start()
        while len(asked) < 2:
            time.sleep(0.01)
        with connected(port) as connection:  # its body never comes
            connection.sendall(b"POST /v1/classify HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n")
            answer = connection.recv(2**16)
            assert b"\r\nretry-after: 3\r\n" in answer
            assert "2 requests are worked on" in problem(answer, "overloaded")["detail"]
        for path in ("/healthz", "/readyz", "/metrics"):
            assert requests.get(url + path, timeout=20).status_code == 200
        over.set()
        for thread in threads:
            thread.join()
        assert [one.status_code for one in answers] == [200, 200]
        assert requests.post(f"{url}/v1/classify", timeout=20).status_code == 200
    assert asked.count("/v1/classify") == 3


def test_reading_stops_above_the_limit_until_the_answer_is_there():
    read = []

    async def inner(scope, receive, send):
        with anyio.move_on_after(0.3):
            while True:
                read.append((await receive())["body"])
        await send("answered")

    async def endless():
        return {"type": "http.request", "body": b"x" * 100, "more_body": True}

    sent = []

    async def send(message):
        sent.append(message)

    anyio.run(HoldBack(inner, limit=1000), {}, endless, send)
    assert sum(map(len, read)) == 1100
    assert sent == ["answered"]


@pytest.fixture
def uvicorns_choice(monkeypatch):
    monkeypatch.setitem(uvicorn.config.HTTP_PROTOCOLS, "auto", uvicorn.config.HTTP_PROTOCOLS["auto"])
    monkeypatch.setattr(proxy.Protocol, "seconds", proxy.Protocol.seconds)


def test_limits_are_the_services_own_or_those_that_are_set(monkeypatch, uvicorns_choice):
    names = (proxy.BODY_VARIABLE, proxy.REQUESTS_VARIABLE, proxy.RETRY_VARIABLE, proxy.HEAD_VARIABLE)
    for name in names:
        monkeypatch.delenv(name, raising=False)
    limits = LimitConfig()
    hold_back, desk = middlewares()
    assert (hold_back.cls, desk.cls) == (HoldBack, Desk)
    assert hold_back.kwargs["limit"] > limits.body_bytes
    assert desk.kwargs == {"requests": None, "retry_after": limits.retry_after}
    assert proxy.Protocol.seconds == limits.head_seconds
    for name, value in zip(names, ("5000000", "7", "9", "2.5"), strict=True):
        monkeypatch.setenv(name, value)
    other, desk = middlewares()
    assert other.kwargs["limit"] == hold_back.kwargs["limit"] - limits.body_bytes + 5000000
    assert desk.kwargs == {"requests": 7, "retry_after": 9}
    assert proxy.Protocol.seconds == 2.5


def test_ray_serve_finds_it_by_its_name_and_uvicorn_the_protocol(uvicorns_choice):
    from ray.serve._private.utils import call_function_from_import_path

    assert [one.cls for one in call_function_from_import_path(CALLBACK)] == [HoldBack, Desk]
    config = uvicorn.Config(hello, log_config=None)
    config.load()
    assert config.http_protocol_class is proxy.Protocol


@pytest.mark.process
def test_it_imports_next_to_nothing_that_ray_serves_proxy_does_not():
    code = (
        "import sys, ray.serve._private.proxy; before = set(sys.modules); import zar_ray.serving.proxy;"
        "print(*sorted(set(sys.modules) - before))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    own = {"zar_ray", "zar_ray.errors", "zar_ray.serving", "zar_ray.serving.problems", "zar_ray.serving.proxy"}
    of_server = ("uvicorn.", "httptools", "uvloop")  # which Ray Serve imports as it starts to serve
    assert {name for name in done.stdout.split() if not name.startswith(of_server)} <= own
