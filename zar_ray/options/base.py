"""What all options have in common: each is defined once, described, frozen, and a misspelt one is an error.

An option marked *operational* (where and how fast a run works) may change between a run and its resumption; all
others are part of what the numbers mean, and a run folder holds one setting of them only.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated, Any

import tyro
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from zar_ray.errors import ConfigError
from zar_ray.untrusted import folder_name

_PASSWORD = re.compile(r"(?<=://)([^/@\s]*):[^/@\s]*(?=@)")


def _fraction(value: object) -> object:
    """Accepts ``0.3`` and ``30%`` alike."""
    if isinstance(value, str) and value.strip().endswith("%"):
        return float(value.strip()[:-1]) / 100
    return value


Fraction = Annotated[
    float,
    BeforeValidator(_fraction),
    # The command line builds values before pydantic sees them, so it has to know the notation too.
    tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="SHARE",
        instance_from_str=lambda words: float(_fraction(words[0])),  # type: ignore[arg-type]
        is_instance=lambda value: isinstance(value, float | int),
        str_from_instance=lambda value: [f"{value:g}"],
    ),
]

_QUANTITY = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*")


@dataclass(frozen=True, eq=False)
class _Unit:
    """Reads whole numbers with a unit behind them, from files and from the command line."""

    what: str
    units: dict[str, int]

    def __call__(self, value: object) -> Any:
        if not isinstance(value, str):
            return value
        match = _QUANTITY.fullmatch(value)
        known = {"": 1, **{unit.casefold(): factor for unit, factor in self.units.items()}}
        if match is None or match[2].casefold() not in known:
            raise ValueError(f"{value!r} is no number of {self.what}; units are {', '.join(self.units)}")
        return int(Decimal(match[1]) * known[match[2].casefold()])

    def on_command_line(self) -> Any:
        return tyro.constructors.PrimitiveConstructorSpec(
            nargs=1,
            metavar=self.what.upper(),
            instance_from_str=lambda words: self(words[0]),
            is_instance=lambda value: isinstance(value, int),
            str_from_instance=lambda value: [str(value)],
        )


_BYTES = _Unit(
    "bytes",
    {
        "B": 1,
        **{f"{prefix}B": 1000**power for power, prefix in enumerate("kMGTP", 1)},
        **{f"{prefix}iB": 1024**power for power, prefix in enumerate("KMGTP", 1)},
    },
)
_SECONDS = _Unit("seconds", {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800})

Bytes = Annotated[int, Field(ge=0), BeforeValidator(_BYTES), _BYTES.on_command_line()]
"""Bytes, as a number or as ``500GB`` or ``2TiB``."""

Seconds = Annotated[int, Field(ge=0), BeforeValidator(_SECONDS), _SECONDS.on_command_line()]
"""Seconds, as a number or as ``12h``, ``30d`` or ``2w``."""

FolderName = Annotated[str, AfterValidator(folder_name)]
"""A name that becomes a folder's, below one that another option names."""


Betas = tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]]
"""AdamW's betas."""


def _ordered(bounds: tuple[float, float]) -> tuple[float, float]:
    low, high = bounds
    if low > high:
        raise ValueError(f"{low:g} {high:g}: the lower bound comes first")
    return bounds


Bounds = Annotated[tuple[float, float], AfterValidator(_ordered)]
"""Two numbers that something lies between."""


class Options(BaseModel):
    """Base of all options: frozen, a misspelt key is an error, and so is a number that is none or has no end."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)


def option(default: Any, description: str, **limits: Any) -> Any:
    """A field that is part of what a run's numbers mean."""
    return Field(default=default, description=description, **limits)


def operational(default: Any, description: str, **limits: Any) -> Any:
    """A field that does not change what a run's numbers mean."""
    return option(default, description, json_schema_extra={"operational": True}, **limits)


def require_distinct(option: str, values: Sequence[object], what: str) -> None:
    """Refuses an option that names the same thing twice; messages call it `what`, such as "a seed".

    Raises:
        ConfigError: It does.
    """
    if len(set(values)) < len(values):
        raise ConfigError(f"{option} {' '.join(map(str, values))}: names {what} twice")


def without_password(uri: str) -> str:
    """The URI as it may be shown and stored."""
    return _PASSWORD.sub(r"\1:***", uri)


def meaning(options: Options) -> dict[str, Any]:
    """The options that a run's numbers depend on, as plain JSON values (all but the operational ones)."""
    fields = type(options).model_fields.items()
    extras = {name: field.json_schema_extra for name, field in fields}
    skip = {name for name, extra in extras.items() if isinstance(extra, dict) and extra.get("operational")}
    return options.model_dump(mode="json", exclude=skip)


def fingerprint(values: object) -> str:
    """A short stable hash of JSON values: 12 hexadecimal digits."""
    text = json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:12]
