"""The threshold by which a share of a run's decisions is kept, case by case: what `--reject-below` is to be told."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

from zar_ray.errors import ConfigError, RunError
from zar_ray.reporting.blocks import Block, Note
from zar_ray.reporting.numbers import percent
from zar_ray.reporting.run_data import RunData, StudyData
from zar_ray.reporting.trust_tables import WORDS
from zar_ray.results.case_rows import CaseRows, by_video
from zar_ray.results.certainty import CertaintyScore
from zar_ray.results.record import CaseMetrics
from zar_ray.results.trust import Decisions, threshold_of, trust_columns

Kept = Literal["correct", "known", "all"]
"""Of which decisions a share is kept: the right ones, those about known classes, or all that there are."""


def threshold_block(run: str, keep: float, score: CertaintyScore, of: Kept) -> Block:
    """The thresholds of a run's decisions after adaptation, with what each keeps of right, wrong and unknown videos.

    Args:
        run: The run's folder or its URI.
        keep: The share of the decisions of `of` that is to be kept, in (0, 1].
        score: How sure a decision is.
        of: Of which decisions.

    Raises:
        ConfigError: The share is none.
        RunError: The folder holds no finished run, or no case has such decisions.
    """
    if not 0 < keep <= 1:
        raise ConfigError(f"--keep {keep:g}: is to be a share above 0 and up to 1, as 0.95 or 95%")
    data = StudyData.read(run)
    rows, notes, several = [], [], len(data.cells) > 1
    for cell in data.cells:
        for case in cell.summary.cases:
            key = ((cell.cell.label,) if several else ()) + ((case.split,) if len(data.splits) > 1 else ())
            found = _row(cell, case, keep, score, of)
            if isinstance(found, str):
                notes.append(f"{', '.join((*key, case.method))}: {found}.")
            else:
                rows.append((*key, case.method, *found))
    if not rows:
        raise RunError(f"{data.storage.path()}: {notes[0] if notes else 'has no case'}")
    names = (*(("cell",) if several else ()), *(("split",) if len(data.splits) > 1 else ()), "method")
    columns = (*names, "threshold", "low", "high", "videos", "kept right %", "kept wrong %", "kept unknown %")
    which = {"correct": "right decisions", "known": "decisions about known classes", "all": "decisions"}[of]
    title = f"{WORDS[score]}: at or above the threshold lie {percent(keep)} % of the {which}, after adaptation"
    notes.append("The interval holds with 95 %. A video below the threshold is taken to show none of the classes.")
    place = len(names)
    hints = [
        Note(f"zar predict ... --method {row[place - 1]} --reject-below {row[place]} --reject-score {score}", "-", True)
        for row in rows
    ]
    return Block(title, columns, rows, (*notes, *hints), words=place)


def _row(cell: RunData, case: CaseMetrics, keep: float, score: CertaintyScore, of: Kept) -> Sequence[str] | str:
    """The cells of a case, or why it has none."""
    split = cell.split(case.split)
    if split.multi_label and of != "all":
        return "a video may show several classes, so none is right or wrong; choose --of all"
    rows = CaseRows.of(by_video(cell.rows(case, trust_columns("after"))), case.case_id, len(split.class_names))
    rows = rows.select(rows.finished)
    said = Decisions.of(rows, "after")
    if score not in said.scores:
        return "its scores are logarithms of probabilities, which have no energy; choose another --score"
    certainty = said.scores[score]
    if not np.isfinite(certainty).all():
        return f"its rows do not say the {WORDS[score]}, as an earlier version's; evaluate again"
    chosen = {"correct": said.right, "known": said.known, "all": np.ones(len(certainty), bool)}[of]
    if not chosen.any():
        return {"correct": "no decision is right", "known": "no video has a label"}.get(of, "no video finished")
    found = threshold_of(certainty[chosen], keep, rows.sources[chosen])
    kept = certainty >= found.value
    groups = (said.right, said.known & ~said.right, rows.unknown)
    shares = (percent(float(kept[one].mean())) if one.any() else "" for one in groups)
    return (*map(_down, (found.value, found.low, found.high)), str(int(chosen.sum())), *shares)


def _down(value: float) -> str:
    """Six decimals, rounded down: a threshold must not come to lie above the decision that it is of."""
    return f"{math.floor(value * 1e6) / 1e6:.6f}"
