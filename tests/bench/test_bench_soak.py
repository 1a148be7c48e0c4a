"""bench/soak.py: what it takes for answered, lost or wrong, and a short run of it against the service."""

from __future__ import annotations

import json
import random
import socket
import subprocess
import sys
import threading
from contextlib import closing

import pytest

WHOLE, STREAM, LEAVER = "whole video", "stream", "leaver"


@pytest.fixture(scope="module")
def bench(load_bench):
    return load_bench("soak")


@pytest.fixture(scope="module")
def traffic(bench):
    return sys.modules["traffic"]


@pytest.fixture(scope="module")
def kinds(traffic):
    return traffic.kinds_of(tokens=False)


@pytest.fixture
def outcome(bench, traffic):
    def make(code, began=10.0, ended=11.0, kind=WHOLE, detail="", status=None, faults=()):
        return bench.Outcome("soak-0-1", kind, began, ended, traffic.Reply(code, status, detail, faults))

    return make


def answer(status=200, body=b"{}", kind="application/json", name="mine", more=b""):
    head = f"HTTP/1.1 {status} So\r\nX-Request-ID: {name}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
    return head.encode() + more + b"\r\n" + body


def problem(code, status, name="mine", **more):
    from zar_ray.serving.problems import PROBLEMS

    document = {"code": code, "status": status, "title": PROBLEMS[code][1], "detail": "so", "request_id": name}
    return answer(status, json.dumps(document).encode(), "application/problem+json", name, **more)


def events(*blocks):
    body = "".join(f"event: {name}\ndata: {json.dumps(data)}\n\n" for name, data in blocks).encode()
    return answer(body=body, kind="text/event-stream")


def window(number):
    return "window", {"number": number, "result": result()}


def result(**changed):
    timings = dict.fromkeys(("receive", "decode", "encode", "adapt", "explain", "total"), 0.1)
    return {"request_id": "mine", "timings": timings, "after": [{"label": "a", "score": 1.0}], **changed}


class TestAnswers:
    @pytest.mark.parametrize(
        ("kind", "received", "code"),
        [
            (WHOLE, answer(body=json.dumps(result()).encode()), "ok"),
            (WHOLE, problem("unusable-video", 422), "unusable-video"),
            (WHOLE, problem("overloaded", 503, more=b"Retry-After: 2\r\n"), "overloaded"),
            (WHOLE, b"", "unanswered"),
            (WHOLE, answer()[:-1], "unanswered"),
            (WHOLE, answer(404, b"not here", "text/plain"), "status 404"),
            (STREAM, events(window(0), window(1), window(2), ("end", {"windows": 3})), "ok"),
            (STREAM, events(window(0), window(1)), "unanswered"),
            ("HEAD", answer()[:-2], "ok"),
        ],
    )
    def test_are_told_apart(self, traffic, kinds, kind, received, code):
        reply = traffic.read(received, kinds[kind], "mine")
        assert (reply.code, reply.faults) == (code, ())

    def test_an_error_in_a_stream_is_its_answer(self, traffic, kinds):
        document = json.loads(problem("replica-lost", 503).split(b"\r\n\r\n")[1])
        reply = traffic.read(events(window(0), ("error", document)), kinds[STREAM], "mine")
        assert (reply.code, reply.status, reply.faults) == ("replica-lost", 200, ())

    @pytest.mark.parametrize(
        ("kind", "received", "fault"),
        [
            (WHOLE, answer(body=json.dumps(result()).encode()) + answer(), "bytes follow the answer"),
            (WHOLE, answer(body=json.dumps(result(request_id="other")).encode()), "about request other"),
            (WHOLE, answer(body=json.dumps(result(timings={"total": 1})).encode()), "has the timings ['total']"),
            (WHOLE, answer(body=json.dumps(result(after=[])).encode()), "no labels"),
            (WHOLE, problem("unusable-video", 500), "unusable-video with status 500"),
            (WHOLE, problem("overloaded", 503), "without Retry-After"),
            (WHOLE, problem("timeout", 504, name="other"), "X-Request-ID is ['other']"),
            (WHOLE, problem("timeout", 504, more=b"X-Request-ID: mine\r\n"), "X-Request-ID is ['mine', 'mine']"),
            (STREAM, events(window(0), window(2), ("end", {"windows": 2})), "window 2 comes as number 1"),
            (STREAM, events(window(0), ("end", {"windows": 3})), "1 windows, and an end that speaks of 3"),
        ],
    )
    def test_that_are_wrong_in_themselves(self, traffic, kinds, kind, received, fault):
        assert any(fault in one for one in traffic.read(received, kinds[kind], "mine").faults)


class TestSending:
    @pytest.fixture
    def ask(self, traffic, kinds):
        """Sends parts to a server that does what a function says with the connection; returns the reply."""

        def make(serve, *parts, leaves=None):
            with closing(socket.create_server(("127.0.0.1", 0))) as listening:

                def run():
                    with closing(listening.accept()[0]) as connection:
                        serve(connection)

                thread = threading.Thread(target=run, daemon=True)
                thread.start()
                site = traffic.Site(listening.getsockname()[1], 100, None, None)
                reply = traffic.send(site, kinds["metrics"], traffic.Ask(parts, leaves), "mine", 5.0)
                thread.join()
            return reply

        return make

    def test_an_answer_that_comes_early_ends_the_body(self, ask):
        def refuse(connection):
            connection.recv(10)
            connection.sendall(problem("body-too-large", 413))

        assert ask(refuse, b"x" * 50_000_000).code == "body-too-large"

    def test_a_pause_ends_with_the_answer(self, ask):
        assert ask(lambda connection: connection.sendall(problem("slow-head", 408)), b"x", 60.0).code == "slow-head"

    def test_whoever_leaves_has_left(self, ask):
        assert ask(lambda connection: (connection.recv(10), connection.recv(10)), b"x", leaves=0.0).code == "left"

    def test_a_connection_that_ends_is_no_answer(self, ask):
        assert ask(lambda connection: connection.recv(10), b"x").code == "unanswered"

    def test_a_closed_port(self, traffic, kinds):
        with closing(socket.create_server(("127.0.0.1", 0))) as listening:
            port = listening.getsockname()[1]
        site = traffic.Site(port, 100, None, None)
        assert traffic.send(site, kinds["metrics"], traffic.Ask((b"x",)), "mine", 5.0).code == "refused"


class TestCounts:
    @pytest.mark.parametrize(
        ("code", "kind"),
        [("ok", WHOLE), ("overloaded", WHOLE), ("left", LEAVER), ("ok", LEAVER), ("slow-head", "half a head")],
    )
    def test_what_is_documented_adds_up(self, bench, kinds, outcome, code, kind):
        assert bench.check([outcome(code, kind=kind)], [], kinds) == ([], {})

    @pytest.mark.parametrize(
        ("code", "kind"),
        [
            ("internal-error", WHOLE),
            ("replica-lost", WHOLE),
            ("unanswered", WHOLE),
            ("refused", WHOLE),
            ("unusable-video", WHOLE),
            ("ok", "broken video"),
            ("ok", "foreign page"),
            ("overloaded", "half a head"),
        ],
    )
    def test_what_is_not_is_a_line(self, bench, kinds, outcome, code, kind):
        ((line,), lost) = bench.check([outcome(code, kind=kind, detail="so")], [], kinds)
        assert line.startswith(f"soak-0-1 ({kind}): {code} where ")
        assert line.endswith("is documented: so")
        assert not lost

    def test_what_is_wrong_in_itself_is_a_line(self, bench, kinds, outcome):
        wrong, _ = bench.check([outcome("ok", status=200, faults=("twice",))], [], kinds)
        assert wrong == ["soak-0-1 (whole video): 200 ok: twice"]

    @pytest.mark.parametrize(
        ("target", "code", "kind", "began", "ended"),
        [
            ("proxy", "unanswered", WHOLE, 10, 20.1),
            ("proxy", "unanswered", WHOLE, 20.1, 20.2),
            ("proxy", "refused", WHOLE, 21, 21),
            ("proxy", "not-ready", "page", 21, 21),
            ("ingress", "replica-lost", WHOLE, 21, 22),
            ("ingress", "unanswered", STREAM, 10, 20.1),
            ("decoder", "replica-lost", WHOLE, 10, 20.1),
            ("model", "replica-lost", STREAM, 10, 20.1),
            ("model", "timeout", WHOLE, 10, 140),
            ("decoding process", "unusable-video", WHOLE, 19, 21),
        ],
    )
    def test_what_a_kill_explains_is_lost(self, bench, kinds, outcome, target, code, kind, began, ended):
        one = outcome(code, began, ended, kind, "its decoder was killed by SIGKILL")
        kill = bench.Kill(target, 20.0, 3.0)
        assert bench.check([one], [kill], kinds) == ([], {kind: 1})
        for other in (
            bench.Kill(target, ended + 0.1, 3.0),
            bench.Kill(target, began - 3.1, 3.0),
        ):  # after it, long before
            assert len(bench.check([one], [other], kinds)[0]) == 1

    @pytest.mark.parametrize(
        ("target", "code", "kind", "began"),
        [
            ("proxy", "internal-error", WHOLE, 19),
            ("proxy", "unanswered", WHOLE, 22.1),
            ("proxy", "replica-lost", WHOLE, 19),
            ("ingress", "unanswered", WHOLE, 19),
            ("ingress", "refused", WHOLE, 19),
            ("model", "unanswered", STREAM, 19),
            ("decoder", "unusable-video", WHOLE, 19),
            ("decoding process", "replica-lost", WHOLE, 19),
            ("decoding process", "unusable-video", WHOLE, 19),
        ],
    )
    def test_what_it_does_not_explain_is_a_line(self, bench, kinds, outcome, target, code, kind, began):
        wrong, lost = bench.check([outcome(code, began, 22.5, kind, "broken")], [bench.Kill(target, 20.0, 3.0)], kinds)
        assert len(wrong) == 1
        assert not lost

    def test_a_decoding_process_holds_one_video(self, bench, kinds, outcome):
        lost = [outcome("unusable-video", 19, 21, WHOLE, "its decoder was killed by SIGKILL") for _ in range(2)]
        (line,), _ = bench.check(lost, [bench.Kill("decoding process", 20.0, 1.0)], kinds)
        assert "held one video" in line


def test_the_ingress_has_logged_each_answer_once(bench, kinds, outcome):
    line = "INFO 2026 zar_ingress x -- request soak-0-1 POST /v1/classify 200 0.100 s\n"
    ok = outcome("ok", status=200)
    assert bench.check_logs([ok], [], kinds, line) == []
    assert "[200, 200]" in bench.check_logs([ok], [], kinds, 2 * line)[0]
    assert "nothing" in bench.check_logs([ok], [], kinds, "")[0]
    assert "[504]" in bench.check_logs([ok], [], kinds, line.replace("200", "504"))[0]
    assert bench.check_logs([ok], [bench.Kill("ingress", 11.5, 2.0)], kinds, "") == []
    assert bench.check_logs([outcome("replica-lost"), outcome("ok", kind="half a head")], [], kinds, "") == []


def test_growth_is_of_the_second_half_of_the_longest_life(bench):
    lives = [(1, 0, 100), (1, 500, 200), (1, 1000, 210), (2, 1000, 100), (2, 1100, 900)]
    samples = [bench.Sample("model", pid, requests, size) for pid, requests, size in lives]
    assert bench.growth_of(samples) == {"model": bench.Growth(20.0, 500)}
    assert bench.growth_of(samples[:1]) == {}


def test_kinds_are_made_alike_by_the_same_chance(traffic, kinds, tmp_path):
    site = traffic.Site(1, 1000, "t", traffic.make_files(tmp_path))
    for kind in kinds.values():
        assert kind.make(site, random.Random(3), "a") == kind.make(site, random.Random(3), "a")
        assert kind.make(site, random.Random(3), "a").parts


def test_mistakes_are_one_line(bench, capsys):
    assert bench.main(["--targets", "proxy", "cat"]) == 1
    assert capsys.readouterr().err == (
        "bench: --targets: there is no cat; there are decoding process, decoder, model, ingress, proxy\n"
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("minutes", "pause", "kills"),
    # Where all tests run, what was killed may take twenty seconds to be back.
    [(0.5, 3, 1), pytest.param(2, 12, 2, marks=pytest.mark.stress)],
    ids=["short", "two minutes"],
)
def test_it_adds_up(repository, tmp_path, minutes, pause, kills):
    file = tmp_path / "soak.json"
    words = f"--minutes {minutes} --rate 2.5 --kill-every {pause} --json {file}"
    command = [sys.executable, "bench/soak.py", *words.split()]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, timeout=550)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(file.read_text())
    assert report["wrong"] == []
    assert len(report["kills"]) >= kills
    assert sum(count for answers in report["answers"].values() for count in answers.values()) > 100 * minutes
