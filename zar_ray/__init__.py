"""Zero-shot action recognition by per-video prompt tuning, evaluated and served on a Ray cluster.

`load` a model and let it `predict`; `evaluate` and `study` run what `zar eval` and `zar ablate` do; `open_run` and
`compare` read what they leave behind (docs/python.md). Importing this loads none of it.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zar_ray.adaptation.rankings import RankedLabel as RankedLabel
    from zar_ray.adaptation.rankings import Ranking as Ranking
    from zar_ray.api.models import Model as Model
    from zar_ray.api.models import load as load
    from zar_ray.api.predictions import Predictions as Predictions
    from zar_ray.api.runs import Comparison as Comparison
    from zar_ray.api.runs import Run as Run
    from zar_ray.api.runs import compare as compare
    from zar_ray.api.runs import open_run as open_run
    from zar_ray.api.studies import evaluate as evaluate
    from zar_ray.api.studies import study as study
    from zar_ray.errors import ZarError as ZarError

__version__ = "0.1.0"

_PLACES = {
    "RankedLabel": "adaptation.rankings",
    "Ranking": "adaptation.rankings",
    "Model": "api.models",
    "load": "api.models",
    "Predictions": "api.predictions",
    "Comparison": "api.runs",
    "Run": "api.runs",
    "compare": "api.runs",
    "open_run": "api.runs",
    "evaluate": "api.studies",
    "ZarError": "errors",
}

__all__ = [
    "Comparison",
    "Model",
    "Predictions",
    "RankedLabel",
    "Ranking",
    "Run",
    "ZarError",
    "compare",
    "evaluate",
    "load",
    "open_run",
    "study",
]

# Read by OpenMP when PyTorch is loaded. By default its threads wait for each other in busy loops; where a decoding
# process shares their cores, each wait then lasts as long as the other process keeps a thread from running. Measured
# on two cores: five to fifteen times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def __getattr__(name: str) -> Any:
    """A name of the API, loaded when it is first asked for."""
    if name == "study":  # the package of this name, which is called as `zar_ray.api.studies.study`
        return importlib.import_module("zar_ray.study")
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"zar_ray.{_PLACES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
