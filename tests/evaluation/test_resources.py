"""How made-up clusters are shared: whatever fits, fits on nodes, and a decoder has room whatever dies."""

from __future__ import annotations

import math

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from zar_ray.errors import ConfigError
from zar_ray.evaluation.options import EvaluationOptions
from zar_ray.evaluation.resources import Node, Resources, Wanted

GB = 2**30


def nodes_of(*shapes):
    """Nodes of (CPUs, GPUs) or (CPUs, GPUs, GB of memory)."""
    return [Node(f"n{i}", f"h{i}", cpus, gpus, *(more or (4 * cpus,))) for i, (cpus, gpus, *more) in enumerate(shapes)]


def in_bytes(nodes):
    return [Node(node.name, node.host, node.cpus, node.gpus, node.memory * GB) for node in nodes]


def plan(nodes, gpus=0.0, *num_workers, **more):
    options = EvaluationOptions(num_workers=num_workers, **more)
    return Resources.plan(Wanted.of(options, "cuda" if gpus else "cpu", gpus), in_bytes(nodes))


@pytest.mark.parametrize(
    ("shapes", "gpus", "workers", "decoders"),
    [
        ([(16, 1)], 1.0, 1, 15),
        ([(2, 1)], 1.0, 1, 1),
        ([(1, 1)], 1.0, 1, 1),
        ([(208, 8)], 1.0, 8, 200),
        ([(2, 4)], 1.0, 4, 1),
        ([(0, 0), (2, 4), (16, 1)], 1.0, 5, 16),
        ([(8, 2)], 0.6, 2, 6),
        ([(8, 2)], 0.5, 4, 4),
        ([(8, 3)], 0.3, 9, 1),
        ([(8, 2), (8, 3)], 2.0, 2, 14),
        ([(16, 1), (16, 0), (16, 0)], 1.0, 1, 48),
        ([(0, 4), (32, 0)], 1.0, 4, 32),
        ([(2, 0)], 0.0, 1, 1),
        ([(1, 0)], 0.0, 1, 1),
        ([(1, 0), (1, 0)], 0.0, 2, 2),
        ([(16, 0)], 0.0, 8, 8),
        ([(16, 0), (4, 0), (1, 0)], 0.0, 10, 11),
        ([(2, 0, 16)], 0.0, 2, 1),
        ([(64, 0, 384)], 0.0, 64, 32),
        ([(16, 0, 128), (4, 0, 32), (1, 0, 8)], 0.0, 21, 21),
        ([(16, 0, 128), (16, 0, 64)], 0.0, 16, 24),
    ],
)
def test_nodes_are_shared_one_by_one(shapes, gpus, workers, decoders):
    planned = plan(nodes_of(*shapes), gpus)
    assert (planned.workers, planned.decoders) == (workers, decoders)
    assert planned.enough


def test_what_is_asked_for_is_planned():
    sixteen = nodes_of((16, 0))
    assert plan(sixteen, 0.0, 1).threads == 16
    assert [plan(sixteen, 0.0, *asked).workers for asked in [(3,), (1, 5), (10, 12), (1, 100)]] == [3, 5, 10, 8]
    assert plan(sixteen, decode_workers=3).decoders == 3
    assert (plan(sixteen, 0.0, 16).workers, plan(sixteen, 0.0, 16).decoders) == (16, 8)
    gpu = nodes_of((16, 4))
    assert [plan(gpu, 1.0, *asked).workers for asked in [(3,), (1, 2), (2, 100)]] == [3, 2, 4]
    assert plan(nodes_of((16, 8)), 1.0, 1).decoders == 15
    assert not plan(gpu, 1.0, 5).enough
    assert not plan(gpu, 1.0, 5, 9).enough
    assert not plan(nodes_of((16, 1), (16, 1)), 2.0).enough, "no node has two"


@pytest.mark.parametrize(
    ("memory", "asked", "most", "workers", "threads"),
    [
        (4, (), None, 8, 2),
        (8, (), None, 16, 1),
        (8, (), 3, 3, 5),
        (8, (), 1, 1, 16),
        (8, (4,), 100, 4, 4),
        (8, (4,), 2, 2, 8),
        (8, (2, 6), 4, 4, 4),
    ],
)
def test_replicas_have_a_thread_each_where_memory_and_work_are_enough(memory, asked, most, workers, threads):
    wanted = Wanted.of(EvaluationOptions(num_workers=asked), "cpu", 0.0, most)
    planned = Resources.plan(wanted, in_bytes(nodes_of((16, 0, 16 * memory))))
    assert (planned.workers, planned.threads) == (workers, threads)
    assert planned.enough


@pytest.mark.parametrize("asked", [(0,), (1, 2, 3), (3, 2), (-1, 4)])
def test_other_numbers_of_workers_are_refused(asked):
    with pytest.raises((ConfigError, ValueError)):
        EvaluationOptions(num_workers=asked)


def test_a_pool_grows_to_what_is_wanted_and_no_further_than_blocks():
    def sizes(*asked, blocks=1000):
        pool = plan(nodes_of((16, 4)), 1.0, *asked).model_pool(blocks, at_once=2, waiting=1)
        return pool.min_size, pool.initial_size, pool.max_size

    assert sizes() == (1, 4, 1000)
    assert sizes(3) == (3, 3, 3)
    assert sizes(2, 8) == (2, 4, 8)
    assert sizes(blocks=2) == (1, 2, 2)
    assert sizes(3, blocks=1) == (1, 1, 1)


def test_nodes_that_are_left_out_decode():
    wanted = Wanted("cuda", 1.0, left_out=frozenset({"n1"}))
    planned = Resources.plan(wanted, in_bytes(nodes_of((16, 1), (16, 1))))
    assert (planned.workers, planned.decoders) == (1, 32)
    assert planned.replica_options()["label_selector"] == {"ray.io/node-id": "!in(n1)"}
    on_cpus = Resources.plan(Wanted("cpu", left_out=frozenset({"n1"})), in_bytes(nodes_of((16, 0), (16, 0))))
    assert (on_cpus.workers, on_cpus.decoders) == (8, 24)


_SHAPES = st.tuples(
    st.sampled_from([0, 1, 2, 3, 4, 7, 8, 16, 31, 64, 96, 208]),
    st.sampled_from([0, 0, 0, 1, 2, 3, 4, 8]),
    st.sampled_from([1, 2, 7.5, 30, 64, 500, 2000]),
)
_ASKED = st.one_of(st.just(()), st.tuples(st.integers(1, 40)), st.tuples(st.integers(1, 6), st.integers(6, 40)))


@settings(max_examples=200, deadline=None)
@given(
    shapes=st.lists(_SHAPES, min_size=1, max_size=6),
    gpus=st.sampled_from([0.0, 0.0, 0.1, 0.25, 0.3, 0.5, 0.6, 1.0, 2.0, 4.0]),
    asked=_ASKED,
    data=st.data(),
)
def test_whatever_dies_a_decoder_has_room(shapes, gpus, asked, data):
    nodes = in_bytes(nodes_of(*shapes))
    planned = plan(nodes_of(*shapes), gpus, *asked)
    assume(planned.enough)

    def replicas_at_most(node):
        """As many as Ray would put there, were all others gone."""
        limits = [planned.wanted.most or math.inf]
        limits += [node.gpu_replicas(gpus)] if gpus else [node.memory // planned.worker_memory]
        limits += [math.floor(node.cpus / planned.worker_cpus + 1e-9)] if planned.worker_cpus else []
        return min(limits)

    # What was planned fits, node by node, with its decoders.
    assert sum(map(replicas_at_most, nodes)) >= planned.workers
    assert (
        planned.decoders * planned.decoder_cpus + planned.workers * planned.worker_cpus
        <= sum(node.cpus for node in nodes) + 1e-6
    )
    left = data.draw(st.lists(st.sampled_from(nodes), min_size=1, unique_by=lambda node: node.name))
    for node in left:
        # However many replicas start again there.
        if node.cpus:
            assert node.cpus - replicas_at_most(node) * planned.worker_cpus >= planned.decoder_cpus - 1e-9
    again = Resources.plan(planned.wanted, left)
    if any(node.cpus for node in left) and any(map(replicas_at_most, left)):
        assert again.decoders > 0
