"""The charts of a report, as SVG: colour-blind safe (Okabe and Ito's palette) and told apart without colour too."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from zar_ray.reporting.calibration import Calibration
from zar_ray.reporting.embedding_map import EmbeddingMap
from zar_ray.reporting.numbers import shortened
from zar_ray.reporting.pages import Picture
from zar_ray.results.record import ClassAccuracy, Estimate

_BEFORE, _AFTER, _GREY = "#E69F00", "#0072B2", "#8a8d94"
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000", "#F0E442")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#5c5f66",
    "axes.linewidth": 0.8,
    "axes.axisbelow": True,
    "grid.color": "#e3e5e9",
    "grid.linewidth": 0.8,
    "xtick.color": "#3a3d44",
    "ytick.color": "#3a3d44",
    "legend.frameon": False,
    "hatch.linewidth": 0.6,
    # A dollar sign in a name would be typeset as mathematics.
    "text.parse_math": False,
    # The same numbers make the same file.
    "svg.hashsalt": "zar-ray",
}
# So many classes of a map can still be told apart by colour and marker together.
_CLASSES_ON_MAP = 32
Form = Literal["svg", "png"]
_MAP_COLUMNS = 4
_WIDTH = 8.0


class _Chart:
    """A figure that ends up as a picture."""

    def __init__(self, width: float, height: float) -> None:
        self.figure = Figure(figsize=(width, height), layout="constrained")
        self.axes: Axes = self.figure.add_subplot()

    def file(self, form: Form) -> bytes:
        file = io.BytesIO()
        # No date, so that the same numbers make the same file.
        about = dict.fromkeys(("Date", "Creator", "Format", "Type")) if form == "svg" else None
        self.figure.savefig(file, format=form, metadata=about, dpi=150)
        return file.getvalue()

    def picture(self, alt: str, *, narrow: bool = False) -> Picture:
        return Picture.of(self.file("svg"), "image/svg+xml", alt, narrow=narrow)


@contextmanager
def _chart(width: float = _WIDTH, height: float = 3.2) -> Iterator[_Chart]:
    with mpl.rc_context(_STYLE):
        yield _Chart(width, height)


def class_chart(classes: Sequence[ClassAccuracy], *, adapts: bool) -> Picture:
    """Top-1 of each class, before as a hollow and after as a full dot, in the given order from the top.

    Args:
        classes: Classes that have videos.
        adapts: Whether there is a before.
    """
    with _chart(height=1.0 + 0.26 * len(classes)) as chart:
        axes, places = chart.axes, np.arange(len(classes))
        after = np.array([100 * (one.top1_after or 0.0) for one in classes])
        axes.grid(axis="x")
        if adapts:
            before = np.array([100 * (one.top1_before or 0.0) for one in classes])
            axes.hlines(places, before, after, color=_GREY, linewidth=1.2)
            axes.plot(before, places, "o", markersize=7.5, mfc="white", mec=_BEFORE, mew=1.6, label="before")
        axes.plot(after, places, "o", markersize=5, color=_AFTER, label="after" if adapts else "top-1")
        axes.set_yticks(places, [f"{shortened(one.label)} ({one.videos})" for one in classes])
        axes.set_ylim(len(classes) - 0.4, -0.6)
        axes.set_xlim(-3, 103)
        axes.set_xlabel("top-1 (%); in brackets the class's videos")
        axes.tick_params(axis="y", length=0)
        if adapts:
            axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderaxespad=0)
        shown = "; ".join(f"{one.label} {_from_to(one, adapts)}" for one in classes)
        return chart.picture(f"Top-1 by class. {shown}.")


def _from_to(one: ClassAccuracy, adapts: bool) -> str:
    after = f"{100 * (one.top1_after or 0.0):.0f} %"
    return f"{100 * (one.top1_before or 0.0):.0f} to {after}" if adapts else after


def confusions_chart(mistakes: Sequence[tuple[str, str, int, int]]) -> Picture:
    """The most frequent mistakes as bars.

    Args:
        mistakes: The right class, the predicted one, how many videos, of how many of the right class.
    """
    with _chart(height=0.8 + 0.26 * len(mistakes)) as chart:
        axes, places = chart.axes, np.arange(len(mistakes))
        axes.barh(places, [count for *_, count, _ in mistakes], height=0.62, color=_AFTER)
        names = [f"{shortened(right)} → {shortened(taken)}" for right, taken, *_ in mistakes]
        axes.set_yticks(places, names)
        for place, (*_, count, videos) in enumerate(mistakes):
            axes.text(count, place, f" {count} of {videos}", va="center", fontsize=8)
        axes.set_ylim(len(mistakes) - 0.4, -0.6)
        axes.set_xlim(0, 1.15 * max(count for *_, count, _ in mistakes))
        axes.set_xlabel("videos")
        axes.tick_params(axis="y", length=0)
        said = "; ".join(f"{right} as {taken} {count} of {videos}" for right, taken, count, videos in mistakes)
        return chart.picture(f"The most frequent mistakes, right class as predicted class. {said}.")


def reliability_chart(before: Calibration | None, after: Calibration) -> Picture:
    """Accuracy against confidence, before and after; the diagonal is a confidence that tells the truth."""
    with _chart(4.6, 4.2) as chart:
        axes = chart.axes
        axes.grid()
        axes.plot([0, 1], [0, 1], color=_GREY, linestyle=(0, (4, 3)), linewidth=1)
        curves = [(after, "after" if before is not None else "", _AFTER, "o", "-")]
        if before is not None:
            curves.insert(0, (before, "before", _BEFORE, "s", "--"))
        most = max(int(one.videos.max()) for one, *_ in curves)
        said = []
        for one, name, colour, marker, line in curves:
            label = f"{name} (ECE {100 * one.error:.1f} %)".strip()
            axes.plot(one.confidence, one.accuracy, line, color=colour, linewidth=1.4, label=label)
            sizes = 14 + 110 * one.videos / most
            full = "white" if name == "before" else colour
            axes.scatter(one.confidence, one.accuracy, s=sizes, marker=marker, c=full, edgecolors=colour, zorder=3)
            said.append(label)
        axes.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), xlabel="confidence in the best class", ylabel="share right")
        axes.set_aspect("equal")
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderaxespad=0)
        return chart.picture(f"Reliability diagram: share right against confidence, {', '.join(said)}.", narrow=True)


def entropy_chart(before: np.ndarray | None, after: np.ndarray, classes: int) -> Picture:
    """How sure the decisions are: videos by the entropy of the evaluation view, in nats."""
    with _chart(height=2.8) as chart:
        axes = chart.axes
        most = math.log(classes)
        edges: list[float] = np.linspace(0, most, 31).tolist()
        axes.grid(axis="y")
        said = []
        if before is not None:
            before = np.minimum(before, most)
            axes.hist(before, edges, histtype="stepfilled", fc="none", ec=_BEFORE, hatch="////", lw=0, label="before")
            axes.hist(before, edges, histtype="step", ec=_BEFORE, lw=1.4, linestyle="--")
            axes.axvline(before.mean(), color=_BEFORE, linestyle="--", lw=1)
            said.append(f"mean before {before.mean():.2f}")
        after = np.minimum(after, most)
        name = "after" if before is not None else "videos"
        axes.hist(after, edges, histtype="stepfilled", fc=_AFTER, alpha=0.25, lw=0, label=name)
        axes.hist(after, edges, histtype="step", ec=_AFTER, lw=1.4)
        axes.axvline(after.mean(), color=_AFTER, lw=1)
        said.append(f"mean {'after ' if before is not None else ''}{after.mean():.2f}")
        axes.set_xlim(0, most)
        axes.set_xlabel(f"entropy (nats); {most:.2f} = all {classes} classes alike")
        axes.set_ylabel("videos")
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderaxespad=0)
        return chart.picture(f"Histogram of the decisions' entropy: {', '.join(said)} nats.")


def map_chart(found: EmbeddingMap, labels: Sequence[str | None]) -> Picture:
    """Videos on a map, by right class: each has a colour and marker, or of many those with the most videos.

    Args:
        found: The map.
        labels: The right class of each video on it; None for none.
    """
    names, counts = np.unique([one for one in labels if one is not None], return_counts=True)
    shown = len(names) if len(names) <= _CLASSES_ON_MAP else len(_COLOURS)
    chosen: list[str] = sorted(names[np.argsort(-counts, kind="stable")[:shown]].tolist())
    of_video = np.array([one or "" for one in labels], object)
    with _chart(height=4.6 + 0.2 * math.ceil((len(chosen) + 1) / _MAP_COLUMNS)) as chart:
        axes = chart.axes
        size = 34 if len(of_video) <= 300 else 14
        rest = ~np.isin(of_video, chosen)
        if rest.any():
            name = "other classes" if len(names) > len(chosen) else "no label"
            axes.scatter(*found.points[rest].T, s=0.6 * size, c="#c9ccd2", linewidths=0, label=name, rasterized=True)
        for number, name in enumerate(chosen):
            axes.scatter(
                *found.points[of_video == name].T,
                s=size,
                c=_COLOURS[number % len(_COLOURS)],
                marker=_MARKERS[(number + number // len(_COLOURS)) % len(_MARKERS)],
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
        return chart.picture(f"Map of {len(of_video)} videos' features by t-SNE; coloured classes: {said}.")


def progress_chart(seconds: np.ndarray, failed: np.ndarray) -> Picture:
    """Videos with a result over time.

    Args:
        seconds: (N,) when each video's rows were made, rising, from the first.
        failed: bool (N,), whether the video failed.
    """
    with _chart(height=2.6) as chart:
        axes = chart.axes
        scale, unit = (60.0, "minutes") if seconds[-1] > 180 else (1.0, "seconds")
        done = np.arange(1, len(seconds) + 1)
        axes.grid()
        axes.step(seconds / scale, done, where="post", color=_AFTER, linewidth=1.5)
        if failed.any():
            axes.plot(seconds[failed] / scale, done[failed], "x", color="#D55E00", mew=1.6, label="failed")
            axes.legend(loc="upper left")
        axes.set(xlabel=f"{unit} after the first result", ylabel="videos", ylim=(0, None))
        span = f"{seconds[-1] / scale:.1f} {unit}"
        alt = f"{len(seconds)} videos with a result within {span}, {int(failed.sum())} failed."
        return chart.picture(alt)


@dataclass(frozen=True)
class PlottedRun:
    """A line of `runs_chart`: its name, and the result before adaptation, if it adapts, and after it, as shares."""

    name: str
    before: Estimate | None
    after: Estimate


def runs_chart(groups: Mapping[str, Sequence[PlottedRun]], metric: str, form: Form = "svg") -> bytes:
    """Runs beside each other, before as a hollow and after as a full dot with its interval.

    Args:
        groups: The runs by split, whose name is empty where there is one.
        metric: What the shares are of.
        form: What kind of file.
    """
    lines = sum(len(runs) for runs in groups.values())
    with _chart(height=1.1 + 0.36 * lines + 0.3 * len(groups)) as chart:
        axes = chart.axes
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
        axes.set_ylim(place - 1.1, -0.6)
        axes.set_xlabel(f"{metric} (%)")
        axes.tick_params(axis="y", length=0)
        handles, labels = axes.get_legend_handles_labels()
        once = dict(zip(labels, handles, strict=True))
        axes.legend(once.values(), once, loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderaxespad=0)
        return chart.file(form)
