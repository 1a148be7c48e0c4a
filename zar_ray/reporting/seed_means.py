"""Means over trainings that differ by their seed alone, and the tables that show them beside each seed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, harmonic_mean, pstdev, stdev

from rich.console import Console
from rich.table import Table
from rich.text import Text
from scipy.stats import t as student_t

from zar_ray.results.record import CaseMetrics, Estimate, RunSummary

METRICS = ("top1", "top5", "mean_class")
HARMONIC = "harmonic"


@dataclass(frozen=True)
class SeedMean:
    """One accuracy after adaptation over several seeds; shares are fractions in [0, 1].

    Attributes:
        method: The test-time method.
        split: The protocol's split; ``harmonic`` for the harmonic mean of base and novel.
        metric: ``top1``, ``top5`` or ``mean_class``, failed videos counted as wrong.
        values: Each seed's value; under ``harmonic`` the harmonic mean of that seed's base and novel.
        mean: The mean over the seeds; under ``harmonic`` the harmonic mean of the two splits' means, as published
            tables have it, which is not the mean of `values`.
        std: Standard deviation of `values`, n - 1 in its denominator; None with one seed.
        low: Lower end of the mean's 95 % interval by Student's t over the seeds; None with one seed and under
            ``harmonic``, whose `mean` is no mean of `values`.
        high: Its upper end.
    """

    method: str
    split: str
    metric: str
    values: tuple[float, ...]
    mean: float
    std: float | None
    low: float | None
    high: float | None

    def numbers(self) -> dict[str, float]:
        """The mean as flat numbers for MLflow; docs/mlflow.md lists the names."""
        at = f"{self.split}/{self.method}/{self.metric}"
        flat = {"mean": self.mean, "std": self.std, "mean_low": self.low, "mean_high": self.high}
        return {f"{at}_{name}": value for name, value in flat.items() if value is not None}


def seed_means(runs: Sequence[RunSummary], *, harmonic: bool) -> tuple[SeedMean, ...]:
    """Means over runs of the same methods and splits, one a seed.

    Args:
        runs: The runs; multi-label splits have no accuracies and are left out.
        harmonic: Whether to add the harmonic mean of the two splits.
    """
    values: dict[tuple[str, str, str], list[float]] = {}
    for run in runs:
        for case in run.cases:
            for metric, estimate in _accuracies(case).items():
                values.setdefault((case.method, case.split, metric), []).append(estimate.value)
    means = [_mean(*key, found) for key, found in values.items()]
    if harmonic:
        for method, metric in dict.fromkeys((one.method, one.metric) for one in means):
            base, novel = (one for one in means if (one.method, one.metric) == (method, metric))
            each = tuple(harmonic_mean(pair) for pair in zip(base.values, novel.values, strict=True))
            spread = stdev(each) if len(each) > 1 else None
            means.append(
                SeedMean(method, HARMONIC, metric, each, harmonic_mean((base.mean, novel.mean)), spread, None, None)
            )
    return tuple(means)


def _accuracies(case: CaseMetrics) -> Mapping[str, Estimate]:
    return {} if case.headline is None else {name: getattr(case.headline.after, name) for name in METRICS}


def _mean(method: str, split: str, metric: str, values: Sequence[float]) -> SeedMean:
    mean = fmean(values)
    if len(values) < 2:
        return SeedMean(method, split, metric, tuple(values), mean, None, None, None)
    std = stdev(values)
    reach = float(student_t.ppf(0.975, len(values) - 1)) * std / len(values) ** 0.5
    return SeedMean(method, split, metric, tuple(values), mean, std, mean - reach, mean + reach)


def seed_table(seeds: Sequence[int], runs: Sequence[RunSummary], means: Sequence[SeedMean]) -> list[tuple[str, ...]]:
    """Top-1 in per cent, the first row the heading: a row a method and seed, then the method's mean."""
    splits = list(dict.fromkeys(one.split for one in means))
    heading = [f"{split}: top-1 %" if split != HARMONIC else "harmonic mean %" for split in splits]
    rows = [("method", "seed", *heading)]
    for method in dict.fromkeys(one.method for one in means):
        shown = {one.split: one for one in means if (one.method, one.metric) == (method, "top1")}
        for number, (seed, run) in enumerate(zip(seeds, runs, strict=True)):
            cells = []
            for split in splits:
                if split == HARMONIC:
                    cells.append(_percent(shown[split].values[number]))
                else:
                    case = next(case for case in run.cases if (case.method, case.split) == (method, split))
                    top1 = _accuracies(case)["top1"]
                    cells.append(f"{_percent(top1.value)} [{_percent(top1.low)}, {_percent(top1.high)}]")
            rows.append(("" if number else method, str(seed), *cells))
        rows.append(("", "mean", *(_spread(shown[split]) for split in splits)))
    return rows


def seed_notes(runs: Sequence[RunSummary], means: Sequence[SeedMean]) -> list[str]:
    """What the table's numbers are, a line each."""
    count = len(runs)
    videos = ", ".join(f"{case.labelled} of {case.split}" for case in _first_method(runs[0]))
    notes = [f"{count} seed{'' if count == 1 else 's'}, videos a seed: {videos}. A seed's interval is over its videos."]
    if count > 1:
        notes.append(
            "Mean +/- standard deviation between seeds (n - 1 in its denominator); its interval is over the seeds,"
            " by Student's t. Intervals hold with 95 %."
        )
    if any(one.split == HARMONIC for one in means):
        notes.append(
            "The mean row's harmonic mean is that of mean base and mean novel, as published tables have it; its"
            " standard deviation is between the seeds' own harmonic means."
        )
    return notes


def _first_method(run: RunSummary) -> list[CaseMetrics]:
    return [case for case in run.cases if case.method == run.cases[0].method]


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _spread(mean: SeedMean) -> str:
    shown = _percent(mean.mean)
    if mean.std is not None:
        shown += f" +/- {_percent(mean.std)}"
    if mean.low is not None and mean.high is not None:
        shown += f" [{_percent(mean.low)}, {_percent(mean.high)}]"
    return shown


def print_rows(rows: Sequence[Sequence[str]], notes: Sequence[str], console: Console) -> None:
    """Prints a table, whose first row is the heading, and what stands under it."""
    table = Table(*rows[0], box=None, pad_edge=False)
    for row in rows[1:]:
        table.add_row(*(Text(cell) for cell in row))
    console.print(table)
    for note in notes:
        console.print(Text(note, style="dim"), soft_wrap=True)


def markdown_rows(rows: Sequence[Sequence[str]], notes: Sequence[str]) -> str:
    """The same in Markdown, for MLflow's description."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:], "", *notes]) + "\n"


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
