"""What the deployments log, and where to."""

from __future__ import annotations

import logging

# The ingress logs each request once, with its id; a line more a hop would cost some milliseconds and say no more.
QUIET = {"enable_access_log": False}

logger = logging.getLogger("zar_ray.serving")


def log_to_serve() -> None:
    """Ray Serve's log files take the service's lines too; without this they would go nowhere."""
    logger.setLevel(logging.INFO)
    for handler in logging.getLogger("ray.serve").handlers:
        if handler not in logger.handlers:
            logger.addHandler(handler)
