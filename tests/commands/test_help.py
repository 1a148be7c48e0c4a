"""Help is short, says what people read, and knows all that the parser takes."""

import io
import re
import subprocess
import sys

import pytest
import tyro

from zar_ray.adaptation.options import PredictConfig
from zar_ray.commands.entries import entries_of
from zar_ray.commands.help import COMMON, EXAMPLES, MOST_COLUMNS, Helped
from zar_ray.commands.main import COMMANDS, function_of, main
from zar_ray.commands.parsing import parse, parse_run
from zar_ray.data.options import AuditConfig, IndexConfig
from zar_ray.errors import ConfigError
from zar_ray.reporting.blocks import Block, print_block
from zar_ray.study.options import EvalConfig, PlanConfig
from zar_ray.terminal import output_console
from zar_ray.training.options import TrainConfig

THINGS = sorted({words.split()[0] for words in COMMANDS if " " in words})


def shown(capsys, *words):
    """What a command prints, and everything that may stand on its line."""
    with pytest.raises(Helped) as told:
        function_of(" ".join(words[:-1]))(words[-1:])
    assert told.value.code == 0
    return capsys.readouterr().out, told.value.entries


@pytest.fixture(autouse=True)
def terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")


@pytest.mark.parametrize("command", sorted(COMMON))
def test_the_common_options_fit_a_screen_and_all_stand_under_help_all(command, capsys):
    short, known = shown(capsys, *command.split()[1:], "--help")
    names = {one.name for one in known}
    assert set(COMMON[command]) <= names
    assert len(short.splitlines()) <= 60
    assert max(map(len, short.splitlines())) <= MOST_COLUMNS
    assert all(f"  {example}\n" in short for example in EXAMPLES[command])
    assert f"all {len(known)} options" in short
    whole, _ = shown(capsys, *command.split()[1:], "--help-all")
    for one in known:
        assert re.search(rf"^  {re.escape(one.written)}( |$)", whole, re.MULTILINE), one
    assert "{None}" not in whole


@pytest.mark.parametrize("command", [words for words in COMMANDS if f"zar {words}" not in COMMON])
def test_every_other_command_shows_all_it_takes(command, capsys):
    text, known = shown(capsys, *command.split(), "--help")
    assert text.startswith(f"usage: zar {command}")
    assert all(one.about for one in known), known
    assert all(one.written in text for one in known)


@pytest.mark.parametrize("kind", [EvalConfig, PlanConfig, TrainConfig, PredictConfig, IndexConfig, AuditConfig])
def test_the_help_knows_what_the_parser_knows(kind):
    parser = tyro.extras.get_parser(kind)
    taken = {word for action in parser._actions for word in action.option_strings} - {"-h", "--help"}
    options = [one for one in entries_of(kind) if not one.positional]
    assert {one.written.split()[0] for one in options} <= taken
    names = {f"--{one.name}" for one in options}
    assert {re.sub(r"(--|\.)no-", r"\1", word) for word in taken - names} <= names


def test_a_switch_is_shown_as_what_it_changes():
    switched = {one.name: one.written for one in entries_of(EvalConfig)}
    assert (switched["mlflow"], switched["resume"]) == ("--no-mlflow", "--resume")


@pytest.mark.parametrize("example", [line for lines in EXAMPLES.values() for line in lines])
def test_examples_are_understood(example):
    words = example.split()
    if words[1] in ("eval", "ablate") and "--config" not in words:
        assert parse_run(EvalConfig, words[2:], "zar eval").options.dataset == words[3]
    else:
        # What a file says is not here to be read; every option is one that the command has.
        with pytest.raises(Helped) as told:
            function_of(words[1])(["--help"])
        names = {one.name for one in told.value.entries}
        assert {word[2:] for word in words if word.startswith("--") and len(word) > 2} <= names


@pytest.mark.parametrize("thing", THINGS)
def test_a_thing_lists_its_verbs(thing, capsys):
    verbs = [words for words in COMMANDS if words.startswith(f"{thing} ")]
    for words, status in (([thing], 2), ([thing, "--help"], 0), ([thing, "-h"], 0)):
        assert main(words) == status
        said = capsys.readouterr().out
        assert re.findall(r"^  zar (\w+ \w+)  ", said, re.MULTILINE) == verbs


@pytest.mark.process
@pytest.mark.parametrize("words", ["--help", "data", "--version"])
def test_help_that_nobody_reads_ends_quietly(words):
    command = f'"{sys.executable}" -m zar_ray.commands.main {words} | true'
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=120, check=False)
    assert (done.stdout, done.stderr) == ("", "")


def test_what_begins_with_a_dash_stands_behind_two():
    for word in ("-a.mp4", "-my file.avi"):
        with pytest.raises(ConfigError, match=rf"no option stands last, behind --: zar predict \.\.\. -- {word}$"):
            parse_run(PredictConfig, [word, "--labels", "a,b"], "zar predict")
        assert parse_run(PredictConfig, ["--labels", "a,b", "--", word], "zar predict").options.videos == (word,)

    def command(word: str) -> None:
        """Takes no files."""

    with pytest.raises(ConfigError, match=r"unknown option -x; "):
        parse(command, ["--word", "a", "-x"], "zar say")


def test_output_that_is_no_terminal_is_not_cut(monkeypatch):
    monkeypatch.delenv("COLUMNS")
    file = io.StringIO()
    console, name = output_console(file=file), "a name of words " * 40
    print_block(Block("title", ("what", "number"), [(name.strip(), "1")], []), console)
    assert name.strip() in file.getvalue()
