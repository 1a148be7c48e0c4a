"""Corruptions through both stages: each cell is its separate run, a video is decoded once, a model loaded once."""

from __future__ import annotations

import shutil

import pyarrow as pa
import pytest
from corrupted_runs import Run

from zar_ray.data.datasets import list_dataset
from zar_ray.data.probing import probe_listing
from zar_ray.data.protocols import whole_split
from zar_ray.evaluation.stages import adapt, decode
from zar_ray.evaluation.stages.decode import DecodeStage
from zar_ray.evaluation.workload import Workload

CORRUPTIONS = ("clean", "gaussian_noise:4", "motion_blur:1")


@pytest.fixture
def run(workload, tiny_checkpoint, tmp_path):
    """Begins a run of some corruptions."""

    def make(name: str, corruptions, videos: Workload = workload, **options) -> Run:
        return Run(videos, tiny_checkpoint, tmp_path / name, corruptions, **options)

    return make


@pytest.mark.slow
def test_every_cell_is_its_separate_run(run, monkeypatch):
    decoded, loaded = [], []
    read, load = decode.decode_video, adapt.load_model
    monkeypatch.setattr(decode, "decode_video", lambda *args, **told: decoded.append(args[0]) or read(*args, **told))
    monkeypatch.setattr(adapt, "load_model", lambda options: loaded.append(options) or load(options))
    together = run("together", CORRUPTIONS)
    videos = together.todo().slice(0, 2)
    status = together.evaluate(videos)
    assert status["failed"].to_pylist() == [False] * 2
    assert (len(decoded), len(loaded)) == (2, 1)
    found = together.found()
    assert len({case for case, _ in found.values()}) == 2 * len(CORRUPTIONS)
    assert {one for *_, one in found} == {None, *CORRUPTIONS[1:]}
    for one in CORRUPTIONS:
        alone = run(f"alone-{one.replace(':', '-')}", (one,) if one != "clean" else ())
        alone.evaluate(videos.set_column(videos.schema.get_field_index("models"), "models", pa.array([[0]] * 2)))
        expected = alone.found()
        assert len(expected) == 2 * 2
        for key, (case, scores) in expected.items():
            assert found[key][0] == case
            assert found[key][1] == pytest.approx(scores, abs=1e-4)
    of_video = {found[videos["video_id"][0].as_py(), "zar", one][1] for one in {one for *_, one in found}}
    assert len(of_video) == len(CORRUPTIONS)


def test_a_run_goes_on_with_the_corruptions_that_lack_rows(run):
    run("run", CORRUPTIONS[:2]).evaluate(run("run", CORRUPTIONS[:2]).todo().slice(0, 2))
    again = run("run", CORRUPTIONS[:2])
    done = len(again.found())
    more = run("run", CORRUPTIONS[:3])
    left = {row["video_id"]: row["models"] for row in more.todo().to_pylist()}
    assert done == 2 * 2 * 2
    assert sorted(map(tuple, left.values())) == sorted([(2,)] * 2 + [(0, 1, 2)] * (len(left) - 2))


def test_memory_is_planned_for_every_corruption(run):
    runs = [run(str(count), CORRUPTIONS[:count]) for count in (1, 3)]
    sizes = [DecodeStage(one.spec).largest(one.workload.table()) for one in runs]
    assert sizes == [sizes[0], 3 * sizes[0]]


@pytest.mark.slow
def test_features_of_corrupted_frames_are_stored_apart(run, workload, tmp_path):
    store = {"features": str(tmp_path / "features")}
    first = run("first", CORRUPTIONS[:2], **store)
    videos = first.todo().slice(0, 2)
    assert first.evaluate(videos)["feature_uses"].to_pylist() == [["computed"] * 2] * 2
    second = run("second", CORRUPTIONS[:2], **store)
    assert second.evaluate(videos)["feature_uses"].to_pylist() == [["read"] * 2] * 2
    for key, (case, scores) in first.found().items():
        assert second.found()[key] == (case, pytest.approx(scores, abs=1e-4))
    third = run("third", CORRUPTIONS[:2], **store, corruption_seed=1)
    assert third.evaluate(videos)["feature_uses"].to_pylist() == [["read", "computed"]] * 2
    changed = {key for key, value in first.found().items() if third.found()[key][1] != value[1]}
    assert {corruption for *_, corruption in changed} == {"gaussian_noise:4"}


def test_what_is_drawn_for_a_video_is_no_copys(run, video_folder, tmp_path):
    root = tmp_path / "copies"
    source = next(iter(sorted(video_folder.glob("*/*.mp4"))))
    for label, name in (("a", "one.mp4"), ("b", "two.mp4")):
        (root / label).mkdir(parents=True)
        shutil.copy(source, root / label / name)
    manifest = probe_listing(list_dataset(root))
    copies = Workload.of(manifest, [whole_split(manifest)])
    store = {"features": str(tmp_path / "features")}
    both = run("both", ("clean", "salt_noise:3"), copies, method=("zero_shot",), **store)
    uses = [both.evaluate(both.todo().slice(0, 1))["feature_uses"].to_pylist() for _ in range(2)]
    # The second is the first's bytes: clean it is known, and its noise is its own.
    assert uses == [[["computed", "computed"]], [["read", "computed"]]]
    found = both.found()
    assert found["a/one.mp4", "zero_shot", None] == found["b/two.mp4", "zero_shot", None]
    assert found["a/one.mp4", "zero_shot", "salt_noise:3"][1] != found["b/two.mp4", "zero_shot", "salt_noise:3"][1]
