"""What the service is asked and what it answers; the page, the client and the OpenAPI document share it."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from zar_ray.adaptation.rankings import RankedLabel
from zar_ray.results.certainty import CertaintyScore


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class ClassifyParameters(_Message):
    """How a video is to be classified; what is left out is the service's default."""

    candidate_labels: tuple[str, ...] | None = Field(
        default=None, fail_fast=True, description="The labels to choose among, in any words; or name a label_set."
    )
    label_set: str | None = Field(default=None, description="A label set of the service, see /v1/labels.")
    hypothesis_template: str | None = Field(
        default=None, description="The prompt, with {} where the label goes, as `a video of a {}.`."
    )
    method: str | None = Field(
        default=None, description="One of the model's methods: zar (tunes the prompt to the video), zero_shot, …"
    )
    top_k: int = Field(default=5, ge=1, le=1000, description="Labels to return.")
    steps: int | None = Field(
        default=None, ge=1, le=1000, description="Steps of a method that tunes in steps: `options.steps` for short."
    )
    options: dict[str, Any] | None = Field(
        default=None,
        description="Options of the method's own, see /v1/methods; what is left out is the service's.",
    )
    seed: int | None = Field(default=None, ge=0, le=2**63 - 1, description="Seed of the views.")
    seeds: tuple[Annotated[int, Field(ge=0, le=2**63 - 1)], ...] | None = Field(
        default=None, min_length=1, max_length=100, fail_fast=True, description="Several, over which scores are means."
    )
    reject_below: float | None = Field(
        default=None,
        allow_inf_nan=False,
        description="Reject a decision that is less sure than this; `zar report threshold` finds it from a run.",
    )
    reject_score: CertaintyScore | None = Field(
        default=None, description="How sure a decision is; entropy counts with a minus sign. By default the service's."
    )
    explain: bool = Field(default=False, description="Also return frames, and what in them speaks for the top label.")


class PathRequest(ClassifyParameters):
    """A video that lies on the server, beneath one of its configured roots."""

    path: str = Field(min_length=1, max_length=4096, description="The file; URLs are not fetched.")


class WindowParameters(_Message):
    """How a long video is cut."""

    window: float = Field(default=10.0, gt=0, le=3600, description="Seconds of a window.")
    stride: float | None = Field(
        default=None, gt=0, le=3600, description="Seconds from one window's start to the next."
    )


class WindowedParameters(ClassifyParameters, WindowParameters):
    """How a long video is to be cut and classified."""


class WindowedPathRequest(PathRequest, WindowParameters):
    """A long video that lies on the server."""


class ServedModel(_Message):
    """The model that answered."""

    name: str
    fingerprint: str = Field(description="A hash of its weights.")
    version: str = Field(description="zar-ray's version.")
    input_size: int = Field(description="Pixels of a side of its input.")
    methods: tuple[str, ...]
    random_weights: bool = Field(description="Whether its weights are untrained, and its answers meaningless.")


class VideoFacts(_Message):
    """What was found in the file."""

    name: str
    frames: int
    fps: float
    width: int
    height: int
    duration: float
    decoder: str
    pixel_aspect: float = Field(
        1.0, description="How wide a pixel is shown for its height; pictures are not stretched."
    )
    warning: str | None = Field(description="What is wrong with the file although it could be read.")
    frames_decoded: int = Field(description="Distinct frames that were used.")
    evaluation_frames: tuple[int, ...] = Field(description="Frames of the view that is classified.")


class ViewEntropy(_Message):
    """A view of the video, and how unsure the untuned model is about it."""

    rate: float = Field(description="Share of the video that its segment covers.")
    sample: int
    crop: str
    start: int = Field(description="First frame of its segment.")
    length: int = Field(description="Frames of its segment.")
    entropy: float = Field(description="In nats.")
    selected: bool = Field(description="Whether it took part in the tuning.")


class Timings(_Message):
    """Wall seconds of the stages; what is missing to the total is waiting and transport."""

    receive: float
    decode: float
    encode: float
    adapt: float
    explain: float
    total: float


class ExplainedFrame(_Message):
    """A frame of the classified view with what speaks for a label in it."""

    frame: int
    seconds: float | None = Field(description="Its time in the video; null where the file does not say.")
    image: str = Field(description="The crop that the model sees, as a data URL.")
    before: tuple[tuple[float, ...], ...] = Field(description="Relevance by patch before tuning, 0 to 1, row by row.")
    after: tuple[tuple[float, ...], ...] = Field(description="The same after tuning, on the same scale.")


class Explanation(_Message):
    """Gradient-weighted attention of one label's logit over frames of the classified view."""

    label: str
    frames: tuple[ExplainedFrame, ...]


class Classification(_Message):
    """The answer about one video, or one window of it."""

    request_id: str
    model: ServedModel
    method: str
    seed: int = Field(description="With the video's name it decides which views are drawn, and so the scores.")
    seeds: tuple[int, ...] = Field(default=(), description="Where several were asked for; views are the first one's.")
    steps: int = Field(description="Tuning steps; 0 where the method tunes nothing.")
    candidates: int = Field(description="Labels that were chosen among.")
    before: tuple[RankedLabel, ...] = Field(description="Labels by falling score before tuning.")
    after: tuple[RankedLabel, ...] = Field(description="Labels by falling score after tuning: the answer.")
    entropy_before: float = Field(description="Of the classified view's scores, in nats.")
    entropy_after: float
    certainty: float | None = Field(
        default=None, description="How sure the decision after tuning is, by the score that it may be rejected by."
    )
    reject: bool | None = Field(
        default=None, description="Whether that is too little to take any label for shown; null without a threshold."
    )
    views: tuple[ViewEntropy, ...] = Field(description="Empty where the method looks at no other views.")
    images_encoded: int
    video: VideoFacts
    timings: Timings
    explanation: Explanation | None = Field(default=None, description="Where it was asked for.")
    explanation_missing: str | None = Field(default=None, description="Why there is none although it was asked for.")


class WindowResult(_Message):
    """One window of a long video: the data of a `window` event."""

    number: int = Field(description="From 0.")
    start: float = Field(description="Seconds from the video's start.")
    end: float
    start_frame: int
    result: Classification


class StreamEnd(_Message):
    """The data of the `end` event, the last one of a stream that went well."""

    windows: int


class ModelList(_Message):
    """All served models."""

    models: tuple[ServedModel, ...]


class ServedMethod(_Message):
    """A method that requests may choose."""

    name: str
    description: str
    options: dict[str, Any] | None = Field(
        description="JSON Schema of its own options, with the service's defaults; null where it has none."
    )


class MethodList(_Message):
    """All methods of the service; the first is used where a request names none."""

    methods: tuple[ServedMethod, ...]


class LabelSet(_Message):
    """A named set of candidate labels."""

    name: str
    labels: tuple[str, ...]


class LabelSetList(_Message):
    """All label sets of the service."""

    label_sets: tuple[LabelSet, ...]


class Sample(_Message):
    """A video that the page offers; `path` goes into a request as it is."""

    name: str
    path: str


class SampleList(_Message):
    """All samples of the service."""

    samples: tuple[Sample, ...]


class Health(_Message):
    """What /healthz and /readyz answer."""

    status: str


class ProblemDocument(_Message):
    """An error (RFC 9457); `code` is stable, `detail` is for people."""

    type: str = "about:blank"
    title: str
    status: int
    code: str
    detail: str
    request_id: str
