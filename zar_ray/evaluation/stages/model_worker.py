"""A process of the model pool, and when it ends: with its device, and where its node cannot load the model."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from typing import Any

import pyarrow as pa

from zar_ray.errors import DeviceLostError
from zar_ray.evaluation.attempts import Attempts, holding
from zar_ray.evaluation.stages.adapt import AdaptStage

logger = logging.getLogger(__name__)

# Ray starts another worker at once in place of one that could not be made: on the same node, where no other is free.
_SECONDS_BETWEEN_TRIES = 20.0


class ModelWorker:
    """What a process of the model pool runs; it ends with its device, so that Ray starts another one in its place.

    Args:
        stage: `AdaptStage`, which is made here.
        attempts: Where it writes down what it has in hand.
        told: What the stage is made of.
    """

    def __init__(self, stage: Callable[..., AdaptStage], attempts: Attempts | None, *told: Any) -> None:
        self._attempts = attempts
        try:
            self._stage = stage(*told)
        except Exception:
            # The model was loaded before: this node is at fault, such as one that has joined since.
            logger.exception("a worker of the model pool cannot be made on this node")
            time.sleep(_SECONDS_BETWEEN_TRIES)
            raise

    def __call__(self, block: pa.Table) -> pa.Table:
        """See `AdaptStage`; where its device is lost the block is tried again by another, as after any death."""
        try:
            with holding(self._attempts, "adapt", block):
                return self._stage(block)
        except DeviceLostError:
            logger.critical("this process ends, as its device is lost", exc_info=True)
            logging.shutdown()
            # Whatever would be cleaned up would wait for the device.
            os._exit(1)
