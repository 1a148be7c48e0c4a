"""What a cluster has room for: waited for before a run, and followed while it lasts.

What is waited for is told, with how long, and is a demand that Ray's autoscaler sees: a placement group, which holds
what the run begins with as soon as all of it is free.
"""

from __future__ import annotations

import gc
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import chain
from typing import Any, TypeVar

import ray
from ray._private.state import available_resources_per_node, jobs
from ray._private.worker import global_worker
from ray.autoscaler.v2.utils import is_autoscaler_v2
from ray.core.generated import autoscaler_pb2
from ray.data import Dataset, ExecutionResources
from ray.exceptions import RayError
from ray.util import placement_group, remove_placement_group
from ray.util.client import ray as client
from rich.console import Console

from zar_ray.cluster import gpus_per_worker, require_worker_gpus, total_gpus, worker_device
from zar_ray.errors import RunError
from zar_ray.evaluation.options import EvaluationOptions
from zar_ray.evaluation.resources import Resources, Wanted, alive_nodes

_T = TypeVar("_T")

# What is free is mostly had within this, and at the latest within that, without a word; Ray knows whole seconds alone.
_SOON = 1
_AT_ONCE = 3
_BETWEEN_LINES = 30.0
# A node that has to be bought, started, and to fetch an image.
_FOR_NODES = 600.0
_BETWEEN_LOOKS = 10.0
_ENTRYPOINT = 60  # characters of it that are shown


def room_for(options: EvaluationOptions, console: Console, most: int | None = None) -> Resources:
    """Waits until the joined cluster has free what a run begins with.

    What no node has is waited for as long as --wait-for-gpus says; without it where Ray's autoscaler, which is asked
    for it, may bring it, and where there is no CPU at all, as before a cluster's first worker node joins. What others
    hold is waited for without end.

    Args:
        options: The run's.
        console: Where it is said what is waited for.
        most: Replicas that there is work for.

    Returns:
        How the cluster is shared.

    Raises:
        RunError: The cluster lacks what the options ask for, or it was waited for in vain.
    """
    autoscaler, limit = _on_cluster(is_autoscaler_v2), options.wait_for_gpus
    gpus = _gpus_of_a_replica(options, may_come=autoscaler or bool(limit))
    wanted = Wanted.of(options, worker_device(options.device, gpus), gpus, most)
    resources = Resources.of_cluster(wanted)
    if not resources.enough and limit is None:
        if not autoscaler and resources.decoders:
            raise RunError(_too_few(resources))
        limit = _FOR_NODES
    # A GPU that nobody asked for by name is no condition.
    by_itself = options.device == "auto" and options.gpus_per_worker is None and options.wait_for_gpus is None
    spare = by_itself and gpus > total_gpus()
    say = partial(console.print, highlight=False, markup=False)
    if not _is_free(resources, limit, say, give_up=spare):
        say("Ray's autoscaler knows no node with a GPU: computing on CPUs")
        return room_for(options.model_copy(update={"device": "cpu"}), console, most)
    return Resources.of_cluster(wanted)


def _gpus_of_a_replica(options: EvaluationOptions, may_come: bool) -> float:
    """As `gpus_per_worker`; one by default where they may still come."""
    asked = options.gpus_per_worker
    by_default = options.device != "auto" or sys.platform != "darwin"
    lacking = (float(by_default) if asked is None else asked) > total_gpus()
    if lacking and may_come and options.device != "cpu":
        gpus = 1.0 if asked is None else asked
        require_worker_gpus(options.device, gpus)
        return gpus
    return gpus_per_worker(options.device, asked)


def _too_few(resources: Resources) -> str:
    wanted, nodes = resources.wanted, "add nodes, or wait for them with --wait-for-gpus SECONDS"
    if resources.workers:
        of = f" of {wanted.gpus:g} GPUs each" if wanted.gpus else ""
        return f"--num-workers {wanted.least}{of}: the cluster has room for {resources.workers}; {nodes}"
    return f"--gpus-per-worker {wanted.gpus:g}: no node of the cluster has so many; {nodes}"


def _is_free(resources: Resources, limit: float | None, say: Callable[[str], None], give_up: bool) -> bool:
    """Waits until what a run begins with is free all at once; False where it may `give_up` and nobody can bring it."""
    bundles, nodes = resources.to_begin_with(), set(alive_nodes())
    group, began = placement_group(bundles), time.monotonic()
    try:
        told = began - _BETWEEN_LINES
        if group.wait(_SOON):
            return True
        # An earlier run of this process may still hold its workers, in reference cycles of what went wrong there.
        gc.collect()
        while not group.wait(_AT_ONCE):
            now = time.monotonic()
            if give_up and _on_cluster(_beyond_autoscaler):
                return False
            if limit is not None and now - began >= limit:
                raise RunError(f"{_missing(bundles)}: waited for in vain for {now - began:.0f} s")
            if now - told >= _BETWEEN_LINES:
                told, most = now, f" of at most {limit:g}" if limit is not None else ""
                say(f"waiting for {_missing(bundles)}; {now - began:.0f} s so far{most}")
            # Of a node that is lost while it is asked, Ray (2.60) awaits the answer for minutes, and gives nobody
            # a placement group meanwhile, on any node. What else it schedules goes on.
            there = set(alive_nodes())
            nodes |= there
            if nodes != there:
                bundles = Resources.of_cluster(resources.wanted).to_begin_with()
                if _on_cluster(partial(_fit, bundles)):
                    return True
    finally:
        remove_placement_group(group)
    return True


def _fit(bundles: list[dict[str, float]]) -> bool:
    """Whether nodes have them free, each as a whole."""
    nodes = [Counter(free) for free in available_resources_per_node().values()]
    for bundle in bundles:
        node = next((one for one in nodes if all(one[name] >= amount for name, amount in bundle.items())), None)
        if node is None:
            return False
        node.subtract(bundle)
    return True


def _missing(bundles: list[dict[str, float]]) -> str:
    """What is wanted, how much of it is there and free, and who could bring or free it."""
    wanted: Counter[str] = Counter()
    for bundle in bundles:
        wanted.update(bundle)  # type: ignore[arg-type]
    there, free = ray.cluster_resources(), ray.available_resources()
    # All of it where there is enough in sum, and no node has it.
    short = {name: amount for name, amount in wanted.items() if free.get(name, 0.0) < amount} or dict(wanted)
    parts = []
    for name, amount in short.items():
        unit, label = (1e9, "GB of memory") if name == "memory" else (1, name)
        free_now, at_most = (f"{of.get(name, 0.0) / unit:.3g}" for of in (free, there))
        parts.append(f"{amount / unit:.3g} {label} ({free_now} of the cluster's {at_most} free)")
    others = _on_cluster(_other_jobs)
    if any(there.get(name, 0.0) < amount for name, amount in wanted.items()):
        who = "Ray's autoscaler is asked for nodes" if _on_cluster(is_autoscaler_v2) else "a node with them has to join"
    elif others:
        first, more = others[0], f" and {len(others) - 1} more" if len(others) > 1 else ""
        running = f" ({first['Entrypoint'][:_ENTRYPOINT]})" if first["Entrypoint"] else ""
        who = f"another job, on {first['DriverIPAddress']}{running}{more}, may hold them"
    else:
        who = "`ray status` shows what holds them"
    return f"{' and '.join(parts)}; {who}"


def _on_cluster(look: Callable[[], _T]) -> _T:
    """Asks Ray's server; a driver that has joined through ray:// has no connection to it, and asks in a task."""
    return ray.get(ray.remote(num_cpus=0)(look).remote()) if client.is_connected() else look()


def _other_jobs() -> list[dict[str, Any]]:
    own = ray.get_runtime_context().get_job_id()
    return [job for job in jobs() if not job["IsDead"] and job["JobID"] != own]


def _beyond_autoscaler() -> bool:
    """Whether Ray's autoscaler says that no kind of node that it knows has a GPU as it is waited for."""
    messages: Any = autoscaler_pb2
    worker: Any = global_worker
    state = messages.GetClusterStatusReply.FromString(worker.gcs_client.get_cluster_status()).autoscaling_state
    groups = state.infeasible_gang_resource_requests
    asked = [
        one
        for group in groups
        for one in (*group.requests, *chain(*(b.resource_requests for b in group.bundle_selectors)))
    ]
    return any("GPU" in one.resources_bundle for one in (*asked, *state.infeasible_resource_requests))


class Followed:
    """Follows the cluster while a run lasts: what may be in flight grows and shrinks with it, as the pools do.

    Args:
        resources: How the cluster was shared at the run's start.
        block_bytes: What a decoded block takes at most.
        say: Shows a line.
    """

    def __init__(self, resources: Resources, block_bytes: int, say: Callable[[str], None]) -> None:
        self._resources, self._block_bytes, self._say = resources, block_bytes, say

    @property
    def limits(self) -> ExecutionResources:
        """Decoding would run ahead until the object store is full, and memory grow with the number of videos."""
        return ExecutionResources.for_limits(object_store_memory=self._resources.blocks_in_flight * self._block_bytes)

    @contextmanager
    def beside(self, stages: Dataset) -> Iterator[None]:
        """Looks now and then while this lasts: a block may take long, and a node that joins has none till then."""
        over = threading.Event()

        def follow() -> None:
            while not over.wait(_BETWEEN_LOOKS):
                try:
                    self.look(stages)
                except (RayError, RuntimeError):
                    continue  # a head that is slow is asked again; one that is gone ends the run

        thread = threading.Thread(target=follow, name="zar-follow", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join(_AT_ONCE)

    def look(self, stages: Dataset) -> None:
        """Looks what the cluster has; Ray Data reads a running dataset's limits every second."""
        now, before = Resources.of_cluster(self._resources.wanted), self._resources
        if now.decoders and (now.workers, now.decoders) != (before.workers, before.decoders):
            self._resources = now
            stages.context.execution_options.resource_limits = self.limits
            if now.workers != before.workers:
                self._say(f"the cluster has room for {now.workers} replicas now, it was {before.workers}")
