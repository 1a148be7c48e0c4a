"""Every option of the service: what it serves, to whom, and how much of it at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from zar_ray.data.options import NameStyle
from zar_ray.models.options import ClassPosition, ModelOptions
from zar_ray.options.base import Options
from zar_ray.results.certainty import CertaintyScore
from zar_ray.video.limits import DecodeLimits
from zar_ray.video.options import DecodeOptions, Resizer, ViewConfig

_MIB = 2**20
_GIB = 2**30


class LimitConfig(Options):
    """What one request may cost, and how many there may be; each ingress replica counts for itself."""

    body_bytes: int = Field(default=256 * _MIB, ge=1, description="Bytes of a request's body.")
    queued_bytes: int = Field(default=_GIB, ge=1, description="Bytes of all bodies that are held at a time.")
    concurrent: int = Field(default=8, ge=1, description="Requests that are worked on at a time.")
    queued: int = Field(default=16, ge=0, description="Requests that wait beyond those; further ones are refused.")
    retry_after: int = Field(default=2, ge=1, description="Seconds after which a refused client may try again.")
    duration: float = Field(default=600.0, gt=0, description="Seconds of a video.")
    side: int = Field(default=4096, ge=1, description="Pixels of a video's width and of its height.")
    decoded_bytes: int = Field(default=512 * _MIB, ge=1, description="Bytes of a video's resized frames.")
    decode_memory: int = Field(default=2 * _GIB, ge=64 * _MIB, description="Bytes that decoding may allocate.")
    labels: int = Field(default=1000, ge=1, description="Candidate labels of a request.")
    label_length: int = Field(default=200, ge=1, description="Characters of a label, and of a template.")
    steps: int = Field(default=10, ge=1, description="Steps that a request may ask for.")
    seeds: int = Field(default=5, ge=1, le=100, description="Seeds of a request, each a classification of its own.")
    windows: int = Field(default=200, ge=1, description="Windows of a video that is classified window by window.")
    streams: int = Field(default=4, ge=1, description="Such videos at a time, beside `concurrent`; a decoder's, too.")
    stream_seconds: float = Field(default=600.0, gt=0, description="Seconds after which no further window is begun.")
    stream_pixels: float = Field(default=2e8, gt=0, description="Pixels a second that one may have decoded.")
    head_seconds: float = Field(default=10.0, gt=0, description="Seconds that a request's head may take to arrive.")
    receive_seconds: float = Field(default=60.0, gt=0, description="Seconds that a body may take to arrive.")
    adapt_seconds: float = Field(default=60.0, gt=0, description="Seconds from decoded frames to an answer.")
    wait_seconds: float = Field(default=30.0, ge=0, description="Seconds that may pass between stages, in queues.")

    @property
    def decoding(self) -> DecodeLimits:
        """Those of one video and its decoding."""
        return DecodeLimits(self.duration, self.side, self.decoded_bytes, self.decode_memory, self.windows)


class ServeConfig(ModelOptions, DecodeOptions):
    """What the service serves; replicas, autoscaling and resources are options of Ray Serve (serve/config.yaml).

    The methods' own options are `zar_ray.serving.methods.ServiceOptions`'s: what only receives or decodes loads none.
    """

    decode_timeout: float = Field(default=30.0, gt=0, description="Seconds a video may take to decode.")
    resize: Resizer = Field(
        default="torch", description="torch: PyTorch's kernel, several times faster; pil: as benchmarks resize."
    )
    methods: tuple[str, ...] = Field(
        default=("zar", "zero_shot"), min_length=1, description="Methods that requests may choose; the first is used."
    )
    class_position: ClassPosition = Field(default="end", description="Where the label stands in the prompt.")
    name_style: NameStyle = Field(default="raw", description="How prompts spell labels.")
    seed: int = Field(default=0, ge=0, description="Seed of the view plans, where a request names none.")
    views: ViewConfig = Field(default_factory=ViewConfig, description="Views.")
    reject_below: float | None = Field(
        default=None,
        allow_inf_nan=False,
        description="Reject decisions that are less sure than this, where a request does not say.",
    )
    reject_score: CertaintyScore = Field(default="max_probability", description="By which score they are rejected.")
    label_sets: dict[str, str] = Field(
        default={"hmdb51": "hmdb51", "kinetics400": "kinetics400", "kinetics600": "kinetics600", "ucf101": "ucf101"},
        description='Candidate labels by name: the name of a shipped class list, "a,b,c", or a file with one a line.',
    )
    roots: tuple[Path, ...] = Field(default=(), description="Folders whose videos requests may name by their paths.")
    samples: Path | None = Field(default=None, description="A folder of videos that the page offers to try.")
    tokens: tuple[Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")], ...] = Field(
        default=(), description="SHA-256 of the bearer tokens that let requests in; without any, all are."
    )
    allowed_hosts: tuple[str, ...] = Field(
        default=(), description="Names by which the service may be called without tokens, beside this machine's own."
    )
    allowed_origins: tuple[str, ...] = Field(
        default=(), description="Other sites whose pages may call the service, as https://example.org."
    )
    text_memory: float = Field(
        default=0.1, ge=0, le=1, description="Share of a GPU's, else the machine's memory that label sets' texts keep."
    )
    batch: int = Field(default=8, ge=1, description="Requests that share the encoder's and the adaptation's passes.")
    batch_wait: float = Field(default=0.0, ge=0, description="Seconds that a request waits for others to share with.")
    threads: int | None = Field(default=None, ge=1, description="CPU threads of a model replica; by default all.")
    limits: LimitConfig = Field(default_factory=LimitConfig, description="Limits.")

    @property
    def folders(self) -> tuple[Path, ...]:
        """Those whose videos requests may name: the roots, and that of the samples."""
        return self.roots if self.samples is None else (*self.roots, self.samples)
