"""A sweep over alpha: every mixture is a run of its own, and the best is named with its caveat alone."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from summaries import summary_of
from zar_ray.study.alphas import Score, run_alphas

from zar_ray.commands.main import main
from zar_ray.errors import ConfigError, ManifestError, ModelError, RunError
from zar_ray.models.checkpoints import read_checkpoint, save_checkpoint
from zar_ray.results.record import ProtocolAverage
from zar_ray.study import alphas
from zar_ray.study.options import EvalConfig


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
    return EvalConfig.model_validate(
        {
            "dataset": str(video_folder),
            "checkpoint": tiny_checkpoint,
            "interpolate_with": other_checkpoint,
            "alphas": (0.0, 0.25, 1.0),
            "method": ("zero_shot",),
            "views": {"frames": 2, "eval_frames": 2},
            "output": str(tmp_path / "runs"),
            "mlflow": False,
        }
    )


class Runs:
    """Stands in for the evaluation: keeps what it was asked for, and answers with summaries."""

    def __init__(self) -> None:
        self.asked: list[EvalConfig] = []
        self.zar: list[float | None] = [0.4, 0.6, 0.5]
        self.averages: tuple[ProtocolAverage, ...] = ()

    def __call__(self, options: EvalConfig, console: Console):
        zar = self.zar[len(self.asked) % 3]
        self.asked.append(options)
        scores = {("all", "zero_shot"): None if zar is None else 0.25, ("all", "zar"): zar}
        return tuple(summary_of(seed, scores, self.averages) for seed in options.seeds or (options.seed,))


@pytest.fixture
def runs(monkeypatch) -> Runs:
    runs = Runs()
    monkeypatch.setattr(alphas, "run_seeds", runs)
    return runs


def sweep(options: EvalConfig):
    said = io.StringIO()
    return run_alphas(options, Console(file=said, width=200)), said.getvalue()


def test_each_alpha_is_a_run_of_its_mixture(options, runs, tiny_checkpoint, other_checkpoint):
    results, said = sweep(options)
    first, second = load_file(tiny_checkpoint), load_file(other_checkpoint)
    assert [one.alpha for one in results] == [0.0, 0.25, 1.0]
    for one, asked in zip(results, runs.asked, strict=True):
        assert (asked.checkpoint, asked.alphas, asked.interpolate_with) == (one.checkpoint, (), None)
        assert one.checkpoint.name == f"tiny+other-alpha{one.alpha:g}.safetensors"
        mixed = load_file(one.checkpoint)
        for name in first:
            expected = (1 - one.alpha) * first[name].double() + one.alpha * second[name].double()
            assert torch.allclose(mixed[name].double(), expected, atol=1e-6), name
    folder = results[0].checkpoint.parent
    assert sorted(path.name for path in folder.iterdir()) == sorted(one.checkpoint.name for one in results)

    assert "zar at alpha 0.25. That is chosen on the very videos it is measured on" in said
    (row,) = (line for line in said.splitlines() if line.startswith("0.25 "))
    assert row.split("  ")[-1].strip() == "60.0 [55.0, 65.0]"
    record = json.loads((folder.parent / "alphas.json").read_text())
    assert [one["alpha"] for one in record["alphas"]] == [0.0, 0.25, 1.0]
    assert record["alphas"][1]["scores"][1]["value"] == 0.6


def test_a_sweep_goes_on_and_takes_the_sources_as_they_are_now(options, runs, other_checkpoint, tiny_checkpoint):
    before, _ = sweep(options)
    weights = load_file(before[-1].checkpoint)
    again = load_file(sweep(options)[0][-1].checkpoint)
    assert all(torch.equal(again[name], weights[name]) for name in weights)
    other_checkpoint.write_bytes(tiny_checkpoint.read_bytes())
    after, _ = sweep(options)
    assert after[-1].checkpoint == before[-1].checkpoint
    changed, first = load_file(after[-1].checkpoint), load_file(tiny_checkpoint)
    assert all(torch.equal(changed[name], first[name]) for name in first)


def test_names_and_seeds_go_to_the_runs(options, runs):
    results, said = sweep(options.model_copy(update={"name": "mine", "seeds": (0, 1)}))
    assert [one.name for one in runs.asked] == ["mine_alpha0", "mine_alpha0.25", "mine_alpha1"]
    assert [len(one.runs) for one in results] == [2, 2, 2]
    assert "over 2 seeds (n - 1 in its denominator)" in said
    assert "+/-" in said
    assert results[0].checkpoint.parent.parent.name == "mine_alphas"


def test_averages_over_splits_have_a_table_of_their_own(options, runs):
    runs.averages = (ProtocolAverage("zar", "top1", "harmonic", 0.4321, None, ("base", "novel")),)
    _, said = sweep(options)
    assert "harmonic mean" in said
    assert "43.2" in said
    assert "zar on harmonic mean at alpha 0" in said


def test_unlabelled_videos_have_no_best(options, runs):
    runs.zar = [None] * 3
    _, said = sweep(options)
    assert "no accuracies" in said
    assert "Highest" not in said


def test_a_score_shows_what_it_has():
    assert Score(0.5, 0.4, 0.625).shown() == "50.0 [40.0, 62.5]"
    assert Score(0.5, std=0.01).shown() == "50.0 +/- 1.0"
    assert Score(0.5).shown() == "50.0"


@pytest.mark.parametrize(
    ("update", "kind", "message"),
    [
        ({"interpolate_with": None}, ConfigError, "--alphas: name the checkpoint .* --interpolate-with FILE"),
        ({"alphas": ()}, ConfigError, "--interpolate-with: give its shares, such as --alphas 0 0.25"),
        ({"alphas": (0.5, 0.5)}, ConfigError, "--alphas 0.5 0.5: names an alpha twice"),
        ({"interpolate_with": Path("gone.safetensors")}, ModelError, r"gone\.safetensors: no such checkpoint file"),
        ({"dataset": "nowhere"}, ManifestError, 'no dataset "nowhere"'),
        ({"checkpoint": None, "pretrained": "random"}, ModelError, "random"),
    ],
)
def test_mistakes_are_one_line_before_anything_is_written(options, runs, tmp_path, update, kind, message):
    with pytest.raises(kind, match=message) as caught:
        sweep(options.model_copy(update=update))
    assert "\n" not in str(caught.value)
    assert runs.asked == []
    assert not list((tmp_path / "runs").rglob("*.safetensors"))


def test_a_place_that_cannot_be_written_is_one_line(options, runs, tmp_path):
    (tmp_path / "runs").write_text("a file where the folder should be")
    with pytest.raises(RunError, match=r"alpha0\.safetensors: cannot be written \(Not a directory\)"):
        sweep(options)


@pytest.mark.slow
def test_the_command_evaluates_logs_and_compares(ray_cluster, options, tmp_path, capsys):
    from mlflow import MlflowClient

    words = ["--dataset", options.dataset, "--checkpoint", str(options.checkpoint), "--method", "zero_shot"]
    words += ["--interpolate-with", str(options.interpolate_with), "--alphas", "0", "0.5"]
    words += ["--views.frames", "2", "--views.eval-frames", "2", "--output", options.output]
    assert main(["eval", *words, "--dry-run"]) == 0
    assert "alphas    0, 0.5: shares of" in capsys.readouterr().out
    assert main(["eval", *words]) == 0, capsys.readouterr().err
    assert "Highest: zero_shot at alpha" in capsys.readouterr().out

    client = MlflowClient(f"sqlite:///{options.output}/mlflow.db")
    experiment = client.get_experiment_by_name("zar-ray")
    (parent,) = client.search_runs([experiment.experiment_id], "tags.kind = 'alphas'")
    children = client.search_runs(
        [experiment.experiment_id], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'", order_by=["tags.alpha"]
    )
    assert [child.data.tags["alpha"] for child in children] == ["0", "0.5"]
    curve = {point.step: point.value for point in client.get_metric_history(parent.info.run_id, "zero_shot/accuracy")}
    assert curve == {0: children[0].data.metrics["zero_shot/top1"], 500: children[1].data.metrics["zero_shot/top1"]}
    assert children[0].data.metrics.keys() == children[1].data.metrics.keys()
