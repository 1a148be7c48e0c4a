"""The commands `zar report VERB`."""

from __future__ import annotations

import sys
from typing import Annotated, Literal

import tyro

from zar_ray.commands.parsing import verb
from zar_ray.errors import ConfigError
from zar_ray.options.base import Fraction, meaning
from zar_ray.results.certainty import CertaintyScore
from zar_ray.storage import suffix_of
from zar_ray.study.options import EvalConfig
from zar_ray.terminal import output_console


@verb("zar report mlflow")
def report_mlflow_command(run: Annotated[str, tyro.conf.Positional], uri: str | None = None) -> int:
    """Sends a finished run to MLflow, once.

    Args:
        run: The run's folder.
        uri: The tracking store; by default mlflow.db beside the run's folder.
    """
    from zar_ray.reporting.study_tables import study_markdown
    from zar_ray.tracking import log_run_folder

    receipt = log_run_folder(run, uri, describe=study_markdown)
    known = "" if receipt.new else " already"
    print(f"{run}: is{known} run {receipt.run_id} of experiment {receipt.experiment} at {receipt.uri}")
    return 0


def write_run_report(
    run: Annotated[str, tyro.conf.Positional],
    output: str | None = None,
    samples: int = 6,
    attention: bool = True,
    figures: Literal["pdf", "svg", "png"] | None = None,
    mlflow_uri: str | None = None,
) -> int:
    """Writes a report that needs nothing besides itself, and adds it to the run in MLflow if it was logged there.

    Args:
        run: The run's folder.
        output: The file; by default report.html in the run's folder. One that ends in .md, .tex or .csv gets the
            run's tables alone.
        samples: How many of the videos most helped, most hurt, and with attention maps are shown.
        attention: Draw where the model looks, for which the run's weights and videos must be at hand.
        figures: Write the report's figures as such files too, into the folder `figures` beside it.
        mlflow_uri: The store that the run was logged to, where it needs a password; by default all of them.
    """
    from zar_ray.api.studies import publish_report
    from zar_ray.reporting.html_report import TABLES, write_tables

    if output is not None and suffix_of(output) in TABLES:
        if figures is not None:
            raise ConfigError(f"zar report run: --figures {figures}: goes with a page, and {output} has tables alone")
        print(f"tables   {write_tables(run, output)}")
        return 0
    console = output_console()
    publish_report(run, console, output, samples, attention=attention, form=figures, mlflow_uri=mlflow_uri)
    return 0


report_run_command = verb("zar report run")(write_run_report)


@verb("zar report compare")
def report_compare_command(
    runs: Annotated[tuple[str, ...], tyro.conf.Positional],
    output: str | None = None,
    format: Literal["terminal", "markdown", "csv", "latex"] = "terminal",
    mlflow_uri: str | None = None,
) -> int:
    """Holds runs against the first of them: accuracies, which classes and videos changed, and what it cost.

    Args:
        runs: Folders of runs, or their run ids in MLflow. Of a run of several cells all take part, or with [LABEL]
            behind it the one of that label.
        output: A file that gets all of it (.html) or the plot alone (.png, .svg, .pdf).
        format: For people, for documents, for programs or for papers.
        mlflow_uri: The store that run ids are of.
    """
    from zar_ray.reporting.comparison import compare_runs
    from zar_ray.reporting.comparison_views import report_comparison, write_comparison
    from zar_ray.tracking import logged_runs

    meaningful = meaning(EvalConfig()).keys()
    lookup = None if mlflow_uri is None else lambda run_id: logged_runs(mlflow_uri, run_id)[0]
    comparison = compare_runs(runs, meaningful, lookup)
    report_comparison(comparison, format, output_console())
    if output is not None:
        print(
            f"{write_comparison(comparison, output)}: the comparison of {len(comparison.runs)} runs",
            file=sys.stderr,
        )
    return 0


@verb("zar report threshold")
def report_threshold_command(
    run: Annotated[str, tyro.conf.Positional],
    keep: Fraction = 0.95,
    score: CertaintyScore = "max_probability",
    of: Literal["correct", "known", "all"] = "correct",
    format: Literal["terminal", "markdown", "csv", "latex"] = "terminal",
) -> int:
    """Prints how sure a decision must be to be kept, for `zar predict --reject-below` and the service.

    Args:
        run: The run's folder.
        keep: The share of decisions to keep, as 0.95 or 95%.
        score: How sure a decision is; entropy counts with a minus sign, so that more is surer.
        of: Of which decisions that share is kept: the right ones, those about known classes, or all.
        format: For people, for documents, for programs or for papers.
    """
    from zar_ray.reporting.blocks import show
    from zar_ray.reporting.thresholds import threshold_block

    show([threshold_block(run, keep, score, of)], format, output_console())
    return 0


@verb("zar report table")
def report_table_command(
    name: Annotated[str, tyro.conf.Positional],
    output: str = EvalConfig.model_fields["output"].default,
    format: Literal["terminal", "markdown", "csv", "latex"] = "terminal",
    mlflow_uri: str | None = None,
) -> int:
    """Fills the published cells that finished runs belong to, and says how the others are filled.

    Args:
        name: The table: zar-table1 to zar-table5, actionclip or ezclip.
        output: Folder or URI that holds the runs.
        format: For people, for documents, for programs or for papers.
        mlflow_uri: An MLflow store whose evaluations are looked at too.
    """
    from zar_ray.reporting.published.view import report_table
    from zar_ray.tracking import logged_runs

    logged = logged_runs(mlflow_uri) if mlflow_uri is not None else ()
    more = [run for study in logged for run in study.runs]
    told = None if output == EvalConfig.model_fields["output"].default else output
    report_table(name, output, format, output_console(), more, told)
    return 0


@verb("zar report cite")
def report_cite_command(run: Annotated[str, tyro.conf.Positional]) -> int:
    """Describes a finished run's protocol as a paragraph of LaTeX, with the BibTeX entries that it cites.

    Args:
        run: The run's folder.
    """
    from zar_ray.reporting.citing import cite
    from zar_ray.results.study_record import FinishedStudy
    from zar_ray.storage import Storage

    print(cite(FinishedStudy.open(Storage(run))))
    return 0
