"""What a run takes on a cluster that is not there: of a measured sample, and of what a cluster's parts serve.

A run is as fast as the resource that serves the fewest videos a second. On a machine without GPUs decoding, adapting
and the driver share the cores, so workers beyond them give nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil

from zar_ray.evaluation.blocks import STORE_SHARE, block_size
from zar_ray.evaluation.resources import blocks_in_flight
from zar_ray.evaluation.sampling import Sample
from zar_ray.evaluation.supply import peak_of, reached
from zar_ray.evaluation.trial import Trial

DRIVER_SECONDS = 0.010
"""CPU of the driver for a block (bench/blocks.py)."""

_FLOAT32 = 15.0  # a GPU's peak in bf16 by that in float32, in which texts are tuned
_NODE_GPUS, _NODE_CORES = 8, 128
_PART_REQUESTS = 3  # of a block's part: written, read to be put into one with others, deleted
_VIDEO_REQUESTS = 1  # a video is read as a whole


@dataclass(frozen=True)
class Cluster:
    """What a run would have.

    Attributes:
        gpus: GPUs, 0 for a run on CPUs.
        gpu: Their name.
        cores: CPU cores in all.
        workers: Model replicas.
        decoders: Decoding processes at once.
        memory: Bytes of Ray's object store in all.
        bandwidth: Bytes a second of a node's network.
        requests: Requests a second that the storage serves, in all.
        price: Dollars an hour of a GPU, or of a core where there is no GPU.
    """

    gpus: int
    gpu: str
    cores: float
    workers: int
    decoders: int
    memory: float
    bandwidth: float
    requests: float
    price: float | None

    @property
    def nodes(self) -> int:
        """How many machines that are."""
        return ceil(self.gpus / _NODE_GPUS if self.gpus else self.cores / _NODE_CORES)

    def scaled(self, gpus: int) -> Cluster:
        """A cluster of so many GPUs, or cores without, with as much of everything but storage's requests a GPU."""
        share = gpus / (self.gpus or self.cores)
        return replace(
            self,
            gpus=gpus if self.gpus else 0,
            cores=self.cores * share,
            workers=max(1, round(self.workers * share)),
            decoders=max(1, round(self.decoders * share)),
            memory=self.memory * share,
        )


@dataclass(frozen=True)
class Forecast:
    """A run's cost.

    Attributes:
        cluster: Where.
        videos: How many.
        seconds: Of the pass over the videos, with the workers' start.
        start_seconds: Of which before the first block is done.
        rates: Videos a second that each resource serves; the run has the smallest.
        short: The resource that is short.
        block: Videos of a block.
        gpu_hours: Hours by GPUs.
        cpu_hours: CPU cores' hours of work.
        bytes_read: Of videos; None where the sample does not know.
        bytes_shipped: From decoding to adapting.
        objects: Written to storage.
        object_store: Bytes that blocks in work take at most.
        dollars: None without a price.
        estimated: Whether a GPU's speed is computed, not measured.
    """

    cluster: Cluster
    videos: int
    seconds: float
    start_seconds: float
    rates: dict[str, float]
    short: str
    block: int
    gpu_hours: float
    cpu_hours: float
    bytes_read: float | None
    bytes_shipped: float
    objects: int
    object_store: float
    dollars: float | None
    estimated: bool

    @property
    def videos_per_second(self) -> float:
        """Once it runs."""
        return self.rates[self.short]

    @property
    def used(self) -> dict[str, float]:
        """The share of each resource that the run takes."""
        return {name: self.videos_per_second / rate for name, rate in self.rates.items()}


def gpu_seconds(sample: Sample, gpu: str) -> tuple[float, bool]:
    """A GPU's seconds a video, and whether they are computed; measured where the sample was taken on such a GPU.

    Raises:
        KeyError: The GPU is not known.
    """
    peak, here = peak_of(gpu), peak_of(sample.device)
    if peak is not None and peak == here:
        return sample.adapt_seconds, False
    if peak is None:
        raise KeyError(gpu)
    return (sample.encoder_operations + sample.tuning_operations * _FLOAT32) / reached(peak), True


def with_trial(sample: Sample, trial: Trial, cluster: Cluster, batch_size: int, *, stream: bool = False) -> Sample:
    """A sample that knows what the job takes beside its stages: what a trial took beyond its own forecast.

    Args:
        sample: What its videos take.
        trial: A short run of them.
        cluster: Where that ran.
        batch_size: As of `forecast`.
        stream: As of `forecast`.
    """
    alone = replace(sample, job_start=0.0, job_share=1.0)
    told = forecast(alone, cluster, trial.videos, batch_size, stream=stream)
    # A trial reads and writes on its own machine: no network or storage that the cluster has makes it slow.
    rate, short = min((rate, name) for name, rate in told.rates.items() if name not in ("network", "storage"))
    # The job takes no less than its stages: a trial that is quicker had decoded its videos while workers were loading,
    # as far ahead as a long run cannot be for long.
    share = max(1.0, rate / trial.videos_per_second) if short in ("workers", "CPU cores", "decoders") else 1.0
    return replace(sample, job_start=trial.start_seconds - told.start_seconds, job_share=share)


def forecast(sample: Sample, cluster: Cluster, videos: int, batch_size: int, *, stream: bool = False) -> Forecast:
    """Computes what a run of so many videos takes.

    Args:
        sample: What its videos take.
        cluster: Where it would run.
        videos: How many there are.
        batch_size: Videos that a worker adapts to at a time.
        stream: Whether methods depend on the videos before: one worker, and one video a block.

    Raises:
        KeyError: The cluster's GPU is not known.
    """
    on_gpus = cluster.gpus > 0
    one, estimated = gpu_seconds(sample, cluster.gpu) if on_gpus else (sample.adapt_seconds, False)
    workers = 1 if stream else cluster.workers
    in_flight = blocks_in_flight(cluster.decoders, workers)
    fitting = STORE_SHARE * cluster.memory / (in_flight * max(1, sample.largest))
    size = 1 if stream else block_size(batch_size, videos, workers, fitting, gpus=on_gpus)
    driver = DRIVER_SECONDS / size
    share = sample.job_share
    busy = share * (sample.decode_cpu + (0.0 if on_gpus else sample.adapt_cpu)) + driver
    # On one machine nothing is shipped; else as if any node's decoders fed any node's workers.
    shipped = sample.bytes_shipped * (cluster.nodes - 1) / cluster.nodes
    rates = {
        "GPUs" if on_gpus else "workers": workers / (one if on_gpus else share * one),
        "CPU cores": cluster.cores / busy,
        "decoders": cluster.decoders / (share * sample.decode_cpu),
        "driver": 1 / driver,
        "network": cluster.nodes * cluster.bandwidth / max(1.0, (sample.bytes_read or 0.0) + shipped),
        "storage": cluster.requests / (_VIDEO_REQUESTS + _PART_REQUESTS / size),
    }
    short = min(rates, key=lambda name: rates[name])
    starting = workers * sample.adapt_start + cluster.decoders * sample.decode_start
    first = batch_size * (sample.decode_cpu + one)
    start = max(0.0, sample.job_start + max(starting / cluster.cores, sample.adapt_start) + first)
    seconds = start + videos / rates[short]
    hours = seconds / 3600
    price = None if cluster.price is None else cluster.price * hours * (cluster.gpus or cluster.cores)
    return Forecast(
        cluster=cluster,
        videos=videos,
        seconds=seconds,
        start_seconds=start,
        rates=rates,
        short=short,
        block=size,
        gpu_hours=cluster.gpus * hours,
        cpu_hours=(videos * busy + starting) / 3600,
        bytes_read=None if sample.bytes_read is None else videos * sample.bytes_read,
        bytes_shipped=videos * sample.bytes_shipped,
        objects=-(-videos // size),
        object_store=float(min(in_flight * size, videos) * sample.largest),
        dollars=price,
        estimated=estimated,
    )
