"""Files made from a run's per-class results: the confusion matrix as a picture, accuracy by class as CSV."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import astuple, fields
from typing import Literal

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from zar_ray.reporting.blocks import Block, csv_block
from zar_ray.reporting.numbers import fixed, shortened
from zar_ray.results.record import ClassAccuracy

ALL_CLASSES = 40
"""Up to so many classes the picture shows the whole matrix; beyond, the most confused classes."""

_NAME_LENGTH = 28


def confusion_picture(matrix: np.ndarray, class_names: Sequence[str], form: Literal["png", "svg"] = "png") -> bytes:
    """Draws how often each class is taken for each, as shares of the right class's videos.

    Up to `ALL_CLASSES` classes all are shown.  Beyond that the classes that take part in the most frequent mistakes
    are, so many that they stay readable, with one more column for everything else that they are taken for.

    Args:
        matrix: ``(K, K)`` counts; rows are the right class, columns the predicted one.
        class_names: The K names.
        form: What kind of picture.

    Returns:
        The picture's file.
    """
    matrix = np.asarray(matrix)
    everything = len(class_names) <= ALL_CLASSES
    chosen = np.arange(len(class_names)) if everything else most_confused(matrix, ALL_CLASSES - 1)
    # Dollar signs would be typeset as mathematics.
    names = [shortened(class_names[i], _NAME_LENGTH).replace("$", r"\$") for i in chosen.tolist()]
    totals = matrix[chosen].sum(axis=1)
    shown = matrix[np.ix_(chosen, chosen)]
    columns = names
    if not everything:
        shown = np.column_stack([shown, totals - shown.sum(axis=1)])
        columns = [*names, "(another class)"]
    # A class without videos keeps an empty row: it was never right or wrong.
    shares = np.divide(shown, totals[:, None], out=np.full(shown.shape, np.nan), where=totals[:, None] > 0)

    side = 3.0 + 0.24 * len(columns)
    figure = Figure(figsize=(side + 0.8, side), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(shares, vmin=0, vmax=1, cmap="Blues", interpolation="nearest")
    axes.set_xticks(range(len(columns)), columns, rotation=90, fontsize=7)
    axes.set_yticks(range(len(names)), names, fontsize=7)
    axes.set_xlabel("predicted")
    axes.set_ylabel("right")
    title = "Predictions, as shares of each class's videos"
    if not everything:
        title += f"\nthe {len(names)} classes of {len(class_names)} in the most frequent mistakes"
    axes.set_title(title, fontsize=9)
    if len(columns) <= 20:
        for (row, column), count in np.ndenumerate(shown):
            if count:
                colour = "white" if shares[row, column] > 0.5 else "black"
                axes.text(column, row, str(count), ha="center", va="center", fontsize=6, color=colour)
    figure.colorbar(image, ax=axes, shrink=0.6)
    picture = io.BytesIO()
    # No date and no random names, so that the same numbers make the same file.
    about = dict.fromkeys(("Date", "Creator", "Format", "Type")) if form == "svg" else None
    with mpl.rc_context({"svg.hashsalt": "zar-ray"}):
        figure.savefig(picture, format=form, dpi=110, metadata=about)
    return picture.getvalue()


def most_confused(matrix: np.ndarray, count: int) -> np.ndarray:
    """The classes that take part in the most frequent mistakes.

    Args:
        matrix: ``(K, K)`` counts; rows are the right class, columns the predicted one.
        count: How many classes.

    Returns:
        Ascending class ids, int64, min(count, K) of them: both sides of the most frequent mistake, of the next, and so
        on; equal counts in the order of the matrix.
    """
    mistakes = matrix - np.diag(np.diag(matrix))
    chosen: dict[int, None] = {}
    for cell in np.argsort(-mistakes, axis=None, kind="stable"):
        for class_id in divmod(int(cell), len(matrix)):
            chosen.setdefault(class_id)
        if len(chosen) >= count:
            break
    return np.array(sorted(list(chosen)[:count]), np.int64)


def per_class_csv(classes: Sequence[ClassAccuracy]) -> str:
    """Writes accuracy by class as CSV with a header; shares have four decimals, and are empty without videos."""
    rows = [
        [fixed(value, 4) if isinstance(value, float) else "" if value is None else str(value) for value in astuple(one)]
        for one in classes
    ]
    return csv_block(Block(None, [field.name for field in fields(ClassAccuracy)], rows))
