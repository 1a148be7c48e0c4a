"""The REST API over an application in this process: what is taken, what is refused, and how."""

from __future__ import annotations

import hashlib
import json
import re

import pytest
from http_requests import LABELS, post, problem

from zar_ray.adaptation.options import PredictConfig
from zar_ray.adaptation.predict import predict


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
def test_parameters_that_do_not_fit_are_named(refusing, video, fields, said):
    client, _ = refusing
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


def test_a_head_is_answered_as_a_get_without_a_body(served):
    client, _ = served()
    for path in ("/", "/v1/models", "/healthz", "/readyz", "/metrics"):
        head, get = client.head(path), client.get(path)
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-type"] == get.headers["content-type"]
    assert client.head("/v1/classify").status_code == 405
    assert client.head("/nowhere").status_code == 404


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
