"""The bench's report: built once, printed as tables and written as JSON."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from compare import Agreement, Costs, Spread, TextAgreement
from encoder import EncoderFacts
from rich import box
from rich.console import Console
from rich.table import Table

_MIB = 2**20


@dataclass(frozen=True)
class LoadReport:
    """One load: videos of one length through one part of the way, or prompts alone.

    Attributes:
        part: ``all``, ``text`` or ``image``.
        frames: Frames a video; None for the text tower alone.
        classes: K.
        batch: Videos that ours takes together.
        reference: The reference's costs a video.
        ours: Ours.
        ratios: How many times faster ours is, by stage: ``encode``, ``adapt``, ``total``; None where a stage did not
            run.
        encoder_share: Share of encode and adapt that the image encoder takes in ours; None without both.
        encoder_share_of_peak: What our encoder's products reach of the machine's matrix product, cropping and all
            other operations included in its time; None without images.
        reference_to_open_clip: Seconds an image of the reference's loop, crops included, over open_clip's own call by
            itself; near 1, or the ratios mean little. None without images.
        videos_per_second: Of ours.
        agreement: Ours against the reference; None where no video ran through both.
        precision_difference: Ours in reduced precision against ours in float32; None in float32.
        text: The text towers against each other; None without text.
    """

    part: str
    frames: int | None
    classes: int
    batch: int
    reference: Costs
    ours: Costs
    ratios: dict[str, Spread | None]
    encoder_share: float | None
    encoder_share_of_peak: float | None
    reference_to_open_clip: float | None
    videos_per_second: float
    agreement: Agreement | None
    precision_difference: Agreement | None
    text: TextAgreement | None


@dataclass(frozen=True)
class Report:
    """A run of the bench.

    Attributes:
        machine: What it ran on.
        options: The command line, without file names.
        setup_seconds: What ours does once for a set of classes; in no other number. None without text.
        encoder: The image encoder by itself; None without images.
        loads: What was measured.
    """

    machine: dict[str, Any]
    options: dict[str, Any]
    setup_seconds: float | None
    encoder: EncoderFacts | None
    loads: tuple[LoadReport, ...]


def write_json(report: Report, path: Path) -> None:
    """Writes a report; the file is there as a whole or not at all."""
    values = asdict(report)
    if report.encoder is not None:
        encoder = report.encoder
        values["encoder"] |= {
            "fused_is_faster": encoder.fused_is_faster,
            "reference_to_open_clip": encoder.reference_to_open_clip,
            "open_clip_to_ours": encoder.open_clip_to_ours,
        }
    temporary = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        temporary.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def print_report(report: Report, console: Console) -> None:
    """Prints the machine, the encoder and every load."""
    machine, options = report.machine, report.options
    console.print(
        f"{machine['gpu'] or machine['cpu']}, {machine['threads']} threads, torch {machine['torch']}, open_clip"
        f" {machine['open_clip']}; {options['model']} in {options['precision']}",
        soft_wrap=True,
        highlight=False,
    )
    if options["random_weights"]:
        console.print("weights are random: they cost what trained ones cost, and decide nothing", highlight=False)
    if report.encoder is not None:
        _print_encoder(report.encoder, console)
    if report.setup_seconds is not None:
        console.print(f"once per class set, not in the table: {report.setup_seconds:.2f} s", highlight=False)
    for load in report.loads:
        _print_load(load, console)


def _print_encoder(facts: EncoderFacts, console: Console) -> None:
    table = _table(f"image encoder, one pass of {facts.images} images", "", "ms an image", "GFLOP", "share in products")
    rows = (
        ("open_clip's own call", facts.open_clip_seconds, facts.open_clip_flops, facts.open_clip_product_share),
        ("the same, our attention", facts.unfused_seconds, facts.open_clip_flops, None),
        ("ours", facts.our_seconds, facts.our_flops, facts.our_product_share),
    )
    for name, seconds, flops, share in rows:
        milliseconds = f"{1000 * seconds / facts.images:.3g}"
        table.add_row(name, milliseconds, f"{flops / 1e9:.3g}", "" if share is None else f"{share:.0%}")
    console.print(table)
    way = "first" if facts.fused_is_faster else "second"
    _lines(
        console,
        f"the reference encodes with the {way}, the faster of open_clip's two ways:"
        f" {facts.reference_to_open_clip:.3f} of its own call's time",
        f"open_clip's own call takes {facts.open_clip_to_ours:.2f} times as long as ours",
        f"fastest large matrix product of this type: {facts.peak_flops / 1e9:.4g} GFLOP/s",
    )


def _print_load(load: LoadReport, console: Console) -> None:
    what = "text tower" if load.frames is None else f"videos of {load.frames} frames"
    title = f"{what}, {load.classes} classes, {load.batch} at a time: a video"
    table = _table(title, "", "reference", "ours", "ratio", "least", "median", "most")
    theirs, ours = load.reference, load.ours
    for name, field in (("encode", "encode_seconds"), ("adapt", "adapt_seconds"), ("total", "seconds")):
        if load.ratios[name] is not None:
            seconds = (f"{getattr(side, field):.3f} s" for side in (theirs, ours))
            table.add_row(name, *seconds, *_spread(load.ratios[name]))
    counts = (
        ("images encoded", theirs.images, ours.images),
        ("tokens forward", theirs.forward_tokens, ours.forward_tokens),
        ("tokens backward", theirs.backward_tokens, ours.backward_tokens),
    )
    for name, their_count, our_count in counts:
        if our_count:
            table.add_row(name, f"{their_count:.0f}", f"{our_count:.1f}", f"{their_count / our_count:.2f}")
    if theirs.peak_bytes is not None and ours.peak_bytes is not None:
        ratio = f"{theirs.peak_bytes / ours.peak_bytes:.2f}" if ours.peak_bytes > 0 else ""
        table.add_row("peak memory", f"{theirs.peak_bytes / _MIB:.0f} MiB", f"{ours.peak_bytes / _MIB:.0f} MiB", ratio)
    console.print(table)
    _lines(console, *_notes(load))


def _notes(load: LoadReport) -> list[str]:
    notes = [f"mean of {load.ours.videos} videos, of the reference {load.reference.videos}; ratio of the means"]
    if load.reference.videos < load.ours.videos:
        notes[0] += " (the reference's costs do not depend on the plan)"
    notes.append(f"ours: {load.videos_per_second:.3g} videos a second")
    if load.reference_to_open_clip is not None:
        notes.append(
            f"the reference's encoding, crops included: {load.reference_to_open_clip:.3f} of open_clip's own call by"
            " itself (wanted: 0.95 to 1.05)"
        )
    if load.encoder_share is not None:
        notes.append(f"image encoder: {load.encoder_share:.0%} of encode and adapt (wanted: 85 % or more)")
    if load.encoder_share_of_peak is not None:
        notes.append(f"image encoder, all its operations: {load.encoder_share_of_peak:.0%} of the matrix product peak")
    if load.text is not None:
        text = load.text
        notes.append(
            f"text features differ by {text.features:.1e} of the largest, the gradient by {text.gradient:.1e} (wanted:"
            f" 1e-5). From the gradient in float64, the reference's is {text.reference_rounding:.1e} away, ours"
            f" {text.our_rounding:.1e}"
        )
    if load.agreement is not None:
        notes.append(f"ours and reference: {_agreement(load.agreement)}")
    if load.precision_difference is not None:
        notes.append(f"ours and ours in float32: {_agreement(load.precision_difference)}")
    return notes


def _agreement(found: Agreement) -> str:
    said = []
    if found.decided:
        said.append(
            f"{found.same_top1} of {found.decided} first classes ({found.ties} ties) and {found.same_selection}"
            f" selections are the same; logits differ by {found.before:.1e} before and {found.after:.1e} after"
            f" adaptation, {found.after_to_spread:.1e} of their spread"
        )
    if found.encoded:
        said.append(f"view features of {found.encoded} videos differ by {found.views:.1e}")
    return "; ".join(said)


def _spread(ratio: Spread | None) -> tuple[str, ...]:
    if ratio is None:
        return ("", "", "", "")
    return tuple(f"{number:.2f}" for number in (ratio.of_means, ratio.least, ratio.median, ratio.most))


def _table(title: str, *columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", pad_edge=False, show_edge=False)
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left")
    return table


def _lines(console: Console, *lines: str) -> None:
    for line in lines:
        console.print(line, soft_wrap=True, highlight=False)
    console.print()
