"""What Ray Serve's proxy finds in its environment where `serve run` starts Ray."""

from __future__ import annotations

import os

import pytest

from zar_ray.serving.front import prepare_environment
from zar_ray.serving.options import ServeConfig


@pytest.fixture
def environment(monkeypatch):
    """That of a user who has said nothing."""
    monkeypatch.setattr(os, "environ", {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "ZAR_"))})
    return os.environ


def test_the_proxy_has_the_services_limits(environment):
    limits = {"body_bytes": 12345, "concurrent": 3, "queued": 4, "streams": 2, "retry_after": 7, "head_seconds": 2.5}
    prepare_environment(ServeConfig(limits=limits))
    own = {name: value for name, value in environment.items() if name.startswith("ZAR_SERVE_")}
    assert own == {
        "ZAR_SERVE_BODY_BYTES": "12345",
        "ZAR_SERVE_REQUESTS": "9",
        "ZAR_SERVE_RETRY_AFTER": "7",
        "ZAR_SERVE_HEAD_SECONDS": "2.5",
    }
    assert environment["RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"] == "zar_ray.serving.proxy.middlewares"


def test_what_the_user_says_stays(environment):
    environment |= {"RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "3", "ZAR_SERVE_BODY_BYTES": "5"}
    said = dict(environment)
    prepare_environment(ServeConfig())
    assert {name: environment[name] for name in said} == said
    assert environment["RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD"] == "0"


def test_no_replica_waits_for_a_proxy_that_is_gone(environment):
    """For by default a second or more, in which it answers nobody; bench/recovery.py measures it."""
    prepare_environment(ServeConfig())
    assert environment["RAY_core_worker_rpc_server_reconnect_timeout_base_s"] == "0"
    assert int(environment["RAY_grpc_client_check_connection_status_interval_milliseconds"]) <= 100
