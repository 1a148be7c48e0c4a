"""How a cluster's nodes are shared between the decoders and the model replicas.

Planned node by node: what no single node has is of no use to a replica. Whatever dies, replicas that start again
elsewhere leave a decoder room on every node: beside GPUs they reserve no CPU, and on CPUs no more of them fit on a node
than its memory was planned for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray.data import ActorPoolStrategy, TaskPoolStrategy

from zar_ray.evaluation.options import EvaluationOptions

# A replica of one thread waits for no other thread, and cores do more so; but each holds the models and its batch.
_MEMORY_A_CPU = 6 * 2**30
# A node that comes in place of another may have a little less memory.
_OF_MEMORY = 0.98
# What Ray counts shares of a resource in.
_STEPS = 10_000


def blocks_in_flight(decoders: int, workers: int) -> int:
    """Blocks between the stages: one in each decoder, up to two in each worker, and one ahead of each worker."""
    return decoders + 3 * workers


@dataclass(frozen=True)
class Node:
    """A node of the joined cluster, by what Ray counts of it.

    Attributes:
        name: Ray's id of it.
        host: What people call it.
        cpus: CPUs.
        gpus: GPUs.
        memory: Bytes.
    """

    name: str
    host: str
    cpus: float = 0.0
    gpus: float = 0.0
    memory: float = 0.0

    def gpu_replicas(self, gpus: float) -> int:
        """How many replicas with so many GPUs each fit on it; a share of a GPU lies within one."""
        if gpus >= 1:
            return int(self.gpus // gpus)
        whole = int(self.gpus)
        return whole * _times(1.0, gpus) + _times(self.gpus - whole, gpus)


def alive_nodes() -> tuple[Node, ...]:
    """The nodes of the joined cluster."""
    return tuple(
        Node(
            node["NodeID"],
            node["NodeManagerHostname"],
            *(float(node["Resources"].get(name, 0.0)) for name in ("CPU", "GPU", "memory")),
        )
        for node in ray.nodes()
        if node["Alive"]
    )


def cpus_of_a_replica(nodes: Sequence[Node]) -> int:
    """The CPUs that replicas have by default where there are no GPUs: one where all nodes have the memory, else two."""
    return 1 if all(node.memory >= _MEMORY_A_CPU * node.cpus for node in nodes if node.memory) else 2


@dataclass(frozen=True)
class Wanted:
    """What a run asks of whatever cluster it is on.

    Attributes:
        device: The device of each replica, settled.
        gpus: GPUs of each replica.
        least: Replicas that it begins with at least.
        most: Replicas that it grows to; None as many as fit.
        decoders: Decoding tasks at once; None as many as fit.
        left_out: Nodes, by `Node.name`, that no replica may be on.
    """

    device: str
    gpus: float = 0.0
    least: int = 1
    most: int | None = None
    decoders: int | None = None
    left_out: frozenset[str] = frozenset()

    @classmethod
    def of(cls, options: EvaluationOptions, device: str, gpus: float, most: int | None = None) -> Wanted:
        """What the options ask for, but no more replicas than `most`, for which there is work."""
        least, asked = (options.num_workers[0], options.num_workers[-1]) if options.num_workers else (1, None)
        limits = [one for one in (asked, most) if one is not None]
        return cls(device, gpus, min([least, *limits]), min(limits, default=None), options.decode_workers)

    def replicas(self, nodes: Sequence[Node]) -> list[int]:
        """How many replicas each node is planned for; more in all than are wanted, where nodes are of a size."""
        hosts = [replace(node, gpus=0.0, memory=0.0) if node.name in self.left_out else node for node in nodes]
        if self.gpus:
            return [node.gpu_replicas(self.gpus) for node in hosts]
        cpus = [node.cpus if node.memory else 0.0 for node in hosts]
        each = cpus_of_a_replica(hosts)
        fit = [int(some // each) for some in cpus]
        if not any(fit):
            fit = [int(some > 0) for some in cpus]
        total = min(max(sum(fit), self.least), self.most or math.inf)
        if total == sum(fit) or not any(cpus):
            return fit
        return [math.ceil(total * some / sum(cpus) - 1 / _STEPS) for some in cpus]


@dataclass(frozen=True)
class Resources:
    """What both stages ask for.  Never the same: Ray Data would fuse the two stages into one.

    Attributes:
        wanted: What the run asks for.
        decoders: Decoding tasks at once on the cluster as it is.
        decoder_cpus: CPUs that each reserves.
        workers: Model replicas on the cluster as it is.
        worker_cpus: CPUs that each reserves; none beside a GPU.
        worker_memory: Bytes that each reserves; none beside a GPU.
        threads: CPU threads that each may use.
    """

    wanted: Wanted
    decoders: int
    decoder_cpus: float
    workers: int
    worker_cpus: float
    worker_memory: int
    threads: int

    @property
    def device(self) -> str:
        """The device of each replica; ``auto`` is settled, as a worker without GPUs sees them all the same."""
        return self.wanted.device

    @property
    def worker_gpus(self) -> float:
        """GPUs that each replica reserves."""
        return self.wanted.gpus

    @property
    def blocks_at_once(self) -> int:
        """Blocks that a worker has in hand: beside a GPU the next one is taken over, and the one before written.

        On a CPU both would take cores from the block that is predicted.
        """
        return 2 if self.worker_gpus else 1

    @property
    def blocks_in_flight(self) -> int:
        """As the function of this name says."""
        return blocks_in_flight(self.decoders, self.workers)

    @property
    def described(self) -> str:
        """A line."""
        threads = "1 CPU thread each" if self.threads == 1 else f"{self.threads} CPU threads each"
        on = f"{self.worker_gpus:g} GPU each" if self.worker_gpus else threads
        return f"model replicas: {self.workers} of {on}; decoders: {self.decoders}"

    @property
    def enough(self) -> bool:
        """Whether a run can begin: there are as many replicas as it wants at least, and a decoder."""
        return self.decoders > 0 and self.workers >= self.wanted.least

    @classmethod
    def plan(cls, wanted: Wanted, nodes: Sequence[Node]) -> Resources:
        """Shares the nodes out; `enough` says whether they suffice."""
        planned = wanted.replicas(nodes)
        workers = int(min(sum(planned), wanted.most or math.inf))
        if wanted.gpus:
            # A replica needs a core now and then, which its node's decoders leave: each reserves its share of it.
            shares = [
                node.cpus / max(1.0, node.cpus - min(of_node, workers))
                for node, of_node in zip(nodes, planned, strict=True)
                if node.cpus
            ]
            each, memory, cpus = _rounded(min(shares, default=1.0)), 0, 0.0
            threads = 1
        else:
            each, memory, cpus, threads = _on_cpus(wanted, nodes, planned)
        left = [node.cpus - cpus * of_node for node, of_node in zip(nodes, planned, strict=True)]
        decoders = sum(_times(max(0.0, some), each) for some in left)
        return cls(wanted, min(decoders, wanted.decoders or decoders), each, workers, cpus, memory, threads)

    @classmethod
    def of_cluster(cls, wanted: Wanted) -> Resources:
        """Shares the joined cluster out."""
        return cls.plan(wanted, alive_nodes())

    def decode_pool(self) -> TaskPoolStrategy:
        """The decoders, as many as there are CPUs for at any time unless their number was asked for."""
        return TaskPoolStrategy(size=self.wanted.decoders)

    def model_pool(self, blocks: int, at_once: int, waiting: int) -> ActorPoolStrategy:
        """The replicas: those that fit now, growing with the cluster to what is wanted at most, or blocks there are.

        Args:
            blocks: Blocks of the run.
            at_once: Blocks that a replica works on.
            waiting: Blocks that wait at a replica for their turn.
        """
        most = min(blocks, self.wanted.most or blocks)
        return ActorPoolStrategy(
            min_size=min(self.wanted.least, most),
            max_size=most,
            initial_size=min(max(self.workers, self.wanted.least), most),
            max_tasks_in_flight_per_actor=at_once + waiting,
            max_concurrent_calls_per_actor=at_once,
            enable_true_multi_threading=True,
        )

    def replica_options(self) -> dict[str, Any]:
        """What a replica asks of Ray's scheduler."""
        asked: dict[str, Any] = {"num_cpus": self.worker_cpus, "num_gpus": self.worker_gpus}
        if self.worker_memory:
            asked["memory"] = self.worker_memory
        if self.wanted.left_out:
            asked["label_selector"] = {"ray.io/node-id": f"!in({','.join(sorted(self.wanted.left_out))})"}
        return asked

    def to_begin_with(self) -> list[dict[str, float]]:
        """What a run begins with, a bundle of Ray's resources for each replica and one for a decoder."""
        if self.worker_gpus:
            replica = {"GPU": self.worker_gpus}
        elif self.worker_memory:
            replica = {"CPU": self.worker_cpus, "memory": float(self.worker_memory)}
        else:
            replica = {"CPU": 1.0}
        return [replica] * self.wanted.least + [{"CPU": self.decoder_cpus}]


def _on_cpus(wanted: Wanted, nodes: Sequence[Node], planned: Sequence[int]) -> tuple[float, int, float, int]:
    """The CPUs of a decoder, the memory and the CPUs of a replica, and its threads, where replicas compute on CPUs."""
    hosts = [(node, of_node) for node, of_node in zip(nodes, planned, strict=True) if of_node]
    if not hosts:
        return 1.0, 0, 0.0, 1
    # Fewer replicas leave memory to other jobs.
    usual = cpus_of_a_replica(nodes)
    memory = int(_OF_MEMORY * min(node.memory / max(of_node, node.cpus // usual) for node, of_node in hosts))
    # So many can be on a node when others are gone.
    most = [(node.cpus, min(node.memory // memory, wanted.most or math.inf)) for node in nodes if node.cpus]
    each = min(1.0, *(there / 2 if number else there for there, number in most))
    # Half of a node's CPUs stays free for decoders, which take what replicas leave.
    cpus = min(there / 2 / number for there, number in most if number)
    threads = max(1, int(min(node.cpus // of_node for node, of_node in hosts)))
    # Where nodes differ so much that a share is less than a step, memory alone says how many fit.
    return each, memory, math.floor(min(0.99, cpus) * _STEPS + 1e-6) / _STEPS, threads


def _rounded(share: float) -> float:
    """A share of a resource in Ray's steps, never more than it is."""
    return max(1, math.floor(share * _STEPS + 1e-6)) / _STEPS


def _times(whole: float, share: float) -> int:
    """How often a share fits, in Ray's steps."""
    return int(round(whole * _STEPS) // max(1, math.ceil(share * _STEPS - 1e-6)))
