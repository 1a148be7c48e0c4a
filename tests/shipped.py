"""What zar-ray itself ships, whatever packages are installed beside it: only of these pages and recipes speak."""

from __future__ import annotations

import sys
from pathlib import Path

from zar_ray.adaptation.methods import METHODS
from zar_ray.models.systems import registry


def shipped_methods() -> tuple[str, ...]:
    """Names of methods, in their order."""
    modules = [module for name, module in sys.modules.items() if name.startswith("zar_ray.adaptation.")]
    own = [module.METHOD for module in modules if hasattr(module, "METHOD")]
    return tuple(name for name, method in METHODS.items() if method in own)


def shipped_systems() -> tuple[str, ...]:
    """Names of systems, in alphabetical order: each is a file that is called so."""
    files = {file.stem for file in Path(registry.__file__).parent.glob("*.py")}
    return tuple(name for name in registry.known_systems() if name in files)
