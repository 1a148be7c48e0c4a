"""A comparison of runs as tables, as CSV, as a page and as a plot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from rich.console import Console

from zar_ray.errors import ConfigError
from zar_ray.reporting import figures
from zar_ray.reporting.blocks import Block, Form, lines_block, show
from zar_ray.reporting.comparison import ComparedRun, Comparison, Line, Paired
from zar_ray.reporting.numbers import MAIN, METRICS, counted, digits, interval, p_value, percent, with_deviation
from zar_ray.reporting.pages import Content, Drawn, Figure, Group, Page, Picture, Section, Text, render, write_file
from zar_ray.reporting.summary_tables import GROUPED, INTERVALS, RANDOM_WEIGHTS
from zar_ray.reporting.trust_tables import long_heading, measured
from zar_ray.results.study_record import Score
from zar_ray.results.trust import CALIBRATION, MEASURES
from zar_ray.storage import suffix_of

_SHOWN = 5
_TRUST = (*CALIBRATION, "auroc_max_probability", "fpr95_max_probability")
_LISTED = 1000
"""Classes and videos that are named where room is short; the page has all."""


def report_comparison(comparison: Comparison, form: Form, console: Console) -> None:
    """Prints a comparison: tables for people, documents and papers, or CSV with a line a case and nothing else.

    In the CSV shares are fractions, and what several things go into is joined by "; ".
    """
    if form == "csv":
        show([lines_block(comparison_values(comparison))], form, console)
        return
    warning = _warning(comparison)
    if warning is not None and form == "terminal":
        console.print(warning, style="bold yellow", soft_wrap=True)
    said = [Block(warning, (), ())] if warning is not None and form != "terminal" else []
    show([*said, *_blocks(comparison)], form, console)


def write_comparison(comparison: Comparison, output: str) -> str:
    """Writes all of a comparison (.html) or its plot (.png, .svg, .pdf), whole or not at all; returns where it is.

    Raises:
        ConfigError: It is to be another kind of file, or no run has an accuracy to plot.
        RunError: The file cannot be written.
    """
    kind = suffix_of(output)
    if kind == ".html":
        return write_file(render(comparison_page(comparison)).encode(), output)
    form = figures.FORMS.get(kind)
    if form is None:
        raise ConfigError(f"--output {output}: is to be a page (.html) or a plot ({', '.join(figures.FORMS)})")
    drawn = plot(comparison, form)
    if drawn is None:
        raise ConfigError(f"--output {output}: none of the runs has an accuracy to plot")
    return write_file(drawn, output)


def plot(comparison: Comparison, form: Drawn) -> bytes | None:
    """The plot of a comparison, of the first metric where runs have several; None where no run has an accuracy."""
    plots = _plots(comparison)
    return figures.runs_chart(plots[0][1], plots[0][0], form) if plots else None


def comparison_values(comparison: Comparison) -> list[dict[str, object]]:
    """Each case as values for programs; shares are fractions, and what several things go into is joined by "; "."""
    measures = [name for name in MEASURES if any(name in line.case.trust for line in comparison.lines)]
    return [_values(line) | _trust_values(line, measures) for line in comparison.lines]


def _values(line: Line) -> dict[str, object]:
    summary, case, paired = line.run.finished.summary, line.case, line.paired
    after, found = line.after, None if paired is None else paired.comparison
    return {
        "run": line.run.name,
        "place": line.run.finished.place,
        "dataset": summary.dataset,
        "split": case.split,
        "method": case.method,
        "model": f"{summary.model} ({summary.model_fingerprint})",
        "random_weights": str(summary.random_weights).lower(),
        "metric": line.metric,
        "value": after and after.value,
        "low": after and after.low,
        "high": after and after.high,
        "before": line.before and line.before.value,
        "videos": case.videos,
        "failed": case.failed,
        "images": case.images,
        "seconds_decode": summary.costs.seconds_decode_mean,
        "seconds_case": case.seconds,
        "seconds_adapt": case.seconds_adapt,
        "against": paired and paired.method,
        "difference": found and found.difference,
        "difference_low": found and found.effect.low,
        "difference_high": found and found.effect.high,
        "detectable": found and found.detectable,
        "gained": found and found.gained,
        "lost": found and found.lost,
        "p_value": found and found.p_value,
        "p_value_holm": paired and paired.adjusted,
        "unpaired": line.unpaired,
        "settings": "; ".join(line.run.settings),
    }


def _trust_values(line: Line, measures: Sequence[str]) -> dict[str, object]:
    """The measures of trust, with the paired differences from the first run."""
    values: dict[str, object] = {}
    for name in measures:
        own, paired = line.case.trust.get(name), None if line.paired is None else line.paired.trust.get(name)
        found = None if paired is None else paired.change
        times = {name: own and own.after, f"{name}_before": own and own.before}
        values |= {time: one and one.value for time, one in times.items()}
        values |= {f"{name}_difference": found and found.difference, f"{name}_p": found and found.p_value}
        values |= {f"{name}_difference_{end}": found and getattr(found.effect, end) for end in ("low", "high")}
    return values


def comparison_page(comparison: Comparison) -> Page:
    """All of a comparison as a page."""
    plots: list[Content] = []
    for metric, groups in _plots(comparison):
        alt = f"{metric} of the runs with their 95 % intervals; the table below has the numbers."
        picture = Picture.of(figures.runs_chart(groups, metric), "image/svg+xml", alt)
        plots.append(Figure(picture, "The lines are the 95 % intervals after adaptation."))
    tables = [Section(str(one.title), (replace(one, title=None),)) for one in _tables(comparison)]
    tables[0] = replace(tables[0], content=(*plots, *tables[0].content))
    flips = [
        Section(_pair_title(line, line.paired), _flips(line.paired))
        for line in comparison.lines
        if line.paired is not None
    ]
    return Page(
        title=f"{len(comparison.runs)} runs compared",
        subtitle=f"all against {comparison.runs[0].name}",
        warning=_warning(comparison),
        tiles=(),
        facts=[(run.mark, f"{run.name} ({run.finished.place})") for run in comparison.runs],
        groups=[Group("Runs", tables)] + ([Group("What changed", flips)] if flips else []),
    )


def _blocks(comparison: Comparison) -> list[Block]:
    """What all forms but the page show."""
    names = [f"{run.mark}: {run.name} ({run.finished.place})" for run in comparison.runs]
    return [
        Block("Runs", (), (), names),
        *_tables(comparison),
        *(
            Block(_pair_title(line, line.paired), (), (), _flip_notes(line.paired))
            for line in comparison.lines
            if line.paired is not None and (line.paired.gained or line.paired.lost)
        ),
    ]


def _tables(comparison: Comparison) -> list[Block]:
    settings = [f"{run.mark}: {one}" for run in comparison.runs for one in run.settings]
    return [
        _accuracies(comparison),
        _differences(comparison),
        *_trust(comparison),
        _costs(comparison),
        Block("What differs", (), (), settings or ["Nothing that the numbers depend on."]),
    ]


def _accuracies(comparison: Comparison) -> Block:
    columns = ["run", "split", "method", "", "before %", "after %"]
    rows, footnotes = [], {}
    for run in comparison.runs:
        if run.settings:
            footnotes[len(rows), 0] = ["; ".join(run.settings)]
        for line in (one for one in comparison.lines if one.run is run):
            after = "no labels" if line.after is None else interval(line.after)
            before = "" if line.before is None else interval(line.before)
            rows.append((run.mark, line.case.split, line.case.method, line.metric, before, after))
        rows += _averages(run)
    return replace(_block(comparison, "Accuracy", columns, rows, [INTERVALS]), footnotes=footnotes)


def _averages(run: ComparedRun) -> list[tuple[str, ...]]:
    """What a protocol reports over its splits."""
    summary = run.finished.summary
    found = {(one.method, one.metric): one for one in summary.averages}
    adapting = {case.method for case in summary.cases if case.adapts}
    rows = []
    for (method, metric), one in found.items():
        if metric in MAIN:
            before = found.get((method, f"{metric}_before")) if method in adapting else None
            of = "harmonic mean" if one.kind == "harmonic" else "mean"
            shown = ["" if each is None else with_deviation(each.value, each.std, "+/-") for each in (before, one)]
            if one.change is not None:
                shown[1] += f" ({interval(one.change.effect, '+')}, p {p_value(one.change.p_value)})"
            rows.append((run.mark, of, method, METRICS[metric], *shown))
    return rows


def _differences(comparison: Comparison) -> Block:
    columns = ["run", "split", "method", "against", "points", "can show", "gained", "lost", "p", "Holm"]
    rows, notes = [], []
    for line in comparison.lines:
        key = (line.run.mark, line.case.split, line.case.method)
        if line.paired is not None:
            found = line.paired.comparison
            points, least = interval(found.effect, "+"), percent(found.detectable) or "none"
            counts = (str(found.gained), str(found.lost))
            p_values = (p_value(found.p_value), p_value(line.paired.adjusted))
            rows.append((*key, line.paired.method, points, least, *counts, *p_values))
        elif line.unpaired is not None:
            split = f", split {line.case.split}" if _several_splits(comparison) else ""
            notes.append(f"{line.run.mark}{split}, {line.case.method}: not paired, {line.unpaired}.")
    if rows:
        notes.append("Gained videos are right here and wrong in A; failed videos are wrong.")
        notes.append("Can show: the smallest difference, in points, that so many videos show in 4 of 5 runs.")
        grouped = any(line.paired is not None and line.case.groups for line in comparison.lines)
        notes.append(f"{GROUPED}." if grouped else "p is McNemar's exact one.")
        notes.append("Holm: the p value adjusted for the number of lines in which a video changed.")
    return _block(comparison, "Against run A", columns, rows, notes)


def _trust(comparison: Comparison) -> list[Block]:
    """What trust the decisions of each run deserve, held against the first."""
    columns = ["run", "split", "method", "measure", "run A", "here", "change", "p"]
    rows = []
    for line in comparison.lines:
        trust = {} if line.paired is None else line.paired.trust
        for name in _TRUST:
            one = trust.get(name)
            if one is None or one.change is None or one.before is None or one.after is None:
                continue
            values = (measured(name, Score(each.value)) for each in (one.before, one.after))
            change = (measured(name, one.change.effect, "+"), p_value(one.change.p_value))
            rows.append((line.run.mark, line.case.split, line.case.method, long_heading(name), *values, *change))
    if not rows:
        return []
    notes = [
        "Over the videos that finished in both, where anything changed; intervals and p from bootstrap draws of"
        " sources, p not adjusted. The CSV has every score of unknown classes."
    ]
    return [_block(comparison, "Trust against run A", columns, rows, notes)]


def _costs(comparison: Comparison) -> Block:
    columns = ["run", "split", "method", "images", "decode s", "encode, adapt s", "adapt s"]
    rows = []
    for line in comparison.lines:
        decode, case = line.run.finished.summary.costs.seconds_decode_mean, line.case
        key = (line.run.mark, case.split, case.method)
        rows.append((*key, digits(case.images, 4), *map(digits, (decode, case.seconds, case.seconds_adapt))))
    notes = [
        "Means a video, as if the method ran alone; decoding is of the run, for all of its methods and views together."
    ]
    return _block(comparison, "Cost of a video", columns, rows, notes)


def _several_splits(comparison: Comparison) -> bool:
    return len({line.case.split for line in comparison.lines}) > 1


def _block(
    comparison: Comparison, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], notes: Sequence[str]
) -> Block:
    """A table, without the column of splits, the second, where there is one split; its runs are named once."""
    marks = ["", *(row[0] for row in rows)]
    rows = [("" if row[0] == last else row[0], *row[1:]) for row, last in zip(rows, marks, strict=False)]
    words = sum(name in ("run", "split", "method", "against", "measure", "") for name in columns)
    if _several_splits(comparison):
        return Block(title, columns, rows, notes, words)
    return Block(title, (columns[0], *columns[2:]), [(row[0], *row[2:]) for row in rows], notes, words - 1)


def _pair_title(line: Line, paired: Paired) -> str:
    method = line.case.method if line.case.method == paired.method else f"{line.case.method} against {paired.method}"
    return f"{line.run.mark} against A, split {line.case.split}, {method}"


def _flip_notes(paired: Paired) -> list[str]:
    gains = [one for one in paired.classes if one.change > 0][:_SHOWN]
    losses = [one for one in reversed(paired.classes) if one.change < 0][:_SHOWN]
    notes = []
    for what, classes in (("gained", gains), ("lost", losses)):
        if classes:
            said = (f"{one.label} {percent(one.change, '+')} (of {one.videos})" for one in classes)
            notes.append(f"classes {what}: {', '.join(said)}")
    for what, videos in (("gained", paired.gained), ("lost", paired.lost)):
        if videos:
            more = f" and {len(videos) - _SHOWN} more" if len(videos) > _SHOWN else ""
            notes.append(f"videos {what}: {', '.join(videos[:_SHOWN])}{more}")
    return notes


def _flips(paired: Paired) -> list[Content]:
    changed = [one for one in paired.classes if one.change]
    rows = [
        (one.label, str(one.videos), percent(one.top1_before), percent(one.top1_after), percent(one.change, "+"))
        for one in changed
    ]
    content: list[Content] = [Text(f"{len(changed)} of {len(paired.classes)} classes changed.")]
    if rows:
        content.append(Block(None, ("class", "videos", "A %", "here %", "points"), rows, words=1))
    for what, videos in (("gained", paired.gained), ("lost", paired.lost)):
        count = f"{counted(len(videos), 'video')} {what}"
        if videos:
            first = f", the first {_LISTED:,}" if len(videos) > _LISTED else ""
            content.append(Block(None, ("video",), [(one,) for one in videos[:_LISTED]], folded=f"{count}{first}"))
        else:
            content.append(Text(f"{count}.", weak=True))
    return content


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
