"""Packages of somebody else's, as `pip install` leaves them: modules beside a description with entry points."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
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
    for path, content in _installed(stem, info, tuple(files.items())).items():
        place = folder / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)
    return folder


@cache
def _installed(stem: str, info: str, files: tuple[tuple[str, str], ...]) -> Mapping[Path, bytes]:
    """What pip leaves of a wheel of these files; once a session, as most tests install the same package."""
    with TemporaryDirectory() as place:
        wheel, target = Path(place) / f"{stem}-1.0-py3-none-any.whl", Path(place) / "target"
        with ZipFile(wheel, "w") as archive:
            for path, content in files:
                archive.writestr(path, content)
            names = (*(path for path, _ in files), f"{info}/RECORD")
            archive.writestr(f"{info}/RECORD", "".join(f"{name},,\n" for name in names))
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "--no-deps", "--no-index", "--target", str(target), str(wheel)], check=True)
        return {path.relative_to(target): path.read_bytes() for path in target.rglob("*") if path.is_file()}


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
