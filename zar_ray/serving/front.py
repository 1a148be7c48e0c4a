"""What Ray Serve's own HTTP proxy, which stands in front of the service, must find in its environment.

It counts for a Ray that is started after it; a cluster's is set where ``ray start`` runs (docs/service.md).
"""

from __future__ import annotations

import os

from zar_ray.serving import proxy
from zar_ray.serving.options import ServeConfig

# Serve replaces a proxy that has failed three checks; by default there is one in ten seconds.
_OF_RAY_SERVE = {
    "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "0.1",
    # A replica that has an answer for a proxy which is gone does nothing else until Ray has looked whether it is: by
    # default a second later, when the new proxy's requests already wait.
    "RAY_grpc_client_check_connection_status_interval_milliseconds": "100",
    "RAY_core_worker_rpc_server_reconnect_timeout_base_s": "0",
    # A replica's code and its router in Ray Serve's own event loop: fewer changes of thread.
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
    proxy.CALLBACK_VARIABLE: proxy.CALLBACK,
}


def prepare_environment(config: ServeConfig) -> None:
    """Sets the environment of a Ray that is started next, for one ingress replica; what is set already stays.

    Args:
        config: The service's options.
    """
    limits = config.limits
    own = {
        proxy.BODY_VARIABLE: limits.body_bytes,
        proxy.REQUESTS_VARIABLE: limits.concurrent + limits.queued + limits.streams,
        proxy.RETRY_VARIABLE: limits.retry_after,
        proxy.HEAD_VARIABLE: limits.head_seconds,
    }
    for variable, value in {**_OF_RAY_SERVE, **own}.items():
        os.environ.setdefault(variable, str(value))
