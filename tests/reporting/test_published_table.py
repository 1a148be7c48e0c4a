"""Published numbers are kept as printed, and stand beside the right runs with every difference said."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import os
import re
import shlex
from collections.abc import Sequence

import open_clip
import pytest
from finished_runs import make_case, make_change, make_model_cost, make_record, make_summary_of, write_record
from rich.console import Console
from shipped import shipped_systems

from zar_ray.commands.parsing import parse_run
from zar_ray.data.datasets import load_benchmark
from zar_ray.errors import ConfigError, RunError
from zar_ray.evaluation.planning import at_one_short_side
from zar_ray.options.layers import validate
from zar_ray.reporting.blocks import Form, show
from zar_ray.reporting.published.matching import Measured, fill_command, training_commands
from zar_ray.reporting.published.tables import known_tables, load_table, read_table
from zar_ray.reporting.published.view import Cell, compare, report_table, table_blocks
from zar_ray.results.record import Costs, ModelCost, PairedComparison, ProtocolAverage
from zar_ray.results.study_record import find_runs
from zar_ray.study.axes import axes_of
from zar_ray.study.options import AblateConfig, EvalConfig
from zar_ray.study.plan import run_name
from zar_ray.study.sweeps import load_sweep, place_settings
from zar_ray.training.options import TrainConfig
from zar_ray.video.transforms import Preprocessing

OWN = make_model_cost()
TABLES = ("actionclip", "ezclip", "field", "zar-table1", "zar-table2", "zar-table3", "zar-table4", "zar-table5")


@pytest.fixture
def write_run(tmp_path):
    """Writes a finished run of a benchmark; `values` are the top-1 shares of its splits, or of the asked one."""
    count = 0

    def write(
        name: str,
        dataset: str,
        values: Sequence[float],
        method: str = "zar",
        *,
        before: float = 0.4,
        failed: int = 0,
        videos: int | None = None,
        random_weights: bool = False,
        model: str = "ViT-B-16-quickgelu",
        cost: ModelCost | None = OWN,
        change: PairedComparison | None = None,
        **options,
    ) -> None:
        nonlocal count
        count += 1
        benchmark = load_benchmark(dataset)
        defaults = {"dataset": dataset, "name": name, "method": (method,), **benchmark.options}
        config = validate(EvalConfig, {**defaults, **options}, name)
        specs = [spec for spec in benchmark.splits if config.split in (None, spec.name)]
        sizes = [videos or spec.count or 100 for spec in specs]
        cases = tuple(
            make_case(method, value, before=before, split=spec.name, videos=size, failed=failed, classes=51)
            for spec, value, size in zip(specs, values, sizes, strict=True)
        )
        averages = ()
        if len(specs) > 1:
            harmonic = "base2novel" in dataset
            value = 2 / sum(1 / one for one in values) if harmonic else sum(values) / len(values)
            kind, std = ("harmonic", None) if harmonic else ("mean", 0.005)
            splits = tuple(spec.name for spec in specs)
            averages = tuple(
                ProtocolAverage(method, metric, kind, number, std, splits, change if metric == "top1" else None)
                for metric, number in (("top1", value), ("top1_before", before), ("top5", value + 0.1))
            )
        folder = tmp_path / "runs" / name
        summary = make_summary_of(
            cases,
            folder,
            dataset=dataset,
            split=config.split,
            model=model,
            random_weights=random_weights,
            seed=config.seed,
            costs=Costs(None, None, 235.0, 70.0, None, None),
            averages=averages,
            model_cost=cost,
        )
        values = config.model_dump(mode="json")
        write_record(folder, make_record(summary, [values]), values)
        # Written within one tick of the clock, they would have no order.
        os.utime(folder / "run.json", (1_000_000 + count, 1_000_000 + count))

    return write


@pytest.fixture
def output(tmp_path):
    return str(tmp_path / "runs")


def cell(output: str, table: str, row: str, column: str) -> Cell:
    cells = compare(load_table(table), find_runs(output).runs)
    return next(one for one in cells if (one.row.label, one.column.name) == (row, column))


def measured(output: str, table: str, row: str, column: str) -> Measured:
    found = cell(output, table, row, column).measured
    assert found is not None
    return found


def differences(output: str, table: str, row: str, column: str) -> list[str]:
    return [
        text
        for text in measured(output, table, row, column).differences
        if not text.startswith("uses the right labels")
    ]


def reported(name: str, output: str, form: Form, width: int = 100, encoding: str = "utf-8") -> str:
    stream = io.BytesIO()
    text = io.TextIOWrapper(stream, encoding=encoding, newline="")
    report_table(name, output, form, Console(file=text, width=width), told_output=output)
    text.flush()
    return stream.getvalue().decode(encoding)


# what is kept


def test_every_table_is_there():
    assert known_tables() == TABLES


def test_every_published_number_is_kept_as_it_was_printed(shared):
    with (shared / "benchmarks" / "published.csv").open(encoding="utf-8", newline="") as file:
        printed = list(csv.DictReader(file))
    wanted = [row for row in printed if row["table"] != "later_work"]
    field = {
        (row.label, column.dataset, result.value, result.std, row.pretraining, row.source.removesuffix(" README"))
        for row, column, result in load_table("field").cells()
    }

    def number(text: object) -> float | None:
        return None if text in ("", None) else float(str(text))

    kept = [
        {
            "table": table.name.replace("-", "_"),
            "method": row.method,
            "dataset": column.dataset,
            "setting": row.setting,
            "metric": column.metric,
            "value": result.value,
            "std": result.std,
            "frames": row.frames,
            "views": row.views or "",
            "pretrain": row.pretraining or "",
            "gflops": row.gflops or "",
            "source": row.source,
        }
        for table in map(load_table, known_tables())
        for row, column, result in table.cells()
        if table.name != "field"
    ]
    for row in printed:
        row.update({key: number(row[key]) for key in ("value", "std", "frames")})

    def order(row) -> str:
        return repr(
            [row[key] for key in ("table", "source", "method", "setting", "frames", "views", "dataset", "metric")]
        )

    kept = [{**row, "frames": number(row["frames"])} for row in kept]
    assert sorted(kept, key=order) == sorted(wanted, key=order)
    later = {
        (
            row["method"].replace(" (LLM names)", ", LLM names"),
            *(row[key] for key in ("dataset", "value", "std", "pretrain")),
            row["source"].partition(" README")[0],
        )
        for row in printed
        if row["table"] == "later_work"
    }
    assert later <= field


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("metric: top1", "metric: top2", r"columns\.0\.metric"),
        ("benchmark: hmdb51\n", "benchmark: hmdb15\n", 'did you mean "hmdb51"'),
        ("results: {HMDB51: 53.6}", "results: {HMDB: 53.6}", 'no "HMDB"; did you mean "HMDB51"'),
        ("training: k400, options: {views: {crops: 1", "training: k40, options: {views: {crops: 1", 'mean "k400"'),
        ("views: {crops: 1,", "views: {crop: 1,", "crop: Extra inputs"),
        ("varies: views.crops", "varies: views.crop", 'did you mean "views.crops"'),
        ("label: 3 crops", "label: 1 crop", "two rows are called 1 crop"),
        ("    source: *paper\n", "    source: *paper\n    without_run: no\n", "run or without_run|valid string"),
    ],
)
def test_a_mistake_in_a_file_is_one_line(repository, tmp_path, old, new, message):
    text = (repository / "conf" / "published" / "zar-table5.yaml").read_text(encoding="utf-8")
    assert old in text
    path = tmp_path / "zar-table5.yaml"
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(ConfigError, match=message) as caught:
        read_table(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_tables_and_documents_agree_with_the_registry_on_what_runs(repository):
    def plain(text: str) -> str:
        return re.sub(r"[^a-z0-9]", "", text.lower())

    texts = {
        name: (repository / name).read_text("utf-8") for name in ("README.md", "docs/models.md", "docs/published.md")
    }
    (said,) = [
        line
        for line in texts["docs/published.md"].split("\n- ")
        if "are models of their own here" in " ".join(line.split())
    ]
    reasons = {}
    for system in shipped_systems():
        (line,) = [line for line in texts["README.md"].splitlines() if f"| `--model {system}`" in line]
        cost = re.search(rf"^\| {system} \|.* (\S+) \|$", texts["docs/models.md"], re.MULTILINE)
        assert ("ZAR is refused" in line) == (cost is not None and cost[1] == "refused")
        assert re.search(rf"^\| `{system}` \| .*`conf/train/{system}\.yaml`", texts["docs/models.md"], re.MULTILINE)
        assert plain(system) in plain(said)
        reasons[system] = "runs of it fill no cell here"
    seen = set()
    for row in (row for name in TABLES for row in load_table(name).rows if row.without_run):
        system = next((one for one in reasons if plain(row.method).startswith(plain(one))), None)
        seen.add(system)
        if system is not None:
            assert str(row.without_run).endswith(reasons[system]), row.method
            assert system in str(row.without_run), row.method
    assert seen == {None, *reasons}


def test_an_unknown_table_is_refused_with_the_nearest_name(output):
    with pytest.raises(ConfigError, match=r'^no published table "zar-tabel1"; did you mean "zar-table1"') as caught:
        reported("zar-tabel1", output, "terminal")
    assert "\n" not in str(caught.value)


# commands


def runs_of(command: str) -> Sequence[EvalConfig]:
    """The options of the runs that a command stands for."""
    zar, verb, *words = shlex.split(command)
    assert zar == "zar"
    if verb == "eval":
        return [parse_run(EvalConfig, words, "zar eval").options]
    assert verb == "ablate"
    options = parse_run(AblateConfig, words, "zar ablate").options
    settings, _ = place_settings([load_sweep(name) for name in options.sweep], options)
    return at_one_short_side(settings, Preprocessing(224))


def test_an_ablation_is_filled_by_one_command_a_benchmark():
    for name in ("zar-table3", "zar-table4", "zar-table5"):
        table = load_table(name)
        commands = {fill_command(table, row, column) for row, column, _ in table.cells()}
        assert len(commands) == len(table.columns)
        assert all(f"--sweep {name} " in command for command in commands)


def test_every_command_is_one_that_zar_takes_and_its_run_fills_the_cell_without_a_difference(output, write_run):
    seen = {}
    for table in map(load_table, known_tables()):
        for row, column, _ in table.cells():
            command = fill_command(table, row, column)
            if command is None:
                assert row.without_run
                continue
            runs = runs_of(command)
            options = runs[0]
            if command not in seen:
                seen[command] = options.name or run_name(options, column.benchmark, axes_of(options))
                values = [0.5] * len(load_benchmark(column.benchmark).splits)
                model = options.checkpoint.stem if options.checkpoint else "ViT-B-16-quickgelu"
                for number, run in enumerate(runs):
                    given = run.model_dump(exclude={"dataset", "name", "method", "model", "sweep"})
                    name = f"run{len(seen)}-{number}"
                    write_run(name, column.benchmark, values, *options.method, model=model, **given)
    # A folder holds one setting: the commands must not meet in one.
    assert len(set(seen.values())) == len(seen)
    for table in map(load_table, known_tables()):
        for one in compare(table, find_runs(output).runs):
            assert (one.measured is None) == (one.command is None)
            if one.measured is not None:
                for text in one.measured.differences:
                    assert re.search("right labels|taken for weights with|mean of 3 seeds", text), (one.row.label, text)


def test_the_commands_that_make_weights_are_ones_that_zar_takes():
    made = set()
    for table in map(load_table, known_tables()):
        for row, column, _ in table.cells():
            commands = training_commands(table, row, column)
            if commands is not None and row.run is not None and row.run.training is not None:
                training = table.trainings[row.run.training]
                file, make = training.of(column.benchmark)
                made.add((file, make))
                assert commands[0] == file in str(fill_command(table, row, column))
    assert made
    for file, line in made:
        options = train_options(line)
        # Every one has a recipe of this repository: the options' defaults are no published training.
        assert line.startswith("zar train --config conf/train/")
        if options.protocol == "standard":
            assert str(options.output) == file
        else:
            assert f"{options.output.stem}-16shot-seed{options.seeds[0]}.safetensors" == file
            assert load_benchmark(f"{options.dataset}-base2novel").title
            assert options.seeds == (1, 2, 3)


def test_a_wrong_option_in_a_line_that_makes_weights_is_found():
    with pytest.raises(ConfigError):
        train_options("zar train --config conf/train/k400_zar.yaml --dataset k400 --stepps 3 --output a.safetensors")


def test_rows_that_runs_cannot_fill_say_how_their_own_model_is_run():
    told = {row.without_run or "" for table in map(load_table, known_tables()) for row in table.rows}
    said = {one for text in told for one in re.findall(r"zar (?:train|eval) (?:--[a-z-]+ [\w./-]+ ?)+", text)}
    assert len(said) > len(shipped_systems())
    kinds = {"eval": EvalConfig, "train": TrainConfig}
    for command in said:
        _, verb, *words = shlex.split(command)
        options = parse_run(kinds[verb], words, f"zar {verb}").options
        known = {*shipped_systems(), *(model for model, _ in open_clip.list_pretrained())}
        assert options.model in known or "conf/eval" in command
    for name in shipped_systems():
        assert any(f"--config conf/train/{name}.yaml " in text or f"--model {name} " in text for text in told), name


def train_options(line):
    words = shlex.split(line)
    assert words[:2] == ["zar", "train"]
    return parse_run(TrainConfig, words[2:], "zar train").options


# matching


def test_a_run_of_all_splits_stands_beside_the_mean_of_its_row(output, write_run):
    write_run("mine", "hmdb51", [0.43, 0.44, 0.45])
    mine = measured(output, "zar-table1", "ZAR", "HMDB51")
    assert mine.value == pytest.approx(44.0)
    assert mine.std == pytest.approx(0.5)
    assert cell(output, "zar-table1", "ZAR", "HMDB51").difference == pytest.approx(44.0 - 43.6)
    assert differences(output, "zar-table1", "ZAR", "HMDB51") == []
    # The same weights are no Kinetics-400 weights, and another benchmark is another cell.
    assert cell(output, "zar-table1", "ZAR + K400 pretrain", "HMDB51").measured is None
    assert cell(output, "zar-table1", "ZAR", "UCF101").measured is None


def test_the_decision_before_adaptation_is_vanilla_clips(output, write_run):
    write_run("mine", "k600", [0.6, 0.6, 0.6], before=0.55)
    vanilla = measured(output, "zar-table1", "Vanilla CLIP B/16", "Kinetics-600")
    assert vanilla.value == pytest.approx(55.0)
    assert vanilla.differences == ("eval frames 16 instead of 32",)
    write_run("own", "k600", [0.56, 0.56, 0.56], "zero_shot", views={"eval_frames": 32})
    vanilla = measured(output, "zar-table1", "Vanilla CLIP B/16", "Kinetics-600")
    assert vanilla.value == pytest.approx(56.0)
    assert vanilla.differences == ()


def test_base_novel_and_harmonic_mean_come_from_one_run(output, write_run):
    write_run("mine", "k400-base2novel", [0.9, 0.6], checkpoint="/w/mine.safetensors", model="mine")
    for column, value in (("Kinetics-400 base", 90.0), ("Kinetics-400 novel", 60.0), ("Kinetics-400 HM", 72.0)):
        mine = measured(output, "zar-table2", "ZAR", column)
        assert mine.value == pytest.approx(value)
        assert mine.differences == (
            "mine.safetensors taken for weights with 16-shot training on the base classes",
            "seed 0 instead of the mean of 3 seeds",
        )
    assert cell(output, "zar-table2", "Vanilla CLIP B/16", "Kinetics-400 base").measured is None


def test_an_ablation_takes_the_run_of_its_setting_alone(output, write_run):
    write_run("half", "hmdb51", [0.5] * 3, zar={"confidence": 0.5})
    assert measured(output, "zar-table3", "confidence 50 %", "HMDB51").value == pytest.approx(50)
    assert cell(output, "zar-table3", "confidence 80 %", "HMDB51").measured is None
    assert differences(output, "zar-table3", "confidence 50 %", "HMDB51") == ["weights without Kinetics-400 training"]
    assert differences(output, "zar-table1", "ZAR", "HMDB51") == ["confidence 0.5 instead of 0.8"]
    write_run("two", "hmdb51", [0.4] * 3, views={"rates": [1.0, 0.5]})
    assert measured(output, "zar-table4", "rates 1, 1/2", "HMDB51").value == pytest.approx(40)
    assert cell(output, "zar-table4", "rate 1", "HMDB51").measured is None


def test_a_default_short_side_is_the_one_it_comes_to(output, write_run):
    write_run("five", "hmdb51", [0.5] * 3, views={"crops": 5})
    write_run("three", "hmdb51", [0.5] * 3)
    lacking = "weights without Kinetics-400 training"
    assert differences(output, "zar-table5", "5 crops", "HMDB51") == [lacking]
    assert differences(output, "zar-table5", "3 crops", "HMDB51") == [lacking, "short side 224 instead of 256"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"seed": 5}, []),
        ({"split": "2"}, ["split 2 alone instead of the mean of 3 splits"]),
        ({"limit": 100}, ["limit 100 videos"]),
        ({"videos": 1500}, ["4,500 videos instead of 4,590"]),
        ({"failed": 2}, ["6 failed videos counted as wrong"]),
        ({"views": {"frames": 8}}, ["frames 8 instead of 16"]),
        ({"views": {"rates": [1.0], "crops": 1}}, ["rates 1 instead of 1, 0.5, 0.25, 0.125", "crops 1 instead of 3"]),
        ({"zar": {"lr": 0.01, "steps": 3}}, ["steps 3 instead of 1", "lr 0.01 instead of 0.005"]),
        ({"views": {"eval_views": "4x3"}}, ["eval views 4x3 instead of 1x1"]),
        ({"context": "a photo of a"}, ['context "a photo of a" instead of "a video of a"']),
        ({"random_weights": True, "pretrained": "random"}, ["random weights"]),
        ({"pretrained": "laion2b_s34b_b88k", "model": "ViT-B-16"}, ["laion2b_s34b_b88k weights instead of OpenAI's"]),
        ({"checkpoint": "/w/ViT-B-16.pt"}, ["ViT-B-16.pt taken for OpenAI's weights"]),
    ],
)
def test_each_protocol_difference_is_named(output, write_run, options, expected):
    splits = 1 if "split" in options else 3
    write_run("mine", "hmdb51", [0.4] * splits, **options)
    assert differences(output, "zar-table1", "ZAR", "HMDB51") == expected


def test_labels_are_a_difference_until_the_published_ones_are_used(output, write_run):
    write_run("mine", "hmdb51", [0.4] * 3)
    assert any("120 of 1,530" in text for text in measured(output, "zar-table1", "ZAR", "HMDB51").differences)
    write_run("legacy", "hmdb51", [0.4] * 3, legacy_labels=True)
    legacy = measured(output, "zar-table1", "ZAR", "HMDB51")
    assert (legacy.run.summary.name, legacy.differences) == ("legacy", ())


def test_a_benchmarks_own_wording_is_a_difference_and_the_command_asks_for_the_published_one(output, write_run):
    write_run("mine", "ucf101", [0.6] * 3)
    assert differences(output, "zar-table1", "ZAR", "UCF101") == ["name style split_camel_case instead of raw"]
    command = cell(output, "zar-table1", "ZAR", "UCF101").command
    assert command == "zar eval --dataset ucf101 --method zar --name-style raw --name ucf101_zar_name-style-raw"


def test_other_protocols_of_a_dataset_are_shown_and_named(output, write_run):
    write_run("val", "k600-val", [0.6] * 3)
    assert differences(output, "zar-table1", "ZAR", "Kinetics-600") == ["Kinetics-600 validation videos only"]
    write_run("all", "k600", [0.61] * 3)
    assert measured(output, "zar-table1", "ZAR", "Kinetics-600").run.summary.name == "all"


def test_trained_weights_fill_the_trained_row_alone_and_say_what_is_taken_for_granted(output, write_run):
    write_run("mine", "hmdb51", [0.54] * 3, checkpoint="/w/k400.safetensors", model="k400")
    assert differences(output, "zar-table1", "ZAR + K400 pretrain", "HMDB51") == [
        "k400.safetensors taken for weights with Kinetics-400 training"
    ]
    assert cell(output, "zar-table1", "ZAR", "HMDB51").measured is None
    assert cell(output, "zar-table1", "Vanilla CLIP B/16", "HMDB51").measured is None


@pytest.mark.parametrize("called", ["tiny", "ViT-B-16", "k400-clip"])
@pytest.mark.parametrize(
    ("cost", "why"),
    [
        (make_model_cost(None, 48), "an architecture of its own, 3.9 M parameters, 48 pixels"),
        (make_model_cost("ViT-B-32-quickgelu"), "ViT-B-32-quickgelu, 149.6 M parameters, 224 pixels"),
        (make_model_cost("ViT-B-16", 96), "ViT-B-16, 149.6 M parameters, 96 pixels"),
        (None, "is no ViT-B-16 of 224 pixels (what it is is not known)"),
    ],
)
def test_another_architecture_measures_nothing_whatever_it_is_called_and_it_is_said_why(
    output, write_run, called, cost, why
):
    write_run("mine", "hmdb51", [0.4] * 3, model=called, checkpoint=f"/w/{called}.safetensors", cost=cost)
    assert all(one.measured is None for name in TABLES for one in compare(load_table(name), find_runs(output).runs))
    skipped = " ".join(reported("zar-table1", output, "terminal").partition("Skipped")[2].split())
    assert "mine: fills no cell, as" in skipped
    assert why in skipped
    # Who evaluates something else has not asked.
    assert "fills no cell" not in reported("zar-table2", output, "terminal")


def test_a_model_of_the_tables_shapes_fills_the_cell_whatever_it_is_called(output, write_run):
    write_run("mine", "hmdb51", [0.54], split="2", before=0.5, checkpoint="/w/demo-tiny.safetensors", model="demo-tiny")
    mine = measured(output, "zar-table1", "ZAR + K400 pretrain", "HMDB51")
    assert mine.value == pytest.approx(54)
    assert mine.change is not None
    assert mine.change.effect.value == pytest.approx(0.04)
    shown = reported("zar-table1", output, "terminal")
    assert re.search(r"^ZAR \+ K400 pretrain +HMDB51 +54\.2 ± 0\.8 +54\.0 +-0\.2 +r1 t1 d", shown, re.MULTILINE)
    assert "t1  ZAR + K400 pretrain, HMDB51: +4.0 [-6.0, +14.0] points, p 0.267" in shown
    rows = list(csv.DictReader(io.StringIO(reported("zar-table1", output, "csv"))))
    row = next(one for one in rows if (one["method"], one["dataset"]) == ("ZAR + K400 pretrain", "hmdb51"))
    assert [row[name] for name in ("change", "change_low", "change_high", "change_p")] == [
        *("+4.0", "-6.0", "+14.0"),
        "0.267",
    ]


def test_a_mean_over_splits_has_its_own_change(output, write_run):
    write_run("mine", "hmdb51", [0.43, 0.44, 0.45], change=make_change(0.01))
    assert measured(output, "zar-table1", "ZAR", "HMDB51").change == make_change(0.01)
    # The decision before adaptation, which stands for vanilla CLIP's, changed nothing.
    assert measured(output, "zar-table1", "Vanilla CLIP B/16", "HMDB51").change is None
    assert "ZAR, HMDB51: +1.0 [-9.0, +11.0] points, p 0.267" in reported("zar-table1", output, "terminal")


def test_the_nearest_run_wins_then_the_newest(output, write_run):
    write_run("old", "hmdb51", [0.41] * 3)
    write_run("new", "hmdb51", [0.42] * 3, seed=1)
    assert measured(output, "zar-table1", "ZAR", "HMDB51").run.summary.name == "new"
    write_run("glance", "hmdb51", [0.43] * 3, limit=100)
    write_run("untrained", "hmdb51", [0.02] * 3, random_weights=True, pretrained="random")
    assert measured(output, "zar-table1", "ZAR", "HMDB51").run.summary.name == "new"


def test_corrupted_videos_measure_nothing_that_is_published(output, write_run):
    write_run("rain", "hmdb51", [0.43] * 3, corruption=["rain:2"])
    text = reported("zar-table1", output, "terminal")
    write_run("clean", "hmdb51", [0.43] * 3, corruption=["clean"])
    assert "43.0" not in text
    assert "43.0" in reported("zar-table1", output, "terminal")


def test_neither_a_glance_nor_random_weights_take_a_full_runs_place(output, write_run):
    write_run("full", "hmdb51", [0.42] * 3, zar={"steps": 2, "lr": 0.01})
    write_run("glance", "hmdb51", [0.43] * 3, limit=100)
    write_run("untrained", "hmdb51", [0.02] * 3, random_weights=True, pretrained="random")
    assert measured(output, "zar-table1", "ZAR", "HMDB51").run.summary.name == "full"


def test_a_run_without_labels_or_of_a_dataset_of_ones_own_measures_nothing(output, write_run, make_summary, tmp_path):
    write_run("mine", "hmdb51", [0.4], split="1")
    path = tmp_path / "runs" / "mine" / "run.json"
    record = json.loads(path.read_text())
    record["study"]["cells"][0]["summary"]["cases"][0]["failures_wrong"] = None
    path.write_text(json.dumps(record))
    own = dataclasses.replace(make_summary(), dataset="/videos")
    config = EvalConfig(dataset="/videos").model_dump(mode="json")
    write_record(tmp_path / "runs" / "own", make_record(own, [config]), config)
    found = find_runs(output)
    assert (len(found.runs), found.broken) == (2, ())
    assert all(one.measured is None for name in TABLES for one in compare(load_table(name), found.runs))


# finding


def test_runs_are_found_and_broken_ones_named(output, write_run, tmp_path):
    write_run("good", "hmdb51", [0.4] * 3)
    runs = tmp_path / "runs"
    for name, content in (("torn", '{"study": '), ("other", "[]"), ("bad", '{"study": {}, "config": {}}')):
        (runs / name).mkdir()
        (runs / name / "run.json").write_text(content)
    (runs / "unfinished" / "parts").mkdir(parents=True)
    copy = runs / "mlflow-artifacts" / "0123" / "artifacts"
    copy.mkdir(parents=True)
    (copy / "run.json").write_text((runs / "good" / "run.json").read_text())
    found = find_runs(output)
    assert [run.summary.name for run in found.runs] == ["good"]
    assert [re.sub(r".*/(\w+)/run\.json: is not .*", r"\1", line) for line in found.broken] == ["bad", "other", "torn"]
    for form in ("terminal", "markdown"):
        assert "torn/run.json" in reported("zar-table1", output, form)
    assert len(list(csv.DictReader(io.StringIO(reported("zar-table1", output, "csv"))))) == 40


def test_one_runs_folder_and_a_uri_and_nothing_at_all_can_be_given(output, write_run, tmp_path):
    write_run("good", "hmdb51", [0.4] * 3)
    assert len(find_runs(f"{output}/good").runs) == 1
    assert len(find_runs(f"file://{output}").runs) == 1
    assert find_runs(str(tmp_path / "nowhere")).runs == ()
    with pytest.raises(RunError, match="no such kind of place"):
        find_runs("gopher://here")


# what is shown


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("form", ["terminal", "markdown", "csv"])
def test_without_a_run_every_form_shows_the_numbers_the_commands_and_the_errata(output, name, form):
    shown = reported(name, output, form)
    table = load_table(name)
    plain = shown.replace("\\", "")
    for row, column, result in table.cells():
        assert f"{result.value:.{row.decimals}f}" in shown
        command = fill_command(table, row, column, output)
        assert (str(row.without_run) in plain) if command is None else (command in shown)
    for note in table.notes:
        assert note.text in (plain if form != "csv" else shown.replace('""', '"'))


@pytest.mark.parametrize("width", [80, 100])
@pytest.mark.parametrize("name", TABLES)
def test_the_table_fits_the_terminal_and_no_number_is_broken(output, write_run, name, width):
    for dataset in ("hmdb51", "ucf101", "k600"):
        write_run(f"a-{dataset}", dataset, [0.42] * 3)
        write_run(f"b-{dataset}", dataset, [0.53] * 3, checkpoint="/w/k400.safetensors", model="k400")
    write_run("c", "hmdb51-base2novel", [0.7, 0.5], checkpoint="/w/h.safetensors", model="h")
    stream = io.StringIO()
    table = load_table(name)
    cells = compare(table, find_runs(output).runs)
    show(table_blocks(table, cells)[:1], "terminal", Console(file=stream, width=width))
    body = stream.getvalue().strip().partition("\n")[2].splitlines()
    assert max(map(len, body)) <= width
    for one in cells:
        wanted = f"{one.published.value:.{one.row.decimals}f}"
        assert any(one.column.name in line and wanted in line for line in body)


def test_a_terminal_shows_value_difference_run_and_what_differs(output, write_run):
    write_run("mine", "hmdb51", [0.43, 0.44, 0.45], views={"frames": 8})
    shown = reported("zar-table1", output, "terminal")
    line = next(line for line in shown.splitlines() if line.startswith("ZAR ") and "HMDB51" in line)
    assert re.search(r"43\.6 ± 0\.7 +44\.0 ± 0\.5 +\+0\.4 +r1 d\d d\d n\d", line)
    assert "frames 8 instead of 16" in shown
    assert f"mine: ViT-B-16-quickgelu (0123456789ab), seed 0, {output}/mine" in shown
    assert "+/-" in reported("zar-table1", output, "terminal", encoding="ascii")


def test_both_costs_are_printed(output, write_run):
    write_run("mine", "hmdb51", [0.43, 0.44, 0.45])
    shown = reported("zar-table1", output, "terminal")
    assert "ZAR: 281 GFLOPs as published, for the evaluation view alone; 13,769 with the 48 views of tuning" in shown
    assert "encoded 235 images, 4,127 GFLOPs" in shown


def test_csv_is_one_line_a_result_and_nothing_else(output, write_run):
    write_run("mine", "hmdb51", [0.43, 0.44, 0.45], views={"frames": 8})
    rows = list(csv.DictReader(io.StringIO(reported("zar-table1", output, "csv"))))
    assert len(rows) == len(load_table("zar-table1").cells())
    mine = next(row for row in rows if (row["method"], row["dataset"]) == ("ZAR", "hmdb51"))
    assert (mine["published"], mine["published_std"]) == ("43.6", "0.7")
    assert (mine["measured"], mine["measured_std"], mine["difference"]) == ("44.0", "0.5", "+0.4")
    assert mine["run"] == f"{output}/mine"
    assert "frames 8 instead of 16" in mine["protocol_differences"]
    assert "281 GFLOPs count the evaluation view alone" in mine["notes"]
    assert mine["command"] == ""
    empty = next(row for row in rows if (row["method"], row["dataset"]) == ("ZAR", "kinetics600"))
    assert (empty["measured"], empty["difference"], empty["run"]) == ("", "", "")
    assert empty["command"] == f"zar eval --dataset k600 --method zar --output {output}"


def test_markdown_is_a_table_with_commands_as_code(output, write_run):
    write_run("mine", "hmdb51", [0.42, 0.42, 0.42])
    shown = reported("zar-table1", output, "markdown")
    lines = [line for line in shown.splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {7}
    assert any(line.startswith("| ZAR | HMDB51 | 43.6 ± 0.7 | 42.0 ± 0.5 | -1.6 | r") for line in lines)
    assert f"`zar eval --dataset k600 --method zar --output {output}`" in shown
    assert "- c" in shown


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("zar-table1", "The 281 GFLOPs count the evaluation view alone; tuning adds 48 views."),
        ("zar-table2", "repeats HMDB51's row for vanilla CLIP"),
        ("zar-table2", "repeats X-CLIP's row for A5"),
        ("zar-table3", "at 70 % (77.42), not at the 80 % (77.37)"),
        ("ezclip", "selected on the test sets"),
    ],
)
def test_the_known_errata_are_told(output, name, words):
    for form in ("terminal", "markdown", "csv"):
        assert words in reported(name, output, form)
