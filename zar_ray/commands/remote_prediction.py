"""`zar predict --server`: given labels ranked for given files by a service, without PyTorch and Ray."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pydantic import BaseModel
from rich.console import Console

from zar_ray.adaptation.options import PredictConfig
from zar_ray.client import Client, ServiceError
from zar_ray.data.datasets import parse_class_names
from zar_ray.errors import ConfigError
from zar_ray.reporting.rankings import print_ranking
from zar_ray.serving.schema import RankedLabel

# What a request to a service can say; all else that decides about numbers is the service's own.
ASKED = {"videos", "labels", "method", "template", "seed", "zar.steps", "top_k", "json_lines", "server", "token"}
# What a service says of a file, which costs that file alone.
_FILE_PROBLEMS = {"unusable-video", "video-too-large", "body-too-large", "internal-error", "timeout"}


@dataclass(frozen=True)
class ServedRanking:
    """What `zar_ray.adaptation.predict.Ranking` is, whose module loads PyTorch."""

    video: str
    method: str
    before: tuple[RankedLabel, ...]
    after: tuple[RankedLabel, ...]
    warning: str | None = None
    error: str | None = None


def require_asked(options: PredictConfig, argv: Sequence[str]) -> None:
    """Refuses options that a service decides, be they on the command line or in a file.

    Args:
        options: The resolved options.
        argv: The command line.

    Raises:
        ConfigError: There are such; the message names them.
    """
    default, chosen = _flat(PredictConfig().model_dump()), _flat(options.model_dump())
    # An option's own default may not be the service's.
    words = {word.partition("=")[0][2:].replace("-", "_").removeprefix("no_") for word in argv if word[:2] == "--"}
    if "views" in words:
        words.add("views.eval_views")
    idle = [name for name in default if name not in ASKED and (chosen[name] != default[name] or name in words)]
    if idle:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in idle)
        raise ConfigError(f"zar predict: the service at --server decides {names}; leave out what it decides")


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def predict_on_server(options: PredictConfig, url: str, dry_run: bool) -> int:
    """Has a service rank the labels for each file, and prints the rankings as `zar predict` does.

    Args:
        options: The files, the labels and what is asked about them.
        url: The service's address.
        dry_run: Say what would be asked, and ask nobody.

    Returns:
        The exit status: 1 where a file has no ranking.

    Raises:
        ConfigError: The address or the labels cannot be used.
        ServiceError: The service is not there, lets nobody in, or refuses what is asked.
    """
    labels = parse_class_names(options.labels or "")
    with Client(url, options.token or os.environ.get("ZAR_TOKEN") or None) as client:
        if dry_run:
            print(
                f"{len(options.videos)} videos, {len(labels)} labels, methods {', '.join(options.method)}, {client.url}"
            )
            return 0
        # Before any file is sent: it also tells whether the service is there and lets us in.
        random_weights = any(model.random_weights for model in client.models().models)
        console = Console(highlight=False)
        failed = 0
        for ranking in _served(client, labels, options):
            failed += ranking.error is not None
            if options.json_lines:
                values = {**asdict(ranking), "random_weights": random_weights}
                print(json.dumps(values, ensure_ascii=False, default=BaseModel.model_dump))
            else:
                print_ranking(ranking, console, random_weights=random_weights)
    return 1 if failed else 0


def _served(client: Client, labels: tuple[str, ...], options: PredictConfig) -> Iterator[ServedRanking]:
    """One ranking a file and method, in the order given, as `zar_ray.adaptation.predict.predict` yields them."""
    for video in options.videos:
        for method in options.method:
            try:
                answer = client.classify(
                    video,
                    labels,
                    template=options.template,
                    method=method,
                    top_k=options.top_k,
                    steps=options.zar.steps,
                    seed=options.seed,
                )
            except OSError as error:
                missing = isinstance(error, FileNotFoundError)
                reason = "no such file" if missing else f"cannot be read: {error.strerror or error}"
                yield ServedRanking(video, method, (), (), error=reason)
            except ServiceError as error:
                if error.code not in _FILE_PROBLEMS:
                    raise
                yield ServedRanking(video, method, (), (), error=error.detail)
            else:
                yield ServedRanking(video, method, answer.before, answer.after, warning=answer.video.warning)
