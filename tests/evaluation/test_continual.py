"""One corruption after another: streams go on from what the one before has taught, wherever a session ends."""

from __future__ import annotations

import io

import pytest
from corrupted_runs import VIEWS, Run
from rich.console import Console

from zar_ray.data.protocols import whole_split
from zar_ray.errors import ConfigError
from zar_ray.evaluation.recovery import unseen
from zar_ray.evaluation.stages.adapt import AdaptStage
from zar_ray.evaluation.stages.decode import DecodeStage
from zar_ray.evaluation.streams import StreamState, check_methods
from zar_ray.evaluation.workload import Workload
from zar_ray.results.folder import Ledger, RunFolder
from zar_ray.study.options import EvalConfig
from zar_ray.study.plan import plan_study

FOLLOWING = ("salt_noise:4", "clean", "contrast:5")
OPTIONS = {"method": ("zero_shot", "tda"), "views": VIEWS}


@pytest.fixture
def some(workload) -> Workload:
    """Four of the videos."""
    kept = workload.manifest.select(limit=4)
    return Workload.of(kept, [whole_split(kept)])


@pytest.fixture
def follow(some, tiny_checkpoint, tmp_path):
    """Runs every pass over the videos; with a new worker for every so many of them."""

    def make(name: str, corruptions, videos_a_worker: int = 1000, **options):
        run = Run(some, tiny_checkpoint, tmp_path / name, corruptions, **OPTIONS, **options)
        folder = RunFolder(run.spec.storage)
        StreamState(0, {}).write(run.spec.storage)
        seen = []
        for spec, told in run.passes:
            while len(left := unseen(some.table(), spec, Ledger(folder), folder)):
                stage = AdaptStage(*told)
                for number in range(min(videos_a_worker, len(left))):
                    stage(DecodeStage(spec)(left.slice(number, 1)))
                    seen.append((left["video_id"][number].as_py(), left["position"][number].as_py()))
        return run, seen

    return make


@pytest.mark.slow
def test_each_corruption_goes_on_from_the_one_before(follow, some):
    run, seen = follow("following", FOLLOWING, continual=True)
    count = len(some.manifest)
    assert [position for _, position in seen] == list(range(3 * count))
    assert [video for video, _ in seen] == 3 * [video for video, _ in seen[:count]]
    found = run.found()
    assert len(found) == 3 * 2 * count

    alone = {one: follow(one.replace(":", "-"), (one,))[0].found() for one in FOLLOWING}
    for place, one in enumerate(FOLLOWING):
        label = None if one == "clean" else one
        same = dict.fromkeys(OPTIONS["method"], True)
        for (video, method, corruption), (_, scores) in found.items():
            if corruption == label:
                same[method] &= scores == pytest.approx(alone[one][video, method, label][1], abs=1e-5)
        # What does not learn does not notice; what does begins with the first.
        assert same == {"zero_shot": True, "tda": place == 0}


@pytest.mark.slow
def test_the_state_is_that_of_the_videos_before(follow, some, tiny_checkpoint, tmp_path):
    run, _ = follow("following", FOLLOWING[:2], continual=True)
    first, _ = follow("first", FOLLOWING[:1])
    state = StreamState.read(first.spec.storage)
    # By hand: a stream over clean frames that is given what the corrupted ones have taught.
    second = Run(some, tiny_checkpoint, tmp_path / "second", FOLLOWING[1:2], **OPTIONS)
    StreamState(0, {}).write(second.spec.storage)
    ((spec, told),) = second.passes
    stage = AdaptStage(*told)
    (own,) = {case.case_id for case in spec.cases if case.method == "tda"}
    stage.replicas[0].adapter.restore_streams(
        {f"{own}/{name.partition('/')[2]}": value for name, value in state.tensors.items()}
    )
    folder = RunFolder(spec.storage)
    left = unseen(some.table(), spec, Ledger(folder), folder)
    for number in range(len(left)):
        stage(DecodeStage(spec)(left.slice(number, 1)))
    for (video, method, corruption), (_, scores) in second.found().items():
        assert run.found()[video, method, corruption][1] == scores


@pytest.mark.slow
@pytest.mark.parametrize("videos_a_worker", [1, 3])
def test_wherever_a_worker_ends_the_next_goes_on_to_the_same_bits(follow, videos_a_worker):
    whole, seen = follow("whole", FOLLOWING, continual=True)
    parts, again = follow("parts", FOLLOWING, videos_a_worker, continual=True)
    assert again == seen
    assert parts.found() == whole.found()


def test_mistakes_are_one_line(video_folder, tmp_path):
    def plan(**options):
        return plan_study(
            EvalConfig(dataset=str(video_folder), output=str(tmp_path), continual=True, **options),
            Console(file=io.StringIO()),
        )

    with pytest.raises(ConfigError, match=r"^--continual: name the corruptions that follow each other"):
        plan(method=("tda",), corruption=("rain:1",))
    options = EvalConfig(method=("zero_shot",), continual=True)
    with pytest.raises(ConfigError, match=r"^--continual: none of the methods learns from one video to the next"):
        check_methods(options, [options])
