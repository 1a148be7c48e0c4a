"""What a published system declares; docs/extending.md shows a new one, in a package of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from zar_ray.models.formats import Converted, SavedWeights
from zar_ray.models.parts import is_of_head
from zar_ray.video.transforms import Preprocessing

if TYPE_CHECKING:
    from zar_ray.training.options import TrainConfig

SYSTEM = "system"
"""An architecture's word for the name of the system that it is of."""

EVALUATION_SCALE = "evaluation_scale"
"""An architecture's word for what cosines are multiplied by where that is not what was learnt."""


@dataclass(frozen=True)
class TrainingRule:
    """How training treats a system's parameters, each by its name in the CLIP's state dict.

    Attributes:
        added: Which ones ``--trains added`` trains, under which all others are frozen. By default none, and it is
            refused.
        new: Which ones learn at ``--fusion-lr`` times the rate, as they start from new weights. By default the head's.
        lr_multiple: What a parameter's learning rate is multiplied by, whatever the options say.
        undecayed: Which ones weight decay leaves alone, whatever the options say.
        drops_layers: Whether ``--drop-path`` and ``--attention-dropout`` act in towers whose frames see each other;
            without it they are refused there.
        refuses: Why options cannot train it, as the end of the line ``NAME: has …``; None where they can.
    """

    added: Callable[[str], bool] = lambda name: False
    new: Callable[[str], bool] = is_of_head
    lr_multiple: Callable[[str], float] = lambda name: 1.0
    undecayed: Callable[[str], bool] = lambda name: False
    drops_layers: bool = False
    refuses: Callable[[TrainConfig], str | None] = lambda config: None


@dataclass(frozen=True)
class System:
    """A published system: a CLIP of open_clip's and what is added to it. It fills in what it has.

    Attributes:
        name: What ``--model`` calls it.
        title: What people call it.
        clip: The open_clip name of the CLIP it builds on.
        parts: What it can add to a CLIP: by the word that an architecture has for it, what puts it there, with new
            weights from torch's default generator. The settings under the word are its arguments. It raises
            `zar_ray.errors.ModelError` where the CLIP or a setting does not fit.
        additions: What an architecture has beside that CLIP's when it starts from one: settings under words of parts,
            and `EVALUATION_SCALE`.
        optional: Words of what its checkpoints may have or lack.
        recognise: Tells its published files by their keys, and gives their weights our names; None for other files.
            Raises `zar_ray.errors.ModelError` where one of its own is not whole.
        preprocessing: What its evaluation does to pixels, by the input size; None: as the CLIP it starts from.
        context: The words in front of class names that its checkpoints were trained with; they stand there wherever the
            user names no others. None: those of any CLIP.
        training: How training treats its parameters.
        reference: Its source: a key of conf/references.bib, or a whole BibTeX entry.
    """

    name: str
    title: str
    clip: str = "ViT-B-16-quickgelu"
    parts: Mapping[str, Callable[..., None]] = field(default_factory=dict)
    additions: Mapping[str, Any] = field(default_factory=dict)
    optional: tuple[str, ...] = ()
    recognise: Callable[[SavedWeights], Converted | None] = lambda saved: None
    preprocessing: Callable[[int], Preprocessing] | None = None
    context: str | None = None
    training: TrainingRule = TrainingRule()
    reference: str | None = None
