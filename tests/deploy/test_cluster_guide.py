"""docs/cluster.md: every block says what became of it here, its files are there, and its commands parse."""

from __future__ import annotations

import re
import shlex
import subprocess

import pytest
from ray.dashboard.modules.job.cli import job_cli_group
from ray.scripts.scripts import cli

from zar_ray.commands.parsing import parse_run
from zar_ray.study.options import EvalConfig


@pytest.fixture(scope="module")
def guide(repository) -> str:
    return (repository / "docs/cluster.md").read_text("utf-8")


@pytest.fixture(scope="module")
def commands(guide) -> list[list[str]]:
    blocks = re.findall(r"^```\n(.+?)^```$", guide, re.MULTILINE | re.DOTALL)
    return [shlex.split(line.removesuffix("&")) for block in blocks for line in block.splitlines()]


def test_every_block_says_whether_it_was_run(guide):
    after = re.findall(r"^```\n(?:.+?)^```\n\n(.+?)\n\n", guide, re.MULTILINE | re.DOTALL)
    assert len(after) == guide.count("\n```\n") / 2
    for words in after:
        assert re.search(r"not run here|run by\s+`tests/", words, re.IGNORECASE), words


def test_what_it_names_is_there(guide, repository):
    named = set(re.findall(r"(?:deploy|tests|jobs)/[\w/-]+\.\w+", guide))
    assert "deploy/slurm/eval.sbatch" in named
    for name in named:
        assert (repository / name).is_file(), name


def test_every_file_of_deploy_is_in_it(guide, repository):
    for file in (repository / "deploy").rglob("*"):
        if file.is_file():
            assert str(file.relative_to(repository)) in guide


def test_its_tags_are_the_projects(guide, project_version):
    assert set(re.findall(r"zar-ray:([\d.]+\d)", guide)) == {project_version}


def test_its_commands_parse(commands, deploy):
    told = {tuple(words[:2]) for words in commands}
    assert {("ray", "start"), ("ray", "job"), ("sbatch", "deploy/slurm/eval.sbatch")} <= told
    for words in commands:
        if words[:2] == ["ray", "start"]:
            cli.commands["start"].make_context("start", words[2:])
        elif words[:3] == ["ray", "job", "submit"]:
            entry = list(job_cli_group.commands["submit"].make_context("submit", words[3:]).params["entrypoint"])
            assert entry[0] == "python"
            # Ray hands it to a shell as one line.
            assert shlex.split(subprocess.list2cmdline(entry)) == entry
            assert entry[1].endswith("jobs/eval.py")
            parse_run(EvalConfig, entry[2:], "zar eval")
        elif words[0] == "sbatch":
            parse_run(EvalConfig, words[2:], "zar eval")
        else:
            assert words[0] in {"docker", "kubectl"}, words


def test_the_scripts_own_line_is_the_guides(commands, deploy):
    script = (deploy / "slurm/eval.sbatch").read_text("utf-8")
    (line,) = re.findall(r"^# (sbatch .+)$", script, re.MULTILINE)
    assert shlex.split(line) in commands


def test_arguments_of_the_build_are_the_dockerfiles(commands, deploy):
    arguments = set(re.findall(r"^ARG (\w+)", (deploy / "Dockerfile").read_text("utf-8"), re.MULTILINE))
    given = {
        words[place + 1].partition("=")[0]
        for words in commands
        for place, word in enumerate(words)
        if word == "--build-arg"
    }
    assert given
    assert given <= arguments
