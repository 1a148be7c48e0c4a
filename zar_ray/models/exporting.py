"""Writes checkpoints that other code reads: open_clip's, and what understands OpenAI's state dicts."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import save_file

from zar_ray.errors import ModelError
from zar_ray.models.architecture import architecture_difference, infer_architecture, model_name
from zar_ray.models.checkpoints import appearing, free_path
from zar_ray.models.clip import ClipModel
from zar_ray.models.formats import OPENAI_MARKS
from zar_ray.models.loading import load_source
from zar_ray.models.openclip import HF_CONFIG_NAME, HF_SAFE_WEIGHTS_NAME
from zar_ray.models.systems.base import SYSTEM
from zar_ray.models.systems.registry import known_parts
from zar_ray.models.tokens import TOKENIZER_FILES
from zar_ray.options.places import AnyFile, RemoteFile
from zar_ray.video.transforms import Preprocessing

ExportFormat = Literal["open_clip", "openai"]

_SAFETENSORS = ".safetensors"


@dataclass(frozen=True)
class Export:
    """What was written.

    Attributes:
        path: The file or folder.
        usage: How the other code loads it.
        lost: What the checkpoint says and the other format cannot.
    """

    path: AnyFile
    usage: str
    lost: tuple[str, ...]


def export_checkpoint(
    source: str | os.PathLike[str], output: str | os.PathLike[str], to: ExportFormat, half: bool = False
) -> Export:
    """Writes a checkpoint for other code.

    Args:
        source: A checkpoint file or an open_clip ``NAME:TAG``.
        output: For open_clip a folder, which describes itself, or a ``.safetensors`` file, which is loaded under the
            architecture's open_clip name. For OpenAI's layout a ``.safetensors`` or ``.pt`` file.
        to: The format.
        half: Round the weights, but not the logit scale, to float16.

    Raises:
        ModelError: The source cannot be loaded; the format has no place for such a model; or there is something at
            `output` already.
    """
    as_folder = to == "open_clip" and Path(output).suffix not in (_SAFETENSORS, ".pt", ".pth", ".bin")
    endings = () if as_folder else (_SAFETENSORS,) if to == "open_clip" else (_SAFETENSORS, ".pt")
    target = free_path(output, *endings)
    model = load_source(source)
    if added := [word for word in known_parts() if word in model.architecture]:
        raise ModelError(f"{source}: has more than a CLIP ({', '.join(added)}), and {to}'s format has no place for it")
    tensors = {name: tensor.detach().contiguous().clone() for name, tensor in model.clip.state_dict().items()}
    if half:
        rounded = [name for name, tensor in tensors.items() if tensor.is_floating_point() and name != "logit_scale"]
        tensors |= {name: tensors[name].half() for name in rounded}
    if to == "openai":
        return _export_openai(model, tensors, target, str(source))
    if as_folder:
        pixels = model.preprocessing
        config = {
            "model_cfg": {name: value for name, value in model.architecture.items() if name != SYSTEM},
            "preprocess_cfg": {
                "mean": list(pixels.mean),
                "std": list(pixels.std),
                "interpolation": pixels.interpolation.removeprefix("plain_"),
                "resize_mode": pixels.resize_mode,
                "fill_color": pixels.fill,
            },
        }
        if isinstance(target, RemoteFile):
            raise ModelError(f"{target}: a folder is written to a local disk alone; name a path or a .safetensors file")
        with appearing(target) as unfinished:
            unfinished.mkdir()
            save_file(tensors, unfinished / HF_SAFE_WEIGHTS_NAME, metadata={"format": "pt"})
            _copy_tokenizer(model, unfinished)
            (unfinished / HF_CONFIG_NAME).write_text(json.dumps(config, indent=2), encoding="utf-8")
        return Export(target, f'open_clip.create_model_and_transforms("local-dir:{target}")', _lost(model, "folder"))
    name = model_name(model.architecture)
    if name is None:
        raise ModelError(
            f"{source}: its architecture has no name in open_clip, so a file alone cannot be loaded there; export a"
            " folder: give --output without an ending"
        )
    with appearing(target) as unfinished:
        save_file(tensors, unfinished, metadata={"format": "pt"})
    return Export(target, f'open_clip.create_model("{name}", pretrained="{target}")', _lost(model, "file"))


def _copy_tokenizer(model: ClipModel, folder: Path) -> None:
    """Puts the files of a model's own tokenizer beside its weights, where open_clip looks for them."""
    source = Path(str(model.architecture["text_cfg"].get("hf_tokenizer_name", "")))
    for pattern in TOKENIZER_FILES if source.name and source.is_dir() else ():
        for file in source.glob(pattern):
            shutil.copyfile(file, folder / file.name)


def _export_openai(model: ClipModel, tensors: dict[str, torch.Tensor], target: AnyFile, source: str) -> Export:
    """OpenAI's code reads all sizes off the tensors, by rules that a model must follow to be read right."""
    understood = infer_architecture(tensors, source)
    difference = architecture_difference(model.architecture, understood)
    if difference is not None:
        raise ModelError(
            f"{source}: OpenAI's layout does not say what this model is, and would be read wrongly ({difference});"
            " export it with --format open_clip"
        )
    marks = (model.preprocessing.input_size, model.context_length, model.clip.vocab_size)
    tensors = tensors | {name: torch.tensor(value) for name, value in zip(OPENAI_MARKS, marks, strict=True)}
    with appearing(target) as unfinished:
        if target.suffix == _SAFETENSORS:
            save_file(tensors, unfinished, metadata={"format": "pt"})
        else:
            torch.save(tensors, unfinished)
    return Export(target, "clip.model.build_model(state_dict)", _lost(model, "file"))


def _lost(model: ClipModel, kind: Literal["folder", "file"]) -> tuple[str, ...]:
    """The preprocessing that goes unsaid: only a folder's configuration tells of any, and not of the short side.

    Nor does it know a filter without antialiasing.
    """
    ours, size = model.preprocessing, model.preprocessing.input_size
    plain = ("interpolation",) if ours.interpolation.startswith("plain_") else ()
    silent = ("mean", "std", "interpolation", "resize_mode") if kind == "file" else plain
    lost = [
        f"{name} {getattr(ours, name)}" for name in silent if getattr(ours, name) != getattr(Preprocessing(size), name)
    ]
    if ours.short_side not in (None, size):
        lost.append(f"short_side {ours.short_side}")
    return tuple(lost)
