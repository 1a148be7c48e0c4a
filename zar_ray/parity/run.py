"""Finds fixtures and holds this code against each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from zar_ray.errors import ConfigError
from zar_ray.parity.a5 import check_a5
from zar_ray.parity.actionclip import check_actionclip
from zar_ray.parity.checks import ArrayCheck, Evidence, compare, miss
from zar_ray.parity.ezclip import check_ezclip
from zar_ray.parity.fixture import DESCRIPTION, Fixture, is_fixture, read_fixture
from zar_ray.parity.preprocess import check_preprocess
from zar_ray.parity.vificlip import check_vificlip
from zar_ray.parity.vitaclip import check_vitaclip
from zar_ray.parity.xclip import check_xclip
from zar_ray.parity.zar_steps import check_zar_steps

SYSTEMS: dict[str, Callable[[Fixture, Path | None], Evidence]] = {
    "zar_step": check_zar_steps,
    "zar_step_pixels": check_zar_steps,
    "preprocess": check_preprocess,
    "vificlip": check_vificlip,
    "actionclip": check_actionclip,
    "ezclip": check_ezclip,
    "a5": check_a5,
    "vitaclip": check_vitaclip,
    "xclip": check_xclip,
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
        ModelError: The weights are no CLIP's.
        VideoError: A video cannot be read.
    """
    folder = Path(folder)
    folders = [folder] if is_fixture(folder) else sorted(inner.parent for inner in folder.glob(f"*/{DESCRIPTION}"))
    if not folders:
        raise ConfigError(f"{folder}: holds no fixture, that is no {DESCRIPTION} in it or in its folders")
    fixtures = [read_fixture(inner) for inner in folders]
    if not any(fixture.file.system in SYSTEMS for fixture in fixtures):
        raise ConfigError(f"{folder}: {_unsupported(fixtures[0])}")
    return [check for fixture in fixtures for check in _check(fixture, Path(videos) if videos is not None else None)]


def _check(fixture: Fixture, videos: Path | None) -> list[ArrayCheck]:
    if fixture.file.system not in SYSTEMS:
        return [miss(fixture.name, _unsupported(fixture))]
    evidence = SYSTEMS[fixture.file.system](fixture, videos)
    names = list(dict.fromkeys([*fixture.file.arrays, *fixture.arrays]))
    checks = [*fixture.check_digests(), *evidence.checks, *(_check_array(fixture, evidence, name) for name in names)]
    return checks or [miss(fixture.name, "it holds nothing to compare")]


def _check_array(fixture: Fixture, evidence: Evidence, name: str) -> ArrayCheck:
    if name not in fixture.arrays:
        return miss(fixture.label(name), "listed, but not among the arrays")
    if name not in evidence.measured:
        return miss(fixture.label(name), "not compared: nothing here makes it")
    return compare(fixture.label(name), fixture.arrays[name], evidence.measured[name])


def _unsupported(fixture: Fixture) -> str:
    return f'system "{fixture.file.system}" is not supported; supported: {", ".join(sorted(SYSTEMS))}'
