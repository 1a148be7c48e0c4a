"""Attention maps over a video's frames as a picture; `zar_ray.explain` computes what is drawn here."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from zar_ray.reporting import pages as page
from zar_ray.reporting.numbers import percent, shortened

if TYPE_CHECKING:
    from zar_ray.explain.explanation import ClassMaps, VideoMaps

_COLOURS = "viridis"  # of even lightness steps, and told apart by colour-blind people
_OPACITY = 0.6
_INCHES = 1.5
_NAME_LENGTH = 40
# One patch in a hundred may lie above the scale: a few of a vision transformer's patches collect attention from
# everywhere and would leave all others dark.
_TOP_PERCENTILE = 99


def attention_figure(maps: VideoMaps, frames_shown: int = 4) -> page.Figure:
    """Draws frames, spread evenly over the view, and under each the maps over it, all in one colour scale, as a PNG.

    Each map is divided by its mean over the whole view, since only the distribution of attention and of relevance can
    be compared: 1 is what an even map would have everywhere.
    """
    count = min(frames_shown, len(maps.frames))
    shown = (2 * np.arange(count) + 1) * len(maps.frames) // (2 * count)
    rows = [(label, one[shown] / (one.mean() or 1.0)) for label, one in _rows(maps)]
    scale = Normalize(0, max(1.0, float(np.percentile(np.stack([one for _, one in rows]), _TOP_PERCENTILE))))

    height = 1 + len(rows)
    figure = Figure(figsize=(_INCHES * count + 1.3, _INCHES * height + 0.3), layout="compressed")
    axes = figure.subplots(height, count, squeeze=False)
    for column, number in enumerate(shown):
        axes[0, column].imshow(maps.frames[number])
        axes[0, column].set_title(f"frame {maps.indices[number]}", fontsize=8)
    axes[0, 0].set_ylabel("evaluation view", fontsize=7)
    for row, (label, one) in enumerate(rows, start=1):
        axes[row, 0].set_ylabel(label, fontsize=7, parse_math=False)
        for column, number in enumerate(shown):
            frame = maps.frames[number]
            side = (0, frame.shape[1], frame.shape[0], 0)
            # Without its own colours the frame does not mix with the scale's.
            axes[row, column].imshow(frame.mean(axis=-1), cmap="gray", vmin=0, vmax=255, extent=side)
            axes[row, column].imshow(
                one[column], cmap=_COLOURS, norm=scale, alpha=_OPACITY, extent=side, interpolation="nearest"
            )
    for one in axes.flat:
        one.set(xticks=[], yticks=[])
    bar = figure.colorbar(ScalarMappable(scale, _COLOURS), ax=axes, shrink=0.6, extend="max")
    bar.set_label("times the average patch of the view", fontsize=8)
    bar.ax.tick_params(labelsize=7)

    def drawn(form: page.Drawn) -> bytes:
        picture = io.BytesIO()
        figure.savefig(picture, format=form, dpi=110, metadata={"CreationDate": None} if form == "pdf" else None)
        return picture.getvalue()

    findings = " ".join(map(_finding, maps.classes))
    numbers = ", ".join(str(maps.indices[number]) for number in shown)
    classes = " and ".join(f"the {one.role} class {one.name}" for one in maps.classes)
    alt = (
        f"Frames {numbers} of {maps.video_id}, and over each of them coloured maps: the image tower's attention"
        f" rollout, relevance for {classes}, before and after tuning. {findings}"
    )
    rollout = "The rollout belongs to the image tower, which tuning leaves as it is."
    caption = " ".join((f"{maps.video_id}.", findings, rollout, *maps.remarks))
    return page.Figure(page.Picture.of(drawn("png"), "image/png", alt, narrow=True, drawn=drawn), caption)


def _rows(maps: VideoMaps) -> Iterator[tuple[str, np.ndarray]]:
    yield "attention rollout,\nbefore and after", maps.rollout
    for one in maps.classes:
        named = textwrap.fill(f"{one.role}: {shortened(one.name, _NAME_LENGTH)}", 24)
        yield f"{named}\nbefore tuning", one.before
        yield f"{named}\nafter tuning", one.after


def _finding(one: ClassMaps) -> str:
    share = one.moved
    if share is None:
        when = "before" if not one.before.sum() else "after"
        return f"No patch speaks for {one.name} ({one.role}) {when} tuning."
    return f"Tuning moved {percent(share)} % of the relevance for {one.name} ({one.role}) to other patches."
