"""`zar plan`: what an evaluation would take, before anyone pays for it."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import psutil
from rich import box
from rich.console import Console
from rich.table import Table

from zar_ray.commands.parsing import command, parse_run, show_options
from zar_ray.data.probing import usable_cpus, usable_memory
from zar_ray.errors import ZarError
from zar_ray.evaluation.cpu_speed import CpuTime
from zar_ray.evaluation.forecast import Cluster, Forecast
from zar_ray.reporting.numbers import size
from zar_ray.study.forecasts import Costs, cost_here, cost_of
from zar_ray.study.options import PlanConfig
from zar_ray.study.plan import Study
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


def before_run(study: Study, console: Console) -> list[str]:
    """What a run of a study would take on this machine, with what it wants of disk and memory, in lines.

    A study that cannot be measured is told with the reason, and is no error.
    """
    try:
        costs = cost_here(study, console)
    except ZarError as error:
        return [f"forecast  none: {error}"]
    videos = len(study.workload.manifest)
    if isinstance(costs, CpuTime):
        workers = max(1, usable_cpus() // costs.threads)
        return [f"forecast  {costs.described(videos, workers)} (computed; `zar plan` measures)"]
    lines, asked = described(costs), costs.asked
    # What a process holds that has the models is this one's memory.
    replica = psutil.Process().memory_info().rss
    wanted = asked.cluster.workers * replica + asked.object_store
    lines.append(
        f"memory    about {size(wanted)}: {asked.cluster.workers} x {size(replica)} of replicas,"
        f" {size(asked.object_store)} of videos in work; {size(usable_memory())} here"
    )
    rows = videos * costs.sample.bytes_written
    storage = study.folder.storage
    free = f"; {size(shutil.disk_usage(_existing(Path(storage.location))).free)} free" if storage.is_local else ""
    lines.append(f"disk      about {size(rows)} of rows{free}")
    short = "more of them make the run faster"
    if asked.cluster.gpus and asked.short in ("CPU cores", "decoders"):
        short = (
            f"the GPUs wait for the CPUs: about {asked.cluster.cores / asked.used['GPUs']:.0f} cores would feed them"
        )
    lines.append(f"advice    short of {asked.short}: {short}")
    if costs.ways is not None:
        lines.append(f"          {costs.ways}")
    return lines


def _existing(folder: Path) -> Path:
    return next(one for one in (folder, *folder.parents) if one.exists())


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
