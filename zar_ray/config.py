"""Every option of zar-ray, defined once.

A run's options come from, lowest first: the defaults here, the benchmark's file (`conf/benchmarks/NAME.yaml`,
key ``options``), `--config FILE`, the command line.  The resolved options are printed at the start of a run,
saved beside its results and logged, and `--config` of that file repeats the run.

An option marked *operational* (where and how fast a run works) may change between a run and its resumption; all
others are part of what the numbers mean, and a run folder holds one setting of them only.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import tyro
import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_serializer,
    model_validator,
)

from zar_ray.errors import ConfigError

Precision = Literal["fp32", "bf16", "fp16"]
Decoder = Literal["auto", "decord", "pyav"]
ClassPosition = Literal["end", "middle", "front"]
TextAverage = Literal["features", "probabilities"]
NameStyle = Literal["raw", "split_camel_case", "lower_case"]
Selection = Literal["entropy", "margin"]
Loss = Literal["mean_probability", "mean_entropy"]
Decides = Literal["evaluation", "selected"]
Fusion = Literal["embedding", "image", "decision"]
_T = TypeVar("_T", bound="Options")
_PASSWORD = re.compile(r"(?<=://)([^/@\s]*):[^/@\s]*(?=@)")


def _fraction(value: object) -> object:
    """Accepts ``0.3`` and ``30%`` alike."""
    if isinstance(value, str) and value.strip().endswith("%"):
        return float(value.strip()[:-1]) / 100
    return value


Fraction = Annotated[
    float,
    BeforeValidator(_fraction),
    # The command line builds values before pydantic sees them, so it has to know the notation too.
    tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="SHARE",
        instance_from_str=lambda words: float(_fraction(words[0])),  # type: ignore[arg-type]
        is_instance=lambda value: isinstance(value, float | int),
        str_from_instance=lambda value: [f"{value:g}"],
    ),
]


class Options(BaseModel):
    """Base of all options: frozen, and a misspelt key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


def operational(default: Any, description: str, **limits: Any) -> Any:
    """A field that does not change what a run's numbers mean."""
    return Field(default=default, description=description, json_schema_extra={"operational": True}, **limits)


def later(default: Any, description: str, **limits: Any) -> Any:
    """A field that came after runs were made without it: at its default it is no part of what a run is.

    So a run folder of before is continued, and its case ids stay.
    """
    return Field(default=default, description=description, json_schema_extra={"later": True}, **limits)


class ViewConfig(Options):
    """Which views of a video the adaptation sees (DESIGN.md, "ZAR, exactly", 1 to 4)."""

    frames: int = Field(default=16, ge=1, description="T, frames a view.")
    eval_frames: int = Field(default=16, ge=1, description="Frames of the evaluation view, which is classified.")
    rates: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field(
        default=(1.0, 0.5, 0.25, 0.125),
        min_length=1,
        description="Segment lengths as shares of the video, one a frame rate.",
    )
    views_per_rate: int = Field(default=4, ge=1, description="M, segments drawn a rate.")
    crops: Literal[1, 3, 5, 9] = Field(default=3, description="N_c, crops a segment.")
    eval_views: str = Field(
        default="1x1",
        pattern=r"^[1-9][0-9]*x[1359]$",
        description="Evaluation views, temporal x spatial, whose scores are averaged, as 4x3; `--views 4x3` for short.",
    )
    short_side: int | None = Field(
        default=None,
        ge=1,
        description="Short side frames are resized to; by default the model's input size, or 8/7 of it for 5 and 9"
        " crops and for checkpoints trained that way.",
    )


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


class ModelOptions(Options):
    """Which weights, and how they run."""

    model: str = Field(
        default="ViT-B-16-quickgelu",
        description="An open_clip model name (OpenAI weights need -quickgelu), or a published system: vificlip,"
        " actionclip, ezclip, a5, vitaclip or xclip.",
    )
    pretrained: str | None = Field(
        default="openai",
        description='An open_clip tag, downloaded on first use; "random" for untrained weights (every output says so).',
    )
    checkpoint: Path | None = Field(
        default=None,
        description="A local checkpoint (.safetensors or .pt) instead of a tag: OpenAI's, open_clip's, ViFi-CLIP's,"
        " ActionCLIP's, EZ-CLIP's, A5's, Vita-CLIP's, X-CLIP's or zar-ray's.",
    )
    context: str = Field(
        default="a video of a",
        min_length=1,
        description="The words the context vectors start from, or the .safetensors file of a learned context.",
    )
    precision: Precision = Field(
        default="fp32", description="The image encoder's precision; text and tuning stay float32."
    )
    device: str = operational("auto", "Device of a worker: auto, cpu or cuda.")
    encoder_batch: int = operational(64, "Images a pass of the image encoder, of as many videos as it takes.", ge=1)


class DecodeOptions(Options):
    """How files become frames."""

    decoder: Decoder = Field(default="auto", description="auto: decord where it can, PyAV otherwise; recorded a video.")
    decode_timeout: float = operational(120.0, "Seconds a video may take to decode before it fails.", gt=0)


class PromptOptions(Options):
    """What the text tower reads of a class."""

    name_style: NameStyle = Field(
        default="raw", description="How prompts spell class names; split_camel_case makes ApplyEyeMakeup three words."
    )
    template: str | None = Field(
        default=None,
        min_length=1,
        description="A prompt with {} where the name goes, or a list: actionclip, clip_kinetics, clip_ucf101; by"
        ' default the context and "{}.".',
    )
    class_texts: Path | None = Field(
        default=None,
        description="CSV (class,text) or JSON with texts in the names' place; whole prompts without a template.",
    )
    template_average: TextAverage = later(
        "features",
        "What counts of a class with several texts: the mean of their features, as CLIP, or of the"
        " probabilities that each gives, as ActionCLIP.",
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


class EvalConfig(AdaptationOptions):
    """Options of `zar eval` and jobs/eval.py."""

    dataset: str | None = Field(
        default=None, description="A benchmark's name, a manifest (.parquet), a list (.csv) or a folder."
    )
    protocol: Literal["standard", "base_to_novel"] = Field(
        default="standard",
        description="base_to_novel: both halves of k400, hmdb51, ucf101 or ssv2, and their harmonic mean.",
    )
    split: str | None = Field(
        default=None,
        description="The one split of a benchmark's protocol to evaluate, or a manifest's; all by default.",
    )
    class_names: str | None = Field(
        default=None,
        description='The candidate classes: "a,b,c" or a file with one a line; by default the manifest\'s.',
    )
    legacy_labels: bool = Field(
        default=False, description="Score as published label files do, with the names that they exchange."
    )
    limit: int | None = Field(default=None, ge=1, description="Evaluate only so many videos, spread over the manifest.")

    models: tuple[str, ...] = operational(
        (),
        "Evaluate several models in one pass over the videos, a run each, and print models x methods; `--model A B` for"
        " short. Each is a checkpoint's file, NAME:TAG, or a NAME with --pretrained's tag.",
    )
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = operational(
        (), "Run once with each of these seeds, in a folder each, and report the mean over them."
    )
    interpolate_with: Path | None = operational(
        None, "A checkpoint to mix the model with, in the shares --alphas: a run for each mixture (WiSE-FT)."
    )
    alphas: tuple[Annotated[float, Field(ge=0, le=1)], ...] = operational(
        (), "Shares of --interpolate-with: 0 is the model itself, 1 the other."
    )
    output: str = operational("runs", "Folder or URI that holds all runs.")
    name: str | None = operational(None, "The run's folder under the output; by default made from what is run.")
    resume: bool = operational(False, "Insist on continuing a run that is there already.")
    retry_failed: bool = operational(False, "When continuing, do failed videos again.")
    overwrite: bool = operational(False, "Delete a run of the same name first.")
    features: str | None = operational(
        None,
        "Folder or URI to keep image features in; runs whose images are all there neither decode nor encode.",
    )
    max_failed: Fraction = operational(
        0.01, "Share of videos that may fail before the run counts as failed, as 0.01 or 1%.", ge=0, le=1
    )
    num_workers: int | None = operational(None, "Model replicas; by default one a GPU, or one a two CPUs.", ge=1)
    decode_workers: int | None = operational(None, "Decoding processes at once; by default what the CPUs allow.", ge=1)
    gpus_per_worker: float | None = operational(None, "GPUs a replica; by default 1 if there are any.", ge=0)
    batch_size: int = operational(8, "Videos a worker is handed, and adapts to, at a time.", ge=1)
    address: str | None = operational(None, "Ray cluster to use; by default the one at hand, else a local one.")
    mlflow_uri: str | None = operational(None, "MLflow tracking URI; by default OUTPUT/mlflow.db.")
    mlflow: bool = operational(True, "Log the run to MLflow.")
    report: bool = operational(False, "Write the run's report as one HTML file at the end, as `zar report run` does.")
    data_root: Path | None = operational(None, "Folder that holds NAME/manifest.parquet; by default ZAR_HOME/datasets.")

    @field_serializer("mlflow_uri")
    def _shown_uri(self, uri: str | None) -> str | None:
        # Options are written to files, logged and printed.
        return without_password(uri) if uri else uri


class AblateConfig(EvalConfig):
    """Options of `zar ablate` and jobs/ablate.py."""

    method: tuple[str, ...] = Field(default=("zar",), min_length=1, description="Test-time methods to run.")
    # A run folder's settings are held against the settings themselves, whatever file they come from.
    sweep: tuple[str, ...] = operational(
        (),
        "What to vary: confidence, rates, crops, frames, views_per_rate, context_length, context_init, lr, steps,"
        " selection, loss, decision, fusion, zar-table3, zar-table4, zar-table5, or YAML files; all in one pass.",
    )


class RandAugmentConfig(Options):
    """RandAugment (Cubuk et al., NeurIPS 2020), drawn anew for every frame, as ActionCLIP."""

    operations: int = Field(default=0, ge=0, description="Operations a frame, drawn from 16; 0 for no RandAugment.")
    magnitude: int = Field(default=9, ge=0, le=30, description="How far each goes through its range, of 30.")


class AugmentConfig(Options):
    """What training does to a sample's pixels; the same for all frames of a video, but for RandAugment."""

    crop: Literal["random", "multi_scale"] = Field(
        default="random",
        description="random: a square of the input size, anywhere; multi_scale: a box of two of the crop scales, in a"
        " corner or the centre, resized to the input size, as ViFi-CLIP.",
    )
    crop_scales: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field(
        default=(1.0, 0.875, 0.75, 0.66),
        min_length=1,
        description="Sides of multi_scale boxes as shares of the short side; width and height are the same one or"
        " neighbours in the list.",
    )
    flip: float = Field(default=0.0, ge=0, le=1, description="Probability of a left-right flip.")
    colour_jitter: float = Field(default=0.0, ge=0, le=1, description="Probability of a colour jitter.")
    grey: float = Field(default=0.0, ge=0, le=1, description="Probability of a video without colours.")
    mixup: float = Field(default=0.0, ge=0, description="Mixup's alpha (Zhang et al., ICLR 2018); 0 for none.")
    cutmix: float = Field(default=0.0, ge=0, description="CutMix's alpha (Yun et al., ICCV 2019); 0 for none.")
    cutmix_share: float = Field(
        default=0.5, ge=0, le=1, description="Share of micro-batches under CutMix rather than mixup, where both are on."
    )
    label_smoothing: float = Field(default=0.0, ge=0, lt=1, description="Share of the target spread over all classes.")
    rand_augment: RandAugmentConfig = later(RandAugmentConfig(), "RandAugment, before everything else.")


class TrainConfig(ModelOptions, DecodeOptions, PromptOptions):
    """Options of `zar train` and jobs/pretrain.py."""

    dataset: str | None = Field(
        default=None, description="A manifest (.parquet), a benchmark's name, a list or a folder."
    )
    split: str | None = Field(default=None, description="The manifest's split to train on; all videos by default.")
    protocol: Literal["standard", "few_shot", "base_to_novel"] = Field(
        default="standard",
        description="few_shot and base_to_novel: for each seed draw training videos of the benchmark's classes or its"
        " base classes, train on them, evaluate, and report the mean over the seeds.",
    )
    shots: int = Field(default=16, ge=1, description="Videos a class under few_shot and base_to_novel.")
    architecture: str | None = Field(
        default=None,
        description="Train from scratch: a name in conf/models, or a YAML file in the form of open_clip's configs;"
        " by default training starts from --model or --checkpoint.",
    )
    initial_logit_scale: float = Field(
        default=1 / 0.07, gt=0, le=100, description="Logit scale at the start of training from scratch."
    )
    pixels: Literal["model", "imagenet"] = Field(
        default="model",
        description="Mean and deviation of the input, filter and short side: the model's own; or ImageNet's, bilinear,"
        " 8/7 of the input size, as ViFi-CLIP.",
    )
    trains: Literal["both", "all", "image", "text", "prompts", "context", "added"] = Field(
        default="both",
        description="What is trained: both towers, those and the token embeddings (all, as ActionCLIP), one tower,"
        " prompt vectors in both towers' layers, the context alone (CoOp), or what ezclip, a5 or vitaclip add to CLIP.",
    )
    loss: Literal["classes", "matching"] = Field(
        default="classes",
        description="classes: cross-entropy over the texts of all classes; matching: a micro-batch's videos against its"
        " texts, one drawn a video, both ways, as ActionCLIP and EZ-CLIP.",
    )
    motion_loss: float = Field(default=0.0, ge=0, description="Weight of EZ-CLIP's motion loss beside matching.")
    fusion_lr: float = Field(
        default=1.0, gt=0, description="Learning rate of ActionCLIP's, A5's or X-CLIP's head, as a multiple."
    )
    prompt_vectors: int = Field(default=16, ge=1, description="Prompt vectors a layer and tower.")
    prompt_depth: int = Field(default=9, ge=1, description="Layers that have prompt vectors of their own.")
    context_vectors: int | None = Field(
        default=None,
        ge=1,
        description="Train a context of so many vectors, drawn at random; by default the context's words.",
    )

    frames: int = Field(default=16, ge=1, description="Frames a video, one drawn from each of so many equal parts.")
    augment: AugmentConfig = Field(default_factory=AugmentConfig, description="What is done to a sample's pixels.")
    drop_path: float = later(
        0.0,
        "Stochastic depth within the towers, in training alone: the rate of the last layer, from 0 in the first. It"
        " falls on positions of tokens, as in EZ-CLIP.",
        ge=0,
        lt=1,
    )
    attention_dropout: float = later(
        0.0, "Dropout of the towers' attention weights, in training alone; layers share it as drop_path.", ge=0, lt=1
    )
    prompt_dropout: float = later(0.0, "Dropout of EZ-CLIP's temporal prompts, in training alone.", ge=0, lt=1)
    head_dropout: float = later(0.0, "Dropout within ActionCLIP's head Transf_cls, in training alone.", ge=0, lt=1)
    batch_size: int = Field(default=256, ge=1, description="Videos a step, over all workers.")
    micro_batch: int = Field(
        default=8,
        ge=1,
        description="Videos that pass the model at once; a worker adds up the gradients of several, and mixed videos"
        " are of one. A step's result does not depend on who takes which.",
    )
    epochs: float = Field(default=10.0, gt=0, description="Times that every video is seen; --steps instead of it.")
    steps: int | None = Field(default=None, ge=1, description="Optimiser steps, instead of epochs.")
    lr: float = Field(default=8e-6, gt=0, description="Peak learning rate.")
    final_lr: float = Field(default=0.01, ge=0, le=1, description="Last learning rate as a share of the peak.")
    warmup_epochs: float = Field(default=5.0, ge=0, description="Epochs of linear warm-up; --warmup-steps instead.")
    warmup_steps: int | None = Field(default=None, ge=0, description="Steps of linear warm-up, instead of epochs.")
    cosine_from: Literal["warmup", "start"] = Field(
        default="warmup",
        description="Where the cosine has its peak: at the warm-up's end; or at step 0, as ViFi-CLIP's scheduler, whose"
        " first two steps have rate 0 and whose rate drops from the peak at the warm-up's end.",
    )
    betas: tuple[float, float] = Field(default=(0.9, 0.98), description="AdamW's betas.")
    weight_decay: float = Field(default=0.001, ge=0, description="AdamW's weight decay.")
    decays: Literal["matrices", "all"] = Field(
        default="matrices", description="What decays: weights and embeddings alone, as CLIP; or all, as ViFi-CLIP."
    )
    clip_grad: float | None = Field(default=None, gt=0, description="Bound on the gradient's norm; none by default.")
    average_from: float | None = Field(
        default=None,
        ge=0,
        description="Also write the mean of the weights at the ends of all epochs after this one (SWA), beside the"
        " output as NAME.averaged.safetensors.",
    )
    cache_frames: int = Field(
        default=0,
        ge=0,
        description="Decode each video once and keep so many of its frames, resized, in memory, to draw from;"
        " 0 decodes a video whenever it is drawn. For sets that fit in memory.",
    )
    seed: int = Field(default=0, ge=0, description="Seed of the weights, the order of videos and the frames drawn.")

    validation: str | None = operational(None, "Dataset to evaluate zero-shot during training, all its videos.")
    validation_split: str | None = operational(None, "Its split; all videos by default.")
    validation_frames: int | None = operational(
        None, "Frames of the view that is classified there; by default as many as training sees.", ge=1
    )
    validation_epochs: float = operational(1.0, "Epochs between two evaluations; there is one at the end too.", gt=0)
    validation_async: bool = operational(
        False, "Evaluate beside the training, as a job of its own, on what the cluster has free."
    )
    checkpoint_steps: int = operational(
        500, "Steps between two checkpoints to resume from; there is one at each epoch's end too.", ge=1
    )
    output: Path | None = operational(None, "The .safetensors file to write.")
    storage: str | None = operational(None, "Folder or URI of checkpoints to go on from; by default ZAR_HOME/training.")
    name: str | None = operational(
        None, "The training's folder there; by default made from the options, so that others start a new one."
    )
    overwrite: bool = operational(False, "Delete a training of the same name first.")
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = operational((), "Seeds of few_shot and base_to_novel.")
    method: tuple[str, ...] = operational(
        ("zero_shot", "zar"), "Test-time methods that few_shot and base_to_novel evaluate with.", min_length=1
    )
    num_workers: int = operational(1, "Training processes; each takes its share of every batch.", ge=1)
    gpus_per_worker: float | None = operational(None, "GPUs a process; by default 1 if there are any.", ge=0)
    decode_threads: int = operational(2, "Threads that decode ahead in each process, without decode workers.", ge=1)
    decode_workers: int = operational(
        0, "Processes of one CPU each that decode ahead for each training process, on any node; 0 for threads.", ge=0
    )
    grad_checkpointing: bool = operational(False, "Compute activations twice rather than keep them in memory.")
    address: str | None = operational(None, "Ray cluster to use; by default the one at hand, else a local one.")
    data_root: Path | None = operational(None, "Folder that holds NAME/manifest.parquet; by default ZAR_HOME/datasets.")
    mlflow_uri: str | None = operational(None, "MLflow tracking URI; by default mlflow.db in the storage.")
    mlflow: bool = operational(True, "Log the training to MLflow.")
    register_as: str | None = operational(None, "Register the trained model in MLflow under this name.")

    @field_serializer("mlflow_uri")
    def _shown_uri(self, uri: str | None) -> str | None:
        # Options are written to files, logged and printed.
        return without_password(uri) if uri else uri


class IndexConfig(Options):
    """Options of `zar data index`."""

    source: tyro.conf.Positional[str | None] = Field(
        default=None,
        description="A benchmark's name (see `zar data list`), a folder with a sub-folder a class, or a CSV of"
        " path,label[,split]; none with --list alone.",
    )
    output: Path | None = Field(
        default=None,
        description="The manifest to write; by default where --dataset looks for the benchmark's or the list's, else"
        " manifest.parquet in the folder, or beside the CSV.",
    )
    root: Path | None = Field(
        default=None,
        description="Folder of the videos of a benchmark or a list; with a CSV the folder its paths start from.",
    )
    annotations: Path | None = Field(
        default=None, description="Folder of a benchmark's official annotations, where that is not below --root."
    )
    list: tuple[str, ...] = Field(
        default=(), description='Published lists of "path label" lines, as FILE or SPLIT=FILE.'
    )
    labels: tuple[str, ...] = Field(
        default=(),
        description="Class names of the lists, one for all or one each: a class list's name (hmdb51_base), a file with"
        ' one name a line, or an "id,name" CSV.',
    )
    available_only: bool = Field(
        default=False,
        description="Leave missing videos out and count them, rather than keep them as rows with an error.",
    )
    class_names: str | None = Field(
        default=None,
        description='Classes of a folder or CSV in label-id order, "a,b,c" or a file; by default those found.',
    )
    name: str | None = Field(
        default=None, description="The dataset's name; by default the benchmark's, the folder's or the list's."
    )
    decoder: Decoder = Field(default="auto", description="Decoder to probe with.")
    workers: int | None = Field(default=None, ge=1, description="Files probed at once; by default one a CPU.")
    data_root: Path | None = Field(
        default=None, description="Folder that holds NAME/manifest.parquet; by default ZAR_HOME/datasets."
    )


class AuditConfig(Options):
    """Options of `zar data audit`."""

    manifest: tyro.conf.Positional[str | None] = Field(default=None, description="A manifest's file.")
    list: tuple[str, ...] = Field(
        default=(), description='Lists of "path label" lines, as FILE or, with --dataset, SPLIT=FILE.'
    )
    labels: tuple[str, ...] = Field(
        default=(),
        description="Class names of the lists, one for all or one each: a file or a class list's name (hmdb51_base).",
    )
    train: tuple[str, ...] = Field(
        default=(), description="Lists or manifests of the training videos, to find those that are tested too."
    )
    train_labels: str | None = Field(
        default=None,
        description="Class names of the training set, also without --train: a file or a class list's name.",
    )
    root: Path | None = Field(default=None, description="Folder of the videos, to find missing ones.")
    dataset: str | None = Field(
        default=None,
        description="The benchmark whose counts must be met; by default what the manifest says it is.",
    )


class ShotsConfig(Options):
    """Options of `zar data shots`."""

    benchmark: tyro.conf.Positional[str] = Field(
        description="A benchmark with training videos, such as hmdb51 or k400-base2novel."
    )
    shots: int = Field(default=16, ge=1, description="Videos a class.")
    seed: int = Field(
        default=1,
        ge=0,
        description="Seed of the draw: the same one draws the same videos, and more shots add to fewer.",
    )
    split: str | None = Field(
        default=None, description="The benchmark's split; by default its first (base, in base-to-novel)."
    )
    output: Path | None = Field(
        default=None, description="The manifest to write; by default where --dataset finds it by its name."
    )
    data_root: Path | None = Field(
        default=None, description="Folder that holds NAME/manifest.parquet; by default ZAR_HOME/datasets."
    )


def without_password(uri: str) -> str:
    """The URI as it may be shown and stored."""
    return _PASSWORD.sub(r"\1:***", uri)


def zar_home() -> Path:
    """Folder for data that zar-ray makes itself: ``$ZAR_HOME``, by default ``~/.cache/zar-ray``."""
    return Path(os.environ.get("ZAR_HOME") or Path.home() / ".cache" / "zar-ray").expanduser().absolute()


def conf_dir() -> Path:
    """The shipped YAML files: inside the package when installed, at the top of a checkout otherwise."""
    inside = Path(__file__).parent / "conf"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "conf"


def read_yaml(path: Path) -> dict[str, Any]:
    """Reads a YAML mapping.

    Raises:
        ConfigError: The file is missing, is not YAML or is not a mapping.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such configuration file") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read as YAML ({' '.join(str(error).split())})") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: must hold options as `name: value` lines, not a {type(content).__name__}")
    return content


def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Lays `over` on `base`, nested mappings key by key; neither is changed."""
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        merged[key] = merge(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return merged


def one_line(error: ValidationError) -> str:
    """A pydantic error as one line: each option with what is wrong with it."""
    return "; ".join(f"{'.'.join(str(part) for part in e['loc']) or 'options'}: {e['msg']}" for e in error.errors())


def validate(kind: type[_T], values: dict[str, Any], place: str) -> _T:
    """Builds options from plain values.

    Raises:
        ConfigError: A key is unknown or a value does not fit; the message names `place`.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{place}: {one_line(error)}") from error


def meaning(options: Options) -> dict[str, Any]:
    """The options that a run's numbers depend on, as plain JSON values (all but the operational ones)."""
    skip = {name for name in type(options).model_fields if _is(options, name, "operational")}
    return options.model_dump(mode="json", exclude=skip)


def identity(options: Options) -> dict[str, Any]:
    """What a run is known by: `meaning`, without options that came `later` and have their default."""
    return _without_later(options, meaning(options))


def _without_later(options: Options, values: dict[str, Any]) -> dict[str, Any]:
    kept = {}
    for name, value in values.items():
        held = getattr(options, name)
        if _is(options, name, "later") and held == type(options).model_fields[name].default:
            continue
        kept[name] = _without_later(held, value) if isinstance(held, Options) else value
    return kept


def _is(options: Options, name: str, kind: str) -> bool:
    extra = type(options).model_fields[name].json_schema_extra
    return isinstance(extra, dict) and bool(extra.get(kind))


def fingerprint(values: object) -> str:
    """A short stable hash of JSON values: 12 hexadecimal digits."""
    text = json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
