"""Which process had a video alone in its hands and never put it down, and what became of that process.

The cluster's own key-value store holds it, as a process that dies tells nothing afterwards.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import ray
from ray._private.worker import global_worker
from ray.exceptions import RayError
from ray.experimental.internal_kv import (
    _internal_kv_del,
    _internal_kv_get,
    _internal_kv_list,
    _internal_kv_put,
)
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from zar_ray.evaluation.spec import worker_name

_NAMESPACE = "zar-ray"
_KERNEL_COUNTS = Path("/proc/vmstat")

# A node that was cut off is known to be dead after a minute; until then a task on it waits.
_ANSWER_SECONDS = 90.0

End = Literal["crashed", "node", "memory", "unclear"]
"""How a process left a video: it died on a node that is well; its node is gone, or goes; the node's memory ran out, and
Ray or the kernel ended processes there; or it lives on, or nothing is known of it."""


@dataclass(frozen=True)
class Attempt:
    """A process that never put a video down.

    Attributes:
        video_id: The video.
        stage: ``decode`` or ``adapt``.
        node: Id of the process's node.
        worker: Id of the process.
        name: Host and process, for people.
        ended_before: Processes that the kernel of its node had ended for memory when it was begun.
    """

    video_id: str
    stage: str
    node: str
    worker: str
    name: str
    ended_before: int = 0


class Attempts:
    """Where the processes of one pass write down what they have in their hands; it travels to them."""

    def __init__(self) -> None:
        self._prefix = f"{uuid.uuid4().hex}/"

    def take(self, stage: str, videos: Iterable[str]) -> list[str]:
        """Writes down that this process has some videos in its hands; returns the keys for `put_down`."""
        context = ray.get_runtime_context()
        where = (stage, context.get_node_id(), context.get_worker_id(), worker_name(), ended_for_memory())
        taken = {f"{self._prefix}{uuid.uuid4().hex}": Attempt(video, *where) for video in videos}
        for key, one in taken.items():
            _internal_kv_put(key, json.dumps(vars(one)), namespace=_NAMESPACE)
        return [*taken]

    def put_down(self, keys: Iterable[str]) -> None:
        """Crosses out what `take` wrote."""
        for key in keys:
            _internal_kv_del(key, namespace=_NAMESPACE)

    def unfinished(self) -> list[Attempt]:
        """What was never put down; it is forgotten."""
        keys = _internal_kv_list(self._prefix, namespace=_NAMESPACE)
        values = [_internal_kv_get(key, namespace=_NAMESPACE) for key in keys]
        _internal_kv_del(self._prefix, del_by_prefix=True, namespace=_NAMESPACE)
        return [Attempt(**json.loads(value)) for value in values if value is not None]


@contextmanager
def holding(attempts: Attempts | None, stage: str, block: pa.Table) -> Iterator[None]:
    """While its block runs, a process has a block's videos in its hands; one that raises never puts them down."""
    keys = [] if attempts is None else attempts.take(stage, block["video_id"].to_pylist())
    yield
    if attempts is not None:
        attempts.put_down(keys)


class Hangs:
    """Videos at which a process of a run hung and ended itself: the next try of a block passes over them.

    Args:
        run: The run's folder.
    """

    def __init__(self, run: str) -> None:
        self._prefix = f"hung/{run}/"

    def add(self, video: str) -> None:
        """Writes one down, from any process and thread."""
        _internal_kv_put(self._prefix + video, b"", namespace=_NAMESPACE)

    def known(self) -> set[str]:
        """All of them."""
        keys = _internal_kv_list(self._prefix, namespace=_NAMESPACE)
        return {key.decode().removeprefix(self._prefix) for key in keys}

    def forget(self) -> None:
        """Before a pass: each of them has its rows, or is to be done again."""
        _internal_kv_del(self._prefix, del_by_prefix=True, namespace=_NAMESPACE)


def tried_before() -> bool:
    """Whether this process does a block that another one died of; no process outside a cluster does."""
    worker: Any = global_worker
    return worker.connected and worker.core_worker.get_current_task_attempt_number() > 0


def losses(videos: Iterable[str], attempts: Iterable[Attempt]) -> list[tuple[str, End, str]]:
    """What became of lost videos in one pass: of each the ends of its attempts, with a line about each for a log.

    A video that no process had in hand was lost on its way, with the node that held it.
    """
    wanted = set(videos)
    own = [one for one in attempts if one.video_id in wanted]
    well = _well({one.node for one in own})
    known = _exits([one.worker for one in own]) if well else {}
    found: list[tuple[str, End, str]] = []
    for one in own:
        end, why = known.get(one.worker, ("unclear", "nothing is known of the process"))
        if one.node not in well:
            end, why = "node", "its node is gone or going"
        elif end == "crashed" and well[one.node] > one.ended_before:
            # Ray sees a death by SIGKILL like any other; whom the kernel chooses says nothing of who took the memory.
            end, why = "memory", f"{why}; its node's kernel ended processes for memory meanwhile"
        found.append((one.video_id, end, f"{one.video_id}: {one.stage} by {one.name} on node {one.node[:12]}: {why}"))
    on_the_way = sorted(wanted - {one.video_id for one in own})
    return [*found, *((video, "node", f"{video}: lost on its way; no process had it in hand") for video in on_the_way)]


def ended_for_memory() -> int:
    """How many processes this node's kernel has ended as memory ran out, its own or a container's; 0 if unknown."""
    try:
        counts = dict(line.split() for line in _KERNEL_COUNTS.read_text().splitlines())
    except OSError:
        return 0
    return int(counts.get("oom_kill", 0))


def _well(nodes: Iterable[str]) -> dict[str, int]:
    """Those of some nodes that answer and stay, with `ended_for_memory` of each.

    A node that is gone, cut off or going runs no task.
    """
    ask = ray.remote(num_cpus=0, max_retries=0)(ended_for_memory)
    asked = {
        ask.options(scheduling_strategy=NodeAffinitySchedulingStrategy(one, soft=False)).remote(): one for one in nodes
    }
    if not asked:
        return {}
    answered, _ = ray.wait([*asked], num_returns=len(asked), timeout=_ANSWER_SECONDS)
    well = {}
    for one in answered:
        try:
            well[asked[one]] = ray.get(one)
        except RayError:
            continue
    return well


def _exits(workers: Sequence[str]) -> Mapping[str, tuple[End, str]]:
    """How processes ended, by what nodes told the head; asked by a task, as a driver may be outside the cluster."""
    return ray.get(ray.remote(num_cpus=0)(_read_exits).remote(list(workers)))


def _read_exits(workers: list[str]) -> dict[str, tuple[End, str]]:
    from ray._private.state import state
    from ray.core.generated import common_pb2, gcs_pb2

    exits: Any = vars(common_pb2)["WorkerExitType"]
    kinds: dict[str, End] = {"SYSTEM_ERROR": "crashed", "NODE_OUT_OF_MEMORY": "memory"}
    found: dict[str, tuple[End, str]] = {}
    for worker in workers:
        told = state._connect_and_get_accessor().get_worker_info(ray.WorkerID.from_hex(worker))
        if told is None:
            continue
        row = vars(gcs_pb2)["WorkerTableData"].FromString(told)
        if row.end_time_ms:
            kind, detail = exits.Name(row.exit_type), row.exit_detail.partition(" Some common causes")[0]
            found[worker] = kinds.get(kind, "unclear"), f"{kind}, {detail}"
        else:
            found[worker] = "unclear", "the process lives on"
    return found
