"""Who gets a GPU, who computes on the CPU, and what is refused before any worker is made; nothing here starts Ray."""

from __future__ import annotations

import io
from types import SimpleNamespace

import pytest
import torch
from ray.exceptions import GetTimeoutError, RayTaskError
from rich.console import Console

from zar_ray import cluster
from zar_ray.cluster import gpus_per_worker, reserved_gpus, share_of_gpu, worker_device
from zar_ray.errors import ModelError, RunError
from zar_ray.evaluation import capacity, preflight
from zar_ray.evaluation.options import EvaluationOptions
from zar_ray.evaluation.preflight import check_devices, without_unfit_nodes
from zar_ray.evaluation.resources import Resources, Wanted
from zar_ray.training import job as training_job
from zar_ray.training.options import TrainConfig
from zar_ray.training.workers import WorkerNeeds, gpus_per_process


@pytest.fixture
def there(monkeypatch):
    """A cluster of so many CPUs and GPUs."""

    def make(cpus=16.0, gpus=0.0, platform="linux"):
        there = {"CPU": cpus, "GPU": gpus, "memory": 4e9}
        node = {"NodeID": "n", "NodeManagerHostname": "h", "Alive": True, "Resources": there}
        monkeypatch.setattr(cluster.ray, "cluster_resources", lambda: there)
        monkeypatch.setattr(cluster.ray, "nodes", lambda: [node])
        monkeypatch.setattr(capacity, "is_autoscaler_v2", lambda: False)
        monkeypatch.setattr(capacity, "placement_group", lambda _: SimpleNamespace(wait=lambda _: True))
        monkeypatch.setattr(capacity, "remove_placement_group", lambda _: None)
        monkeypatch.setattr(cluster.sys, "platform", platform)

    return make


def room(options):
    return capacity.room_for(options, Console(file=io.StringIO()))


@pytest.mark.parametrize(("cpus", "gpus"), [(16, 8), (2, 1), (1, 1), (208, 8)])
@pytest.mark.parametrize("said", [{"device": "cpu"}, {"gpus_per_worker": 0.0}, {"device": "cpu", "gpus_per_worker": 0}])
def test_the_cpu_of_a_gpu_machine_is_shared_as_a_cpu_machines(there, cpus, gpus, said):
    there(cpus)
    alone = room(EvaluationOptions())
    assert (alone.device, alone.worker_gpus) == ("cpu", 0.0)
    there(cpus, gpus)
    assert room(EvaluationOptions(**said)) == alone
    assert room(EvaluationOptions(**said, num_workers=3)).worker_gpus == 0


@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_a_worker_that_has_a_gpu_must_use_it(there, device):
    """``auto`` is settled: where its PyTorch cannot, the worker must not fall back on its one thread."""
    there(16, 4)
    planned = room(EvaluationOptions(device=device))
    assert (planned.device, planned.workers, planned.worker_gpus, planned.threads) == ("cuda", 4, 1.0, 1)
    half = room(EvaluationOptions(device=device, gpus_per_worker=0.5))
    assert (half.device, half.workers) == ("cuda", 8)


@pytest.mark.parametrize(
    ("gpus", "device", "asked", "said"),
    [
        (8, "cuda", 0.0, "--device cuda: --gpus-per-worker 0 leaves a worker none; choose --device cpu"),
        (8, "cuda:1", 0.0, "--device cuda:1: --gpus-per-worker 0 leaves a worker none"),
        (0, "cuda", None, "--device cuda: the cluster has no GPUs; choose --device cpu"),
        (8, "cpu", 1.0, "--gpus-per-worker 1 --device cpu: the CPU needs no GPU; leave one of them away"),
        (2, "auto", 4.0, "--gpus-per-worker 4: the cluster has 2 GPUs"),
        (0, "auto", 0.5, "--gpus-per-worker 0.5: the cluster has 0 GPUs"),
        (8, "auto", 1.5, "--gpus-per-worker 1.5: Ray gives a worker shares of one GPU, or whole ones"),
        (
            8,
            "cuda:1",
            None,
            "--device cuda:1: a worker sees those GPUs alone that it reserves, .*; give --device cuda",
        ),
        (8, "cuda:2", 2.0, "--device cuda:2: a worker sees those GPUs alone that it reserves"),
    ],
)
def test_what_does_not_fit_is_one_line(there, gpus, device, asked, said):
    there(16, gpus)
    for refuse in (
        lambda: gpus_per_worker(device, asked),
        lambda: room(EvaluationOptions(device=device, gpus_per_worker=asked)),
        lambda: gpus_per_process(TrainConfig(device=device, gpus_per_worker=asked)),
    ):
        with pytest.raises(RunError, match=said):
            refuse()


def test_gpus_that_may_still_come_are_looked_at_too(there):
    there(16)
    for said in ({"gpus_per_worker": 2.5}, {"device": "cuda:1"}):
        with pytest.raises(RunError, match=r"Ray gives a worker|a worker sees"):
            room(EvaluationOptions(wait_for_gpus=0.1, **said))


def test_the_first_of_the_gpus_that_a_worker_reserves_may_be_numbered(there):
    there(16, 8)
    assert [gpus_per_worker(*told) for told in (("cuda:0", 0.5), ("cuda:0", None), ("cuda:1", 2.0))] == [0.5, 1.0, 2.0]


def test_apples_gpu_is_used_where_it_is_named(there):
    there(8, 1, platform="darwin")
    assert (gpus_per_worker("auto", None), gpus_per_worker("mps", None)) == (0.0, 1.0)
    assert [worker_device("auto", 0.0), worker_device("mps", 1.0)] == ["cpu", "mps"]


def test_outside_a_cluster_no_gpu_is_reserved(monkeypatch):
    monkeypatch.setattr(cluster.ray, "is_initialized", lambda: False)
    assert reserved_gpus() == 0
    monkeypatch.setattr(cluster.ray, "is_initialized", lambda: True)
    monkeypatch.setattr(cluster.ray, "get_gpu_ids", lambda: ["3"])
    assert reserved_gpus() == 1


@pytest.mark.parametrize(
    ("actor", "assigned", "share"),
    [
        (None, None, 1.0),
        ("a1", {"CPU": 1.0}, 1.0),
        ("a1", {"GPU": 0.25}, 0.25),
        ("a1", {"GPU": 1.0}, 1.0),
        ("a1", {"GPU": 2.0}, 1.0),
    ],
)
def test_an_actor_has_its_part_of_a_gpu_to_itself(monkeypatch, actor, assigned, share):
    # As Ray's own (2.60), which refuses in a driver to tell what is assigned.
    context = SimpleNamespace(get_actor_id=lambda: actor, get_assigned_resources=lambda: {**assigned})
    monkeypatch.setattr(cluster.ray, "is_initialized", lambda: True)
    monkeypatch.setattr(cluster.ray, "get_runtime_context", lambda: context)
    assert share_of_gpu() == share


@pytest.mark.parametrize(
    ("asked", "workers", "refused"),
    [(0.5, 2, True), (0.25, 4, True), (0.5, 1, False), (0.6, 2, False), (1.0, 4, False)],
)
def test_processes_of_a_training_do_not_share_a_gpu(there, asked, workers, refused):
    there(64, 8)
    config = TrainConfig(gpus_per_worker=asked, num_workers=workers)
    if not refused:
        assert gpus_per_process(config) == asked
        return
    with pytest.raises(
        RunError, match=f"--num-workers {workers} of {asked:g} GPUs each: .*NCCL refuses; give each a whole"
    ):
        gpus_per_process(config)


def test_a_training_that_would_wait_for_gpus_for_ever_is_refused(there):
    there(64, 2)
    with pytest.raises(RunError, match="--num-workers 4 of 1 GPUs each: the cluster has 2 GPUs"):
        gpus_per_process(TrainConfig(num_workers=4))
    assert gpus_per_process(TrainConfig(num_workers=4, device="cpu")) == 0
    assert gpus_per_process(TrainConfig(num_workers=(2, 4))) == 1


@pytest.mark.parametrize(("gpus", "wanted"), [(0.0, {"CPU": 3}), (1.0, {"CPU": 3, "GPU": 1.0})])
def test_a_training_reserves_what_it_was_told(monkeypatch, gpus, wanted):
    made = {}

    class Trainer:
        def __init__(self, _, scaling_config, **more):
            made["scaling"] = scaling_config

        def fit(self):
            return SimpleNamespace(metrics=None)

    monkeypatch.setattr(training_job, "TorchTrainer", Trainer)
    monkeypatch.setattr(training_job.ray, "put", lambda job: job)
    storage = SimpleNamespace(location="/nowhere", is_local=True, child=lambda name: storage)
    monkeypatch.setattr(training_job, "workers_with_room", lambda fewest, *_: fewest)
    monkeypatch.setattr(training_job, "alive_nodes", dict)
    job = SimpleNamespace(config=TrainConfig(), validation=None)
    training_job._fit(job, WorkerNeeds(3, gpus, decoders=2), "name", storage, None)
    assert made["scaling"].use_gpu == (gpus > 0)
    assert made["scaling"].resources_per_worker == wanted


class Nodes:
    """In Ray's place: runs a task on each node at once, as what that node's PyTorch is."""

    def __init__(self, monkeypatch, **nodes):
        self.problems = {name: problem for name, (_, problem) in nodes.items()}
        self.reserved, self.asked = [], []
        monkeypatch.setattr(
            preflight.ray,
            "nodes",
            lambda: [
                {"NodeID": name, "NodeManagerHostname": name, "Alive": name != "gone", "Resources": resources}
                for name, (resources, _) in nodes.items()
            ],
        )
        monkeypatch.setattr(preflight.ray, "remote", self.remote)
        monkeypatch.setattr(preflight.ray, "get", self.get)
        monkeypatch.setattr(preflight, "NodeAffinitySchedulingStrategy", lambda name, soft: name)
        monkeypatch.setattr(preflight, "pick_device", self.pick)
        monkeypatch.setattr(preflight, "require_compiler", self.compile)

    def remote(self, **options):
        self.reserved.append(options["num_gpus"])
        return lambda task: SimpleNamespace(
            options=lambda scheduling_strategy: SimpleNamespace(remote=lambda *told: (task, scheduling_strategy, told))
        )

    def get(self, begun, timeout):
        task, self.here, told = begun
        self.asked.append(self.here)
        if isinstance(self.problems[self.here], type):
            raise self.problems[self.here]("late")
        return task(*told)

    def pick(self, device):
        if device == "cuda" and self.problems[self.here] == "driver":
            raise ModelError("device cuda: its driver is too old")
        return torch.device(device)

    def compile(self, device):
        if self.problems[self.here] == "compiler":
            raise ModelError("--compile: there is no compiler")


HEAD, GPU_NODE = {"CPU": 8.0}, {"CPU": 16.0, "GPU": 2.0}


def test_nodes_that_have_gpus_are_asked_about_them(monkeypatch):
    """The head, on which the command runs, may have none, and each node a driver of its own."""
    nodes = Nodes(monkeypatch, head=(HEAD, "driver"), a=(GPU_NODE, None), gone=(GPU_NODE, "driver"), b=(GPU_NODE, None))
    check_devices(1.0, "cuda")
    assert nodes.asked == ["a", "b"]
    assert nodes.reserved == [0], "GPUs that others hold are not waited for"


@pytest.mark.parametrize(
    ("problem", "compiles", "said"),
    [
        ("driver", False, r"node b: device cuda: its driver is too old \(and 1 more\)"),
        ("driver", True, r"node b: device cuda: its driver is too old \(and 1 more\)"),
        ("compiler", True, r"node b: --compile: there is no compiler \(and 1 more\)"),
        (GetTimeoutError, False, r"node b: has not answered for 120 s; it hangs, or others hold what it has"),
    ],
)
def test_the_first_node_that_cannot_is_named(monkeypatch, problem, compiles, said):
    nodes = Nodes(monkeypatch, a=(GPU_NODE, None), b=(GPU_NODE, problem), c=(GPU_NODE, problem))
    with pytest.raises(RunError, match=said) as caught:
        check_devices(1.0, "cuda", compiles)
    assert "\n" not in str(caught.value)
    assert nodes.asked == ["a", "b", "c"]
    assert nodes.reserved == [1.0 if compiles else 0], "a compiled function takes memory of a GPU"


@pytest.mark.parametrize("bad", ["b", "bc"])
def test_a_node_that_cannot_is_left_out_where_others_can(monkeypatch, bad):
    unfit = dict.fromkeys(bad, (GPU_NODE, "driver"))
    Nodes(monkeypatch, head=(HEAD, "driver"), a=(GPU_NODE, None), **unfit)
    resources, said = Resources.of_cluster(Wanted("cuda", 1.0)), []
    rest = without_unfit_nodes(resources, False, said.append)
    assert (rest.workers, rest.wanted.left_out, rest.decoders) == (2, set(bad), resources.decoders)
    assert said == [f"node {name}: device cuda: its driver is too old; no replica is put there" for name in sorted(bad)]
    too_few = Resources.of_cluster(Wanted("cuda", 1.0, least=3))
    with pytest.raises(RunError, match="node b: device cuda: its driver is too old"):
        without_unfit_nodes(too_few, False, said.append)


def test_where_no_node_can_the_run_ends(monkeypatch):
    Nodes(monkeypatch, head=(HEAD, None), a=(GPU_NODE, "driver"), b=(GPU_NODE, "driver"))
    with pytest.raises(RunError, match=r"node a: device cuda: its driver is too old \(and 1 more\)"):
        without_unfit_nodes(Resources.of_cluster(Wanted("cuda", 1.0)), False, print)


def test_on_cpus_every_node_must_compile_and_nothing_else(monkeypatch):
    nodes = Nodes(
        monkeypatch, head=(HEAD, None), a=(GPU_NODE, "driver"), b=(HEAD, "compiler"), none=({"CPU": 0.0}, None)
    )
    check_devices(0.0, "cpu")
    assert nodes.asked == []
    with pytest.raises(RunError, match=r"node b: --compile: there is no compiler$"):
        check_devices(0.0, "cpu", compiles=True)
    assert nodes.asked == ["head", "a", "b"]


def test_two_nodes_of_one_host_are_both_asked(monkeypatch):
    nodes = Nodes(monkeypatch, a=(GPU_NODE, None), b=(GPU_NODE, "driver"))
    monkeypatch.setattr(
        preflight.ray,
        "nodes",
        lambda: [{"NodeID": name, "NodeManagerHostname": "h", "Alive": True, "Resources": GPU_NODE} for name in "ba"],
    )
    with pytest.raises(RunError, match="node h: device cuda"):
        check_devices(1.0, "cuda")
    assert nodes.asked == ["b", "a"]


def test_an_unforeseen_failure_is_told_with_its_node(monkeypatch):
    nodes = Nodes(monkeypatch, a=(GPU_NODE, None))
    monkeypatch.setattr(nodes, "pick", None)
    monkeypatch.setattr(
        preflight.ray, "get", lambda begun, timeout: (_ for _ in ()).throw(RayTaskError("f", "tb", ValueError("odd")))
    )
    with pytest.raises(RunError, match=r"node a: cannot run zar-ray \(odd\)"):
        check_devices(1.0, "cuda")


def test_workers_are_told_the_device_and_the_run_keeps_what_was_asked(monkeypatch, there):
    from zar_ray.adaptation.options import Setting
    from zar_ray.evaluation.planning import on_device

    settings = (Setting(EvaluationOptions(seed=3), ()), Setting(EvaluationOptions(seed=4), ()))
    placed = on_device(settings, "cuda")
    assert [(one.options.device, one.options.seed) for one in placed] == [("cuda", 3), ("cuda", 4)]
    assert [one.options.device for one in settings] == ["auto", "auto"]
