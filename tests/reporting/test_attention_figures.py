"""The picture of attention maps: what is drawn, and what is said of it."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from zar_ray.explain.explanation import ClassMaps, VideoMaps
from zar_ray.reporting.attention_figures import attention_figure
from zar_ray.reporting.pages import Figure


def video_maps(classes: tuple[ClassMaps, ...] | None = None, frames: int = 6, name: str = "red circle") -> VideoMaps:
    rng = np.random.default_rng(0)
    before = rng.random((frames, 2, 2))
    after = before.copy()
    after[0, 0, 0] += 0.25 * before.sum()
    return VideoMaps(
        video_id="folder/video.mp4",
        frames=rng.integers(0, 255, (frames, 32, 32, 3), dtype=np.uint8),
        indices=np.arange(frames) * 10 + 3,
        rollout=rng.random((frames, 2, 2)),
        classes=classes or (ClassMaps(name, "predicted", before, after),),
        remarks=("A remark.",),
    )


def moved(before: np.ndarray, after: np.ndarray) -> float | None:
    return ClassMaps("a", "right", before, after).moved


def drawn(figure: Figure) -> np.ndarray:
    kind, _, content = figure.picture.uri.partition(";base64,")
    assert kind == "data:image/png"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(content))).convert("RGB")).astype(int)


def test_a_figure_says_what_it_shows():
    figure = attention_figure(video_maps(), frames_shown=3)
    assert drawn(figure).size
    assert figure.picture.alt.startswith("Frames 13, 33, 53 of folder/video.mp4")
    for text in (figure.picture.alt, figure.caption):
        # a quarter of the old total was added to one patch, so that patch has gained what all have lost
        assert " % of the relevance for red circle (predicted) to other patches" in text
        assert "\n" not in text
    assert figure.caption.endswith("A remark.")


def test_before_and_after_look_alike_only_where_nothing_moved():
    still = np.ones((6, 2, 2))
    moving = still.copy()
    moving[:, 0, 0] = 4
    same, other = (
        drawn(attention_figure(video_maps((ClassMaps("a", "predicted", still, after),)), 1))
        for after in (still, moving)
    )
    assert same.shape == other.shape
    # in the maps after tuning, and in the difference, which has no colour where there is none
    width = same.shape[1]
    for place in (slice(width // 2, 2 * width // 3), slice(3 * width // 4, width)):
        below = slice(same.shape[0] // 2, None)
        assert (same[below, place] != other[below, place]).any()

    def colourful(picture: np.ndarray) -> int:
        return int(np.ptp(picture[picture.shape[0] // 2 :, 3 * width // 4 :], axis=-1).max())

    assert colourful(same) < 12 < 60 < colourful(other)


def test_every_class_has_a_row_of_before_after_and_difference():
    maps = np.ones((6, 2, 2))
    one = attention_figure(video_maps((ClassMaps("a", "predicted", maps, maps),)))
    two = attention_figure(video_maps((ClassMaps("a", "predicted", maps, maps), ClassMaps("b", "right", maps, maps))))
    # a row more, below that of frames and rollout
    assert drawn(two).shape[0] / drawn(one).shape[0] == pytest.approx(3 / 2, rel=0.02)
    # so low that a screen shows several videos
    assert drawn(two).shape[0] < 0.3 * drawn(two).shape[1]
    assert "the predicted class a and the right class b" in two.picture.alt


def test_more_frames_than_there_are_cannot_be_shown():
    assert attention_figure(video_maps(frames=2), frames_shown=9).picture.alt.startswith("Frames 3, 13 of")


@pytest.mark.filterwarnings("error")
def test_names_and_maps_of_all_kinds_are_drawn():
    nothing = np.zeros((6, 2, 2))
    name = r"paying $100 \frac{ for {a} very long name of an action_class & <more>"
    figure = attention_figure(video_maps((ClassMaps(name, "right", nothing, np.ones((6, 2, 2))),)))
    assert f"No patch speaks for {name} (right) before tuning." in figure.caption


@given(st.lists(st.floats(0.01, 100), min_size=4, max_size=4), st.lists(st.floats(0.01, 100), min_size=4, max_size=4))
def test_what_moved_is_a_distance_of_distributions(a, b):
    one, other = (np.array(values).reshape(1, 2, 2) for values in (a, b))
    assert 0 <= moved(one, other) <= 1
    assert moved(one, other) == pytest.approx(moved(other, one))
    assert moved(one, 3 * one) == pytest.approx(0, abs=1e-9)


def test_what_moved_has_its_ends():
    left, right = np.array([[[1.0, 0.0]]]), np.array([[[0.0, 5.0]]])
    assert moved(left, right) == 1
    assert moved(left, np.array([[[1.0, 1.0]]])) == 0.5
    assert moved(left, np.zeros((1, 1, 2))) is None
