"""Holds this code against reference vectors that official implementations gave on made-up weights."""

from zar_ray.parity.checks import ArrayCheck, format_checks
from zar_ray.parity.run import check_fixtures

__all__ = ["ArrayCheck", "check_fixtures", "format_checks"]
