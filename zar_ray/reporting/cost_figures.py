"""Accuracy against cost, as a chart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from zar_ray.reporting.charts import COLOURS, GREY, MARKERS, chart, picture
from zar_ray.reporting.numbers import shortened
from zar_ray.reporting.pages import Picture


class PlottedCost(NamedTuple):
    """A point of `pareto_chart`: what it is, its method, its cost a video, and its score as a share."""

    name: str
    method: str
    cost: float
    value: float
    low: float | None
    high: float | None


def pareto_front(points: Sequence[PlottedCost]) -> list[PlottedCost]:
    """Those of some points beside which none is both as cheap and as good, the cheapest first."""
    front: list[PlottedCost] = []
    for point in sorted(points, key=lambda one: (one.cost, -one.value)):
        if not front or point.value > front[-1].value:
            front.append(point)
    return front


def pareto_chart(points: Sequence[PlottedCost], metric: str, cost: str) -> Picture:
    """Scores with their 95 % intervals against what they cost, and the front that no other point is beyond."""
    front = pareto_front(points)
    with chart(height=4.2) as (figure, axes):
        axes.grid()
        methods = list(dict.fromkeys(one.method for one in points))
        axes.step(
            [one.cost for one in front],
            [100 * one.value for one in front],
            where="post",
            color=GREY,
            linestyle=(0, (4, 3)),
            linewidth=1.2,
            label="front",
        )
        for number, method in enumerate(methods):
            style: dict[str, Any] = {
                "color": COLOURS[number % len(COLOURS)],
                "marker": MARKERS[number % len(MARKERS)],
            }
            own = [one for one in points if one.method == method]
            for one in own:
                if one.low is not None and one.high is not None:
                    ends = (100 * one.low, 100 * one.high)
                    axes.plot([one.cost] * 2, ends, color=style["color"], linewidth=2, alpha=0.45)
            axes.plot([one.cost for one in own], [100 * one.value for one in own], ls="", ms=6, label=method, **style)
        for one in front:
            axes.annotate(shortened(one.name), (one.cost, 100 * one.value), (5, 5), textcoords="offset points", size=8)
        axes.set(xscale="log", xlabel=f"{cost} a video", ylabel=f"{metric} (%)")
        # By default powers of ten alone are named, as mathematics.
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
        said = "; ".join(f"{one.name} {100 * one.value:.1f} % at {one.cost:.3g}" for one in front)
        return picture(figure, f"{metric} against {cost} a video; on the front: {said}.")
