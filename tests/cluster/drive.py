"""`zar eval` with models that take a while over each block, so that nodes go in the middle of a run.

With --here stages run in this process, one after the other, as what others are compared with.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from functools import partial
from typing import Any

import torch

from zar_ray.commands.main import main
from zar_ray.evaluation import pipeline, preflight
from zar_ray.evaluation.planning import plan_model
from zar_ray.evaluation.stages.adapt import AdaptStage

SECONDS = 0.5


class SlowAdapt(AdaptStage):
    """Adapts; this file is no module that a worker could import, so that it is sent to workers.

    A video's name may say that its process dies.
    """

    def __init__(self, poison: str, *told: Any) -> None:
        super().__init__(*told)
        self.poison = poison

    def __call__(self, block: Any) -> Any:
        time.sleep(SECONDS)
        if any(self.poison in video for video in block["video_id"].to_pylist()):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(block)


def run_here(videos: Any, block_size: int, attempts: Any, *, decode: Any, told: Any, progress: Any, **_: Any) -> None:
    """Stands for `run_blocks`."""
    stage = AdaptStage(*told)
    for start in range(0, len(videos), block_size):
        progress.count(stage(decode(videos.slice(start, block_size))))


if __name__ == "__main__":
    torch.set_num_threads(1)
    words = sys.argv[1:]
    if "--here" in words:
        words.remove("--here")
        pipeline.run_blocks = run_here
        preflight.check_nodes = lambda paths, storage: None
        preflight.check_model = lambda *asked: plan_model(*asked[1:])
    pipeline.AdaptStage = partial(SlowAdapt, os.environ["ZAR_TEST_POISON"])
    sys.exit(main(["eval", *words]))
