"""The client against a real HTTP server whose answers a test writes down beforehand."""

from __future__ import annotations

import json
import pickle
import socket
import subprocess
import sys
import threading
import time
from email.utils import formatdate

import pytest
from canned_service import ANSWER, JSON, MODEL, event, fine, form, problem, stream, window

import zar_ray.client.blocking
from zar_ray.client import Client, ServiceError
from zar_ray.errors import ConfigError, ZarError
from zar_ray.serving.schema import Classification, WindowResult


@pytest.fixture
def client(server):
    with Client(server.url, timeout=10) as client:
        yield client


@pytest.fixture
def video(tmp_path):
    path = tmp_path / "dänce.mp4"
    path.write_bytes(b"not\r\n--really a video\n")
    return path


@pytest.fixture
def waits(monkeypatch):
    """Seconds that the client would have waited."""
    waited = []
    monkeypatch.setattr(zar_ray.client.blocking.time, "sleep", waited.append)
    return waited


class TestClassify:
    def test_a_file_goes_with_its_name_and_the_parameters(self, server, client, video):
        server.answers.append(fine())
        answer = client.classify(
            video, ["zumba", "a, b"], template="a {}", method="zar", top_k=3, steps=2, seed=7, explain=True
        )
        assert answer == Classification.model_validate(ANSWER)
        (request,) = server.requests
        assert request.path == "/v1/classify"
        assert int(request.headers["Content-Length"]) == len(request.body)
        assert form(request) == [
            ("candidate_labels", None, b"zumba"),
            ("candidate_labels", None, b"a, b"),
            ("hypothesis_template", None, b"a {}"),
            ("method", None, b"zar"),
            ("top_k", None, b"3"),
            ("steps", None, b"2"),
            ("seed", None, b"7"),
            ("explain", None, b"true"),
            ("video", video.name, video.read_bytes()),
        ]

    def test_several_seeds_are_a_list(self, server, client, video):
        server.answers += [fine(), fine()]
        client.classify(video, ["zumba"], seeds=(3, 0))
        assert form(server.requests[0])[1:3] == [("seeds", None, b"3"), ("seeds", None, b"0")]
        client.classify("there/a.mp4", ["zumba"], seeds=[0, 1], on_server=True)
        assert json.loads(server.requests[1].body)["seeds"] == [0, 1]

    def test_what_is_not_given_is_the_service_s(self, server, client, video):
        server.answers.append(fine())
        client.classify(str(video), label_set="ucf101")
        assert [name for name, _, _ in form(server.requests[0])] == ["label_set", "video"]

    @pytest.mark.parametrize("of", ["classify", "classify_windows"])
    def test_what_nobody_knows_is_not_asked(self, server, client, video, of):
        with pytest.raises(TypeError, match="unexpected arguments: metod"):
            list(getattr(client, of)(video, ["zumba"], metod="zar"))
        assert server.requests == []

    def test_a_lone_label_with_a_comma_stays_one(self, server, client, video):
        from zar_ray.serving.options import LimitConfig
        from zar_ray.serving.queries import split_labels

        server.answers.append(fine())
        client.classify(video, ['run, then "jump"'])
        (_, _, sent), _ = form(server.requests[0])
        assert split_labels([sent.decode()], LimitConfig()) == ('run, then "jump"',)

    def test_an_open_file(self, server, client, video):
        server.answers.append(fine())
        with video.open("rb") as file:
            client.classify(file, ["zumba"])
            assert not file.closed
        assert form(server.requests[0])[-1] == ("video", video.name, video.read_bytes())

    def test_a_path_on_the_server(self, server, client):
        server.answers.append(fine())
        client.classify("there/a.mp4", ["zumba", "yoga"], seed=1, on_server=True)
        assert server.requests[0].headers["Content-Type"] == JSON
        sent = json.loads(server.requests[0].body)
        assert sent == {"path": "there/a.mp4", "candidate_labels": ["zumba", "yoga"], "seed": 1}

    @pytest.mark.process
    def test_a_large_file_is_not_read_into_memory(self, server, client, tmp_path):
        path = tmp_path / "large.mp4"
        with path.open("wb") as file:
            file.truncate(64 * 2**20)
        script = (
            "import sys, resource; from zar_ray.client import Client\n"
            "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
            "Client(sys.argv[1]).classify(sys.argv[2], ['a'])\n"
            "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
        )
        server.answers.append(fine())
        done = subprocess.run(
            [sys.executable, "-c", script, server.url, str(path)], capture_output=True, text=True, check=True
        )
        assert len(server.requests[0].body) > 64 * 2**20
        assert int(done.stdout) < 16 * 2**10

    def test_the_token_goes_along(self, server, video):
        server.answers.append(fine())
        with Client(server.url + "/", token="s3cret") as client:
            client.classify(video, ["zumba"])
        assert server.requests[0].headers["Authorization"] == "Bearer s3cret"

    def test_beneath_a_prefix(self, server, video):
        server.answers.append(fine())
        with Client(f"{server.url}/zar/") as client:
            client.classify(video, ["zumba"])
        assert server.requests[0].path == "/zar/v1/classify"


class TestOtherQuestions:
    def test_models_and_labels(self, server, client):
        server.answers += [fine({"models": [MODEL]}), fine({"label_sets": [{"name": "x", "labels": ["a", "b"]}]})]
        assert client.models().models[0].name == "tiny"
        assert client.labels().label_sets[0].labels == ("a", "b")
        assert [request.path for request in server.requests] == ["/v1/models", "/v1/labels"]

    def test_ready(self, server, client, waits):
        server.answers += [
            problem("not-ready", **{"Retry-After": "1"}),
            fine({"status": "ready"}),
            problem("internal-error", 500),
        ]
        assert client.ready() is False
        assert client.ready() is True
        with pytest.raises(ServiceError, match="500 internal-error"):
            client.ready()
        assert not waits

    def test_what_does_not_listen_yet_is_not_ready(self):
        with socket.create_server(("127.0.0.1", 0)) as taken:
            url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with Client(url) as client:
            assert client.ready() is False

    @pytest.mark.parametrize("proxy", ["http://127.0.0.1:1", "socks5://127.0.0.1:1"])
    def test_proxies_are_for_other_machines(self, server, monkeypatch, proxy):
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, proxy)
        server.answers.append(fine({"status": "ready"}))
        with Client(server.url) as client:
            assert client.ready() is True


class TestErrors:
    def test_a_problem_document(self, server, client, video):
        server.answers.append(problem("unusable-video", 422, "empty file"))
        with pytest.raises(ServiceError) as caught:
            client.classify(video, ["zumba"])
        error = caught.value
        assert (error.status, error.code, error.detail) == (422, "unusable-video", "empty file")
        assert (error.request_id, error.retry_after) == ("r9", None)
        assert str(error) == f"{server.url}: empty file (422 unusable-video, request r9)"
        assert isinstance(error, ZarError)
        copy = pickle.loads(pickle.dumps(error))
        assert (str(copy), copy.code, copy.status) == (str(error), error.code, error.status)

    @pytest.mark.parametrize(
        ("answer", "said"),
        [
            ((502, {"Content-Type": "text/html"}, [b"<html>Bad Gateway"]), "answered 502"),
            (fine({"models": []}), "not what this version of the client knows"),
            (fine({**ANSWER, "steps": "many"}), "(steps: "),
            ((307, {"Location": "http://elsewhere.invalid/"}, []), "answered 307"),
        ],
    )
    def test_answers_of_something_else(self, server, client, video, answer, said):
        server.answers.append(answer)
        with pytest.raises(ServiceError, match=r"unexpected-answer") as caught:
            client.classify(video, ["zumba"])
        assert said in str(caught.value)
        assert "\n" not in str(caught.value)
        assert len(server.requests) == 1

    def test_nothing_answers(self, video):
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            url = f"http://127.0.0.1:{taken.getsockname()[1]}"
            with Client(url.replace("//", "//me:s3cret@")) as client, pytest.raises(ServiceError) as caught:
                client.classify(video, ["zumba"])
        assert caught.value.status is None
        assert caught.value.code == "unreachable"
        said = str(caught.value)
        assert "nothing answers there" in said
        assert "make serve" in said
        assert "\n" not in said
        assert "s3cret" not in said

    def test_no_answer_in_time(self, server, video):
        done = threading.Event()
        server.answers.append((200, {}, [done.wait]))
        with Client(server.url, timeout=0.2) as client, pytest.raises(ServiceError, match=r"0\.2 s") as caught:
            client.classify(video, ["zumba"])
        assert caught.value.code == "timeout"
        done.set()

    def test_a_refusal_before_all_is_sent(self, tmp_path):
        """What the service says of a body that it does not read to its end comes through."""
        path = tmp_path / "large.mp4"
        with path.open("wb") as file:
            file.truncate(32 * 2**20)
        _, headers, (content,) = problem("body-too-large", 413, "larger than 4 bytes")
        head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())

        def refuse(listener):
            connection, _ = listener.accept()
            with connection:
                connection.recv(2**16)
                connection.sendall(
                    f"HTTP/1.1 413 X\r\n{head}Content-Length: {len(content)}\r\nConnection: close\r\n\r\n".encode()
                    + content
                )
                connection.shutdown(socket.SHUT_WR)
                # as a server that drains a little before it hangs up; an abrupt one may take its answer back
                while connection.recv(2**20):
                    pass

        with socket.create_server(("127.0.0.1", 0)) as listener:
            thread = threading.Thread(target=refuse, args=(listener,), daemon=True)
            thread.start()
            url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            with Client(url) as client, pytest.raises(ServiceError) as caught:
                client.classify(path, ["zumba"])
            thread.join(10)
        assert caught.value.code == "body-too-large"

    def test_a_missing_file_is_python_s_own_error(self, server, client, tmp_path):
        with pytest.raises(FileNotFoundError):
            client.classify(tmp_path / "none.mp4", ["zumba"])
        assert not server.requests

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            ({}, "either labels or"),
            ({"labels": ["a"], "label_set": "b"}, "either labels or"),
            ({"labels": "a,b"}, "rather than one string"),
            ({"labels": ["a\udcff"]}, "cannot be sent: .*surrogates"),
            ({"labels": ["a"], "options": {"lr": float("nan")}}, "cannot be sent: Out of range float"),
            ({"labels": ["a"], "options": {"rates": {1}}}, "cannot be sent: .*set is not JSON"),
        ],
    )
    @pytest.mark.parametrize("on_server", [False, True])
    def test_questions_that_cannot_be(self, client, video, arguments, said, on_server):
        with pytest.raises(ConfigError, match=said):
            client.classify(video, **arguments, on_server=on_server)

    def test_a_name_that_is_no_text(self, server, client, video, tmp_path):
        strange = tmp_path / "a\udcff.mp4"
        strange.write_bytes(video.read_bytes())
        server.answers.append(fine())
        client.classify(strange, ["zumba"])
        assert "udcff.mp4" in str(server.requests[-1].body)
        with pytest.raises(ConfigError, match="cannot be sent"):
            client.classify(strange, ["zumba"], on_server=True)

    @pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://a/b", "http://", "http://a:b:c", "file:///etc/passwd"])
    def test_urls_that_cannot_be(self, url):
        with pytest.raises(ConfigError, match="is no URL"):
            Client(url)

    @pytest.mark.parametrize("token", ["", "a b", "a\nb", "ä"])
    def test_tokens_that_cannot_be(self, token):
        with pytest.raises(ConfigError) as caught:
            Client("http://127.0.0.1:8000", token=token)
        assert not token or token not in str(caught.value)


class TestRetries:
    def test_comes_back_when_it_was_told_to(self, server, client, video, waits):
        refusal = problem(**{"Retry-After": "2"})
        server.answers += [refusal, refusal, fine()]
        assert client.classify(video, ["zumba"]).request_id == "r1"
        assert len({bytes(form(request)[-1][2]) for request in server.requests}) == 1
        assert len(waits) == 2
        assert all(2 <= wait <= 2.5 for wait in waits)

    def test_not_for_ever(self, server, client, video, waits):
        server.answers += [problem(**{"Retry-After": "2"})] * 4
        with pytest.raises(ServiceError) as caught:
            client.classify(video, ["zumba"])
        assert (caught.value.status, caught.value.retry_after) == (503, 2)
        assert len(server.requests) == 4
        assert len(waits) == 3

    def test_a_date(self, server, client, video, waits):
        server.answers += [problem(**{"Retry-After": formatdate(time.time() + 5, usegmt=True)}), fine()]
        client.classify(video, ["zumba"])
        assert 3 < waits[0] < 6.5

    @pytest.mark.parametrize(
        "answer",
        [
            problem("overloaded", 503),
            problem("overloaded", 503, **{"Retry-After": "3600"}),
            problem("overloaded", 503, **{"Retry-After": "soon"}),
            problem("internal-error", 500, **{"Retry-After": "1"}),
            problem("timeout", 504, **{"Retry-After": "1"}),
            problem("invalid-parameters", 422, **{"Retry-After": "1"}),
        ],
    )
    def test_nothing_else_is_sent_twice(self, server, client, video, waits, answer):
        server.answers.append(answer)
        with pytest.raises(ServiceError):
            client.classify(video, ["zumba"])
        assert len(server.requests) == 1
        assert not waits

    def test_a_pipe_is_not_sent_twice(self, server, client, waits):
        class Pipe:
            name = "a.mp4"

            def __init__(self):
                self.chunks = [b"one", b"two"]

            def seekable(self):
                return False

            def read(self, _size=-1):
                return self.chunks.pop(0) if self.chunks else b""

        server.answers.append(problem(**{"Retry-After": "1"}))
        with pytest.raises(ServiceError):
            client.classify(Pipe(), ["zumba"])
        assert form(server.requests[0])[-1] == ("video", "a.mp4", b"onetwo")
        assert not waits

    def test_none_wanted(self, server, video, waits):
        server.answers.append(problem(**{"Retry-After": "1"}))
        with Client(server.url, retries=0) as client, pytest.raises(ServiceError):
            client.classify(video, ["zumba"])
        assert not waits


class TestWindows:
    def test_each_comes_as_soon_as_it_is_there(self, server, client, video):
        go_on = threading.Event()
        server.answers.append(
            stream(event("window", window(0)), go_on.wait, event("window", window(1)), event("end", {"windows": 2}))
        )
        found = client.classify_windows(video, ["zumba"], window=2.0, stride=1.0)
        assert next(found) == WindowResult.model_validate(window(0))
        go_on.set()
        assert [one.number for one in found] == [1]
        assert server.requests[0].path == "/v1/classify:stream"
        sent = {name: content for name, _, content in form(server.requests[0])}
        assert (sent["window"], sent["stride"]) == (b"2.0", b"1.0")

    @pytest.mark.parametrize("size", [1, 7, 1000])
    @pytest.mark.parametrize("end", ["\n", "\r\n"])
    def test_in_any_pieces(self, server, client, video, size, end):
        """A comment, a field that nobody knows, and labels with signs at which str.splitlines would cut."""
        whole = b": hello" + end.encode() + b"id: 4" + end.encode() * 2
        whole += event("window", window(0), end) + event("end", {"windows": 1}, end)
        server.answers.append(stream(*(whole[start : start + size] for start in range(0, len(whole), size))))
        (found,) = client.classify_windows(video, ["zumba"])
        assert found.result.after[1].label == "yoga\u2028\x85"

    def test_an_error_ends_it(self, server, client, video):
        document = json.loads(problem("replica-lost", 503, "gone")[2][0])
        server.answers.append(stream(event("window", window(0)), event("error", document)))
        found = client.classify_windows(video, ["zumba"])
        assert next(found).number == 0
        with pytest.raises(ServiceError) as caught:
            next(found)
        assert (caught.value.code, caught.value.status, caught.value.detail) == ("replica-lost", 503, "gone")

    @pytest.mark.parametrize(
        "chunks",
        [
            [event("window", window(0))],
            [event("window", window(0)), event("end", {"windows": 1}).rstrip()],
            [event("window", window(0)), event("end", {"windows": 2})],
        ],
    )
    def test_without_its_end_it_was_cut_off(self, server, client, video, chunks):
        server.answers.append(stream(*chunks))
        found = client.classify_windows(video, ["zumba"])
        next(found)
        with pytest.raises(ServiceError, match="cut off after 1 windows") as caught:
            next(found)
        assert (caught.value.code, caught.value.request_id) == ("stream-cut", "r5")

    def test_a_connection_that_breaks(self, server, client, video):
        def break_off():
            raise ConnectionAbortedError

        server.answers.append(stream(event("window", window(0)), break_off))
        found = client.classify_windows(video, ["zumba"])
        next(found)
        with pytest.raises(ServiceError, match="the connection broke"):
            next(found)

    def test_refused_as_a_whole(self, server, client, video):
        server.answers.append(problem("video-too-large", 422, "two hours"))
        with pytest.raises(ServiceError, match="two hours"):
            next(client.classify_windows(video, ["zumba"]))

    def test_a_path_on_the_server(self, server, client):
        server.answers.append(stream(event("end", {"windows": 0})))
        assert list(client.classify_windows("a.mp4", label_set="x", window=4, on_server=True)) == []
        assert json.loads(server.requests[0].body) == {"path": "a.mp4", "label_set": "x", "window": 4}


@pytest.mark.process
def test_loads_neither_ray_nor_pytorch():
    program = "import sys, zar_ray.client; print({'ray', 'torch', 'fastapi', 'open_clip', 'av'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
