"""What shows records needs nothing of what makes them, and what explains decisions knows nothing of reports."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest


def imported(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (one.name for one in node.names)


@pytest.mark.parametrize(
    ("package", "above"),
    [
        ("reporting", ("evaluation", "study", "training", "serving", "tracking", "commands")),
        ("explain", ("reporting", "evaluation", "study", "training", "serving", "tracking", "commands")),
    ],
)
def test_packages_import_only_what_is_below_them(repository, package, above):
    files = list((repository / "zar_ray" / package).rglob("*.py"))
    assert files
    forbidden = tuple(f"zar_ray.{name}" for name in above)
    found = {(file.name, name) for file in files for name in imported(file) if name.startswith(forbidden)}
    assert found == set()


def test_reports_need_what_explains_only_where_maps_are_drawn(repository):
    for file in (repository / "zar_ray" / "reporting").rglob("*.py"):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        first = [node.module or "" for node in tree.body if isinstance(node, ast.ImportFrom)]
        assert not [name for name in first if name.startswith("zar_ray.explain")], file.name
