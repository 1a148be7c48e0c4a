"""`zar_ray.load(...).predict(...)`: what `zar predict` says, to the bit, of files, frames and containers."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest

import zar_ray
from zar_ray.commands.predict import predict_command
from zar_ray.data.classes import class_list
from zar_ray.errors import ConfigError, ModelError, VideoError
from zar_ray.video.reading import open_video

LABELS = ("jumping high", "riding a bike", "swimming")
OPTIONS = {"views": {"frames": 3, "eval_frames": 5, "rates": [1, 0.5]}, "zar": {"lr": 0.02, "steps": 2}}
WORDS = [
    "--views.frames",
    "3",
    "--views.eval-frames",
    "5",
    "--views.rates",
    "1",
    "0.5",
    "--zar.lr",
    "0.02",
    "--zar.steps",
    "2",
]

# What takes long to load, and is not needed to ask for the version.
HEAVY = "torch numpy pyarrow pandas ray av pydantic matplotlib rich"


@pytest.fixture(scope="module")
def model(tiny_checkpoint):
    with zar_ray.load(tiny_checkpoint) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def clips(video_folder) -> list[Path]:
    return [video_folder / "red circle" / "1.mp4", video_folder / "blue bar" / "2.mp4"]


def frames_of(path: Path) -> tuple[np.ndarray, float]:
    with open_video(path) as reader:
        return np.stack(list(reader.read(range(reader.info.frames)))), reader.info.fps


def said_by_command(capsys, checkpoint: Path, clips: list[Path], *words: str) -> list[dict]:
    labels = ",".join(LABELS)
    assert not predict_command([*map(str, clips), "--labels", labels, "--checkpoint", str(checkpoint), *WORDS, *words])
    lines = capsys.readouterr().out.splitlines()
    return [json.loads(line) for line in lines if line.startswith("{")]


def plain(ranked) -> list[dict]:
    return [vars(one) for one in ranked]


@pytest.mark.process
def test_importing_is_light():
    loaded = f"set(sys.modules) & set({HEAVY!r}.split())"
    code = f"import time, sys; at = time.process_time(); import zar_ray; print(time.process_time() - at, *{loaded})"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert float(told[0]) < 0.2
    assert told[1:] == []


@pytest.mark.process
def test_files_frames_and_containers_say_what_the_command_says_to_the_bit(model, clips, tiny_checkpoint, capsys):
    methods, seeds = ("zero_shot", "zar"), (4, 1)
    words = ("--method", *methods, "--seeds", *map(str, seeds), "--json-lines")
    expected = said_by_command(capsys, tiny_checkpoint, clips, *words)
    frames, fps = frames_of(clips[1])
    with av.open(str(clips[0])) as by_path, av.open(io.BytesIO(clips[1].read_bytes())) as in_memory:
        next(in_memory.decode(video=0))  # its file is not at its start any more
        ways = [
            [str(clips[0]), clips[1]],
            [by_path, frames],
            (one for one in (clips[0], in_memory)),
        ]
        for videos in ways:
            names = [one.name for one in clips]
            told = {"method": methods, "seeds": seeds, "fps": fps, "names": names, **OPTIONS}
            found = model.predict(videos, list(LABELS), **told)
            assert [one.method for one in found] == [*methods, *methods]
            for one, said in zip(found, expected, strict=True):
                assert plain(one.before) == said["before"]
                assert plain(one.after) == said["after"]
                assert list(one.seeds) == said["seeds"]
        assert next(in_memory.decode(video=0)).width == frames.shape[2]


def test_another_name_draws_other_views(model, clips):
    frames, fps = frames_of(clips[0])
    told = {"labels": LABELS, "fps": fps, **OPTIONS}
    first, again, other = (model.predict(frames, names=name, **told)[0] for name in ("a.mp4", "a.mp4", "b.mp4"))
    assert (first.video, first.after) == ("a.mp4", again.after)
    assert other.before == first.before
    assert other.after != first.after
    assert [one.video for one in model.predict([frames, frames[::2]], **told)] == ["array1", "array2"]


def test_frames_need_no_other_process(tiny_checkpoint):
    with zar_ray.load(tiny_checkpoint) as loaded:
        loaded.predict(np.zeros((4, 40, 40, 3), np.uint8), LABELS, method="zero_shot", fps=25, **OPTIONS)
        assert [one.pid for one in loaded._decoders.values()] == [None]


def test_a_stream_is_told_how_many_frames_arrays_there_are(model, clips):
    frames, fps = frames_of(clips[0])
    told = {"labels": LABELS, "fps": fps, "method": "onzeta", **OPTIONS}
    found = model.predict([frames, frames[::2]], **told)
    assert [*found] == [*model.predict([frames, frames[::2]], **told, onzeta={"videos": 2})]


@pytest.mark.process
def test_folders_and_patterns_are_those_of_the_command(model, clips, tmp_path):
    for clip in clips:
        (tmp_path / clip.name).write_bytes(clip.read_bytes())
    places = [str(tmp_path / clip.name) for clip in clips]
    told = {"labels": LABELS, "method": "zero_shot", **OPTIONS}
    found = model.predict(tmp_path, **told)
    assert [one.video for one in found] == places
    assert [*found] == [*model.predict([places[0], f"{tmp_path}/2.*"], **told)]
    missing = model.predict([tmp_path / "none.mp4"], **told)
    assert missing.failed[0].error == "no such file"
    found.write_csv(tmp_path / "found.csv", top_k=2)
    head, *rows = (tmp_path / "found.csv").read_text().splitlines()
    assert "label_2,score_2" in head
    assert [row.split(",")[0] for row in rows] == places


def test_tables_have_a_row_a_label(model, clips):
    frames, fps = frames_of(clips[0])
    found = model.predict([frames] * 2, LABELS, method=["zero_shot", "zar"], seeds=range(2), fps=fps, **OPTIONS)
    table = found.to_pandas()
    assert len(table) == len(found) * len(LABELS)
    mine = table[(table.video == "array2") & (table.method == "zar")]
    ranking = found[3]
    assert list(mine.label) == [one.label for one in ranking.after]
    assert list(mine["rank"]) == [1, 2, 3]
    assert list(mine.score) == [one.score for one in ranking.after]
    assert list(mine["std"]) == [one.std for one in ranking.after]
    before = {one.label: (place, one.score) for place, one in enumerate(ranking.before, start=1)}
    assert [before[label] for label in mine.label] == list(zip(mine.rank_before, mine.score_before, strict=True))
    assert ranking.best.label == mine.label.iloc[0]
    assert len(model.predict(frames, LABELS, fps=fps, top_k=1, **OPTIONS)[0].after) == 1
    assert isinstance(found[1:], zar_ray.Predictions)
    assert "array2, zar" in repr(found)


@pytest.mark.process
def test_a_broken_file_costs_its_own_rows(model, clips, tmp_path):
    (tmp_path / "text.mp4").write_text("no video")
    found = model.predict([tmp_path / "text.mp4", clips[0]], LABELS, **OPTIONS)
    (failed,) = found.failed
    assert (failed.video, found[1].error) == (str(tmp_path / "text.mp4"), None)
    row = found.to_pandas().iloc[0]
    assert "not a video" in row.error
    assert row.isna()["label"]
    with pytest.raises(VideoError, match=r"text\.mp4: not a video"):
        _ = failed.best


def test_labels_are_a_list_a_file_or_a_benchmark(model, clips, tmp_path):
    frames, fps = frames_of(clips[0])
    (tmp_path / "names.txt").write_text("swimming\na, b\n")

    def ranked(labels):
        return {one.label for one in model.predict(frames, labels, method="zero_shot", fps=fps, **OPTIONS)[0].after}

    assert ranked(str(tmp_path / "names.txt")) == {"swimming", "a, b"}
    assert ranked("swimming,running") == {"swimming", "running"}
    assert ranked("hmdb51") == set(class_list("hmdb51"))
    split = {name for number in (1, 2, 3) for name in class_list(f"kinetics600_zero_shot_{number}")}
    assert ranked("k600") == split


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"metod": "zar"}, r"predict: unknown option metod; did you mean \"method\"\?"),
        ({"method": "zarr"}, r'no method is called "zarr"; did you mean "zar"\?'),
        ({"precision": "bf16"}, r"predict: precision is said when the model is loaded"),
        ({"json_lines": True}, r"predict: json_lines is no option of Model.predict"),
        ({"views": {"frames": 0}}, r"predict: views.frames: Input should be greater than or equal to 1"),
        ({"seeds": (3, 3)}, r"predict: seeds 3 3: names a seed twice"),
        ({"seeds": -1}, r"predict: seeds.0: Input should be greater"),
        ({"labels": ["a", "a"]}, r'labels: "a" is both name 1 and name 2'),
        ({"labels": []}, r"labels: no class names"),
        ({"fps": None}, r"video 1 is an array; give its frames a second with fps="),
        ({"fps": [1, 2]}, r"2 fps for 1 videos; give one each"),
        ({"fps": 0}, r"video 1 is 0 frames a second; must be more than 0"),
        ({"names": ["a", "b"]}, r"2 names for 1 videos; give one each"),
        ({"videos": []}, r"predict: give the videos to look at"),
        ({"videos": [3]}, r"video 1 is a int; give a path"),
        ({"videos": np.zeros((2, 4, 4, 3), np.float32)}, r"an array of float32 \(2, 4, 4, 3\); a video is uint8"),
        ({"videos": np.zeros((4, 4, 3), np.uint8)}, r"an array of uint8 \(4, 4, 3\)"),
        ({"videos": np.zeros((0, 4, 4, 3), np.uint8)}, r"an array of uint8 \(0, 4, 4, 3\)"),
    ],
)
def test_a_mistake_is_one_line(model, told, message):
    right = {"videos": np.zeros((4, 40, 40, 3), np.uint8), "labels": LABELS, "fps": 25.0}
    with pytest.raises(ConfigError, match=message) as caught:
        model.predict(**{**right, **told})
    assert "\n" not in str(caught.value)


def test_models_are_named_as_everywhere(tiny_checkpoint, tmp_path):
    with pytest.raises(ConfigError, match=r'load: unknown option devise; did you mean "device"\?'):
        zar_ray.load(tiny_checkpoint, devise="cpu")
    with pytest.raises(ModelError, match=r"no such"):
        zar_ray.load(tmp_path / "gone.safetensors")
    with pytest.raises(zar_ray.ZarError, match="ViT-B-17"):
        zar_ray.load("ViT-B-17:openai")
    loaded = zar_ray.load(str(tiny_checkpoint), device="cpu")
    assert (loaded.name, loaded.random_weights) == ("tiny", False)
    assert loaded.fingerprint in repr(loaded)
