"""The benches are programs beside the package: each is loaded by a name of its own, with bench/ to import from."""

from __future__ import annotations

import importlib.util
import sys

import pytest


@pytest.fixture(scope="session")
def load_bench(repository):
    """`load_bench("serve")` loads bench/serve.py; `serve` is the folder of the applications to all others."""

    def load(name):
        module_name = f"bench_{name}"
        if module_name not in sys.modules:
            sys.path.insert(0, str(repository / "bench"))
            try:
                spec = importlib.util.spec_from_file_location(module_name, repository / "bench" / f"{name}.py")
                module = importlib.util.module_from_spec(spec)
                sys.modules[module_name] = module
                spec.loader.exec_module(module)
            finally:
                sys.path.pop(0)
        return sys.modules[module_name]

    return load
