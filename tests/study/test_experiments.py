"""Experiments over seeds: each is trained on its own draw, nothing is done twice, and the means are the field's.

Trainings and evaluations are stood in for, except in the last test, which runs the command.
"""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import miniatures
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from scipy import stats
from summaries import summary_of
from zar_ray.study.experiments import describe, run_experiment

from zar_ray.commands.main import main
from zar_ray.data.classes import class_list
from zar_ray.data.indexing import run_index
from zar_ray.data.manifest import Manifest, VideoRow, read_manifest, write_manifest
from zar_ray.data.options import IndexConfig
from zar_ray.errors import ConfigError, ManifestError, RunError
from zar_ray.models.architecture import build_clip
from zar_ray.models.checkpoints import save_checkpoint
from zar_ray.reporting.seed_means import seed_means, seed_notes, seed_table
from zar_ray.results.record import RunSummary
from zar_ray.study import experiments
from zar_ray.study.options import EvalConfig
from zar_ray.training.options import TrainConfig
from zar_ray.training.outputs import TrainResult
from zar_ray.video.transforms import Preprocessing

ARCHITECTURE = {
    "embed_dim": 8,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 8, "head_width": 8, "patch_size": 32},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 8, "heads": 1, "layers": 1},
}


@pytest.fixture
def config(tmp_path) -> TrainConfig:
    names = class_list("hmdb51")
    rows = [
        VideoRow(f"{name}/{number}.avi", f"/data/{name}/{number}.avi", label, name, "all", 6, width=32, height=24)
        for label, name in enumerate(names)
        for number in range(5)
    ]
    rows = [replace(row, splits=("test1",) if row.video_id.endswith("4.avi") else ("train1",)) for row in rows]
    write_manifest(Manifest.of(rows, names, "/data", "hmdb51"), tmp_path / "data" / "hmdb51" / "manifest.parquet")
    return TrainConfig(
        dataset="hmdb51",
        protocol="few_shot",
        shots=2,
        seeds=(1, 2, 3),
        frames=4,
        batch_size=8,
        output=tmp_path / "out" / "tiny.safetensors",
        storage=str(tmp_path / "storage"),
        data_root=tmp_path / "data",
        mlflow=False,
    )


class Bench:
    """Stands in for training and evaluation: keeps what it was asked for, and writes checkpoints with real notes."""

    def __init__(self) -> None:
        self.trained: list[TrainConfig] = []
        self.evaluated: list[EvalConfig] = []
        self.accuracies: dict[int, dict[tuple[str, str], float]] = {}
        self.stops_at: int | None = None
        self.model = build_clip(ARCHITECTURE)

    def train(self, config: TrainConfig, console: Console) -> TrainResult:
        if config.seed == self.stops_at:
            raise RunError("training stopped: out of memory; the same command continues it")
        self.trained.append(config)
        assert config.output is not None
        notes = {"name": config.output.stem, "training": config.model_dump(mode="json")}
        save_checkpoint(self.model, ARCHITECTURE, Preprocessing(input_size=32), config.output, notes)
        return TrainResult(config.output, 10, 1.0, 0.5, 0.75, "folder")

    def evaluate(self, options: EvalConfig, console: Console) -> RunSummary:
        self.evaluated.append(options)
        usual = {("1", method): 0.5 + 0.01 * options.seed for method in options.method}
        return summary_of(options.seed, self.accuracies.get(options.seed, usual))


@pytest.fixture
def bench(monkeypatch) -> Bench:
    bench = Bench()
    monkeypatch.setattr(experiments, "run_training", bench.train)
    monkeypatch.setattr(experiments, "run_evaluation", bench.evaluate)
    return bench


def run(config: TrainConfig):
    said = io.StringIO()
    return run_experiment(config, Console(file=said, width=200)), said.getvalue()


def test_every_seed_is_trained_on_its_own_draw_and_tested_on_the_same_split(config, bench, tmp_path):
    result, said = run(config)
    assert [one.seed for one in bench.trained] == [1, 2, 3]
    drawn = [read_manifest(str(one.dataset)) for one in bench.trained]
    assert [len(one) for one in drawn] == [2 * 51] * 3
    assert len({one.fingerprint() for one in drawn}) == 3
    assert all(row.memberships == ("train",) for row in drawn[0].rows())
    assert [one.output for one in bench.trained] == [tmp_path / "out" / f"tiny-seed{n}.safetensors" for n in (1, 2, 3)]
    for training, evaluation in zip(bench.trained, bench.evaluated, strict=True):
        assert (training.protocol, training.seeds) == ("standard", ())
        assert (evaluation.dataset, evaluation.split, evaluation.protocol) == ("hmdb51", "1", "standard")
        assert (evaluation.checkpoint, evaluation.seed) == (training.output, training.seed)
        assert (evaluation.views.eval_frames, evaluation.views.frames) == (4, 16)
        assert evaluation.method == ("zero_shot", "zar")
    assert len({one.name for one in bench.evaluated}) == 3

    (zar,) = (one for one in result.means if (one.method, one.metric) == ("zar", "top1"))
    assert (zar.mean, zar.std) == (pytest.approx(0.52), pytest.approx(0.01))
    assert "52.0 +/- 1.0" in said
    assert "n - 1" in said
    record = json.loads(Path(result.folder, "experiment.json").read_text())
    assert [one["seed"] for one in record["seeds"]] == [1, 2, 3]
    assert RunSummary.from_json(record["seeds"][0]["summary"]) == result.seeds[0].summary
    assert record["seeds"][0]["training"]["steps"] == 10
    assert record["mlflow"]["why_not"] == "not logged: switched off by --no-mlflow"


def test_base_to_novel_trains_on_base_and_evaluates_both(config, bench):
    bench.accuracies = {
        1: {("base", "zar"): 0.8, ("novel", "zar"): 0.4},
        2: {("base", "zar"): 0.6, ("novel", "zar"): 0.6},
    }
    config = config.model_copy(update={"protocol": "base_to_novel", "seeds": (1, 2), "method": ("zar",)})
    result, said = run(config)
    assert read_manifest(str(bench.trained[0].dataset)).class_names == class_list("hmdb51_base")
    for evaluation in bench.evaluated:
        assert (evaluation.dataset, evaluation.protocol, evaluation.split) == ("hmdb51", "base_to_novel", None)
        # As the benchmark's file has it, but with the seeds of the experiment and the frames of the training.
        assert (evaluation.views.frames, evaluation.views.eval_frames, evaluation.seeds) == (8, 4, ())
    (harmonic,) = (one for one in result.means if (one.split, one.metric) == ("harmonic", "top1"))
    assert harmonic.mean == pytest.approx(2 * 0.7 * 0.5 / 1.2)
    assert harmonic.values == pytest.approx((2 * 0.8 * 0.4 / 1.2, 0.6))
    assert "58.3 +/- 4.7" in said
    assert "is that of mean base and mean novel" in said


def test_the_same_command_trains_no_finished_seed_again(config, bench):
    run(config)
    result, said = run(config)
    assert len(bench.trained) == 3
    assert len(bench.evaluated) == 6
    assert bench.evaluated[3:] == bench.evaluated[:3]
    assert said.count("trained already") == 3
    assert result.seeds[0].training["accuracy"] == 0.75
    # One more seed is one more training; the others' records stay.
    run(config.model_copy(update={"seeds": (4,)}))
    assert [one.seed for one in bench.trained] == [1, 2, 3, 4]
    record = json.loads(Path(result.folder, "experiment.json").read_text())
    assert [one["seed"] for one in record["seeds"]] == [1, 2, 3, 4]


def test_an_experiment_that_was_stopped_goes_on(config, bench):
    bench.stops_at = 2
    with pytest.raises(RunError, match="out of memory"):
        run(config)
    bench.stops_at = None
    result, _ = run(config)
    assert [one.seed for one in bench.trained] == [1, 2, 3]
    assert len(result.seeds) == 3


def test_other_options_are_refused_with_the_difference(config, bench):
    run(config)
    other = config.model_copy(update={"lr": 0.5})
    with pytest.raises(
        RunError, match=r"tiny-seed1\.safetensors: was trained with other options \(lr: 8e-06 -> 0\.5\)"
    ):
        run(other)
    with pytest.raises(RunError, match="was trained with other options"):
        describe(other)
    named = config.model_copy(update={"name": "mine", "output": config.output.with_name("mine.safetensors")})
    run(named)
    with pytest.raises(RunError, match=r"mine: holds an experiment with other options \(lr: 8e-06 -> 0\.5\)"):
        run(named.model_copy(update={"lr": 0.5}))
    # What changes no number may change.
    run(named.model_copy(update={"decode_threads": 4}))
    assert len(bench.trained) == 6

    run(named.model_copy(update={"lr": 0.5, "overwrite": True}))
    assert [one.lr for one in bench.trained[6:]] == [0.5] * 3


def test_options_that_came_later_count_both_ways(config, bench):
    run(config.model_copy(update={"drop_path": 0.1}))
    with pytest.raises(RunError, match=r"was trained with other options \(drop_path: "):
        run(config)
    assert len(bench.trained) == 3


def test_a_foreign_file_is_not_taken_for_a_trained_one(config, bench, tiny_checkpoint):
    path = config.output.with_name("tiny-seed2.safetensors")
    path.parent.mkdir()
    for content in (b"mine", tiny_checkpoint.read_bytes()):
        path.write_bytes(content)
        with pytest.raises(RunError, match=r"tiny-seed2\.safetensors: is there, and nothing that zar train wrote"):
            run(config)
        assert path.read_bytes() == content
    assert bench.trained == []


def test_a_benchmark_that_was_indexed_anew_is_noticed(config, bench, tmp_path):
    run(config)
    place = tmp_path / "data" / "hmdb51" / "manifest.parquet"
    manifest = read_manifest(place)
    rows = [replace(row, video_id=f"new/{row.video_id}") for row in manifest.rows()]
    write_manifest(Manifest.of(rows, manifest.class_names, manifest.root, "hmdb51"), place)
    with pytest.raises(RunError, match=r"seed1\.parquet: the videos drawn with seed 1 were others"):
        run(config)


def test_a_learned_context_is_evaluated_with_its_base_model(config, bench):
    run(config.model_copy(update={"trains": "context", "context_vectors": 4}))
    for training, evaluation in zip(bench.trained, bench.evaluated, strict=True):
        assert (evaluation.context, evaluation.checkpoint) == (str(training.output), None)
        assert (evaluation.model, evaluation.pretrained) == (config.model, config.pretrained)


@pytest.mark.parametrize(
    ("update", "kind", "message"),
    [
        ({"seeds": ()}, ConfigError, "few_shot: say which seeds .* --seeds 1 2 3"),
        ({"seeds": (1, 1)}, ConfigError, "--seeds 1 1: names a seed twice"),
        ({"dataset": None}, ConfigError, "say which benchmark with --dataset"),
        ({"dataset": "hmbd51"}, ConfigError, 'no benchmark "hmbd51"; did you mean "hmdb51"'),
        ({"dataset": "k600"}, ConfigError, "--protocol few_shot: k600 has no training videos"),
        ({"dataset": "k600", "protocol": "base_to_novel"}, ConfigError, "--protocol base_to_novel: k600 has none"),
        ({"dataset": "ucf101"}, ManifestError, 'ucf101: no manifest at .* make one with "zar data index ucf101'),
        ({"split": "4"}, ConfigError, 'hmdb51: no split "4"'),
        ({"split": "base", "protocol": "base_to_novel"}, ConfigError, "--split base: --protocol base_to_novel trains"),
        ({"shots": 5}, ManifestError, "51 of 51 classes have fewer than 5 usable videos in train1"),
        ({"output": None}, ConfigError, r"--output FILE\.safetensors"),
        ({"method": ("zero",)}, ConfigError, "zero"),
        ({"method": ("zar", "zar")}, ConfigError, "names a method twice"),
    ],
)
def test_mistakes_are_one_line_before_anything_starts(config, bench, update, kind, message):
    for function in (describe, run):
        with pytest.raises(kind, match=message) as caught:
            function(config.model_copy(update=update))
        assert "\n" not in str(caught.value)
    assert bench.trained == []
    assert not Path(config.storage).exists()


def test_overwriting_deletes_nothing_before_everything_is_checked(config, bench):
    result, _ = run(config)
    with pytest.raises(ManifestError, match="fewer than 5"):
        run(config.model_copy(update={"shots": 5, "overwrite": True, "name": Path(result.folder).name}))
    assert Path(result.folder, "experiment.json").exists()
    Path(result.folder).with_name("other").mkdir()
    Path(result.folder).with_name("other").joinpath("mine.txt").write_text("mine")
    with pytest.raises(RunError, match="holds files that are not an experiment's"):
        run(config.model_copy(update={"overwrite": True, "name": "other"}))


def test_a_dry_run_says_what_would_be_done(config, bench, capsys, tmp_path):
    run(config.model_copy(update={"seeds": (2,)}))
    words = ["--dataset", "hmdb51", "--protocol", "few_shot", "--shots", "2", "--seeds", "1", "2", "--frames", "4"]
    words += ["--batch-size", "8", "--output", str(config.output), "--storage", str(config.storage)]
    assert main(["train", *words, "--data-root", str(tmp_path / "data"), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "few-shot, HMDB51, 2 shots, seeds 1, 2" in said
    assert "102 videos of 51 classes a seed" in said
    assert "trained already: seed 2" in said
    assert "tiny-seed1.safetensors" in said
    assert len(bench.trained) == 1


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)), min_size=2, max_size=6))
def test_means_are_those_of_textbooks(pairs):
    runs = [
        summary_of(seed, {("base", "zar"): base, ("novel", "zar"): novel}) for seed, (base, novel) in enumerate(pairs)
    ]
    means = {(one.split, one.metric): one for one in seed_means(runs, harmonic=True)}
    for place, split in enumerate(("base", "novel")):
        values = np.array([pair[place] for pair in pairs])
        one = means[split, "top1"]
        assert one.mean == pytest.approx(values.mean())
        assert one.std == pytest.approx(values.std(ddof=1), abs=1e-12)
        reach = stats.t(len(values) - 1).ppf(0.975) * stats.sem(values)
        assert (one.low, one.high) == pytest.approx((values.mean() - reach, values.mean() + reach))
    base, novel = (means[split, "top1"].mean for split in ("base", "novel"))
    harmonic = means["harmonic", "top1"]
    assert harmonic.mean == pytest.approx(2 * base * novel / (base + novel))
    # The harmonic mean is concave, so that of the means is at least the mean of the seeds' own.
    assert harmonic.mean >= np.mean(harmonic.values) - 1e-12
    table = seed_table(range(len(runs)), runs, list(means.values()))
    assert {len(row) for row in table} == {5}
    assert len(table) == 1 + len(runs) + 1


def test_one_seed_has_no_deviation():
    runs = [summary_of(1, {("1", "zar"): 0.5})]
    (top1, *_) = seed_means(runs, harmonic=False)
    assert (top1.mean, top1.std, top1.low, top1.high) == (0.5, None, None, None)
    assert seed_table((1,), runs, [top1])[-1] == ("", "mean", "50.0")
    assert seed_notes(runs, [top1]) == ["1 seed, videos a seed: 40 of 1. A seed's interval is over its videos."]


@pytest.mark.slow
def test_the_command_trains_evaluates_and_logs(ray_cluster, tiny_checkpoint, make_video, tmp_path, capsys):
    from mlflow import MlflowClient

    root = tmp_path / "hmdb51"

    def put(path: Path, number: int) -> None:
        make_video(path.with_suffix(".mp4"), frames=4, width=48, height=32, seed=number)
        path.with_suffix(".mp4").rename(path)

    present = miniatures.hmdb51(root, put)
    for number, name in enumerate(class_list("hmdb51")):
        if name not in present:
            folder = name.replace(" ", "_")
            put(root / "hmdb51_org" / folder / f"film_{folder}_u_nm_np1_fr_med_0.avi", number)
    run_index(
        IndexConfig(source="hmdb51", root=root, data_root=tmp_path, workers=1, available_only=True),
        Console(file=io.StringIO()),
    )
    words = ["--dataset", "hmdb51", "--protocol", "few_shot", "--shots", "1", "--seeds", "1"]
    words += ["--checkpoint", str(tiny_checkpoint), "--frames", "1", "--batch-size", "4", "--steps", "2"]
    words += ["--warmup-steps", "0", "--method", "zero_shot", "--data-root", str(tmp_path)]
    words += ["--storage", str(tmp_path / "storage"), "--output", str(tmp_path / "few.safetensors"), "--name", "few"]
    assert main(["train", *words]) == 0, capsys.readouterr().err
    said = capsys.readouterr().out
    assert "1 seed, videos a seed: 3 of 1." in said
    record = json.loads((tmp_path / "storage" / "few" / "experiment.json").read_text())
    assert [one["training"]["steps"] for one in record["seeds"]] == [2]
    assert (tmp_path / "few-seed1.safetensors").is_file()

    # What a training really notes in its file is what the plan compares with.
    assert main(["train", *words, "--dry-run"]) == 0
    assert "trained already: seed 1" in capsys.readouterr().out

    client = MlflowClient(f"sqlite:///{tmp_path}/storage/mlflow.db")
    parent = client.get_run(record["mlflow"]["run_id"])
    assert parent.data.metrics["1/zero_shot/top1_mean"] == record["means"][0]["mean"]
    children = client.search_runs([parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
    assert sorted(child.data.tags["seed"] for child in children) == ["1", "1"]
    training, evaluation = sorted(children, key=lambda child: "kind" not in child.data.tags)
    assert training.data.tags["kind"] == "training"
    assert {"train/loss", "train/gradient_norm", "train/data_wait_share"} <= training.data.metrics.keys()
    assert evaluation.data.metrics["zero_shot/top1"] == record["means"][0]["mean"]
