"""The REST API over an application in this process: what is taken, what is refused, and how."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import MappingProxyType

import anyio
import pytest

from zar_ray.adaptation.options import PredictConfig
from zar_ray.adaptation.predict import predict
from zar_ray.serving.options import LimitConfig
from zar_ray.serving.problems import RequestError
from zar_ray.serving.uploads import read_form

LABELS = ("riding a horse", "walking the dog", "cooking an egg", "playing chess")


def post(client, file, **fields):
    fields.setdefault("candidate_labels", list(LABELS))
    with file.open("rb") as stream:
        return client.post("/v1/classify", files={"video": (file.name, stream)}, data=fields)


def problem(response, status, code):
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    document = response.json()
    assert (document["status"], document["code"]) == (status, code)
    assert document["request_id"] == response.headers["x-request-id"]
    assert document["title"]
    return document["detail"]


@pytest.fixture
def video(make_video, tmp_path):
    return make_video(tmp_path / "some video.mp4", frames=30, seed=3)


@pytest.mark.process
@pytest.mark.parametrize("method", ["zar", "zero_shot"])
def test_answers_are_those_of_zar_predict(served, video, tiny_checkpoint, method, decoder):
    client, backend = served()
    answer = post(client, video, method=method, seed="5", top_k="4").json()
    options = PredictConfig(checkpoint=tiny_checkpoint, videos=(str(video),), method=(method,), seed=5, device="cpu")
    (local,) = predict(backend.classifier.model, LABELS, options, decoder)
    for ours, theirs in ((answer["after"], local.after), (answer["before"], local.before)):
        assert [one["label"] for one in ours] == [one.label for one in theirs]
        assert [one["score"] for one in ours] == pytest.approx([one.score for one in theirs], abs=1e-6)
    assert answer["candidates"] == 4
    assert answer["video"]["frames"] == 30
    assert answer["video"]["name"] == "some video.mp4"
    assert (len(answer["views"]), answer["steps"]) == ((48, 1) if method == "zar" else (0, 0))
    assert sum(view["selected"] for view in answer["views"]) == (38 if method == "zar" else 0)
    assert answer["timings"]["total"] == pytest.approx(sum(answer["timings"].values()) - answer["timings"]["total"])
    assert answer["explanation"] is None


@pytest.mark.parametrize("method", ["zar", "zero_shot"])
def test_several_seeds_give_means_and_spread_and_are_each_a_question(served, video, method):
    client, backend = served()
    alone = [post(client, video, method=method, seed=seed, top_k="4").json() for seed in ("7", "2")]
    answer = post(client, video, method=method, seeds=["7", "2"], top_k="3", explain="true").json()
    assert (answer["seed"], answer["seeds"], alone[0]["seeds"]) == (7, [7, 2], [])
    assert post(client, video, method=method, seeds="7", top_k="4").json()["after"] == alone[0]["after"]
    for when in ("before", "after"):
        scores = [{one["label"]: one["score"] for one in of_one[when]} for of_one in alone]
        assert len(answer[when]) == 3
        for one in answer[when]:
            first, second = (of_one[one["label"]] for of_one in scores)
            assert one["score"] == pytest.approx((first + second) / 2, abs=1e-6)
            assert one["std"] == pytest.approx(abs(first - second) / 2**0.5, abs=1e-6)
    assert (answer["after"][0]["std"] > 0) == (method == "zar")
    assert answer["images_encoded"] == sum(one["images_encoded"] for one in alone)
    assert answer["views"] == alone[0]["views"]
    # What is of the first seed is made once.
    assert answer["explanation"] is not None
    assert [(query.seed, query.explain) for _, query in backend.seen[2:4]] == [(7, True), (2, False)]


def test_the_services_threshold_rejects_and_a_request_has_its_own(served, video):
    client, _ = served(reject_below=2.0, reject_score="margin")
    answer = post(client, video, seeds=["7", "2"]).json()
    alone = [post(client, video, seed=seed).json() for seed in ("7", "2")]
    assert answer["certainty"] == pytest.approx(sum(one["certainty"] for one in alone) / 2)
    assert [one["reject"] for one in (answer, *alone)] == [True] * 3
    own = post(client, video, seed="7", reject_below="0", reject_score="max_probability").json()
    assert (own["reject"], own["certainty"]) == (False, pytest.approx(own["after"][0]["score"]))
    assert post(client, video, seed="7", reject_below="-2").json()["reject"] is False


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


def test_an_explanation_shows_frames_and_what_tuning_changed(served, video):
    client, _ = served()
    answer = post(client, video, explain="true").json()
    explanation = answer["explanation"]
    assert explanation["label"] == answer["after"][0]["label"]
    numbers = [frame["frame"] for frame in explanation["frames"]]
    assert numbers == sorted(set(numbers))
    assert set(numbers) <= set(answer["video"]["evaluation_frames"])
    values = [
        value for frame in explanation["frames"] for when in ("before", "after") for row in frame[when] for value in row
    ]
    assert max(values) == 1.0
    assert min(values) >= 0.0
    assert any(frame["before"] != frame["after"] for frame in explanation["frames"])
    assert all(frame["image"].startswith("data:image/jpeg;base64,") for frame in explanation["frames"])
    untuned = post(client, video, explain="true", method="zero_shot").json()["explanation"]
    assert all(frame["before"] == frame["after"] for frame in untuned["frames"])


def test_defaults_label_sets_and_labels_in_one_field(served, video, tmp_path):
    own = tmp_path / "mine.txt"
    own.write_text("a\nb\nc\n")
    client, backend = served(label_sets={"mine": str(own), "ucf101": "ucf101"}, methods=["zero_shot"], seed=9)
    assert client.get("/v1/labels").json()["label_sets"][0] == {"name": "mine", "labels": ["a", "b", "c"]}
    answer = post(client, video, candidate_labels=[], label_set="mine").json()
    assert (answer["method"], answer["seed"], answer["candidates"]) == ("zero_shot", 9, 3)
    for text in ("x, y, z", "x\ny\n\nz\n"):
        assert post(client, video, candidate_labels=text).json()["candidates"] == 3
    assert post(client, video, hypothesis_template="you see {}.").status_code == 200
    assert [query.labels for _, query in backend.seen] == [("a", "b", "c"), ("x", "y", "z"), ("x", "y", "z"), LABELS]
    assert backend.seen[-1][1].template == "you see {}."


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"candidate_labels": []}, "either the candidate labels or the name of a label_set"),
        ({"label_set": "ucf101"}, "either the candidate labels or the name of a label_set"),
        ({"candidate_labels": [], "label_set": "ufc101"}, 'did you mean "ucf101"'),
        ({"candidate_labels": ["a", ""]}, "label 2 is empty"),
        ({"candidate_labels": ["a", "b", "a "]}, '"a" is there twice'),
        ({"candidate_labels": ["a b", "a_b"]}, "read the same"),
        ({"candidate_labels": ["a", "x" * 201]}, "201 characters"),
        ({"candidate_labels": [str(n) for n in range(1001)]}, "1001 are more than the 1000"),
        ({"candidate_labels": ["a", "b\x07"]}, "control characters"),
        ({"candidate_labels": ["a", "🦊" * 60]}, "tokens"),
        ({"method": "zer_shot"}, 'did you mean "zero_shot"'),
        ({"steps": "11"}, "11 are more than the 10"),
        ({"steps": "many"}, "steps"),
        ({"seed": "-1"}, "seed"),
        ({"seed": ["1", "2"]}, "seed: is there 2 times"),
        ({"seeds": ["1", "-2"]}, "seeds"),
        ({"seeds": ["1", "2"], "seed": "3"}, "seeds: are distinct ones, in the place of seed"),
        ({"seeds": ["1", "2", "1"]}, "seeds: are distinct ones"),
        ({"seeds": ["0", "1", "2", "3", "4", "5"]}, "seeds: 6 are more than the 5 that a request may have"),
        ({"seeds": [str(n) for n in range(101)]}, "seeds: Tuple should have at most 100 items"),
        ({"top_k": "0"}, "top_k"),
        ({"reject_below": "nan"}, "reject_below"),
        ({"reject_below": "0.3", "reject_score": "temperature"}, "reject_score"),
        ({"reject_score": "margin"}, "reject_score: the service's threshold is of max_probability"),
        ({"hypothesis_template": "no place"}, "must hold {} once"),
        ({"temperature": "1"}, "temperature"),
        ({"options": '{"confidenc": 0.5}'}, 'options.confidenc: zar has no such option; did you mean "confidence"?'),
        ({"options": '{"confidence": 1.5}'}, "options.confidence: 1.5 is greater than the maximum of 1"),
        ({"options": '{"confidence": "half"}'}, "options.confidence: 'half' is not of type 'number'"),
        ({"options": '{"betas": [0.9]}'}, "options.betas: [0.9] is too short"),
        ({"options": '{"loss": "mean"}'}, "options.loss: 'mean' is not one of"),
        ({"options": '{"lr": NaN}'}, "options: numbers must be finite"),
        ({"options": '{"steps": 11}'}, "options.steps: 11 is greater than the maximum of 10"),
        ({"options": '{"steps": 3}', "steps": "2"}, "steps: 2 here, and others in options"),
        ({"options": "confidence=0.5"}, 'options: is no JSON object, as {"steps": 2} is'),
        ({"options": "[" * 100_000}, "options: is no JSON object"),
        ({"options": "[1]"}, "options: Input should be a valid dictionary"),
        ({"options": '{"betas": [%s1]}' % ("1," * 5000)}, "options: more than 1000 values"),
        ({"candidate_labels": 'a,"b'}, "cannot be read as a list"),
        ({"candidate_labels": "," * 300_000}, "300000 characters are more than the 204000"),
        ({"candidate_labels": ["a", "e\u0301" * 101]}, "202 characters"),
        ({"method": "zero_shot", "options": '{"steps": 1}'}, "options.steps: zero_shot has no such option"),
    ],
)
def test_parameters_that_do_not_fit_are_named(served, video, fields, said):
    client, _ = served()
    assert said in problem(post(client, video, **fields), 422, "invalid-parameters")


@pytest.mark.process
def test_a_methods_own_options_change_the_answer_as_they_do_in_zar_predict(served, video, tiny_checkpoint, decoder):
    client, backend = served(roots=[str(video.parent)], zar={"lr": 0.1}, methods=["zar", "zero_shot", "tpt"])

    def local(method, **own):
        options = {"checkpoint": tiny_checkpoint, "videos": (str(video),), "device": "cpu", "method": (method,)}
        asked = PredictConfig.model_validate({**options, method: own})
        (ranking,) = predict(backend.classifier.model, LABELS, asked, decoder)
        return {one.label: pytest.approx(one.score, abs=1e-6) for one in ranking.after}

    def scores(answer):
        assert answer.status_code == 200, answer.text
        return {one["label"]: one["score"] for one in answer.json()["after"]}

    own = {"confidence": 0.3, "steps": 3, "betas": [0.8, 0.9]}
    expected = local("zar", lr=0.1, **own)
    asked = {"path": video.name, "candidate_labels": list(LABELS)}
    assert scores(client.post("/v1/classify", json={**asked, "options": own})) == expected
    assert scores(post(client, video, options=json.dumps(own))) == expected
    assert scores(post(client, video, options=json.dumps({**own, "steps": 3}), steps="3")) == expected
    assert scores(post(client, video)) == local("zar", lr=0.1) != expected
    assert post(client, video, method="zero_shot", steps="3").json()["steps"] == 0, "it has none, and passes over them"
    views = {"views": 6, "confidence": 0.5}
    assert scores(post(client, video, method="tpt", options=json.dumps(views))) == local("tpt", **views)


def test_what_a_schema_cannot_say_of_options_is_refused_all_the_same(served, video):
    client, backend = served(methods=["tpt", "tent"], tpt={"views": 8})
    refused = post(client, video, method="tpt", options='{"scale": [0.5, 0.1]}')
    assert "options: " in problem(refused, 422, "invalid-parameters")
    assert "give the smaller first" in refused.json()["detail"]
    refused = post(client, video, method="tent", options='{"stream": true}')
    assert "would depend on the videos before" in problem(refused, 422, "invalid-parameters")
    before = len(backend.seen)
    refused = post(client, video, method="tpt", options='{"views": 9}')
    assert "options.views: 9 is greater than the maximum of 8" in problem(refused, 422, "invalid-parameters")
    assert len(backend.seen) == before, "what a request may cost is decided before anything is decoded"


def test_the_methods_are_offered_with_their_options(served):
    client, _ = served(zar={"steps": 2}, methods=["zar", "tpt", "zero_shot"], limits={"steps": 3})
    zar, tpt, zero_shot = client.get("/v1/methods").json()["methods"]
    assert (zar["name"], zar["description"]) == ("zar", "prompt tuning")
    steps = zar["options"]["properties"]["steps"]
    assert (steps["default"], steps["minimum"], steps["maximum"]) == (2, 1, 3)
    assert steps["description"] == "AdamW steps a video."
    assert zar["options"]["properties"]["confidence"]["default"] == 0.8
    assert tpt["options"]["properties"]["views"]["maximum"] == 64, "a request may lower what has no limit of its own"
    assert zero_shot["options"] is None
    body = client.get("/openapi.json").json()["paths"]["/v1/classify"]["post"]["requestBody"]["content"]
    for kind in ("application/json", "multipart/form-data"):
        of_methods = body[kind]["schema"]["properties"]["options"]["anyOf"]
        assert [one.get("title") for one in of_methods] == ["zar", "tpt", None]
        assert of_methods[0]["properties"] == zar["options"]["properties"]


def test_labels_are_never_the_name_of_a_file(served, video, tmp_path):
    secret = tmp_path / "a,b" / "secret"
    secret.parent.mkdir()
    secret.write_text("one\ntwo\n")
    client, backend = served()
    for field in (str(secret), str(tmp_path / "secret.txt"), "conf/classes/hmdb51.txt"):
        answer = post(client, video, candidate_labels=field)
        assert answer.status_code == 200
        assert backend.seen[-1][1].labels == tuple(field.split(","))
    many = ", ".join(f"label number {number}" for number in range(100))
    assert post(client, video, candidate_labels=many).json()["candidates"] == 100


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


def test_a_url_is_not_fetched_and_paths_stay_beneath_their_roots(served, make_video, tmp_path):
    root, outside = tmp_path / "root", tmp_path / "outside"
    make_video(root / "in" / "a.mp4", frames=20)
    make_video(outside / "b.mp4", frames=20)
    (root / "link.mp4").symlink_to(outside / "b.mp4")
    (root / "inside.mp4").symlink_to(root / "in" / "a.mp4")
    (root / "folder").symlink_to(outside)
    (root / "loop").symlink_to(root / "loop")
    client, _ = served(roots=[str(root)])

    def ask(path, client=client):
        return client.post("/v1/classify", json={"path": path, "candidate_labels": list(LABELS)})

    for path in ("in/a.mp4", str(root / "in" / "a.mp4"), "in/../in/a.mp4", "inside.mp4"):
        assert ask(path).json()["video"]["name"] == "a.mp4", path
    refused = {
        problem(ask(path), 422, "path-not-allowed")
        for path in (
            "http://127.0.0.1:1/a.mp4",
            "https://example.org/a.mp4",
            "file:///etc/hostname",
            "../outside/b.mp4",
            str(outside / "b.mp4"),
            "/etc/hostname",
            "link.mp4",
            "folder/b.mp4",
            "loop",
            "in",
            "missing.mp4",
            "a\0b",
            "x" * 4000,
        )
    }
    assert len(refused) == 1, "the answer tells what is there"
    bare, _ = served()
    problem(ask("in/a.mp4", bare), 422, "path-not-allowed")


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


def test_tokens_let_in_and_keep_out(served, video):
    tokens = [hashlib.sha256(token).hexdigest() for token in (b"first", b"second")]
    client, _ = served(tokens=tokens)
    for header in ({}, {"authorization": "Bearer wrong"}, {"authorization": "Basic first"}, {"authorization": "first"}):
        refused = client.post("/v1/classify", headers=header)
        problem(refused, 401, "unauthorized")
        assert refused.headers["www-authenticate"] == "Bearer"
        for path in (
            "/v1/models",
            "/v1/labels",
            "/v1/samples",
            "/metrics",
            "/docs",
            "/openapi.json",
            "/v1/classify:stream",
        ):
            problem(client.get(path, headers=header), 401, "unauthorized")
    for path in ("/", "/healthz", "/readyz", "/page/page.js"):
        assert client.get(path).status_code == 200, path
    client.headers["authorization"] = "bearer second"
    assert post(client, video).status_code == 200
    assert client.get("/v1/models").status_code == 200


def test_what_nobody_foresaw_is_a_problem_too_and_tells_nothing(served, video, caplog):
    client, backend = served()

    async def fail(video, query):
        raise ZeroDivisionError("a secret")

    backend.classify = fail
    response = post(client, video)
    assert "secret" not in response.text
    problem(response, 500, "internal-error")
    assert "a secret" in caplog.text
    assert response.headers["x-request-id"] in caplog.text


def test_requests_are_told_apart_in_answers_and_logs(served, video, caplog):
    client, _ = served()
    caplog.set_level("INFO", "zar_ray.serving")
    client.headers["x-request-id"] = "mine-1"
    answer = post(client, video)
    assert answer.headers["x-request-id"] == answer.json()["request_id"] == "mine-1"
    assert "request mine-1 POST /v1/classify 200" in caplog.text
    assert "some video" not in caplog.text
    client.headers["x-request-id"] = "not\tfit {}"
    assert len(client.get("/healthz").headers["x-request-id"]) == 32
    measures = client.get("/metrics").text
    assert 'zar_requests_total{code="ok",replica="local",route="/v1/classify",status="200"} 1.0' in measures
    assert 'zar_stage_seconds_count{replica="local",stage="encode"} 1.0' in measures


def events(response):
    for block in response.text.strip().split("\n\n"):
        name, data = block.split("\n")
        yield name.removeprefix("event: "), json.loads(data.removeprefix("data: "))


def test_a_head_is_answered_as_a_get_without_a_body(served):
    client, _ = served()
    for path in ("/", "/v1/models", "/healthz", "/readyz", "/metrics"):
        head, get = client.head(path), client.get(path)
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-type"] == get.headers["content-type"]
    assert client.head("/v1/classify").status_code == 405
    assert client.head("/nowhere").status_code == 404


@pytest.mark.parametrize(
    "part",
    [
        b'name="hypothesis_template"\r\n\r\n\xe9t\xe9 {}',
        b'name="hypothesis_template"\r\n\r\n{} \xff\xfe',
        b'name="video"; filename="\xe9t\xe9.mp4"\r\n\r\nx',
    ],
)
@pytest.mark.parametrize("charset", ["", "; charset=latin-1"])
def test_texts_that_are_not_utf_8_are_refused(served, part, charset):
    client, _ = served()
    body = b"--b\r\nContent-Disposition: form-data; " + part + b"\r\n--b--\r\n"
    headers = {"content-type": f"multipart/form-data; boundary=b{charset}"}
    assert "UTF-8" in problem(client.post("/v1/classify", content=body, headers=headers), 400, "bad-request")


@pytest.mark.parametrize("content", [bytes(2**21), b"\xff\xd8", b"clip.mp4", b""])
def test_a_video_without_a_file_name_is_told_so(served, content):
    client, backend = served()
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


def test_models_health_page_and_documentation(served):
    client, _ = served()
    (model,) = client.get("/v1/models").json()["models"]
    assert model["methods"] == ["zar", "zero_shot"]
    assert model["input_size"] == 32
    assert not model["random_weights"]
    assert client.get("/healthz").json() == {"status": "ok"}
    assert client.get("/readyz").json() == {"status": "ready"}
    page = client.get("/")
    assert page.headers["content-security-policy"].startswith("default-src 'none'; script-src 'self'")
    assert client.get("/v1/samples").json() == {"samples": []}
    documentation = client.get("/docs")
    assert not re.findall(r"https?://", documentation.text), "what another host has to give"
    for name in re.findall(r'(?:src|href)="([^"]+)"', documentation.text):
        assert client.get(name).status_code == 200, name


def test_samples_are_offered_and_may_be_asked_for(served, make_video, tmp_path):
    make_video(tmp_path / "samples" / "one" / "a.mp4", frames=20)
    client, _ = served(samples=str(tmp_path / "samples"))
    (sample,) = client.get("/v1/samples").json()["samples"]
    assert sample == {"name": "one/a", "path": "one/a.mp4"}
    answer = client.post("/v1/classify", json={"path": sample["path"], "candidate_labels": ["a", "b"]})
    assert answer.status_code == 200


def test_names_that_are_no_text_cost_no_answer(served, make_video, tmp_path):
    folder = tmp_path / "samples"
    make_video(folder / "a.mp4", frames=20)
    # Linux lets a name be any bytes.
    (folder / "a.mp4").rename(folder / "b\udcff.mp4")
    (folder / "b.mp4").symlink_to(folder / "b\udcff.mp4")
    client, _ = served(samples=str(folder))
    assert client.get("/v1/samples").json() == {"samples": [{"name": "b", "path": "b.mp4"}]}
    answer = client.post("/v1/classify", json={"path": "b.mp4", "candidate_labels": ["a", "b"]})
    assert answer.status_code == 200, answer.text
    assert answer.json()["video"]["name"] == r"b\udcff.mp4"


@pytest.mark.parametrize("path", ["/v1/labels", "/healthz", "/nowhere"])
def test_a_query_that_is_no_text_is_passed_over(served, path):
    client, _ = served()
    scope = {
        "type": "http",
        "method": "GET",
        "path": path,
        "headers": [(b"host", b"localhost")],
        "query_string": b"a=\xff",
    }
    said = []

    async def receive():
        return {"type": "http.request"}

    async def send(message):
        said.append(message)

    client.portal.call(client.app, scope, receive, send)
    assert said[0]["status"] == (404 if path == "/nowhere" else 200)
