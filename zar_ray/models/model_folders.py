"""Models that describe themselves in open_clip's way: a folder or a repository of the hub with a config beside weights.

``local-dir:PATH`` and ``hf-hub:ORG/NAME`` name such a model. The config, ``open_clip_config.json``, has the
architecture under ``model_cfg`` and what is expected of pixels under ``preprocess_cfg``. Where it is missing, the
``config.json`` that Hugging Face's `CLIPModel` is saved with is read, whose pixels are CLIP's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zar_ray.errors import ModelError, reason_of
from zar_ray.models.hub import hub_file
from zar_ray.models.layouts import architecture_of_hugging_face
from zar_ray.models.openclip import HF_CONFIG_NAME, HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME
from zar_ray.models.tokens import TOKENIZER_SIGNS
from zar_ray.options.places import AnyFile, from_home
from zar_ray.untrusted import parse_json
from zar_ray.video.transforms import CLIP_MEAN, CLIP_STD, Preprocessing

_HUGGING_FACE_CONFIG = "config.json"

LOCAL, HUB = "local-dir:", "hf-hub:"

# In the order in which open_clip prefers them.
_WEIGHTS = (
    HF_SAFE_WEIGHTS_NAME,
    "open_clip_pytorch_model.safetensors",
    HF_WEIGHTS_NAME,
    "open_clip_pytorch_model.pth",
    "model.safetensors",
    "pytorch_model.bin",
    "pytorch_model.pth",
    "model.pth",
)


@dataclass(frozen=True)
class ModelFolder:
    """A model that describes itself.

    Attributes:
        asked: As it was named.
        folder: Where it lies; None on the hub.
        architecture: As open_clip's model configs.
        pixels: open_clip's ``preprocess_cfg``; None where there is none.
    """

    asked: str
    folder: Path | None
    architecture: dict[str, Any]
    pixels: Mapping[str, Any] | None

    @property
    def name(self) -> str:
        """What results call it: the last part of its name."""
        return self.asked.partition(":")[2].rstrip("/").rpartition("/")[2]

    def weights(self) -> Path:
        """The file of its weights, fetched where it must be.

        Raises:
            ModelError: There is none.
        """
        if self.folder is None:
            return hub_file(self.asked.removeprefix(HUB), (HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME), self.asked)
        usual = (self.folder / name for name in _WEIGHTS)
        others = (file for end in ("safetensors", "bin", "pth", "pt") for file in sorted(self.folder.glob(f"*.{end}")))
        found = next((file for file in (*usual, *others) if file.is_file()), None)
        if found is None:
            raise ModelError(f"{self.asked}: holds no weights; put them there as {HF_SAFE_WEIGHTS_NAME}")
        return found


def is_self_described(name: str) -> bool:
    """Whether a model's name says where it describes itself."""
    return name.startswith((LOCAL, HUB))


def find_folder(name: str) -> ModelFolder:
    """What ``local-dir:PATH`` or ``hf-hub:ORG/NAME`` stands for; its weights are not looked at.

    A folder's own tokenizer, and its own config of a text tower of Hugging Face's, come before those that its config
    names.

    Raises:
        ModelError: There is no such folder or repository, or it has no config that can be read.
    """
    if name.startswith(HUB):
        repository = name.removeprefix(HUB)
        if repository.count("/") != 1 or not all(repository.split("/")):
            raise ModelError(f"{name}: is no repository of the hub; name one as {HUB}ORG/NAME")
        model, pixels = _read_config(hub_file(repository, (HF_CONFIG_NAME,), name))
        return ModelFolder(name, None, model, pixels)
    folder = from_home(name.removeprefix(LOCAL))
    if not folder.is_dir():
        raise ModelError(f"{name}: no such folder")
    if (told := _told_by(folder.joinpath)) is None:
        raise ModelError(
            f"{name}: has no {HF_CONFIG_NAME}, nor a {_HUGGING_FACE_CONFIG} of a CLIPModel, which says what model it is"
        )
    model, pixels = told
    text = dict(model["text_cfg"])
    if text.get("hf_tokenizer_name") and any((folder / one).is_file() for one in TOKENIZER_SIGNS):
        text["hf_tokenizer_name"] = str(folder.resolve())
    if text.get("hf_model_name") and (folder / "config.json").is_file():
        text["hf_model_name"] = str(folder.resolve())
    return ModelFolder(name, folder, {**model, "text_cfg": text}, pixels)


def config_beside(weights: AnyFile) -> tuple[dict[str, Any], Mapping[str, Any] | None] | None:
    """The architecture, and what is expected of pixels, that a config beside a file of weights tells; None without.

    Of Hugging Face's it does not tell the latter.

    Raises:
        ModelError: It cannot be read.
    """
    return _told_by(weights.with_name)


def preprocessing_of(pixels: Mapping[str, Any], size: int, place: str) -> Preprocessing:
    """open_clip's ``preprocess_cfg``, or what a pretrained tag says, of a model that reads `size` pixels.

    Raises:
        ModelError: It says what is not known.
    """
    try:
        mean, std = (_three(pixels.get(name) or usual) for name, usual in (("mean", CLIP_MEAN), ("std", CLIP_STD)))
    except (TypeError, ValueError):  # it is no number
        mean = std = ()
    filter_, mode = pixels.get("interpolation") or "bicubic", pixels.get("resize_mode") or "shortest"
    fill = pixels.get("fill_color") or 0
    if mode not in ("shortest", "squash", "longest") or filter_ not in ("bicubic", "bilinear", "random"):
        raise ModelError(f"{place}: its pixels are resized in an unknown way (resize {mode}, filter {filter_})")
    if len(mean) != 3 or len(std) != 3 or not all(std) or not isinstance(fill, int) or not 0 <= fill <= 255:
        raise ModelError(f"{place}: the mean, standard deviation or fill colour that it names for pixels is none")
    # open_clip draws "random" in training alone
    return Preprocessing(
        size, mean, std, "bilinear" if filter_ == "bilinear" else "bicubic", resize_mode=mode, fill=fill
    )


def _told_by(named: Callable[[str], AnyFile]) -> tuple[dict[str, Any], Mapping[str, Any] | None] | None:
    """What open_clip's config says, or Hugging Face's of a `CLIPModel`, without pixels; `named` makes their paths."""
    own, other = named(HF_CONFIG_NAME), named(_HUGGING_FACE_CONFIG)
    if own.is_file():
        return _read_config(own)
    if not other.is_file():
        return None
    try:
        content = parse_json(other.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # of whatever else lies there
        return None
    model = architecture_of_hugging_face(content, str(other)) if isinstance(content, dict) else None
    return None if model is None else (model, None)


def _three(values: Any) -> tuple[float, ...]:
    return tuple(map(float, values)) if isinstance(values, list | tuple) else (float(values),) * 3


def _read_config(file: AnyFile) -> tuple[dict[str, Any], Mapping[str, Any] | None]:
    try:
        content = parse_json(file.read_text(encoding="utf-8"))
        model, pixels = content["model_cfg"], content.get("preprocess_cfg")
        whole = isinstance(model["vision_cfg"], dict) and isinstance(model["text_cfg"], dict)
        if not whole or not (pixels is None or isinstance(pixels, dict)):
            raise ValueError("its parts are no mappings")
    except (AttributeError, KeyError, OSError, TypeError, ValueError) as error:
        raise ModelError(f"{file}: cannot be read as open_clip's config of a model ({reason_of(error)})") from error
    return dict(model), pixels
