"""What an evaluation looks like in a terminal, in a log and in Markdown.

Tables fit 80 columns and use plain characters, so that they survive logs; accuracies are printed in per cent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import astuple, fields

from zar_ray.reporting.blocks import Block, csv_block
from zar_ray.reporting.numbers import (
    METRICS,
    counted,
    digits,
    fixed,
    gflops,
    interval,
    p_value,
    percent,
    shortened,
    size,
    with_deviation,
)
from zar_ray.reporting.trust_tables import NOT_DEFINED, case_lines, overview, trust_blocks
from zar_ray.reporting.verdicts import verdicts
from zar_ray.results.record import (
    CaseMetrics,
    ClassAccuracy,
    FailureGroup,
    ModelCost,
    ProtocolAverage,
    RunSummary,
    Scores,
)
from zar_ray.storage import folder_of

RANDOM_WEIGHTS = "RANDOM WEIGHTS: the model is untrained, so the numbers say nothing about the method"
INTERVALS = "Intervals hold with 95 %."
GROUPED = "In intervals and tests, videos of one source stand or fall together"

_ACCURACIES = ("top1", "top5", "mean_class")
_REASON_LENGTH = 160


def data_heading(summary: RunSummary) -> str:
    """What was evaluated."""
    split = f", split {summary.split}" if summary.split else ""
    what = f"{len(summary.splits)} splits" if len(summary.splits) > 1 else _choices(summary.cases, summary.classes)
    return f"{summary.dataset}{split}: {counted(summary.videos, 'video')}, {what}"


def summary_blocks(summary: RunSummary, plus_minus: str = "±") -> list[Block]:
    """The tables of an evaluation: one, or one a split and then the protocol's averages."""
    if len(summary.splits) < 2:
        split_notes = [note for split in summary.splits for note in split.notes]
        notes = [*_interval_notes(summary.cases), *_failure_notes(summary.cases), *split_notes]
        return [Block(None, *_table(summary.cases), notes), *_beside(summary.cases)]
    blocks = []
    for split in summary.splits:
        cases = [case for case in summary.cases if case.split == split.name]
        notes = [*_failure_notes(cases), *split.notes]
        if split is summary.splits[-1]:
            notes += _interval_notes(summary.cases)
        title = f"split {split.name}: {counted(split.videos, 'video')}, {_choices(cases, split.classes)}"
        blocks.append(Block(title, *_table(cases), notes))
    of_kind: dict[tuple[str, tuple[str, ...]], list[ProtocolAverage]] = {}
    for average in summary.averages:
        of_kind.setdefault((average.kind, average.splits), []).append(average)
    adapting = {case.method for case in summary.cases if case.adapts}
    blocks += [_average_block(averages, adapting, plus_minus) for averages in of_kind.values()]
    return blocks + _beside(summary.cases)


def _beside(cases: Sequence[CaseMetrics]) -> list[Block]:
    """Trust and costs: a line a case of both, then the measures of trust with their intervals."""
    first = overview(cases)
    names = ("split", "method") if len({case.split for case in cases}) > 1 else ("method",)
    return [*([first] if first is not None else []), *trust_blocks(case_lines(cases), names)]


def _choices(cases: Sequence[CaseMetrics], classes: int) -> str:
    return f"{classes} classes (chance {percent(cases[0].chance if cases else 1 / classes)} %)"


def _average_block(averages: Sequence[ProtocolAverage], adapting: set[str], plus_minus: str) -> Block:
    first = averages[0]
    if first.kind == "harmonic":
        title = f"harmonic mean of {' and '.join(first.splits)}"
    else:
        title = f"mean {plus_minus} std over {len(first.splits)} splits"
    by_method: dict[str, dict[str, str]] = {}
    changes = {one.method: one.change for one in averages if one.change is not None}
    for one in averages:
        by_method.setdefault(one.method, {})[one.metric] = with_deviation(one.value, one.std, plus_minus)
    known = {one.metric for one in averages}
    metrics = [name for name in METRICS if name in known]
    rows = []
    for method, shown in by_method.items():
        after = _picked(shown, metrics)
        if method in adapting:
            rows += [(method, "before", *_picked(shown, metrics, "_before")), ("", "after", *after)]
            if (change := changes.get(method)) is not None:
                cells = [interval(change.effect, "+"), f"p {p_value(change.p_value)}"]
                rows.append(("", "change", *cells, *[""] * (len(metrics) - 2)))
        else:
            rows.append((method, "", *after))
    return Block(title, ("method", "", *(f"{METRICS[name]} %" for name in metrics)), rows)


def _picked(shown: Mapping[str, str], metrics: Sequence[str], suffix: str = "") -> tuple[str, ...]:
    return tuple(shown.get(f"{name}{suffix}", "") for name in metrics)


def _table(cases: Sequence[CaseMetrics]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Columns and rows of one split's cases."""
    measured = next((found for case in cases if (found := case.estimates("after"))), _ACCURACIES)
    columns = ("method", "", *(f"{METRICS[name]} %" for name in measured))
    return columns, [row for case in cases for row in _case_rows(case, len(columns))]


def _case_rows(case: CaseMetrics, columns: int) -> list[tuple[str, ...]]:
    before, after = (tuple(map(interval, case.estimates(when).values())) for when in ("before", "after"))
    if not after:
        return [(case.method, "", "no labels", *[""] * (columns - 3))]
    if not case.adapts:
        return [(case.method, "", *after)]
    rows = [(case.method, "before", *before), ("", "after", *after)]
    if (change := case.change) is not None:
        shown, test = interval(change.effect, "+"), f"{p_of(case)} {p_value(change.p_value)}"
        if case.headline is None:
            rows.append(("", "change", f"{shown}, {test}"))
        else:
            rows.append(("", "change", shown, f"{change.gained} gained, {change.lost} lost", test))
    return rows


def p_of(case: CaseMetrics) -> str:
    """What the test of a case's change is called."""
    return "p" if case.groups or case.headline is None else "McNemar p"


def _interval_notes(cases: Sequence[CaseMetrics]) -> list[str]:
    if not any(case.estimates("after") for case in cases):
        return []
    groups = {case.split: (case.labelled, case.groups) for case in cases if case.groups}
    shown = ", ".join(f"{count} of {labelled} videos" for labelled, count in groups.values())
    several = any(case.map_after is not None for case in cases)
    return [
        INTERVALS,
        *([f"{GROUPED} (sources: {shown})."] if groups else []),
        *([NOT_DEFINED] if several else []),
    ]


def _failure_notes(cases: Sequence[CaseMetrics]) -> list[str]:
    """What became of failed videos, as the headline counts them."""
    lines = []
    for case in cases:
        if case.map_after is not None and case.failed:
            lines.append(f"{case.method}: {counted(case.failed, 'failed video')} ranked last.")
        if case.headline is not None and case.headline.videos > _videos(case.failures_excluded):
            lost = case.headline.videos - _videos(case.failures_excluded)
            line = f"{case.method}: {counted(lost, 'failed video')} counted as wrong"
            if case.failures_excluded is not None:
                left_out = case.failures_excluded
                line += f"; left out, top-1 is {percent(left_out.after.top1.value)} of {left_out.videos}"
                if left_out.change is not None:
                    line += f" (before {percent(left_out.before.top1.value)})"
            lines.append(f"{line}.")
    return lines


def _videos(scores: Scores | None) -> int:
    return 0 if scores is None else scores.videos


def summary_facts(summary: RunSummary, cell: str = "") -> list[tuple[str, str]]:
    """Counts, failures, speed, costs, places and verdicts, which are of a cell of this label, each under a name."""
    counts = f"{summary.videos}: {summary.finished} finished, {summary.failed} failed"
    if summary.unlabelled:
        counts += f", {summary.unlabelled} without a label (in no accuracy)"
    if summary.unknown:
        counts += f", {summary.unknown} of unknown classes (in no accuracy)"
    if summary.warned:
        counts += f", {summary.warned} with a warning"
    if summary.resumed:
        counts += f"; {summary.resumed} were there from an earlier session"
    facts = [("videos", counts)]
    if summary.warned:
        facts.append(("warned", f"`zar report run {folder_of(summary.run_file)}` lists videos and warnings"))
    facts += [("failed", _failures(group)) for group in summary.failures]
    if summary.order_dependent:
        names = ", ".join(summary.order_dependent)
        order = ", ".join(summary.order)
        facts.append(("order", f"{names}: decisions depend on the order of the videos, which was {order}"))
    speed = summary.throughput.videos_per_second
    if speed is not None:
        done = counted(summary.throughput.videos, "video")
        facts.append(("speed", f"{digits(speed)} videos/s ({done} in {summary.throughput.seconds:.1f} s)"))
    told = summary.throughput
    if told.load_seconds is not None:
        workers = counted(told.loads, "worker")
        workers += f", the slowest {digits(told.load_seconds_most)} s" if told.loads > 1 else ""
        facts.append(("load", f"{digits(told.load_seconds)} s to load the models ({workers})"))
    costs = _costs(summary)
    if costs:
        facts.append(("a video", costs))
    if summary.model_cost is not None:
        cost = summary.model_cost
        view = f"{gflops(cost.view_gflops)} GFLOPs an evaluation view of {counted(cost.view_frames, 'frame')}"
        facts.append(("size", f"{cost.parameters / 1e6:,.1f} M parameters, {view} (as papers count)"))
        facts.append(("compute", _compute(cost, summary)))
    facts += [("results", summary.results), ("run", summary.run_file), ("MLflow", _mlflow(summary))]
    return facts + [("verdict", f"{cell}: {said}" if cell else said) for said in verdicts(summary)]


def _failures(group: FailureGroup) -> str:
    reasons = "; ".join(f"{video}: {shortened(error, _REASON_LENGTH)}" for video, error in group.examples)
    more = group.videos - len(group.examples)
    return f"{group.videos} at {group.stage}: {reasons}" + (f"; and {more} more" if more else "")


def _costs(summary: RunSummary) -> str:
    costs = summary.costs
    parts = []
    if costs.bytes_shipped_mean is not None and costs.bytes_shipped_max is not None:
        parts.append(f"{size(costs.bytes_shipped_mean)} shipped (at most {size(costs.bytes_shipped_max)})")
    if costs.frames_decoded_mean is not None:
        parts.append(f"{digits(costs.frames_decoded_mean, 4)} frames decoded")
    if costs.images_encoded_mean is not None:
        parts.append(f"{digits(costs.images_encoded_mean, 4)} images encoded")
    return ", ".join(parts)


def _compute(cost: ModelCost, summary: RunSummary) -> str:
    """What a video took of the model, beside what its evaluation view alone takes."""
    parts = []
    if summary.images_gflops is not None:
        parts.append(f"{gflops(summary.images_gflops)} GFLOPs a video for its images")
    parts += [f"{gflops(of)} for {method}'s tuning of the text" for method, of in cost.tuning_gflops.items()]
    return ", ".join(parts) or "not known"


def _mlflow(summary: RunSummary) -> str:
    state = summary.mlflow
    if state.run_id is not None:
        return f"{state.uri} (experiment {state.experiment}, run {state.run_id})"
    return f"not logged: {state.why_not or 'switched off'}"


def per_class_csv(classes: Sequence[ClassAccuracy]) -> str:
    """Writes accuracy by class as CSV with a header; shares have four decimals, and are empty without videos."""
    rows = [
        [fixed(value, 4) if isinstance(value, float) else "" if value is None else str(value) for value in astuple(one)]
        for one in classes
    ]
    return csv_block(Block(None, [field.name for field in fields(ClassAccuracy)], rows))
