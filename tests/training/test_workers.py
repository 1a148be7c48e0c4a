"""How many processes train, and when more of them are to."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from zar_ray.errors import RunError
from zar_ray.training import workers
from zar_ray.training.options import TrainConfig
from zar_ray.training.workers import Growth, WorkerNeeds, worker_bounds, worker_needs, workers_with_room


@pytest.fixture
def clock(monkeypatch):
    """Time that passes where someone sleeps."""
    now = [1000.0]
    monkeypatch.setattr(workers.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(workers.time, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
    return now


@pytest.fixture
def room(monkeypatch, clock):
    """A scheduler with room for as many processes as a function of the time has; gives what it was asked for."""

    def make(has):
        asked = []

        def ask(bundles):
            asked.append(bundles)
            number = len(asked)
            return SimpleNamespace(wait=lambda seconds: has(clock[0] - 1000) >= number, number=number)

        monkeypatch.setattr(workers, "placement_group", ask)
        monkeypatch.setattr(workers, "remove_placement_group", lambda one: asked.__setitem__(one.number - 1, None))
        return asked

    return make


class TestRoom:
    def test_as_many_as_are_asked_for_start_at_once(self, room, clock, capsys):
        asked = room(lambda seconds: 9)
        assert workers_with_room(2, 4, WorkerNeeds(3, 1.0, 2), Console()) == 4
        assert clock[0] == 1000
        assert asked == [None] * 4, "what was asked for must be free for the processes"
        assert capsys.readouterr().out == ""

    def test_decoders_are_asked_for_beside_each_on_any_node(self, monkeypatch, room):
        room(lambda seconds: 9)
        seen, ask = [], workers.placement_group
        monkeypatch.setattr(workers, "placement_group", lambda bundles: seen.append(bundles) or ask(bundles))
        workers_with_room(1, 2, WorkerNeeds(3, 0.5, 2), Console())
        assert seen == [[{"CPU": 3.0, "GPU": 0.5}, {"CPU": 1.0}, {"CPU": 1.0}]] * 2

    @given(st.integers(1, 4), st.integers(0, 4), st.integers(0, 9))
    def test_fewer_start_where_no_more_find_room_for_a_while(self, fewest, more, there):
        with pytest.MonkeyPatch.context() as patch:
            now = [0.0]
            patch.setattr(workers.time, "monotonic", lambda: now[0])
            patch.setattr(workers.time, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
            asked = []

            def ask(bundles):
                asked.append(bundles)
                number = len(asked)
                # From the hundredth second on there is room for all.
                return SimpleNamespace(wait=lambda seconds: number <= there or now[0] > 100)

            patch.setattr(workers, "placement_group", ask)
            patch.setattr(workers, "remove_placement_group", lambda one: None)
            found = workers_with_room(fewest, fewest + more, WorkerNeeds(1, 0, 0), Console(quiet=True))
        assert found == min(fewest + more, there if there >= fewest else 99)
        assert now[0] < 7 if there >= fewest else now[0] > 100

    def test_a_wait_is_told_and_told_again(self, room, capsys):
        room(lambda seconds: 2 if seconds > 100 else 1)
        assert workers_with_room(2, 2, WorkerNeeds(3, 1.0, 2), Console(width=200)) == 2
        said = capsys.readouterr().out.splitlines()
        assert said[0] == (
            "waiting for room: 1 of at least 2 training processes of 5 CPUs and 1 GPUs each have any; 5 s so far"
        )
        assert len(said) == 2

    def test_what_was_asked_for_is_given_back_on_an_interruption(self, monkeypatch, room):
        asked = room(lambda seconds: 0)
        monkeypatch.setattr(workers.time, "sleep", lambda seconds: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            workers_with_room(1, 3, WorkerNeeds(1, 0, 0), Console())
        assert asked == [None] * 3


@pytest.fixture
def tasks(monkeypatch, clock):
    """Ray's tasks, those of them that are done, and what they asked for."""
    done, asked, cancelled = [], [], []

    def remote(**options):
        return SimpleNamespace(remote=lambda: asked.append(options) or len(asked))

    monkeypatch.setattr(workers, "_room", SimpleNamespace(options=remote))
    monkeypatch.setattr(workers.ray, "wait", lambda some, timeout: ([one for one in some if one in done], []))
    monkeypatch.setattr(workers.ray, "cancel", cancelled.append)
    return SimpleNamespace(done=done, asked=asked, cancelled=cancelled)


class TestGrowth:
    def test_it_is_due_once_there_is_room(self, tasks, clock):
        growth = Growth(2, WorkerNeeds(3, 0.0, 1), rank=0, workers=1, device=torch.device("cpu"))
        assert not growth.due()
        assert not tasks.asked, "processes that start have their decoders still to come"
        clock[0] += 31
        assert not growth.due()
        assert tasks.asked == [{"num_cpus": 4, "num_gpus": 0.0}] * 2
        clock[0] += 6
        assert not growth.due()
        tasks.done.append(2)
        assert not growth.due(), "not at every step"
        clock[0] += 6
        assert growth.due()
        growth.close()
        assert tasks.cancelled == [1, 2]

    def test_all_processes_get_the_first_ones_answer(self, tasks, clock, monkeypatch):
        sums = []
        monkeypatch.setattr(torch.distributed, "all_reduce", lambda found: found.add_(sums.pop()))
        other = Growth(1, WorkerNeeds(1, 1.0, 8), rank=1, workers=2, device=torch.device("cpu"))
        clock[0] += 100
        sums += [1.0, 0.0]
        assert [other.due(), other.due()] == [False, True]
        assert not tasks.asked

    def test_where_none_lack_nobody_is_asked(self, tasks, clock, monkeypatch):
        monkeypatch.delattr(torch.distributed, "all_reduce")
        growth = Growth(0, WorkerNeeds(1, 0.0, 0), rank=0, workers=2, device=torch.device("cpu"))
        clock[0] += 100
        assert not growth.due()
        assert not tasks.asked

    def test_decoders_beside_a_gpu_may_be_on_other_nodes(self, tasks, clock):
        growth = Growth(1, WorkerNeeds(3, 1.0, 16), rank=0, workers=1, device=torch.device("cpu"))
        clock[0] += 31
        growth.due()
        assert tasks.asked == [{"num_cpus": 3, "num_gpus": 1.0}]


@pytest.mark.parametrize(
    ("nodes", "options", "threads"),
    [
        ([{"CPU": 8}, {"CPU": 8}], {"num_workers": 2}, 8),
        ([{"CPU": 8}, {"CPU": 8}], {"num_workers": (1, 4)}, 4),
        ([{"CPU": 8}, {"CPU": 8}], {"num_workers": (1, 4), "decode_workers": 2}, 2),
        # As many as there are CPUs yet: two.
        ([{"CPU": 2}], {"num_workers": (1, 4)}, 1),
        ([{"CPU": 8, "GPU": 1}], {"num_workers": (1, 4)}, 8),
        ([{"CPU": 8, "GPU": 4}], {"num_workers": (1, 8)}, 2),
    ],
)
def test_each_process_has_its_share_of_what_is_there(monkeypatch, nodes, options, threads):
    monkeypatch.setattr(workers.ray, "nodes", lambda: [{"Alive": True, "Resources": one} for one in nodes])
    total = {name: sum(one.get(name, 0) for one in nodes) for name in ("CPU", "GPU")}
    monkeypatch.setattr(workers.ray, "cluster_resources", lambda: total)
    needs = worker_needs(TrainConfig(**options))
    assert needs == WorkerNeeds(threads, float(total["GPU"] > 0), options.get("decode_workers", 0))


def test_fewer_than_the_fewest_are_refused(monkeypatch):
    monkeypatch.setattr(workers.ray, "nodes", lambda: [{"Alive": True, "Resources": {"CPU": 2}}])
    monkeypatch.setattr(workers.ray, "cluster_resources", lambda: {"CPU": 2})
    with pytest.raises(RunError, match="--num-workers 3: the cluster has 2 CPUs to spare"):
        worker_needs(TrainConfig(num_workers=(3, 5)))
    assert worker_bounds(TrainConfig(num_workers=5)) == (5, 5)
