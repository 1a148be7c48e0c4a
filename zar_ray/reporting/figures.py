"""The charts of a report, as SVG: colour-blind safe (Okabe and Ito's palette) and told apart without colour too."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from sklearn.calibration import calibration_curve
from sklearn.manifold import TSNE

from zar_ray.reporting.charts import COLOURS, GREY, MARKERS, STYLE, WIDTH, chart, file_of, picture
from zar_ray.reporting.numbers import shortened
from zar_ray.reporting.pages import Drawn, Picture
from zar_ray.results.record import ClassAccuracy, Estimate
from zar_ray.results.trust import BINS, equal_width_bins

_BEFORE, _AFTER = "#E69F00", "#0072B2"
_ABOVE: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (0, 1), "ncols": 2, "borderaxespad": 0}
# So many classes of a map can still be told apart by colour and marker together.
_CLASSES_ON_MAP = 32
_MAP_COLUMNS = 4
_NAME_LENGTH = 28
_PERPLEXITY = 30.0

# Of a line over videos: no picture has as many pixels.
_POINTS = 2000

MOST_VIDEOS = 2000
"""More on a map would take minutes and overlap in print; so many are taken, evenly spread over the videos by id."""

LEAST_VIDEOS = 5
"""With fewer there are no neighbourhoods to draw."""

ALL_CLASSES = 40
"""Up to so many classes a confusion matrix is shown whole; beyond, those in the most frequent mistakes."""

FORMS: Mapping[str, Drawn] = {".svg": "svg", ".png": "png", ".pdf": "pdf"}
"""Kinds of files by their endings."""


def class_chart(classes: Sequence[ClassAccuracy], estimates: Mapping[int, Estimate], *, adapts: bool) -> Picture:
    """Top-1 of classes that have videos, in order from the top.

    Args:
        classes: The classes.
        estimates: With their intervals by label id: changes where the case adapts, else the shares themselves.
        adapts: Whether there is a before, a hollow dot, beside the after, a full one; then changes stand beside both.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 1.0 + 0.26 * len(classes)), layout="constrained")
        axes, *beside = figure.subplots(1, 1 + adapts, sharey=True, squeeze=False)[0]
        places = np.arange(len(classes))
        after = np.array([100 * (one.top1_after or 0.0) for one in classes])
        before = np.array([100 * (one.top1_before or 0.0) for one in classes])
        measured = [estimates[one.label_id] for one in classes]
        ends = np.array([[100 * one.low, 100 * one.high] for one in measured])
        for one in (axes, *beside):
            one.grid(axis="x")
            one.tick_params(axis="y", length=0)
        axes.set_yticks(places, [f"{shortened(one.label)} ({one.videos})" for one in classes])
        axes.set(xlim=(-3, 103), ylim=(len(classes) - 0.4, -0.6), xlabel="top-1 (%); in brackets the class's videos")
        if adapts:
            axes.hlines(places, before, after, color=GREY, linewidth=1.2)
            axes.plot(before, places, "o", markersize=7.5, mfc="white", mec=_BEFORE, mew=1.6, label="before")
        else:
            axes.hlines(places, *ends.T, color=_AFTER, linewidth=2, alpha=0.55)
        axes.plot(after, places, "o", markersize=5, color=_AFTER, label="after" if adapts else "top-1")
        for change in beside:
            change.axvline(0, color=GREY, linewidth=1)
            change.hlines(places, *ends.T, color=_AFTER, linewidth=2, alpha=0.55)
            change.plot([100 * one.value for one in measured], places, "o", markersize=5, color=_AFTER)
            change.set(xlabel="change (points) with its 95 % interval")
            axes.legend(**_ABOVE)
        values = (f"{before[n]:.0f} to {after[n]:.0f} %" if adapts else f"{after[n]:.0f} %" for n in places)
        shown = "; ".join(f"{one.label} {value}" for one, value in zip(classes, values, strict=True))
        return picture(figure, f"Top-1 by class. {shown}.")


def confusion_picture(matrix: np.ndarray, class_names: Sequence[str], form: Drawn = "png") -> bytes:
    """Draws how often each class is taken for each, as shares of the right class's videos.

    Up to `ALL_CLASSES` classes all are shown.  Beyond that the classes that take part in the most frequent mistakes
    are, so many that they stay readable, with one more column for everything else that they are taken for.

    Args:
        matrix: ``(K, K)`` counts; rows are the right class, columns the predicted one.
        class_names: The K names.
        form: What kind of file.
    """
    everything = len(class_names) <= ALL_CLASSES
    chosen = np.arange(len(class_names)) if everything else most_confused(matrix, ALL_CLASSES - 1)
    names = [shortened(class_names[i], _NAME_LENGTH) for i in chosen.tolist()]
    totals = matrix[chosen].sum(axis=1)
    shown, columns = matrix[np.ix_(chosen, chosen)], names
    if not everything:
        shown = np.column_stack([shown, totals - shown.sum(axis=1)])
        columns = [*names, "(another class)"]
    # A class without videos keeps an empty row: it was never right or wrong.
    shares = np.divide(shown, totals[:, None], out=np.full(shown.shape, np.nan), where=totals[:, None] > 0)

    side = 3.0 + 0.24 * len(columns)
    # A page shows large pictures smaller.
    size = 7 if len(columns) <= 20 else 10
    with chart(side + 0.8, side) as (figure, axes):
        image = axes.imshow(shares, vmin=0, vmax=1, cmap="Blues", interpolation="nearest")
        axes.set_xticks(range(len(columns)), columns, rotation=90, fontsize=size)
        axes.set_yticks(range(len(names)), names, fontsize=size)
        axes.set(xlabel="predicted", ylabel="right")
        title = "Predictions, as shares of each class's videos"
        if not everything:
            title += f"\nthe {len(names)} classes of {len(class_names)} in the most frequent mistakes"
        axes.set_title(title, fontsize=size + 2)
        if len(columns) <= 20:
            for (row, column), count in np.ndenumerate(shown):
                if count:
                    colour = "white" if shares[row, column] > 0.5 else "black"
                    axes.text(column, row, str(count), ha="center", va="center", fontsize=6, color=colour)
        figure.colorbar(image, ax=axes, shrink=0.6)
        return file_of(figure, form, dpi=110)


def most_confused(matrix: np.ndarray, count: int) -> np.ndarray:
    """The classes that take part in the most frequent mistakes of a ``(K, K)`` confusion matrix.

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


def confusions_chart(mistakes: Sequence[tuple[str, str, int, int]]) -> Picture:
    """The most frequent mistakes as bars.

    Args:
        mistakes: The right class, the predicted one, how many videos, of how many of the right class.
    """
    with chart(height=0.8 + 0.26 * len(mistakes)) as (figure, axes):
        places = np.arange(len(mistakes))
        axes.barh(places, [count for *_, count, _ in mistakes], height=0.62, color=_AFTER)
        names = [f"{shortened(right)} → {shortened(taken)}" for right, taken, *_ in mistakes]
        axes.set_yticks(places, names)
        for place, (*_, count, videos) in enumerate(mistakes):
            axes.text(count, place, f" {count} of {videos}", va="center", fontsize=8)
        most = max(count for *_, count, _ in mistakes)
        axes.set(xlim=(0, 1.15 * most), ylim=(len(mistakes) - 0.4, -0.6), xlabel="videos")
        axes.tick_params(axis="y", length=0)
        said = "; ".join(f"{right} as {taken} {count} of {videos}" for right, taken, count, videos in mistakes)
        return picture(figure, f"The most frequent mistakes, right class as predicted class. {said}.")


class Calibration(NamedTuple):
    """Confidence in the best class against how often it is right.

    Attributes:
        confidence: float (B,), mean confidence of each bin that holds a video, rising.
        accuracy: float (B,), share of right videos in these bins.
        videos: int (B,), videos in these bins.
        error: Expected calibration error: the mean distance of accuracy from confidence over the bins, each with the
            weight of its videos (Naeini et al., AAAI 2015; Guo et al., ICML 2017).
    """

    confidence: np.ndarray
    accuracy: np.ndarray
    videos: np.ndarray
    error: float


def calibrate(confidence: np.ndarray, right: np.ndarray, bins: int = BINS) -> Calibration:
    """Bins N > 0 decisions by their confidence in the best class, over [0, 1]; a bin holds its upper end.

    Args:
        confidence: float (N,): the probability of the best class.
        right: bool (N,): whether the best class is the right one.
        bins: Bins, of equal width.
    """
    accuracy, mean = calibration_curve(right, confidence, n_bins=bins)
    # scikit-learn keeps to itself how many fell into each bin; ours are its bins.
    videos = np.unique(equal_width_bins(confidence, bins), return_counts=True)[1]
    return Calibration(mean, accuracy, videos, float(np.average(np.abs(accuracy - mean), weights=videos)))


def reliability_chart(curves: Mapping[str, Calibration]) -> Picture:
    """Accuracy against confidence, such as before and after; the diagonal is a confidence that tells the truth."""
    with chart(4.6, 4.2) as (figure, axes):
        axes.grid()
        axes.plot([0, 1], [0, 1], color=GREY, linestyle=(0, (4, 3)), linewidth=1)
        most = max(int(one.videos.max()) for one in curves.values())
        said = []
        for name, one in curves.items():
            colour, marker, line = (_BEFORE, "s", "--") if name == "before" else (_AFTER, "o", "-")
            full = "white" if name == "before" else colour
            label = f"{name} (ECE {100 * one.error:.1f} %)"
            axes.plot(one.confidence, one.accuracy, line, color=colour, linewidth=1.4, label=label)
            sizes = 14 + 110 * one.videos / most
            axes.scatter(one.confidence, one.accuracy, s=sizes, marker=marker, c=full, edgecolors=colour, zorder=3)
            said.append(label)
        axes.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), xlabel="confidence in the best class", ylabel="share right")
        axes.set_aspect("equal")
        axes.legend(**_ABOVE)
        return picture(figure, f"Reliability diagram: share right against confidence, {', '.join(said)}.", narrow=True)


def entropy_chart(measured: Mapping[str, np.ndarray], classes: int) -> Picture:
    """How sure decisions, such as those before and after, are: videos by the evaluation view's entropy, in nats."""
    with chart(height=2.8) as (figure, axes):
        most = math.log(classes)
        edges: list[float] = np.linspace(0, most, 31).tolist()
        axes.grid(axis="y")
        said = []
        for name, entropies in measured.items():
            colour, line = (_BEFORE, "--") if name == "before" else (_AFTER, "-")
            fill: dict[str, Any] = {"fc": colour, "alpha": 0.25}
            if name == "before":
                fill = {"fc": "none", "ec": colour, "hatch": "////"}
            values = np.minimum(entropies, most)
            axes.hist(values, edges, histtype="stepfilled", lw=0, label=name, **fill)
            axes.hist(values, edges, histtype="step", ec=colour, lw=1.4, linestyle=line)
            axes.axvline(values.mean(), color=colour, linestyle=line, lw=1)
            said.append(f"mean {name} {values.mean():.2f}")
        axes.set(xlim=(0, most), xlabel=f"entropy (nats); {most:.2f} = all {classes} classes alike", ylabel="videos")
        axes.legend(**_ABOVE)
        return picture(figure, f"Histogram of the decisions' entropy: {', '.join(said)} nats.")


class EmbeddingMap(NamedTuple):
    """Where t-SNE puts the videos.

    Attributes:
        points: float (N, 2), their places.
        perplexity: About how many neighbours each video was held against.
    """

    points: np.ndarray
    perplexity: float


def spread(count: int, most: int) -> np.ndarray:
    """Places of at most so many things, evenly spread over all `count` of them: int, ascending."""
    return np.unique(np.linspace(0, max(count - 1, 0), min(count, most)).round().astype(np.int64))


def embedding_map(features: np.ndarray, seed: int = 0) -> EmbeddingMap:
    """Lays features out on a plane so that near ones stay near (t-SNE; van der Maaten and Hinton, JMLR 2008).

    The features are (N, D), L2-normalised, N at least `LEAST_VIDEOS` and at most `MOST_VIDEOS`.
    """
    # A video has at most all others for neighbours, and van der Maaten advises to stay well below that.
    perplexity = min(_PERPLEXITY, (len(features) - 1) / 3)
    layout = TSNE(perplexity=perplexity, init="random", random_state=seed)
    return EmbeddingMap(layout.fit_transform(features.astype(np.float32)), perplexity)


def map_chart(found: EmbeddingMap, labels: Sequence[str | None]) -> Picture:
    """Videos on a map, by right class: each has a colour and marker, or of many those with the most videos.

    A video without a label has None for one.
    """
    names, counts = np.unique([one for one in labels if one is not None], return_counts=True)
    shown = len(names) if len(names) <= _CLASSES_ON_MAP else len(COLOURS)
    chosen: list[str] = sorted(names[np.argsort(-counts, kind="stable")[:shown]].tolist())
    of_video = np.array([one or "" for one in labels], object)
    with chart(height=4.6 + 0.2 * math.ceil((len(chosen) + 1) / _MAP_COLUMNS)) as (figure, axes):
        size = 34 if len(of_video) <= 300 else 14
        rest = ~np.isin(of_video, chosen)
        if rest.any():
            name = "other classes" if len(names) > len(chosen) else "no label"
            axes.scatter(*found.points[rest].T, s=0.6 * size, c="#c9ccd2", linewidths=0, label=name, rasterized=True)
        for number, name in enumerate(chosen):
            axes.scatter(
                *found.points[of_video == name].T,
                s=size,
                c=COLOURS[number % len(COLOURS)],
                marker=MARKERS[(number + number // len(COLOURS)) % len(MARKERS)],
                edgecolors="#3a3d44",
                linewidths=0.3,
                label=shortened(name),
                # Thousands of dots as shapes would make a file of many megabytes.
                rasterized=len(of_video) > 300,
            )
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, 0), ncols=_MAP_COLUMNS, handletextpad=0.2)
        said = ", ".join(chosen) or "none"
        return picture(figure, f"Map of {len(of_video)} videos' features by t-SNE; coloured classes: {said}.")


def progress_chart(seconds: np.ndarray, failed: np.ndarray) -> Picture:
    """Videos with a result over time.

    Args:
        seconds: (N,) when each video's rows were made, rising, from the first.
        failed: bool (N,).
    """
    with chart(height=2.6) as (figure, axes):
        scale, unit = (60.0, "minutes") if seconds[-1] > 180 else (1.0, "seconds")
        done = np.arange(1, len(seconds) + 1)
        axes.grid()
        shown = spread(len(seconds), _POINTS)
        axes.step(seconds[shown] / scale, done[shown], where="post", color=_AFTER, linewidth=1.5)
        if failed.any():
            marked = np.flatnonzero(failed)
            marked = marked[spread(len(marked), _POINTS)]
            axes.plot(seconds[marked] / scale, done[marked], "x", color="#D55E00", mew=1.6, label="failed")
            axes.legend(loc="upper left")
        axes.set(xlabel=f"{unit} after the first result", ylabel="videos", ylim=(0, None))
        span = f"{seconds[-1] / scale:.1f} {unit}"
        alt = f"{len(seconds)} videos with a result within {span}, {int(failed.sum())} failed."
        return picture(figure, alt)


class PlottedRun(NamedTuple):
    """A line of `runs_chart`: its name, and the result before adaptation, if it adapts, and after it, as shares."""

    name: str
    before: Estimate | None
    after: Estimate


def runs_chart(groups: Mapping[str, Sequence[PlottedRun]], metric: str, form: Drawn = "svg") -> bytes:
    """Runs beside each other, before as a hollow and after as a full dot with its interval.

    Args:
        groups: The runs by split, whose name is empty where there is one.
        metric: What the shares are of.
        form: What kind of file.
    """
    lines = sum(len(runs) for runs in groups.values())
    with chart(height=1.1 + 0.36 * lines + 0.3 * len(groups)) as (figure, axes):
        axes.grid(axis="x")
        place, places, names = 0.0, [], []
        for title, runs in groups.items():
            for run in runs:
                after, before = run.after, run.before
                axes.plot([100 * after.low, 100 * after.high], [place, place], color=_AFTER, linewidth=2, alpha=0.55)
                axes.plot(100 * after.value, place, "o", ms=5, color=_AFTER, label="after, with its 95 % interval")
                if before is not None:
                    axes.plot(100 * before.value, place, "o", ms=8, mfc="none", mec=_BEFORE, mew=1.6, label="before")
                places.append(place)
                names.append(f"{shortened(run.name)}{f', {title}' if title else ''}")
                place += 1
            place += 0.7
        axes.set_yticks(places, names)
        axes.set(ylim=(place - 1.1, -0.6), xlabel=f"{metric} (%)")
        axes.tick_params(axis="y", length=0)
        handles, labels = axes.get_legend_handles_labels()
        once = dict(zip(labels, handles, strict=True))
        axes.legend(once.values(), once, **_ABOVE)
        return file_of(figure, form)
