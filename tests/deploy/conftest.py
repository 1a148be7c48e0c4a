"""What tests of deploy/ share."""

from __future__ import annotations

import re
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def deploy(repository) -> Path:
    """The folder under test."""
    return repository / "deploy"


@pytest.fixture(scope="session")
def pinned(repository) -> dict[str, str]:
    """Versions by package."""
    lines = (repository / "constraints.txt").read_text("utf-8").splitlines()
    return dict(line.split("==") for line in lines if "==" in line)


@pytest.fixture(scope="session")
def project_version(repository) -> str:
    """The package's own version."""
    found = re.search(r'^version = "(.+)"', (repository / "pyproject.toml").read_text("utf-8"), re.MULTILINE)
    assert found is not None
    return found[1]
