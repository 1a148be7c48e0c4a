"""The layers of a run's options below what is said last: the benchmark's file, then a configuration file and others."""

from __future__ import annotations

from typing import Any

from zar_ray.data.datasets import known_benchmarks, load_benchmark, protocol_name
from zar_ray.options.base import Options
from zar_ray.options.layers import merge, validate

WEIGHTS = ("model", "pretrained", "checkpoint")
"""These three say together which weights are meant: a layer that names one of them says nothing about the others."""


def is_evaluation(kind: type[Options]) -> bool:
    """Whether options are a study's, by what these alone have: importing their class loads PyTorch."""
    return "models" in kind.model_fields


def layered(
    kind: type[Options], *layers: dict[str, Any], dataset: str | None = None, protocol: str = "standard"
) -> dict[str, Any]:
    """Values of options from, lowest first, the benchmark's file and `layers`.

    Args:
        kind: The options' class; a benchmark brings options to a study alone.
        layers: Nested plain values, the last above all others.
        dataset: What is evaluated, which may be a benchmark's name.
        protocol: Its protocol.

    Raises:
        ConfigError: The dataset has no such protocol, or the benchmark's file is wrong.
    """
    values: dict[str, Any] = {}
    if is_evaluation(kind) and dataset in known_benchmarks():
        benchmark = load_benchmark(protocol_name(dataset, protocol))
        values = benchmark.eval_options()
        validate(kind, values, f"{benchmark.name}.yaml, options")
    for layer in layers:
        if any(layer.get(name) is not None for name in WEIGHTS):
            values = {name: value for name, value in values.items() if name not in WEIGHTS}
        values = merge(values, layer)
    return values
