"""The command `zar cost`."""

from __future__ import annotations

from typing import Annotated

import tyro
from rich.console import Console

from zar_ray.commands.common import verb
from zar_ray.errors import ConfigError
from zar_ray.study.options import EvalConfig
from zar_ray.video.options import ViewConfig


@verb("zar cost")
def cost_command(
    models: Annotated[tuple[str, ...], tyro.conf.Positional] = (),
    frames: int = 16,
    class_names: str = "kinetics400",
    length: int = 300,
    steps: int = 1,
) -> int:
    """Counts from shapes alone, without weights or videos; a GFLOP is 1e9 multiplications with addition.

    Args:
        models: Names of systems or of open_clip's models, or checkpoint files; by default CLIP and all systems.
        frames: Frames a view; models for views of another length have their own.
        class_names: The candidate classes: a list of conf/classes, "a,b,c", or a file with one a line.
        length: Frames of the video whose views are counted.
        steps: ZAR's steps.
    """
    from zar_ray.commands.costs import cost_rows, print_costs
    from zar_ray.data.classes import class_list, known_class_lists
    from zar_ray.data.datasets import parse_class_names
    from zar_ray.models.systems.registry import known_systems

    if min(frames, length, steps) < 1:
        raise ConfigError("zar cost: --frames, --length and --steps are 1 or more")
    known = class_names in known_class_lists()
    names = class_list(class_names) if known else parse_class_names(class_names)
    views = ViewConfig(frames=frames, eval_frames=frames)
    options = EvalConfig.model_validate({"views": views, "method": ("zar",), "zar": {"steps": steps}})
    chosen = models or (EvalConfig.model_fields["model"].default, *known_systems())
    rows = cost_rows(chosen, names, options, length)
    console = Console(highlight=False)
    print_costs(rows, console)
    console.print(
        "view, encoding and tuning are GFLOPs as papers count. view: an evaluation view as published. encoding:\n"
        f"of the images that ZAR takes of a video of {length} frames. tuning: of the text of {len(names)} classes,"
        f" --steps {steps}.",
        style="dim",
    )
    return 0
