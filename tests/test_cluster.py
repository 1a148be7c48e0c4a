"""A cluster that cannot be joined, or started, is told in seconds and in one line; nothing here starts Ray."""

from __future__ import annotations

import contextlib
import functools
import os
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import grpc
import pytest

from zar_ray import cluster
from zar_ray.cluster import LOCAL, connected, doubt, problem_of, require_cluster
from zar_ray.commands.main import main
from zar_ray.errors import RunError

SECONDS = 10


@pytest.fixture(autouse=True)
def place(monkeypatch) -> Iterator[Path]:
    """A folder of Ray's own that is empty; no address is named, and no other test's Ray is seen."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    with tempfile.TemporaryDirectory(prefix="zar-", dir="/tmp") as folder:
        monkeypatch.setenv("RAY_TMPDIR", folder)
        monkeypatch.setattr("ray._private.services.find_gcs_addresses", functools.cache(frozenset))
        # What a head on this machine is reached by, which here listens on loopback alone.
        monkeypatch.setattr("ray._private.services.get_node_ip_address", lambda: "127.0.0.1")
        monkeypatch.setattr(cluster, "find_node_ids", lambda: {"a node's"})
        yield Path(folder)


@pytest.fixture
def joined(monkeypatch) -> list[str]:
    """What would have been joined or started."""
    places: list[str] = []
    monkeypatch.setattr(cluster, "_join_or_start", places.append)
    monkeypatch.setattr(cluster, "_head_watched", contextlib.nullcontext)
    return places


def closed_port(family: socket.AddressFamily = socket.AF_INET) -> int:
    with socket.socket(family) as listener:
        listener.bind(("::1" if family == socket.AF_INET6 else "127.0.0.1", 0))
        return listener.getsockname()[1]


def leave_behind(place: Path, address: str) -> Path:
    file = place / "ray" / "ray_current_cluster"
    file.parent.mkdir()
    file.write_text(address)
    return file


@contextlib.contextmanager
def head(delay: float = 0.0, method: str = "GetClusterId") -> Iterator[str]:
    """What answers as a Ray head does, after a while."""

    def answer(request: bytes, _: grpc.ServicerContext) -> bytes:
        time.sleep(delay)
        return b""

    server = grpc.server(ThreadPoolExecutor(1))
    handlers = {method: grpc.unary_unary_rpc_method_handler(answer)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("ray.rpc.NodeInfoGcsService", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None)


@contextlib.contextmanager
def listening(answers: bool) -> Iterator[str]:
    """What takes connections and never says a word, or speaks another language."""
    if answers:
        with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            yield f"127.0.0.1:{server.server_port}"
            server.shutdown()
        return
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        yield f"127.0.0.1:{silent.getsockname()[1]}"


def refused(address: str | None = None) -> str:
    started = time.monotonic()
    with pytest.raises(RunError) as caught, connected(address):
        pass
    assert time.monotonic() - started < SECONDS
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("how", ["option", "environment"])
@pytest.mark.parametrize(
    ("form", "said"),
    [
        ("127.0.0.1:{port}", "nothing answers there"),
        ("localhost:{port}", "nothing answers there"),
        ("ray://127.0.0.1:{port}", "nothing answers there"),
        ("[::1]:{port}", "nothing answers there"),
        ("ray://[::1]:{port}", "nothing answers there"),
        ("auto", "nothing answers there"),
        ("http://127.0.0.1:{port}", "takes jobs, with `ray job submit --address http://127.0.0.1:"),
        ("https://head", "takes jobs, with `ray job submit --address https://head --"),
        ("127.0.0.1", "is no address"),
        ("ray://127.0.0.1", "is no address"),
        ("127.0.0.1:0", "is no address"),
        ("127.0.0.1:99999", "is no address"),
        ("127.0.0.1:port", "is no address"),
        ("ray://:{port}", "is no address"),
        ("nonsense", "is no address"),
    ],
)
def test_a_dead_address_is_told_soon(form, said, how, joined, monkeypatch):
    named = form.format(port=closed_port())
    if how == "environment":
        monkeypatch.setenv("RAY_ADDRESS", named)
    message = refused(named if how == "option" else None)
    assert message.startswith(f"Ray: {named}: {said}")
    assert message.endswith(
        "start it with `ray start --head`, or name another, or `local`, with --address or RAY_ADDRESS"
    )
    assert joined == []


def test_a_stale_address_file_is_told_and_passed_over(place, joined, capsys):
    dead = f"127.0.0.1:{closed_port()}"
    file = leave_behind(place, dead)
    with connected():
        pass
    assert joined == [LOCAL]
    said = capsys.readouterr().err
    assert said.startswith(f"zar: {file} names {dead}: nothing answers there")
    assert said.endswith("; a Ray of its own is started\n")
    assert said.count("\n") == 1
    with pytest.raises(RunError, match=f"{file} names {dead}: nothing answers there"):
        require_cluster(fall_back=False)
    assert refused("auto").startswith("Ray: auto: nothing answers there")
    # An empty one is none, and what is named goes before it.
    file.write_text("")
    with connected():
        pass
    assert (joined, capsys.readouterr().err) == ([LOCAL, LOCAL], "")


@pytest.mark.parametrize("words", [["eval", "--dataset", "/nowhere"], ["ablate"], ["train"]])
def test_commands_tell_it_before_they_read_anything(words, monkeypatch, capsys):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    assert main(words) == 1
    assert capsys.readouterr().err.startswith("zar: Ray: 127.0.0.1:1: nothing answers there")


@pytest.mark.parametrize("variable", ["RAY_TMPDIR", "TMPDIR"])
@pytest.mark.parametrize("address", [None, LOCAL])
def test_a_long_folder_for_temporary_files_is_told(place, variable, address, joined, monkeypatch):
    monkeypatch.delenv("RAY_TMPDIR")
    long = f"{place}/".ljust(90, "x")
    Path(long).mkdir()
    monkeypatch.setenv(variable, long)
    assert refused(address) == (
        f"Ray: local: {long}/ray is too long a path for Ray's sockets; set RAY_TMPDIR to a shorter one, such as /tmp"
    )
    # One that exists is joined all the same: its sockets are where it was started.
    with head() as alive, connected(alive):
        pass
    assert joined == [alive]


def test_a_folder_that_ray_can_use_is_not_refused(place, monkeypatch):
    session = len(f"/ray/session_2000-01-01_00-00-00_000000_{os.getpid()}/sockets/plasma_store")
    for spare, problem in ((0, False), (1, True)):
        monkeypatch.setenv("RAY_TMPDIR", f"{place}/".ljust(107 - session + spare, "x"))
        assert (problem_of(LOCAL) is not None) == problem


@pytest.mark.slow
def test_a_live_head_is_joined_however_slow(place, joined, capsys, monkeypatch):
    # Longer than one waits for what does not even greet.
    monkeypatch.setattr(cluster, "_GREETING_SECONDS", 0.4)
    with head(delay=0.7) as alive:
        leave_behind(place, alive)
        with connected():
            pass
        # What the environment says of proxies is not for Ray.
        monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
        monkeypatch.setenv("RAY_ADDRESS", alive)
        with connected():
            pass
        with connected("anyones://own"):
            pass
        assert joined == [alive, alive, "anyones://own"]
        assert capsys.readouterr().err == ""
        monkeypatch.setattr(cluster, "find_node_ids", set)
        assert "a cluster without a node on this machine" in refused(alive)


@pytest.mark.slow
@pytest.mark.parametrize("answers", [False, True])
def test_what_takes_connections_and_is_no_head_is_given_up(answers, joined, monkeypatch):
    monkeypatch.setattr(cluster, "_GREETING_SECONDS", 0.6)
    with listening(answers) as address:
        assert "takes connections, and does not answer as a Ray head does" in refused(address)
    with head(method="Another") as address:
        assert "takes connections, and does not answer as a Ray head does" in refused(address)
    assert joined == []


@pytest.mark.skipif(sys.platform != "linux", reason="all of 127.0.0.0/8 is loopback on Linux alone")
def test_connections_to_hosts_in_doubt_are_asked_after_by_the_kernel_and_no_others():
    """Also those that were made by IPv6, as gRPC's are."""
    with ExitStack() as opened:
        server = opened.enter_context(socket.create_server(("0.0.0.0", 0)))
        port = server.getsockname()[1]
        gone, well = (opened.enter_context(socket.create_connection((f"127.0.0.{n}", port))) for n in (2, 3))
        mapped = opened.enter_context(socket.socket(socket.AF_INET6))
        mapped.connect(("::ffff:127.0.0.2", port))
        doubt({"127.0.0.2", "127.0.0.9"})

        def asked(one: socket.socket) -> tuple[int, bool]:
            seconds = one.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE)
            return one.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE), seconds < 5

        assert [asked(one) for one in (gone, well, mapped)] == [(1, True), (0, False), (1, True)]
        gone.sendall(b"it still works")
