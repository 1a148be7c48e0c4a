"""Experiments: each training has its own draw, nothing is trained twice, and one study evaluates all models.

Trainings and the study are stood in for, except in the last test, which runs the command.
"""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import miniatures
import pytest
from object_store import object_store
from rich.console import Console

from zar_ray.adaptation.methods import METHODS
from zar_ray.commands.main import main
from zar_ray.data.classes import class_list
from zar_ray.data.index import run_index
from zar_ray.data.manifest import Manifest, VideoRow, read_manifest, write_manifest
from zar_ray.data.options import IndexConfig
from zar_ray.errors import ConfigError, ManifestError, RunError
from zar_ray.models.architecture import build_clip
from zar_ray.models.checkpoints import save_checkpoint
from zar_ray.options.places import file_of
from zar_ray.results.study_record import StudyRecord
from zar_ray.study import few_shot
from zar_ray.study.axes import ModelChoice
from zar_ray.study.few_shot import describe, run_experiment
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
        shots=(2,),
        seeds=(1, 2, 3),
        frames=4,
        batch_size=8,
        output=tmp_path / "out" / "tiny.safetensors",
        storage=str(tmp_path / "storage"),
        data_root=tmp_path / "data",
        mlflow=False,
    )


class Bench:
    """Stands in for training and the study: keeps what it was asked for, and writes checkpoints with real notes."""

    def __init__(self) -> None:
        self.trained: list[TrainConfig] = []
        self.evaluated: list[tuple[EvalConfig, list[ModelChoice]]] = []
        self.stops_at: int | None = None
        self.model = build_clip(ARCHITECTURE)

    def train(self, config: TrainConfig, console: Console) -> TrainResult:
        if config.seed == self.stops_at:
            raise RunError("training stopped: out of memory; the same command continues it")
        self.trained.append(config)
        assert config.output is not None
        notes = {"name": config.output.stem, "training": config.model_dump(mode="json")}
        save_checkpoint(self.model, ARCHITECTURE, Preprocessing(input_size=32), config.output, notes)
        return TrainResult(config.output, 10, 0.5, 0.75, "folder")

    def study(self, options: EvalConfig, console: Console, models: list[ModelChoice]) -> str:
        self.evaluated.append((options, models))
        return "the record"


@pytest.fixture
def bench(monkeypatch) -> Bench:
    bench = Bench()
    monkeypatch.setattr(few_shot, "run_training", bench.train)
    monkeypatch.setattr(few_shot, "run_study", bench.study)
    return bench


def run(config: TrainConfig) -> str:
    said = io.StringIO()
    assert run_experiment(config, Console(file=said, width=200)) == "the record"
    return said.getvalue()


def folder_of(config: TrainConfig) -> Path:
    (folder,) = Path(str(config.storage)).iterdir()
    return folder


def test_every_seed_is_trained_on_its_own_draw_and_one_study_tests_all(config, bench, tmp_path):
    run(config)
    assert [one.seed for one in bench.trained] == [1, 2, 3]
    drawn = [read_manifest(str(one.dataset)) for one in bench.trained]
    assert [len(one) for one in drawn] == [2 * 51] * 3
    assert len({one.fingerprint() for one in drawn}) == 3
    assert all(row.memberships == ("train",) for row in drawn[0].rows())
    files = [tmp_path / "out" / f"tiny-2shot-seed{n}.safetensors" for n in (1, 2, 3)]
    assert [one.output for one in bench.trained] == files
    assert all((one.protocol, one.seeds) == ("standard", ()) for one in bench.trained)
    ((options, models),) = bench.evaluated
    assert (options.dataset, options.split, options.protocol) == ("hmdb51", "1", "standard")
    assert (options.views.eval_frames, options.views.frames) == (4, 16)
    assert (options.method, options.seeds) == (("zero_shot", "zar"), ())
    assert [one.update["checkpoint"] for one in models] == files
    assert [one.coordinates for one in models] == [
        {"model": "ViT-B-16-quickgelu", "shots": "2", "training seed": str(seed)} for seed in (1, 2, 3)
    ]


def test_shots_are_an_axis(config, bench):
    run(config.model_copy(update={"shots": (1, 2), "seeds": (1, 2)}))
    assert [len(read_manifest(str(one.dataset))) for one in bench.trained] == [51, 51, 102, 102]
    ((_, models),) = bench.evaluated
    assert [(one.coordinates["shots"], one.coordinates["training seed"]) for one in models] == [
        ("1", "1"),
        ("1", "2"),
        ("2", "1"),
        ("2", "2"),
    ]


def test_base_to_novel_trains_on_base_and_evaluates_both(config, bench):
    run(config.model_copy(update={"protocol": "base_to_novel", "seeds": (1, 2), "method": ("zar",)}))
    assert read_manifest(str(bench.trained[0].dataset)).class_names == class_list("hmdb51_base")
    ((options, _),) = bench.evaluated
    assert (options.dataset, options.protocol, options.split) == ("hmdb51", "base_to_novel", None)
    # As the benchmark's file has it, but with the frames of the training.
    assert (options.views.frames, options.views.eval_frames, options.seeds) == (8, 4, ())


def test_the_same_command_trains_no_finished_seed_again(config, bench):
    run(config)
    said = run(config)
    assert len(bench.trained) == 3
    assert bench.evaluated[0] == bench.evaluated[1]
    assert said.count("trained already") == 3
    # One more seed is one more training, and a study of its own.
    run(config.model_copy(update={"seeds": (1, 4)}))
    assert [one.seed for one in bench.trained] == [1, 2, 3, 4]
    assert len({options.name for options, _ in bench.evaluated}) == 2


@pytest.mark.process
def test_an_experiment_may_lie_in_a_bucket(config, bench, monkeypatch, tmp_path):
    there = {"storage": "s3://zar-bucket/few #1", "output": file_of("s3://zar-bucket/out/tiny.safetensors")}
    config = config.model_copy(update={**there, "seeds": (1, 2)})
    with object_store(monkeypatch, share=0.05, seed=3) as store:
        store.bucket("zar-bucket")
        run(config)
        assert run(config).count("trained already: s3://zar-bucket/out/tiny-2shot-seed") == 2
        assert [one.seed for one in bench.trained] == [1, 2]
        (options, models), again = bench.evaluated
        assert again == (options, models)
        assert options.output.startswith("s3://zar-bucket/few #1/few_shot-hmdb51-")
        assert [str(one.update["checkpoint"]) for one in models] == [str(one.output) for one in bench.trained]
        with pytest.raises(RunError, match=r"seed1\.safetensors: was trained with other options \(.*lr"):
            run(config.model_copy(update={"lr": 0.5}))
        store.put("zar-bucket", "out/tiny-2shot-seed1.safetensors", b"something else")
        with pytest.raises(RunError, match="is there, and nothing that zar train wrote"):
            run(config)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["data"]


def test_an_experiment_that_was_stopped_goes_on(config, bench):
    bench.stops_at = 2
    with pytest.raises(RunError, match="out of memory"):
        run(config)
    bench.stops_at = None
    run(config)
    assert [one.seed for one in bench.trained] == [1, 2, 3]
    assert len(bench.evaluated) == 1


def test_other_options_are_refused_with_the_difference(config, bench):
    run(config)
    other = config.model_copy(update={"lr": 0.5})
    with pytest.raises(
        RunError, match=r"tiny-2shot-seed1\.safetensors: was trained with other options \(lr: 8e-06 -> 0\.5\)"
    ):
        run(other)
    with pytest.raises(RunError, match="was trained with other options"):
        describe(other)
    named = config.model_copy(update={"name": "mine", "output": config.output.with_name("mine.safetensors")})
    run(named)
    with pytest.raises(RunError, match=r"mine-2shot-seed1\.safetensors: was trained with other options \(lr: "):
        run(named.model_copy(update={"lr": 0.5}))
    # What changes no number may change.
    run(named.model_copy(update={"decode_threads": 4}))
    assert len(bench.trained) == 6

    run(named.model_copy(update={"lr": 0.5, "overwrite": True}))
    assert [one.lr for one in bench.trained[6:]] == [0.5] * 3


def test_an_option_that_is_left_out_counts_too(config, bench):
    run(config.model_copy(update={"drop_path": 0.1}))
    with pytest.raises(RunError, match=r"was trained with other options \(drop_path: "):
        run(config)
    assert len(bench.trained) == 3


def test_a_foreign_file_is_not_taken_for_a_trained_one(config, bench, tiny_checkpoint):
    path = config.output.with_name("tiny-2shot-seed2.safetensors")
    path.parent.mkdir()
    for content in (b"mine", tiny_checkpoint.read_bytes()):
        path.write_bytes(content)
        with pytest.raises(
            RunError, match=r"tiny-2shot-seed2\.safetensors: is there, and nothing that zar train wrote"
        ):
            run(config)
        assert path.read_bytes() == content
    assert bench.trained == []


def test_a_benchmark_that_was_indexed_anew_is_noticed(config, bench, tmp_path):
    run(config)
    place = tmp_path / "data" / "hmdb51" / "manifest.parquet"
    manifest = read_manifest(place)
    rows = [replace(row, video_id=f"new/{row.video_id}") for row in manifest.rows()]
    write_manifest(Manifest.of(rows, manifest.class_names, manifest.root, "hmdb51"), place)
    with pytest.raises(RunError, match=r"2shot-seed1\.parquet: the videos drawn with seed 1 were others"):
        run(config)


def test_a_learned_context_is_evaluated_with_its_base_model(config, bench):
    run(config.model_copy(update={"trains": "context", "context_vectors": 4}))
    ((options, models),) = bench.evaluated
    assert [one.update for one in models] == [
        {"checkpoint": None, "context": str(training.output)} for training in bench.trained
    ]
    assert (options.model, options.pretrained) == (config.model, config.pretrained)


def test_many_methods_and_seeds_have_a_name_too(config, bench):
    run(config.model_copy(update={"method": tuple(METHODS), "seeds": tuple(range(1, 40))}))
    ((options, models),) = bench.evaluated
    assert len(models) == 39
    assert str(options.name).startswith("2shot_seeds1+2+3+")
    assert len(str(options.name)) <= 200


@pytest.mark.parametrize(
    ("update", "kind", "message"),
    [
        ({"seeds": ()}, ConfigError, "few_shot: say which seeds .* --seeds 1 2 3"),
        ({"seeds": (1, 1)}, ConfigError, "--seeds 1 1: names one twice"),
        ({"dataset": None}, ConfigError, "say which benchmark with --dataset"),
        ({"dataset": "hmbd51"}, ConfigError, 'no benchmark "hmbd51"; did you mean "hmdb51"'),
        ({"dataset": "k600"}, ConfigError, "--protocol few_shot: k600 has no training videos"),
        ({"dataset": "k600", "protocol": "base_to_novel"}, ConfigError, "--protocol base_to_novel: k600 has none"),
        ({"dataset": "ucf101"}, ManifestError, 'ucf101: no manifest at .* make one with "zar data index ucf101'),
        ({"split": "4"}, ConfigError, 'hmdb51: no split "4"'),
        ({"split": "base", "protocol": "base_to_novel"}, ConfigError, "--split base: --protocol base_to_novel trains"),
        ({"shots": (5,)}, ManifestError, "51 of 51 classes have fewer than 5 usable videos in train1"),
        ({"output": None}, ConfigError, r"--output FILE\.safetensors"),
        ({"method": ("nil",)}, ConfigError, "nil"),
        ({"method": ("zar", "zar")}, ConfigError, "names one twice"),
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
    run(config)
    folder = folder_of(config)
    with pytest.raises(ManifestError, match="fewer than 5"):
        run(config.model_copy(update={"shots": (5,), "overwrite": True, "name": folder.name}))
    assert (folder / "2shot-seed1.parquet").exists()
    folder.with_name("other").mkdir()
    folder.with_name("other").joinpath("mine.txt").write_text("mine")
    with pytest.raises(RunError, match=r"mine\.txt: is not an experiment's"):
        run(config.model_copy(update={"overwrite": True, "name": "other"}))


def test_a_dry_run_says_what_would_be_done(config, bench, capsys, tmp_path):
    run(config.model_copy(update={"seeds": (2,)}))
    words = ["--dataset", "hmdb51", "--protocol", "few_shot", "--shots", "2", "--seeds", "1", "2", "--frames", "4"]
    words += ["--batch-size", "8", "--output", str(config.output), "--storage", str(config.storage)]
    assert main(["train", *words, "--data-root", str(tmp_path / "data"), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "few-shot, HMDB51, 2 shots, seeds 1, 2" in said
    assert "102 videos a seed: 2 of each of 51 classes" in said
    assert "tiny-2shot-seed2.safetensors (trained already)" in said
    assert "tiny-2shot-seed1.safetensors" in said
    assert len(bench.trained) == 1


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
        IndexConfig(source="hmdb51", root=str(root), data_root=tmp_path, workers=1, available_only=True),
        Console(file=io.StringIO()),
    )
    words = ["--dataset", "hmdb51", "--protocol", "few_shot", "--shots", "1", "--seeds", "1"]
    words += ["--checkpoint", str(tiny_checkpoint), "--frames", "1", "--batch-size", "4", "--steps", "2"]
    words += ["--warmup-steps", "0", "--method", "zero_shot", "--data-root", str(tmp_path)]
    words += ["--storage", str(tmp_path / "storage"), "--output", str(tmp_path / "few.safetensors"), "--name", "few"]
    assert main(["train", *words]) == 0, capsys.readouterr().err
    said = capsys.readouterr().out
    file = tmp_path / "few-1shot-seed1.safetensors"
    assert file.is_file()
    (place,) = (tmp_path / "storage" / "few" / "runs").glob("*/run.json")
    record = StudyRecord.from_json(json.loads(place.read_text())["study"])
    assert record.whole.videos == 3
    assert str(place) in said

    # What a training really notes in its file is what the plan compares with.
    assert main(["train", *words, "--dry-run"]) == 0
    assert f"{file} (trained already)" in capsys.readouterr().out

    client = MlflowClient(f"sqlite:///{tmp_path}/storage/mlflow.db")
    parent = client.get_run(record.whole.mlflow.run_id)
    children = client.search_runs([parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
    training, evaluation = sorted(children, key=lambda child: "kind" not in child.data.tags)
    assert training.data.tags["kind"] == "training"
    assert {"train/loss", "train/gradient_norm", "train/data_wait_share"} <= training.data.metrics.keys()
    assert evaluation.data.metrics["top1"] == record.cells[0].summary.cases[0].headline.after.top1.value
