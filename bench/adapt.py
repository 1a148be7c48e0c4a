"""Speed, memory and numbers of zar-ray's engine against the plain loop: `python bench/adapt.py --help`."""

from __future__ import annotations

import contextlib
import io
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro
from compare import Agreement, Pair, agreement, costs, run_pairs, spread, text_agreement
from encoder import EncoderFacts, measure_encoder
from inputs import MOST_CLASSES, VIEWS, made_up_names, make_features, make_video
from measure import keep_freed_memory, machine_facts
from pydantic import Field
from reference import Reference
from report import LoadReport, Report, print_report, write_json
from rich.console import Console
from sides import OurSide, ReferenceSide

from zar_ray.adaptation.adapter import PlannedVideo
from zar_ray.adaptation.base import VideoFeatures
from zar_ray.adaptation.options import AdaptationOptions
from zar_ray.errors import ConfigError, ZarError
from zar_ray.models.clip import ClipModel
from zar_ray.models.loading import load_model
from zar_ray.models.options import Precision
from zar_ray.models.packing import images_at_once
from zar_ray.options.base import Options

_AUTOCAST = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
_WARM_CLASSES = 2
_COMPARED_PRECISION = 8  # videos that float32 runs again
_BOX = re.compile(r"[╭╮╰╯│─]+")
# What tyro and pydantic put around the one thing to say.
_NOISE = re.compile(
    r"Error parsing \S+:|\d+ validation errors? for \S+|\[type=[^\]]*\]|For further information visit \S+"
)

_Make = Callable[[int], PlannedVideo | VideoFeatures]


class BenchOptions(Options):
    """Runs the plain reference loop and zar-ray in turn on the same made-up videos, and compares them."""

    model: str = Field(default="ViT-B-32-quickgelu", description="An open_clip model name.")
    pretrained: str | None = Field(default="random", description='An open_clip tag, or "random".')
    checkpoint: Path | None = Field(default=None, description="A local checkpoint, instead of a tag.")
    classes: Path | None = Field(default=None, description="Class names, one a line; by default made-up ones.")
    class_count: int = Field(default=51, ge=2, le=MOST_CLASSES, description="How many names to make up.")
    frames: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        default=(95,), min_length=1, description="Frames a video, one load each."
    )
    videos: int = Field(default=2, ge=1, description="Videos a load.")
    reference_videos: int | None = Field(
        default=None, ge=1, description="The first so many of them run through the reference; by default all."
    )
    batch: int = Field(default=1, ge=1, description="Videos that ours takes together.")
    part: Literal["all", "text", "image"] = Field(
        default="all",
        description="Everything, the text tower alone with made-up features, or the image encoder alone.",
    )
    precision: Precision = Field(default="fp32", description="The image encoder's precision.")
    device: str = Field(default="auto", description="auto, cpu or cuda.")
    encoder_batch: int = Field(
        default=32,
        ge=1,
        description="Images a pass of the image encoder, on both sides. On a CPU choose it so that a layer's widest"
        " tensor stays below 32 MiB (32 for ViT-B/32, 8 for ViT-B/16): larger ones are fetched from the system each"
        " time, which costs the reference more.",
    )
    compile: bool = Field(default=False, description="Compile our image encoder; the reference's stays as it is.")
    threads: int | None = Field(default=None, ge=1, description="CPU threads; by default PyTorch's choice.")
    seed: int = Field(default=0, ge=0, description="Seed of plans and pictures.")
    json_file: Annotated[Path | None, tyro.conf.arg(name="json")] = Field(
        default=None, description="Write all numbers to this file too."
    )


def run(options: BenchOptions, say: Callable[[str], None] = lambda _: None) -> Report:
    """Measures everything that the options ask for.

    Args:
        options: The options.
        say: Is told what has been done.

    Raises:
        ZarError: An option, a file or the model cannot be used.
    """
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    engine = AdaptationOptions(
        model=options.model,
        pretrained=options.pretrained,
        checkpoint=options.checkpoint,
        precision=options.precision,
        device=options.device,
        encoder_batch=options.encoder_batch,
        compile=options.compile,
        seed=options.seed,
        method=("zar",),
    )
    names = class_names(options)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*read as OpenAI's CLIP.*")
        model = load_model(engine)
    ours = OurSide(model, names, engine)  # first: it refuses names that cannot be used
    say(f"{model.name}, {len(names)} classes, on {model.device}")
    encoder = None
    if options.part != "text":
        encoder = measure_encoder(model, options.encoder_batch, _AUTOCAST[options.precision])
        say("image encoder measured")
    reference = _reference(model, names, engine, encoder is None or encoder.fused_is_faster)
    _warm_up(reference, ours, options)

    loads = []
    for frames in (None,) if options.part == "text" else options.frames:
        loads.append(_run_load(options, reference, ours, encoder, frames, say))
    return Report(
        machine=machine_facts(model.device),
        options=options.model_dump(mode="json", exclude={"json_file", "checkpoint", "classes", "threads"})
        | {
            "model": model.name,
            "random_weights": model.random_weights,
            "device": model.device.type,
            "made_up_classes": options.classes is None,
            "class_count": len(names),
        },
        setup_seconds=None if options.part == "image" else ours.setup_seconds,
        encoder=encoder,
        loads=tuple(loads),
    )


def class_names(options: BenchOptions) -> list[str]:
    """The candidate classes: a file's lines, or made-up names.

    Raises:
        ConfigError: The file cannot be read, or holds fewer than two names.
    """
    if options.classes is None:
        return made_up_names(options.class_count)
    try:
        lines = options.classes.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise ConfigError(f"--classes {options.classes}: cannot be read: {reason}") from None
    names = [line.strip() for line in lines if line.strip()]
    if len(names) < 2:
        raise ConfigError(f"--classes {options.classes}: holds {len(names)} names, and a choice takes two or more")
    return names


def _reference(model: ClipModel, names: Sequence[str], engine: AdaptationOptions, fused: bool) -> ReferenceSide:
    autocast = _AUTOCAST[engine.precision]
    reference = Reference(
        model.clip,
        names,
        engine.context or model.context,
        model.preprocessing,
        engine.zar,
        images_at_once(engine.encoder_batch, model.device),
        autocast,
        fused,
    )
    return ReferenceSide(reference)


def _warm_up(reference: ReferenceSide, ours: OurSide, options: BenchOptions) -> None:
    """Lets every kind of operation of the text tower run once before anything is timed."""
    if options.part == "image":
        return
    video = make_features(0, ours.classes.initial_features, options.seed, views=2)
    ours.run([video] * options.batch, adapt=True)
    # all classes would take a CPU seconds, and it needs no warming to their number
    names = ours.classes.class_names[:_WARM_CLASSES]
    _reference(ours.model, names, ours.options, fused=True).run([video], adapt=True)


def _run_load(
    options: BenchOptions,
    reference: ReferenceSide,
    ours: OurSide,
    encoder: EncoderFacts | None,
    frames: int | None,
    say: Callable[[str], None],
) -> LoadReport:
    def make(number: int) -> PlannedVideo | VideoFeatures:
        if frames is None:
            return make_features(number, ours.classes.initial_features, options.seed, VIEWS)
        return make_video(number, frames, ours.model.preprocessing, options.seed)

    adapt = options.part != "image"
    told = min(options.videos, options.reference_videos or options.videos)
    untimed: list[Pair] = []
    if ours.model.device.type == "cuda" or frames is None:
        # A GPU has whole groups' buffers to allocate and shapes to compile for. And to watch a CPU's memory takes
        # from it what it holds in reserve, which the text tower's fractions of a second would feel.
        untimed += run_pairs(reference, ours, make, min(options.videos, options.batch), options.batch, 1, adapt, True)
    pairs: list[Pair] = []
    for pair in run_pairs(reference, ours, make, options.videos, options.batch, told, adapt, not untimed):
        pairs.append(pair)
        say(f"{sum(one.count for one in pairs)} of {options.videos} videos{f' of {frames} frames' if frames else ''}")
    return _summarise(options, reference, ours, encoder, frames, untimed, pairs, make)


def _summarise(
    options: BenchOptions,
    reference: ReferenceSide,
    ours: OurSide,
    encoder: EncoderFacts | None,
    frames: int | None,
    untimed: Sequence[Pair],
    pairs: Sequence[Pair],
    make: _Make,
) -> LoadReport:
    told = [(pair.reference, pair.reference_count) for pair in pairs if pair.reference is not None]
    watched = [*untimed, *pairs]
    theirs = costs(told, [pair.reference for pair in watched if pair.reference is not None])
    our = costs([(pair.ours, pair.count) for pair in pairs], [pair.ours for pair in watched])
    stages = {"encode": "encode_seconds", "adapt": "adapt_seconds", "total": "seconds"}
    text = None
    if options.part != "image":
        first, decision = make(0), pairs[0].ours.decisions[0]
        views = (first if isinstance(first, VideoFeatures) else pairs[0].ours.features[0]).views
        assert decision.selected is not None
        text = text_agreement(reference, ours, views[decision.selected.to(views.device)])
    both = our.encode_seconds + our.adapt_seconds
    return LoadReport(
        part=options.part,
        frames=frames,
        classes=len(ours.classes),
        batch=options.batch,
        reference=theirs,
        ours=our,
        ratios={name: spread(pairs, stage) for name, stage in stages.items()},
        encoder_share=our.encode_seconds / both if options.part == "all" else None,
        encoder_share_of_peak=(
            our.images * encoder.our_flops / our.encode_seconds / encoder.peak_flops if encoder is not None else None
        ),
        reference_to_open_clip=(
            theirs.encode_seconds / theirs.images / (encoder.open_clip_seconds / encoder.images) if encoder else None
        ),
        videos_per_second=1 / our.seconds,
        agreement=agreement([(pair.reference, pair.ours) for pair in pairs if pair.reference is not None]),
        precision_difference=_against_float32(options, ours, pairs, make),
        text=text,
    )


def _against_float32(options: BenchOptions, ours: OurSide, pairs: Sequence[Pair], make: _Make) -> Agreement | None:
    """Ours in reduced precision against ours in float32, on the first videos."""
    if options.precision == "fp32" or options.part == "text":
        return None
    model = ours.model
    exact = ClipModel(
        model.clip, model.name, model.preprocessing, model.architecture, random_weights=model.random_weights
    )
    side = OurSide(exact, ours.classes.class_names, ours.options.model_copy(update={"precision": "fp32"}))
    found, first = [], 0
    for pair in pairs:
        if first < _COMPARED_PRECISION:
            group = [make(number) for number in range(first, first + pair.count)]
            found.append((side.run(group, options.part != "image", watch_memory=False), pair.ours))
        first += pair.count
    return agreement(found)


def parse(argv: Sequence[str]) -> BenchOptions:
    """The options of a command line.

    Raises:
        ConfigError: An option is unknown or a value does not fit.
        SystemExit: With status 0, after `--help`.
    """
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(BenchOptions, args=list(argv), prog="adapt.py")
    except SystemExit as end:
        if end.code in (0, None):
            raise
        # tyro says it in a box with a title, and repeats parts of the help below a rule
        told = said.getvalue().partition("\n")[2].split("│ ──")[0]
        line = _NOISE.sub("", " ".join(_BOX.sub(" ", told).split()))
        raise ConfigError(" ".join(line.split()) + " (see --help)") from None


def main(argv: Sequence[str]) -> int:
    """Runs the bench; returns the exit status."""
    try:
        options = parse(argv)
        keep_freed_memory()
        if options.json_file is not None and not options.json_file.absolute().parent.is_dir():
            raise ConfigError(f"--json {options.json_file}: there is no such folder")
        report = run(options, lambda line: print(line, file=sys.stderr))
        print_report(report, Console())
        if options.json_file is not None:
            write_json(report, options.json_file)
    except ZarError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
