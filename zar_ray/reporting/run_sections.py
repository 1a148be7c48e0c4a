"""The sections of a report that are about the run as a whole."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import yaml

from zar_ray.errors import ZarError
from zar_ray.options.base import without_password
from zar_ray.reporting import figures
from zar_ray.reporting.attention_figures import attention_figure
from zar_ray.reporting.blocks import Block
from zar_ray.reporting.embedding_map import LEAST_VIDEOS, MOST_VIDEOS, embedding_map
from zar_ray.reporting.numbers import digits
from zar_ray.reporting.pages import Code, Content, Figure, Section, Text, why_empty
from zar_ray.reporting.run_data import RunData, RunSplit, StudyData
from zar_ray.results.folder import CONFIG

if TYPE_CHECKING:
    from zar_ray.explain.explanation import Evaluation

ATTENTION = "Where the model looks"

_FAILURES_SHOWN = 50


def attention_maps(data: RunData, samples: int) -> Section:
    """Where the model looks in some videos, evenly spread over those that finished: the paper's figure 2."""
    # What it takes to compute the maps, such as PyTorch and the model, no other section needs.
    from zar_ray.explain.explanation import explain_videos

    ids: list[str] = sorted(data.table.filter(data.table["error"].is_null())["video_id"].unique().to_pylist())
    if not ids:
        return why_empty(ATTENTION, "No video finished.")
    chosen = [ids[int(place)] for place in np.unique(np.linspace(0, len(ids) - 1, min(samples, len(ids))).round())]
    try:
        return Section(ATTENTION, [attention_figure(maps) for maps in explain_videos(evaluation_of(data), chosen)])
    except ZarError as error:
        return why_empty(ATTENTION, f"No attention maps: {error}.")


def evaluation_of(data: RunData) -> Evaluation:
    """What explaining a cell's decisions needs to know of it."""
    from zar_ray.explain.explanation import Evaluation

    return Evaluation(
        place=data.place,
        config=data.config,
        model_fingerprint=data.summary.model_fingerprint,
        class_sets=tuple(dict.fromkeys(split.class_names for split in data.splits)),
        results=data.table,
        videos=data.study.videos,
    )


def video_map(data: RunData, split: RunSplit) -> Section:
    """How near the videos of a split are to each other in the embedding space: the paper's figure 6."""
    title = "Map of the videos" if len(data.splits) == 1 else f"Map of the videos of split {split.name}"
    if not len(data.table["video_feature"].drop_null()):
        return why_empty(title, "The run keeps no features of its videos.")
    kept = data.table.filter(data.table["video_feature"].is_valid()).sort_by("video_id")
    if split.video_ids is not None:
        inside = [video in split.video_ids for video in kept["video_id"].to_pylist()]
        kept = kept.filter(pa.array(inside, pa.bool_()))
    if kept.num_rows < LEAST_VIDEOS:
        return why_empty(title, f"{kept.num_rows} videos are too few for a map; {LEAST_VIDEOS} are needed.")
    column = kept["video_feature"].combine_chunks()
    features = column.flatten().to_numpy().reshape(kept.num_rows, -1)
    found = embedding_map(features)
    labels = _labels(data, split)
    ids = kept["video_id"].to_pylist()
    names = [labels.get(ids[int(row)]) for row in found.chosen]
    several = " A video may show several classes, so none has a colour." if split.multi_label else ""
    part = f" {len(found.chosen):,} of {len(ids):,} videos, evenly spread." if len(ids) > MOST_VIDEOS else ""
    caption = (
        "What the image encoder makes of each video's evaluation view, before any adaptation, laid out by t-SNE "
        f"(perplexity {found.perplexity:.3g}, seed 0).{part}{several} Near videos look alike to the model; distances "
        "between groups mean little."
    )
    return Section(title, (Figure(figures.map_chart(found, names), caption),))


def _labels(data: RunData, split: RunSplit) -> dict[str, str]:
    """The right class of each video that has one."""
    case = next((one for one in data.summary.cases if data.split(one.split) is split), None)
    if case is None or split.multi_label:
        return {}
    rows = data.rows(case)
    rows = rows.filter(rows["label_id"].is_valid())
    ids = zip(rows["video_id"].to_pylist(), rows["label_id"].to_pylist(), strict=True)
    return {video: split.class_names[label] for video, label in ids}


def failures(data: StudyData) -> Section:
    """Which videos failed, where and why."""
    failed = data.table.filter(data.table["error"].is_valid()).sort_by("video_id")
    by_video: dict[str, tuple[str, str]] = {}
    columns = (failed[name].to_pylist() for name in ("video_id", "error_stage", "error"))
    for video, stage, error in zip(*columns, strict=True):
        by_video.setdefault(video, (stage or "unknown", error))
    if not by_video:
        return Section("Failures", (Text("No video failed."),))
    stages = [stage for stage, _ in by_video.values()]
    counts = sorted(((stages.count(stage), stage) for stage in set(stages)), reverse=True)
    said = ", ".join(f"{count} at stage {stage}" for count, stage in counts)
    rows = sorted((stage, video, error) for video, (stage, error) in by_video.items())
    content: list[Content] = [
        Text(f"{len(rows)} of {data.whole.videos} videos failed: {said}. They count as wrong."),
        Block(None, ("stage", "video", "reason"), rows[:_FAILURES_SHOWN], words=3),
    ]
    if len(rows) > _FAILURES_SHOWN:
        more = len(rows) - _FAILURES_SHOWN
        content.append(Text(f"... and {more:,} more; {data.whole.results} has all.", weak=True))
    return Section("Failures", content)


def timings(data: StudyData) -> Section:
    """What the stages took, and how the run went on over time."""
    table = data.table
    rows = []
    of_video = table.group_by("video_id").aggregate([("seconds_decode", "max"), ("seconds_encode", "max")])
    measured = [("decoding", of_video["seconds_decode_max"]), ("encoding", of_video["seconds_encode_max"])]
    for method in dict.fromkeys(table["method"].to_pylist()):
        of_method = table.filter(pa.array([one == method for one in table["method"].to_pylist()], pa.bool_()))
        measured.append((f"adaptation, {method}", of_method["seconds_adapt"]))
    for stage, column in measured:
        values = column.drop_null().to_numpy()
        if len(values):
            middle, high = np.quantile(values, [0.5, 0.95])
            numbers = (values.mean(), middle, high, values.max())
            rows.append((stage, str(len(values)), *(f"{1000 * one:,.1f}" for one in numbers)))
    content: list[Content] = [Text("No time was measured: no video got that far.", weak=True)]
    if rows:
        columns = ("stage", "videos", "mean ms", "median ms", "95 % below ms", "longest ms")
        content = [
            Block(None, columns, rows, words=1),
            Text("Wall time a video in its worker; of several videos done together, each has its share.", weak=True),
        ]
    return Section("Time and throughput", [*content, *_progress(data)])


def _progress(data: StudyData) -> list[Content]:
    ended = data.table.append_column("failed", data.table["error"].is_valid())
    by_video = ended.group_by("video_id").aggregate([("recorded_at", "max"), ("failed", "max")])
    by_video = by_video.sort_by("recorded_at_max")
    if by_video.num_rows < 2:
        return [Text("Throughput over time needs two videos.", weak=True)]
    seconds = by_video["recorded_at_max"].to_numpy()
    picture = figures.progress_chart(seconds - seconds[0], by_video["failed_max"].to_numpy())
    speed = data.whole.throughput.videos_per_second
    caption = "Videos with a result over time; rows are written a block at a time."
    if speed is not None:
        caption += f" The last session did {digits(speed)} videos a second."
    if data.whole.resumed:
        caption += f" {data.whole.resumed} videos are of earlier sessions, so the time between sessions shows."
    return [Figure(picture, caption)]


def repetition(data: StudyData) -> Section:
    """The command that does the run again, and its options."""
    config = without_password(data.storage.path(CONFIG))
    command = shlex.join(["zar", "eval", "--config", config, "--name", f"{data.whole.name}-again"])
    shown = without_password(yaml.safe_dump(dict(data.config), sort_keys=False, allow_unicode=True))
    return Section(
        "Repeating the run",
        (
            Code("The same options, under another name:", command),
            Code("Resolved options", shown, folded=True),
        ),
    )


def versions(data: StudyData) -> Section:
    """What the run was made with."""
    facts = {**data.provenance, **(data.provenance.get("packages") or {})}
    rows = [(name, str(value)) for name, value in facts.items() if name != "packages" and value is not None]
    if not rows:
        return why_empty("Versions", "The run does not say what it was made with.")
    return Section("Versions", (Block(None, ("what", "version"), rows, words=2, folded=f"{len(rows)} versions"),))
