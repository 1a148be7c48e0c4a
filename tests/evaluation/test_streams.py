"""Stream methods in a worker: one order, a state after every video, and refusals without it."""

from __future__ import annotations

import dataclasses
import io

import pytest
import torch
from rich.console import Console

from zar_ray.data.protocols import whole_split
from zar_ray.errors import ConfigError, RunError
from zar_ray.evaluation.planning import AskedModel, job_spec, passes_of, plan_model, plan_models
from zar_ray.evaluation.recovery import open_run, unseen
from zar_ray.evaluation.stages.decode import DecodeStage
from zar_ray.evaluation.streams import STATE, StreamState, check_methods, stream_methods
from zar_ray.evaluation.workload import Workload
from zar_ray.results.folder import CONFIG, MANIFEST, Ledger, RunFolder
from zar_ray.storage import Storage
from zar_ray.study.options import EvalConfig
from zar_ray.study.plan import plan_study

METHODS = ("zero_shot", "tent", "tda")


@pytest.fixture
def start(begin, tiny_checkpoint):
    """Begins a run of streams."""
    options = {"method": METHODS, "tent": {"stream": True, "lr": 0.01}}
    return lambda name, **more: begin(name, tiny_checkpoint, **options, **more)


def ahead(run):
    return unseen(run.workload.table(), run.spec, Ledger(run.folder), run.folder)


def go_on(run, videos: int = 99) -> None:
    """What a session does: a new worker, and the next videos one by one."""
    decode, adapt, todo = DecodeStage(run.spec), run.adapt(), ahead(run)
    for number in range(min(videos, len(todo))):
        adapt(decode(todo.slice(number, 1)))


def scores(run) -> dict[tuple[str, str, str], tuple[float, ...]]:
    assert all(row.error is None for row in run.rows)
    return {(row.video_id, row.model, row.method): row.top5_scores_after for row in run.rows}


@pytest.mark.slow
def test_the_same_order_gives_the_same_results_and_a_resumed_run_too(start):
    whole, resumed = start("whole"), start("resumed")
    go_on(whole)
    expected = scores(whole)
    assert len(expected) == 12 * 3
    go_on(resumed, videos=5)
    before = resumed.spec.storage.read(STATE)
    go_on(resumed, videos=1)
    # A kill after the sixth video's rows were written and before the state: it is done again.
    resumed.spec.storage.write(STATE, before)
    assert StreamState.read(resumed.spec.storage).position == 5
    go_on(resumed)
    assert scores(resumed) == expected
    assert StreamState.read(resumed.spec.storage).position == 12
    go_on(resumed)
    assert scores(resumed) == expected


@pytest.mark.slow
def test_several_models_are_streams_beside_each_other(begin, start, tiny_checkpoint, larger_checkpoint):
    alone, both = (
        start("alone"),
        begin("both", tiny_checkpoint, larger_checkpoint, method=METHODS, tent={"stream": True, "lr": 0.01}),
    )
    go_on(alone)
    go_on(both, videos=5)
    go_on(both)
    ours = {key: value for key, value in scores(both).items() if key[1] == "tiny"}
    assert len(scores(both)) == 2 * len(ours) == 2 * 12 * 3
    for key, value in scores(alone).items():
        assert ours[key] == pytest.approx(value, abs=1e-6)


@pytest.mark.slow
def test_a_stream_depends_on_the_videos_before(start, workload):
    table = workload.manifest.table
    shuffled = dataclasses.replace(workload.manifest, table=table.take([11, 3, 7, 0, 1, 2, 4, 5, 6, 8, 9, 10]))
    shown = Workload.of(shuffled, [whole_split(shuffled)])
    ours, other = start("ours", order="manifest"), start("other", order="manifest", videos=shown)
    go_on(ours)
    go_on(other)
    first, second = scores(ours), scores(other)
    same = {
        method: all(first[key] == pytest.approx(second[key], abs=1e-6) for key in first if key[2] == method)
        for method in METHODS
    }
    assert same == {"zero_shot": True, "tent": False, "tda": False}


def test_a_video_out_of_order_is_refused(start):
    run = start("run")
    todo, decode, stage = ahead(run), DecodeStage(run.spec), run.adapt()
    stage(decode(todo.slice(0, 1)))
    stage(decode(todo.slice(2, 1)))  # the decoder of the one between died
    with pytest.raises(RuntimeError, match="came after video 3 of the stream"):
        stage(decode(todo.slice(1, 1)))
    with pytest.raises(RuntimeError, match="the stream has not seen video 3"):
        run.adapt()(decode(todo.slice(4, 1)))
    assert StreamState.read(run.spec.storage).position == 3


def test_without_its_state_nothing_is_continued(start):
    run = start("run")
    spec = run.spec
    go_on(run, videos=2)
    content = spec.storage.read(STATE)
    for damaged in (b"", content[:40], content[: len(content) // 2]):
        spec.storage.write(STATE, damaged)
        with pytest.raises(RunError, match=r"stream\.safetensors: damaged .*--overwrite the run"):
            go_on(run)
    spec.storage.delete(STATE)
    with pytest.raises(RunError, match=r"stream\.safetensors: not there, and a stream method cannot go on without it"):
        go_on(run)


def test_a_run_that_was_stopped_while_its_folder_was_begun_is_begun_again(
    workload, tiny_checkpoint, tmp_path, monkeypatch
):
    small = {"frames": 2, "eval_frames": 2, "views_per_rate": 1, "crops": 1}
    options = EvalConfig(dataset="x", checkpoint=tiny_checkpoint, method=("tda",), device="cpu", views=small)
    models = plan_models([AskedModel("tiny", (options,))], workload, plan_model)
    folder = RunFolder(Storage(str(tmp_path / "run")))
    passes = passes_of(job_spec(workload, models, ["default"], folder.storage, ("tda",)), models)

    def begun():
        _, (todo,) = open_run(workload, models, passes, folder, options, Console(file=io.StringIO()))
        return len(todo)

    def stopped(*_, **__):
        raise KeyboardInterrupt

    for step in ("write_manifest", "yaml.safe_dump"):
        with monkeypatch.context() as patch:
            patch.setattr(f"zar_ray.evaluation.recovery.{step}", stopped)
            with pytest.raises(KeyboardInterrupt):
                begun()
        assert begun() == 12
        assert {CONFIG, MANIFEST, STATE} <= {*folder.storage.names()}
        StreamState(5, {}).write(folder.storage)
        assert begun() == 7
        folder.storage.delete_folder()


def test_the_state_holds_every_case(start):
    run = start("run")
    spec = run.spec
    go_on(run, videos=1)
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
        plan_study(options, Console(file=io.StringIO()))
    assert str(caught.value).startswith(reason)
    assert "\n" not in str(caught.value)


def test_what_goes_with_every_method_is_not_refused():
    for options in (
        EvalConfig(method=("tda",), num_workers=1, features="x"),
        EvalConfig(method=("memo",), num_workers=4, retry_failed=True),
    ):
        check_methods(options, [options])
