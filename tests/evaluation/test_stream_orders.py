"""In which order streams get their videos: pure, the same for some videos as for all, and a pass for each."""

from __future__ import annotations

import io
from dataclasses import replace
from itertools import groupby

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from zar_ray.adaptation.adapter import make_cases
from zar_ray.adaptation.methods import METHODS
from zar_ray.data.manifest import Manifest, VideoRow, write_manifest
from zar_ray.data.protocols import whole_split
from zar_ray.errors import ConfigError
from zar_ray.evaluation.orders import StreamOrder
from zar_ray.evaluation.planning import AskedModel, PlannedModel, asked_settings, identity, plan_model
from zar_ray.evaluation.recovery import unseen
from zar_ray.evaluation.spec import POSITION
from zar_ray.evaluation.stages.adapt import AdaptStage
from zar_ray.evaluation.stages.decode import DecodeStage
from zar_ray.evaluation.streams import orders_for
from zar_ray.evaluation.workload import Workload
from zar_ray.results.folder import Ledger
from zar_ray.study.options import EvalConfig
from zar_ray.study.plan import describe, plan_study

FEW = 3
CAN_BE = ("zar", "memo", "tent")
STREAMS = tuple(name for name, method in METHODS.items() if method.open_stream is not None)
VIEWS = {"frames": 2, "eval_frames": 2, "views_per_rate": 1, "crops": 1}
NAMES = st.dictionaries(st.text(max_size=6), st.sampled_from(["run", "walk", "ä", "jump up"]), min_size=1, max_size=30)
SEEDS = st.integers(0, 2**40)
DRAWN = st.sampled_from(["shuffled", "by_class"])


def table(classes):
    return pa.table({"video_id": pa.array(list(classes)), "class_name": pa.array(list(classes.values()), pa.string())})


def ids(order, videos):
    return order.arranged(videos)["video_id"].to_pylist()


@given(NAMES, SEEDS, DRAWN, st.data())
def test_an_order_is_of_the_videos_alone_and_of_some_what_it_is_of_all(classes, seed, name, data):
    order = StreamOrder.of(name, seed)
    arranged = ids(order, table(classes))
    assert sorted(arranged) == sorted(classes)
    turned = dict(data.draw(st.permutations(list(classes.items()))))
    assert ids(order, table(turned)) == arranged
    kept = data.draw(st.sets(st.sampled_from(list(classes)), min_size=1))
    some = table({one: of for one, of in classes.items() if one in kept})
    assert ids(order, some) == [one for one in arranged if one in kept]


@given(NAMES, SEEDS)
def test_by_class_goes_through_a_class_after_the_other(classes, seed):
    arranged = [classes[one] for one in ids(StreamOrder.of("by_class", seed), table(classes))]
    assert len([*groupby(arranged)]) == len(set(arranged))


@pytest.mark.parametrize("name", ["shuffled", "by_class"])
def test_seeds_have_orders_of_their_own_which_mix_or_sort_classes(name):
    classes = {f"{of}/{number}": f"class {of}" for of in range(9) for number in range(40)}
    arranged = [ids(StreamOrder.of(name, seed), table(classes)) for seed in range(4)]
    assert len(set(map(tuple, arranged))) == 4
    # Which places a class's videos have: anywhere, or next to each other.
    spreads = [
        np.std([place for place, one in enumerate(arranged[0]) if classes[one] == of]) for of in classes.values()
    ]
    assert (min(spreads) > 60) if name == "shuffled" else (max(spreads) < 12)


def test_the_manifest_has_one_order_whatever_the_seed():
    assert StreamOrder.of("manifest", 3) == StreamOrder.of("manifest", 4)
    given = table({"b": None, "a": "x", "c": None})
    assert ids(StreamOrder.of("manifest", 3), given) == ["b", "a", "c"]
    assert sorted(ids(StreamOrder.of("shuffled", 3), given)) == ["a", "b", "c"]


def test_videos_without_a_class_are_no_stream_by_class(tmp_path):
    rows = [
        VideoRow(f"{n}.mp4", f"/nowhere/{n}.mp4", *((0, "run") if n % 2 else (None, None)), error="gone")
        for n in range(5)
    ]
    write_manifest(Manifest.of(rows, ("run", "walk"), tmp_path, "half"), str(tmp_path / "half.parquet"))
    options = {"dataset": str(tmp_path / "half.parquet"), "method": ("tda",)}
    with pytest.raises(ConfigError) as caught:
        plan_study(EvalConfig(**options, order="by_class"), Console(file=io.StringIO()))
    assert str(caught.value).startswith('--order by_class: 3 of 5 videos have no class of their own, such as "0.mp4"; ')
    assert "\n" not in str(caught.value)
    study = plan_study(EvalConfig(**options, seeds=(4, 9)), Console(file=io.StringIO()))
    assert "videos    5, each decoded in each of 2 passes" in describe(study)
    assert "order     shuffled (seed 4), shuffled (seed 9)" in describe(study)
    for more in ({"order": "shuffled"}, {"order": "by_class", "method": ("zero_shot",)}):
        assert len(plan_study(EvalConfig(**options | more), Console(file=io.StringIO())).workload.manifest) == 5


def test_each_seed_and_order_has_a_pass_and_the_manifest_one():
    def orders(method, *settings):
        runs = [EvalConfig(method=method, seed=seed, order=order) for seed, order in settings]
        return [(one.name, one.seed, one.turn) for one in orders_for(runs)]

    streams = ("zar", "tda")
    assert orders(("zar", "memo"), (0, "shuffled"), (1, "by_class")) == []
    assert orders(streams, (0, "shuffled"), (0, "shuffled")) == [("shuffled", 0, 0)]
    assert orders(streams, (7, "manifest"), (8, "manifest")) == [("manifest", 0, 0)]
    assert orders(streams, (5, "shuffled"), (6, "shuffled"), (5, "by_class"), (5, "manifest")) == [
        ("shuffled", 5, 0),
        ("shuffled", 6, 1),
        ("by_class", 5, 2),
        ("manifest", 0, 3),
    ]


@pytest.fixture(scope="module")
def planned(workload, tiny_checkpoint) -> PlannedModel:
    """A planned model under one setting."""
    values = {"checkpoint": tiny_checkpoint, "views": VIEWS, "device": "cpu", "method": ("zar", "tda")}
    asked = AskedModel("tiny", (EvalConfig.model_validate(values),))
    return plan_model("tiny", 0, asked_settings(asked, workload))


def test_the_order_is_part_of_what_streams_are_and_of_nothing_else(planned, workload):
    (setting,) = planned.settings

    def under(method, order):
        options = setting.options.model_copy(update={"method": (method,), "order": order})
        cases = make_cases(options, planned.fingerprint, setting.prompts)
        return cases, replace(planned, settings=(replace(setting, options=options),), of_settings=(cases,))

    assert under("zar", "shuffled")[0] == under("zar", "by_class")[0]
    assert under("tda", "shuffled")[0] != under("tda", "by_class")[0]
    turned = Manifest(workload.manifest.table[::-1], workload.manifest.class_names, "/", workload.manifest.name)
    other = Workload.of(turned, [whole_split(turned)])
    runs = {}
    for order in ("shuffled", "manifest"):
        for method in ("zar", "tda"):
            model = under(method, order)[1]
            runs[order, method] = known = identity(workload, [model])
            again = identity(other, [model])
            known, again = ({**one, "splits": None} for one in (known, again))  # which list videos as they come
            # A manifest whose rows were moved is another stream, where the stream follows it.
            assert (again == known) == ((order, method) != ("manifest", "tda"))
    assert runs["shuffled", "zar"] == runs["manifest", "zar"]
    assert runs["shuffled", "tda"] != runs["manifest", "tda"]


@pytest.fixture
def begin_study(begin, tiny_checkpoint, workload):
    """Begins a run of all methods that are streams, or can be, and of one that is none, over a few videos."""
    some = workload.manifest.select(limit=FEW)
    options = {"method": ("zero_shot", *STREAMS), **{name: {"stream": True} for name in CAN_BE}}
    few = Workload.of(some, [whole_split(some)])
    return lambda name, seeds: begin(name, tiny_checkpoint, seeds=seeds, videos=few, **options)


def go_through(begun, passes, stop=None):
    """Does what a run does, in this process; with `stop` until so many videos were done."""
    done = 0
    for spec in passes:
        decode, todo = DecodeStage(spec), unseen(begun.workload.table(), spec, Ledger(begun.folder), begun.folder)
        adapt = AdaptStage(spec, *begun.told[1:]) if len(todo) else None
        for number in range(len(todo)):
            if done == stop:
                raise InterruptedError
            assert adapt is not None
            adapt(decode(todo.slice(number, 1)))
            done += 1


def scores(begun):
    assert all(row.error is None for row in begun.rows)
    return {(row.video_id, row.case_id): row.top5_scores_after for row in begun.rows}


@pytest.mark.slow
def test_seeds_of_a_study_are_the_streams_of_their_own_runs_and_go_on_to_the_same_bits(begin_study):
    whole, cut, alone = begin_study("whole", (3, 4)), begin_study("cut", (3, 4)), begin_study("alone", (4,))
    assert [(one.order.seed, {case.method for case in one.cases}) for one in whole.passes] == [
        (3, {"zero_shot", *STREAMS}),
        (4, {*STREAMS}),
    ]
    go_through(whole, whole.passes)
    expected = scores(whole)
    assert len(expected) == FEW * 2 * (1 + len(STREAMS))
    for videos in (1, FEW - 1, 2):  # within the first pass, at its end, and within the second one
        with pytest.raises(InterruptedError):
            go_through(cut, cut.passes, stop=videos)
    go_through(cut, cut.passes)
    assert scores(cut) == expected
    go_through(alone, alone.passes)
    by_itself = scores(alone)
    of_streams = {key for key in by_itself if not key[1].startswith("zero_shot")}
    assert len(of_streams) == FEW * len(STREAMS)
    assert {key: expected[key] for key in of_streams} == {key: by_itself[key] for key in of_streams}
    # Of the study's first seed, whose images are encoded with it: a pass of other sizes may round otherwise.
    for key in by_itself.keys() - of_streams:
        assert by_itself[key] == pytest.approx(expected[key], abs=1e-6)


def test_a_pass_takes_its_own_order_and_looks_at_its_own_settings_views_alone(begin_study):
    begun = begin_study("run", seeds=(3, 4))
    videos = begun.workload.table()
    for turn, one in enumerate(begun.passes):
        todo = unseen(videos, one, Ledger(begun.folder), begun.folder)
        assert todo["video_id"].to_pylist() == ids(StreamOrder.of("shuffled", 3 + turn), videos)
        assert todo[POSITION.name].to_pylist() == [FEW * turn + number for number in range(FEW)]
    first, later = (one.models[0] for one in begun.passes)
    assert [seed for _, seed in first.of_settings] == [3, 4]  # zero_shot's is of both
    assert [seed for _, seed in later.of_settings] == [4, 4]
