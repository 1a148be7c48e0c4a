"""Stream methods in a worker: the manifest's order, a state after every video, and refusals without it."""

from __future__ import annotations

import dataclasses
import io

import pytest
import torch
from rich.console import Console
from zar_ray.evaluation.adapt_stage import AdaptStage, load_card
from zar_ray.evaluation.decode_stage import decode_block
from zar_ray.study.job import prepare

from zar_ray.adaptation.adapter import make_cases
from zar_ray.adaptation.settings import Setting
from zar_ray.data.class_texts import prompts_of
from zar_ray.data.index import index_folder
from zar_ray.data.protocols import whole_split
from zar_ray.errors import ConfigError, RunError
from zar_ray.evaluation.pipeline import _from_position
from zar_ray.evaluation.spec import JobSpec
from zar_ray.evaluation.streams import STATE, StreamState, check_methods, stream_methods
from zar_ray.evaluation.workload import Workload
from zar_ray.results.folder import RunFolder
from zar_ray.results.rows import to_rows
from zar_ray.storage import Storage
from zar_ray.study.options import EvalConfig

METHODS = ("zero_shot", "tent", "tda")


@pytest.fixture
def start(video_folder, tiny_checkpoint, tmp_path):
    """Begins a run: its spec and its workload."""

    def begin(name: str) -> tuple[JobSpec, Workload]:
        options = EvalConfig.model_validate(
            {
                "checkpoint": tiny_checkpoint,
                "method": METHODS,
                "views": {"frames": 2, "eval_frames": 2, "views_per_rate": 1, "crops": 1},
                "tent": {"stream": True, "lr": 0.01},
                "device": "cpu",
            }
        )
        manifest = index_folder(video_folder)
        workload = Workload.of(manifest, [whole_split(manifest)])
        prompts = prompts_of(workload.class_sets, options)
        settings = (Setting(options, prompts),)
        card = load_card(options, settings)
        spec = JobSpec(
            options=options,
            model=card,
            class_sets=workload.class_sets,
            settings=settings,
            multi_label=False,
            cases=make_cases(options, card.fingerprint, prompts),
            storage=Storage(str(tmp_path / name)),
            needs_views=True,
            threads=1,
            streams=stream_methods([options]),
        )
        StreamState(0, {}).write(spec.storage)
        return spec, workload

    return begin


def go_on(spec: JobSpec, workload: Workload, videos: int = 99) -> None:
    """What a session does: a new worker, and the next videos one by one."""
    stage = AdaptStage(spec)
    todo = _from_position(workload.table(), RunFolder(spec.storage), spec.cases)
    for number in range(min(videos, len(todo))):
        stage(decode_block(todo.slice(number, 1), spec))


def scores(spec: JobSpec) -> dict[tuple[str, str], tuple[float, ...]]:
    rows = to_rows(RunFolder(spec.storage).results())
    assert all(row.error is None for row in rows)
    return {(row.video_id, row.method): row.top5_scores_after for row in rows}


def test_the_same_order_gives_the_same_results_and_a_resumed_run_too(start):
    whole, resumed = start("whole"), start("resumed")
    go_on(*whole)
    expected = scores(whole[0])
    assert len(expected) == 12 * 3
    go_on(*resumed, videos=5)
    before = Storage(resumed[0].storage.location).read(STATE)
    go_on(*resumed, videos=1)
    # A kill after the sixth video's rows were written and before the state: it is done again.
    resumed[0].storage.write(STATE, before)
    assert StreamState.read(resumed[0].storage).position == 5
    go_on(*resumed)
    assert scores(resumed[0]) == expected
    assert StreamState.read(resumed[0].storage).position == 12
    go_on(*resumed)
    assert scores(resumed[0]) == expected


def test_a_stream_depends_on_the_videos_before(start):
    ours, other = start("ours"), start("other")
    go_on(*ours)
    table = ours[1].manifest.table
    shuffled = dataclasses.replace(ours[1].manifest, table=table.take([11, 3, 7, 0, 1, 2, 4, 5, 6, 8, 9, 10]))
    go_on(other[0], Workload.of(shuffled, [whole_split(shuffled)]))
    first, second = scores(ours[0]), scores(other[0])
    same = {
        method: all(first[key] == pytest.approx(second[key], abs=1e-6) for key in first if key[1] == method)
        for method in METHODS
    }
    assert same == {"zero_shot": True, "tent": False, "tda": False}


def test_a_video_out_of_order_is_refused(start):
    spec, workload = start("run")
    todo = _from_position(workload.table(), RunFolder(spec.storage), spec.cases)
    stage = AdaptStage(spec)
    stage(decode_block(todo.slice(0, 1), spec))
    stage(decode_block(todo.slice(2, 1), spec))  # the decoder of the one between died
    with pytest.raises(RuntimeError, match="came after video 3 of the stream"):
        stage(decode_block(todo.slice(1, 1), spec))
    with pytest.raises(RuntimeError, match="the stream has not seen video 3"):
        AdaptStage(spec)(decode_block(todo.slice(4, 1), spec))
    assert StreamState.read(spec.storage).position == 3


def test_without_its_state_nothing_is_continued(start):
    spec, workload = start("run")
    go_on(spec, workload, videos=2)
    content = spec.storage.read(STATE)
    for damaged in (b"", content[:40], content[: len(content) // 2]):
        spec.storage.write(STATE, damaged)
        with pytest.raises(RunError, match=r"stream\.safetensors: damaged .*--overwrite the run"):
            go_on(spec, workload)
    spec.storage.delete(STATE)
    with pytest.raises(RunError, match=r"stream\.safetensors: not there, and a stream method cannot go on without it"):
        go_on(spec, workload)


def test_the_state_holds_every_case(start):
    spec, workload = start("run")
    go_on(spec, workload, videos=1)
    state = StreamState.read(spec.storage)
    assert state.position == 1
    cases = {case.case_id for case in spec.cases if case.method != "zero_shot"}
    assert {name.partition("/")[0] for name in state.tensors} == cases
    assert all(isinstance(value, torch.Tensor) for value in state.tensors.values())


def test_which_methods_are_streams_is_the_options_affair():
    assert stream_methods([EvalConfig(method=("zero_shot", "zar", "tpt", "memo", "tent"))]) == ()
    online = EvalConfig(method=("tda", "tent"), tent={"stream": True})
    assert stream_methods([EvalConfig(method=("tent",)), online]) == ("tda", "tent")


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (
            {"method": ("zar", "tda"), "num_workers": 2},
            "--num-workers 2: tda depends on the videos before, on one worker",
        ),
        ({"method": ("tda",), "retry_failed": True}, "--retry-failed: tda depends on the videos before"),
        ({"method": ("zar", "memo", "tpt"), "features": "x"}, "--features: memo and tpt work from pixels"),
    ],
)
def test_options_that_do_not_go_with_a_method_are_refused_first(given, reason):
    options = EvalConfig(dataset="nowhere.parquet", **given)
    with pytest.raises(ConfigError) as caught:
        prepare(options, Console(file=io.StringIO()))
    assert str(caught.value).startswith(reason)
    assert "\n" not in str(caught.value)


def test_what_goes_with_every_method_is_not_refused():
    check_methods(EvalConfig(method=("tda",), num_workers=1, features="x"), ("tda",))
    check_methods(EvalConfig(method=("memo",), num_workers=4, retry_failed=True), ())
