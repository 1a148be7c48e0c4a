"""Bodies of requests: what is no request, what is too large or too slow, and how many are held."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from types import MappingProxyType

import anyio
import pytest
from http_requests import LABELS, post, problem

from zar_ray.serving.options import LimitConfig
from zar_ray.serving.problems import RequestError
from zar_ray.serving.uploads import read_form


def test_a_name_with_a_quotation_mark_arrives_as_it_is(served, make_video, tmp_path):
    client, _ = served()
    file = make_video(tmp_path / 'the "best" one.mp4', frames=20)
    assert post(client, file).json()["video"]["name"] == file.name


def test_bodies_that_are_no_requests(served, video, tmp_path):
    client, _ = served()
    text = tmp_path / "text.mp4"
    text.write_text("no video")
    assert "not a video" in problem(post(client, text), 422, "unusable-video")
    empty = tmp_path / "empty.mp4"
    empty.touch()
    assert "empty file" in problem(post(client, empty), 422, "unusable-video")
    send = client.post
    problem(send("/v1/classify", content=b"x", headers={"content-type": "video/mp4"}), 415, "unsupported-media-type")
    problem(send("/v1/classify"), 415, "unsupported-media-type")
    problem(send("/v1/classify", content=b"{", headers={"content-type": "application/json"}), 400, "bad-request")
    problem(send("/v1/classify", content=b"x", headers={"content-type": "multipart/form-data"}), 400, "bad-request")
    broken = {"content-type": "multipart/form-data; boundary=b"}
    problem(send("/v1/classify", content=b"no boundary", headers=broken), 400, "bad-request")
    assert "video" in problem(send("/v1/classify", data={"seed": "1"}, files={"film": b"1"}), 422, "invalid-parameters")
    assert "path" in problem(send("/v1/classify", json={"seed": 1}), 422, "invalid-parameters")
    problem(client.get("/nowhere"), 404, "not-found")
    problem(client.get("/v1/classify"), 405, "method-not-allowed")
    problem(client.get("/page/../options.py"), 404, "not-found")


def test_bodies_are_cut_off_at_the_limit(served, video):
    client, backend = served(limits={"body_bytes": 4096})
    problem(post(client, video), 413, "body-too-large")
    sent = []

    def endless():
        yield b'--b\r\nContent-Disposition: form-data; name="video"; filename="a.mp4"\r\n\r\n'
        for _ in range(1000):
            sent.append(1)
            yield b"x" * 1024

    headers = {"content-type": "multipart/form-data; boundary=b"}
    problem(client.post("/v1/classify", content=endless(), headers=headers), 413, "body-too-large")
    assert not backend.seen
    json_client, _ = served()
    large = {"content-type": "application/json"}
    problem(json_client.post("/v1/classify", content=b" " * (2**20 + 1), headers=large), 413, "body-too-large")
    problem(client.post("/v1/classify", headers={**headers, "content-length": "1e9"}), 400, "bad-request")


def test_a_slow_body_is_given_up():
    """Read without an application: the tests' client sends all of a body before one runs."""

    class SlowRequest:
        headers = MappingProxyType({"Content-Type": "multipart/form-data; boundary=b"})

        async def stream(self):
            yield b"--b\r\n"
            await anyio.sleep(30)
            yield b"more"

    async def read():
        async with read_form(SlowRequest(), LimitConfig(receive_seconds=0.2)):
            pass

    with pytest.raises(RequestError, match="took longer than") as caught:
        anyio.run(read)
    assert caught.value.code == "timeout"


def test_beyond_capacity_the_answer_comes_at_once(served, video):
    client, backend = served(limits={"concurrent": 1, "queued": 1, "retry_after": 7})
    backend.gate.clear()
    answers = []
    threads = [threading.Thread(target=lambda: answers.append(post(client, video))) for _ in range(2)]
    for thread in threads:
        thread.start()
    limit = time.monotonic() + 20
    while 'zar_requests_held{replica="local"} 2.0' not in client.get("/metrics").text:
        assert time.monotonic() < limit
        time.sleep(0.02)
    started = time.monotonic()
    refused = post(client, video)
    assert time.monotonic() - started < 2
    assert "2 requests" in problem(refused, 503, "overloaded")
    assert refused.headers["retry-after"] == "7"
    assert len(backend.seen) == 1, "one is worked on, the other waits"
    backend.gate.set()
    for thread in threads:
        thread.join(30)
    assert [answer.status_code for answer in answers] == [200, 200]
    assert 'zar_requests_held{replica="local"} 0.0' in client.get("/metrics").text
    assert 'zar_body_bytes_held{replica="local"} 0.0' in client.get("/metrics").text
    assert post(client, video).status_code == 200


def test_the_bytes_of_waiting_bodies_are_bounded(served, video):
    size = video.stat().st_size
    client, backend = served(limits={"queued_bytes": 2 * size, "body_bytes": 4 * size})
    backend.gate.clear()
    answers = []
    thread = threading.Thread(target=lambda: answers.append(post(client, video)))
    thread.start()
    while not backend.seen:
        time.sleep(0.02)
    assert "bytes of bodies are held" in problem(post(client, video), 503, "overloaded")
    backend.gate.set()
    thread.join(30)
    assert answers[0].status_code == 200


@pytest.mark.parametrize(
    "part",
    [
        b'name="hypothesis_template"\r\n\r\n\xe9t\xe9 {}',
        b'name="hypothesis_template"\r\n\r\n{} \xff\xfe',
        b'name="video"; filename="\xe9t\xe9.mp4"\r\n\r\nx',
    ],
)
@pytest.mark.parametrize("charset", ["", "; charset=latin-1"])
def test_texts_that_are_not_utf_8_are_refused(refusing, part, charset):
    client, _ = refusing
    body = b"--b\r\nContent-Disposition: form-data; " + part + b"\r\n--b--\r\n"
    headers = {"content-type": f"multipart/form-data; boundary=b{charset}"}
    assert "UTF-8" in problem(client.post("/v1/classify", content=body, headers=headers), 400, "bad-request")


@pytest.mark.parametrize("content", [bytes(2**21), b"\xff\xd8", b"clip.mp4", b""])
def test_a_video_without_a_file_name_is_told_so(refusing, content):
    client, backend = refusing
    head = b'--b\r\nContent-Disposition: form-data; name="video"\r\nContent-Type: video/mp4\r\n\r\n'
    body = head + content + b"\r\n--b--\r\n"
    answer = client.post("/v1/classify", content=body, headers={"content-type": "multipart/form-data; boundary=b"})
    assert "no filename" in problem(answer, 422, "invalid-parameters")
    assert not backend.seen


def test_the_texts_of_a_form_are_bounded_together(served, video):
    client, backend = served()
    fields = {"candidate_labels": list(LABELS), **{f"field{number}": "x" * 2**19 for number in range(3)}}
    assert "1048576 bytes" in problem(post(client, video, **fields), 400, "bad-request")
    assert not backend.seen


def test_a_client_that_leaves_is_counted_as_gone(served, video):
    client, backend = served()

    async def waits(video, query):
        raise asyncio.CancelledError

    backend.classify = waits
    with contextlib.suppress(BaseException):
        post(client, video)
    measures = client.get("/metrics").text
    assert 'zar_requests_total{code="client-gone",replica="local",route="/v1/classify",status="499"} 1.0' in measures
