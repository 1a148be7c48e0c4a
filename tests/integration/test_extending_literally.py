"""docs/extending.md done as it is written leaves lint and the tests of what is registered whole."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from outside_package import REPOSITORY, environment_with, files_of, install_files

pytestmark = pytest.mark.slow

METHOD, MODEL = (files_of("extending.md", heading) for heading in ("A new method", "A new model"))

# What looks at all methods or systems.
REGISTRIES = (
    "tests/adaptation/test_methods.py",
    "tests/models/test_systems.py::test_the_shipped_systems_build_on_a_clip_of_open_clips",
    "tests/training/test_recipes.py::test_every_system_has_a_recipe_of_its_name",
    "tests/reporting/test_citing.py::test_every_declared_source_is_an_entry_with_what_an_entry_needs",
    "tests/reporting/test_published_table.py::test_tables_and_documents_agree_with_the_registry_on_what_runs",
    "tests/commands/test_help.py::test_the_common_options_fit_a_screen_and_all_stand_under_help_all",
)


def check(folder: Path, *words: object) -> None:
    """Runs ``python WORDS`` in a folder, whose own modules and packages come first."""
    command, environment = [sys.executable, *map(str, words)], environment_with(folder)
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def check_style(folder: Path, *files: Path) -> None:
    """Holds files to the project's rules of style."""
    for words in (["check"], ["format", "--check"]):
        check(folder, "-m", "ruff", *words, "--no-cache", "--config", "pyproject.toml", *files)


def check_tests(folder: Path, tests: Path, *more: str) -> None:
    """Runs the tests that look at what is registered, and others, from the folder of a project."""
    check(folder, "-m", "pytest", "-q", "-n0", "-p", "no:cacheprovider", *(tests / test for test in REGISTRIES), *more)


def test_packages_beside_zar_ray(tmp_path):
    for files in (METHOD, MODEL):
        for name, text in files.items():
            (tmp_path / name).write_text(text, encoding="utf-8")
        install_files(tmp_path / "packages", files)
    check_style(REPOSITORY, *sorted(tmp_path.glob("*.py")))
    check_tests(tmp_path / "packages", REPOSITORY)


def test_a_method_of_zar_ray_s_own(tmp_path):
    own = tmp_path / "zar-ray"
    for name in ("zar_ray", "conf", "docs", "jobs", "serve", "tests"):
        shutil.copytree(REPOSITORY / name, own / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("README.md", "pyproject.toml", "constraints.txt"):
        shutil.copy(REPOSITORY / name, own / name)
    text = METHOD["view_mean.py"]
    key = re.findall(r"^@\w+\{(\w+),", (own / "conf" / "references.bib").read_text(encoding="utf-8"), re.MULTILINE)[0]
    assert "needs_views=True\n)" in text
    added = own / "zar_ray" / "adaptation" / "view_mean.py"
    added.write_text(text.replace("needs_views=True\n)", f'needs_views=True, reference="{key}"\n)'), encoding="utf-8")
    registry = own / "zar_ray" / "adaptation" / "methods.py"
    lines = registry.read_text(encoding="utf-8")
    lines = re.sub(r"^    vte,$", "    view_mean,\n    vte,", lines, flags=re.MULTILINE)
    lines = re.sub(r"(_BUILT_IN = \(\n)", r"\1    view_mean,\n", lines)
    registry.write_text(lines, encoding="utf-8")
    check(own, "-m", "ruff", "format", "--no-cache", added, registry)  # of `make format`
    check_style(own, added, registry)
    check(own, "-c", "from importlinter.cli import lint_imports; raise SystemExit(lint_imports(no_cache=True))")
    check_tests(own, own, "tests/adaptation/test_no_float64.py")
