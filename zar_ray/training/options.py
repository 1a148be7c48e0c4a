"""Options of a training."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_serializer

from zar_ray.data.options import PromptOptions
from zar_ray.models.options import ModelOptions
from zar_ray.options.base import Betas, FolderName, Options, operational, option, without_password
from zar_ray.options.places import FilePlace
from zar_ray.video.options import DecodeOptions, Sampling

_Count = Annotated[int, Field(ge=1)]


class RandAugmentConfig(Options):
    """RandAugment (Cubuk et al., NeurIPS 2020), drawn anew for every frame."""

    operations: int = option(0, "Operations a frame, drawn from 16; 0 for no RandAugment.", ge=0)
    magnitude: int = option(9, "How far each goes through its range, of 30.", ge=0, le=30)


class AugmentConfig(Options):
    """What training does to a sample's pixels; the same for all frames of a video, but for RandAugment."""

    crop: Literal["random", "centre", "multi_scale", "random_resized"] = option(
        "random",
        "random: a square of the input size, anywhere; centre: in the middle; multi_scale: a box of two of the crop"
        " scales, in a corner or the centre, resized to the input size; random_resized: 8% to 100% of the area, 3/4 to"
        " 4/3 as wide as high, anywhere, resized too.",
    )
    crop_places: Literal[5, 13] = option(
        5, "Places of a multi_scale box: the corners and the centre, or TSN's further eight between them too."
    )
    crop_scales: tuple[Annotated[float, Field(gt=0, le=1)], ...] = option(
        (1.0, 0.875, 0.75, 0.66),
        "Sides of multi_scale boxes as shares of the short side; width and height are the same one or"
        " neighbours in the list.",
        min_length=1,
    )
    flip: float = option(0.0, "Probability of a left-right flip.", ge=0, le=1)
    colour_jitter: float = option(0.0, "Probability of a colour jitter.", ge=0, le=1)
    grey: float = option(0.0, "Probability of a video without colours.", ge=0, le=1)
    mixup: float = option(0.0, "Mixup's alpha (Zhang et al., ICLR 2018); 0 for none.", ge=0)
    cutmix: float = option(0.0, "CutMix's alpha (Yun et al., ICCV 2019); 0 for none.", ge=0)
    cutmix_share: float = option(
        0.5, "Share of micro-batches under CutMix rather than mixup, where both are on.", ge=0, le=1
    )
    label_smoothing: float = option(0.0, "Share of the target spread over all classes.", ge=0, lt=1)
    rand_augment: RandAugmentConfig = Field(
        default_factory=RandAugmentConfig, description="RandAugment, before everything else."
    )


class TrainConfig(ModelOptions, DecodeOptions, PromptOptions):
    """Options of `zar train` and jobs/pretrain.py."""

    dataset: str | None = option(None, "A manifest (.parquet), a benchmark's name, a list or a folder.")
    split: str | None = option(None, "The manifest's split to train on; all videos by default.")
    protocol: Literal["standard", "few_shot", "base_to_novel"] = option(
        "standard",
        "few_shot and base_to_novel: for each seed draw training videos of the benchmark's classes or its"
        " base classes, train on them, evaluate, and report the mean over the seeds.",
    )
    shots: tuple[Annotated[int, Field(ge=1)], ...] = option(
        (16,), "Videos a class under few_shot and base_to_novel; several are an axis.", min_length=1
    )
    architecture: str | None = option(
        None,
        "Train from scratch: a system's name or one in conf/models, or a YAML file in open_clip's form;"
        " by default training starts from --model or --checkpoint.",
    )
    initial_logit_scale: float = option(1 / 0.07, "Logit scale at the start of training from scratch.", gt=0, le=100)
    pixels: Literal["model", "imagenet"] = option(
        "model",
        "Mean and deviation of the input, filter and short side: the model's own; or ImageNet's, bilinear,"
        " 8/7 of the input size.",
    )
    trains: Literal["both", "all", "image", "text", "prompts", "context", "added"] = option(
        "both",
        "What is trained: both towers, those and the token embeddings (all), one tower, prompt vectors in"
        " both towers' layers, the context alone (CoOp), or what a published system adds to CLIP (docs/models.md).",
    )
    loss: Literal["classes", "matching"] = option(
        "classes",
        "classes: cross-entropy over the texts of all classes; matching: a micro-batch's videos against its"
        " texts, one drawn a video, both ways.",
    )
    motion_loss: float = option(0.0, "Weight beside matching of a loss that rewards frames that differ.", ge=0)
    interpolated_loss: float = option(
        0.0,
        "Weight beside classes of the same loss under weights between the training's start and its own (Open-VCLIP);"
        " it takes as many passes again.",
        ge=0,
    )
    interpolated_share: tuple[Annotated[float, Field(ge=0, le=1)], Annotated[float, Field(ge=0, le=1)]] = option(
        (0.0, 0.6), "Bounds of the start's share in these weights; drawn every step."
    )
    fusion_lr: float = option(
        1.0, "Learning rate, as a multiple, of a head over frames and of what else a system calls new.", gt=0
    )
    prompt_vectors: int = option(16, "Prompt vectors a layer and tower.", ge=1)
    prompt_depth: int = option(9, "Layers that have prompt vectors of their own.", ge=1)
    context_vectors: int | None = option(
        None, "Train a context of so many vectors, drawn at random; by default the context's words.", ge=1
    )

    frames: int = option(16, "Frames a video.", ge=1)
    sampling: Sampling = option(
        "parts",
        "How they are drawn: one from each of so many equal parts; or as a published system's code: segments"
        " (ViFi-CLIP, X-CLIP), ticks (ActionCLIP, EZ-CLIP), stride (Vita-CLIP), dense (A5); docs/training.md.",
    )
    stride: int = option(16, "Frames from one to the next, under stride.", ge=1)
    augment: AugmentConfig = Field(default_factory=AugmentConfig, description="What is done to a sample's pixels.")
    drop_path: float = option(
        0.0,
        "Stochastic depth within the towers, in training alone: the rate of the last layer, from 0 in the"
        " first. It falls on positions of tokens.",
        ge=0,
        lt=1,
    )
    attention_dropout: float = option(
        0.0, "Dropout of the towers' attention weights, in training alone; layers share it as drop_path.", ge=0, lt=1
    )
    prompt_dropout: float = option(
        0.0, "Dropout of prompts between frames, in training alone, of systems that have it.", ge=0, lt=1
    )
    head_dropout: float = option(0.0, "Dropout within a head over frames that has any, in training alone.", ge=0, lt=1)
    batch_size: int = option(256, "Videos a step, over all workers.", ge=1)
    micro_batch: int = option(
        8,
        "Videos that pass the model at once; a worker adds up the gradients of several, and mixed videos"
        " are of one. A step's result does not depend on who takes which.",
        ge=1,
    )
    epochs: float = option(10.0, "Times that every video is seen; --steps instead of it.", gt=0)
    steps: int | None = option(None, "Optimiser steps, instead of epochs.", ge=1)
    lr: float = option(8e-6, "Peak learning rate.", gt=0)
    final_lr: float = option(0.01, "Last learning rate as a share of the peak.", ge=0, le=1)
    warmup_epochs: float = option(5.0, "Epochs of linear warm-up; --warmup-steps instead.", ge=0)
    warmup_steps: int | None = option(None, "Steps of linear warm-up, instead of epochs.", ge=0)
    cosine_from: Literal["warmup", "start"] = option(
        "warmup",
        "Where the cosine has its peak: at the warm-up's end; or at step 0, as timm's scheduler, whose"
        " first two steps have rate 0 and whose rate drops from the peak at the warm-up's end.",
    )
    cosine_steps: int | None = option(
        None, "Steps in which the cosine falls, as if the training were so long; by default its own.", ge=1
    )
    betas: Betas = option((0.9, 0.98), "AdamW's betas.")
    weight_decay: float = option(0.001, "AdamW's weight decay.", ge=0)
    decays: Literal["matrices", "all"] = option(
        "matrices", "What decays: weights and embeddings alone, as CLIP; or all."
    )
    clip_grad: float | None = option(None, "Bound on the gradient's norm; none by default.", gt=0)
    average_from: float | None = option(
        None,
        "Also write the mean of the weights at the ends of all epochs after this one (SWA), beside the"
        " output as NAME.averaged.safetensors.",
        ge=0,
    )
    cache_frames: int = option(
        0,
        "Decode each video once and keep so many of its frames, resized, in memory, to draw from;"
        " 0 decodes a video whenever it is drawn. For sets that fit in memory.",
        ge=0,
    )
    seed: int = option(0, "Seed of the weights, the order of videos and the frames drawn.", ge=0)

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
    output: FilePlace | None = operational(None, "The .safetensors file to write.")
    storage: str | None = operational(None, "Folder or URI of checkpoints to go on from; by default ZAR_HOME/training.")
    name: FolderName | None = operational(
        None, "The training's folder there; by default made from the options, so that others start a new one."
    )
    overwrite: bool = operational(False, "Delete a training of the same name first.")
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = operational((), "Seeds of few_shot and base_to_novel.")
    method: tuple[str, ...] = operational(
        ("zero_shot", "zar"), "Test-time methods that few_shot and base_to_novel evaluate with.", min_length=1
    )
    num_workers: _Count | tuple[_Count, _Count] = operational(
        1,
        "Training processes, each of which takes its share of every batch; or the fewest and the most: as many as there"
        " is room for, also after a node was lost or has come.",
    )
    max_failures: int = operational(
        3, "Processes or nodes that may be lost: training goes on from its last checkpoint so often.", ge=0
    )
    gpus_per_worker: float | None = operational(None, "GPUs a process; by default 1 if there are any.", ge=0)
    decode_threads: int | None = operational(
        None,
        "Threads that decode ahead in each process, without decode workers; by default its CPUs beside a GPU, else 2.",
        ge=1,
    )
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
