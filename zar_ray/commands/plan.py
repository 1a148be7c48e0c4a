"""`zar plan`: what an evaluation would take, before anyone pays for it."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from rich import box
from rich.table import Table

from zar_ray.commands.parsing import command, parse_run, show_options
from zar_ray.evaluation.forecast import Cluster, Forecast
from zar_ray.reporting.numbers import size
from zar_ray.study.forecasts import Costs, cost_of
from zar_ray.study.options import PlanConfig
from zar_ray.terminal import output_console

_HOUR, _MINUTE = 3600.0, 60.0


@command
def plan_command(argv: Sequence[str]) -> int:
    """Measure some videos of an evaluation here, and compute the whole on a cluster; nothing is written."""
    invocation = parse_run(PlanConfig, argv, "zar plan", plan_command.__doc__)
    options = invocation.options
    if invocation.show_config:
        return show_options(options)
    said = output_console(file=sys.stderr if options.as_json else None, soft_wrap=True)
    costs = cost_of(options, said)
    if options.as_json:
        print(json.dumps(costs.to_json(), indent=2))
        return 0
    said.print("\n".join(described(costs)))
    said.print(simulation(costs))
    if costs.asked.estimated:
        said.print("(est): a GPU's speed is computed from its peak, not measured.", style="dim")
    return 0


def described(costs: Costs) -> list[str]:
    """What was measured and what the cluster that was asked about takes, in lines."""
    sample, asked = costs.sample, costs.asked
    cluster, estimated = asked.cluster, " (est)" if asked.estimated else ""
    failed = f", {sample.failed} failed" if sample.failed else ""
    read = "unknown" if sample.bytes_read is None else size(sample.bytes_read)
    device = f"{sample.device} with {sample.threads} threads" if sample.device == "cpu" else sample.device
    wanted = cluster.cores * asked.used["CPU cores"]
    lines = [
        f"measured  {sample.videos} videos{failed}: decoding {sample.decode_cpu:.3f} s of a core,"
        f" adapting {sample.adapt_seconds:.3f} s on {device} ({sample.adapt_cpu:.3f} s of CPU)",
        f"          a video: {read} read, {size(sample.bytes_shipped)} shipped, {size(sample.bytes_written)} of rows",
        f"cluster   {_named(cluster)}, {cluster.cores:g} cores; {cluster.workers} replicas,"
        f" {cluster.decoders} decoders, {asked.block} videos a block",
        f"time      {_time(asked.seconds)}{estimated}, of which the start {_time(asked.start_seconds)};"
        f" {_figure(asked.videos_per_second)} videos a second, {asked.videos} in all",
        f"short of  {asked.short}; cores in use: {wanted:.1f}",
        f"hours     {_figure(asked.gpu_hours)} of GPUs, {_figure(asked.cpu_hours)} of CPU cores' work",
        f"bytes     {'unknown' if asked.bytes_read is None else size(asked.bytes_read)} read,"
        f" {size(asked.bytes_shipped)} shipped, up to {size(asked.object_store)} in the object store",
        f"objects   {asked.objects} written",
    ]
    if asked.dollars is not None:
        lines.append(f"dollars   {asked.dollars:,.2f}{estimated}")
    return lines


def simulation(costs: Costs) -> Table:
    """The same run on clusters of other sizes, with the share of each resource that it takes."""
    sizes = costs.sizes
    resources = tuple(sizes[0].rates)
    unit = "GPUs" if sizes[0].cluster.gpus else "cores"
    priced = sizes[0].dollars is not None
    columns = (unit, "time", "videos/s", *(f"{name} %" for name in resources), "short of", *(("dollars",) * priced))
    table = Table(*columns, box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for number, column in enumerate(table.columns):
        column.justify = "left" if columns[number] == "short of" else "right"
        column.no_wrap = True
    for one in sizes:
        table.add_row(*_row(one, priced))
    return table


def _row(one: Forecast, priced: bool) -> tuple[str, ...]:
    count = one.cluster.gpus or round(one.cluster.cores)
    used = (f"{100 * share:.0f}" for share in one.used.values())
    estimated = " (est)" if one.estimated else ""
    dollars = (f"{one.dollars:,.2f}",) if priced else ()
    return (str(count), f"{_time(one.seconds)}{estimated}", _figure(one.videos_per_second), *used, one.short, *dollars)


def _named(cluster: Cluster) -> str:
    return f"{cluster.gpus} × {cluster.gpu}" if cluster.gpus else "no GPUs"


def _time(seconds: float) -> str:
    if seconds >= _HOUR:
        return f"{seconds / _HOUR:.2f} h"
    return f"{seconds / _MINUTE:.1f} min" if seconds >= 2 * _MINUTE else f"{seconds:.0f} s"


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
