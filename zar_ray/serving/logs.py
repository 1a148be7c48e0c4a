"""What the deployments have in common: what they log and where to, and how often they are looked after."""

from __future__ import annotations

import logging

from zar_ray.serving.problems import RequestError

# Each deployment logs a request once, with its id; Ray Serve's lines would say no more.
QUIET = {"enable_access_log": False}
# Ray Serve replaces a replica that died when it next looks; by default it looks every ten seconds.
CHECK_SECONDS = 1.0

logger = logging.getLogger("zar_ray.serving")


def log_to_serve() -> None:
    """Ray Serve's log files take the service's lines too; without this they would go nowhere."""
    logger.setLevel(logging.INFO)
    for handler in logging.getLogger("ray.serve").handlers:
        # Models say what fits into memory.
        for one in (logger, logging.getLogger("zar_ray.models")):
            if handler not in one.handlers:
                one.addHandler(handler)


def log_stage(request_id: str, stage: str, seconds: float, limit: float, outcome: object = None) -> None:
    """Logs a stage of a request: what became of it, and loudly where it failed or took more than half of its time.

    Args:
        request_id: The request.
        stage: The stage.
        seconds: What it took, waiting included.
        limit: What it may take.
        outcome: A `RequestError` if it failed.
    """
    code = outcome.code if isinstance(outcome, RequestError) else "late" if seconds > limit / 2 else "ok"
    level = logging.INFO if code == "ok" else logging.WARNING
    logger.log(level, "request %s %s: %s after %.3f s", request_id, stage, code, seconds)
