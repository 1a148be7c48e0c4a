"""What a study multiplies: which models, settings and seeds its options name, and what is refused."""

from __future__ import annotations

import io
from contextlib import nullcontext
from pathlib import Path

import pytest
import ray
import torch
from rich.console import Console
from safetensors.torch import load_file

from zar_ray import cluster
from zar_ray.adaptation.methods import METHODS
from zar_ray.commands.parsing import parse_run
from zar_ray.errors import ConfigError, ManifestError, ModelError, RunError
from zar_ray.evaluation import capacity, pipeline
from zar_ray.models.checkpoints import read_checkpoint, save_checkpoint
from zar_ray.results.folder import RunFolder
from zar_ray.storage import Storage
from zar_ray.study.axes import axes_of, place_of, write_mixture
from zar_ray.study.options import AblateConfig, EvalConfig
from zar_ray.study.plan import describe, plan_study
from zar_ray.study.run import run_study

pytestmark = pytest.mark.usefixtures("probes_here")


@pytest.fixture
def other_checkpoint(tiny_checkpoint, tmp_path) -> Path:
    """The tiny model after some other training."""
    model = read_checkpoint(tiny_checkpoint)
    torch.manual_seed(1)
    tensors = {name: tensor + 0.1 * torch.randn_like(tensor) for name, tensor in model.tensors.items()}
    assert model.architecture is not None
    assert model.preprocessing is not None
    path = tmp_path / "models" / "other.safetensors"
    save_checkpoint(tensors, model.architecture, model.preprocessing, path)
    return path


@pytest.fixture
def options(video_folder, tiny_checkpoint, other_checkpoint, tmp_path) -> EvalConfig:
    """A study of mixtures."""
    return EvalConfig(
        dataset=str(video_folder),
        checkpoint=tiny_checkpoint,
        interpolate_with=other_checkpoint,
        alphas=(0.0, 0.25, 1.0),
        output=str(tmp_path / "runs"),
    )


def plan(options: EvalConfig):
    return plan_study(options, Console(file=io.StringIO()))


def test_the_folder_of_a_long_study_has_a_name_that_file_systems_take(options, tmp_path):
    long = {"method": tuple(METHODS), "seeds": tuple(range(60)), "interpolate_with": None, "alphas": ()}
    seeds = ((*range(60),), (*range(59), 99), (*range(2),))
    names = [str(plan(options.model_copy(update={**long, "seeds": one})).options.name) for one in seeds]
    for name in {*names}:
        RunFolder(Storage(str(tmp_path / "runs" / name))).write_json("run.json", {})
    assert len({*names}) == 3
    assert plan(options.model_copy(update={**long, "seeds": seeds[0]})).options.name == names[0]
    assert names[0].startswith("videos")


def test_a_study_of_one_cell_is_an_evaluation(video_folder, tmp_path):
    options = EvalConfig(dataset=str(video_folder), output=str(tmp_path))
    study = plan(options)
    assert study.axes.names == ()
    (asked,) = study.asked()
    (own,) = asked.settings
    assert own == study.options
    assert study.options.name == f"{video_folder.name}_ViT-B-16-quickgelu-openai_zero_shot+zar_seed0"


def test_each_model_is_what_it_would_be_alone(video_folder):
    words = ["--dataset", str(video_folder), "--method", "zero_shot", "zar"]
    words += ["--model", "ViT-B-16-quickgelu", "ViT-L-14:laion2b", "some/k400.pt"]
    options = parse_run(EvalConfig, words, "zar eval").options
    assert options.models == ("ViT-B-16-quickgelu", "ViT-L-14:laion2b", "some/k400.pt")
    study = plan(options)
    assert [one.label for one in study.asked()] == ["ViT-B-16-quickgelu", "ViT-L-14:laion2b", "k400"]
    own = [one.settings[0] for one in study.asked()]
    assert [(one.model, one.pretrained, one.checkpoint) for one in own] == [
        ("ViT-B-16-quickgelu", "openai", None),
        ("ViT-L-14", "laion2b", None),
        ("ViT-B-16-quickgelu", "openai", Path("some/k400.pt").absolute()),
    ]
    assert study.axes.names == ("model",)
    alone = parse_run(EvalConfig, ["--model", "ViT-L-14", "--dataset", "x"], "zar eval").options
    assert (alone.model, alone.models) == ("ViT-L-14", ())


def test_files_of_one_name_are_told_by_their_places():
    axes = axes_of(EvalConfig(dataset="x", models=("a/x.pt", "b/x.pt")))
    assert [one.label for one in axes.models] == ["a/x.pt", "b/x.pt"]


def test_models_that_describe_themselves_keep_their_colons():
    names = ("RN50:openai", "hf-hub:org/name", "local-dir:/folder/x")
    updates = [one.update for one in axes_of(EvalConfig(models=names, pretrained="tag")).models]
    assert [one["model"] for one in updates] == ["RN50", *names[1:]]
    assert [one["pretrained"] for one in updates] == ["openai", "tag", "tag"]


def test_axes_multiply(options, tiny_checkpoint, tmp_path):
    sweep = tmp_path / "own.yaml"
    sweep.write_text("title: Confidence\ngrid: {zar.confidence: [0.8, 0.5, 0.2]}\n")
    update = {"sweep": (str(sweep),), "seeds": (3, 4), "checkpoint": None, "models": ("A", str(tiny_checkpoint))}
    study = plan(options.model_copy(update={**update, "pretrained": "openai"}))
    assert study.axes.names == ("model", "share", "setting", "seed")
    asked = study.asked()
    assert [one.label for one in asked][:3] == ["A, share 0", "A, share 0.25", "A, share 1"]
    assert (len(asked), {len(one.settings) for one in asked}) == (6, {6})
    cells = {(one.checkpoint, one.zar.confidence, one.seed) for model in asked for one in model.settings}
    assert len(cells) == 36
    assert {(confidence, seed) for _, confidence, seed in cells} == {(c, s) for c in (0.8, 0.5, 0.2) for s in (3, 4)}
    for model in asked:
        for one in model.settings:
            assert (one.models, one.seeds, one.sweep, one.alphas, one.interpolate_with) == ((), (), (), (), None)
    said = describe(study).splitlines()
    assert "cells     36" in said
    assert "seeds     3, 4" in said
    assert "sweeps    own (3 settings): 3 distinct settings in one pass" in said


def test_another_axis_is_another_run(options):
    names = {
        plan(options.model_copy(update=update)).options.name
        for update in ({}, {"alphas": (), "interpolate_with": None}, {"seeds": (0, 1)}, {"sweep": ("lr",)}, {"seed": 1})
    }
    assert len(names) == 5


@pytest.mark.parametrize(
    ("update", "kind", "message"),
    [
        ({"interpolate_with": None}, ConfigError, "--alphas: name the checkpoint .* --interpolate-with FILE"),
        ({"alphas": ()}, ConfigError, "--interpolate-with: give its shares, such as --alphas 0 0.25"),
        ({"alphas": (0.5, 0.5)}, ConfigError, "--alphas 0.5 0.5: names an alpha twice"),
        ({"interpolate_with": Path("gone.safetensors")}, ModelError, r"gone\.safetensors: no such checkpoint file"),
        ({"dataset": "nowhere"}, ManifestError, 'no dataset "nowhere"'),
        ({"models": ("a", "a"), "checkpoint": None}, ConfigError, "--model a a: names a model twice"),
        ({"models": ("a", "b")}, ConfigError, "name its file among --model a b"),
        ({"seeds": (1, 1)}, ConfigError, "--seeds 1 1: names a seed twice"),
        ({"sweep": ("lr", "lr")}, ConfigError, "names a sweep twice"),
        ({"sweep": ("confidance",)}, ConfigError, 'did you mean "confidence"'),
        ({"method": ("zar", "zar")}, ConfigError, "names a method twice"),
    ],
)
def test_mistakes_are_one_line_before_anything_is_written(options, tmp_path, update, kind, message):
    with pytest.raises(kind, match=message) as caught:
        plan(options.model_copy(update=update))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("named", [{"checkpoint": Path("gone.pt")}, {"models": ("gone.pt",), "checkpoint": None}])
def test_a_checkpoint_that_is_not_there_is_told_before_ray_is_started(options, tmp_path, monkeypatch, named):
    def start(place):
        raise AssertionError(f"{place} is started or joined")

    monkeypatch.setattr(cluster, "_join_or_start", start)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with pytest.raises(ModelError, match=r"gone\.pt: no such checkpoint file"):
        run_study(
            options.model_copy(update={"address": "local", "interpolate_with": None, "alphas": (), **named}),
            Console(file=io.StringIO()),
        )
    assert not (tmp_path / "runs").exists()


class AskedError(Exception):
    """What a run asks a cluster for."""


@pytest.mark.parametrize(
    ("update", "most"),
    [
        ({"batch_size": 5}, 3),
        ({"batch_size": 6}, 2),
        ({"batch_size": 20}, 1),
        ({"batch_size": 5, "method": ("tda",)}, 1),
    ],
)
def test_a_run_of_twelve_videos_asks_for_no_more_replicas_than_it_has_work_for(options, monkeypatch, update, most):
    def room_for(own, console, most):
        raise AskedError(most)

    monkeypatch.setattr(pipeline, "connected", lambda address: nullcontext())
    monkeypatch.setattr(capacity, "room_for", room_for)
    own = options.model_copy(update={"address": "local", "interpolate_with": None, "alphas": (), **update})
    with pytest.raises(AskedError) as asked:
        run_study(own, Console(file=io.StringIO()))
    assert asked.value.args == (most,)


def test_a_sweep_of_seeds_and_seeds_contradict_each_other(options, tmp_path):
    sweep = tmp_path / "own.yaml"
    sweep.write_text("title: Seeds\ngrid: {seed: [1, 2]}\n")
    with pytest.raises(ConfigError, match="sweep own varies the seed already"):
        plan(options.model_copy(update={"sweep": (str(sweep),), "seeds": (1, 2)}))
    assert [one.seed for one in plan(options.model_copy(update={"sweep": (str(sweep),)})).asked()[0].settings] == [
        0,
        1,
        2,
    ]


def test_mixtures_are_shares_of_both(options, tiny_checkpoint, other_checkpoint):
    first, second = load_file(tiny_checkpoint), load_file(other_checkpoint)
    study = plan(options)
    for choice, model in zip(study.axes.models, study.asked(), strict=True):
        target = place_of(choice.mixture, study.options.output)
        assert model.settings[0].checkpoint == target
        assert target.name == f"tiny+other-alpha{choice.mixture.share:g}.safetensors"
        for _ in range(2):  # one that is there is written anew
            write_mixture(choice.mixture, target)
        mixed, share = load_file(target), choice.mixture.share
        for name in first:
            expected = (1 - share) * first[name].double() + share * second[name].double()
            assert torch.allclose(mixed[name].double(), expected, atol=1e-6), name
    assert len(list(target.parent.iterdir())) == 3


def test_a_mixture_that_cannot_be_written_is_one_line(options, tmp_path):
    (tmp_path / "runs").write_text("a file where the folder should be")
    choice = axes_of(options).models[0]
    with pytest.raises(RunError, match=r"alpha0\.safetensors: cannot be written \(Not a directory\)"):
        write_mixture(choice.mixture, place_of(choice.mixture, options.output))


def test_an_ablation_is_a_study_with_zar_alone():
    assert AblateConfig(sweep=("lr",)).method == ("zar",)
    assert set(AblateConfig.model_fields) == set(EvalConfig.model_fields)


def test_corruptions_multiply_with_the_models(options, tiny_checkpoint):
    given = ("rain:2", "clean", "h265:5")
    study = plan(options.model_copy(update={"corruption": given, "seeds": (3, 4)}))
    assert study.axes.names == ("share", "corruption", "seed")
    asked = study.asked()
    assert [one.label for one in asked] == [f"tiny, share {share}" for share in ("0", "0.25", "1") for _ in given]
    assert [one.settings[0].corruption for one in asked[:3]] == [("rain:2",), (), ("h265:5",)]
    assert {one.mixture for one in study.axes.models} == {one.mixture for one in study.axes.models[::3]}
    assert [one.coordinates["corruption"] for one in study.axes.models[:3]] == list(given)
    said = describe(study).splitlines()
    assert "frames    rain:2, clean, h265:5" in said
    assert "cells     18" in said
    assert str(study.options.name) == study.options.name != plan(options).options.name
    single = plan(options.model_copy(update={"alphas": (), "interpolate_with": None, "corruption": ("rain:1",)}))
    assert single.axes.names == ()
    assert f"model     {tiny_checkpoint}" in describe(single).splitlines()


@pytest.mark.parametrize(
    ("update", "message"),
    [
        ({"corruption": ("rain:1", "rain:1")}, "--corruption rain:1 rain:1: names a corruption twice"),
        ({"corruption": ("clean", "rainy:1")}, 'no corruption has this name; did you mean "rain"'),
        (
            {"corruption_reference": "tpt"},
            "--corruption-reference tpt: is not among the methods that run",
        ),
    ],
)
def test_mistaken_corruptions_are_one_line(options, tmp_path, update, message):
    with pytest.raises(ConfigError, match=message) as caught:
        plan(options.model_copy(update=update))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "runs").exists()


def test_corruptions_are_read_from_the_command_line():
    words = ["--dataset", "x", "--corruption", "clean", "gaussian_noise:3", "--corruption-seed", "4"]
    given = parse_run(EvalConfig, words, "zar eval").options
    assert (given.corruption, given.corruption_seed) == (("clean", "gaussian_noise:3"), 4)
