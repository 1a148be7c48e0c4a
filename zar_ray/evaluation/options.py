"""Options of the evaluation job: what a decision is made of, and how the cluster does the work."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, field_validator

from zar_ray.adaptation.options import AdaptationOptions
from zar_ray.evaluation.orders import Order
from zar_ray.options.base import Bytes, operational, option


class EvaluationOptions(AdaptationOptions):
    """What the job reads of a run's options."""

    corruption: tuple[str, ...] = option(
        (),
        "Corrupt the decoded frames, NAME:SEVERITY of 1 to 5 (docs/shift.md): gaussian_noise, rain, h265, ...; several"
        " multiply with the other axes in one pass, `clean` as one of them.",
    )
    corruption_seed: int = option(0, "Seed of what corruptions draw, whatever the seed of the view plans.", ge=0)
    continual: bool = option(
        False,
        "Show methods that learn from one video to the next all videos under one corruption after another, each going"
        " on from what the one before has taught.",
    )
    order: Order = option(
        "shuffled",
        "How videos come to methods that learn from one to the next: shuffled by the seed, class after class"
        " (by_class), or as in the manifest; other methods do not depend on it.",
    )
    resume: bool = operational(False, "Insist on continuing a run that is there already.")
    retry_failed: bool = operational(False, "When continuing, do failed videos again.")
    overwrite: bool = operational(False, "Delete a run of the same name first.")
    features: str | None = operational(
        None,
        "Folder or URI to keep image features in; runs whose images are all there neither decode nor encode.",
    )
    features_max_bytes: Bytes | None = operational(
        None, "Bytes, or 500GB, that the folder of --features may have: what was not used for longest is deleted."
    )
    num_workers: tuple[Annotated[int, Field(ge=1)], ...] = operational(
        (),
        "Model replicas: so many, or MIN and MAX of a cluster whose nodes come and go; by default what is there (one a"
        " GPU; without GPUs one a CPU with 6 GB of memory, else one a two), growing to what comes.",
        max_length=2,
    )
    decode_workers: int | None = operational(None, "Decoding processes at once; by default what the CPUs allow.", ge=1)
    gpus_per_worker: float | None = operational(None, "GPUs a replica; by default 1 if there are any.", ge=0)
    wait_for_gpus: float | None = operational(
        None,
        "Seconds to wait for GPUs or CPUs that the cluster has not; by default 600 where Ray's autoscaler may bring"
        " them, else none.",
        ge=0,
    )
    batch_size: int = operational(8, "Videos a worker is handed, and adapts to, at a time.", ge=1)
    address: str | None = operational(None, "Ray cluster to use; by default the one at hand, else a local one.")

    @field_validator("num_workers", mode="before")
    @classmethod
    def _as_range(cls, given: object) -> object:
        return (given,) if isinstance(given, int) else given

    @field_validator("num_workers")
    @classmethod
    def _in_order(cls, given: tuple[int, ...]) -> tuple[int, ...]:
        if len(given) == 2 and given[0] > given[1]:
            raise ValueError(f"MIN {given[0]} is above MAX {given[1]}")
        return given
