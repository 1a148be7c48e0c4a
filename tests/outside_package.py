"""A package outside the tree, made of a page's code blocks and installed as far as Python looks: its metadata too."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path


def blocks_of(page: Path, heading: str) -> dict[str, str]:
    """The code blocks of a section that the page introduces by a file's name in backticks, by that name."""
    section = page.read_text(encoding="utf-8").partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return dict(re.findall(r"`([\w./-]+\.(?:py|toml))`[^`]*?:\n\n```\w+\n(.*?)```", section, re.DOTALL))


def install(files: Mapping[str, str], folder: Path) -> Path:
    """Writes a package's files, its ``pyproject.toml`` among them, and what an installer makes of that.

    Args:
        files: Texts by file name.
        folder: Where to; it is to be put on the path.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    project = tomllib.loads(files["pyproject.toml"])["project"]
    about = folder / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    groups = (
        "\n".join([f"[{group}]", *(f"{name} = {value}" for name, value in entries.items())])
        for group, entries in project["entry-points"].items()
    )
    (about / "entry_points.txt").write_text("\n".join(groups) + "\n")
    return folder
