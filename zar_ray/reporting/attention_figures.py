"""Attention maps over a video's frames as a picture; `zar_ray.explain` computes what is drawn here."""

from __future__ import annotations

import textwrap
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from zar_ray.reporting import pages as page
from zar_ray.reporting.charts import file_of
from zar_ray.reporting.numbers import percent, shortened
from zar_ray.video.sampling import part_centres

if TYPE_CHECKING:
    from zar_ray.explain.explanation import ClassMaps, VideoMaps

_COLOURS = "viridis"  # of even lightness steps, and told apart by colour-blind people
_CHANGES = "PuOr_r"
_OPACITY = 0.6
# In inches: a frame's side, what stands over a row, what lies between blocks, and the classes' names.
_TILE, _TITLE, _GAP, _NAMES = 0.62, 0.13, 0.12, 0.9
_NAME_LENGTH = 28
# One patch in a hundred may lie above the scale: a few of a vision transformer's patches collect attention from
# everywhere and would leave all others dark.
_TOP_PERCENTILE = 99


def attention_figure(maps: VideoMaps, frames_shown: int = 4) -> page.Figure:
    """Draws frames, spread evenly over the view, and the maps over them, as a PNG.

    The first row has the frames and the rollout, then each class has a row: before tuning, after it, and what changed.
    Each map is divided by its mean over the whole view, since only the distribution of attention and of relevance can
    be compared: 1 is what an even map would have everywhere. All maps have one colour scale, all changes another.
    """
    count = min(frames_shown, len(maps.frames))
    shown = part_centres(0, len(maps.frames), count, len(maps.frames))

    def shares(values: np.ndarray) -> np.ndarray:
        return values[shown] / (values.mean() or 1.0)

    rollout = shares(maps.rollout)
    pairs = [(shares(one.before), shares(one.after)) for one in maps.classes]
    every = np.stack([rollout, *(one for pair in pairs for one in pair)])
    changed = np.stack([after - before for before, after in pairs]) if pairs else np.zeros(1)
    scale = Normalize(0, max(1.0, float(np.percentile(every, _TOP_PERCENTILE))))
    reach = max(0.1, float(np.percentile(np.abs(changed), _TOP_PERCENTILE)))
    change_scale = Normalize(-reach, reach)

    rows, block = 1 + len(pairs), count * _TILE + _GAP
    width, height = _NAMES + 3 * block, rows * (_TILE + _TITLE)
    figure = Figure(figsize=(width, height))

    def axes_at(row: int, left: float, down: float, wide: float, high: float) -> Axes:
        """Axes at a place in a row, in inches."""
        top = row * (_TILE + _TITLE) + _TITLE + down
        return figure.add_axes(((_NAMES + left) / width, 1 - (top + high) / height, wide / width, high / height))

    def put(row: int, place: int, title: str, values: np.ndarray | None, colours: str, norm: Normalize) -> Axes:
        """A block of frames, under `values` where there are any; returns the first of them."""
        placed = [axes_at(row, place * block + column * _TILE, 0, 0.97 * _TILE, _TILE) for column in range(count)]
        for column, (axes, number) in enumerate(zip(placed, shown, strict=True)):
            frame = maps.frames[number]
            axes.set(xticks=[], yticks=[])
            if values is None:
                axes.imshow(frame)
                continue
            side = (0, frame.shape[1], frame.shape[0], 0)
            # Without its own colours the frame does not mix with the scale's.
            axes.imshow(frame.mean(axis=-1), cmap="gray", vmin=0, vmax=255, extent=side)
            axes.imshow(values[column], cmap=colours, norm=norm, alpha=_OPACITY, extent=side, interpolation="nearest")
        placed[0].set_title(title, fontsize=6.5, loc="left", pad=2)
        return placed[0]

    numbers = ", ".join(str(maps.indices[number]) for number in shown)
    put(0, 0, f"frames {numbers}", None, _COLOURS, scale)
    put(0, 1, "attention rollout, before and after", rollout, _COLOURS, scale)
    told = [
        (scale, _COLOURS, "times the view's average patch", "max"),
        (change_scale, _CHANGES, "change of it", "both"),
    ]
    for place, (norm, colours, text, extend) in enumerate(told):
        axes = axes_at(0, 2 * block + 0.1, 0.05 + 0.32 * place, min(1.6, block - 0.3), 0.08)
        bar = figure.colorbar(ScalarMappable(norm, colours), cax=axes, orientation="horizontal", extend=extend)
        bar.ax.set_title(text, fontsize=6, pad=1.5)
        bar.ax.tick_params(labelsize=5.5, length=1.5, pad=1)
    for row, (one, (before, after)) in enumerate(zip(maps.classes, pairs, strict=True), start=1):
        named = textwrap.fill(f"{one.role}: {shortened(one.name, _NAME_LENGTH)}", 18)
        first = put(row, 0, "before tuning", before, _COLOURS, scale)
        first.set_ylabel(named, fontsize=6, parse_math=False, rotation=0, ha="right", va="center", labelpad=3)
        put(row, 1, "after tuning", after, _COLOURS, scale)
        put(row, 2, "difference", after - before, _CHANGES, change_scale)

    drawn = partial(file_of, figure, dpi=200)
    findings = " ".join(map(_finding, maps.classes))
    classes = " and ".join(f"the {one.role} class {one.name}" for one in maps.classes)
    alt = (
        f"Frames {numbers} of {maps.video_id}, and over each of them coloured maps: the image tower's attention"
        f" rollout, relevance for {classes}, before and after tuning and what changed. {findings}"
    )
    rollout = "The rollout belongs to the image tower, which tuning leaves as it is."
    caption = " ".join((f"{maps.video_id}.", findings, rollout, *maps.remarks))
    return page.Figure(page.Picture.of(drawn("png"), "image/png", alt, narrow=count < 3, drawn=drawn), caption)


def _finding(one: ClassMaps) -> str:
    share = one.moved
    if share is None:
        when = "before" if not one.before.sum() else "after"
        return f"No patch speaks for {one.name} ({one.role}) {when} tuning."
    return f"Tuning moved {percent(share)} % of the relevance for {one.name} ({one.role}) to other patches."
