"""HAProxy in front of the service: only this machine hears of it, and it does not outlive what it is for."""

from __future__ import annotations

import os
import re
import resource
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from zar_ray.errors import ConfigError
from zar_ray.serving import front, haproxy_launcher
from zar_ray.serving.front import HA_PROXY, find_haproxy, prepare_environment
from zar_ray.serving.haproxy_launcher import on_loopback
from zar_ray.serving.options import ServeConfig

needs_haproxy = pytest.mark.skipif(find_haproxy() is None, reason="there is no HAProxy")
PATHS = (
    "CONFIG_FILE_LOC",
    "SOCKET_PATH",
    "METRICS_SOCKET_PATH",
    "SERVER_STATE_BASE",
    "SERVER_STATE_FILE",
    "LOG_TARGET",
)


@pytest.fixture
def environment(monkeypatch):
    """That of a user who has said nothing."""
    monkeypatch.setattr(os, "environ", {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "ZAR_"))})
    return os.environ


def rendered(host):
    """Ray Serve's own configuration, with a number wherever it fills something in."""
    from ray.serve._private.haproxy_templates import HAPROXY_CONFIG_TEMPLATE

    text = HAPROXY_CONFIG_TEMPLATE.replace("{{ config.frontend_host }}", host)
    return re.sub(r"{%.*?%}", "", re.sub(r"{{.*?}}", "4711", text))


@pytest.mark.parametrize("host", ["127.0.0.1", "*", "192.0.2.7"])
def test_statistics_are_for_this_machine_and_the_service_for_whom_it_was(host):
    before, after = rendered(host).splitlines(), on_loopback(rendered(host)).splitlines()
    changed = [(one.strip(), other.strip()) for one, other in zip(before, after, strict=True) if one != other]
    assert changed == [("bind :4711", "bind 127.0.0.1:4711"), ("bind *:4711", "bind 127.0.0.1:4711")]
    assert f"    bind {host}:4711" in after
    again = "\n".join(after)
    assert on_loopback(again).splitlines() == after


def test_a_configuration_of_another_kind_is_not_taken_for_safe():
    with pytest.raises(ValueError, match="listen stats"):
        on_loopback(rendered("*").replace("listen stats", "frontend stats"))
    with pytest.raises(ValueError, match="nothing says where frontend prometheus listens"):
        on_loopback(rendered("*").replace("bind :4711", "bind ipv4@:4711"))


@needs_haproxy
def test_each_service_has_files_and_ports_of_its_own(environment):
    prepare_environment(ServeConfig(limits={"body_bytes": 12345, "receive_seconds": 7.5}))
    assert environment[HA_PROXY] == "1"
    assert environment["ZAR_SERVE_BODY_BYTES"] == "12345"
    assert environment["RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S"] == "13"
    paths = [Path(environment[f"RAY_SERVE_HAPROXY_{name}"]) for name in PATHS]
    (folder,) = {path if path.is_dir() else path.parent for path in paths}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    launcher = Path(environment["RAY_SERVE_HAPROXY_BINARY_PATH"])
    assert launcher.parent == folder
    assert os.access(launcher, os.X_OK)
    ports = {environment[name] for name in environment if name.endswith("_PORT")}
    assert len(ports) == 3
    assert all(20_000 <= int(port) < 30_000 for port in ports), "not Ray's, and given to nobody who asks for any"


@needs_haproxy
@pytest.mark.parametrize(("seconds", "timeout"), [(0.2, "6"), (60, "65"), (1e9, "86405"), (float("inf"), "86405")])
def test_haproxy_can_wait_as_long_as_it_is_told(seconds, timeout, environment):
    prepare_environment(ServeConfig(limits={"receive_seconds": seconds}))
    assert environment["RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S"] == timeout


@needs_haproxy
@pytest.mark.parametrize(
    ("most", "connections"),
    [(resource.RLIM_INFINITY, "1024"), (20_000, "1024"), (2000, "950"), (1024, "462"), (300, None)],
)
def test_haproxy_opens_no_more_files_than_it_may(most, connections, environment, monkeypatch):
    """Otherwise it does not start."""
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, most))
    prepare_environment(ServeConfig())
    assert environment.get("RAY_SERVE_HAPROXY_MAXCONN") == connections
    assert (HA_PROXY in environment) == (connections is not None)


@pytest.mark.parametrize("host", ["192.0.2.7", "::", "localhost", None])
def test_haproxy_finds_no_ingress_elsewhere_than_on_loopback(host, environment):
    prepare_environment(ServeConfig(), host)
    assert not [name for name in environment if "HAPROXY" in name or "HA_PROXY" in name]


@needs_haproxy
def test_ray_serves_own_proxy_is_in_front_where_temporary_files_cannot_be_run(environment, monkeypatch):
    monkeypatch.setattr(front.os, "access", lambda path, mode: "zar-" not in str(path))
    prepare_environment(ServeConfig())
    assert not [name for name in environment if "HAPROXY" in name or "HA_PROXY" in name]
    assert environment["RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"] == "zar_ray.serving.proxy.middlewares"


@needs_haproxy
def test_sockets_have_short_enough_paths_wherever_temporary_files_are(environment, monkeypatch, tmp_path):
    monkeypatch.setattr(front.tempfile, "tempdir", str(tmp_path))
    prepare_environment(ServeConfig())
    node = "a" * 56
    path = Path(environment["RAY_SERVE_HAPROXY_SOCKET_PATH"])
    bound = f"{path.parent}/{node}/{path.name}.4194304.tmp"
    with socket.socket(socket.AF_UNIX) as one, pytest.raises(FileNotFoundError):  # not "AF_UNIX path too long"
        one.bind(bound)


def test_what_the_user_says_stays(environment):
    environment |= {HA_PROXY: "0", "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "1", "ZAR_SERVE_BODY_BYTES": "5"}
    said = dict(environment)
    prepare_environment(ServeConfig())
    assert {name: environment[name] for name in said} == said
    assert not [name for name in environment if "HAPROXY" in name]
    assert environment["RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD"] == "0"


def test_without_haproxy_ray_serves_own_proxy_is_in_front(environment, monkeypatch):
    monkeypatch.setattr(front, "find_haproxy", lambda: None)
    prepare_environment(ServeConfig())
    assert HA_PROXY not in environment
    assert environment["RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"] == "zar_ray.serving.proxy.middlewares"


@pytest.mark.parametrize("named", ["/nowhere/haproxy", "/tmp"])
def test_an_haproxy_that_cannot_be_run_is_named(environment, named):
    environment["RAY_SERVE_HAPROXY_BINARY_PATH"] = named
    with pytest.raises(ConfigError, match=f"RAY_SERVE_HAPROXY_BINARY_PATH={named}: is not a program"):
        prepare_environment(ServeConfig())


CONFIGURATION = """defaults
    mode http
    timeout connect 1s
    timeout client 1s
    timeout server 1s
frontend prometheus
    bind :{}
    http-request use-service prometheus-exporter
listen stats
    bind *:{}
    stats enable
"""
# Starts HAProxy as Ray Serve's manager does.
MANAGER = "import subprocess, sys; print(subprocess.Popen(sys.argv[1:]).pid, flush=True); input()"


@needs_haproxy
@pytest.mark.process
def test_it_ends_with_the_process_that_started_it(environment, tmp_path):
    prepare_environment(ServeConfig())
    ports = front._free_ports(2)
    file = tmp_path / "haproxy.cfg"
    file.write_text(CONFIGURATION.format(*ports))
    started = [environment["RAY_SERVE_HAPROXY_BINARY_PATH"], "-db", "-f", str(file)]
    with subprocess.Popen(
        [sys.executable, "-c", MANAGER, *started], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
    ) as manager:
        haproxy = psutil.Process(int(manager.stdout.readline()))
        limit = time.monotonic() + 20
        while len(found := [one for one in haproxy.net_connections("inet") if one.status == "LISTEN"]) < 2:
            assert time.monotonic() < limit, found
            time.sleep(0.05)
        assert sorted((one.laddr.ip, one.laddr.port) for one in found) == [
            ("127.0.0.1", port) for port in sorted(ports)
        ]
        assert [path.name for path in tmp_path.iterdir()] == ["haproxy.cfg"]
        manager.send_signal(signal.SIGKILL)
        haproxy.wait(timeout=20)


@pytest.mark.process
def test_it_does_not_start_for_a_process_that_is_gone(tmp_path):
    file = tmp_path / "haproxy.cfg"
    file.write_text(CONFIGURATION.format(1, 2))
    launched = [sys.executable, haproxy_launcher.__file__, "1", "/bin/true", "-f", str(file)]
    done = subprocess.run(launched, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "the process that started HAProxy has ended\n")


def test_a_configuration_that_is_not_understood_is_one_line(tmp_path):
    file = tmp_path / "haproxy.cfg"
    file.write_text("defaults\n")
    launched = [sys.executable, haproxy_launcher.__file__, "1", "/bin/true", "-f", str(file)]
    done = subprocess.run(launched, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert re.fullmatch(rf"{file}: nothing says where .* listens; with {HA_PROXY}=0 .*\n", done.stderr)
    assert file.read_text() == "defaults\n"
