"""What a run waits for before it starts, what it says meanwhile, and how it follows the cluster; without Ray."""

from __future__ import annotations

import io
import threading
from types import SimpleNamespace

import pytest
from rich.console import Console

from zar_ray.errors import RunError
from zar_ray.evaluation import capacity
from zar_ray.evaluation.options import EvaluationOptions
from zar_ray.evaluation.resources import Resources, Wanted


class Cluster:
    """In Ray's place: nodes of (CPUs, GPUs), and what happens to them after so many seconds of a clock of its own."""

    def __init__(self, monkeypatch, *nodes, autoscaler=False, brings=True, held=(), later=None, jobs=()):
        self.nodes, self.held, self.later, self.now = list(nodes), dict(held), dict(later or {}), 0.0
        self.infeasible = not brings
        self.silent = None  # a node that answers nothing
        self.asked, self.removed = [], 0
        monkeypatch.setattr(capacity.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(capacity, "is_autoscaler_v2", lambda: autoscaler)
        monkeypatch.setattr(capacity, "_beyond_autoscaler", lambda: self.infeasible)
        monkeypatch.setattr(capacity, "placement_group", self.group)
        monkeypatch.setattr(capacity, "remove_placement_group", self.remove)
        ray = capacity.ray
        monkeypatch.setattr(ray, "nodes", self.described)
        monkeypatch.setattr(ray, "cluster_resources", self.total)
        monkeypatch.setattr(ray, "available_resources", self.free)
        monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(get_job_id=lambda: "mine"))
        monkeypatch.setattr(capacity, "available_resources_per_node", self.free_by_node)
        monkeypatch.setattr(capacity, "jobs", lambda: [{"JobID": "mine", "IsDead": False}, *jobs])
        self.said = io.StringIO()

    def described(self):
        return [
            {
                "NodeID": str(number),
                "NodeManagerHostname": "h",
                "Alive": True,
                "Resources": {"CPU": cpus, "GPU": gpus, "memory": 4e9},
            }
            for number, (cpus, gpus) in enumerate(self.nodes)
        ]

    def total(self):
        return {"CPU": sum(cpus for cpus, _ in self.nodes), "GPU": sum(gpus for _, gpus in self.nodes)}

    def free(self):
        return {name: amount - self.held.get(name, 0) for name, amount in self.total().items()}

    def free_by_node(self):
        """Whoever holds something holds it on the first node."""
        held = [self.held, *[{}] * len(self.nodes)]
        return {
            node["NodeID"]: {name: amount - of.get(name, 0) for name, amount in node["Resources"].items()}
            for node, of in zip(self.described(), held, strict=False)
        }

    def group(self, bundles):
        self.asked.append(bundles)
        answered = self.silent not in self.nodes

        def wait(seconds):
            free = self.free()
            if answered and all(sum(one.get(name, 0) for one in bundles) <= free[name] for name in ("CPU", "GPU")):
                return True
            return self.never(seconds)

        return SimpleNamespace(wait=wait)

    def never(self, seconds):
        """Time goes by, and nothing is granted."""
        self.now += seconds
        for when in [when for when in self.later if when <= self.now]:
            self.later.pop(when)(self)
        return False

    def remove(self, group):
        self.removed += 1

    def room(self, **options):
        return capacity.room_for(EvaluationOptions(**options), Console(file=self.said, width=300))

    @property
    def lines(self):
        return self.said.getvalue().splitlines()


def gains(*node):
    return lambda cluster: cluster.nodes.append(node)


@pytest.mark.parametrize("nodes", [[(2, 0)], [(16, 0), (16, 0)], [(16, 4)], [(0, 0), (2, 4), (31, 0)]])
def test_what_is_free_is_had_without_a_word(monkeypatch, nodes):
    cluster = Cluster(monkeypatch, *nodes)
    assert cluster.room().enough
    assert (cluster.lines, cluster.now, cluster.removed) == ([], 0.0, 1)


@pytest.mark.parametrize(
    ("nodes", "options", "said"),
    [
        ([(16, 0)], {"gpus_per_worker": 1}, "--gpus-per-worker 1: the cluster has 0 GPUs"),
        ([(16, 0)], {"device": "cuda"}, "--device cuda: the cluster has no GPUs; choose --device cpu"),
        ([(16, 1), (16, 1)], {"gpus_per_worker": 2}, "--gpus-per-worker 2: no node of the cluster has so many; add"),
        ([(16, 3)], {"num_workers": 5}, "--num-workers 5 of 1 GPUs each: the cluster has room for 3; add nodes, or"),
        ([(16, 3)], {"num_workers": (4, 9)}, "--num-workers 4 of 1 GPUs each: the cluster has room for 3"),
    ],
)
def test_what_nobody_can_bring_is_refused_at_once(monkeypatch, nodes, options, said):
    cluster = Cluster(monkeypatch, *nodes)
    with pytest.raises(RunError, match=said) as caught:
        cluster.room(**options)
    assert "\n" not in str(caught.value)
    assert cluster.now == 0


@pytest.mark.parametrize(
    ("options", "autoscaler", "workers"),
    [
        ({"wait_for_gpus": 300}, False, 2),
        ({"wait_for_gpus": 300, "device": "cuda"}, False, 2),
        ({"wait_for_gpus": 300, "gpus_per_worker": 0.5}, False, 4),
        ({}, True, 2),
        ({"gpus_per_worker": 2}, True, 1),
        ({"num_workers": 2}, True, 2),
        ({"num_workers": (1, 2)}, True, 2),
    ],
)
def test_a_gpu_node_that_comes_is_waited_for(monkeypatch, options, autoscaler, workers):
    cluster = Cluster(monkeypatch, (4, 0), autoscaler=autoscaler, later={100: gains(8, 2)})
    found = cluster.room(**options)
    assert (found.device, found.workers) == ("cuda", workers)
    assert 100 <= cluster.now < 110
    assert len(cluster.lines) == 4, "at once, and every half minute"
    who = "Ray's autoscaler is asked for nodes" if autoscaler else "a node with them has to join"
    for line in cluster.lines:
        assert line.startswith("waiting for ")
        assert " GPU (0 of the cluster's 0 free)" in line
        assert who in line
        assert line.endswith(f"s so far of at most {options.get('wait_for_gpus', 600)}")
    asked = [one for one in cluster.asked[0] if "GPU" in one]
    assert asked == [{"GPU": options.get("gpus_per_worker", 1.0)}] * (2 if options.get("num_workers") == 2 else 1)
    assert cluster.removed == 1


@pytest.mark.parametrize(("options", "autoscaler", "after"), [({"wait_for_gpus": 45}, False, 45), ({}, True, 600)])
def test_a_wait_in_vain_ends_in_one_line(monkeypatch, options, autoscaler, after):
    cluster = Cluster(monkeypatch, (4, 0), autoscaler=autoscaler)
    with pytest.raises(RunError, match=r"^1 GPU \(0 of the cluster's 0 free\); .*: waited for in vain for") as caught:
        cluster.room(**options)
    assert "\n" not in str(caught.value)
    assert after <= cluster.now < after + 5
    assert cluster.removed == 1


def test_an_autoscaler_that_knows_no_gpus_leaves_the_cpus(monkeypatch):
    cluster = Cluster(monkeypatch, (4, 0), autoscaler=True, brings=False)
    assert (cluster.room().device, cluster.room().workers) == ("cpu", 2)
    assert cluster.lines[0] == "Ray's autoscaler knows no node with a GPU: computing on CPUs"
    assert cluster.now < 30
    with pytest.raises(RunError, match="waited for in vain"):
        cluster.room(gpus_per_worker=1)


def test_the_cpus_are_used_where_they_are_asked_for(monkeypatch):
    cluster = Cluster(monkeypatch, (4, 0), autoscaler=True)
    assert [cluster.room(**told).device for told in ({"device": "cpu"}, {"gpus_per_worker": 0})] == ["cpu", "cpu"]
    assert cluster.lines == []


def test_gpus_that_another_job_holds_are_waited_for_without_end(monkeypatch):
    jobs = [{"JobID": "theirs", "IsDead": False, "DriverIPAddress": "10.0.0.7", "Entrypoint": "python train.py"}]
    cluster = Cluster(
        monkeypatch, (8, 2), held={"GPU": 2}, jobs=jobs, later={5000: lambda cluster: cluster.held.clear()}
    )
    assert cluster.room().workers == 2
    assert cluster.now >= 5000
    assert "1 GPU (0 of the cluster's 2 free)" in cluster.lines[0]
    assert "another job, on 10.0.0.7 (python train.py), may hold them; 4 s so far" in cluster.lines[0]
    assert 5000 / 33 - 3 < len(cluster.lines) <= 1 + 5000 / 30
    assert not any("CPU" in line for line in cluster.lines), "there are enough"


def test_what_an_earlier_run_of_this_process_holds_is_collected_before_it_is_waited_for(monkeypatch):
    cluster = Cluster(monkeypatch, (8, 2), held={"GPU": 2})
    monkeypatch.setattr(capacity.gc, "collect", cluster.held.clear)
    assert cluster.room(wait_for_gpus=30).workers == 2
    assert cluster.now <= 1
    assert cluster.lines == []


def test_a_cluster_without_cpus_is_waited_for_and_told(monkeypatch):
    cluster = Cluster(monkeypatch, (0, 0), later={40: gains(6, 0)})
    assert cluster.room().workers == 3
    assert len(cluster.lines) == 2
    assert "CPU (0 of the cluster's 0 free); a node with them has to join" in cluster.lines[0]
    with pytest.raises(RunError, match="waited for in vain for 60"):
        Cluster(monkeypatch, (0, 0)).room()


@pytest.mark.parametrize(("others", "workers"), [([(8, 0)], 4), ([(2, 0), (2, 0), (2, 0)], 3)])
def test_a_lost_node_that_was_asked_is_not_waited_for(monkeypatch, others, workers):
    """Ray awaits its answer for minutes, and gives nobody a placement group until then."""
    cluster = Cluster(monkeypatch, *others, (4, 0), later={9: lambda cluster: cluster.nodes.remove((4, 0))})
    cluster.silent = (4, 0)
    assert cluster.room().workers == workers
    assert 9 <= cluster.now < 13
    assert (len(cluster.asked), cluster.removed) == (1, 1)


def test_a_node_that_joined_meanwhile_may_be_the_lost_one(monkeypatch):
    later = {9: gains(4, 0), 20: lambda cluster: cluster.nodes.remove((4, 0))}
    cluster = Cluster(monkeypatch, (8, 0), held={"CPU": 7.5}, later=later)
    monkeypatch.setattr(capacity, "placement_group", lambda bundles: SimpleNamespace(wait=cluster.never))
    cluster.later[30] = lambda cluster: cluster.held.clear()
    assert cluster.room().workers == 4
    assert 30 <= cluster.now < 34


def test_what_others_hold_beside_a_lost_node_is_waited_for(monkeypatch):
    later = {9: lambda cluster: cluster.nodes.remove((4, 0)), 60: lambda cluster: cluster.held.clear()}
    cluster = Cluster(monkeypatch, (8, 0), (4, 0), held={"CPU": 7.5}, later=later)
    cluster.silent = (4, 0)
    assert cluster.room().workers == 4
    assert 60 <= cluster.now < 64


def test_what_may_be_in_flight_follows_the_cluster(monkeypatch):
    cluster = Cluster(monkeypatch, (8, 2))
    resources, said = Resources.of_cluster(Wanted("cuda", 1.0)), []
    followed = capacity.Followed(resources, 1000, said.append)
    assert followed.limits.object_store_memory == 1000 * (6 + 3 * 2)
    options = SimpleNamespace(resource_limits=followed.limits)
    stages = SimpleNamespace(context=SimpleNamespace(execution_options=options))
    cluster.nodes.append((8, 2))
    followed.look(stages)
    assert options.resource_limits.object_store_memory == 24_000
    followed.look(stages)
    del cluster.nodes[0]
    followed.look(stages)
    assert options.resource_limits.object_store_memory == 12_000
    assert said == [
        "the cluster has room for 4 replicas now, it was 2",
        "the cluster has room for 2 replicas now, it was 4",
    ]


def test_it_is_followed_while_no_block_ends(monkeypatch):
    """A node that joins would else have nothing to do until the first one does."""
    cluster, said = Cluster(monkeypatch, (8, 2)), threading.Event()
    followed = capacity.Followed(Resources.of_cluster(Wanted("cuda", 1.0)), 1000, lambda line: said.set())
    options = SimpleNamespace(resource_limits=followed.limits)
    stages = SimpleNamespace(context=SimpleNamespace(execution_options=options))
    monkeypatch.setattr(capacity, "_BETWEEN_LOOKS", 0.01)
    with followed.beside(stages):
        cluster.nodes.append((8, 2))
        assert said.wait(30)
    assert options.resource_limits.object_store_memory == 24_000


def test_each_bundle_needs_a_place_of_its_own(monkeypatch):
    nodes = {"a": {"CPU": 4.0}}
    monkeypatch.setattr(capacity, "available_resources_per_node", lambda: nodes)
    assert capacity._fit([{"CPU": 3.0}, {"CPU": 1.0}])
    assert not capacity._fit([{"CPU": 3.0}, {"CPU": 2.0}])
    nodes["b"] = {"CPU": 2.0}
    assert capacity._fit([{"CPU": 3.0}, {"CPU": 2.0}])
    assert not capacity._fit([{"CPU": 5.0}])
