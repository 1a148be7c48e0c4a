"""Packages of somebody else's, as `pip install` leaves them: modules beside a description with entry points."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from zipfile import ZipFile

REPOSITORY = Path(__file__).parent.parent


def blocks_of(page: str, language: str = "python") -> list[str]:
    """The code blocks of a page of docs/, in their order."""
    text = (REPOSITORY / "docs" / page).read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def install_package(
    folder: Path, name: str, modules: Mapping[str, str], entry_points: Mapping[str, Mapping[str, str]]
) -> Path:
    """Makes a wheel and installs it into a folder, without an index and without what it needs.

    Args:
        folder: Where to put it; further packages may be there.
        name: The package's name.
        modules: The content of each of its modules, by name.
        entry_points: By group, such as ``zar_ray.methods``, what each name stands for: ``module:object``.

    Returns:
        The folder, for `environment_with`.
    """
    stem = name.replace("-", "_")
    info = f"{stem}-1.0.dist-info"
    groups = (
        f"[{group}]\n" + "".join(f"{entry} = {value}\n" for entry, value in of_group.items())
        for group, of_group in entry_points.items()
    )
    files = {
        **{f"{module}.py": content for module, content in modules.items()},
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": "\n".join(groups),
    }
    folder.mkdir(parents=True, exist_ok=True)
    wheel = folder.parent / f"{stem}-1.0-py3-none-any.whl"
    with ZipFile(wheel, "w") as archive:
        for path, content in files.items():
            archive.writestr(path, content)
        archive.writestr(f"{info}/RECORD", "".join(f"{path},,\n" for path in (*files, f"{info}/RECORD")))
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "--no-deps", "--no-index", "--target", str(folder), str(wheel)], check=True)
    return folder


def environment_with(*folders: Path) -> dict[str, str]:
    """The environment of a process that finds packages of these folders, and zar-ray as this one does."""
    paths = [*map(str, folders), *(path for path in sys.path if path)]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def run_with(folders: Sequence[Path], *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Runs ``python WORDS`` where the packages of some folders are installed."""
    return subprocess.run(
        [sys.executable, *words], env=environment_with(*folders), capture_output=True, text=True, check=check
    )


def files_of(page: str, heading: str) -> dict[str, str]:
    """The files that a section of a page of docs/ shows, each introduced by its name in backticks."""
    text = (REPOSITORY / "docs" / page).read_text(encoding="utf-8")
    section = text.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return dict(re.findall(r"`([\w./-]+\.(?:py|toml))`[^`]*?:\n\n```\w+\n(.*?)```", section, re.DOTALL))


def install_files(folder: Path, files: Mapping[str, str]) -> Path:
    """Installs a package of which the files are given, its ``pyproject.toml`` among them; see `install_package`."""
    project = tomllib.loads(files["pyproject.toml"])["project"]
    modules = {name.removesuffix(".py"): text for name, text in files.items() if name.endswith(".py")}
    return install_package(folder, project["name"], modules, project["entry-points"])
