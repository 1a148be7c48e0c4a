"""The pictures can be opened, show the right classes and stay readable; the CSV reads back."""

from __future__ import annotations

import csv
import io

import numpy as np
import pytest
from PIL import Image

from zar_ray.reporting.figures import ALL_CLASSES, confusion_picture, most_confused
from zar_ray.reporting.summary_tables import per_class_csv
from zar_ray.results.record import ClassAccuracy


def picture_of(matrix: np.ndarray, names: list[str]) -> np.ndarray:
    content = confusion_picture(matrix, names)
    assert content.startswith(b"\x89PNG")
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


@pytest.mark.slow
@pytest.mark.parametrize("classes", [1, 2, 32, 600])
def test_a_picture_of_any_number_of_classes_stays_within_a_page(classes):
    rng = np.random.default_rng(0)
    matrix = rng.integers(0, 3, (classes, classes)) + 20 * np.eye(classes, dtype=int)
    height, width, _ = picture_of(matrix, [f"class {i} " + "with a very long name " * 3 for i in range(classes)]).shape
    assert 200 < height < 2000
    assert 200 < width < 2000


def test_the_picture_follows_the_matrix():
    full = np.array([8, 48, 107])  # the colour of a share of one

    def centre(right: int, predicted: int) -> tuple[float, float]:
        matrix = np.zeros((3, 3), int)
        matrix[right, predicted] = 5
        rows, columns = np.nonzero((np.abs(picture_of(matrix, ["a", "b", "c"]) - full) < 4).all(axis=-1))
        return float(rows.mean()), float(columns.mean())

    centres = np.array([[centre(right, predicted) for predicted in range(3)] for right in range(3)])
    downwards, sideways = np.diff(centres[..., 0], axis=0), np.diff(centres[..., 1], axis=1)
    assert (downwards > 20).all(), "a right class is a row, the first on top"
    assert (sideways > 20).all(), "a predicted class is a column, the first on the left"
    assert np.ptp(centres[..., 0], axis=1).max() < 3
    assert np.ptp(centres[..., 1], axis=0).max() < 3


def test_empty_classes_and_dollar_signs_draw():
    picture_of(np.zeros((3, 3), int), ["$a$", r"$\frac$", "c"])


def test_the_most_confused_classes_are_those_of_the_most_frequent_mistakes():
    matrix = np.diag([9] * 60)
    matrix[50, 3], matrix[20, 40], matrix[7, 8] = 8, 6, 2
    assert most_confused(matrix, 4).tolist() == [3, 20, 40, 50]
    assert most_confused(matrix, 6).tolist() == [3, 7, 8, 20, 40, 50]
    assert len(most_confused(matrix, ALL_CLASSES)) == ALL_CLASSES
    assert most_confused(matrix[:2, :2], 5).tolist() == [0, 1]


def test_the_csv_reads_back_whatever_the_names():
    classes = [
        ClassAccuracy(0, 'say "hi", then\nwave', 3, 1, 1 / 3, 2 / 3, "b", 1),
        ClassAccuracy(1, "b", 0, 0, None, None, None, 0),
    ]
    first, second = csv.DictReader(io.StringIO(per_class_csv(classes)))
    assert first == {
        "label_id": "0",
        "label": 'say "hi", then\nwave',
        "videos": "3",
        "failed": "1",
        "top1_before": "0.3333",
        "top1_after": "0.6667",
        "taken_for": "b",
        "taken_for_videos": "1",
    }
    assert (second["top1_after"], second["taken_for"], second["taken_for_videos"]) == ("", "", "0")
