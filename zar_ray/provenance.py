"""What made a number: the code, the packages and the machine, as a run records them."""

from __future__ import annotations

import platform
import socket
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import zar_ray

_PACKAGES = (
    *("ray", "torch", "torchvision", "open_clip_torch", "decord", "av", "torchcodec"),
    *("mlflow", "pyarrow", "pydantic", "numpy"),
)


def package_version(name: str) -> str | None:
    """An installed package's version, None where it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def git_commit() -> str | None:
    """The checkout's commit, with ``+changes`` when files differ from it; None outside a checkout."""
    top = Path(zar_ray.__file__).parent.parent
    if not (top / ".git").exists():
        return None
    words = ["git", "-C", str(top), "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+changes"]
    try:
        return subprocess.run(words, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def provenance() -> dict[str, object]:
    """The code's version and commit, the packages' versions and the host, as JSON values."""
    return {
        "zar_ray": zar_ray.__version__,
        "git": git_commit(),
        "packages": {name: package_version(name) for name in _PACKAGES},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "host": socket.gethostname(),
    }
