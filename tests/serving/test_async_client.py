"""The asynchronous client against a real HTTP server whose answers a test writes down beforehand."""

from __future__ import annotations

import asyncio

import pytest
from canned_service import event, fine, form, problem, stream, window

import zar_ray.client.asynchronous
from zar_ray.client import AsyncClient, ServiceError
from zar_ray.errors import ConfigError


@pytest.fixture
def video(tmp_path):
    path = tmp_path / "some dance.mp4"
    path.write_bytes(b"frames" * 1000)
    return path


@pytest.fixture
def waits(monkeypatch):
    """Seconds that the client would have waited."""
    waited = []

    async def wait(seconds):
        waited.append(seconds)

    monkeypatch.setattr(zar_ray.client.asynchronous.asyncio, "sleep", wait)
    return waited


def ask(server, question, **options):
    async def asked():
        async with AsyncClient(server.url, timeout=10, **options) as client:
            return await question(client)

    return asyncio.run(asked())


async def windows_of(client, video, seen, **asked):
    async for one in client.classify_windows(video, ["zumba", "yoga"], **asked):
        seen.append(one.number)


def test_a_file_goes_with_its_name_and_the_parameters(server, video):
    server.answers.append(fine())
    answer = ask(
        server, lambda client: client.classify(video, ["zumba", "yoga"], seed=3, options={"steps": 2}), token="t"
    )
    assert answer.after[0].label == "zumba"
    (request,) = server.requests
    assert request.headers["Authorization"] == "Bearer t"
    assert form(request) == [
        ("candidate_labels", None, b"zumba"),
        ("candidate_labels", None, b"yoga"),
        ("seed", None, b"3"),
        ("options", None, b'{"steps": 2}'),
        ("video", "some dance.mp4", video.read_bytes()),
    ]


def test_several_questions_at_once(server, video):
    server.answers.extend(fine() for _ in range(8))

    async def all_of_them(client):
        return await asyncio.gather(*(client.classify(video, ["zumba"]) for _ in range(8)))

    assert len(ask(server, all_of_them)) == 8
    assert all(form(request)[-1][2] == video.read_bytes() for request in server.requests)


def test_windows(server, video):
    server.answers.append(stream(event("window", window(0)), event("window", window(1)), event("end", {"windows": 2})))
    seen = []
    ask(server, lambda client: windows_of(client, video, seen, window=2.0))
    assert seen == [0, 1]


@pytest.mark.parametrize(
    ("chunks", "code", "before"),
    [
        ([event("window", window(0))], "stream-cut", [0]),
        ([event("window", window(0)), event("end", {"windows": 2})], "stream-cut", [0]),
        (
            [event("error", {"title": "t", "status": 503, "code": "replica-lost", "detail": "d", "request_id": "r"})],
            "replica-lost",
            [],
        ),
    ],
)
def test_windows_that_end_otherwise(server, video, chunks, code, before):
    server.answers.append(stream(*chunks))
    seen = []
    with pytest.raises(ServiceError) as caught:
        ask(server, lambda client: windows_of(client, video, seen))
    assert (caught.value.code, seen) == (code, before)


def test_comes_back_when_it_was_told_to_with_some_jitter(server, video, waits):
    server.answers.extend([problem(**{"Retry-After": "4"}), problem(**{"Retry-After": "4"}), fine()])
    ask(server, lambda client: client.classify(video, ["zumba"]))
    assert len(waits) == 2
    assert all(4 <= seconds <= 5 for seconds in waits)
    assert waits[0] != waits[1]
    assert [form(request)[-1][2] for request in server.requests] == [video.read_bytes()] * 3


@pytest.mark.parametrize(
    "answers", [[problem(**{"Retry-After": "4"})] * 3, [problem()], [problem("unusable-video", 422)]]
)
def test_gives_up(server, video, waits, answers):
    server.answers.extend(answers)
    with pytest.raises(ServiceError):
        ask(server, lambda client: client.classify(video, ["zumba"]), retries=2)
    assert len(server.requests) == len(answers)


def test_ready_and_what_is_served(server):
    not_ready = problem("not-ready", **{"Retry-After": "5"})
    server.answers.extend(
        [not_ready, fine({"status": "ready"}), fine({"label_sets": [{"name": "s", "labels": ["a"]}]})]
    )
    assert ask(server, lambda client: client.ready()) is False
    assert ask(server, lambda client: client.ready()) is True
    assert ask(server, lambda client: client.labels()).label_sets[0].name == "s"


def test_mistakes_are_told_as_by_the_other_client(server, video):
    with pytest.raises(ConfigError, match="either labels or"):
        ask(server, lambda client: client.classify(video))
    with pytest.raises(ConfigError, match="is no URL"):
        AsyncClient("ftp://127.0.0.1")
