"""How many processes train: as many as the cluster has room for, from the fewest to the most that are asked for.

Ray Train's own elastic scaling (2.60) counts what nodes have, not what is free, by a view up to 20 s old; it does
not know of the decoders beside a process; and it resizes amid steps, which are then taken again.  So each attempt has a
fixed number of processes, as many as Ray's scheduler has room for; and where room for more is found, the processes end
after a step, with a checkpoint.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray
import torch
import torch.distributed
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from rich.console import Console

from zar_ray.cluster import gpus_per_worker, total_gpus
from zar_ray.errors import RunError
from zar_ray.training.options import TrainConfig

# A cluster that has room says so at once; what has just ended leaves its room within seconds.
_SETTLED_SECONDS = 5.0
_SECONDS_BETWEEN_LINES = 60.0
# By then all processes have their decoders, whose room would be taken for free before.
_SECONDS_BEFORE_LOOKS, _SECONDS_BETWEEN_LOOKS = 30.0, 5.0


@dataclass(frozen=True)
class WorkerNeeds:
    """What each training process takes: its CPU threads, GPUs, and decoders of one CPU each on any node."""

    threads: int
    gpus: float
    decoders: int

    @property
    def resources(self) -> dict[str, float]:
        """Of the process itself, as Ray names them."""
        return {"CPU": float(self.threads), **({"GPU": self.gpus} if self.gpus else {})}

    def __str__(self) -> str:
        gpus = f" and {self.gpus:g} GPUs" if self.gpus else ""
        return f"{self.threads + self.decoders} CPUs{gpus}"


def worker_bounds(config: TrainConfig) -> tuple[int, int]:
    """The fewest and the most processes that are asked for."""
    asked = config.num_workers
    return (asked, asked) if isinstance(asked, int) else asked


def worker_needs(config: TrainConfig) -> WorkerNeeds:
    """What each process takes of the joined cluster, with as many of them as it holds now.

    Raises:
        RunError: It does not hold the fewest that are asked for, or processes would share a GPU.
    """
    fewest, most = worker_bounds(config)
    gpus = gpus_per_process(config)
    if gpus:
        most = max(fewest, min(most, int(total_gpus() // gpus)))
    while True:
        try:
            threads = cpus_per_worker(most, config.decode_workers, spare=int(config.validation_async))
            return WorkerNeeds(threads, gpus, config.decode_workers)
        except RunError:
            if most == fewest:
                raise
            most -= 1


def cpus_per_worker(workers: int, decoders: int = 0, spare: int = 0) -> int:
    """The most CPUs that each worker process can have besides its decoders' one each, none spread over two nodes.

    So many CPUs as are spare are left to others, on the last node.

    Raises:
        RunError: The joined cluster has too few CPUs.
    """
    nodes = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    nodes[-1] -= spare
    fitting = [cpus for cpus in range(1, max(nodes) + 1) if sum(node // (cpus + decoders) for node in nodes) >= workers]
    if not fitting:
        needed = f", besides {decoders} for its decode workers" if decoders else ""
        raise RunError(
            f"--num-workers {workers}: the cluster has {sum(nodes)} CPUs to spare, and each needs one at least{needed}"
        )
    return fitting[-1]


def gpus_per_process(config: TrainConfig) -> float:
    """GPUs that each process of a training reserves.

    Raises:
        RunError: The joined cluster has too few, or processes would share one: NCCL, by which they exchange
            gradients, refuses that.
    """
    gpus = gpus_per_worker(config.device, config.gpus_per_worker)
    fewest, most = worker_bounds(config)
    if most > 1 and 0 < gpus <= 0.5:
        raise RunError(
            f"--num-workers {most} of {gpus:g} GPUs each: several processes would share a GPU, which NCCL refuses; give"
            " each a whole one, or train in one process"
        )
    if gpus * fewest > (there := total_gpus()):
        raise RunError(f"--num-workers {fewest} of {gpus:g} GPUs each: the cluster has {there:g} GPUs")
    return gpus


def alive_nodes() -> dict[str, str]:
    """The addresses of the joined cluster's nodes, by their ids."""
    return {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}


def workers_with_room(fewest: int, most: int, needs: WorkerNeeds, console: Console) -> int:
    """How many processes Ray's scheduler has room for now, at most `most`; waits, and says so, for the fewest."""
    bundles = [needs.resources, *({"CPU": 1.0} for _ in range(needs.decoders))]
    asked: list[PlacementGroup] = [placement_group(bundles) for _ in range(most)]
    since = said = time.monotonic()
    try:
        while True:
            waited = time.monotonic() - since
            room = sum(one.wait(0) for one in asked)
            if room == most or (room >= fewest and waited > _SETTLED_SECONDS):
                return room
            if waited > _SETTLED_SECONDS and (said == since or time.monotonic() - said > _SECONDS_BETWEEN_LINES):
                said = time.monotonic()
                console.print(
                    f"waiting for room: {room} of at least {fewest} training processes of {needs} each have any;"
                    f" {waited:.0f} s so far"
                )
            time.sleep(0.2)
    finally:
        for one in asked:
            remove_placement_group(one)


@ray.remote
def _room() -> None:
    """Ends as soon as there is room for it."""


class Growth:
    """Looks out, while so many processes lack, for room for more of them; to be asked by all processes, in step."""

    def __init__(self, lacking: int, needs: WorkerNeeds, rank: int, workers: int, device: torch.device) -> None:
        self._lacking, self._needs = lacking, needs
        self._rank, self._workers, self._device = rank, workers, device
        self._asked: Sequence[Any] = ()
        self._next_look = time.monotonic() + _SECONDS_BEFORE_LOOKS

    def due(self) -> bool:
        """Whether there is room for more; the same answer in all processes."""
        if not self._lacking:
            return False
        found = torch.tensor(float(self._rank == 0 and self._found()), device=self._device)
        if self._workers > 1:
            torch.distributed.all_reduce(found)
        return bool(found)

    def _found(self) -> bool:
        if time.monotonic() < self._next_look:
            return False
        self._next_look = time.monotonic() + _SECONDS_BETWEEN_LOOKS
        if not self._asked:
            # An autoscaler sees what waits, and starts nodes for it. Beside a GPU decoders may be on other nodes.
            cpus = self._needs.threads + (0 if self._needs.gpus else self._needs.decoders)
            task = _room.options(num_cpus=cpus, num_gpus=self._needs.gpus)
            self._asked = [task.remote() for _ in range(self._lacking)]
            return False
        ready, _ = ray.wait(list(self._asked), timeout=0)
        return bool(ready)

    def close(self) -> None:
        """Asks for no more."""
        for one in self._asked:
            ray.cancel(one)
