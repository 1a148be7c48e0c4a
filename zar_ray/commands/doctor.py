"""The command `zar doctor`."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from zar_ray.commands.common import verb


@verb("zar doctor")
def doctor_command(mlflow_uri: str | None = None) -> int:
    """Checks versions, CPUs, GPUs, decoders, and whether weights, MLflow and Ray can be reached.

    Args:
        mlflow_uri: A tracking store to try; by default a local one.
    """
    from zar_ray.commands.diagnosis import diagnose

    table = Table("", "what", "found", box=None, pad_edge=False)
    checks = diagnose(mlflow_uri)
    marks = {"ok": "[green]ok[/]", "warning": "[yellow]warning[/]", "missing": "[red]missing[/]"}
    for check in checks:
        table.add_row(marks[check.status], check.name, check.detail)
    Console(highlight=False).print(table)
    return 1 if any(check.status == "missing" for check in checks) else 0
