"""Options of a training."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_serializer

from zar_ray.data.options import PromptOptions
from zar_ray.models.options import ModelOptions
from zar_ray.options.base import Options, operational, without_password
from zar_ray.video.options import DecodeOptions


class RandAugmentConfig(Options):
    """RandAugment (Cubuk et al., NeurIPS 2020), drawn anew for every frame."""

    operations: int = Field(default=0, ge=0, description="Operations a frame, drawn from 16; 0 for no RandAugment.")
    magnitude: int = Field(default=9, ge=0, le=30, description="How far each goes through its range, of 30.")


class AugmentConfig(Options):
    """What training does to a sample's pixels; the same for all frames of a video, but for RandAugment."""

    crop: Literal["random", "multi_scale"] = Field(
        default="random",
        description="random: a square of the input size, anywhere; multi_scale: a box of two of the crop scales, in a"
        " corner or the centre, resized to the input size.",
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
    rand_augment: RandAugmentConfig = Field(
        default_factory=RandAugmentConfig, description="RandAugment, before everything else."
    )


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
    shots: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        default=(16,), min_length=1, description="Videos a class under few_shot and base_to_novel; several are an axis."
    )
    architecture: str | None = Field(
        default=None,
        description="Train from scratch: a system's name or one in conf/models, or a YAML file in open_clip's form;"
        " by default training starts from --model or --checkpoint.",
    )
    initial_logit_scale: float = Field(
        default=1 / 0.07, gt=0, le=100, description="Logit scale at the start of training from scratch."
    )
    pixels: Literal["model", "imagenet"] = Field(
        default="model",
        description="Mean and deviation of the input, filter and short side: the model's own; or ImageNet's, bilinear,"
        " 8/7 of the input size.",
    )
    trains: Literal["both", "all", "image", "text", "prompts", "context", "added"] = Field(
        default="both",
        description="What is trained: both towers, those and the token embeddings (all), one tower, prompt vectors in"
        " both towers' layers, the context alone (CoOp), or what a published system adds to CLIP (docs/models.md).",
    )
    loss: Literal["classes", "matching"] = Field(
        default="classes",
        description="classes: cross-entropy over the texts of all classes; matching: a micro-batch's videos against its"
        " texts, one drawn a video, both ways.",
    )
    motion_loss: float = Field(
        default=0.0, ge=0, description="Weight beside matching of a loss that rewards frames that differ."
    )
    fusion_lr: float = Field(
        default=1.0,
        gt=0,
        description="Learning rate, as a multiple, of a head over frames and of what else a system calls new.",
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
    drop_path: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Stochastic depth within the towers, in training alone: the rate of the last layer, from 0 in the"
        " first. It falls on positions of tokens.",
    )
    attention_dropout: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Dropout of the towers' attention weights, in training alone; layers share it as drop_path.",
    )
    prompt_dropout: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Dropout of prompts between frames, in training alone, of systems that have it.",
    )
    head_dropout: float = Field(
        default=0.0, ge=0, lt=1, description="Dropout within a head over frames that has any, in training alone."
    )
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
        description="Where the cosine has its peak: at the warm-up's end; or at step 0, as timm's scheduler, whose"
        " first two steps have rate 0 and whose rate drops from the peak at the warm-up's end.",
    )
    betas: tuple[float, float] = Field(default=(0.9, 0.98), description="AdamW's betas.")
    weight_decay: float = Field(default=0.001, ge=0, description="AdamW's weight decay.")
    decays: Literal["matrices", "all"] = Field(
        default="matrices", description="What decays: weights and embeddings alone, as CLIP; or all."
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
