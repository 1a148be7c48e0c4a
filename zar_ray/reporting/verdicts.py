"""Whether adaptation helped, and what it cost: a sentence a method."""

from __future__ import annotations

from collections.abc import Sequence

from zar_ray.reporting.numbers import MAIN, counted, digits, ends, percent
from zar_ray.results.record import CaseMetrics, PairedComparison, RunSummary

_LEVEL = 0.05
_WITHOUT = "zero_shot"


def verdicts(summary: RunSummary) -> list[str]:
    """A sentence on each method that adapts, in the order they first come."""
    said = []
    for method in dict.fromkeys(case.method for case in summary.cases if case.adapts):
        cases, without = (
            [case for case in summary.cases if case.method == one and case.finished] for one in (method, _WITHOUT)
        )
        main = (one.change for one in summary.averages if one.method == method and one.metric in MAIN)
        change = next(main, None) or (cases[0].change if len(cases) == 1 else None)
        found = _decisions(cases) if change is None else _effect(change, summary)
        said.append(f"{method}: {found}{_costs(cases, without)}")
    return said


def _effect(change: PairedComparison, summary: RunSummary) -> str:
    found = "no evidence of a gain"
    if change.p_value < _LEVEL:
        found = "a gain" if change.difference > 0 else "a loss"
    labelled = summary.videos - summary.unlabelled - summary.unknown
    least = f"{counted(labelled, 'video')} can show {percent(change.detectable) or 'no difference'}"
    return f"{found} ({percent(change.difference, '+')} points, {ends(change.effect, '+')}; {least})"


def _decisions(cases: Sequence[CaseMetrics]) -> str:
    """What can be said where no label says which decision is right, or there is no one number."""
    changed, finished = sum(case.changed for case in cases), sum(case.finished for case in cases)
    before, after = (
        sum(case.finished * (getattr(case, f"confidence_{when}") or 0.0) for case in cases) / finished
        for when in ("before", "after")
    )
    sure = f"sure of them to {percent(after)} % in the mean, before {percent(before)} %"
    return f"{changed} of {counted(finished, 'decision')} changed, {sure}"


def _costs(cases: Sequence[CaseMetrics], without: Sequence[CaseMetrics]) -> str:
    """What a video costs, as a multiple of what it costs without adaptation where that ran too."""
    images, seconds = _mean(cases, "images"), _mean(cases, "seconds")
    if images is None or seconds is None:
        return ""
    fewer, shorter = _mean(without, "images"), _mean(without, "seconds")
    if fewer and shorter:
        return f", at {_short(images / fewer)} x the images and {_short(seconds / shorter)} x the time of {_WITHOUT}"
    return f", at {_short(images)} images and {_short(seconds)} s a video"


def _short(number: float) -> str:
    return digits(number, 2) if number < 100 else f"{number:,.0f}"


def _mean(cases: Sequence[CaseMetrics], name: str) -> float | None:
    known = [(case.finished, value) for case in cases if (value := getattr(case, name)) is not None]
    return sum(count * value for count, value in known) / sum(count for count, _ in known) if known else None
