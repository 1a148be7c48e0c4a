"""What happens to the cluster while a run goes on, in a line each: nodes that come and go, and what is waited for."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any

import ray
from ray._private.state import state
from ray.autoscaler.v2.sdk import get_cluster_status
from ray.exceptions import RayError

from zar_ray.cluster import doubt, is_client
from zar_ray.errors import RunError, reason_of
from zar_ray.evaluation.progress import VideoProgress
from zar_ray.evaluation.resources import Resources
from zar_ray.evaluation.run_log import RunLog

_LOOK_EVERY = 2.0

QUIET_SECONDS = 60.0
"""Seconds without a finished video after which it is said what is waited for; then twice as many, and so on."""

_SELDOM = 600.0


class ClusterWatch:
    """Looks at the joined cluster every other second, as a context manager.

    Args:
        progress: Where it says what it sees, and which knows when the last video came.
        log: The run's log, which is written as it goes.
        resources: What the run asks of the cluster.
    """

    def __init__(self, progress: VideoProgress, log: RunLog, resources: Resources) -> None:
        self._progress = progress
        self._log = log
        self._asked = {
            "model replica": {"CPU": resources.worker_cpus, "GPU": resources.worker_gpus},
            "decoder": {"CPU": resources.decoder_cpus, "GPU": 0.0},
        }
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._run, name="zar-watch", daemon=True)
        self._nodes: dict[str, dict[str, Any]] = {}
        self._drained: set[str] = set()
        self._written = True
        self._tell_after = QUIET_SECONDS

    def __enter__(self) -> ClusterWatch:
        self._nodes = _alive(ray.nodes())
        self._thread.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._left.set()

    def _run(self) -> None:
        while not self._left.wait(_LOOK_EVERY):
            try:
                self._look_at_nodes(ray.nodes())
                self._look_at_progress()
            except (RayError, RuntimeError):
                # A head that is gone is told by `zar_ray.cluster.connected`; one that is slow is asked again.
                continue
            self._write()

    def _write(self) -> None:
        try:
            self._log.write()
        except RunError as error:
            if self._written:
                self._progress.say(f"{reason_of(error)}; what happens is shown here alone")
            self._written = False

    def _look_at_nodes(self, seen: list[dict[str, Any]]) -> None:
        alive, dead = _alive(seen), {node["NodeID"]: node for node in seen if not node["Alive"]}
        for node in self._nodes.keys() - alive.keys():
            why = " ".join(dead.get(node, {}).get("DeathReasonMessage", "").split())
            self._progress.say(
                f"node {_name(self._nodes[node])} is gone ({why or 'no reason is known'}); what it had in work is done"
                f" again elsewhere; {_count(len(alive), 'node')} left"
            )
        for node in alive.keys() - self._nodes.keys():
            self._progress.say(f"node {_name(alive[node])} has joined, {_amounts(alive[node]['Resources'])}")
        self._nodes = alive
        if gone := _addresses(dead) - _addresses(alive):
            doubt(gone)
        if not is_client():
            for node in state.get_draining_nodes().keys() - self._drained:
                self._drained.add(node)
                if node in alive:
                    self._progress.say(f"node {_name(alive[node])} is drained: it gets no new work, and will go")

    def _look_at_progress(self) -> None:
        quiet = time.monotonic() - self._progress.last_video
        if quiet < QUIET_SECONDS:
            self._tell_after = QUIET_SECONDS
        elif quiet >= self._tell_after:
            self._tell_after = quiet + min(quiet, _SELDOM)
            self._progress.say(f"no video for {quiet:.0f} s: {self._waited_for()}")

    def _waited_for(self) -> str:
        free, total = ray.available_resources(), ray.cluster_resources()
        kinds = [kind for kind in ("CPU", "GPU") if total.get(kind) or kind == "CPU"]
        there = " and ".join(f"{free.get(kind, 0):g} of {total.get(kind, 0):g} {kind}s" for kind in kinds)
        if is_client():
            return f"{there} are free"
        status = get_cluster_status(ray.get_runtime_context().gcs_address)
        waiting = [
            f"{_count(one.count, self._role(one.bundle))} of {_amounts(one.bundle)}"
            for demand in status.resource_demands.ray_task_actor_demand
            for one in demand.bundles_by_count
        ]
        if not waiting:
            return f"nothing waits for resources ({there} are free); models are loaded, or videos at work"
        return f"{', '.join(waiting)} waiting; {there} are free"

    def _role(self, bundle: Mapping[str, float]) -> str:
        """Who asks for so much; other jobs may."""
        for role, asked in self._asked.items():
            if all(abs(bundle.get(kind, 0.0) - amount) < 1e-3 for kind, amount in asked.items()):
                return role
        return "other task"


def _alive(nodes: Iterable[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {node["NodeID"]: node for node in nodes if node["Alive"]}


def _addresses(nodes: Mapping[str, Mapping[str, Any]]) -> set[str]:
    return {node["NodeManagerAddress"] for node in nodes.values()}


def _name(node: Mapping[str, Any]) -> str:
    host, address = node["NodeManagerHostname"], node["NodeManagerAddress"]
    return host if host == address else f"{host} ({address})"


def _amounts(resources: Mapping[str, float]) -> str:
    amounts = [f"{resources[kind]:g} {kind}" for kind in ("CPU", "GPU") if resources.get(kind)]
    return " and ".join(amounts) or "no CPU"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
