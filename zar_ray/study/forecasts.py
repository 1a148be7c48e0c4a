"""What a study would cost: its videos counted, a sample measured, and clusters of many sizes computed."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import inf
from typing import Any

import psutil
import torch
from rich.console import Console

from zar_ray.data.probing import usable_cpus
from zar_ray.errors import ConfigError
from zar_ray.evaluation.cpu_speed import CpuTime, cpu_time_of_run
from zar_ray.evaluation.forecast import Cluster, Forecast, forecast, with_trial
from zar_ray.evaluation.planning import plan_model, plan_models
from zar_ray.evaluation.resources import Node, Resources, Wanted, blocks_in_flight
from zar_ray.evaluation.sampling import Sample, measure
from zar_ray.evaluation.streams import stream_methods
from zar_ray.evaluation.supply import PEAKS, peak_of
from zar_ray.evaluation.trial import run_trial
from zar_ray.study.options import PlanConfig
from zar_ray.study.plan import Study, plan_study

SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000)
"""GPUs, or CPU cores, that a run is simulated with."""

_TRIAL_SECONDS, _TRIAL_BLOCKS, _TRIAL_SHARE = 10.0, 4, 0.25
_CORES_A_GPU = 16.0
_FEW, _PATIENCE = 3, 90.0  # videos, and seconds of measuring them
# As Ray shares a node's memory.
_MEMORY_A_CORE, _OBJECT_STORE, _WORKERS_SHARE = 8e9, 0.3, 0.7


@dataclass(frozen=True)
class Costs:
    """What `zar plan` says.

    Attributes:
        sample: What was measured.
        asked: The cluster that was asked about.
        sizes: The same run on clusters of `SIZES`.
        stream: Whether methods of the run depend on the videos before, so that it has one worker.
        ways: On CPUs what would be faster, in words.
    """

    sample: Sample
    asked: Forecast
    sizes: tuple[Forecast, ...]
    stream: bool
    ways: str | None = None

    def to_json(self) -> dict[str, Any]:
        """As JSON values, with SI units."""
        return asdict(self)


def cluster_of(options: PlanConfig) -> Cluster:
    """The cluster that options describe, with what they leave open.

    Raises:
        ConfigError: A GPU's name is not known.
    """
    if options.gpus and peak_of(options.gpu) is None:
        raise ConfigError(f"--gpu {options.gpu}: its speed is not known; known are {', '.join(PEAKS)}")
    cores = options.cores or (options.gpus * _CORES_A_GPU if options.gpus else float(psutil.cpu_count() or 1))
    memory = 1e9 * options.memory if options.memory else cores * _MEMORY_A_CORE * _OBJECT_STORE
    gpus = (options.gpus_per_worker or 1.0) if options.gpus else 0.0
    as_one = Node("", "", cores, options.gpus, memory / _OBJECT_STORE * _WORKERS_SHARE)
    shared = Resources.plan(Wanted.of(options, "cuda" if gpus else "cpu", gpus), [as_one])
    return Cluster(
        gpus=options.gpus,
        gpu=options.gpu if options.gpus else "",
        cores=cores,
        workers=options.num_workers[-1] if options.num_workers else max(1, shared.workers),
        decoders=options.decode_workers or max(1, shared.decoders),
        memory=memory,
        bandwidth=1e9 * options.bandwidth,
        requests=options.requests,
        price=options.price,
    )


def trial_cluster(options: PlanConfig, sample: Sample, asked: Cluster) -> Cluster:
    """This machine; with as many replicas as are asked about where it has the cores, else with its usual ones."""
    cores, gpus = float(usable_cpus()), int(sample.device != "cpu")
    same = not gpus and asked.cores <= cores
    return cluster_of(
        options.model_copy(
            update={
                "gpus": gpus,
                "gpu": sample.device if gpus else options.gpu,
                "cores": cores,
                "memory": _object_store_here(),
                "num_workers": (asked.workers,) if same else (),
                "gpus_per_worker": None,
            }
        )
    )


def _object_store_here() -> float:
    """GB, in the way of Ray."""
    return psutil.virtual_memory().total * _OBJECT_STORE / 1e9


def trial_size(videos: int, rate: float, options: PlanConfig, here: Cluster) -> int:
    """Videos of a trial: some seconds' work, several blocks for each replica, and a small share of the run."""
    enough = max(_TRIAL_SECONDS * rate, _TRIAL_BLOCKS * here.workers * options.batch_size)
    return int(min(videos, max(options.sample, min(enough, videos * _TRIAL_SHARE))))


def cost_of(options: PlanConfig, console: Console) -> Costs:
    """Measures a sample of a study's videos here and computes the rest; writes nothing.

    Raises:
        ZarError: The study could not start either.
    """
    cluster = cluster_of(options)
    study = plan_study(options, console)
    found = _costs(study, options, cluster, console)
    assert isinstance(found, Costs)
    return found


def cost_here(study: Study, console: Console) -> Costs | CpuTime:
    """What a study takes on this machine alone, of the few videos that can be measured within a minute or so.

    On a CPU where one takes longer than that it is computed, without a video being looked at.

    Raises:
        ZarError: The study could not start.
    """
    gpus = torch.cuda.device_count() if study.options.device != "cpu" and torch.cuda.is_available() else 0
    here = {"sample": _FEW, "trial": False, "gpus": gpus, "cores": float(usable_cpus()), "memory": _object_store_here()}
    if gpus:
        here["gpu"] = torch.cuda.get_device_name(0)
    options = PlanConfig.model_validate({**study.options.model_dump(), **here})
    return _costs(study, options, cluster_of(options), console, _PATIENCE)


def _costs(
    study: Study, options: PlanConfig, cluster: Cluster, console: Console, patience: float = inf
) -> Costs | CpuTime:
    for one in study.axes.models:
        if one.mixture is not None:
            raise ConfigError("--interpolate-with: `zar plan` writes nothing, so no mixture either; leave it out")
    asked = study.asked()
    console.print(f"loading {', '.join(dict.fromkeys(one.label for one in asked))} ...", highlight=False)
    models = plan_models(asked, study.workload, plan_model)
    stream = bool(stream_methods(one for model in asked for one in model.settings))
    threads = 1 if cluster.gpus else max(1, int(cluster.cores // (1 if stream else cluster.workers)))
    threads = min(threads, psutil.cpu_count() or 1)
    count = options.sample
    computed = None if cluster.gpus else cpu_time_of_run(models, study.workload.manifest.table, threads)
    if computed is not None and patience < inf:
        # A sample is gone through twice, after one video that is not timed.
        count = min(count, int((patience / max(computed.seconds, 1e-9) - 1) / 2))
        if count < 1:
            return computed
    console.print(f"measuring {min(count, len(study.workload.manifest))} videos ...", highlight=False)
    labels = [one.label for one in study.axes.settings]
    sample = measure(study.workload, models, labels, count, threads)
    videos = len(study.workload.manifest)
    # Of a GPU whose peak is not known nothing is forecast, so that a trial on it would say nothing.
    if options.trial and (sample.device == "cpu" or peak_of(sample.device) is not None):
        here = trial_cluster(options, sample, cluster)
        rate = forecast(sample, here, videos, options.batch_size, stream=stream).videos_per_second
        count = trial_size(videos, rate, options, here)
        console.print(f"running the job on {count} videos ...", highlight=False)
        ahead = blocks_in_flight(here.decoders, 1 if stream else here.workers) * (1 if stream else options.batch_size)
        ran = run_trial(study.workload, asked, labels, count, here.workers, ahead)
        sample = with_trial(sample, ran, here, options.batch_size, stream=stream)

    def on(one: Cluster) -> Forecast:
        return forecast(sample, one, videos, options.batch_size, stream=stream)

    return Costs(
        sample, on(cluster), tuple(on(cluster.scaled(size)) for size in SIZES), stream, computed and computed.ways
    )
