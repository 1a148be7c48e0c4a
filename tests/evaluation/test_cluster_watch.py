"""What is said of nodes that come and go, and of a run in which nothing moves."""

from __future__ import annotations

import io
from types import SimpleNamespace

import pytest
from rich.console import Console

from zar_ray.errors import RunError
from zar_ray.evaluation import progress, watch
from zar_ray.evaluation.progress import VideoProgress
from zar_ray.evaluation.resources import Resources, Wanted
from zar_ray.evaluation.run_log import RunLog
from zar_ray.evaluation.watch import ClusterWatch
from zar_ray.storage import Storage

NODES = ("10.0.0.1", "10.0.0.2", "10.0.0.3")


def node(address: str, alive: bool = True, reason: str = "") -> dict:
    return {
        "NodeID": f"id of {address}",
        "Alive": alive,
        "NodeManagerHostname": address,
        "NodeManagerAddress": address,
        "DeathReasonMessage": reason,
        "Resources": {"CPU": 8.0, "GPU": 1.0},
    }


class Cluster:
    """A cluster that is as it is told to be, and a clock."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.listed = [node(address) for address in NODES]
        self.draining: dict[str, float] = {}
        self.demands: list[tuple[dict[str, float], int]] = []

    def monotonic(self) -> float:
        return self.now

    def strftime(self, *_: object) -> str:
        return "now"

    gmtime = strftime

    def status(self, _: str) -> SimpleNamespace:
        bundles = [SimpleNamespace(bundle=bundle, count=count) for bundle, count in self.demands]
        demand = [SimpleNamespace(bundles_by_count=bundles)] if bundles else []
        return SimpleNamespace(resource_demands=SimpleNamespace(ray_task_actor_demand=demand))


@pytest.fixture
def cluster(monkeypatch):
    cluster = Cluster()
    monkeypatch.setattr(watch, "time", cluster)
    monkeypatch.setattr(progress, "time", cluster)
    monkeypatch.setattr(watch, "is_client", lambda: False)
    monkeypatch.setattr(watch, "state", SimpleNamespace(get_draining_nodes=lambda: cluster.draining))
    monkeypatch.setattr(watch, "get_cluster_status", cluster.status)
    ray = SimpleNamespace(
        nodes=lambda: cluster.listed,
        available_resources=lambda: {"CPU": 1.0},
        cluster_resources=lambda: {"CPU": 24.0, "GPU": 3.0},
        get_runtime_context=lambda: SimpleNamespace(gcs_address=""),
    )
    monkeypatch.setattr(watch, "ray", ray)
    return cluster


@pytest.fixture
def look(cluster, tmp_path):
    """Looks once; returns the lines that are new. All are in the log, too."""
    said = io.StringIO()
    storage = Storage(str(tmp_path))
    log = RunLog(storage)
    shown = VideoProgress(Console(file=said, width=300), 10, 0, log)
    watched = ClusterWatch(shown, log, Resources(Wanted("cuda", gpus=1.0), 4, 1.0, 2, 0.99, 0, 1))
    watched._nodes = watch._alive(cluster.listed)

    def once(videos: int = 0) -> list[str]:
        before = len(said.getvalue())
        if videos:
            shown.last_video = cluster.now
        watched._look_at_nodes(cluster.listed)
        watched._look_at_progress()
        watched._write()
        new = said.getvalue()[before:].splitlines()
        assert all(line in storage.read("run.log").decode() for line in new)
        return new

    return once


def test_nodes_that_come_and_go_are_told_once(cluster, look):
    assert look() == []
    cluster.listed[1] = node(NODES[1], alive=False, reason="health check\nfailed")
    (line,) = look()
    assert line.startswith("node 10.0.0.2 is gone (health check failed); ")
    assert line.endswith("2 nodes left")
    assert look() == []
    cluster.listed.append(node("10.0.0.4"))
    assert look() == ["node 10.0.0.4 has joined, 8 CPU and 1 GPU"]
    cluster.draining = {"id of 10.0.0.3": 0.0}
    (line,) = look()
    assert line.startswith("node 10.0.0.3 is drained")
    assert look() == []


def test_what_is_waited_for_is_told_after_a_minute_and_then_seldom(cluster, look):
    cluster.demands = [({"CPU": 0.99, "GPU": 1.0}, 2), ({"CPU": 1.0}, 1), ({"CPU": 5.0}, 3)]
    told = []
    for _ in range(600):
        cluster.now += 2
        told += [(cluster.now - 1000, line) for line in look()]
    assert [round(at) for at, _ in told] == [60, 120, 240, 480, 960]
    assert told[0][1] == (
        "no video for 60 s: 2 model replicas of 0.99 CPU and 1 GPU, 1 decoder of 1 CPU, 3 other tasks of 5 CPU"
        " waiting; 1 of 24 CPUs and 0 of 3 GPUs are free"
    )
    assert look(videos=1) == []
    cluster.demands = []
    cluster.now += 61
    (line,) = look()
    assert line.startswith("no video for 61 s: nothing waits for resources (")


def test_a_log_that_cannot_be_written_is_told_once(cluster, tmp_path, monkeypatch):
    def full(self, name, content):
        raise RunError(f"{name}: no space left")

    monkeypatch.setattr(Storage, "write", full)
    said, log = io.StringIO(), RunLog(Storage(str(tmp_path)))
    shown = VideoProgress(Console(file=said, width=300), 10, 0, log)
    watched = ClusterWatch(shown, log, Resources(Wanted("cuda", gpus=1.0), 4, 1.0, 2, 0.99, 0, 1))
    for number in range(3):
        log.add(f"line {number}")
        watched._write()
    assert said.getvalue().splitlines() == ["run.log: no space left; what happens is shown here alone"]
