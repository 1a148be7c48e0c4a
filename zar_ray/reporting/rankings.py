"""Ranked labels of files in a terminal: a table a file, how far it is, and the labels by count at the end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from zar_ray.adaptation.rankings import Ranking
from zar_ray.reporting.blocks import Block, print_block
from zar_ray.reporting.numbers import digits, plus_minus, with_deviation
from zar_ray.reporting.summary_tables import RANDOM_WEIGHTS
from zar_ray.terminal import json_text
from zar_ray.untrusted import storable

_MOST_LABELS = 20  # that a summary counts


def print_rankings(
    rankings: Iterable[Ranking],
    console: Console,
    videos: Sequence[str],
    methods: Sequence[str],
    *,
    random_weights: bool,
    json_lines: bool = False,
    write: Callable[[Ranking], None] | None = None,
) -> int:
    """Prints rankings as they come, for people or as a line of JSON each; returns how many failed.

    Beneath those of several files people see how many failed, and how often each label came first; while it lasts, a
    bar stands on standard error, if that is a terminal.

    Args:
        rankings: One a file and method, in order.
        console: Where people see them.
        videos: The files.
        methods: The methods.
        random_weights: Whether the model is untrained.
        json_lines: Print JSON.
        write: Takes each, in place of the tables; what failed is printed nevertheless.
    """
    failed, errors, firsts = 0, 0, Counter[tuple[str, str]]()
    with _bar(len(videos)) as bar:
        task = bar.add_task("", total=len(videos))
        for number, ranking in enumerate(rankings, start=1):
            failed += ranking.error is not None
            errors += ranking.error is not None and ranking.method == methods[0]
            if ranking.error is None:
                firsts[ranking.method, ranking.best.label] += 1
            if write is not None:
                write(ranking)
            bar.update(task, completed=number // len(methods), description=f"{failed} failed" if failed else "")
            if json_lines:
                said = {**asdict(ranking), "video": storable(ranking.video), "random_weights": random_weights}
                _beside(bar, lambda said=said: print(json_text(said)))
            elif write is None or ranking.error is not None:
                _beside(bar, lambda ranking=ranking: print_ranking(ranking, console, random_weights=random_weights))
    if len(videos) > 1 and not json_lines:
        if random_weights and write is not None:
            console.print(Text(RANDOM_WEIGHTS, style="yellow"), soft_wrap=True)
        print_block(_summary(len(videos), errors, firsts, methods), console)
    return failed


def _bar(files: int) -> Progress:
    console = Console(stderr=True)
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("files"), TimeElapsedColumn(), TimeRemainingColumn())
    # Nothing of standard output is led past the bar: it may be a file.
    return Progress(
        *columns,
        TextColumn("{task.description}"),
        console=console,
        transient=True,
        redirect_stdout=False,
        disable=files < 2 or not console.is_terminal,
    )


def _beside(bar: Progress, show: Callable[[], None]) -> None:
    """Prints without the bar, which may stand on the same terminal."""
    bar.stop()
    show()
    bar.start()


def _summary(files: int, failed: int, firsts: Counter[tuple[str, str]], methods: Sequence[str]) -> Block:
    """How often each label came first under each method, the most frequent ones."""
    totals = Counter[str]()
    for (_, label), count in firsts.items():
        totals[label] += count
    ordered = sorted(totals, key=lambda label: (-totals[label], label))
    more = len(ordered) - _MOST_LABELS
    return Block(
        f"{files} files, {failed} failed",
        ("label", *methods),
        [(label, *(str(firsts[method, label]) for method in methods)) for label in ordered[:_MOST_LABELS]],
        notes=[f"and {more} more label{'s' * (more != 1)}"] if more > 0 else [],
        words=1,
    )


def print_ranking(ranking: Ranking, console: Console, *, random_weights: bool) -> None:
    """Prints the ranked labels of one file; one list where adaptation changes no score, two otherwise."""
    signs = plus_minus(console.encoding)
    console.print(Text.assemble((storable(ranking.video), "bold"), f"  {ranking.method}"), soft_wrap=True)
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
