"""`serve run`, as it is typed: what stands in front of the service, who may reach it, and what it leaves behind."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest
import requests

pytestmark = pytest.mark.slow

PORT = 8000  # Ray Serve's, which `serve run` cannot change
BODY_BYTES = 24 * 2**20


def nothing_said(folder):
    """The environment of a user who has said nothing."""
    set_by_session = ("RAY_SERVE_", "ZAR_SERVE_", "RAY_ADDRESS")
    environment = {name: text for name, text in os.environ.items() if not name.startswith(set_by_session)}
    return {**environment, "RAY_ADDRESS": "local", "RAY_TMPDIR": str(folder)}


def command(checkpoint):
    serve = Path(sys.executable).with_name("serve")
    return [serve, "run", "serve.app:app", f"checkpoint={checkpoint}", f"limits={{body_bytes: {BODY_BYTES}}}"]


def wait_until_ready(process, log):
    """Returns the statuses that came before it was ready."""
    limit, seen = time.monotonic() + 240, set()
    while time.monotonic() < limit:
        assert process.poll() is None, log.read_text()
        try:
            answer = requests.get(f"http://127.0.0.1:{PORT}/readyz", timeout=30)
            if answer.status_code == 200:
                return seen
            seen.add((answer.status_code, answer.json()["code"]))
        except requests.ConnectionError:
            pass
        time.sleep(0.1)
    pytest.fail(log.read_text())


def listening_everywhere(processes):
    """The TCP addresses at which other machines reach one of the processes by HTTP."""
    found = []
    for process in processes:
        for one in process.net_connections("inet"):
            if one.status != psutil.CONN_LISTEN or one.laddr.ip in ("127.0.0.1", "::1"):
                continue
            host = "127.0.0.1" if one.laddr.ip in ("0.0.0.0", "::") else one.laddr.ip
            try:
                requests.get(f"http://{host}:{one.laddr.port}/", timeout=2)
            except requests.RequestException:
                continue  # gRPC among Ray's processes
            found.append((" ".join(process.cmdline())[:60], one.laddr.ip, one.laddr.port))
    return found


def titles(processes):
    return {process.pid: " ".join(process.cmdline()) for process in processes}


@pytest.fixture
def started(tiny_checkpoint, repository, tmp_path):
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", PORT)) == 0:
            pytest.skip(f"something else listens on port {PORT}")
    # A socket's path may have 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="zar-ray-", dir="/tmp"))
    log = tmp_path / "log.txt"
    with log.open("w") as stream:
        process = subprocess.Popen(
            command(tiny_checkpoint),
            cwd=repository,
            env=nothing_said(folder),
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
    try:
        yield process, folder, wait_until_ready(process, log)
    finally:
        if process.poll() is None:
            everything = psutil.Process(process.pid).children(recursive=True)
            process.kill()
            process.wait()
            psutil.wait_procs(everything, timeout=30)
        shutil.rmtree(folder, ignore_errors=True)


def send_a_gigabyte(watched):
    """Sends a body of 1 GiB; returns the answer, the memory that the processes took meanwhile, and what was sent."""

    def memory():
        return sum(process.memory_info().rss for process in watched)

    before, peak, sent = memory(), 0, 0
    connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=60)
    connection.putrequest("POST", "/v1/classify")
    connection.putheader("Transfer-Encoding", "chunked")
    connection.putheader("Content-Type", "multipart/form-data; boundary=b")
    connection.endheaders()
    start = b'--b\r\nContent-Disposition: form-data; name="video"; filename="a.mp4"\r\n\r\n'
    connection.send(b"%x\r\n%s\r\n" % (len(start), start))
    chunk = b"%x\r\n%s\r\n" % (2**20, b"x" * 2**20)
    try:
        for _ in range(1024):
            connection.send(chunk)
            sent += 2**20
            peak = max(peak, memory())
    except (BrokenPipeError, ConnectionResetError):
        pass
    response = connection.getresponse()
    answer = response.status, json.loads(response.read())
    connection.close()
    return answer, peak - before, sent


def proxy_of(process):
    (proxy,) = [one for one in process.children(recursive=True) if "ProxyActor" in " ".join(one.cmdline())]
    return proxy


def kill_the_proxy(process):
    """Kills it; returns the seconds until the service answers again."""
    proxy, log = proxy_of(psutil.Process(process.pid)), Path("/dev/null")
    began = time.monotonic()
    proxy.kill()
    proxy.wait(10)
    assert wait_until_ready(process, log) <= {(503, "not-ready")}
    return time.monotonic() - began


def test_it_serves_this_machine_alone_and_ends_without_a_trace(started, make_video, tmp_path):
    process, folder, seen = started
    assert seen <= {(503, "not-ready")}, "while it starts"
    everything = psutil.Process(process.pid).children(recursive=True)
    found = titles(everything)

    with make_video(tmp_path / "a.mp4", frames=40).open("rb") as video:
        answer = requests.post(
            f"http://127.0.0.1:{PORT}/v1/classify",
            files={"video": video},
            data={"candidate_labels": ["a dog", "a cat"]},
            timeout=60,
        )
    assert answer.status_code == 200, answer.text

    cookie = {"Cookie": "a=" + 20_000 * "b"}  # of all that is on other ports of this machine
    assert requests.get(f"http://127.0.0.1:{PORT}/readyz", headers=cookie, timeout=30).status_code == 200
    for name in ("X-Request-ID", "X-Session-ID", "Serve-Multiplexed-Model-Id", "X-Request-Timeout-Seconds"):
        for value in (30_000 * "q", "ä".encode()):
            answer = requests.get(f"http://127.0.0.1:{PORT}/readyz", headers={name: value}, timeout=30)
            assert answer.status_code == 200
            assert len(answer.headers["x-request-id"]) == 32, "one"

    of_service = [one for one in everything if "Proxy" in found[one.pid] or "ServeReplica" in found[one.pid]]
    assert len(of_service) >= 4
    assert listening_everywhere(of_service) == []

    watched = [one for one in of_service if "ingress" in found[one.pid] or "Proxy" in found[one.pid]]
    (status, problem), grown, sent = send_a_gigabyte(watched)
    assert (status, problem["code"]) == (413, "body-too-large")
    # Ray Serve's proxy holds a body beside the ingress, and what is on its way between them.
    assert grown < 6 * BODY_BYTES, f"{grown / 2**20:.0f} MiB more after {sent / 2**20:.0f} MiB"
    assert requests.get(f"http://127.0.0.1:{PORT}/readyz", timeout=30).status_code == 200

    # Where Ray Serve looks every ten seconds, three times, it takes half a minute.
    assert kill_the_proxy(process) < 20
    everything = psutil.Process(process.pid).children(recursive=True)
    logs = [file for file in folder.rglob("*") if file.is_file() and file.suffix in (".log", ".out", ".err")]
    assert [file for file in logs if "proxy" in file.name]
    assert not [file.name for file in logs if b"q" * 100 in file.read_bytes()]

    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 0
    _, left = psutil.wait_procs(everything, timeout=15)
    assert not left, titles(left)
