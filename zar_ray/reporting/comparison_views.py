"""A comparison of runs for a terminal, as Markdown, as CSV, as a page and as a plot."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import PurePath
from typing import Literal

from rich.console import Console

from zar_ray.errors import ConfigError
from zar_ray.reporting import figures
from zar_ray.reporting.blocks import Block, markdown_block, print_block
from zar_ray.reporting.comparison import METRICS, ClassChange, ComparedRun, Comparison, Line, Paired
from zar_ray.reporting.html_report import write_file
from zar_ray.reporting.numbers import interval, p_value, percent
from zar_ray.reporting.pages import Content, Figure, Group, Page, Picture, Section, Text, render
from zar_ray.reporting.summary_tables import RANDOM_WEIGHTS, adapts
from zar_ray.results.record import Estimate, ProtocolAverage

Form = Literal["terminal", "markdown", "csv"]

_SHOWN = 5
"""Classes and videos that are named where room is short; the page has all."""

_CSV_COLUMNS: tuple[str, ...] = (
    "run",
    "place",
    "dataset",
    "split",
    "method",
    "model",
    "random_weights",
    "metric",
    "value",
    "low",
    "high",
    "before",
    "videos",
    "failed",
    "images_encoded",
    "seconds_decode",
    "seconds_encode",
    "seconds_adapt",
    "against",
    "difference",
    "difference_low",
    "difference_high",
    "gained",
    "lost",
    "p_value",
    "p_value_holm",
    "unpaired",
    "settings",
)


def report_comparison(comparison: Comparison, form: Form, console: Console) -> None:
    """Prints a comparison: tables for people, Markdown, or CSV with a line a case and nothing else."""
    if form == "csv":
        console.out(comparison_csv(comparison), end="", highlight=False)
    elif form == "markdown":
        lines = [f"**{_warning(comparison)}**", ""] if _warning(comparison) else []
        lines += [line for block in _blocks(comparison) for line in markdown_block(block)]
        console.out("\n".join(lines), highlight=False)
    else:
        if warning := _warning(comparison):
            console.print(warning, style="bold yellow", soft_wrap=True)
        for block in _blocks(comparison):
            print_block(block, console)


def write_comparison(comparison: Comparison, output: str) -> str:
    """Writes all of a comparison (.html) or its plot (.png, .svg), whole or not at all; returns where it is.

    Raises:
        ConfigError: It is to be another kind of file, or no run has an accuracy to plot.
        RunError: The file cannot be written.
    """
    kind = PurePath(output).suffix.lower()
    if kind == ".html":
        return write_file(render(comparison_page(comparison)).encode(), output)
    if kind not in (".png", ".svg"):
        raise ConfigError(f"--output {output}: is to be a page (.html) or a plot (.png, .svg)")
    plots = _plots(comparison)
    if not plots:
        raise ConfigError(f"--output {output}: none of the runs has an accuracy to plot")
    metric, groups = plots[0]
    return write_file(figures.runs_chart(groups, metric, "png" if kind == ".png" else "svg"), output)


def comparison_csv(comparison: Comparison) -> str:
    """A comparison as CSV, one line a case; shares are fractions, and what several things go into is joined by "; "."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, _CSV_COLUMNS, lineterminator="\n")
    writer.writeheader()
    for line in comparison.lines:
        summary, case, paired = line.run.finished.summary, line.case, line.paired
        costs, after, before = summary.costs, line.after, line.before
        row: dict[str, object] = {
            "run": line.run.name,
            "place": line.run.finished.place,
            "dataset": summary.dataset,
            "split": case.split,
            "method": case.method,
            "model": f"{summary.model} ({summary.model_fingerprint})",
            "random_weights": str(summary.random_weights).lower(),
            "metric": line.metric,
            "before": None if before is None else before.value,
            "videos": case.videos,
            "failed": case.failed,
            "images_encoded": costs.images_encoded_mean,
            "seconds_decode": costs.seconds_decode_mean,
            "seconds_encode": costs.seconds_encode_mean,
            "seconds_adapt": case.seconds_adapt,
            "unpaired": line.unpaired,
            "settings": "; ".join(line.run.settings),
        }
        if after is not None:
            row |= {"value": after.value, "low": after.low, "high": after.high}
        if paired is not None:
            found = paired.comparison
            row |= {
                "against": paired.method,
                "difference": found.difference,
                "difference_low": found.interval[0],
                "difference_high": found.interval[1],
                "gained": found.gained,
                "lost": found.lost,
                "p_value": found.p_value,
                "p_value_holm": paired.adjusted,
            }
        writer.writerow({name: f"{one:.6g}" if isinstance(one, float) else one for name, one in row.items()})
    return stream.getvalue()


def comparison_page(comparison: Comparison) -> Page:
    """All of a comparison as a page."""
    first = comparison.runs[0]
    blocks = {block.title: block for block in _blocks(comparison)}
    plots: list[Content] = []
    for metric, groups in _plots(comparison):
        alt = f"{metric} of the runs with their 95 % intervals; the table below has the numbers."
        plots.append(
            Figure(
                Picture.of(figures.runs_chart(groups, metric), "image/svg+xml", alt),
                "The lines are the 95 % intervals after adaptation.",
            )
        )
    accuracy, *rest = (Section(str(title), _content(block)) for title, block in blocks.items() if title in _TABLES)
    sections = [Section(accuracy.title, (*plots, *accuracy.content)), *rest]
    flips = [
        Section(_pair_title(line, line.paired), _flips(line.paired))
        for line in comparison.lines
        if line.paired is not None
    ]
    groups = [Group("Runs", sections)] + ([Group("What changed", flips)] if flips else [])
    return Page(
        title=f"{len(comparison.runs)} runs compared",
        subtitle=f"all against {first.name}",
        warning=_warning(comparison),
        tiles=(),
        facts=[(run.mark, f"{run.name} ({run.finished.place})") for run in comparison.runs],
        groups=groups,
    )


_ACCURACY, _DIFFERENCE, _COST, _SETTINGS = "Accuracy", "Against run A", "Cost of a video", "What differs"
_TABLES = (_ACCURACY, _DIFFERENCE, _COST, _SETTINGS)


def _blocks(comparison: Comparison) -> list[Block]:
    """The tables that all forms share; the accuracies first."""
    names = [f"{run.mark}: {run.name} ({run.finished.place})" for run in comparison.runs]
    blocks = [Block("Runs", (), [], names), _accuracies(comparison), _differences(comparison), _costs(comparison)]
    settings = [f"{run.mark}: {one}" for run in comparison.runs for one in run.settings]
    blocks.append(Block(_SETTINGS, (), [], settings or ["Nothing that the numbers depend on."]))
    for line in comparison.lines:
        if line.paired is not None and line.paired.comparison.gained + line.paired.comparison.lost:
            blocks.append(Block(_pair_title(line, line.paired), (), [], _flip_notes(line.paired)))
    return blocks


def _accuracies(comparison: Comparison) -> Block:
    columns = ["run", "split", "method", "", "before %", "after %"]
    rows = []
    for run in comparison.runs:
        for line in (one for one in comparison.lines if one.run is run):
            after = "no labels" if line.after is None else interval(line.after)
            before = "" if line.before is None else interval(line.before)
            rows.append((run.mark, line.case.split, line.case.method, line.metric, before, after))
        rows += _averages(run)
    return Block(_ACCURACY, *_grid(comparison, columns, rows), ["Intervals hold with 95 %."])


def _averages(run: ComparedRun) -> list[tuple[str, ...]]:
    """What a protocol reports over its splits."""
    summary = run.finished.summary
    found = {(one.method, one.metric): one for one in summary.averages}
    adapting = {case.method for case in summary.cases if adapts(case)}
    rows = []
    for (method, metric), one in found.items():
        if metric in METRICS:
            before = found.get((method, f"{metric}_before")) if method in adapting else None
            of = "harmonic mean" if one.kind == "harmonic" else "mean"
            shown = ("" if each is None else _average(each) for each in (before, one))
            rows.append((run.mark, of, method, METRICS[metric], *shown))
    return rows


def _average(one: ProtocolAverage) -> str:
    return percent(one.value) if one.std is None else f"{percent(one.value)} +/- {percent(one.std)}"


def _differences(comparison: Comparison) -> Block:
    columns = ["run", "split", "method", "against", "points", "gained", "lost", "McNemar p", "Holm"]
    rows, notes = [], []
    for line in comparison.lines:
        key = (line.run.mark, line.case.split, line.case.method)
        if line.paired is not None:
            found = line.paired.comparison
            points = interval(Estimate(found.difference, *found.interval), "+")
            counts = (str(found.gained), str(found.lost))
            p_values = (p_value(found.p_value), p_value(line.paired.adjusted))
            rows.append((*key, line.paired.method, points, *counts, *p_values))
        elif line.unpaired is not None:
            split = f", split {line.case.split}" if _several_splits(comparison) else ""
            notes.append(f"{line.run.mark}{split}, {line.case.method}: not paired, {line.unpaired}.")
    if rows:
        notes.append("Gained videos are right here and wrong in A; failed videos are wrong.")
        notes.append("Holm: the p value adjusted for the number of lines in which a video changed.")
    return Block(_DIFFERENCE, *_grid(comparison, columns, rows), notes)


def _costs(comparison: Comparison) -> Block:
    columns = ["run", "split", "method", "images", "decode s", "encode s", "adapt s", "videos/s"]
    rows = []
    for line in comparison.lines:
        summary = line.run.finished.summary
        costs, speed = summary.costs, summary.throughput.videos_per_second
        numbers = (costs.seconds_decode_mean, costs.seconds_encode_mean, line.case.seconds_adapt)
        rows.append(
            (
                line.run.mark,
                line.case.split,
                line.case.method,
                _number(costs.images_encoded_mean, ".4g"),
                *(_number(one, ".3g") for one in numbers),
                _number(speed, ".3g"),
            )
        )
    notes = ["Images and seconds are means a video; a run's methods share decoding and encoding."]
    return Block(_COST, *_grid(comparison, columns, rows), notes)


def _number(value: float | None, form: str) -> str:
    return "" if value is None else f"{value:{form}}"


def _several_splits(comparison: Comparison) -> bool:
    return len({line.case.split for line in comparison.lines}) > 1


def _grid(
    comparison: Comparison, columns: Sequence[str], rows: Sequence[tuple[str, ...]]
) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Leaves the column of splits, the second, out where there is one split; names a run in its first row alone."""
    marks = ["", *(row[0] for row in rows)]
    rows = [("" if row[0] == last else row[0], *row[1:]) for row, last in zip(rows, marks, strict=False)]
    if _several_splits(comparison):
        return tuple(columns), rows
    return (columns[0], *columns[2:]), [(row[0], *row[2:]) for row in rows]


def _pair_title(line: Line, paired: Paired) -> str:
    method = line.case.method if line.case.method == paired.method else f"{line.case.method} against {paired.method}"
    return f"{line.run.mark} against A, split {line.case.split}, {method}"


def _flip_notes(paired: Paired) -> list[str]:
    gains = [one for one in paired.classes if one.after > one.before][:_SHOWN]
    losses = [one for one in reversed(paired.classes) if one.after < one.before][:_SHOWN]
    notes = [
        f"classes {what}: {', '.join(map(_class_text, some))}"
        for what, some in (("gained", gains), ("lost", losses))
        if some
    ]
    for what, videos in (("gained", paired.gained), ("lost", paired.lost)):
        if videos:
            more = f" and {len(videos) - _SHOWN} more" if len(videos) > _SHOWN else ""
            notes.append(f"videos {what}: {', '.join(videos[:_SHOWN])}{more}")
    return notes


def _class_text(one: ClassChange) -> str:
    return f"{one.label} {percent(one.after - one.before, '+')} (of {one.videos})"


def _flips(paired: Paired) -> list[Content]:
    changed = [one for one in paired.classes if one.before != one.after]
    rows = [
        (one.label, str(one.videos), percent(one.before), percent(one.after), percent(one.after - one.before, "+"))
        for one in changed
    ]
    content: list[Content] = [Text(f"{len(changed)} of {len(paired.classes)} classes changed.")]
    if rows:
        content.append(Block(None, ("class", "videos", "A %", "here %", "points"), rows, words=1))
    for what, videos in (("gained", paired.gained), ("lost", paired.lost)):
        count = f"{len(videos)} video{'' if len(videos) == 1 else 's'} {what}"
        if videos:
            content.append(Block(None, ("video",), [(video,) for video in videos], folded=count))
        else:
            content.append(Text(f"{count}.", weak=True))
    return content


def _content(block: Block) -> list[Content]:
    words = sum(name in ("run", "split", "method", "against", "") for name in block.columns)
    content: list[Content] = [Block(None, block.columns, block.rows, words=words)] if block.rows else []
    return content + [Text(note, weak=True) for note in block.notes]


def _plots(comparison: Comparison) -> list[tuple[str, dict[str, list[figures.PlottedRun]]]]:
    """What is plotted: a metric, and by split its lines."""
    plots = []
    for metric in dict.fromkeys(line.metric for line in comparison.lines):
        groups: dict[str, list[figures.PlottedRun]] = {}
        for line in comparison.lines:
            if line.metric == metric and line.after is not None:
                split = line.case.split if _several_splits(comparison) else ""
                name = f"{line.run.mark}: {line.run.name}, {line.case.method}"
                groups.setdefault(split, []).append(figures.PlottedRun(name, line.before, line.after))
        if groups:
            plots.append((metric, groups))
    return plots


def _warning(comparison: Comparison) -> str | None:
    untrained = [run.name for run in comparison.runs if run.finished.summary.random_weights]
    return f"{', '.join(untrained)}: {RANDOM_WEIGHTS}" if untrained else None
