"""The commands that published tables name are ones that zar takes, and fill their cells."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence

import open_clip
import pytest
from shipped import shipped_systems

from zar_ray.commands.parsing import parse_run
from zar_ray.data.datasets import load_benchmark
from zar_ray.errors import ConfigError
from zar_ray.evaluation.planning import at_one_short_side
from zar_ray.reporting.published.matching import fill_command, training_commands
from zar_ray.reporting.published.tables import known_tables, load_table
from zar_ray.reporting.published.view import compare
from zar_ray.results.study_record import find_runs
from zar_ray.study.axes import axes_of
from zar_ray.study.options import AblateConfig, EvalConfig
from zar_ray.study.plan import run_name
from zar_ray.study.sweeps import load_sweep, place_settings
from zar_ray.training.options import TrainConfig
from zar_ray.video.transforms import Preprocessing


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


@pytest.mark.slow
def test_every_command_is_one_that_zar_takes_and_its_run_fills_the_cell_without_a_difference(output, write_run):
    seen = {}
    for table in map(load_table, known_tables()):
        for row, column, _ in table.cells():
            command = fill_command(table, row, column)
            if command is None:
                assert row.without_run
                continue
            if command not in seen:
                asked = runs_of(command)
                options = asked[0]
                seen[command] = options.name or run_name(options, column.benchmark, axes_of(options))
                values = [0.5] * len(load_benchmark(column.benchmark).splits)
                model = options.checkpoint.stem if options.checkpoint else "ViT-B-16-quickgelu"
                for number, run in enumerate(asked):
                    given = run.model_dump(exclude={"dataset", "name", "method", "model", "sweep"})
                    name = f"run{len(seen)}-{number}"
                    write_run(name, column.benchmark, values, *options.method, model=model, **given)
    # A folder holds one setting: the commands must not meet in one.
    assert len(set(seen.values())) == len(seen)
    runs = find_runs(output).runs
    for table in map(load_table, known_tables()):
        for one in compare(table, runs):
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
