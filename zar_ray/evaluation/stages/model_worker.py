"""A process of the model pool."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Any

import pyarrow as pa

from zar_ray.errors import DeviceLostError
from zar_ray.evaluation.attempts import Attempts, holding
from zar_ray.evaluation.stages.adapt import AdaptStage

logger = logging.getLogger(__name__)


class ModelWorker:
    """What a process of the model pool runs; it ends with its device, so that Ray starts another one in its place.

    Args:
        stage: `AdaptStage`, which is made here.
        attempts: Where it writes down what it has in hand.
        told: What the stage is made of.
    """

    def __init__(self, stage: Callable[..., AdaptStage], attempts: Attempts | None, *told: Any) -> None:
        self._stage, self._attempts = stage(*told), attempts

    def __call__(self, block: pa.Table) -> pa.Table:
        """See `AdaptStage`; the block is tried again where its device is lost, as after any death."""
        try:
            with holding(self._attempts, "adapt", block):
                return self._stage(block)
        except DeviceLostError:
            logger.critical("this process ends, as its device is lost", exc_info=True)
            logging.shutdown()
            # Whatever would be cleaned up would wait for the device.
            os._exit(1)
