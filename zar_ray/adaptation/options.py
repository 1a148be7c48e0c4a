"""Options of how a video is turned into a decision: the batch job, the service and `zar predict` share them."""

from __future__ import annotations

from typing import Literal, Self

import tyro
from pydantic import Field, field_serializer, model_validator

from zar_ray.data.options import PromptOptions
from zar_ray.models.options import ClassPosition, ModelOptions
from zar_ray.options.base import Options, later, operational
from zar_ray.video.options import DecodeOptions, ViewConfig

Selection = Literal["entropy", "margin"]

Loss = Literal["mean_probability", "mean_entropy"]

Decides = Literal["evaluation", "selected"]

Fusion = Literal["embedding", "image", "decision"]


class ZarConfig(Options):
    """The update of the context (DESIGN.md, "ZAR, exactly", 5 and 7 to 10), and its relatives."""

    confidence: float = Field(
        default=0.8, gt=0, le=1, description="rho, share of views, lowest entropy first, that are used."
    )
    steps: int = Field(default=1, ge=1, description="AdamW steps a video.")
    lr: float = Field(default=0.005, gt=0, description="Learning rate of the context.")
    betas: tuple[float, float] = Field(default=(0.9, 0.999), description="AdamW's betas.")
    eps: float = Field(default=1e-8, gt=0, description="AdamW's epsilon.")
    weight_decay: float = Field(
        default=0.01, ge=0, description="AdamW's weight decay, which applies to the context too."
    )
    selection: Selection = later(
        "entropy", "What makes a view confident: low entropy, or a wide margin between its two likeliest classes."
    )
    loss: Loss = later(
        "mean_probability", "The entropy of the selected views' mean probability, or the mean of their entropies."
    )
    decision: Decides = later(
        "evaluation", "What is classified under the tuned context: the evaluation view, or the mean of those selected."
    )
    fusion: Fusion = later(
        "embedding",
        "Where the frames of a view become one: their embeddings; nowhere, each image being a view (image); or their"
        " logits (decision).",
    )


class TptConfig(Options):
    """Test-time prompt tuning (Shu et al., NeurIPS 2022), on random crops of the evaluation view's frames."""

    views: int = Field(default=64, ge=1, description="Views: the evaluation view, and random crops of its frames.")
    scale: tuple[float, float] = Field(default=(0.08, 1.0), description="Smallest and largest share of a frame's area.")
    ratio: tuple[float, float] = Field(default=(3 / 4, 4 / 3), description="Narrowest and widest width over height.")
    flip: float = Field(default=0.5, ge=0, le=1, description="Probability of a left-right flip.")
    augmix: bool = Field(default=False, description="Mix each crop with distorted copies of it, as AugMix does.")
    confidence: float = Field(default=0.1, gt=0, le=1, description="Share of views, lowest entropy first, that tune.")
    steps: int = Field(default=1, ge=1, description="AdamW steps a video.")
    lr: float = Field(default=0.005, gt=0, description="Learning rate of the context.")
    weight_decay: float = Field(default=0.01, ge=0, description="AdamW's weight decay.")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        for name, (low, high) in (("scale", self.scale), ("ratio", self.ratio)):
            if not 0 < low <= high:
                raise ValueError(f"{name} {low:g} {high:g}: give the smaller first, and both above 0")
        if self.scale[1] > 1:
            raise ValueError(f"scale {self.scale[1]:g}: a crop is at most the whole frame, 1")
        return self


class MemoConfig(Options):
    """Marginal entropy minimisation (Zhang et al., NeurIPS 2022): the image tower moves for each video."""

    parameters: tuple[str, ...] = Field(
        default=(), description="Beginnings of the names of the image tower's parameters that move; by default all."
    )
    optimiser: Literal["adamw", "sgd"] = Field(default="adamw", description="The optimiser.")
    lr: float = Field(default=1e-5, gt=0, description="Learning rate.")
    weight_decay: float = Field(default=0.01, ge=0, description="Weight decay.")
    momentum: float = Field(default=0.0, ge=0, lt=1, description="Momentum of sgd; adamw has none.")
    steps: int = Field(default=1, ge=1, description="Steps a video.")


class TentConfig(Options):
    """Test entropy minimisation (Wang et al., ICLR 2021): the image tower's layer norms move."""

    stream: bool = Field(
        default=False, description="Keep what was learnt for the next video (TENT online), in the manifest's order."
    )
    optimiser: Literal["adam", "sgd"] = Field(default="sgd", description="The optimiser; adam for small images there.")
    lr: float = Field(default=0.00025, gt=0, description="Learning rate.")
    momentum: float = Field(default=0.9, ge=0, lt=1, description="Momentum of sgd; adam has none.")
    steps: int = Field(default=1, ge=1, description="Steps a video.")


class TdaConfig(Options):
    """A training-free dynamic adapter (Karmanov et al., CVPR 2024): caches of the features of videos seen before."""

    positive_capacity: int = Field(default=3, ge=0, description="Features a class in the positive cache; 0 for none.")
    positive_weight: float = Field(default=2.0, ge=0, description="alpha of the positive cache.")
    positive_sharpness: float = Field(default=5.0, ge=0, description="beta of the positive cache.")
    negative_capacity: int = Field(default=2, ge=0, description="Features a class in the negative cache; 0 for none.")
    negative_weight: float = Field(default=0.117, ge=0, description="alpha of the negative cache.")
    negative_sharpness: float = Field(default=1.0, ge=0, description="beta of the negative cache.")
    negative_entropy: tuple[float, float] = Field(
        default=(0.2, 0.5),
        description="Between which entropies a video enters the negative cache; in nats over log2 of the classes.",
    )
    negative_mask: tuple[float, float] = Field(
        default=(0.03, 1.0), description="Between which probabilities a class counts as one that a video does not show."
    )


class AdaptationOptions(ModelOptions, DecodeOptions, PromptOptions):
    """How a video is turned into a decision: what the batch job and `zar predict` have in common."""

    method: tuple[str, ...] = Field(default=("zero_shot", "zar"), min_length=1, description="Test-time methods to run.")
    class_position: ClassPosition = Field(
        default="end",
        description="Where the class name stands in the prompt: after the context, in its middle or in front.",
    )
    seed: int = Field(default=0, ge=0, description="Seed of the view plans.")
    views: ViewConfig = Field(default_factory=ViewConfig, description="Views.")
    zar: ZarConfig = Field(default_factory=ZarConfig, description="ZAR's update.")
    tpt: TptConfig = later(TptConfig(), "TPT's views and update.")
    memo: MemoConfig = later(MemoConfig(), "MEMO's update.")
    tent: TentConfig = later(TentConfig(), "TENT's update.")
    tda: TdaConfig = later(TdaConfig(), "TDA's caches.")
    compile: bool = operational(False, "Compile the image encoder; the first pass of every worker takes longer.")


class PredictConfig(AdaptationOptions):
    """Options of `zar predict`."""

    videos: tyro.conf.Positional[tuple[str, ...]] = operational((), "Video files.")
    labels: str | None = Field(default=None, description='The candidate classes: "a,b,c", or a file with one a line.')
    method: tuple[str, ...] = Field(default=("zar",), min_length=1, description="Test-time methods to run.")
    top_k: int = operational(5, "How many labels to show a video.", ge=1)
    json_lines: bool = operational(False, "Print one JSON object a video and method instead of tables.")
    server: str | None = operational(
        None, "URL of a running service that is to do the work, with its model; nothing is loaded here."
    )
    token: str | None = operational(None, "The service's bearer token; by default $ZAR_TOKEN, which others cannot see.")

    @field_serializer("token")
    def _hidden_token(self, token: str | None) -> str | None:
        # --show-config prints the options.
        return "***" if token else token
