"""Running evaluations and trainings on the session's Ray, and one finished training for all tests."""

from __future__ import annotations

import io
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
import pytest
import ray.train
import torch
import yaml
from probed_here import probed_here
from ray.train import Checkpoint, ScalingConfig
from rich.console import Console
from stages_here import stages_here

from zar_ray.data.datasets import list_dataset
from zar_ray.data.manifest import Manifest, write_manifest
from zar_ray.data.probing import probe_listing
from zar_ray.results.folder import RunFolder
from zar_ray.results.record import RunSummary
from zar_ray.results.rows import ResultRow, to_rows
from zar_ray.results.study_record import StudyRecord
from zar_ray.storage import Storage
from zar_ray.study.options import EvalConfig
from zar_ray.study.run import run_study
from zar_ray.training import job as training_job
from zar_ray.training.job import run_training
from zar_ray.training.options import TrainConfig
from zar_ray.training.outputs import TrainResult


@dataclass(frozen=True)
class Ran:
    record: StudyRecord
    folder: RunFolder
    printed: str

    @property
    def summary(self) -> RunSummary:
        return self.record.whole

    @property
    def table(self) -> pa.Table:
        return self.folder.results()

    @property
    def rows(self) -> list[ResultRow]:
        return to_rows(self.table)


@pytest.fixture
def evaluate(ray_cluster, tiny_checkpoint, tmp_path):
    """Evaluates a dataset with the tiny CLIP, on Ray or `here`, in this process; further options by name."""

    def run(dataset: Path | str, here: bool = False, **options) -> Ran:
        values = {
            "dataset": str(dataset),
            "checkpoint": tiny_checkpoint,
            "output": str(tmp_path / "runs"),
            "mlflow": False,
            "views": {"frames": 4, "eval_frames": 4},
            **options,
        }
        said = io.StringIO()
        with stages_here() if here else nullcontext():
            record = run_study(EvalConfig.model_validate(values), Console(file=said, width=120))
        return Ran(record, RunFolder(Storage(f"{values['output']}/{record.whole.name}")), said.getvalue())

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


SMALLEST = {
    "embed_dim": 16,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


@pytest.fixture(scope="session")
def broken_manifest(video_folder, tmp_path_factory) -> Path:
    """A manifest of the twelve videos, one of which is gone."""
    folder = tmp_path_factory.mktemp("broken")
    manifest = probe_listing(list_dataset(video_folder))
    rows = list(manifest.rows())
    rows[5] = replace(rows[5], path=str(folder / "gone.mp4"))
    write_manifest(Manifest.of(rows, manifest.class_names, manifest.root, "broken"), folder / "broken.parquet")
    return folder / "broken.parquet"


@pytest.fixture(scope="session")
def tiny_training(video_folder, tmp_path_factory):
    """Makes the options of a training of the smallest CLIP on twelve videos; further options by name.

    Each has a folder of its own, as a training of the same options would be gone on with.
    """
    file = tmp_path_factory.mktemp("architecture") / "tiny.yaml"
    file.write_text(yaml.safe_dump(SMALLEST))

    def make(**options) -> TrainConfig:
        folder = tmp_path_factory.mktemp("training")
        values = {
            "dataset": str(video_folder),
            "architecture": str(file),
            "frames": 2,
            "batch_size": 6,
            "micro_batch": 3,
            "lr": 3e-3,
            "warmup_steps": 2,
            "cache_frames": 4,
            "output": folder / "trained.safetensors",
            "storage": str(folder / "storage"),
            "mlflow": False,
        }
        return TrainConfig.model_validate({**values, **options})

    return make


@pytest.fixture(scope="session")
def train():
    """Trains; returns what the training returned and what it printed."""

    def run(config: TrainConfig) -> tuple[TrainResult, str]:
        said = io.StringIO()
        return run_training(config, Console(file=said, width=200)), said.getvalue()

    return run


@pytest.fixture(scope="session")
def finished_training(ray_cluster, train, tiny_training, broken_manifest) -> tuple[TrainConfig, TrainResult, str]:
    """One training in processes of its own, with all that happens on the way, and what it printed."""
    config = tiny_training(
        name="mine",
        steps=30,
        checkpoint_steps=10,
        cache_frames=0,
        decode_workers=1,
        validation=str(broken_manifest),
        validation_epochs=5.0,
        average_from=10.0,
    )
    return config, *train(config)


@contextmanager
def _in_this_process() -> Iterator[None]:
    """Has Ray Train run its loop here (its local mode), which leaves a reported checkpoint where it was made.

    For what does not depend on processes, whose start takes longer than all steps.
    """
    kept_in = tempfile.TemporaryDirectory(prefix="zar-ray-")
    with probed_here(), pytest.MonkeyPatch.context() as patch, kept_in as folder:
        report = ray.train.report

        def keep(metrics, checkpoint=None, **more):
            kept = Path(folder) / f"step-{metrics['step']}"
            with checkpoint.as_directory() as made:
                shutil.copytree(made, kept, dirs_exist_ok=True)
            report(metrics, checkpoint=Checkpoint.from_directory(kept), **more)

        patch.setattr(ray.train, "report", keep)
        patch.setattr(training_job, "ScalingConfig", lambda num_workers, **rest: ScalingConfig(num_workers=0))
        threads = torch.get_num_threads()
        yield
        torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def in_this_process():
    """`with in_this_process(): train(...)` trains without processes of its own."""
    return _in_this_process
