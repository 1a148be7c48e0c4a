"""Reads a reference fixture, ``fixture.json`` beside ``arrays.npz``, and makes models of its made-up weights."""

from __future__ import annotations

import tempfile
import warnings
import zipfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from pydantic import TypeAdapter, ValidationError

from zar_ray.errors import ConfigError
from zar_ray.models.clip import ClipModel
from zar_ray.models.importing import plan_import
from zar_ray.models.loading import load_model
from zar_ray.models.options import ModelOptions
from zar_ray.options.base import Options
from zar_ray.options.layers import validate
from zar_ray.parity.checks import Tolerance
from zar_ray.parity.formulas import evaluate_formula, names_in
from zar_ray.parity.recipe import recipe_digest, recipe_input, recipe_state_dict
from zar_ray.untrusted import parse_json

DESCRIPTION = "fixture.json"
ARRAYS = "arrays.npz"
# The names under which the inputs' digests are taken.
_INPUT_NAMES = {"input": "frames", "feature_input": "features"}

_T = TypeVar("_T")
_O = TypeVar("_O", bound=Options)


@dataclass(frozen=True, eq=False)
class Evidence:
    """What this code has to say about a fixture.

    Attributes:
        arrays: Values, NumPy's or PyTorch's, by the fixture's names; for more than it holds, perhaps.
        facts: What is no array, by the name of its check: the reference and what this code has, which is None where
            nothing here makes it. They must be equal; floats may differ as the table of tolerances has it.
    """

    arrays: dict[str, Any] = field(default_factory=dict)
    facts: dict[str, tuple[object, object]] = field(default_factory=dict)

    def add(self, arrays: Mapping[str, Any], case: str) -> None:
        """Adds the arrays of a case: as ``CASE/…``, and by their own names for what a fixture holds once for all."""
        self.arrays.update(arrays)
        self.put(arrays, case)

    def put(self, arrays: Mapping[str, Any], case: str) -> None:
        """Adds the arrays of a case as ``CASE/…`` alone."""
        self.arrays.update({f"{case}/{name}": value for name, value in arrays.items()})


class Rows:
    """Values of each sample of a stream by name, to be stacked."""

    def __init__(self) -> None:
        self._rows: dict[str, list[torch.Tensor]] = defaultdict(list)

    def add(self, **values: Any) -> None:
        """Those of the next sample."""
        for name, value in values.items():
            self._rows[name].append(torch.as_tensor(value))

    def stacked(self) -> dict[str, torch.Tensor]:
        """Those of all samples."""
        return {name: torch.stack(values) for name, values in self._rows.items()}


@dataclass(frozen=True, eq=False)
class Fixture:
    """A fixture's folder, read: what ``fixture.json`` holds (see `fact`), and the arrays by name.

    Attributes:
        videos: Folder that its video files are looked up under; by default those above the fixture.
    """

    folder: Path
    description: object
    arrays: dict[str, np.ndarray]
    videos: Path | None = None

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.resolve().name

    @property
    def system(self) -> str:
        """What was run, which decides how to read the rest."""
        return self.fact(str, "system")

    @property
    def class_names(self) -> tuple[str, ...]:
        """The K candidate classes."""
        return self.fact(tuple[str, ...], "class_names")

    def fact(self, kind: type[_T], *path: str, default: _T | None = None) -> _T:
        """Reads an entry of the description, by the keys that lead to it from the outermost, as a value of its type.

        Raises:
            ConfigError: It is missing without a default, or of another type.
        """
        value: Any = self.description
        for key in path:
            if not isinstance(value, dict) or key not in value:
                if default is not None:
                    return default
                raise ConfigError(f"{self.folder / DESCRIPTION}: {'.'.join(path)}: Field required")
            value = value[key]
        try:
            return TypeAdapter(kind).validate_python(value)
        except ValidationError as error:
            found = [(".".join(str(key) for key in (*path, *one["loc"])), one["msg"]) for one in error.errors()]
            wrong = "; ".join(f"{place}: {message}" for place, message in found)
            raise ConfigError(f"{self.folder / DESCRIPTION}: {wrong}") from error

    def options(self, kind: type[_O], **values: Any) -> _O:
        """A method's options of values that the description holds.

        Raises:
            ConfigError: They do not fit.
        """
        return validate(kind, values, str(self.folder / DESCRIPTION))

    def weights(self, part: str, zeros: Mapping[str, Sequence[int]] | None = None) -> dict[str, torch.Tensor]:
        """The recipe's weights of a part of the checkpoint.

        Args:
            part: Its name; ``PART/VARIANT`` for one of several variants of ``PART_model_state_dict``, and a variant's
                name alone for one of ``state_dict``, or for a whole file with ``model`` in it.
            zeros: Shapes of what is saved with them and made anew by whoever loads it.

        Raises:
            ConfigError: The fixture lists no such part.
        """
        shapes = self._shapes(part)
        if shapes is None:
            raise ConfigError(f"{self.folder / DESCRIPTION}: its checkpoint lists no {part}")
        values = recipe_state_dict(shapes, self.fact(int, "seed"))
        made = {name: torch.from_numpy(value) for name, value in values.items()}
        return made | {name: torch.zeros(tuple(shape)) for name, shape in (zeros or {}).items()}

    def _shapes(self, part: str) -> dict[str, Any] | None:
        name, slash, variant = part.partition("/")
        parts = self.fact(dict[str, Any], "checkpoint", default={})
        if slash:
            parts, part = parts.get(f"{name}_model_state_dict", {}), variant
        elif part not in parts:
            parts = parts.get("state_dict", {})
        shapes = parts.get(part)
        return shapes.get("model", shapes) if isinstance(shapes, dict) else None

    def array(self, name: str) -> torch.Tensor:
        """An array that is an input of a check.

        Raises:
            ConfigError: The fixture has none of that name.
        """
        if name not in self.arrays:
            raise ConfigError(f"{self.folder / ARRAYS}: lacks {name}")
        return torch.from_numpy(self.arrays[name])

    def input(self, which: str = "input") -> torch.Tensor:
        """The recipe's input, float32, or another of that name."""
        return torch.from_numpy(recipe_input(self.fact(tuple[int, ...], f"{which}_shape"), self.fact(int, "seed")))

    def made(self, name: str) -> torch.Tensor:
        """An input that the fixture gives a formula for: float32, or int64 of drawn integers.

        Raises:
            ConfigError: It gives none, or one that cannot be read.
        """
        return torch.from_numpy(self._evaluated(name, frozenset()))

    def made_by(self, *path: str) -> torch.Tensor:
        """What a formula elsewhere in the description makes, found by the keys that lead to it, as `made` does."""
        formula, place = self.fact(str, *path), f"{self.folder / DESCRIPTION}: {'.'.join(path)}"
        return torch.from_numpy(evaluate_formula(formula, self._known(), place))

    def _evaluated(self, name: str, above: frozenset[str]) -> np.ndarray:
        """An input, for those `above` it: one that leads back to itself cannot be read."""
        formula, known = self.fact(str, "inputs", name, "formula"), self._known()
        below = above | {name}
        for other in sorted(names_in(formula) & self.fact(dict[str, Any], "inputs").keys() - below):
            known[other] = self._evaluated(other, below)
        return evaluate_formula(formula, known, f"{self.folder / DESCRIPTION}: inputs.{name}")

    def _known(self) -> dict[str, int | np.ndarray]:
        """What formulas may name: the seed, and sizes and lists of the config."""
        known: dict[str, int | np.ndarray] = {"seed": self.fact(int, "seed")}
        for key, value in self.fact(dict[str, Any], "config").items():
            if isinstance(value, int):
                known[key] = value
            elif isinstance(value, list) and all(isinstance(one, int) for one in value):
                known[key] = np.array(value, dtype=np.int64)
        return known

    def tolerance(self, name: str) -> Tolerance | None:
        """What the fixture itself allows of an array; None where it does not say."""
        said = self.fact(dict[str, Any], "arrays", default={}).get(name)
        allowed = said.get("tolerance") if isinstance(said, dict) else None
        return Tolerance(float(allowed)) if isinstance(allowed, int | float) else None

    def compares(self, name: str) -> bool:
        """Whether an array is to be compared: not where the fixture gives no tolerance on purpose."""
        said = self.fact(dict[str, Any], "arrays", default={}).get(name)
        return not (isinstance(said, dict) and "tolerance" in said and said["tolerance"] is None)

    def digests(self) -> dict[str, tuple[object, object]]:
        """Of the weights and the input, each with the one that the recipe gives here; None where nothing is listed."""
        pairs: dict[str, tuple[object, object]] = {}
        for part, expected in self.fact(dict[str, str], "digest", default={}).items():
            made: dict[str, torch.Tensor] | None = None
            if part in self.fact(dict[str, Any], "inputs", default={}):
                made = {part: self.made(part)}
            elif part in _INPUT_NAMES:
                made = {_INPUT_NAMES[part]: self.input(part)}
            elif self._shapes(part) is not None:
                made = self.weights(part)
            ours = None if made is None else recipe_digest({key: value.numpy() for key, value in made.items()})
            pairs[f"digest/{part}"] = expected, ours
        return pairs


def read_fixture(folder: Path, videos: Path | None = None) -> Fixture:
    """Reads a fixture.

    Raises:
        ConfigError: A file is missing, cannot be read or lacks something.
    """
    description, arrays = folder / DESCRIPTION, folder / ARRAYS
    try:
        content = parse_json(description.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{description}: cannot be read as JSON ({error})") from error
    try:
        with np.load(arrays, allow_pickle=False) as file:
            values = {name: file[name] for name in file.files}
    except (OSError, ValueError, MemoryError, zipfile.BadZipFile) as error:
        raise ConfigError(f"{arrays}: cannot be read as arrays ({error})") from error
    return Fixture(folder, content, values, videos)


def imported(
    content: Mapping[str, object],
    base: Mapping[str, torch.Tensor] | None = None,
    settings: Sequence[str] = (),
) -> tuple[ClipModel, tuple[str, ...]]:
    """The model of a checkpoint, by way of files: the published one, and zar-ray's that is made of it.

    Args:
        content: What the published file holds.
        base: The state dict of the CLIP that it was trained from, where it needs one.
        settings: What no tensor tells, ``NAME=VALUE``, over what the import takes for granted.

    Returns:
        The model, and the names of the tensors that were left out, sorted.
    """
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        # A plain CLIP is in OpenAI's layout without OpenAI's marks, which is said when it is read.
        warnings.simplefilter("ignore", UserWarning)
        published, base_file, ours = (Path(folder) / name for name in ("v.pth", "b.pt", "v.safetensors"))
        torch.save(dict(content), published)
        if base is not None:
            torch.save(dict(base), base_file)
        plan = plan_import(published, None if base is None else base_file, settings=settings)
        plan.write(ours)
        return load_model(ModelOptions(checkpoint=ours, device="cpu")), tuple(sorted(plan.checkpoint.left_out))
