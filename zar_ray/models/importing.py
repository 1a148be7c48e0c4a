"""Makes zar-ray checkpoints of other systems' files, and accounts for every tensor."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from zar_ray.errors import ModelError
from zar_ray.models.architecture import Architecture, build_clip
from zar_ray.models.checkpoints import Checkpoint, clip_with, free_path, read_checkpoint, save_checkpoint, shape_of
from zar_ray.models.clip import ClipModel
from zar_ray.models.loading import describe_checkpoint, load_source
from zar_ray.models.settings import Settings, parsed, told, tower_settings, with_settings
from zar_ray.video.transforms import Preprocessing


@dataclass(frozen=True, eq=False)
class ImportPlan:
    """What becomes of every tensor of a checkpoint, and where the rest comes from.

    Attributes:
        checkpoint: The file, read.
        name: What the model is called.
        architecture: As open_clip's model configs.
        preprocessing: What the model expects of its pixels.
        used: Tensors taken from the file, by our names.
        from_base: Tensors that the file lacks and the base has.
        missing: Tensors that neither has.
        given: Settings that the user gave.
        unknown: Tensors of the file that belong to no CLIP.
        base: The base, if one was given.
        base_name: As it was given.
    """

    checkpoint: Checkpoint
    name: str
    architecture: Architecture
    preprocessing: Preprocessing
    used: tuple[str, ...]
    from_base: tuple[str, ...]
    missing: tuple[str, ...]
    given: Settings
    unknown: tuple[str, ...]
    base: ClipModel | None
    base_name: str | None

    def lines(self) -> list[str]:
        """The account: the counts, then every tensor that is not simply used, with the reason."""
        epoch = "" if self.checkpoint.epoch is None else f", epoch {self.checkpoint.epoch}"
        unused = {**self.checkpoint.left_out, **dict.fromkeys(self.unknown, "belongs to no CLIP")}
        notable = [("unused", name, why) for name, why in unused.items()]
        notable += [("from the base", name, str(self.base_name)) for name in self.from_base]
        notable += [("missing", name, "neither in the file nor in a base") for name in self.missing]
        width = max((len(name) for _, name, _ in notable), default=0)
        # Of a plain CLIP what was assumed has been said, or the base, a name or a config told it.
        of_towers = tower_settings(self.architecture) if self.checkpoint.architecture is not None else ()
        assumed = (
            ("assumed", self.checkpoint.assumed, "the file does not say"),
            ("by convention", of_towers, "no tensor says, as in OpenAI's CLIP"),
        )
        untold = [(what, [name for name in names if name not in self.given], why) for what, names, why in assumed]
        return [
            f"{self.checkpoint.path}: {self.checkpoint.title}{epoch}",
            f"{len(self.used)} tensors used, {len(unused)} unused, {len(self.missing)} missing,"
            f" {len(self.from_base)} from the base",
            *(f"{what:<13}  {name:<{width}}  {why}" for what, name, why in notable),
            *(
                f"{what:<13}  {told(self.architecture, names)}: {why}; otherwise: --settings NAME=VALUE"
                for what, names, why in untold
                if names
            ),
        ]

    def write(self, output: str | os.PathLike[str]) -> None:
        """Writes the zar-ray checkpoint, a ``.safetensors`` file.

        Raises:
            ModelError: A tensor is missing, unknown or of another shape; or there is something at `output` already.
        """
        place = str(self.checkpoint.path)
        if self.missing:
            from_base = "give the CLIP it was trained from with --base FILE or NAME:TAG"
            way_out = "nor has the base" if self.base else from_base
            raise ModelError(f"{place}: has no {_listed(self.missing)}; {way_out}")
        if self.unknown:
            raise ModelError(
                f"{place}: {_listed(self.unknown)} belong to no CLIP, and without them it would be another model than"
                " was trained"
            )
        target = free_path(output, ".safetensors")
        tensors = {name: self.checkpoint.tensors[name] for name in self.used}
        with self.checkpoint.path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        source: dict[str, Any] = {
            "format": self.checkpoint.origin,
            "file": self.checkpoint.path.name,
            "sha256": digest,
            "epoch": self.checkpoint.epoch,
        }
        if self.base is not None:
            state = self.base.clip.state_dict()
            tensors |= {name: state[name] for name in self.from_base}
            source["base"] = {
                "name": self.base.name,
                "fingerprint": self.base.fingerprint,
                "tensors": list(self.from_base),
            }
        clip = clip_with(self.architecture, tensors, place)
        notes = {"name": self.name, "imported": source}
        save_checkpoint(clip, self.architecture, self.preprocessing, target, notes)


def plan_import(
    path: str | os.PathLike[str],
    base: str | os.PathLike[str] | None = None,
    model: str | None = None,
    settings: Sequence[str] = (),
) -> ImportPlan:
    """Reads a checkpoint of another system and says what becomes of its tensors; writes nothing.

    What a file does not tell is the base's, if one is given: tensors, and for a file in OpenAI's layout its sizes,
    activation and preprocessing. The base is a checkpoint file or an open_clip ``NAME:TAG``; `model` is the open_clip
    name of the architecture, for a file in OpenAI's layout that is not OpenAI's. The `settings`, ``NAME=VALUE``, say
    what no tensor does, see `zar_ray.models.settings`.

    Raises:
        ConfigError: A setting is none of the model's.
        ModelError: A file cannot be read, is zar-ray's own already or of a model that is not here; or the base is of
            another shape.
    """
    checkpoint, given = read_checkpoint(path), parsed(settings)
    if checkpoint.origin == "zar-ray":
        raise ModelError(f"{path}: is zar-ray's own checkpoint already; use it with --checkpoint {path}")
    base_model = load_source(base) if base is not None else None
    if base_model is not None and checkpoint.architecture is None and model is None:
        name, preprocessing = checkpoint.path.stem, base_model.preprocessing
        architecture: Architecture = with_settings(base_model.architecture, given, str(path))
    else:
        name, architecture, preprocessing = describe_checkpoint(checkpoint, model, settings=given)
    with torch.device("meta"):  # names and shapes are enough
        wanted = build_clip(architecture).state_dict()
    lacking = [key for key in wanted if key not in checkpoint.tensors]
    held: Mapping[str, torch.Tensor] = base_model.clip.state_dict() if base_model is not None else {}
    for key in lacking:
        if key in held and held[key].shape != wanted[key].shape:
            raise ModelError(
                f"{base}: its {key} is {shape_of(held[key])}, and {path} needs {shape_of(wanted[key])}; give the CLIP"
                " that it was trained from"
            )
    return ImportPlan(
        checkpoint,
        name,
        architecture,
        preprocessing,
        used=tuple(key for key in wanted if key in checkpoint.tensors),
        from_base=tuple(key for key in lacking if key in held),
        missing=tuple(key for key in lacking if key not in held),
        given=given,
        unknown=tuple(key for key in checkpoint.tensors if key not in wanted),
        base=base_model,
        base_name=str(base) if base is not None else None,
    )


def default_output(path: str | os.PathLike[str]) -> Path:
    """Where an imported checkpoint goes unless it is said: beside the file, with ``.zar.safetensors`` at its end."""
    return Path(path).with_suffix(".zar.safetensors")


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more tensors"
