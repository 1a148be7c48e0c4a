"""Streams of windows over the REST API: their events, ends, places and counts."""

from __future__ import annotations

import contextlib
import time
from concurrent.futures import ThreadPoolExecutor

from http_requests import LABELS, events, problem

from zar_ray.serving.problems import RequestError


def test_a_stream_of_windows_takes_one_seed(served, video):
    client, backend = served()
    with video.open("rb") as stream:
        data = {"candidate_labels": LABELS, "seeds": ["0", "1"]}
        answer = client.post("/v1/classify:stream", files={"video": (video.name, stream)}, data=data)
    assert (
        problem(answer, 422, "invalid-parameters")
        == "seeds: are distinct ones, in the place of seed, and of whole videos only"
    )
    assert backend.seen == []


def test_a_stream_is_counted_by_its_end(served, video):
    client, backend = served()
    whole = backend.classify_windows

    async def breaks(video, query, windows):
        async for window in whole(video, query, windows):
            yield window
            raise RequestError("replica-lost", "it ended")

    def counted(code):
        return f'zar_requests_total{{code="{code}",replica="local",route="/v1/classify:stream",status="200"}} 1.0'

    files = {"video": (video.name, video.read_bytes())}
    client.post("/v1/classify:stream", files=files, data={"candidate_labels": list(LABELS)})
    assert counted("ok") in client.get("/metrics").text
    backend.classify_windows = breaks
    client.post("/v1/classify:stream", files=files, data={"candidate_labels": list(LABELS)})
    assert counted("replica-lost") in client.get("/metrics").text


def test_a_stream_gives_windows_and_an_end_or_an_error(served, video):
    client, backend = served()

    def ask(**fields):
        files = {"video": (video.name, video.read_bytes())}
        return client.post("/v1/classify:stream", files=files, data={"candidate_labels": list(LABELS), **fields})

    response = ask(window="2.5")
    assert response.headers["content-type"].startswith("text/event-stream")
    got = list(events(response))
    assert [name for name, _ in got] == ["window", "window", "end"]
    assert [one["start"] for name, one in got if name == "window"] == [0.0, 2.5]
    assert got[-1][1] == {"windows": 2}
    problem(ask(window="0"), 422, "invalid-parameters")

    whole = backend.classify_windows

    async def breaks(video, query, windows):
        async for window in whole(video, query, windows):
            yield window
            raise ZeroDivisionError("a secret")

    backend.classify_windows = breaks
    got = list(events(ask()))
    assert [name for name, _ in got] == ["window", "error"]
    assert got[-1][1]["code"] == "internal-error"

    async def refuses(video, query, windows):
        raise RequestError("unusable-video", "no frames a second")
        yield

    backend.classify_windows = refuses
    problem(ask(), 422, "unusable-video")
    assert 'zar_requests_held{replica="local"} 0.0' in client.get("/metrics").text


def test_streams_have_places_of_their_own(served, video):
    """However many there are, whole videos wait for none of them; further ones are told so at once."""
    client, backend = served(limits={"concurrent": 1, "queued": 0, "streams": 2, "retry_after": 7})
    backend.gate.clear()

    def ask(path="/v1/classify:stream"):
        files = {"video": (video.name, video.read_bytes())}
        return client.post(path, files=files, data={"candidate_labels": list(LABELS)})

    with ThreadPoolExecutor(3) as pool:
        streams = [pool.submit(ask) for _ in range(2)]
        limit = time.monotonic() + 20
        while len(backend.seen) < 2:
            assert time.monotonic() < limit
            time.sleep(0.02)
        refused = ask()
        assert "2 streams" in problem(refused, 503, "overloaded")
        assert refused.headers["retry-after"] == "7"
        whole = pool.submit(ask, "/v1/classify")
        while len(backend.seen) < 3:
            assert time.monotonic() < limit, "it waits for a stream"
            time.sleep(0.02)
        assert "3 requests" not in problem(ask("/v1/classify"), 503, "overloaded")
        backend.gate.set()
        assert [one.result().status_code for one in (*streams, whole)] == [200, 200, 200]
    assert ask().status_code == 200


def test_what_ends_a_stream_is_counted_and_logged_by_its_request(served, video, caplog):
    client, backend = served()
    whole = backend.classify_windows

    async def breaks(*asked):
        async for window in whole(*asked):
            yield window
            raise RequestError("replica-lost", "a secret")

    backend.classify_windows = breaks
    files = {"video": (video.name, video.read_bytes())}
    response = client.post("/v1/classify:stream", files=files, data={"candidate_labels": list(LABELS)})
    name, document = list(events(response))[-1]
    assert (name, document["code"]) == ("error", "replica-lost")
    assert document["request_id"] == response.headers["x-request-id"]
    assert f"request {document['request_id']} window 1: replica-lost" in caplog.text
    assert "secret" not in caplog.text
    measures = client.get("/metrics").text
    counted = 'zar_requests_total{code="replica-lost",replica="local",route="/v1/classify:stream",status="200"} 1.0'
    assert counted in measures


def test_a_client_that_is_gone_before_its_stream_begins_holds_nothing(served, video):
    client, _ = served()
    form = client.build_request(
        "POST", "/v1/classify:stream", files={"video": video.read_bytes()}, data={"candidate_labels": list(LABELS)}
    )
    body = form.read()
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/classify:stream",
        "headers": [(name.lower(), value) for name, value in form.headers.raw],
        "query_string": b"",
    }
    arrived = iter([{"type": "http.request", "body": body}])

    async def receive():
        return next(arrived, {"type": "http.disconnect"})

    async def send(message):
        raise OSError("the client is gone")

    with contextlib.suppress(Exception):
        client.portal.call(client.app, scope, receive, send)
    assert 'zar_requests_held{replica="local"} 0.0' in client.get("/metrics").text
    assert 'zar_body_bytes_held{replica="local"} 0.0' in client.get("/metrics").text
