"""Reads a reference fixture: ``fixture.json`` beside ``arrays.npz``."""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from zar_ray.errors import ConfigError
from zar_ray.options.layers import one_line
from zar_ray.parity.checks import ArrayCheck, equal, miss
from zar_ray.parity.recipe import recipe_digest, recipe_input, recipe_state_dict

DESCRIPTION = "fixture.json"
ARRAYS = "arrays.npz"
# The names under which the inputs' digests are taken.
_INPUT_NAME, _FEATURES_NAME = "frames", "features"


class FileFormat(BaseModel):
    """Base of what is read from a fixture; entries that explain where it comes from are not read."""

    model_config = ConfigDict(extra="ignore", frozen=True)


_Format = TypeVar("_Format", bound=FileFormat)


class FixtureFile(FileFormat):
    """``fixture.json``, as far as checks need it.

    Attributes:
        system: What was run, which decides how to read the rest.
        seed: Seed of the recipe.
        config: Sizes and settings of the system.
        class_names: The K candidate classes.
        checkpoint: Shapes by official key, by part of the checkpoint.
        digest: Check sums of the recipe's output: one a part of the checkpoint, and the input's.
        input_shape: Shape of the recipe's input.
        clips: Facts of real videos, by name.
        arrays: What the arrays are, by name.
        descriptions: A text a class, where a system reads such.
        grad_norm_names: Parameters whose gradients were taken, under their published names.
        trainable: Parameters that training changes, under their published names.
        feature_input_shape: Shape of a second input of the recipe, frame embeddings.
    """

    system: str
    seed: int
    config: dict[str, Any]
    class_names: tuple[str, ...] = ()
    checkpoint: dict[str, Any] = {}
    digest: dict[str, str] = {}
    input_shape: tuple[int, ...] = ()
    clips: dict[str, dict[str, Any]] = {}
    arrays: dict[str, Any] = {}
    descriptions: tuple[str, ...] = ()
    grad_norm_names: Any = None
    trainable: tuple[str, ...] = ()
    feature_input_shape: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class Fixture:
    """A fixture's folder, read.

    Attributes:
        folder: The folder.
        file: Its description.
        arrays: Its arrays by name.
    """

    folder: Path
    file: FixtureFile
    arrays: dict[str, np.ndarray]

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.resolve().name

    def label(self, what: str) -> str:
        """The name of a check of this fixture."""
        return f"{self.name}/{what}"

    def read(self, kind: type[_Format], values: object, place: str) -> _Format:
        """Reads a part of the description.

        Raises:
            ConfigError: The part does not fit its format.
        """
        return _validated(kind, values, f"{self.folder / DESCRIPTION}: {place}")

    def weights(self, part: str) -> dict[str, np.ndarray]:
        """The recipe's weights of a part of the checkpoint.

        Args:
            part: Its name; ``PART/VARIANT`` for one of several variants of ``PART_model_state_dict``, and a variant's
                name alone for one of ``state_dict``, or for a whole file with ``model`` in it.

        Raises:
            ConfigError: The fixture lists no such part.
        """
        shapes = self._shapes(part)
        if shapes is None:
            raise ConfigError(f"{self.folder / DESCRIPTION}: its checkpoint lists no {part}")
        return recipe_state_dict(shapes, self.file.seed)

    def _shapes(self, part: str) -> dict[str, Any] | None:
        name, slash, variant = part.partition("/")
        parts = self.file.checkpoint
        if slash:
            parts, part = parts.get(f"{name}_model_state_dict"), variant
        elif part not in parts:
            parts = parts.get("state_dict")
        shapes = parts.get(part) if isinstance(parts, dict) else None
        if isinstance(shapes, dict) and isinstance(shapes.get("model"), dict):
            shapes = shapes["model"]
        return shapes if isinstance(shapes, dict) else None

    def array(self, name: str) -> np.ndarray:
        """An array that is an input of a check.

        Raises:
            ConfigError: The fixture has none of that name.
        """
        if name not in self.arrays:
            raise ConfigError(f"{self.folder / ARRAYS}: lacks {name}")
        return self.arrays[name]

    def input(self) -> np.ndarray:
        """The recipe's input, float32."""
        return recipe_input(self.file.input_shape, self.file.seed)

    def feature_input(self) -> np.ndarray:
        """The recipe's second input, frame embeddings, float32."""
        return recipe_input(self.file.feature_input_shape, self.file.seed)

    def check_digests(self) -> list[ArrayCheck]:
        """Whether the recipe gives the same weights and input here as where the reference was made."""
        checks = []
        for part, expected in self.file.digest.items():
            name = self.label(f"digest/{part}")
            if part == "input":
                checks.append(equal(name, expected, recipe_digest({_INPUT_NAME: self.input()})))
            elif part == "feature_input":
                checks.append(equal(name, expected, recipe_digest({_FEATURES_NAME: self.feature_input()})))
            elif self._shapes(part) is not None:
                checks.append(equal(name, expected, recipe_digest(self.weights(part))))
            else:
                checks.append(miss(name, "its tensors are not listed"))
        return checks


def is_fixture(folder: Path) -> bool:
    """Whether a folder holds a fixture."""
    return (folder / DESCRIPTION).is_file()


def read_fixture(folder: Path) -> Fixture:
    """Reads a fixture.

    Raises:
        ConfigError: A file is missing, cannot be read or lacks something.
    """
    description, arrays = folder / DESCRIPTION, folder / ARRAYS
    try:
        content = json.loads(description.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{description}: cannot be read as JSON ({error})") from error
    try:
        with np.load(arrays, allow_pickle=False) as file:
            values = {name: file[name] for name in file.files}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise ConfigError(f"{arrays}: cannot be read as arrays ({error})") from error
    return Fixture(folder, _validated(FixtureFile, content, str(description)), values)


def _validated(kind: type[_Format], values: object, place: str) -> _Format:
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{place}: {one_line(error)}") from error
