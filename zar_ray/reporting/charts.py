"""What all charts share: their style, and how a figure becomes a file or a picture of a page."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from zar_ray.reporting.pages import Drawn, Picture

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000", "#F0E442")
"""Okabe and Ito's, which colour-blind people can tell apart."""

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
GREY = "#8a8d94"
WIDTH = 8.0  # inches
STYLE: dict[Any, Any] = {
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


@contextmanager
def chart(width: float = WIDTH, height: float = 3.2) -> Iterator[tuple[Figure, Axes]]:
    """A figure of so many inches with one pair of axes, in the style of all."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure, figure.add_subplot()


def file_of(figure: Figure, form: Drawn, dpi: int = 150) -> bytes:
    """A figure as a file of some kind; the same numbers make the same bytes."""
    file = io.BytesIO()
    # No date.
    dated: dict[Drawn, tuple[str, ...]] = {"svg": ("Date", "Creator", "Format", "Type"), "pdf": ("CreationDate",)}
    about: Any = dict.fromkeys(dated.get(form, ())) or None
    figure.savefig(file, format=form, metadata=about, dpi=dpi)
    return file.getvalue()


def picture(figure: Figure, alt: str, *, narrow: bool = False) -> Picture:
    """A figure as a picture inside a page, with what it shows in words."""
    return Picture.of(file_of(figure, "svg"), "image/svg+xml", alt, narrow=narrow, drawn=partial(_drawn, figure))


def _drawn(figure: Figure, form: Drawn) -> bytes:
    """A figure once more, after its style has been left."""
    with mpl.rc_context(STYLE):
        return file_of(figure, form)
