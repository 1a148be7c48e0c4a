"""`zar --completion SHELL`: what the shells themselves make of it, where they are installed; and what it knows."""

import functools
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from zar_ray.commands.completion import completion
from zar_ray.commands.main import COMMANDS, function_of
from zar_ray.errors import ConfigError

# A line, and the one word that it can end with.
ONE = {
    "zar ev": "eval",
    "zar re": "report",
    "zar --ver": "--version",
    **{f"zar report {verb[:2]}": verb for verb in ("run", "compare", "cite", "mlflow", "threshold", "table")},
    "zar eval --views.f": "--views.frames",
    "zar eval --method zar --no-ml": "--no-mlflow",
    "zar eval --precision b": "bf16",
    "zar eval --method dm": "dmn",
    "zar eval --checkpoint lab": "labels.txt",
    "zar eval --dataset vid": "videos",
    "zar predict --quiet lab": "labels.txt",
    "zar predict labels.txt vid": "videos",
    "zar report run vid": "videos",
}
# And some that leave a choice, or nothing.
MORE = {
    "zar data sh": {"show", "shots"},
    "zar eval --precision f": {"fp32", "fp16"},
    "zar report ": {"run", "compare", "cite", "mlflow", "threshold", "table"},
    "zar eval --views.frames lab": set(),
}

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
# Options of other programs in README and docs/, and two of ours that stand for others.
OTHERS = {"--cpus-per-task", "--gpus-per-node", "--index-url", "--nodes", "--num_heads", "--working-dir"}
OTHERS |= {"--help-all", "--views"}

script = functools.cache(lambda shell: completion(shell, COMMANDS, function_of))


@pytest.fixture
def desk(tmp_path):
    """A folder with a file and a folder, and a script of each shell below it."""
    (tmp_path / "desk" / "videos").mkdir(parents=True)
    (tmp_path / "desk" / "labels.txt").touch()

    def make(shell: str, name: str):
        (tmp_path / name).write_text(script(shell))
        return tmp_path / "desk"

    return make


def run(shell: str, program: str, folder, *words: str) -> list[str]:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    command = {"bash": ["bash", "--norc", "-c", program, "bash"], "zsh": ["zsh", "-fc", program, "zsh"]}
    done = subprocess.run(
        [*command.get(shell, ["fish", "--no-config", "-c", program, "--"]), *words],
        cwd=folder,
        env={"PATH": os.environ["PATH"], "HOME": str(folder), "LANG": "C.UTF-8", "TERM": "dumb"},
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    assert done.stderr == ""
    return done.stdout.splitlines()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_has_a_script_with_every_command_and_option(shell):
    for word in (*(words.split()[-1] for words in COMMANDS), "views.eval-frames", "no-mlflow", "fp32"):
        assert word in script(shell)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_options_that_pages_name_are_known(page):
    named = re.findall(r"`(--[a-z][a-z0-9._-]*)", page.read_text(encoding="utf-8"))
    assert {*named} - {*re.findall(r"--[a-z][a-z0-9.-]*", script("bash"))} - OTHERS == set()


@pytest.mark.parametrize("shell", ["", "tcsh"])
def test_other_shells_are_refused(shell):
    with pytest.raises(ConfigError, match="say for which shell, bash, zsh, fish"):
        completion(shell, COMMANDS, function_of)


@pytest.mark.process
@pytest.mark.parametrize(
    ("shell", "program"),
    [
        (
            "bash",
            """source ../zar.bash
            for line; do
                read -ra COMP_WORDS <<< "$line"
                [[ $line == *" " ]] && COMP_WORDS+=("")
                COMP_CWORD=$((${#COMP_WORDS[@]} - 1)) COMPREPLY=()
                _shtab_zar 2> /dev/null
                echo "${COMPREPLY[@]}"
            done""",
        ),
        (
            "fish",
            """source ../zar.fish
            for line in $argv
                echo (complete -C $line | string split -f 1 \\t | string trim -r -c /)
            end""",
        ),
    ],
)
def test_bash_and_fish_complete(shell, program, desk):
    cases = {line: {word} for line, word in ONE.items()} | MORE
    said = run(shell, program, desk(shell, f"zar.{shell}"), *cases)
    assert dict(zip(cases, (set(line.split()) for line in said), strict=True)) == cases


@pytest.mark.process
@pytest.mark.parametrize(("name", "load"), [("_zar", ""), ("zar.zsh", "source ../zar.zsh")])
def test_zsh_completes(name, load, desk):
    """Typed at a terminal, with a key that tells what stands there; the script on zsh's path, or sourced."""
    program = r"""zmodload zsh/zpty
        zpty shell zsh -f -i
        type() { zpty -w -n shell $1; zpty -r shell said "*LINE\[*\]*"; print -r -- ${${said##*LINE\[}%%\]*}; }
        zpty -w shell 'fpath=($PWD/.. $fpath); autoload -Uz compinit; compinit -u -D; '$1
        zpty -w shell 'tell() { zle -I; print -r -- "LI""NE[$BUFFER]"; BUFFER=; }; zle -N tell; bindkey "^G" tell'
        for line in $argv[2,-1]; do type $line$'\t\a'; done"""
    said = run("zsh", program, desk("zsh", name), load, *ONE)
    assert [line.rstrip(" /").split()[-1] for line in said] == [*ONE.values()]
