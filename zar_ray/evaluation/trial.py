"""The job itself on a few videos of a run, on a Ray of this machine: what it takes beside its stages' own work.

Nothing of it is kept: rows go into a folder that is deleted, and a store of features is neither read nor written.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from rich.console import Console

from zar_ray.cluster import LOCAL
from zar_ray.evaluation.pipeline import evaluate
from zar_ray.evaluation.planning import AskedModel
from zar_ray.evaluation.sampling import some_of
from zar_ray.evaluation.workload import Workload
from zar_ray.results.folder import RunFolder
from zar_ray.storage import Storage


@dataclass(frozen=True)
class Trial:
    """A short run.

    Attributes:
        videos: How many.
        seconds: Of the pass over them, with the workers' start.
        videos_per_second: Once all workers were at it.
    """

    videos: int
    seconds: float
    videos_per_second: float

    @property
    def start_seconds(self) -> float:
        """What came before, or beside, the steady work."""
        return max(0.0, self.seconds - self.videos / self.videos_per_second)


def run_trial(
    workload: Workload, asked: Sequence[AskedModel], labels: Sequence[str], count: int, workers: int, ahead: int
) -> Trial:
    """Evaluates some of a run's videos as the job does.

    Args:
        workload: The run's.
        asked: Its models.
        labels: What each setting is called.
        count: Videos of the trial.
        workers: Model replicas.
        ahead: How many videos may be decoded before a worker has them.

    Raises:
        ZarError: The run could not start here.
    """
    here = {"address": LOCAL, "num_workers": (workers,), "features": None, "features_max_bytes": None}
    anew = {"resume": False, "overwrite": False, "retry_failed": False}
    models = [
        replace(model, settings=tuple(one.model_copy(update=here | anew) for one in model.settings)) for model in asked
    ]
    with tempfile.TemporaryDirectory(prefix="zar-trial-") as place:
        folder = RunFolder(Storage(place).child("run"))
        ran = evaluate(some_of(workload, count), models, labels, folder, Console(file=io.StringIO()))
        rows = ran.rows.read(["video_id", "recorded_at"])
    ended = rows.group_by("video_id").aggregate([("recorded_at", "max")])["recorded_at_max"].to_numpy()
    return Trial(len(ended), ran.seconds, steady_rate(ended, ahead) or len(ended) / ran.seconds)


def steady_rate(ended: np.ndarray, ahead: int) -> float | None:
    """Videos a second once all workers are at it, by when each ended; None where all ended at once.

    That is from a quarter of the videos to the last `ahead` ones, while decoders, which are done by then, take their
    share of the machine too; of a run too short for that over its second half, as in the first some workers may still
    have been loading.
    """
    times, counts = np.unique(ended, return_counts=True)
    reached = np.cumsum(counts)
    videos = len(ended)
    bounds = (videos / 4, videos - ahead) if 2 * ahead <= videos else (videos / 2, videos)
    first, last = (int(np.searchsorted(reached, one)) for one in bounds)
    span = float(times[last] - times[first])
    return float(reached[last] - reached[first]) / span if span > 0 else None
