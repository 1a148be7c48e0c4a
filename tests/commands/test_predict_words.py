"""No option of `zar predict` swallows a video, wherever it stands."""

from __future__ import annotations

import pytest

from zar_ray.adaptation.options import PredictConfig
from zar_ray.commands.parsing import parse_run
from zar_ray.commands.predict import RemoteOptions
from zar_ray.commands.words import videos_last

BOTH = [PredictConfig, RemoteOptions]


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize(
    ("words", "videos"),
    [
        (["--seeds", "0", "1", "2", "clip"], ("clip",)),
        (["--seeds", "7", "a.mp4", "b"], ("a.mp4", "b")),
        (["a.mp4", "--seeds", "0", "1", "b.mp4", "--", "-c.mp4"], ("a.mp4", "b.mp4", "-c.mp4")),
        (["--method", "zero_shot", "zar", "clips/*.mp4"], ("clips/*.mp4",)),
        (["--json-lines", "a", "--views.rates", "1", "0.5", "-"], ("a", "-")),
        (["--labels", "a.mp4", "b.mp4", "--seeds=3", "c.mp4"], ("b.mp4", "c.mp4")),
        (["--no-compile", "a", "--method", "zar", "s3://b/c"], ("a", "s3://b/c")),
        (["--method", "zero_shot", "a.mp4", "--seeds", "1", "b"], ("a.mp4", "b")),
        (["a", "--labels", "b", "c", "--checkpoint", "d.mp4", "e"], ("a", "c", "e")),
    ],
)
def test_a_video_behind_several_values_is_a_video(kind, words, videos):
    options = parse_run(kind, videos_last(words, kind), "zar predict").options
    assert options.videos == videos
    seeds = [int(word) for word in words if word in ("0", "1", "2", "7") and "--seeds" in words]
    assert list(options.seeds) == (seeds or ([3] if "--seeds=3" in words else []))


@pytest.mark.parametrize(
    "words",
    [
        ["-a.mp4", "--seeds", "0", "1"],
        ["--seeds", "0", "1", "--", "-a.mp4"],
        ["--checkpoint", "a.mp4", "--top-k", "3"],
        ["--method", "zero_shot", "zarr"],
        ["--list", "a.mp4"],
    ],
)
def test_other_lines_stay_as_they_are(words):
    assert videos_last(words, PredictConfig) == words


def test_help_is_not_taken_for_a_video():
    assert "-h" in videos_last(["--seeds", "0", "a.mp4", "-h"], PredictConfig)[:3]
