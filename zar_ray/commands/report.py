"""The commands `zar report VERB`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated, Literal

import tyro
from rich.console import Console

from zar_ray.commands.common import command
from zar_ray.commands.parsing import parse
from zar_ray.errors import TrackingError
from zar_ray.study.options import EvalConfig


@command
def report_mlflow_command(argv: Sequence[str]) -> int:
    """Send a finished run to MLflow."""

    def send(run: Annotated[str, tyro.conf.Positional], uri: str | None = None) -> int:
        """Sends a finished run to MLflow, once.

        Args:
            run: The run's folder.
            uri: The tracking store; by default mlflow.db beside the run's folder.
        """
        from zar_ray.tracking import log_run_folder

        receipt = log_run_folder(run, uri)
        known = "" if receipt.new else " already"
        print(f"{run}: is{known} run {receipt.run_id} of experiment {receipt.experiment} at {receipt.uri}")
        return 0

    return parse(send, argv, "zar report mlflow")


def write_run_report(
    run: str, output: str | None = None, samples: int = 6, attention: bool = True, mlflow_uri: str | None = None
) -> None:
    """Writes a run's report, adds it to the run in MLflow, and says where it is."""
    from zar_ray.explain.explanation import attention_figures
    from zar_ray.reporting.html_report import REPORT, write_report
    from zar_ray.tracking import attach_report

    place, page = write_report(run, output, samples, attention_figures if attention else None)
    try:
        for receipt in attach_report(run, REPORT, page.encode(), mlflow_uri):
            print(f"{receipt.uri}: report attached to run {receipt.run_id} of experiment {receipt.experiment}")
    except TrackingError as error:
        print(f"report not attached to MLflow: {error}", file=sys.stderr)
    print(f"report   {place}")


@command
def report_run_command(argv: Sequence[str]) -> int:
    """Write a finished run's report as one HTML file."""

    def report(
        run: Annotated[str, tyro.conf.Positional],
        output: str | None = None,
        samples: int = 6,
        attention: bool = True,
        mlflow_uri: str | None = None,
    ) -> int:
        """Writes a report that needs nothing besides itself, and adds it to the run in MLflow if it was logged there.

        Args:
            run: The run's folder.
            output: The file; by default report.html in the run's folder.
            samples: How many of the videos most helped, most hurt, and with attention maps are shown.
            attention: Draw where the model looks, for which the run's weights and videos must be at hand.
            mlflow_uri: The store that the run was logged to, where it needs a password; by default all of them.
        """
        write_run_report(run, output, samples, attention, mlflow_uri)
        return 0

    return parse(report, argv, "zar report run")


@command
def report_compare_command(argv: Sequence[str]) -> int:
    """Compare finished runs, video by video where they are of the same videos."""

    def compare(
        runs: Annotated[tuple[str, ...], tyro.conf.Positional],
        output: str | None = None,
        format: Literal["terminal", "markdown", "csv"] = "terminal",
        mlflow_uri: str | None = None,
    ) -> int:
        """Holds runs against the first of them: accuracies, which classes and videos changed, and what it cost.

        Args:
            runs: Folders of runs, or their run ids in MLflow.
            output: A file that gets all of it (.html) or the plot alone (.png, .svg).
            format: For people, for documents or for programs.
            mlflow_uri: The store that run ids are of.
        """
        from zar_ray.reporting.comparison import compare_runs
        from zar_ray.reporting.comparison_views import report_comparison, write_comparison
        from zar_ray.tracking import logged_run

        comparison = compare_runs(runs, logged_run(mlflow_uri) if mlflow_uri is not None else None)
        report_comparison(comparison, format, Console(highlight=False))
        if output is not None:
            print(f"{write_comparison(comparison, output)}: the comparison of {len(runs)} runs", file=sys.stderr)
        return 0

    return parse(compare, argv, "zar report compare")


@command
def report_table_command(argv: Sequence[str]) -> int:
    """Show a published table beside your own finished runs."""

    def table(
        name: Annotated[str, tyro.conf.Positional],
        output: str = EvalConfig.model_fields["output"].default,
        format: Literal["terminal", "markdown", "csv"] = "terminal",
        mlflow_uri: str | None = None,
    ) -> int:
        """Fills the published cells that finished runs belong to, and says how the others are filled.

        Args:
            name: The table: zar-table1 to zar-table5, actionclip or ezclip.
            output: Folder or URI that holds the runs.
            format: For people, for documents or for programs.
            mlflow_uri: An MLflow store whose evaluations are looked at too.
        """
        from zar_ray.reporting.published_table import report_table
        from zar_ray.tracking import logged_runs

        more = logged_runs(mlflow_uri) if mlflow_uri is not None else ()
        report_table(name, output, format, Console(highlight=False), more)
        return 0

    return parse(table, argv, "zar report table")
