"""What the deployments have in common: what they log and where to, and how often they are looked after."""

from __future__ import annotations

import logging

# The ingress logs each request once, with its id; a line more a hop would cost some milliseconds and say no more.
QUIET = {"enable_access_log": False}
# Ray Serve replaces a replica that died when it next looks; by default it looks every ten seconds.
CHECK_SECONDS = 1.0

logger = logging.getLogger("zar_ray.serving")


def log_to_serve() -> None:
    """Ray Serve's log files take the service's lines too; without this they would go nowhere."""
    logger.setLevel(logging.INFO)
    for handler in logging.getLogger("ray.serve").handlers:
        if handler not in logger.handlers:
            logger.addHandler(handler)
