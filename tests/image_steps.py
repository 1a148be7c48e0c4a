"""The steps of deploy/Dockerfile, read and, as far as they copy files, done without Docker."""

from __future__ import annotations

import fnmatch
import shutil
from pathlib import Path


def instructions(repository: Path) -> list[tuple[str, str]]:
    """The Dockerfile's instructions in order, with their words; continued lines are one."""
    text = (repository / "deploy/Dockerfile").read_text("utf-8").replace("\\\n", " ")
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in lines]


def ignored(repository: Path) -> tuple[set[str], list[str]]:
    """Of .dockerignore, which leaves out everything: the names at the top that it lets in, and what it drops below."""
    lines = (repository / ".dockerignore").read_text("utf-8").splitlines()
    first, *patterns = [line for line in lines if line and not line.startswith("#")]
    assert first == "*"
    let_in = {line[1:] for line in patterns if line.startswith("!")}
    dropped = [line.removeprefix("**/") for line in patterns if not line.startswith("!")]
    assert all(line.startswith(("!", "**/")) for line in patterns)
    return let_in, dropped


def copies(repository: Path) -> list[tuple[str, str]]:
    """What is copied, and where to below the image's folder."""
    pairs = []
    for what, words in instructions(repository):
        if what == "COPY":
            *sources, target = words.split()
            pairs += [
                (source, target if len(sources) == 1 and not target.endswith("/") else source) for source in sources
            ]
    return pairs


def copy_as_the_image_does(repository: Path, folder: Path) -> Path:
    """Fills an empty folder with what the image's folder holds before anything is installed."""
    let_in, dropped = ignored(repository)
    for source, target in copies(repository):
        assert source in let_in, f"{source}: .dockerignore keeps it out"
        if (repository / source).is_dir():
            shutil.copytree(
                repository / source,
                folder / target,
                ignore=lambda _, names: {name for name in names for one in dropped if fnmatch.fnmatch(name, one)},
            )
        else:
            shutil.copy(repository / source, folder / target)
    return folder
