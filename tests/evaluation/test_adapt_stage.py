"""What a worker does when a block breaks in a way nobody foresaw; the rest is tested on a real Ray."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from zar_ray.adaptation.adapter import PlannedVideo
from zar_ray.errors import VideoError
from zar_ray.evaluation.adapt_stage import AdaptStage, _Video
from zar_ray.evaluation.spec import Failure


def arrived(number: int) -> _Video:
    plan = SimpleNamespace(frames=[0], height=1, width=1)
    return _Video({}, PlannedVideo(plan, np.full((1, 1, 1, 3), number, np.uint8)))


class BreaksAtTwo:
    """Stands for a bug, which no real file can be made to meet: whatever holds video 2 raises."""

    def predict(self, videos):
        numbers = [int(video.frames.max()) for video in videos]
        if 2 in numbers:
            raise KeyError("two")
        return [VideoError("cannot", stage="encode") if number == 3 else number for number in numbers]


def test_a_surprise_costs_its_video_and_not_its_block():
    stage = object.__new__(AdaptStage)
    stage.adapter = BreaksAtTwo()
    stage.spec = SimpleNamespace(streams=())
    given = Failure("no such file", "open")
    outcomes = stage._predict([arrived(1), _Video({}, given), arrived(2), arrived(3), arrived(4)])
    assert outcomes == [1, given, Failure("KeyError: 'two'", "adapt"), Failure("cannot", "encode"), 4]
    assert stage._predict([arrived(1), arrived(4)]) == [1, 4]
