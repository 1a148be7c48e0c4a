"""The ranked labels of one file in a terminal."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict

from rich.console import Console
from rich.table import Table
from rich.text import Text

from zar_ray.adaptation.rankings import Ranking
from zar_ray.reporting.numbers import digits, plus_minus, with_deviation
from zar_ray.reporting.summary_tables import RANDOM_WEIGHTS


def print_rankings(
    rankings: Iterable[Ranking], console: Console, *, random_weights: bool, json_lines: bool = False
) -> int:
    """Prints rankings as they come, for people or as a line of JSON each; returns how many failed."""
    failed = 0
    for ranking in rankings:
        failed += ranking.error is not None
        if json_lines:
            print(json.dumps({**asdict(ranking), "random_weights": random_weights}, ensure_ascii=False))
        else:
            print_ranking(ranking, console, random_weights=random_weights)
    return failed


def print_ranking(ranking: Ranking, console: Console, *, random_weights: bool) -> None:
    """Prints the ranked labels of one file; one list where adaptation changes no score, two otherwise."""
    signs = plus_minus(console.encoding)
    console.print(Text.assemble((ranking.video, "bold"), f"  {ranking.method}"), soft_wrap=True)
    if random_weights:
        console.print(Text(f"  {RANDOM_WEIGHTS}", style="yellow"), soft_wrap=True)
    if ranking.warning is not None:
        console.print(Text(f"  warning: {ranking.warning}", style="yellow"), soft_wrap=True)
    if ranking.error is not None:
        console.print(Text(f"  failed: {ranking.error}", style="red"), soft_wrap=True)
        return
    if ranking.reject:
        console.print(Text(f"  none of these: {digits(ranking.certainty, 6)} is below the threshold", style="yellow"))
    before, after = (
        [(one.label, f"{with_deviation(one.score, one.std, signs)} %") for one in ranked]
        for ranked in (ranking.before, ranking.after)
    )
    adapts = ranking.before != ranking.after
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=adapts)
    for title in ("", "before", "", "after", "") if adapts else ("", "", ""):
        table.add_column(title, justify="left" if title else "right", overflow="fold")
    for place, (first, second) in enumerate(zip(before, after, strict=True), 1):
        cells = (f"  {place}", *first, *second) if adapts else (f"  {place}", *second)
        table.add_row(*(Text(cell) for cell in cells))
    console.print(table)
    seeds = ", ".join(map(str, ranking.seeds))
    if len(ranking.seeds) > 1:
        console.print(Text(f"  mean {signs} standard deviation over the seeds {seeds}", style="dim"))
    elif adapts and seeds:
        of = f"  after: of the views that are drawn by the file's name and the seed ({seeds})"
        console.print(Text(f"{of}; --seeds 0 1 2 shows how much that is", style="dim"), soft_wrap=True)
