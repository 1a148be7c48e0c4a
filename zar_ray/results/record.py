"""What one evaluation found, as frozen values: computed by `zar_ray.results.metrics`, held by ``run.json``, and the
only thing that the tables, the Markdown and MLflow are made from.

Every share (accuracy, interval, chance) is a fraction in [0, 1]; only what is printed is in per cent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from zar_ray.results.estimates import Estimate, Measure, PairedComparison, flat_numbers


@dataclass(frozen=True)
class Accuracy:
    """How often the right class is found.

    Attributes:
        top1: Share of videos whose best class is right.
        top5: Share of videos whose right class is among the best five (all, if there are fewer than five classes).
        mean_class: Mean over the classes that have videos of each class's top-1 share.
    """

    top1: Estimate
    top5: Estimate
    mean_class: Estimate


@dataclass(frozen=True)
class Scores:
    """Accuracy over one set of labelled videos.

    Attributes:
        videos: How many videos that is.
        after: Accuracy after it, which is the method's result.
        change: After against before; None for a method that leaves every score as it was.
    """

    videos: int
    before: Accuracy
    after: Accuracy
    change: PairedComparison | None


@dataclass(frozen=True)
class CaseMetrics:
    """All numbers of one case.

    Attributes:
        videos: Rows of this case; finished + failed.
        finished: Rows with a decision.
        failed: Rows without one.
        labelled: Rows with a label, failed ones included; the others count in no accuracy.
        unknown: Rows of classes that were held out (`--unknown-classes`), failed ones included; they have no label.
        classes: Candidate classes, K.
        chance: What guessing gets: 1/K of top-1, or of a multi-label split's mean average precision the mean share of
            videos that show a class.
        failures_wrong: Scores over all labelled videos, failed ones counted as wrong: the headline. None when no
            video has a label.
        failures_excluded: Scores over the labelled videos that finished; None when there are none.
        entropy_before: Mean entropy of the evaluation view in nats before adaptation; None when nothing finished.
        entropy_after: The same after adaptation.
        seconds_adapt: Mean wall seconds of adaptation a video; None when not measured.
        split: The protocol's split that the case is of.
        images: Mean distinct images a video that the method looks at or encodes itself; None when not measured.
        text_tokens: Mean tokens a video of the contexts that it puts through the text tower.
        gradient_tokens: Mean tokens a video that its gradients go back through there.
        seconds: Mean wall seconds a video of encoding these and of adapting, as if the method ran alone.
        peak_memory: The most bytes that a worker had in use meanwhile: on a GPU what PyTorch had allocated there, on a
            CPU what the process held; all of the run's models included.
        changed: Decisions that are other classes after adaptation than before.
        confidence_before: Mean probability of the class that is decided for before adaptation; None when nothing
            finished.
        confidence_after: The same after adaptation.
        groups: How many sources the labelled videos are of, where some share one: these are drawn, and exchanged,
            together.
        map_before: Mean average precision before adaptation, of a multi-label split, failed videos with the lowest
            scores; its intervals are over videos. None elsewhere, as the accuracies are None there.
        map_after: The same after adaptation.
        map_change: After against before; None too for a method that leaves every score as it was.
        trust: How far its probabilities can be believed, by the names of `zar_ray.results.trust.MEASURES`, over the
            videos that finished; empty where that is not defined, as of a multi-label split.
    """

    case_id: str
    method: str
    videos: int
    finished: int
    failed: int
    labelled: int
    classes: int
    chance: float
    failures_wrong: Scores | None
    failures_excluded: Scores | None
    entropy_before: float | None
    entropy_after: float | None
    seconds_adapt: float | None
    split: str = "all"
    images: float | None = None
    text_tokens: float | None = None
    gradient_tokens: float | None = None
    seconds: float | None = None
    peak_memory: int | None = None
    changed: int = 0
    confidence_before: float | None = None
    confidence_after: float | None = None
    groups: int | None = None
    map_before: Estimate | None = None
    map_after: Estimate | None = None
    map_change: PairedComparison | None = None
    unknown: int = 0
    trust: dict[str, Measure] = field(default_factory=dict)

    @property
    def headline(self) -> Scores | None:
        """The scores that every output shows first: failures counted as wrong."""
        return self.failures_wrong

    @property
    def change(self) -> PairedComparison | None:
        """The headline's change, or that of mean average precision."""
        return self.map_change if self.headline is None else self.headline.change

    @property
    def adapts(self) -> bool:
        """Whether the method changed any score; zero-shot changes none."""
        return self.change is not None or (self.headline is None and self.entropy_before != self.entropy_after)

    def estimates(self, when: Literal["before", "after"]) -> dict[str, Estimate]:
        """Its results before or after adaptation by their metrics' names, the one that it is compared by first.

        These are the headline's accuracies, of a multi-label split mean average precision, and none without labels.
        """
        average_precision = self.map_before if when == "before" else self.map_after
        if average_precision is not None:
            return {"map": average_precision}
        return {} if self.headline is None else dict(vars(getattr(self.headline, when)))

    def numbers(self) -> dict[str, float]:
        """The case as flat numbers for MLflow; docs/mlflow.md lists the names.  What is unknown is left out.

        The result comes first, as MLflow's comparison opens on the first number.
        """
        values = {**self.estimates("after"), **vars(self), "map_after": None}
        values |= {f"{name}_before": estimate for name, estimate in self.estimates("before").items()}
        if (change := self.change) is not None:
            values |= {f"{next(iter(self.estimates('after')))}_change": change.effect, "change_p": change.p_value}
            values |= {"gained": change.gained, "lost": change.lost, "detectable": change.detectable}
        if self.failures_excluded is not None:
            accuracy = vars(self.failures_excluded.after)
            values |= {f"{name}_without_failures": estimate.value for name, estimate in accuracy.items()}
        trust = [measure.numbers(name) for name, measure in self.trust.items()]
        return flat_numbers(values) | {name: value for one in trust for name, value in one.items()}


@dataclass(frozen=True)
class ClassAccuracy:
    """One class of one case.

    Attributes:
        label_id: Index among the class names.
        videos: Labelled videos of the class, failed ones included.
        failed: Those of them without a decision, which count as wrong.
        top1_before: Share that is right before adaptation; None without videos.
        top1_after: The same after adaptation.
        taken_for: The wrong class that most of its videos are given after adaptation; None when there is none.
    """

    label_id: int
    label: str
    videos: int
    failed: int
    top1_before: float | None
    top1_after: float | None
    taken_for: str | None
    taken_for_videos: int

    @property
    def change(self) -> float:
        """By how much its top-1 share rose; 0 without videos."""
        return (self.top1_after or 0.0) - (self.top1_before or 0.0)


@dataclass(frozen=True)
class FailureGroup:
    """Videos that failed at one stage.

    Attributes:
        stage: See `zar_ray.errors.VideoError`.
        examples: The first of them by id, as (video id, error).
    """

    stage: str
    videos: int
    examples: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Costs:
    """What a video costs; means over the videos where it was measured, None where it never was.

    Attributes:
        bytes_shipped_mean: Bytes of pixels sent from the decoding to the adapting process.
        bytes_shipped_max: The most that one video needed.
        images_encoded_mean: Distinct images through the image encoder.
        frames_decoded_mean: Distinct frames read.
        seconds_decode_mean: Wall seconds to open, read and resize.
        seconds_encode_mean: Wall seconds to encode.
    """

    bytes_shipped_mean: float | None
    bytes_shipped_max: int | None
    images_encoded_mean: float | None
    frames_decoded_mean: float | None
    seconds_decode_mean: float | None
    seconds_encode_mean: float | None


@dataclass(frozen=True)
class ModelCost:
    """What a model is, holds and computes, whatever it is called; a GFLOP is 1e9 multiplications with addition.

    Attributes:
        architecture: The model of open_clip's that has the same towers, setting by setting, and nothing besides; None
            where none has.
        input_size: Pixels along a side of what it reads.
        view_frames: T, frames of an evaluation view.
        view_gflops: What an evaluation view takes, as published: all of the image tower, and a head over frames.
        image_gflops: What an image of it takes of the image tower, counted alike.
        tuning_gflops: What a video takes of the text tower besides, by method; of methods that tune a context, under
            the largest class set.
    """

    architecture: str | None
    input_size: int
    parameters: int
    view_frames: int
    view_gflops: float
    image_gflops: float
    tuning_gflops: dict[str, float]


@dataclass(frozen=True)
class Throughput:
    """How fast this session worked.

    Attributes:
        videos: Videos it decided about in every case; neither failed ones, which may cost nothing, nor resumed ones.
        seconds: Wall seconds of its pass over the videos, with what failed ones took and the workers' start.
        loads: Workers that told how long they took to load the models.
        load_seconds: Wall seconds that they took on average; None where none told.
        load_seconds_most: What the slowest took.
    """

    videos: int
    seconds: float
    loads: int = 0
    load_seconds: float | None = None
    load_seconds_most: float | None = None

    @classmethod
    def of(cls, videos: int, seconds: float, loads: Sequence[float]) -> Throughput:
        """Such a session's, by the seconds of each worker's load."""
        if not loads:
            return cls(videos, seconds)
        return cls(videos, seconds, len(loads), sum(loads) / len(loads), max(loads))

    @property
    def videos_per_second(self) -> float | None:
        """Videos a second; None when none was decided about."""
        return self.videos / self.seconds if self.videos and self.seconds > 0 else None


@dataclass(frozen=True)
class MlflowState:
    """Where a run was logged, or why it was not.

    Attributes:
        uri: The tracking store; None when there is none.
        run_id: The evaluation's (parent) run.
        why_not: The reason when there is no run id, with the way out.
    """

    uri: str | None = None
    experiment: str | None = None
    run_id: str | None = None
    why_not: str | None = None


@dataclass(frozen=True)
class SplitSummary:
    """One split of a protocol.

    Attributes:
        classes: Names to choose among.
        notes: What to say beside its results, a line each.
    """

    name: str
    classes: int
    videos: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class ProtocolAverage:
    """What a protocol reports of several splits for one method, as published tables print it.

    Attributes:
        metric: ``top1``, ``top5``, ``mean_class`` or ``map``, after adaptation; with ``_before`` before it.
        kind: ``mean`` of the splits, or ``harmonic`` mean of base and novel.
        value: The average of the splits' headline numbers, a fraction.
        std: Standard deviation between the splits, dividing by their number as NumPy's default does; None for a
            harmonic mean.
        change: Of top-1 after adaptation, this average against that of the decisions before it.
    """

    method: str
    metric: str
    kind: Literal["mean", "harmonic"]
    value: float
    std: float | None
    splits: tuple[str, ...]
    change: PairedComparison | None = None

    def numbers(self) -> dict[str, float]:
        """The average as flat numbers for MLflow; docs/mlflow.md lists the names."""
        name = f"{self.metric}_{self.kind}"
        values: dict[str, object] = {name: self.value, f"{self.metric}_std": self.std}
        if self.change is not None:
            values |= self.change.numbers(f"{name}_change")
        return flat_numbers(values)


@dataclass(frozen=True)
class RunSummary:
    """One evaluation.

    Attributes:
        dataset: What was evaluated, as the user named it.
        split: The one split that was asked for; None for all of the protocol's.
        model_fingerprint: A short hash of its weights.
        random_weights: Whether the weights are untrained; every output then says so.
        seed: Seed of the view plans.
        classes: Candidate classes, K; of several splits, distinct ones in all, which no video chooses among.
        videos: Videos of the run; finished + failed.
        finished: Videos with a decision in every case.
        failed: Videos without a decision in at least one case.
        unlabelled: Videos without a label, which count in no accuracy.
        unknown: Videos of classes that were held out in every split that has them; they count in no accuracy either.
        warned: Videos that were used with a warning.
        resumed: Videos that an earlier session had finished.
        cases: Metrics by case, in the order they were asked for.
        mlflow: Where the run was logged, or why not.
        splits: The protocol's splits that ran, in its order; `cases` holds one case a split and method.
        averages: What the protocol reports over them; empty with one split.
        order_dependent: Stream methods: their decisions depend on the order of the videos.
        order: That order, with its seed; of a study all that its streams had.
        model_cost: What the model computes; None of runs that were made before it was counted.
    """

    name: str
    dataset: str
    split: str | None
    model: str
    model_fingerprint: str
    random_weights: bool
    seed: int
    classes: int
    videos: int
    finished: int
    failed: int
    unlabelled: int
    warned: int
    resumed: int
    cases: tuple[CaseMetrics, ...]
    failures: tuple[FailureGroup, ...]
    costs: Costs
    throughput: Throughput
    results: str
    run_file: str
    mlflow: MlflowState = MlflowState()
    splits: tuple[SplitSummary, ...] = ()
    averages: tuple[ProtocolAverage, ...] = ()
    order_dependent: tuple[str, ...] = ()
    order: tuple[str, ...] = ()
    model_cost: ModelCost | None = None
    unknown: int = 0

    @property
    def images_gflops(self) -> float | None:
        """GFLOPs, forward, of the images that were encoded a video; None where that is not known."""
        images = self.costs.images_encoded_mean
        return None if self.model_cost is None or images is None else images * self.model_cost.image_gflops

    def numbers(self) -> dict[str, float]:
        """The run as flat numbers for MLflow, without its cases; docs/mlflow.md lists the names."""
        counts = ("videos", "finished", "failed", "unlabelled", "unknown", "warned", "resumed", "classes")
        values = {
            **{name: getattr(self, name) for name in counts},
            **vars(self.costs),
            "seconds": self.throughput.seconds,
            "videos_per_second": self.throughput.videos_per_second,
            "seconds_load": self.throughput.load_seconds,
            "seconds_load_most": self.throughput.load_seconds_most,
            "gflops_images": self.images_gflops,
        }
        if (cost := self.model_cost) is not None:
            values |= {"parameters": cost.parameters, "gflops_view": cost.view_gflops}
            values |= {f"gflops_tuning_{method}": gflops for method, gflops in cost.tuning_gflops.items()}
        return flat_numbers(values)
