"""How often the intervals of zar_ray.results hold what they are of: simulated, as a table for docs/metrics.md.

    python bench/intervals.py            prints the table; a minute and a half, nearly all of it for the last line
    python bench/intervals.py --write    puts it into docs/metrics.md, between its marks

Every interval is the one that an evaluation prints.  A simulation draws decisions about n videos whose chance of being
right is known, and counts how often the interval holds the true share, or the true change.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa

from zar_ray.results.averages import average_change
from zar_ray.results.case_rows import MISSED, RIGHT, CaseRows
from zar_ray.results.record import Estimate
from zar_ray.results.statistics import change_estimate, design_effect, mean_class_share, share_estimate, share_of

DOCS = Path(__file__).parents[1] / "docs" / "metrics.md"
MARKS = "<!-- bench/intervals.py -->\n", "<!-- end -->"

VIDEOS = (20, 200, 2000)
SHARES = (0.5, 0.9, 0.99)
SIMULATIONS = 4000
FEWER = 1000
"""Simulations of what cannot be told from counts, and takes longer."""

_ALIKE = 0.5
"""Chance that all of a group's videos are decided alike, where videos come in groups."""

Interval = Callable[[np.random.Generator, int, float], tuple[Estimate, float]]
"""Draws n videos of chance p; the interval, and what it should hold."""

share = functools.cache(share_estimate)
change = functools.cache(change_estimate)


def plain(rng: np.random.Generator, n: int, p: float) -> tuple[Estimate, float]:
    """The share of right videos."""
    return share(int(rng.binomial(n, p)), n), p


def seeds(rng: np.random.Generator, n: int, p: float) -> tuple[Estimate, float]:
    """The share of right decisions of three seeds, which often agree."""
    return share_of(grouped(rng, n, 3, p).reshape(n, 3).T), p


def groups(rng: np.random.Generator, n: int, p: float) -> tuple[Estimate, float]:
    """The share of right videos, four of a source."""
    return share_of(grouped(rng, n // 4, 4, p), np.repeat(np.arange(n // 4), 4)), p


def by_class(rng: np.random.Generator, n: int, p: float) -> tuple[Estimate, float]:
    """The mean over ten classes whose shares differ."""
    label = np.arange(n) % 10
    chances = p + (1 - p) * np.linspace(-0.6, 0.6, 10)
    return mean_class_share(label, rng.random(n) < chances[label]), p


def change_from(before: float | None) -> Interval:
    """The change from a share (None: the same) to p, both decisions independent."""

    def drawn(rng: np.random.Generator, n: int, p: float) -> tuple[Estimate, float]:
        first = p if before is None else before
        gained, lost, _ = rng.multinomial(n, [p * (1 - first), first * (1 - p), p * first + (1 - p) * (1 - first)])
        return change(int(gained), int(lost), n), p - first

    return drawn


def change_in_groups(rng: np.random.Generator, n: int, p: float) -> tuple[Estimate, float]:
    """The change from one half to p, four videos of a source."""
    sources = np.repeat(np.arange(n // 4), 4)
    after = grouped(rng, n // 4, 4, p).astype(int)
    changes = after - grouped(rng, n // 4, 4, 0.5)
    shared = design_effect(changes[None], sources, lowest=-1)
    gained, lost = (float((changes == sign).sum()) / shared for sign in (1, -1))
    return change_estimate(gained, lost, n / shared), p - 0.5


def change_of_mean(rng: np.random.Generator, n: int, p: float) -> tuple[Estimate, float]:
    """The change from one half to p in the mean of three splits, which have n videos together."""
    splits = []
    for videos in np.array_split(np.arange(n), 3):
        before, after = (np.where(rng.random(len(videos)) < one, RIGHT, MISSED) for one in (0.5, p))
        sources = pa.chunked_array([videos.astype(str)], pa.string())
        splits.append(CaseRows(pa.table({}), videos, before, after, videos >= 0, videos < 0, sources))
    return average_change(splits, "mean", int(rng.integers(2**31)), 200).effect, p - 0.5


def grouped(rng: np.random.Generator, count: int, size: int, p: float) -> np.ndarray:
    """Bool (count·size,): whether videos are right, which of a group often are all or none."""
    own, common = rng.random((count, size)) < p, rng.random((count, 1)) < p
    return np.where(rng.random((count, 1)) < _ALIKE, common, own).ravel()


INTERVALS: dict[str, tuple[Interval, int]] = {
    "top-1, top-5": (plain, SIMULATIONS),
    "top-1, 4 videos of a source": (groups, FEWER),
    "top-1 over 3 seeds": (seeds, FEWER),
    "mean class, 10 classes": (by_class, FEWER),
    "change, from 0.5 to p": (change_from(0.5), SIMULATIONS),
    "change, from p to p": (change_from(None), SIMULATIONS),
    "change, from 0.5 to p, 4 videos of a source": (change_in_groups, FEWER),
    "change of a mean of 3 splits, from 0.5 to p": (change_of_mean, FEWER // 2),
}


def coverage(interval: Interval, n: int, p: float, simulations: int, seed: int = 0) -> float:
    """The share of simulations whose interval holds the truth."""
    rng = np.random.default_rng([seed, n, round(1000 * p)])
    found = (interval(rng, n, p) for _ in range(simulations))
    return float(np.mean([one.low - 1e-9 <= truth <= one.high + 1e-9 for one, truth in found]))


def table(scale: float = 1.0) -> str:
    """The table in Markdown; `scale` times as many simulations as by default."""
    columns = [(n, p) for n in VIDEOS for p in SHARES]
    lines = [
        f"| interval | {' | '.join(f'n = {n:,}, p = {p:g}' for n, p in columns)} |",
        f"|---|{'---:|' * len(columns)}",
    ]
    for name, (interval, simulations) in INTERVALS.items():
        held = (coverage(interval, n, p, round(scale * simulations)) for n, p in columns)
        lines.append(f"| {name} | {' | '.join(f'{100 * one:.1f}' for one in held)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Prints the table, and writes it where that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="put the table into docs/metrics.md")
    written = parser.parse_args().write
    found = table()
    print(found, end="")
    if written:
        text = DOCS.read_text(encoding="utf-8")
        before, rest = text.split(MARKS[0])
        DOCS.write_text(f"{before}{MARKS[0]}{found}{MARKS[1]}{rest.partition(MARKS[1])[2]}", encoding="utf-8")


if __name__ == "__main__":
    main()
