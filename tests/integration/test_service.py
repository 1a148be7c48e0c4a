"""The service on real Ray Serve, over HTTP: what it answers, what it refuses, and what it survives."""

from __future__ import annotations

import hashlib
import json
import re
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from statistics import median

import pytest
import requests
import torch
from asked_service import LABELS, TOKEN, Service, problem

from zar_ray.adaptation.options import PredictConfig
from zar_ray.adaptation.predict import predict
from zar_ray.models.loading import load_model
from zar_ray.video.sandbox import DecoderProcess

pytestmark = pytest.mark.slow

LOSES = "loses the device"
BODY_BYTES = 24 * 2**20
# Less than a decoder can do with `slow_video`, and more than streams of others come to.
STREAM_PIXELS = 6e6


@pytest.fixture(scope="module")
def monkeypatch_module():
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture(scope="module")
def roots(tmp_path_factory, make_video):
    folder = tmp_path_factory.mktemp("served")
    make_video(folder / "root" / "in" / "a.mp4", frames=20)
    make_video(folder / "outside.mp4", frames=20)
    (folder / "root" / "link.mp4").symlink_to(folder / "outside.mp4")
    return folder


@pytest.fixture(scope="module")
def service(ray_cluster, tiny_checkpoint, roots, monkeypatch_module):
    from ray import serve

    from zar_ray.serving import application
    from zar_ray.serving.application import build, options_of

    class Replica(application.ModelDeployment.func_or_class):
        """Loses its device at a label, for good as a real one does."""

        def _answer(self, jobs):
            if any(LOSES in job.query.labels for job in jobs):
                self._classifier.model.encode_images = lost
            return super()._answer(jobs)

    def lost(pixels):
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    options = {
        "checkpoint": str(tiny_checkpoint),
        "device": "cpu",
        "threads": 1,
        "roots": [str(roots / "root")],
        "tokens": [hashlib.sha256(TOKEN.encode()).hexdigest()],
        "decode_timeout": 4.0,
        "limits": {
            "body_bytes": BODY_BYTES,
            "concurrent": 4,
            "queued": 4,
            "receive_seconds": 3.0,
            "adapt_seconds": 3.0,
            "wait_seconds": 18.0,
            "streams": 2,
            "stream_pixels": STREAM_PIXELS,
        },
    }
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    monkeypatch_module.setattr(
        application, "ModelDeployment", application.ModelDeployment.options(func_or_class=Replica)
    )
    try:
        serve.run(build(options_of(options)), name="zar", route_prefix="/")
        yield Service(port)
    finally:
        serve.shutdown()


@pytest.fixture(scope="module")
def video(make_video, tmp_path_factory):
    return make_video(tmp_path_factory.mktemp("video") / "moving block.mp4", frames=60, seed=5)


@pytest.fixture(scope="module")
def slow_video(make_video, tmp_path_factory):
    """Takes a second to decode, or more."""
    return make_video(tmp_path_factory.mktemp("slow") / "slow.mp4", frames=2000, width=160, height=120)


def test_answers_are_those_of_zar_predict(service, video, tiny_checkpoint):
    answer = service.ask(video, seed="3", explain="true").json()
    options = PredictConfig(checkpoint=tiny_checkpoint, videos=(str(video),), seed=3, device="cpu", resize="torch")
    with DecoderProcess(resizer=options.resize) as decoder:
        (local,) = predict(load_model(options), tuple(LABELS), options, decoder)
    for ours, theirs in ((answer["before"], local.before), (answer["after"], local.after)):
        assert [one["label"] for one in ours] == [one.label for one in theirs]
        assert [one["score"] for one in ours] == pytest.approx([one.score for one in theirs], abs=1e-5)
    assert answer["explanation"]["frames"]
    assert answer["model"]["methods"] == ["zar", "zero_shot"]


def test_together_answers_are_those_of_lone_requests(service, make_video, tmp_path):
    files = [make_video(tmp_path / f"{number}.mp4", frames=20 + 7 * number, seed=number) for number in range(8)]
    alone = [service.ask(file).json() for file in files]
    with ThreadPoolExecutor(4) as pool:
        together = [answer.json() for answer in pool.map(service.ask, files)]
    for one, other in zip(alone, together, strict=True):
        assert [label["label"] for label in one["after"]] == [label["label"] for label in other["after"]]
        scores = [[label["score"] for label in answer["after"]] for answer in (one, other)]
        assert scores[0] == pytest.approx(scores[1], abs=1e-5)


def test_a_long_video_comes_window_by_window(service, make_video, tmp_path):
    long = make_video(tmp_path / "long.mp4", frames=110)
    response = service.ask(long, "/v1/classify:stream", window="2", stride="1.5")
    blocks = [block.split("\n") for block in response.text.strip().split("\n\n")]
    assert [name for name, _ in blocks] == ["event: window"] * 3 + ["event: end"]
    windows = [json.loads(data.removeprefix("data: ")) for _, data in blocks[:-1]]
    assert [(one["start"], one["end"], one["start_frame"]) for one in windows] == [
        (0, 2, 0),
        (1.5, 3.5, 38),
        (3, 4.4, 75),
    ]
    assert all(len(one["result"]["views"]) == 48 for one in windows)
    problem(service.ask(long, "/v1/classify:stream", window="0.01"), 422, "video-too-large")


@pytest.fixture(scope="module")
def long_video(make_video, tmp_path_factory):
    """60 seconds."""
    return make_video(tmp_path_factory.mktemp("long") / "long.mp4", frames=1500)


def test_streams_complete_beside_whole_videos_which_hardly_wait(service, video, long_video):
    def ask():
        started = time.monotonic()
        assert service.ask(video).status_code == 200
        return time.monotonic() - started

    def stream(window):
        *windows, (name, end) = service.stream(long_video, window=str(window))
        assert (name, end) == ("end", {"windows": 60 // window})
        assert all(name == "window" for name, _ in windows)
        return [one["result"]["timings"] for _, one in windows]

    alone = [ask() for _ in range(6)]
    with ThreadPoolExecutor(2) as pool:
        streams = [pool.submit(stream, window) for window in (2, 1, 2)]
        beside = []
        while not all(one.done() for one in streams):
            beside.append(ask())
    for timings in (one.result() for one in streams):
        # Each window's own times; the body has arrived once.
        assert timings[0]["receive"] > 0
        assert all(one["receive"] == 0 for one in timings[1:])
        assert all(one["decode"] > 0 and one["encode"] > 0 for one in timings)
    alone += [ask() for _ in range(6)]
    assert len(beside) >= 5
    # Medians: of so few, the 95th percentile is what else the machine does (bench/streams.py has more).
    assert median(beside) <= 3 * median(alone), (alone, beside)


def test_a_stream_that_takes_long_holds_no_whole_video_up(service, video, slow_video):
    events = service.stream(slow_video, window="1")
    assert next(events)[0] == "window"
    (whole, own) = service.decoding_processes()[:2]
    assert own.nice() > whole.nice()
    rest = []
    with ThreadPoolExecutor(1) as pool:
        over = pool.submit(lambda: rest.extend(events))
        for _ in range(3):
            assert service.ask(video).status_code == 200
        assert not over.done(), "it is slowed down to what a stream may have decoded"
    assert rest[-1] == ("end", {"windows": 80})


def test_a_client_that_leaves_its_stream_ends_its_decoding(service, slow_video):
    events = service.stream(slow_video, window="1")
    assert next(events)[0] == "window"
    # Earlier streams may have left some that wait for the next.
    _, *of_streams = service.decoding_processes()
    events.close()
    limit = time.monotonic() + 10
    while all(one.is_running() for one in of_streams):
        assert time.monotonic() < limit, "it goes on although nobody reads"
        time.sleep(0.02)
    for _ in range(2):
        assert next(service.stream(slow_video, window="1"))[0] == "window", "its place is free again"


def test_a_decoder_that_dies_amid_a_stream_ends_it_with_an_error(service, video, slow_video):
    events = service.stream(slow_video, window="1")
    assert next(events)[0] == "window"
    for one in service.decoding_processes()[1:]:
        one.kill()
    *_, (name, problem) = events
    assert (name, problem["code"], problem["request_id"] != "") == ("error", "unusable-video", True)
    assert "SIGKILL" in problem["detail"]
    assert service.ask(video).status_code == 200


def test_mistakes_have_their_statuses(service, video, roots, tmp_path):
    url, headers = service.url + "/v1/classify", service.headers
    send = requests.post
    problem(send(url, timeout=60), 401, "unauthorized")
    problem(send(url, headers={"Authorization": "Bearer no"}, timeout=60), 401, "unauthorized")
    problem(
        send(url, data=b"x", headers={**headers, "Content-Type": "video/mp4"}, timeout=60),
        415,
        "unsupported-media-type",
    )
    problem(
        send(url, data=b"{", headers={**headers, "Content-Type": "application/json"}, timeout=60), 400, "bad-request"
    )
    problem(service.ask(video, candidate_labels=[]), 422, "invalid-parameters")
    problem(service.get("/v2"), 404, "not-found")
    for path in (
        "http://127.0.0.1:1/a.mp4",
        "file:///etc/hostname",
        "../outside.mp4",
        roots / "outside.mp4",
        "link.mp4",
    ):
        problem(service.ask_path(path), 422, "path-not-allowed")
    assert service.ask_path("in/a.mp4").status_code == 200
    large = tmp_path / "large.mp4"
    with large.open("wb") as file:
        file.truncate(BODY_BYTES + 1)
    problem(service.ask(large), 413, "body-too-large")


def test_a_body_that_does_not_come_is_given_up(service):
    with closing(socket.create_connection(("127.0.0.1", service.port), timeout=30)) as connection:
        connection.sendall(
            b"POST /v1/classify HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer let me in\r\nConnection: close\r\n"
            b"Content-Length: 1000\r\nContent-Type: multipart/form-data; boundary=b\r\n\r\n--b\r\n"
        )
        answer = ""
        while not answer.endswith("}"):
            part = connection.recv(4096)
            assert part, answer
            answer += part.decode()
    assert answer.startswith("HTTP/1.1 504")
    assert '"code":"timeout"' in answer


@pytest.mark.parametrize("address", ["/v1/classify", "/v1/classify:stream"])
def test_a_request_is_in_the_logs_of_each_process_that_it_passed(service, video, tmp_path, address):
    # The tower that reads it has 77 places.
    long_label = "".join(chr(0x1F300 + number) for number in range(100))
    broken = tmp_path / "a secret.mp4"
    broken.write_bytes(video.read_bytes()[:100])
    cases = (
        (service.ask(video, address), {"decoder": "ok", "model": "ok"}),
        (service.ask(broken, address), {"decoder": "unusable-video"}),
        (service.ask(video, address, candidate_labels=long_label), {"decoder": "ok", "model": "invalid-parameters"}),
    )
    for response, stages in cases:
        name, limit = response.headers["X-Request-ID"], time.monotonic() + 20
        # The ingress logs a request once it is answered.
        while f"request {name} POST {address} {response.status_code}" not in service.log("ingress"):
            assert time.monotonic() < limit
            time.sleep(0.05)
        for deployment in ("decoder", "model"):
            found = re.findall(rf"request {name} [^:\n]+: ([a-z-]+) after [\d.]+ s", service.log(deployment))
            assert stages[deployment] in found if deployment in stages else not found
    assert "secret" not in service.log("ingress") + service.log("decoder") + service.log("model")


def test_broken_files_cost_one_answer_each(service, shared):
    replicas = [service.replica(name).pid for name in ("decoder", "model", "ingress")]
    found = {}
    for file in sorted((shared / "videos").glob("*.*")):
        if file.suffix == ".md":
            continue
        response = service.ask(file, method="zero_shot")
        found[file.name] = response.status_code
        if response.status_code != 200:
            problem(response, 422, "unusable-video")
            assert "/proc" not in response.text
            assert "/tmp" not in response.text
    assert {name for name, status in found.items() if status != 200} == {
        "corrupt_decode_error.mp4",
        "empty.mp4",
        "text.mp4",
        "truncated.mp4",
    }
    assert [service.replica(name).pid for name in ("decoder", "model", "ingress")] == replicas


def test_a_decoder_that_hangs_or_dies_costs_its_video_only(service, video, slow_video):
    replica = service.replica("decoder").pid
    with ThreadPoolExecutor(1) as pool:
        hung = pool.submit(service.ask, slow_video)
        child = service.stop_decoding()
        assert "took longer than 4 s" in problem(hung.result(), 422, "unusable-video")
        assert service.ask(video).status_code == 200
        assert not child.is_running()

        killed = pool.submit(service.ask, slow_video)
        service.stop_decoding().kill()
        assert "SIGKILL" in problem(killed.result(), 422, "unusable-video")
    assert service.ask(video).status_code == 200
    assert service.replica("decoder").pid == replica


def test_beyond_capacity_the_answer_comes_at_once(service, video):
    child = service.decoding_process()
    child.suspend()
    answers = []
    threads = [threading.Thread(target=lambda: answers.append(service.ask(video))) for _ in range(8)]
    try:
        for thread in threads:
            thread.start()
        limit = time.monotonic() + 20
        while not re.search(r"zar_requests_held\{.*\} 8\.0", service.get("/metrics").text):
            assert time.monotonic() < limit
        started = time.monotonic()
        refused = service.ask(video)
        seconds = time.monotonic() - started
    finally:
        child.resume()
        for thread in threads:
            thread.join()
    problem(refused, 503, "overloaded")
    assert int(refused.headers["retry-after"]) >= 1
    assert seconds < 2
    assert [answer.status_code for answer in answers] == [200] * 8


@pytest.mark.parametrize("deployment", ["decoder", "model"])
def test_a_replica_killed_under_load_loses_what_it_held_and_no_more(service, video, slow_video, deployment):
    replica = service.replica(deployment)
    answers, over = [], threading.Event()

    def client():
        while not over.is_set():
            answers.append(service.ask(video))

    def wait_for_answers(count):
        limit = time.monotonic() + 60
        while sum(answer.status_code == 200 for answer in tuple(answers)) < count:
            assert time.monotonic() < limit, [answer.text for answer in answers]
            time.sleep(0.02)

    with ThreadPoolExecutor(4) as pool:
        clients = [pool.submit(client) for _ in range(4)]
        try:
            wait_for_answers(4)
            # Its windows take the model so long that one of them is always there, and are short, as their decoding
            # gives way to that of whole videos.
            events = service.stream(slow_video, window="2", stride="1", method="zar", steps="10")
            assert next(events)[0] == "window"
            time.sleep(0.2)
            replica.kill()
            replica.wait(10)
            wait_for_answers(len(answers) + 4)
        finally:
            over.set()
        for one in clients:
            one.result()
    *windows, (name, ended) = events
    # On a busy machine a model may be killed between two windows; the next one goes to its successor.
    between = deployment == "model" and (name, ended) == ("end", {"windows": len(windows) + 1})
    assert between or (name, ended.get("code")) == ("error", "replica-lost"), (name, ended)
    lost = [answer for answer in answers if answer.status_code != 200]
    for answer in lost:
        problem(answer, 503, "replica-lost")
        assert answer.headers["retry-after"]
    assert len(lost) <= 4, "more than the four that could be in flight"
    assert service.ask(video).status_code == 200
    assert service.replica(deployment).pid != replica.pid


def test_a_replica_whose_device_is_lost_is_replaced(service, video):
    before = service.replica("model").pid
    problem(service.ask(video, candidate_labels=[*LABELS, LOSES]), 503, "replica-lost")
    limit = time.monotonic() + 60
    while (answer := service.ask(video)).status_code != 200:
        problem(answer, 503, "replica-lost")
        assert time.monotonic() < limit
        time.sleep(0.2)
    assert any(one.pid != before for one in service.processes("ServeReplica:zar:model"))


def test_a_model_that_hangs_is_a_timeout(service, video):
    """Last, because it takes as long as all stages may."""
    replica = service.replica("model")
    replica.suspend()
    try:
        response = service.ask(video)
    finally:
        replica.resume()
    assert "took longer than 25 s" in problem(response, 504, "timeout")
