"""The ranked labels of one file in a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from rich.console import Console
from rich.table import Table
from rich.text import Text

from zar_ray.reporting.numbers import percent
from zar_ray.reporting.summary_tables import RANDOM_WEIGHTS


class _Label(Protocol):
    @property
    def label(self) -> str: ...
    @property
    def score(self) -> float: ...


class RankingLike(Protocol):
    """What `print_ranking` shows, such as `zar_ray.adaptation.predict.Ranking`."""

    @property
    def video(self) -> str:
        """The file."""
        ...

    @property
    def method(self) -> str:
        """The test-time method."""
        ...

    @property
    def before(self) -> Sequence[_Label]:
        """Labels by falling score before adaptation."""
        ...

    @property
    def after(self) -> Sequence[_Label]:
        """Labels by falling score after adaptation."""
        ...

    @property
    def warning(self) -> str | None:
        """What was odd about the file."""
        ...

    @property
    def error(self) -> str | None:
        """Why there is no ranking."""
        ...


def print_ranking(ranking: RankingLike, console: Console, *, random_weights: bool) -> None:
    """Prints the ranked labels of one file; one list where adaptation changes no score, two otherwise."""
    console.print(Text.assemble((ranking.video, "bold"), f"  {ranking.method}"), soft_wrap=True)
    if random_weights:
        console.print(Text(f"  {RANDOM_WEIGHTS}", style="yellow"), soft_wrap=True)
    if ranking.warning is not None:
        console.print(Text(f"  warning: {ranking.warning}", style="yellow"), soft_wrap=True)
    if ranking.error is not None:
        console.print(Text(f"  failed: {ranking.error}", style="red"), soft_wrap=True)
        return
    before, after = (
        [(one.label, f"{percent(one.score)} %") for one in ranked] for ranked in (ranking.before, ranking.after)
    )
    adapts = [(one.label, one.score) for one in ranking.before] != [(one.label, one.score) for one in ranking.after]
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=adapts)
    for title in ("", "before", "", "after", "") if adapts else ("", "", ""):
        table.add_column(title, justify="left" if title else "right", overflow="fold")
    for place, (first, second) in enumerate(zip(before, after, strict=True), 1):
        cells = (f"  {place}", *first, *second) if adapts else (f"  {place}", *second)
        table.add_row(*(Text(cell) for cell in cells))
    console.print(table)
