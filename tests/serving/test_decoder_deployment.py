"""A decoder replica's own part, beside processes and a model that a test controls."""

import asyncio
import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
from ray.exceptions import ActorDiedError

from zar_ray.errors import ConfigError, DecoderClosedError, DecoderStartError, VideoError, VideoTooLargeError
from zar_ray.serving import decoder_deployment
from zar_ray.serving.backend import DecodingNeeds, Query, VideoSource
from zar_ray.serving.decoder_deployment import DecoderDeployment
from zar_ray.serving.options import ServeConfig
from zar_ray.serving.problems import RequestError, refusal_of
from zar_ray.serving.schema import WindowParameters
from zar_ray.video.reading import DecordError, VideoInfo
from zar_ray.video.sandbox import BACKGROUND
from zar_ray.video.sandbox_process import DecodedViews
from zar_ray.video.transforms import Preprocessing
from zar_ray.video.windows import WindowSpan

QUERY = Query("mine-1", ("b", "c"), "zar", received=3.0)
VIDEO = VideoSource("secret.mp4", "secret.mp4")
FRAMES = np.zeros((1, 2, 2, 3), np.uint8)


def window_of(number, seconds=0.0):
    """A second of a video of 100 pixels at 25 frames a second."""
    span = WindowSpan(number, float(number), number + 1.0, 25 * number, 25)
    return DecodedViews(FRAMES, None, VideoInfo(100, 25.0, 10, 10, 4.0, "pyav"), None, seconds, span)


class Process:
    """Decodes four windows; a subclass may do worse."""

    made: ClassVar[list] = []

    def __init__(self, limits, program, resizer, decoder):
        assert (resizer, decoder) == (ServeConfig().resize, ServeConfig().decoder)
        self.program, self.closed, self.left = program, threading.Event(), threading.Event()
        self.taken = 0
        self.made.append(self)

    def decode_windows(self, *_):
        try:
            for number in range(4):
                self.before(number)
                self.taken = number + 1
                yield window_of(number)
        finally:
            self.left.set()

    def before(self, number):
        pass

    def close(self):
        self.closed.set()


class HungProcess(Process):
    """Hangs in its second window until it is closed, as a process does whose connection ends."""

    def before(self, number):
        if number == 1:
            assert self.closed.wait(30)
            raise DecoderClosedError("closed")


class BrokenProcess(Process):
    def before(self, number):
        if number == 1:
            raise VideoError("its decoder was killed by SIGKILL")


class Model:
    """Answers with what the query says; keeps what it was asked."""

    def __init__(self):
        self.jobs, self.decoded, self.outcome = [], [], None
        self.classify = SimpleNamespace(remote=self.answer)

    async def answer(self, job):
        self.jobs.append(job)
        if self.outcome is not None:
            raise self.outcome
        return job.query


@pytest.fixture
def replica(monkeypatch):
    """Makes a replica whose streams have processes of a kind: `replica(Process, streams=1)`."""
    monkeypatch.setattr(decoder_deployment, "WindowResult", lambda **values: SimpleNamespace(**values))

    def make(kind=Process, **limits):
        kind.made = []
        monkeypatch.setattr(decoder_deployment, "DecoderProcess", kind)
        deployed = DecoderDeployment.func_or_class
        one = deployed.__new__(deployed)
        one._config = ServeConfig.model_validate({"limits": limits})
        one._process, one._streams, one._idle = None, 0, []  # whoever takes that of whole videos fails
        one._threads = ThreadPoolExecutor(one._config.limits.streams)
        one._needs = DecodingNeeds(Preprocessing(32), ("zar",))
        one._model = Model()
        return one

    return make


def stream(replica):
    return replica.classify_windows(VIDEO, QUERY, WindowParameters())


def collect(replica):
    async def all_of_it():
        return [item async for item in stream(replica)]

    return asyncio.run(all_of_it())


def test_windows_are_answered_one_by_one_and_the_body_arrived_once(replica):
    one = replica()
    results = collect(one)
    assert [(item.number, item.start, item.end, item.start_frame) for item in results] == [
        (number, number, number + 1, 25 * number) for number in range(4)
    ]
    assert [item.result.received for item in results] == [3.0, 0.0, 0.0, 0.0]
    assert [job.decoded.span.number for job in one._model.jobs] == [0, 1, 2, 3]


def test_no_window_is_decoded_before_the_one_before_it_is_answered(replica):
    """Whoever reads the stream is not waited for, so that the answer must be."""
    one = replica()
    taken = []

    async def answer(job):
        await asyncio.sleep(0.05)
        taken.append(Process.made[0].taken)

    one._model.classify = SimpleNamespace(remote=answer)
    collect(one)
    assert taken == [1, 2, 3, 4]


def test_streams_have_processes_of_their_own_which_give_way_and_are_used_again(replica):
    one = replica(streams=2)

    async def two_and_one():
        async with asyncio.TaskGroup() as group:
            for _ in range(2):
                group.create_task(drain())
        await drain()

    async def drain():
        assert len([item async for item in stream(one)]) == 4

    asyncio.run(two_and_one())
    assert [process.program for process in Process.made] == [BACKGROUND, BACKGROUND]
    assert "os.nice(5)" in BACKGROUND
    assert not any(process.closed.is_set() for process in Process.made)


def test_streams_beyond_their_number_are_told_so(replica):
    one = replica(streams=1, retry_after=7)

    async def second():
        first = stream(one)
        await anext(first)
        refused = [item async for item in stream(one)]
        rest = [item async for item in first]
        return refused, rest, [item async for item in stream(one)]

    (refused,), rest, again = asyncio.run(second())
    assert (refused.code, refused.retry_after) == ("overloaded", 7)
    assert (len(rest), len(again)) == (3, 4)


def test_a_stream_is_slowed_down_to_the_pixels_that_it_may_have_decoded(replica):
    """The frames before a window are 2500 pixels a window; the first comes at once, and nothing follows the last."""
    one = replica(stream_pixels=25_000)
    started = time.monotonic()
    assert len(collect(one)) == 4
    assert 0.3 <= time.monotonic() - started < 3


def test_a_stream_ends_after_its_time(replica, caplog):
    one = replica(stream_pixels=25_000, stream_seconds=0.15)
    started = time.monotonic()
    *results, error = collect(one)
    assert 0.15 <= time.monotonic() - started < 3
    assert len(results) <= 2
    assert (error.code, error.detail) == ("timeout", "the stream took longer than 0.15 s")
    assert f"request mine-1 window {len(results)}: timeout" in caplog.text
    assert Process.made[0].closed.wait(10)
    assert Process.made[0].left.wait(10)
    assert one._streams == 0


@pytest.mark.parametrize("kind", [Process, HungProcess], ids=["between windows", "amid a window"])
def test_a_client_that_leaves_ends_its_streams_decoding(replica, kind):
    one = replica(kind, streams=1)
    if kind is Process:
        one._model.classify = SimpleNamespace(remote=lambda job: asyncio.sleep(30))

    async def leave():
        windows = stream(one)
        if kind is HungProcess:
            await anext(windows)
        step = asyncio.ensure_future(anext(windows))
        await asyncio.sleep(0.1)
        step.cancel()
        with pytest.raises(asyncio.CancelledError):
            await step
        assert one._streams == 0

    started = time.monotonic()
    asyncio.run(leave())
    assert time.monotonic() - started < 5
    (process,) = kind.made
    assert process.closed.wait(10)
    assert process.left.wait(10)
    assert not one._idle


def test_a_decoder_that_dies_ends_its_stream_with_an_error(replica, caplog):
    one = replica(BrokenProcess)
    result, error = collect(one)
    assert result.number == 0
    assert (error.code, error.detail) == ("unusable-video", "its decoder was killed by SIGKILL")
    assert "request mine-1 window 1: unusable-video" in caplog.text
    assert "secret" not in caplog.text
    assert one._idle == BrokenProcess.made, "it has replaced its child itself"


def test_a_model_that_dies_ends_the_stream_with_an_error(replica, caplog):
    one = replica()
    one._model.outcome = ActorDiedError()
    (error,) = collect(one)
    assert error.code == "replica-lost"
    assert "request mine-1 lost its replica: ActorDiedError" in caplog.text
    assert Process.made[0].closed.wait(10)


def test_what_the_model_has_against_a_window_ends_the_stream(replica):
    one = replica()

    async def refuse(job):
        return RequestError("invalid-parameters", "too long")

    one._model.classify = SimpleNamespace(remote=refuse)
    (error,) = collect(one)
    assert error.code == "invalid-parameters"


def test_a_whole_video_is_logged_by_its_request_and_loudly_where_it_fails_or_is_late(replica, caplog):
    caplog.set_level(logging.INFO, "zar_ray.serving")
    one = replica()
    one._config = one._config.model_copy(update={"decode_timeout": 1.0})
    seconds = 0.0

    def decode(*_):
        time.sleep(seconds)
        if not seconds:
            error = VideoError("secret.mp4 is broken")
            error.add_note("Traceback")
            raise error
        return window_of(0)

    one._process = SimpleNamespace(decode=decode, close=lambda: None)
    assert asyncio.run(one.decode(VIDEO, QUERY)).code == "unusable-video"
    assert "request mine-1: decoding failed as nobody foresaw:\nTraceback" in caplog.text
    assert "request mine-1 decode: unusable-video after 0.0" in caplog.text
    seconds = 0.6
    assert asyncio.run(one.decode(VIDEO, QUERY)).name == "secret.mp4"
    assert "request mine-1 decode: late after 0.6" in caplog.text
    assert {record.levelname for record in caplog.records if record.name == "zar_ray.serving"} == {"WARNING"}
    seconds = 0.001
    asyncio.run(one.decode(VIDEO, QUERY))
    assert "request mine-1 decode: ok after 0.0" in caplog.text
    assert ("zar_ray.serving", "INFO") in {(record.name, record.levelname) for record in caplog.records}
    assert "secret" not in caplog.text


@pytest.mark.parametrize(
    ("error", "code", "status"),
    [
        (VideoError("x"), "unusable-video", 422),
        (DecordError("x"), "unusable-video", 422),
        (VideoTooLargeError("x"), "video-too-large", 422),
        (DecoderStartError("x"), "internal-error", 500),
        (ConfigError("x"), "internal-error", 500),
        (DecoderClosedError("x"), "replica-lost", 503),
    ],
)
def test_every_kind_of_error_of_a_decoder_has_its_code(error, code, status):
    refused = refusal_of(error)
    assert (refused.code, refused.status, refused.detail) == (code, status, "x")
    assert refused.retry_after == (5 if status == 503 else None)


def test_each_window_is_logged_by_its_request(replica, caplog):
    caplog.set_level(logging.INFO, "zar_ray.serving")
    collect(replica())
    assert [f"request mine-1 decode of window {n}: ok" in caplog.text for n in range(5)] == [True] * 4 + [False]
