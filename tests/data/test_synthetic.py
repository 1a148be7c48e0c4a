"""The demo's data set: real files under right names, complete or absent, the same every time."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zar_ray.data.manifest import read_manifest
from zar_ray.data.synthetic import (
    COLOURS,
    MOTIONS,
    SHAPES,
    SyntheticSpec,
    combinations,
    draw,
    write_synthetic,
)
from zar_ray.errors import ManifestError
from zar_ray.video.reading import open_video

SMALL = SyntheticSpec(train_classes=6, unseen_classes=2, train_videos=1, val_videos=1, test_videos=3, frames=(8, 14))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("home") / "demo"
    seen = []
    write_synthetic(folder, SMALL, workers=2, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(done, 24) for done in range(1, 25)]
    return folder


def contents(folder):
    return {p.relative_to(folder): hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.rglob("*.mp4")}


@settings(max_examples=30, deadline=None)
@given(st.integers(6, 184), st.integers(1, 32), st.integers(0, 2**31))
def test_unseen_combinations_are_new_and_their_words_are_not(train_classes, unseen_classes, seed):
    spec = SyntheticSpec(train_classes=train_classes, unseen_classes=unseen_classes, seed=seed)
    train, unseen = combinations(spec)
    assert (len(set(train)), len(set(unseen))) == (train_classes, unseen_classes)
    assert not set(train) & set(unseen)
    assert {word for name in train for word in name.split()} == {*MOTIONS, *COLOURS, *SHAPES}
    assert (train, unseen) == combinations(spec)


def test_impossible_numbers_of_classes_are_refused():
    with pytest.raises(ManifestError, match="200 training and 32 unseen classes"):
        combinations(SyntheticSpec(train_classes=200))
    with pytest.raises(ManifestError, match="at least 6 and 1"):
        combinations(SyntheticSpec(train_classes=5))


def test_the_demo_has_the_classes_it_promises():
    train, unseen = combinations(SyntheticSpec())
    assert (len(train), len(unseen)) == (150, 32)
    assert {len(name.split()) for name in (*train, *unseen)} == {3}


@pytest.mark.process
def test_manifests_say_what_the_files_are(written):
    train, unseen = combinations(SMALL)
    for name, classes, splits, videos in (
        ("training.parquet", train, {"train": 1, "val": 1}, 12),
        ("manifest.parquet", unseen, {"test": 3, "shifted": 3}, 12),
    ):
        manifest = read_manifest(written / name)
        assert manifest.class_names == classes
        assert len(manifest) == videos
        for split, each in splits.items():
            labels = [row.label_id for row in manifest.select(split).rows()]
            assert sorted(labels) == sorted(list(range(len(classes))) * each)
        for row in manifest.rows():
            assert row.video_id.split("/")[1].replace("_", " ") == row.class_name
            for decoder in ("decord", "pyav"):
                if decoder == "decord":
                    pytest.importorskip("decord")
                with open_video(row.path, decoder) as reader:
                    info = reader.info
                    assert (
                        (info.frames, info.width, info.height)
                        == (row.frames, row.width, row.height)
                        == (
                            row.frames,
                            96,
                            64,
                        )
                    )
                    assert info.fps == pytest.approx(row.fps)
                    assert sum(1 for _ in reader.read(range(info.frames))) == row.frames
        assert len({row.frames for row in manifest.rows()}) > 2


@pytest.mark.process
def test_what_is_read_is_what_was_drawn(written):
    combination = combinations(SMALL)[1][0]
    drawn = draw("test", combination, 0, SMALL)
    path = written / f"test/{combination.replace(' ', '_')}/000.mp4"
    with open_video(path) as reader:
        read = np.stack(list(reader.read(range(reader.info.frames))))
    assert read.shape == drawn.shape
    assert np.abs(read.astype(float) - drawn).mean() < 6


def test_a_shifted_video_is_its_test_video_spoilt():
    combination = combinations(SMALL)[1][0]
    for number in range(3):
        clean, spoilt = (draw(split, combination, number, SMALL) for split in ("test", "shifted"))
        assert clean.shape == spoilt.shape
        assert np.abs(clean.astype(float) - spoilt).mean() > 4 or number == 2  # blur leaves flat parts as they are
        # The same scene all the same: apart from brightness and noise, the two go together.
        assert np.corrcoef(clean.mean((0, 3)).ravel(), spoilt.mean((0, 3)).ravel())[0, 1] > 0.7
    blurred = draw("shifted", combination, 2, SMALL).astype(float)
    clean = draw("test", combination, 2, SMALL).astype(float)
    assert np.abs(np.diff(blurred, axis=2)).max() < 0.7 * np.abs(np.diff(clean, axis=2)).max()


def test_a_moving_shape_leaves_a_trail():
    combination = next(c for c in combinations(SyntheticSpec())[0] if c.startswith("sliding"))
    frames = draw("train", combination, 0, SyntheticSpec()).astype(float)
    changed = np.abs(frames - frames[0]).max(axis=3) > 12
    # The trail has no sharp end, so what differs from the first frame is much wider than the shape itself.
    widths = [np.ptp(np.flatnonzero(frame.any(axis=0))) for frame in changed[6:] if frame.any()]
    assert np.mean(widths) > 40


@pytest.mark.process
def test_the_same_spec_gives_the_same_bytes_with_any_number_of_workers(written, tmp_path):
    write_synthetic(tmp_path / "demo", SMALL, workers=1)
    assert contents(tmp_path / "demo") == contents(written)


@pytest.mark.process
def test_a_data_set_that_is_there_is_used_and_another_is_written_anew(tmp_path):
    folder = tmp_path / "demo"
    spec = replace(SMALL, train_videos=1, val_videos=1, test_videos=1)
    manifest = write_synthetic(folder, spec, workers=2)
    before = manifest.stat().st_mtime_ns
    assert write_synthetic(folder, spec) == manifest
    assert manifest.stat().st_mtime_ns == before

    next(folder.rglob("*.mp4")).unlink()
    write_synthetic(folder, spec, workers=2)
    assert len(contents(folder)) == 16

    first = contents(folder)
    write_synthetic(folder, replace(spec, seed=1), workers=2)
    assert contents(folder) != first
    assert {row.path.startswith(str(folder)) for row in read_manifest(manifest).rows()} == {True}


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "thesis.txt").write_text("dear")
    with pytest.raises(ManifestError, match="something else"):
        write_synthetic(tmp_path / "demo", SMALL)
    assert (tmp_path / "demo" / "thesis.txt").read_text() == "dear"


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="looks for the writer's processes in /proc")
@pytest.mark.process
def test_a_killed_writer_leaves_no_folder_and_no_process(tmp_path):
    folder = tmp_path / "demo"
    script = (
        "from pathlib import Path\n"
        "from zar_ray.data.synthetic import SyntheticSpec, write_synthetic\n"
        "if __name__ == '__main__':\n"
        f"    write_synthetic(Path({str(folder)!r}), SyntheticSpec(), workers=2,\n"
        "                    progress=lambda done, total: print(done, flush=True))\n"
    )
    (tmp_path / "writer.py").write_text(script)
    writer = subprocess.Popen([sys.executable, str(tmp_path / "writer.py")], stdout=subprocess.PIPE)
    assert writer.stdout is not None
    for _ in range(20):
        writer.stdout.readline()
    children = Path(f"/proc/{writer.pid}/task/{writer.pid}/children").read_text().split()
    assert len(children) >= 2
    os.kill(writer.pid, signal.SIGKILL)
    writer.wait()
    assert not folder.exists()
    assert list(tmp_path.glob(".demo.partial-*"))

    deadline = time.monotonic() + 20
    while (alive := [pid for pid in children if _runs(int(pid))]) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not alive

    write_synthetic(folder, replace(SMALL, train_videos=1, test_videos=1), workers=2)
    assert not list(tmp_path.glob(".demo.partial-*"))
    assert len(read_manifest(folder / "training.parquet")) == 12


def _runs(pid):
    """Whether a process is there and not merely unburied."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
