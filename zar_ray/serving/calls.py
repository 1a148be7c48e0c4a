"""Calls from one deployment to another, and what it means that they fail."""

from __future__ import annotations

import asyncio
from typing import Any

from ray.exceptions import (
    NodeDiedError,
    ObjectLostError,
    RayActorError,
    RayError,
    RayTaskError,
    TaskCancelledError,
    WorkerCrashedError,
)
from ray.serve.exceptions import (
    BackPressureError,
    DeploymentUnavailableError,
    RayServeException,
    RequestCancelledError,
)

from zar_ray.serving.backend import Query
from zar_ray.serving.logs import logger
from zar_ray.serving.problems import RequestError

_LOST = (RayActorError, ObjectLostError, NodeDiedError, WorkerCrashedError)


async def in_time(awaited: Any, seconds: float, query: Query) -> Any:
    """What is awaited of another deployment.

    Args:
        awaited: Its response, or the next one of several.
        seconds: What it may take.
        query: What it is about.

    Raises:
        RequestError: It took longer (``timeout``), all replicas are busy (``overloaded``), or the one that worked on it
            ended (``replica-lost``).
    """
    try:
        return await asyncio.wait_for(awaited, seconds)
    except TimeoutError:
        raise RequestError("timeout", f"took longer than {seconds:g} s, waiting included") from None
    except BackPressureError:
        raise RequestError("overloaded") from None
    except (RayError, RayServeException) as error:
        cause = error.cause if isinstance(error, RayTaskError) else error
        # Where a model lacks its input because the decoder died, Ray Serve says so in an error of its own.
        if isinstance(cause, RayServeException) and isinstance(cause.__context__, RayActorError):
            cause = cause.__context__
        if isinstance(cause, (*_LOST, TaskCancelledError, DeploymentUnavailableError, RequestCancelledError)):
            logger.warning("request %s lost its replica: %s", query.request_id, type(cause).__name__)
            raise RequestError("replica-lost") from None
        raise
