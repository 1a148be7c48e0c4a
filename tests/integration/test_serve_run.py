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

from zar_ray.serving.front import HA_PROXY, find_haproxy

pytestmark = pytest.mark.slow

PORT = 8000  # Ray Serve's, which `serve run` cannot change
BODY_BYTES = 24 * 2**20
HAPROXY = pytest.param("1", marks=pytest.mark.skipif(find_haproxy() is None, reason="there is no HAProxy"))


def in_front(value, folder):
    """The environment of a user who has said nothing, or that Ray Serve's own proxy is to be in front."""
    set_by_session = ("RAY_SERVE_", "ZAR_SERVE_", "RAY_ADDRESS")
    environment = {name: text for name, text in os.environ.items() if not name.startswith(set_by_session)}
    own = {} if value == "1" else {HA_PROXY: value}
    return {**environment, **own, "RAY_ADDRESS": "local", "RAY_TMPDIR": str(folder)}


def command(checkpoint):
    serve = Path(sys.executable).with_name("serve")
    return [serve, "run", "serve.app:app", f"checkpoint={checkpoint}", f"limits={{body_bytes: {BODY_BYTES}}}"]


def wait_until_ready(process, log):
    limit = time.monotonic() + 120
    while time.monotonic() < limit:
        assert process.poll() is None, log.read_text()
        try:
            if requests.get(f"http://127.0.0.1:{PORT}/readyz", timeout=5).status_code == 200:
                return
        except requests.RequestException:
            pass
        time.sleep(0.3)
    pytest.fail(log.read_text())


def listening_everywhere(processes):
    """The TCP addresses at which other machines reach HAProxy, or by HTTP one of the others, which are Ray's."""
    found = []
    for process in processes:
        for one in process.net_connections("inet"):
            if one.status != psutil.CONN_LISTEN or one.laddr.ip in ("127.0.0.1", "::1"):
                continue
            host = "127.0.0.1" if one.laddr.ip in ("0.0.0.0", "::") else one.laddr.ip
            if process.name() != "haproxy":
                try:
                    requests.get(f"http://{host}:{one.laddr.port}/", timeout=2)
                except requests.RequestException:
                    continue  # gRPC among Ray's processes
            found.append((" ".join(process.cmdline())[:60], one.laddr.ip, one.laddr.port))
    return found


def titles(processes):
    return {process.pid: " ".join(process.cmdline()) for process in processes}


@pytest.fixture(params=[HAPROXY, "0"], ids=["HAProxy", "Ray Serve's proxy"])
def started(request, tiny_checkpoint, repository, tmp_path):
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
            env=in_front(request.param, folder),
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
    try:
        wait_until_ready(process, log)
        yield process, request.param == "1"
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


def test_it_serves_this_machine_alone_and_ends_without_a_trace(started, make_video, tmp_path):
    process, has_haproxy = started
    everything = psutil.Process(process.pid).children(recursive=True)
    found = titles(everything)
    haproxies = [one for one in everything if Path(found[one.pid].split(" ")[0]).name == "haproxy"]
    assert len(haproxies) == has_haproxy
    folders = {one.cmdline()[one.cmdline().index("-f") + 1] for one in haproxies}

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

    of_service = [one for one in everything if "haproxy" in found[one.pid].lower() or "Proxy" in found[one.pid]]
    of_service += [one for one in everything if "ServeReplica" in found[one.pid]]
    assert len(of_service) >= 4
    assert listening_everywhere(of_service) == []

    watched = [one for one in of_service if "ingress" in found[one.pid] or "roxy" in found[one.pid]]
    (status, problem), grown, sent = send_a_gigabyte(watched)
    assert (status, problem["code"]) == (413, "body-too-large")
    # Ray Serve's proxy holds a body beside the ingress, and what is on its way between them.
    assert grown < (3 if has_haproxy else 6) * BODY_BYTES, f"{grown / 2**20:.0f} MiB more after {sent / 2**20:.0f} MiB"
    assert requests.get(f"http://127.0.0.1:{PORT}/readyz", timeout=30).status_code == 200

    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 0
    _, left = psutil.wait_procs(everything, timeout=15)
    assert not left, titles(left)
    assert not [folder for folder in folders if Path(folder).parents[1].exists()]


@pytest.mark.skipif(find_haproxy() is None, reason="there is no HAProxy")
def test_haproxy_in_the_environment_does_not_open_the_service_unnoticed(repository, tmp_path):
    """With it Ray Serve listens on every interface by default, whatever other host its default is set to."""
    code = (
        "import sys; sys.argv = ['serve']\n"
        "from zar_ray.serving import application\n"
        "application._require_host_was_told()\n"
    )
    environment = in_front("1", tmp_path) | {HA_PROXY: "1"}
    starts = {
        host: subprocess.Popen(
            [sys.executable, "-c", code],
            env=environment | ({"RAY_SERVE_DEFAULT_HTTP_HOST": host} if host else {}),
            cwd=repository,
            stderr=subprocess.PIPE,
            text=True,
        )
        for host in (None, "127.0.0.1", "0.0.0.0")
    }
    for host, process in starts.items():
        _, said = process.communicate(timeout=120)
        told = host == "0.0.0.0"
        assert (process.returncode == 0) == told, said
        assert told or f"{HA_PROXY}=1 in the environment opens the service to every machine" in said
