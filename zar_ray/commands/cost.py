"""`zar cost`: what models cost, side by side, before anything runs.

Everything is counted from shapes, so no weights are read but a checkpoint's own description.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro
from rich import box
from rich.table import Table

from zar_ray.adaptation.options import Setting
from zar_ray.commands.parsing import verb
from zar_ray.data.class_texts import class_prompts, prompts_of
from zar_ray.data.classes import class_list, known_class_lists
from zar_ray.data.datasets import parse_class_names
from zar_ray.errors import ConfigError, ModelError
from zar_ray.evaluation.planning import count_costs
from zar_ray.models.architecture import named_architecture, system_architecture
from zar_ray.models.checkpoints import read_checkpoint
from zar_ray.models.clip import ClipModel
from zar_ray.models.cost import weightless
from zar_ray.models.loading import describe_checkpoint, warn_of_assumed
from zar_ray.models.settings import Settings, parsed, with_settings
from zar_ray.models.systems.registry import find_system, known_systems
from zar_ray.models.text import PromptedClasses
from zar_ray.options.layers import conf_dir, read_yaml, validate
from zar_ray.options.places import from_home
from zar_ray.reporting.numbers import gflops
from zar_ray.results.record import ModelCost
from zar_ray.study.options import EvalConfig
from zar_ray.terminal import output_console
from zar_ray.training.network import VideoTextModel
from zar_ray.training.options import TrainConfig
from zar_ray.video.options import ViewConfig
from zar_ray.video.plans import by_view, plan_views
from zar_ray.video.transforms import Preprocessing

COLUMNS = ("model", "frames", "M parameters", "M trained", "recipe", "view", "images", "encoding", "tuning")
_VIDEO = "a video"  # the same for all models, whose views are drawn by its name
_PLAIN_RECIPE = "k400_zar"  # of models that have none of their own


@dataclass(frozen=True)
class CostRow:
    """One model's costs.

    Attributes:
        model: What it was called.
        recipe: The training recipe that `trained` is of, a name in conf/train; None where it cannot train the model.
        trained: Parameters that take gradients in it.
        cost: What it holds and computes; `tuning_gflops` is ZAR's, and empty where ZAR is refused.
        images: Images that ZAR encodes of the video, those of the evaluation view among them.
    """

    model: str
    recipe: str | None
    trained: int | None
    cost: ModelCost
    images: int

    def shown(self) -> tuple[str, ...]:
        """The row of a table, under `COLUMNS`."""
        cost, tuning = self.cost, self.cost.tuning_gflops.get("zar")
        return (
            self.model,
            str(cost.view_frames),
            f"{cost.parameters / 1e6:,.1f}",
            "-" if self.trained is None else f"{self.trained / 1e6:,.2f}",
            self.recipe or "-",
            gflops(cost.view_gflops),
            "-" if tuning is None else str(self.images),
            "-" if tuning is None else gflops(self.images * cost.image_gflops),
            "refused" if tuning is None else gflops(tuning),
        )


@verb("zar cost")
def cost_command(
    models: Annotated[tuple[str, ...], tyro.conf.Positional] = (),
    frames: int = 16,
    class_names: str = "kinetics400",
    length: int = 300,
    steps: int = 1,
    settings: tuple[str, ...] = (),
) -> int:
    """Counts from shapes alone, without weights or videos; a GFLOP is 1e9 multiplications with addition.

    Args:
        models: Names of systems or of open_clip's models, or checkpoint files; by default CLIP and all systems.
        frames: Frames a view; models for views of another length have their own.
        class_names: The candidate classes: a list of conf/classes, "a,b,c", or a file with one a line.
        length: Frames of the video whose views are counted.
        steps: ZAR's steps.
        settings: NAME=VALUE words for every model: what a checkpoint's tensors do not tell, and other sizes of what a
            published system adds, such as frames=16 (docs/models.md).
    """
    if min(frames, length, steps) < 1:
        raise ConfigError("zar cost: --frames, --length and --steps are 1 or more")
    known = class_names in known_class_lists()
    names = class_list(class_names) if known else parse_class_names(class_names)
    views = ViewConfig(frames=frames, eval_frames=frames)
    options = EvalConfig.model_validate(
        {"views": views, "method": ("zar",), "zar": {"steps": steps}, "settings": settings}
    )
    chosen = models or (EvalConfig.model_fields["model"].default, *known_systems())
    table = Table(*COLUMNS, box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for column in (1, 2, 3, 5, 6, 7, 8):
        table.columns[column].justify = "right"
    for model in chosen:
        table.add_row(*cost_row(model, names, options, length).shown())
    console = output_console()
    console.print(table)
    console.print(
        "view, encoding and tuning are GFLOPs as papers count. view: an evaluation view as published. encoding:\n"
        f"of the images that ZAR takes of a video of {length} frames. tuning: of the text of {len(names)} classes,"
        f" --steps {steps}.",
        style="dim",
    )
    return 0


def cost_row(model: str, class_names: Sequence[str], options: EvalConfig, length: int) -> CostRow:
    """Counts what a model holds, trains and computes.

    Args:
        model: The name of a system or of one of open_clip's models, or a checkpoint file.
        class_names: The candidate classes, which the text tower reads.
        options: The views, ZAR's steps, the prompts and the model's settings. A model for views of another length has
            its own.
        length: Frames of the video that is adapted to, 340 by 256 pixels.

    Raises:
        ConfigError: A name is unknown, or a setting is none of the model's.
        ModelError: A file is no checkpoint of a CLIP.
    """
    shape = _shape(model, parsed(options.settings))
    frames = shape.view_frames
    if frames is not None:
        views = options.views.model_copy(update={"frames": frames, "eval_frames": frames})
        options = options.model_copy(update={"views": views})
    (prompts,) = prompts_of((tuple(class_names),), options)
    try:
        PromptedClasses.of(shape, prompts).require_tunable()
    except ConfigError:
        options = options.model_copy(update={"method": ()})
    (cost,) = count_costs(shape, [Setting(options, (prompts,))])
    plan = plan_views(_VIDEO, length, 256, 340, options.views, shape.preprocessing, options.seed)
    if not shape.frame_independent:
        (plan,) = by_view([plan])
    recipe, trained = _trained(model, shape, class_names)
    return CostRow(model, recipe, trained, cost, len(plan.images))


def _shape(model: str, settings: Settings) -> ClipModel:
    """A weightless copy of what a name or a file stands for, under some settings."""
    file = from_home(model)
    if file.is_file():
        checkpoint = read_checkpoint(file)
        warn_of_assumed(checkpoint, settings)
        name, architecture, preprocessing = describe_checkpoint(checkpoint, settings=settings)
        return weightless(architecture, name, preprocessing)
    system = find_system(model)
    # What a name stands for is known, all but the sizes of what a system adds.
    additions = with_settings({} if system is None else system.additions, settings, model)
    architecture = named_architecture(model) if system is None else {**system_architecture(system), **additions}
    size = architecture["vision_cfg"].get("image_size", 224)
    return weightless(architecture, model, Preprocessing(input_size=size))


def _trained(model: str, shape: ClipModel, class_names: Sequence[str]) -> tuple[str | None, int | None]:
    """The recipe that trains a model, and how many parameters take gradients in it."""
    own = conf_dir() / "train" / f"{model}.yaml"
    path = own if find_system(model) is not None and own.is_file() else conf_dir() / "train" / f"{_PLAIN_RECIPE}.yaml"
    config = validate(TrainConfig, read_yaml(path), str(path))
    config = config.model_copy(update={"frames": shape.view_frames or config.frames})
    prompts = class_prompts(class_names, config.context)
    try:
        network = VideoTextModel(shape, prompts, config)
    except (ConfigError, ModelError):
        return None, None
    return path.stem, sum(one.numel() for one in network.parameters() if one.requires_grad)
