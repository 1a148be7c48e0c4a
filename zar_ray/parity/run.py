"""Finds fixtures and holds this code against each.

A system or a method is added by a function that gives its `Evidence`, an entry in `SYSTEMS`, and a line in the table
of tolerances for arrays of new names.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from zar_ray.errors import ConfigError
from zar_ray.parity import caches, graphs, methods, prompts, systems
from zar_ray.parity.checks import ArrayCheck, hold, miss
from zar_ray.parity.fixture import DESCRIPTION, Evidence, Fixture, read_fixture
from zar_ray.parity.preprocess import preprocess
from zar_ray.parity.zar_steps import zar_steps

# What this code makes of a fixture, by the system that the fixture names.
SYSTEMS: dict[str, Callable[[Fixture], Evidence]] = {
    "zar_step": zar_steps,
    "zar_step_pixels": zar_steps,
    "preprocess": preprocess,
    "vificlip": systems.vificlip,
    "actionclip": systems.actionclip,
    "ezclip": systems.ezclip,
    "a5": systems.a5,
    "vitaclip": systems.vitaclip,
    "xclip": systems.xclip,
    "tcclip": systems.tcclip,
    **methods.METHODS,
    **prompts.METHODS,
    **caches.METHODS,
    **graphs.METHODS,
}


def check_fixtures(folder: str | Path, videos: str | Path | None = None) -> list[ArrayCheck]:
    """Holds this code against one fixture, or against every fixture in a folder.

    First come the digests of the made-up weights and inputs, then everything the fixture holds: what this code has
    no value for is a miss, so that nothing goes unchecked in silence.

    Args:
        folder: A fixture's folder, or a folder of such folders.
        videos: Folder that video files are looked up under; by default found above each fixture.

    Returns:
        The checks, by fixture. In a folder of fixtures, one of a system that is not supported is a miss.

    Raises:
        ConfigError: There is no fixture, none is of a supported system, or one cannot be read.
        ModelError: The weights are not of the system that the fixture names.
        VideoError: A video cannot be read.
    """
    folder = Path(folder)
    descriptions = [folder / DESCRIPTION] if (folder / DESCRIPTION).is_file() else folder.glob(f"*/{DESCRIPTION}")
    fixtures = [read_fixture(one.parent, Path(videos) if videos is not None else None) for one in sorted(descriptions)]
    if not fixtures:
        raise ConfigError(f"{folder}: holds no fixture, that is no {DESCRIPTION} in it or in its folders")
    if not any(fixture.system in SYSTEMS for fixture in fixtures):
        raise ConfigError(f"{folder}: {_unsupported(fixtures[0])}")
    return [check for fixture in fixtures for check in _check(fixture)]


def _check(fixture: Fixture) -> list[ArrayCheck]:
    if fixture.system not in SYSTEMS:
        return [miss(fixture.name, _unsupported(fixture))]
    held, evidence = fixture.digests(), SYSTEMS[fixture.system](fixture)
    held |= evidence.facts
    for name in (*fixture.fact(dict[str, object], "arrays", default={}), *fixture.arrays):
        if fixture.compares(name):
            held[name] = fixture.arrays.get(name), evidence.arrays.get(name)
    if not held:
        return [miss(fixture.name, "it holds nothing to compare")]
    return [
        hold(f"{fixture.name}/{name}", theirs, ours, fixture.tolerance(name)) for name, (theirs, ours) in held.items()
    ]


def _unsupported(fixture: Fixture) -> str:
    return f'system "{fixture.system}" is not supported; supported: {", ".join(sorted(SYSTEMS))}'
