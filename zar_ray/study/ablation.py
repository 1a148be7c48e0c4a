"""Sweeps of settings in one pass, from the options to the printed tables: what `zar ablate` and jobs/ablate.py call.

Each video is decoded once and each distinct image that any setting looks at is encoded once; every setting is adapted
from these features in the same worker.  A setting's numbers are those that an evaluation of it alone would have.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
from rich.console import Console

from zar_ray.errors import ConfigError
from zar_ray.evaluation.options import AblateConfig, EvalConfig
from zar_ray.evaluation.pipeline import Evaluated, evaluate
from zar_ray.evaluation.streams import stream_methods
from zar_ray.evaluation.workload import Workload
from zar_ray.reporting.summary_tables import print_facts
from zar_ray.reporting.sweep_summary import (
    SettingResult,
    SweepRow,
    SweepSummary,
    SweepTable,
    print_sweep,
    sweep_csv,
)
from zar_ray.results import metrics
from zar_ray.results.case_rows import RIGHT, CaseRows
from zar_ray.results.folder import SUMMARY, RunFolder
from zar_ray.results.record import Estimate, RunSummary
from zar_ray.results.statistics import PairedComparison, holm, paired_comparison, share_estimate
from zar_ray.storage import Storage
from zar_ray.study import job
from zar_ray.study.inputs import run_name
from zar_ray.study.sweeps import DEFAULT, PlacedSweep, known_sweeps, load_sweep, place_settings, varied_options

TABLE = "settings.csv"
"""File in the run's folder that holds all settings' numbers."""

_LEVEL = 0.05


@dataclass(frozen=True)
class Ablation:
    """What would run.

    Attributes:
        workload: The videos and what is asked about them.
        runs: The options of every distinct setting, the run's own first.
        sweeps: The sweeps, with their settings' places in `runs`.
    """

    workload: Workload
    runs: tuple[EvalConfig, ...]
    sweeps: tuple[PlacedSweep, ...]


def prepare(options: AblateConfig, console: Console) -> Ablation:
    """Opens the dataset, reads the sweeps and settles what the options leave open.

    Raises:
        ZarError: The dataset, a sweep or an option cannot be used.
    """
    if not options.sweep:
        raise ConfigError(f"zar ablate: say what to vary with --sweep NAME or FILE.yaml ({', '.join(known_sweeps())})")
    if len(set(options.sweep)) < len(options.sweep):
        raise ConfigError(f"--sweep {' '.join(options.sweep)}: names a sweep twice")
    if options.interpolate_with is not None or options.alphas:
        raise ConfigError("zar ablate: --interpolate-with and --alphas are for `zar eval`; leave them out")
    if options.models:
        raise ConfigError("zar ablate: takes one --model; run it once for each")
    if options.seeds:
        raise ConfigError("zar ablate: --seeds is for `zar eval`; run `zar ablate` once with each --seed")
    sweeps = [load_sweep(name) for name in options.sweep]
    # Before the videos are looked for: what a setting says can be wrong.
    place_settings(sweeps, options)
    files = tuple(str(Path(one).expanduser().absolute()) if Path(one).suffix else one for one in options.sweep)
    workload, settled = job.prepare(options, console)
    if options.name is None:
        name = run_name(settled, workload.manifest.name) + "_" + "+".join(sweep.name for sweep in sweeps)
        settled = settled.model_copy(update={"name": re.sub(r"[^A-Za-z0-9.+_-]+", "-", name)})
    runs, placed = place_settings(sweeps, settled.model_copy(update={"sweep": files}))
    return Ablation(workload, runs, placed)


def describe(ablation: Ablation) -> str:
    """What would run, in a few lines."""
    named = [f"{one.sweep.name} ({len(one.places)} settings)" for one in ablation.sweeps]
    lines = job.describe(ablation.workload, ablation.runs[0]).splitlines()
    return "\n".join(
        [*lines[:-1], f"sweeps    {', '.join(named)}: {len(ablation.runs)} distinct settings in one pass", lines[-1]]
    )


def run_ablation(options: AblateConfig, console: Console) -> SweepSummary:
    """Runs or continues sweeps, writes and logs their results and prints them.

    Raises:
        RunError: More videos failed than `max_failed` allows; everything is written and printed by then.
        ZarError: The run cannot start or was stopped.
    """
    ablation = prepare(options, console)
    own = ablation.runs[0]
    console.print(describe(ablation), highlight=False)
    folder = RunFolder(Storage(f"{own.output}/{own.name}"))
    evaluated = evaluate(ablation.workload, own, folder, console, ablation.runs[1:])
    console.print("computing accuracies and their intervals ...")
    sweep = summarise(ablation, folder, evaluated)
    # What is counted of videos, and what they cost, is of the whole pass.
    whole = metrics.video_counts(evaluated.table)
    counts = {name: getattr(whole, name) for name in ("videos", "finished", "failed", "unlabelled", "warned")}
    summary = replace(
        sweep.settings[0].summary,
        name=str(own.name),
        failures=metrics.failure_groups(evaluated.table),
        order_dependent=stream_methods(evaluated.settings),
        **counts,
    )
    record = {**job.run_json(summary, evaluated.settings[0]), "sweep": sweep.to_json()}
    folder.finish(evaluated.table, record)
    folder.storage.write(TABLE, sweep_csv(sweep).encode())
    summary = replace(summary, mlflow=job.log(folder, own))
    folder.write_json(SUMMARY, {**record, "summary": summary.to_json()})
    print_sweep(sweep, console)
    print_facts(summary, console)
    job.check_failures(summary, own)
    return sweep


def summarise(ablation: Ablation, folder: RunFolder, evaluated: Evaluated) -> SweepSummary:
    """All numbers of a pass, from its whole result table."""
    workload = ablation.workload
    own = evaluated.settings[0]
    by_setting = [evaluated.under(number) for number in range(len(evaluated.settings))]
    labels = _labels(ablation)
    settings = []
    for number, (options, part) in enumerate(zip(evaluated.settings, by_setting, strict=True)):
        named = options.model_copy(update={"name": f"{options.name} [{labels[number]}]"})
        summary = job.summarise(workload, named, folder, part)
        config = options.model_dump(mode="json", exclude={"sweep"})
        settings.append(SettingResult(varied_options(own, options), config, summary))
    tables = tuple(
        _table(placed, method, workload, by_setting, settings, own.seed)
        for placed in ablation.sweeps
        for method in own.method
    )
    sides = {one.views.short_side for one in evaluated.settings}
    raised = sides != {one.views.short_side for one in ablation.runs}
    return SweepSummary(
        settings=tuple(settings),
        tables=tables,
        short_side=own.views.short_side if raised else None,
        images_encoded=metrics.costs(evaluated.table).images_encoded_mean,
        seconds=evaluated.seconds,
    )


def _labels(ablation: Ablation) -> dict[int, str]:
    """What each setting is called first."""
    labels: dict[int, str] = {}
    for placed in ablation.sweeps:
        for setting, place in zip(placed.sweep.settings, placed.places, strict=True):
            labels.setdefault(place, setting.label)
    return {0: DEFAULT, **labels} if 0 not in labels else labels


def _table(
    placed: PlacedSweep,
    method: str,
    workload: Workload,
    by_setting: Sequence[Evaluated],
    settings: Sequence[SettingResult],
    seed: int,
) -> SweepTable:
    """One sweep under one method; its tests are one family."""
    members = [(setting.label, place) for setting, place in zip(placed.sweep.settings, placed.places, strict=True)]
    if all(place != 0 for _, place in members):
        members.insert(0, (DEFAULT, 0))
    right = {place: _right(workload, by_setting[place], method) for _, place in members}
    # A multi-label video is neither right nor wrong.
    comparable = not workload.multi_label and len(right[0]) > 0
    others = [place for _, place in members if place != 0] if comparable else []
    comparisons = {place: paired_comparison(right[0], right[place], seed) for place in others}
    adjusted = dict(zip(others, holm([comparisons[place].p_value for place in others]), strict=True))
    rows = tuple(
        SweepRow(
            label=label,
            setting=place,
            accuracy=_accuracy(right[place], settings[place].summary, method),
            average=next((one[0] for one in _averages(settings[place].summary, method)), None),
            std=next((one[1] for one in _averages(settings[place].summary, method)), None),
            comparison=comparisons.get(place),
            p_adjusted=adjusted.get(place),
            images=_mean(by_setting[place], method, "images"),
            seconds=_mean(by_setting[place], method, "seconds_adapt"),
        )
        for label, place in members
    )
    return SweepTable(
        name=placed.sweep.name,
        title=placed.sweep.title,
        varies=placed.sweep.varies,
        about=placed.sweep.about,
        method=method,
        metric="map" if workload.multi_label else "top1",
        decisions=len(right[0]),
        rows=rows,
        verdict=_verdict(rows, right, seed) if comparable else "No paired test: decisions here are not right or wrong.",
    )


def _right(workload: Workload, evaluated: Evaluated, method: str) -> np.ndarray:
    """Whether each labelled decision is right after adaptation, bool (N,); in the same order for every setting."""
    parts = [np.empty(0, bool)]
    for case in evaluated.cases:
        if case.method == method:
            rows = CaseRows.of(evaluated.table, case.case_id, len(workload.class_sets[case.class_set]))
            parts.append((rows.after == RIGHT)[rows.label >= 0])
    return np.concatenate(parts)


def _accuracy(right: np.ndarray, summary: RunSummary, method: str) -> Estimate | None:
    if len(right):
        return share_estimate(int(right.sum()), len(right))
    cases = [case for case in summary.cases if case.method == method]
    return cases[0].map_after if len(cases) == 1 else None


def _averages(summary: RunSummary, method: str) -> list[tuple[float, float | None]]:
    """The protocol's average of its main metric, if it has several splits."""
    return [(one.value, one.std) for one in summary.averages if one.method == method and one.metric in ("top1", "map")]


def _mean(evaluated: Evaluated, method: str, column: str) -> float | None:
    values = evaluated.table.filter(pc.field("method") == method)[column].drop_null().to_numpy()
    return float(values.mean(dtype=np.float64)) if len(values) else None


def _verdict(rows: Sequence[SweepRow], right: dict[int, np.ndarray], seed: int) -> str:
    """Names a winner only where it beats the run's own setting and every other one beyond doubt."""
    better = [row for row in rows if _differs(row, +1)]
    worse = [row for row in rows if _differs(row, -1)]
    if not better and not worse:
        return f"No setting is distinguishable from the run's own (adjusted p >= {_LEVEL} for all)."
    if not better:
        return f"No setting is better than the run's own; worse beyond doubt: {_listed(worse)}."
    best = max(better, key=lambda row: right[row.setting].sum())
    rivals = {row.setting: row.label for row in rows if row.setting != best.setting}
    against = {place: paired_comparison(right[place], right[best.setting], seed) for place in rivals}
    adjusted = dict(zip(against, holm([one.p_value for one in against.values()]), strict=True))
    equal = [label for place, label in rivals.items() if not _is_sure(against[place], adjusted[place])]
    text = f"Better than the run's own beyond doubt: {_listed(better)}."
    if equal:
        return f"{text} The best of them, {best.label}, is not distinguishable from {', '.join(equal)}."
    return f"{text} {best.label} wins: it is better than each of the others, too (adjusted p < {_LEVEL})."


def _differs(row: SweepRow, sign: int) -> bool:
    return (
        row.comparison is not None
        and row.p_adjusted is not None
        and row.p_adjusted < _LEVEL
        and sign * row.comparison.difference > 0
    )


def _is_sure(comparison: PairedComparison, p_adjusted: float) -> bool:
    return p_adjusted < _LEVEL and comparison.difference > 0


def _listed(rows: Sequence[SweepRow]) -> str:
    return ", ".join(f"{row.label} (p {row.p_adjusted:.2g})" for row in rows)
