"""What a run, a ranking or a manifest looks like in a terminal, in a log and in Markdown.

Tables fit 80 columns and use plain characters, so that they survive logs; accuracies are printed in per cent.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean, pstdev
from typing import Protocol

from rich.console import Console
from rich.table import Table
from rich.text import Text

from zar_ray.data.manifest import Manifest, VideoRow
from zar_ray.data.overview import BenchmarkStatus
from zar_ray.reporting.blocks import Block, markdown_block, markdown_cell, print_block
from zar_ray.results.record import (
    Accuracy,
    CaseMetrics,
    Estimate,
    FailureGroup,
    ModelCost,
    ProtocolAverage,
    RunSummary,
    Scores,
    SplitSummary,
)

RANDOM_WEIGHTS = "RANDOM WEIGHTS: the model is untrained, so the numbers say nothing about the method"

_ACCURACIES = {"top1": "top-1 %", "top5": "top-5 %", "mean_class": "mean class %"}
_AVERAGE_PRECISION = {"map": "mAP %"}
_REASON_LENGTH = 160


def print_summary(summary: RunSummary, console: Console) -> None:
    """Prints a run: its accuracies, then counts, failures, speed, costs and where everything is."""
    console.print()
    if summary.random_weights:
        console.print(Text(RANDOM_WEIGHTS, style="bold yellow"), soft_wrap=True)
    console.print(Text(summary_heading(summary), style="bold"), soft_wrap=True)
    for block in summary_blocks(summary, _plus_minus(console.encoding)):
        print_block(block, console)
    console.print()
    print_facts(summary, console)


def print_facts(summary: RunSummary, console: Console) -> None:
    """Prints what stands below a run's accuracies: counts, failures, speed, costs and where everything is."""
    for name, value in summary_facts(summary):
        console.print(Text.assemble((f"{name:<9}", "bold"), value), soft_wrap=True)


def markdown(summary: RunSummary) -> str:
    """The same as `print_summary` prints, as Markdown: for MLflow's description, so without where it is logged."""
    lines = [f"**{RANDOM_WEIGHTS}**", ""] if summary.random_weights else []
    lines += [markdown_cell(summary_heading(summary)), ""]
    for block in summary_blocks(summary):
        lines += markdown_block(block)
    lines += [f"- **{name}**: {markdown_cell(value)}" for name, value in summary_facts(summary) if name != "MLflow"]
    return "\n".join(lines) + "\n"


def _plus_minus(encoding: str) -> str:
    try:
        return "±".encode(encoding).decode(encoding)
    except (UnicodeError, LookupError):
        return "+/-"


def summary_heading(summary: RunSummary) -> str:
    """What was evaluated with what, in a line."""
    split = f", split {summary.split}" if summary.split else ""
    if len(summary.splits) > 1:
        what = f"{len(summary.splits)} splits"
    else:
        chance = summary.cases[0].chance if summary.cases else 1 / summary.classes
        what = f"{summary.classes} classes (chance {percent(chance)} %)"
    return (
        f"{summary.dataset}{split}: {_count(summary.videos, 'video')}, {what}, "
        f"{summary.model} ({summary.model_fingerprint}), seed {summary.seed}"
    )


def summary_blocks(summary: RunSummary, plus_minus: str = "±") -> list[Block]:
    """The tables of a run: one, or one a split and then the protocol's averages."""
    if len(summary.splits) < 2:
        split_notes = [note for split in summary.splits for note in split.notes]
        columns, rows = _table(summary.cases)
        notes = [*_interval_notes(summary.cases), *_failure_notes(summary.cases), *split_notes]
        return [Block(None, columns, rows, notes)]
    blocks = []
    for split in summary.splits:
        cases = [case for case in summary.cases if case.split == split.name]
        title = _split_heading(split, cases)
        blocks.append(Block(title, *_table(cases), [*_failure_notes(cases), *split.notes]))
    blocks[-1].notes.extend(_interval_notes(summary.cases))
    of_kind: dict[tuple[str, tuple[str, ...]], list[ProtocolAverage]] = {}
    for average in summary.averages:
        of_kind.setdefault((average.kind, average.splits), []).append(average)
    adapting = {case.method for case in summary.cases if adapts(case)}
    blocks += [_average_block(averages, adapting, plus_minus) for averages in of_kind.values()]
    return blocks


def _split_heading(split: SplitSummary, cases: Sequence[CaseMetrics]) -> str:
    chance = cases[0].chance if cases else 1 / split.classes
    return f"split {split.name}: {_count(split.videos, 'video')}, {split.classes} classes (chance {percent(chance)} %)"


def _average_block(averages: Sequence[ProtocolAverage], adapting: set[str], plus_minus: str) -> Block:
    first = averages[0]
    if first.kind == "harmonic":
        title = f"harmonic mean of {' and '.join(first.splits)}"
    else:
        title = f"mean {plus_minus} std over {len(first.splits)} splits"
    by_method: dict[str, dict[str, str]] = {}
    for one in averages:
        shown = percent(one.value) if one.std is None else f"{percent(one.value)} {plus_minus} {percent(one.std)}"
        by_method.setdefault(one.method, {})[one.metric] = shown
    known = {one.metric for one in averages}
    metrics = {name: title for name, title in {**_ACCURACIES, **_AVERAGE_PRECISION}.items() if name in known}
    rows = []
    for method, shown in by_method.items():
        after = _picked(shown, metrics)
        if method in adapting:
            rows += [(method, "before", *_picked(shown, metrics, "_before")), ("", "after", *after)]
        else:
            rows.append((method, "", *after))
    return Block(title, ("method", "", *metrics.values()), rows, [])


def _picked(shown: Mapping[str, str], metrics: Mapping[str, str], suffix: str = "") -> tuple[str, ...]:
    return tuple(shown.get(f"{name}{suffix}", "") for name in metrics)


def _table(cases: Sequence[CaseMetrics]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Columns and rows of one split's cases."""
    multi_label = any(case.map_after is not None for case in cases)
    columns = ("method", "", *(_AVERAGE_PRECISION if multi_label else _ACCURACIES).values())
    return columns, [row for case in cases for row in _case_rows(case, len(columns))]


def _case_rows(case: CaseMetrics, columns: int) -> list[tuple[str, ...]]:
    if case.map_after is not None and case.map_before is not None:
        if not adapts(case):
            return [(case.method, "", interval(case.map_after))]
        return [(case.method, "before", interval(case.map_before)), ("", "after", interval(case.map_after))]
    scores = case.headline
    if scores is None:
        return [(case.method, "", "no labels", *[""] * (columns - 3))]
    if scores.change is None:
        return [(case.method, "", *_accuracy(scores.after))]
    change = scores.change
    return [
        (case.method, "before", *_accuracy(scores.before)),
        ("", "after", *_accuracy(scores.after)),
        (
            "",
            "change",
            interval(change.top1, "+"),
            f"{change.gained} gained, {change.lost} lost",
            f"McNemar p {p_value(change.p_value)}",
        ),
    ]


def adapts(case: CaseMetrics) -> bool:
    """Whether the method changed any score; zero-shot changes none."""
    if case.headline is not None:
        return case.headline.change is not None
    return (case.map_before, case.entropy_before) != (case.map_after, case.entropy_after)


def _accuracy(accuracy: Accuracy) -> tuple[str, str, str]:
    return interval(accuracy.top1), interval(accuracy.top5), interval(accuracy.mean_class)


def percent(share: float, sign: str = "") -> str:
    """A share in per cent with one decimal; `sign` is "+" where a rise is to show as one."""
    # Adding zero turns a rounded -0.0 into 0.0, which would otherwise print its sign.
    return f"{round(100 * share, 1) + 0.0:{sign}.1f}"


def interval(estimate: Estimate, sign: str = "") -> str:
    """An estimate in per cent, with its interval in brackets."""
    return f"{percent(estimate.value, sign)} [{percent(estimate.low, sign)}, {percent(estimate.high, sign)}]"


def p_value(p: float) -> str:
    """A p value with three decimals."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _interval_notes(cases: Sequence[CaseMetrics]) -> list[str]:
    measured = any(case.headline is not None or case.map_after is not None for case in cases)
    return ["Intervals hold with 95 %."] if measured else []


def _failure_notes(cases: Sequence[CaseMetrics]) -> list[str]:
    """What became of failed videos, as the headline counts them."""
    lines = []
    for case in cases:
        if case.map_after is not None and case.failed:
            lines.append(f"{case.method}: {_count(case.failed, 'failed video')} ranked last.")
        if case.headline is not None and case.headline.videos > _videos(case.failures_excluded):
            lost = case.headline.videos - _videos(case.failures_excluded)
            line = f"{case.method}: {_count(lost, 'failed video')} counted as wrong"
            if case.failures_excluded is not None:
                left_out = case.failures_excluded
                line += f"; left out, top-1 is {percent(left_out.after.top1.value)} of {left_out.videos}"
                if left_out.change is not None:
                    line += f" (before {percent(left_out.before.top1.value)})"
            lines.append(f"{line}.")
    return lines


def _videos(scores: Scores | None) -> int:
    return 0 if scores is None else scores.videos


def summary_facts(summary: RunSummary) -> list[tuple[str, str]]:
    """Counts, failures, speed, costs and places, each under a name."""
    counts = f"{summary.videos}: {summary.finished} finished, {summary.failed} failed"
    if summary.unlabelled:
        counts += f", {summary.unlabelled} without a label (in no accuracy)"
    if summary.warned:
        counts += f", {summary.warned} with a warning"
    if summary.resumed:
        counts += f"; {summary.resumed} were there from an earlier session"
    facts = [("videos", counts)]
    facts += [("failed", _failures(group)) for group in summary.failures]
    if summary.order_dependent:
        names = ", ".join(summary.order_dependent)
        facts.append(("order", f"{names}: decisions depend on the order of the videos, which was the manifest's"))
    speed = summary.throughput.videos_per_second
    if speed is not None:
        done = _count(summary.throughput.videos, "video")
        facts.append(("speed", f"{speed:.3g} videos/s ({done} in {summary.throughput.seconds:.1f} s)"))
    costs = _costs(summary)
    if costs:
        facts.append(("a video", costs))
    if summary.model_cost is not None:
        facts.append(("size", _model_cost(summary.model_cost)))
        facts.append(("compute", _compute(summary.model_cost, summary)))
    facts += [("results", summary.results), ("run", summary.run_file), ("MLflow", _mlflow(summary))]
    return facts


def _failures(group: FailureGroup) -> str:
    reasons = "; ".join(f"{video}: {_shortened(error)}" for video, error in group.examples)
    more = group.videos - len(group.examples)
    return f"{group.videos} at {group.stage}: {reasons}" + (f"; and {more} more" if more else "")


def _shortened(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _REASON_LENGTH else f"{text[: _REASON_LENGTH - 3]}..."


def _costs(summary: RunSummary) -> str:
    costs = summary.costs
    parts = []
    if costs.bytes_shipped_mean is not None and costs.bytes_shipped_max is not None:
        parts.append(f"{_bytes(costs.bytes_shipped_mean)} shipped (at most {_bytes(costs.bytes_shipped_max)})")
    if costs.frames_decoded_mean is not None:
        parts.append(f"{costs.frames_decoded_mean:.4g} frames decoded")
    if costs.images_encoded_mean is not None:
        parts.append(f"{costs.images_encoded_mean:.4g} images encoded")
    return ", ".join(parts)


def _model_cost(cost: ModelCost) -> str:
    frames = _count(cost.view_frames, "frame")
    return (
        f"{cost.parameters / 1e6:,.1f} M parameters, {gflops(cost.view_gflops)} GFLOPs an evaluation view of {frames}"
        " (as papers count)"
    )


def _compute(cost: ModelCost, summary: RunSummary) -> str:
    """What a video took of the model, beside what its evaluation view alone takes."""
    parts = []
    if summary.images_gflops is not None:
        parts.append(f"{gflops(summary.images_gflops)} GFLOPs a video for its images")
    parts += [f"{gflops(of)} for {method}'s tuning of the text" for method, of in cost.tuning_gflops.items()]
    return ", ".join(parts) or "not known"


def gflops(number: float) -> str:
    """A number of GFLOPs in three digits or all before the point."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def _bytes(count: float) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f} B"


def _mlflow(summary: RunSummary) -> str:
    state = summary.mlflow
    if state.run_id is not None:
        return f"{state.uri} (experiment {state.experiment}, run {state.run_id})"
    return f"not logged: {state.why_not or 'switched off'}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


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


def _labels(row: VideoRow) -> tuple[str, ...]:
    """A video's class names: one, several or none."""
    if row.labels is not None:
        return row.labels
    return (row.class_name,) if row.class_name is not None else ()


def print_seeds(runs: Sequence[RunSummary], console: Console) -> None:
    """Prints the mean and standard deviation over runs that differ by their seed alone, failures counted as wrong."""
    plus_minus = "±" if "utf" in console.encoding.lower() else "+/-"
    values: dict[tuple[str, str, str], list[tuple[float, float]]] = {}
    for run in runs:
        for key, pair in _before_and_after(run):
            values.setdefault(key, []).append(pair)
    seeds = ", ".join(str(run.seed) for run in runs)
    console.print(f"\nmean {plus_minus} standard deviation over {len(runs)} seeds ({seeds})", highlight=False)
    table = Table("method", "of", "", "before (%)", "after (%)", box=None, pad_edge=False)
    for (method, of, metric), pairs in values.items():
        columns = [[100 * pair[side] for pair in pairs] for side in (0, 1)]
        shown = [f"{fmean(column):.1f} {plus_minus} {pstdev(column):.1f}" for column in columns]
        table.add_row(method, of, metric, *shown)
    console.print(table)


def _before_and_after(run: RunSummary) -> Iterator[tuple[tuple[str, str, str], tuple[float, float]]]:
    """A run's main results by method, split or average, and metric: before and after adaptation."""
    for case in run.cases:
        if case.headline is not None:
            before, after = case.headline.before.top1.value, case.headline.after.top1.value
            yield (case.method, case.split, "top-1"), (before, after)
        elif case.map_before is not None and case.map_after is not None:
            yield (case.method, case.split, "mAP"), (case.map_before.value, case.map_after.value)
    averages = {(one.method, one.kind, one.metric): one.value for one in run.averages}
    for (method, kind, metric), after in averages.items():
        before = averages.get((method, kind, f"{metric}_before"))
        if metric in ("top1", "map") and before is not None:
            of = "harmonic mean" if kind == "harmonic" else "mean of splits"
            yield (method, of, "mAP" if metric == "map" else "top-1"), (before, after)


def print_benchmarks(statuses: Sequence[BenchmarkStatus], console: Console) -> None:
    """Prints the benchmarks, a line a split, and how to make the manifests that are missing."""
    table = Table("benchmark", "", "split", "classes", "videos", "manifest", box=None, pad_edge=False)
    for column in (3, 4):
        table.columns[column].justify = "right"
    for status in statuses:
        known = "-" if status.rows is None else f"{_count(status.rows, 'video')}"
        for number, (split, classes, videos) in enumerate(status.splits):
            first = (status.benchmark.name, status.benchmark.title, known) if number == 0 else ("", "", "")
            table.add_row(Text(first[0], style="bold"), Text(first[1]), split, str(classes), videos, first[2])
    console.print(table)
    missing = {status.make: None for status in statuses if status.rows is None}
    if missing:
        console.print("\nA manifest is made with")
        for command in missing:
            console.print(Text(f"  {command}"), soft_wrap=True)


def print_manifest(manifest: Manifest, console: Console, rows: int = 10) -> None:
    """Prints what a manifest holds: counts by split, how it was read, and its first rows and broken files."""
    videos = list(manifest.rows())
    console.print(
        Text(f"{manifest.name}: {_count(len(videos), 'video')}, {len(manifest.class_names)} classes", style="bold"),
        soft_wrap=True,
    )
    console.print(Text(f"root {manifest.root}"), soft_wrap=True)
    counts = Table("split", "videos", "labelled", "classes", "broken", "hours", box=None, pad_edge=False)
    for split in manifest.splits:
        of_split = [row for row in videos if split in row.memberships]
        counts.add_row(
            Text(split),
            str(len(of_split)),
            str(sum(bool(_labels(row)) for row in of_split)),
            str(len({label for row in of_split for label in _labels(row)})),
            str(sum(row.error is not None for row in of_split)),
            f"{sum(row.duration or 0.0 for row in of_split) / 3600:.2f}",
        )
    console.print(counts)
    decoders = Counter(row.decoder for row in videos if row.decoder)
    if decoders:
        console.print(Text("read by " + ", ".join(f"{name} ({count})" for name, count in decoders.most_common())))
    if not rows or not videos:
        return
    console.print()
    shown = Table("video", "class", "frames", "size", "fps", box=None, pad_edge=False)
    shown.columns[0].overflow = shown.columns[1].overflow = "fold"
    for row in videos[:rows]:
        shown.add_row(
            Text(row.video_id),
            Text(", ".join(_labels(row)) or "-"),
            "-" if row.frames is None else str(row.frames),
            "-" if row.width is None else f"{row.width}x{row.height}",
            "-" if row.fps is None else f"{row.fps:.4g}",
        )
    console.print(shown)
    if len(videos) > rows:
        console.print(Text(f"... and {len(videos) - rows} more"))
    broken = [row for row in videos if row.error is not None]
    for row in broken[:rows]:
        console.print(Text(f"broken: {row.video_id}: {row.error}", style="red"), soft_wrap=True)
    if len(broken) > rows:
        console.print(Text(f"... and {len(broken) - rows} more broken ones", style="red"))
