"""The image: what it copies is there, what it installs is pinned, and it names no registry and no user of its own.

That the copied files are enough to install from, and that a job runs then, is tests/integration/test_wheel.py's.
"""

from __future__ import annotations

import re
import shlex
import subprocess

from image_steps import copies, copy_as_the_image_does, ignored, instructions


def test_it_copies_what_the_repository_has_and_docker_is_let_see(repository, tmp_path):
    listed = subprocess.run(["git", "-C", repository, "ls-files"], capture_output=True, text=True, check=True).stdout
    tops = {name.partition("/")[0] for name in listed.splitlines()}
    let_in, _ = ignored(repository)
    sources = {source for source, _ in copies(repository)}
    assert sources <= tops
    assert sources == let_in  # no more is sent to Docker than is copied
    folder = copy_as_the_image_does(repository, tmp_path)
    assert (folder / "jobs/eval.py").is_file()
    assert not list(folder.rglob("__pycache__"))


def test_what_it_installs_is_pinned(repository):
    pip = [
        part
        for what, words in instructions(repository)
        if what == "RUN"
        for part in words.split("&&")
        if "pip install" in part
    ]
    assert len(pip) == 2
    copied: set[str] = set()
    for what, words in instructions(repository):
        if what == "COPY":
            copied |= set(words.split()[:-1])
        if "pip install" in words:
            assert "-c constraints.txt" in words
            assert "constraints.txt" in copied
    assert "torch torchvision" in pip[0]
    assert "--no-deps" in pip[0]
    assert shlex.split(pip[1])[-1] == "."


def test_every_choice_is_a_build_argument_and_no_host_is_named(repository):
    steps = instructions(repository)
    arguments = {words.partition("=")[0]: words.partition("=")[2] for what, words in steps if what == "ARG"}
    assert set(arguments) == {"BASE", "PACKAGES", "PIP_INDEX_URL", "TORCH_INDEX"}
    (base,) = [words for what, words in steps if what == "FROM"]
    assert base == "${BASE}"
    # A name with a slash could be another registry's.
    assert re.fullmatch(r"python:3\.1[123]-slim", arguments["BASE"])
    text = (repository / "deploy/Dockerfile").read_text("utf-8")
    assert "://" not in text
    assert not re.search(r"\b[\w-]+\.(com|org|io|net)\b", text)


def test_it_runs_as_nobody_special(repository):
    steps = instructions(repository)
    after = [what for what, _ in steps]
    (user,) = [words for what, words in steps if what == "USER"]
    assert user == "1000:1000"
    assert "RUN" not in after[after.index("USER") :]
    (created,) = [words for what, words in steps if what == "RUN" and "useradd" in words]
    assert "--uid 1000" in created


def test_nodes_have_what_kuberay_asks_them_with(repository):
    """Its probes call wget, which slim images lack."""
    (packages,) = [words for what, words in instructions(repository) if words.startswith("PACKAGES=")]
    assert packages.partition("=")[2].split() == ["wget"]
