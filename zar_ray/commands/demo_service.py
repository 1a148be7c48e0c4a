"""The service with the demo's model: `serve run serve.app:demo`."""

from __future__ import annotations

from typing import Any

from ray.serve import Application
from rich.console import Console

from zar_ray.data.manifest import read_manifest
from zar_ray.serving.application import build, one_line_mistakes, options_of
from zar_ray.study.demo import checkpoint_file, ensure_demo, videos_folder
from zar_ray.study.options import EvalConfig


@one_line_mistakes
def demo(args: dict[str, Any]) -> Application:
    """The service with the demo's tiny model, which is made on first use; its videos are the page's samples.

    Args:
        args: Further options of `ServiceOptions`.

    Raises:
        ZarError: The demo cannot be made, or an option does not fit.
    """
    device = args.get("device", "auto")
    ensure_demo(EvalConfig(dataset="demo", checkpoint=checkpoint_file(), device=device), Console())
    classes = read_manifest(videos_folder() / "manifest.parquet").class_names
    of_demo = {
        "checkpoint": str(checkpoint_file()),
        "samples": str(videos_folder() / "test"),
        "label_sets": {"demo": ",".join(classes)},
    }
    return build(options_of({**of_demo, **args}))
