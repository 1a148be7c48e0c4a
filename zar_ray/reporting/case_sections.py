"""The sections of a report that are about one case."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from zar_ray.data.manifest import VideoRow
from zar_ray.errors import VideoError, ZarError
from zar_ray.reporting import figures
from zar_ray.reporting.blocks import Block
from zar_ray.reporting.numbers import percent
from zar_ray.reporting.pages import Card, Cards, Content, Figure, Picture, Section, Text, why_empty
from zar_ray.reporting.run_data import RunData, RunSplit
from zar_ray.results.case_rows import (
    CASE_COLUMNS,
    RIGHT,
    CaseRows,
    class_accuracies,
    class_estimates,
    confusion_matrix,
    firsts,
)
from zar_ray.results.record import CaseMetrics, ClassAccuracy, Estimate
from zar_ray.results.trust import BINS
from zar_ray.storage import is_uri
from zar_ray.video.options import ViewConfig
from zar_ray.video.sampling import part_centres
from zar_ray.video.sandbox import DecoderProcess
from zar_ray.video.sandbox_process import DecodeRequest
from zar_ray.video.transforms import Preprocessing

_OF_BOTH = tuple(f"{name}_{when}" for when in ("before", "after") for name in ("top5", "top5_scores", "nll", "entropy"))
_COLUMNS = (*CASE_COLUMNS, *_OF_BOTH)
_CLASSES_SHOWN = 30
_MISTAKES_SHOWN = 20
_THUMBNAILS = 4
_THUMBNAIL_SIDE = 120
_NO_LABELS = "None of the videos that were decided about has a label, so nothing can be right or wrong."
_SEVERAL = "A video of this split may show several classes, so there is no single right one"


def case_sections(data: RunData, case: CaseMetrics, samples: int, decoder: DecoderProcess) -> tuple[Section, ...]:
    """What one case of a run did, as sections; each shows something or says why it has nothing to show.

    Of the videos most helped, and of those most hurt, `samples` are shown, with pictures that `decoder` reads.
    """
    split, rows = data.split(case.split), data.rows(case, _COLUMNS)
    titles = ("Accuracy by class", "Mistakes", "Calibration", "Videos most helped and most hurt")
    if split.multi_label:
        found = decided = None
        whys = (
            f"{_SEVERAL}: it has mean average precision above in place of accuracies.",
            f"{_SEVERAL} to be taken for another.",
            f"{_SEVERAL} whose probability could be held against how often it is right.",
            f"{_SEVERAL} that a video could gain or lose.",
        )
    else:
        found = CaseRows.of(rows, case.case_id, len(split.class_names))
        decided, whys = found.select(found.finished & (found.label >= 0)), (_NO_LABELS,) * 4
    if found is None or decided is None or not len(decided.label):
        by_class, mistakes, calibration, videos = map(why_empty, titles, whys)
    else:
        classes = class_accuracies(rows, case.case_id, split.class_names)
        estimates = class_estimates(found, adapts=case.adapts)
        by_class = Section(titles[0], _by_class(classes, estimates, case.adapts))
        matrix = confusion_matrix(rows, case.case_id, len(split.class_names))
        mistakes = Section(titles[1], _mistakes(matrix, split.class_names))
        calibration = Section(titles[2], _calibration(decided, case.adapts))
        videos = Section(titles[3], _helped_and_hurt(data, split, case, decided, samples, decoder))
    entropy = Section("Entropy", _entropy(rows, case.adapts, len(split.class_names)))
    return by_class, mistakes, calibration, entropy, videos


def _by_class(classes: Sequence[ClassAccuracy], estimates: Mapping[int, Estimate], changes: bool) -> list[Content]:
    there = [one for one in classes if one.videos]
    there.sort(key=lambda one: estimates[one.label_id].value, reverse=True)
    kind = "change" if changes else "top-1"

    shown, caption = there, f"All classes that have videos, by {kind}, with 95 % intervals."
    if len(there) > figures.ALL_CLASSES:
        half = _CLASSES_SHOWN // 2
        shown = [*there[:half], *there[-half:]]
        best, worst = ("most gained", "lost most") if changes else ("are right most", "least often")
        caption = (
            f"The {half} of {len(there)} classes that {best}, then the {half} that {worst}, with 95 % intervals; the "
            "table has all."
        )
    rows = []
    for one in there:
        before, after = (percent(share or 0.0) for share in (one.top1_before, one.top1_after))
        taken = "" if one.taken_for is None else f"{one.taken_for} ({one.taken_for_videos})"
        estimate, sign = estimates[one.label_id], "+" if changes else ""
        changed = (before, after, percent(estimate.value, sign)) if changes else (after,)
        rows.append(
            (one.label, taken, str(one.videos), *changed, percent(estimate.low, sign), percent(estimate.high, sign))
        )
    measured = ("before %", "after %", "points") if changes else ("top-1 %",)
    columns = ("class", "most taken for (videos)", "videos", *measured, "from", "to")
    text = "Failed videos count as wrong. Each interval stands for its class alone, not for all of them together."
    if missing := len(classes) - len(there):
        text += f" {missing} of the {len(classes)} classes have no labelled video."
    return [
        Figure(figures.class_chart(shown, estimates, adapts=changes), caption),
        Text(text, weak=True),
        Block(None, columns, rows, words=2, folded=f"Table of {len(there)} classes, by {kind}"),
    ]


def _mistakes(matrix: np.ndarray, names: Sequence[str]) -> list[Content]:
    totals = matrix.sum(axis=1)
    wrong = matrix - np.diag(np.diag(matrix))
    cells = [int(cell) for cell in np.argsort(-wrong, axis=None, kind="stable")[:_MISTAKES_SHOWN]]
    pairs = [divmod(cell, len(names)) for cell in cells if wrong.flat[cell]]
    rows = [(names[i], names[j], int(wrong[i, j]), int(totals[i])) for i, j in pairs]
    content: list[Content] = []
    everything = len(names) <= figures.ALL_CLASSES
    if everything or rows:
        which = f"{len(names)} classes" if everything else f"the most confused of {len(names)} classes"
        alt = f"Confusion matrix of {which}; the table of mistakes below says the same in words."
        draw = partial(figures.confusion_picture, matrix, names)
        picture = Picture.of(draw("svg"), "image/svg+xml", alt, narrow=len(names) <= 12, drawn=draw)
        text = "Confusion matrix of the decisions after adaptation; failed videos left out."
        if not everything:
            text += " The Explorer has the classes that are not in it."
        content.append(Figure(picture, text))
    if rows and not everything:
        caption = f"The most frequent mistakes of {int(wrong.sum()):,} after adaptation; failed videos left out."
        content.append(Figure(figures.confusions_chart(rows), caption))
    if not rows:
        return [*content, Text("No video was taken for another class.")]
    table = [(right, taken, str(count), str(videos), percent(count / videos)) for right, taken, count, videos in rows]
    columns = ("right class", "predicted", "videos", "of", "%")
    return [*content, Block(None, columns, table, words=2, folded=f"Table of the {len(rows)} most frequent mistakes")]


def _calibration(decided: CaseRows, changes: bool) -> list[Content]:
    ranks = {"before": decided.before, "after": decided.after} if changes else {"decision": decided.after}
    curves = {}
    for name, rank in ranks.items():
        confidence = firsts(decided.table[f"top5_scores_{'before' if name == 'before' else 'after'}"])
        curves[name] = figures.calibrate(confidence.astype(np.float64), rank == RIGHT)
    text = (
        f"Confidence is the softmax probability of the best class, in {BINS} bins of equal width; larger marks "
        "hold more videos. The expected calibration error (ECE) is the mean distance from the diagonal, weighted by "
        "videos. Below the diagonal a model is surer than it should be. Failed and unlabelled videos are left out."
    )
    rows = [
        (
            name,
            percent(one.error),
            percent(float(np.average(one.confidence, weights=one.videos))),
            percent(float(np.average(one.accuracy, weights=one.videos))),
            str(one.videos.sum()),
        )
        for name, one in curves.items()
    ]
    columns = ("", "ECE %", "mean confidence %", "share right %", "videos")
    return [Figure(figures.reliability_chart(curves), text), Block(None, columns, rows, words=1)]


def _entropy(rows: pa.Table, changes: bool, classes: int) -> list[Content]:
    rows = rows.filter(rows["error"].is_null())
    if not rows.num_rows:
        return [Text("No video finished.", weak=True)]
    if classes < 2:
        return [Text("With one class to choose among, every decision is sure.", weak=True)]
    before, after = (rows[f"entropy_{when}"].to_numpy().astype(np.float64) for when in ("before", "after"))
    measured = {"before": before, "after": after} if changes else {"decision": after}
    text = "Entropy of the evaluation view's probabilities; the vertical lines are the means. Low is sure, not right."
    table = [
        (name, *(f"{one:.3f}" for one in (values.mean(), *np.quantile(values, [0.25, 0.5, 0.75]))))
        for name, values in measured.items()
    ]
    columns = ("nats", "mean", "lower quartile", "median", "upper quartile")
    return [Figure(figures.entropy_chart(measured, classes), text), Block(None, columns, table, words=1)]


def _gains(decided: CaseRows) -> np.ndarray:
    """How much likelier the right class became in each video."""
    lost = (decided.table[f"nll_{when}"].to_numpy().astype(np.float64) for when in ("before", "after"))
    before, after = (np.exp(-one) for one in lost)
    return after - before


def _helped_and_hurt(
    data: RunData, split: RunSplit, case: CaseMetrics, decided: CaseRows, samples: int, decoder: DecoderProcess
) -> list[Content]:
    if not case.adapts:
        return [Text(f"{case.method} adapts nothing, so it helps and hurts no video.", weak=True)]
    gains = _gains(decided)
    before, after = decided.before == RIGHT, decided.after == RIGHT
    gained, lost = after & ~before, before & ~after
    intro = (
        f"{int(gained.sum())} videos are right only after adaptation and {int(lost.sum())} only before. Shown are "
        "such videos first, by how much likelier, or less likely, their right class became."
    )
    content: list[Content] = [Text(intro)]
    for title, flipped, sign in (("Most helped", gained, 1), ("Most hurt", lost, -1)):
        order = np.lexsort((-sign * gains, ~flipped))
        chosen = order[(flipped | (sign * gains > 0))[order]][:samples].tolist()
        if chosen:
            content.append(Cards(title, [_card(data, split, decided, one, decoder) for one in chosen]))
        else:
            content.append(Text(f"{title}: no video.", weak=True))
    return content


def _card(data: RunData, split: RunSplit, decided: CaseRows, row: int, decoder: DecoderProcess) -> Card:
    video_id, label = decided.table["video_id"][row].as_py(), split.class_names[decided.label[row]]
    said = []
    for when in ("before", "after"):
        best, score = (decided.table[f"{name}_{when}"][row].as_py()[0] for name in ("top5", "top5_scores"))
        said.append(f"{when} {split.class_names[best]} {percent(score)} %")
    text = f"Right: {label}; {', '.join(said)}."
    try:
        pictures = _thumbnails(data.study.videos([video_id])[video_id], data.config, decoder)
    except ZarError as error:
        return Card(video_id, f"{text} No pictures: {error}.", ())
    return Card(video_id, text, pictures)


def _thumbnails(video: VideoRow, config: Mapping[str, Any], decoder: DecoderProcess) -> tuple[Picture, ...]:
    """Some frames of a video's evaluation view, evenly spread."""
    if not is_uri(video.path) and not Path(video.path).is_file():
        raise VideoError(f"there is no {video.path}", stage="open")
    views = ViewConfig(eval_frames=config["views"]["eval_frames"], short_side=_THUMBNAIL_SIDE)
    pixels = Preprocessing(_THUMBNAIL_SIDE)
    request = DecodeRequest(video.video_id, views, 0, pixels, needs_views=False, decoder=config["decoder"])
    with video.file() as file:
        frames = decoder.decode(file, request, config["decode_timeout"]).frames
    count = min(_THUMBNAILS, len(frames))
    shown = frames[part_centres(0, len(frames), count, len(frames))]
    pictures = []
    for number, frame in enumerate(shown, start=1):
        file = io.BytesIO()
        Image.fromarray(frame).save(file, format="JPEG", quality=80)
        pictures.append(Picture.of(file.getvalue(), "image/jpeg", f"{video.video_id}, picture {number} of {count}"))
    return tuple(pictures)
