"""Running evaluations in this process, on the session's Ray."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pytest
from rich.console import Console
from zar_ray.study.job import run_evaluation

from zar_ray.results.folder import RunFolder
from zar_ray.results.record import RunSummary
from zar_ray.results.rows import ResultRow, to_rows
from zar_ray.storage import Storage
from zar_ray.study.options import EvalConfig


@dataclass(frozen=True)
class Ran:
    summary: RunSummary
    folder: RunFolder
    printed: str

    @property
    def table(self) -> pa.Table:
        return self.folder.results()

    @property
    def rows(self) -> list[ResultRow]:
        return to_rows(self.table)


@pytest.fixture
def evaluate(ray_cluster, tiny_checkpoint, tmp_path):
    """Evaluates a dataset with the tiny CLIP; further options by name."""

    def run(dataset: Path | str, **options) -> Ran:
        values = {
            "dataset": str(dataset),
            "checkpoint": tiny_checkpoint,
            "output": str(tmp_path / "runs"),
            "mlflow": False,
            "views": {"frames": 4, "eval_frames": 4},
            **options,
        }
        said = io.StringIO()
        summary = run_evaluation(EvalConfig.model_validate(values), Console(file=said, width=120))
        return Ran(summary, RunFolder(Storage(f"{values['output']}/{summary.name}")), said.getvalue())

    return run


def assert_same_results(one: pa.Table, other: pa.Table, same_work: bool = True) -> None:
    """The promise of DESIGN.md: scores within 1e-3, predictions equal unless the top two lie within that.

    With `same_work` as many images were encoded, too.
    """
    ours, theirs = to_rows(one), to_rows(other)
    assert [(r.video_id, r.case_id) for r in ours] == [(r.video_id, r.case_id) for r in theirs]
    for a, b in zip(ours, theirs, strict=True):
        assert (a.error, a.error_stage, a.label_id, a.views) == (b.error, b.error_stage, b.label_id, b.views)
        assert a.images_encoded == b.images_encoded or not same_work
        if a.error is not None:
            continue
        for when in ("before", "after"):
            scores_a, scores_b = getattr(a, f"top5_scores_{when}"), getattr(b, f"top5_scores_{when}")
            assert scores_a == pytest.approx(scores_b, abs=1e-3)
            if scores_a[0] - scores_a[1] > 1e-3:
                assert getattr(a, f"top5_{when}")[0] == getattr(b, f"top5_{when}")[0]


@pytest.fixture(scope="session")
def same_results():
    return assert_same_results


def _processes_below(pid: int) -> dict[int, str]:
    """All descendants of a process with their command lines, from /proc."""
    parents, commands = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
                commands[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except (OSError, IndexError):
                continue
    below, grew = {pid}, True
    while grew:
        more = {child for child, parent in parents.items() if parent in below} - below
        grew = bool(more)
        below |= more
    return {child: commands[child] for child in below - {pid}}


@pytest.fixture(scope="session")
def processes_below():
    return _processes_below
