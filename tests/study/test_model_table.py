"""Several models in one pass: what each run is asked, what a worker does with shared decoding, what is printed."""

from __future__ import annotations

import io
from dataclasses import replace
from types import SimpleNamespace

import pyarrow as pa
import pytest
import torch
from rich.console import Console
from zar_ray.evaluation.adapt_stage import AdaptStage, ModelsStage, load_card
from zar_ray.evaluation.decode_stage import decode_block, decode_for_models
from zar_ray.study.model_table import Cell, ModelTable, describe_models, options_of_models, tables

from zar_ray.adaptation.adapter import make_cases
from zar_ray.adaptation.settings import Setting
from zar_ray.commands.parsing import parse_run
from zar_ray.data.class_texts import prompts_of
from zar_ray.data.index import index_folder
from zar_ray.data.protocols import whole_split
from zar_ray.errors import ConfigError
from zar_ray.evaluation import decode_stage
from zar_ray.evaluation.spec import MODELS, MODELS_SCHEMA, JobSpec
from zar_ray.evaluation.workload import Workload
from zar_ray.models.architecture import build_clip
from zar_ray.models.checkpoints import save_checkpoint
from zar_ray.results.folder import RunFolder
from zar_ray.results.rows import to_rows
from zar_ray.storage import Storage
from zar_ray.study import ablation
from zar_ray.study.options import AblateConfig, EvalConfig
from zar_ray.video.transforms import Preprocessing

LARGER = {
    "embed_dim": 24,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 48, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}


@pytest.fixture(scope="module")
def larger_checkpoint(tmp_path_factory):
    """A model of larger pictures than the tiny one's."""
    path = tmp_path_factory.mktemp("weights") / "larger.safetensors"
    torch.manual_seed(3)
    save_checkpoint(build_clip(LARGER), LARGER, Preprocessing(input_size=48, interpolation="bilinear"), path)
    return path


@pytest.fixture
def specs_of(video_folder, tmp_path):
    manifest = index_folder(video_folder)
    workload = Workload.of(manifest, [whole_split(manifest)])

    def make(name, *checkpoints):
        specs = []
        for checkpoint in checkpoints:
            options = EvalConfig.model_validate(
                {
                    "checkpoint": checkpoint,
                    "method": ("zero_shot", "zar", "tpt"),
                    "views": {"frames": 2, "eval_frames": 2, "views_per_rate": 1, "crops": 1},
                    "tpt": {"views": 3},
                    "device": "cpu",
                }
            )
            prompts = prompts_of(workload.class_sets, options)
            settings = (Setting(options, prompts),)
            card = load_card(options, settings)
            specs.append(
                JobSpec(
                    options=options,
                    model=card,
                    class_sets=workload.class_sets,
                    settings=settings,
                    multi_label=False,
                    cases=make_cases(options, card.fingerprint, prompts),
                    storage=Storage(str(tmp_path / name / checkpoint.stem)),
                    needs_views=True,
                    threads=1,
                )
            )
        return specs

    return workload, make


def with_models(videos: pa.Table, models) -> pa.Table:
    return videos.append_column(MODELS, pa.array(models, MODELS.type))


def results(spec):
    rows = to_rows(RunFolder(spec.storage).results())
    return {
        (row.video_id, row.method): (row.error, row.top5_scores_after, row.images, row.frames_decoded) for row in rows
    }


def test_a_shared_pass_gives_each_model_what_it_gets_alone(specs_of, tiny_checkpoint, larger_checkpoint, monkeypatch):
    workload, make = specs_of
    videos = workload.table().slice(0, 4)
    alone, shared = (
        make("alone", tiny_checkpoint, larger_checkpoint),
        make("shared", tiny_checkpoint, larger_checkpoint),
    )
    for spec in alone:
        AdaptStage(spec)(decode_block(videos, spec))
    decoded = []
    decode = decode_stage.decode_video
    monkeypatch.setattr(decode_stage, "decode_video", lambda *a, **k: decoded.append(a[0]) or decode(*a, **k))
    block = decode_for_models(with_models(videos, [[0, 1], [0, 1], [1], [0, 1]]), shared)
    assert block.schema.equals(MODELS_SCHEMA)
    assert len(decoded) == len(set(decoded)) == 4, "each video is decoded once"
    assert block["models"].to_pylist() == [[0], [1], [0], [1], [1], [0], [1]]
    status = ModelsStage(shared)(block)
    assert status["video_id"].to_pylist() == videos["video_id"].to_pylist()
    assert status["failed"].to_pylist() == [False] * 4
    skipped = videos["video_id"][2].as_py()
    for number, (one, other) in enumerate(zip(alone, shared, strict=True)):
        expected = {key: value for key, value in results(one).items() if number or key[0] != skipped}
        ours = results(other)
        assert ours.keys() == expected.keys()
        for key, (error, scores, *counts) in expected.items():
            assert error is None
            assert ours[key][1] == pytest.approx(scores, abs=1e-3)
            assert list(ours[key][2:]) == counts


def test_models_of_one_resize_share_the_pixels(specs_of, tiny_checkpoint):
    workload, make = specs_of
    block = decode_for_models(with_models(workload.table().slice(0, 1), [[0, 1]]), make("x", *[tiny_checkpoint] * 2))
    assert block["models"].to_pylist() == [[0, 1]]
    assert block["counted"].to_pylist() == [True]


def test_a_video_that_cannot_be_decoded_fails_for_every_model_that_lacks_it(
    specs_of, tiny_checkpoint, larger_checkpoint
):
    workload, make = specs_of
    specs, videos = make("x", tiny_checkpoint, larger_checkpoint), workload.table().slice(0, 1)
    gone = videos.set_column(videos.schema.get_field_index("path"), "path", pa.array(["/not/there.mp4"]))
    status = ModelsStage(specs)(decode_for_models(with_models(gone, [[0, 1]]), specs))
    assert status["failed"].to_pylist() == [True]
    for spec in specs:
        assert {error is not None for error, *_ in results(spec).values()} == {True}


class TestOptions:
    def test_each_model_is_a_run_as_if_it_were_alone(self):
        options = parse_run(
            EvalConfig,
            [
                "--dataset",
                "x",
                "--model",
                "ViT-B-16-quickgelu",
                "ViT-L-14:laion2b",
                "some/k400.pt",
                "--method",
                "zero_shot",
                "zar",
            ],
            "zar eval",
        ).options
        assert options.models == ("ViT-B-16-quickgelu", "ViT-L-14:laion2b", "some/k400.pt")
        runs = options_of_models(options)
        assert [(run.model, run.pretrained, str(run.checkpoint)) for run in runs] == [
            ("ViT-B-16-quickgelu", "openai", "None"),
            ("ViT-L-14", "laion2b", "None"),
            ("ViT-B-16-quickgelu", "openai", "some/k400.pt"),
        ]
        assert runs[0] == EvalConfig(dataset="x", method=("zero_shot", "zar"))
        assert [run.name for run in options_of_models(options.model_copy(update={"name": "t"}))] == [
            "t_ViT-B-16-quickgelu",
            "t_ViT-L-14-laion2b",
            "t_k400",
        ]

    def test_one_model_is_what_it_was(self):
        options = parse_run(EvalConfig, ["--model", "ViT-L-14", "--dataset", "x"], "zar eval").options
        assert (options.model, options.models) == ("ViT-L-14", ())

    @pytest.mark.parametrize(
        ("given", "reason"),
        [
            ({"models": ("a", "a")}, "names a model twice"),
            ({"seeds": (0, 1)}, "--seeds: does not go with several models"),
            ({"features": "x"}, "--features: does not go with several models"),
            ({"checkpoint": "x.pt"}, "--checkpoint: does not go with several models"),
            ({"alphas": (0.5,)}, "--alphas: does not go with several models"),
            ({"method": ("zar", "tda")}, "--method tda: a stream method has one model"),
        ],
    )
    def test_what_does_not_go_with_several_models_is_refused(self, given, reason):
        options = EvalConfig.model_validate({"dataset": "x", "models": ("a", "b"), **given})
        with pytest.raises(ConfigError, match=reason):
            options_of_models(options)

    def test_a_sweep_has_one_model(self):
        options = AblateConfig(dataset="x", sweep=("lr",), models=("a", "b"))
        with pytest.raises(ConfigError, match="takes one --model"):
            ablation.prepare(options, Console(file=io.StringIO()))

    def test_two_files_of_one_name_are_refused(self, video_folder, tmp_path):
        options = EvalConfig(dataset=str(video_folder), models=("a/x.pt", "b/x.pt"), output=str(tmp_path))
        with pytest.raises(ConfigError, match="two would have the same folder"):
            describe_models(options, Console(file=io.StringIO()))

    def test_what_would_run(self, video_folder, tmp_path):
        options = EvalConfig(dataset=str(video_folder), models=("A", "B:tag"), output=str(tmp_path), name="t")
        said = describe_models(options, Console(file=io.StringIO())).splitlines()
        assert "models    A, B:tag: each video decoded once for all" in said
        assert said[-3:] == [
            f"results   {tmp_path}/t_A",
            f"results   {tmp_path}/t_B-tag",
            f"table     {tmp_path}/t_models",
        ]


def test_the_tables_are_models_by_methods_and_costs():
    cell = Cell("A", "zar", "all", 0.5, 0.25, 0.75, 39.5, 0.125, 6460.0, 2_500_000, 12)
    cells = (
        cell,
        replace(cell, method="memo", gflops=None),
        replace(cell, model="B", accuracy=None),
        replace(cell, model="B", method="memo"),
    )
    runs = (SimpleNamespace(averages=()),) * 2
    (title, accuracies), (_, costs) = tables(ModelTable(("A", "B"), runs, cells, "x"))
    assert title == "accuracy % [95 % interval]"
    assert accuracies[0] == ("model", "zar", "memo")
    assert accuracies[1] == ("A", "50.0 [25.0, 75.0]", "50.0 [25.0, 75.0]")
    assert accuracies[2] == ("B", "-", "50.0 [25.0, 75.0]")
    assert costs[:3] == [
        ("model", "method", "images", "seconds", "GFLOPs", "peak MB"),
        ("A", "zar", "39.5", "0.125", "6,460", "2"),
        ("A", "memo", "39.5", "0.125", "-", "2"),
    ]
