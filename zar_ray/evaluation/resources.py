"""How a cluster is shared between the decoders and the model replicas."""

from __future__ import annotations

from dataclasses import dataclass

from zar_ray.cluster import gpus_per_worker, total_cpus, total_gpus, worker_device
from zar_ray.errors import RunError
from zar_ray.evaluation.options import EvaluationOptions


@dataclass(frozen=True)
class Resources:
    """What both stages ask for.  Never the same CPUs: Ray Data would fuse the two stages into one.

    Attributes:
        decoders: Decoding tasks at once.
        decoder_cpus: CPUs that each reserves.
        workers: Model replicas.
        worker_cpus: CPUs that each reserves; a fraction keeps one free for decoding on a small machine.
        worker_gpus: GPUs that each reserves.
        threads: CPU threads that each may use.
        device: The device of each; ``auto`` is settled, as a worker without GPUs sees them all the same.
    """

    decoders: int
    decoder_cpus: float
    workers: int
    worker_cpus: float
    worker_gpus: float
    threads: int
    device: str

    @property
    def blocks_at_once(self) -> int:
        """Blocks that a worker has in hand: beside a GPU the next one is taken over, and the one before written.

        On a CPU both would take cores from the block that is predicted.
        """
        return 2 if self.worker_gpus else 1

    @classmethod
    def of_cluster(cls, options: EvaluationOptions, one_worker: bool = False) -> Resources:
        """Works both out from what the joined cluster has and what the options ask for.

        With `one_worker` a single replica sees all videos.

        Raises:
            RunError: The cluster lacks what the options ask for.
        """
        cpus, gpus = total_cpus(), total_gpus()
        worker_gpus = gpus_per_worker(options.device, options.gpus_per_worker)
        workers = 1 if one_worker else options.num_workers
        workers = workers or int(gpus / worker_gpus if worker_gpus else max(1, cpus // 2))
        if worker_gpus * workers > gpus:
            raise RunError(f"--num-workers {workers} of {worker_gpus:g} GPUs each: the cluster has {gpus:g} GPUs")
        worker_cpus = round(min(0.99, (cpus - 1) / workers) if cpus > 1 else 0.4 / workers, 4)
        decoders = options.decode_workers or max(1, int(cpus - worker_cpus * workers))
        threads = 1 if worker_gpus else max(1, int(cpus // workers))
        device = worker_device(options.device, worker_gpus)
        return cls(decoders, 1.0 if cpus > 1 else 0.5, workers, worker_cpus, worker_gpus, threads, device)
