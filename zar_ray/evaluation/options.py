"""Options of the evaluation job: what a decision is made of, and how the cluster does the work."""

from __future__ import annotations

from zar_ray.adaptation.options import AdaptationOptions
from zar_ray.options.base import Bytes, operational


class EvaluationOptions(AdaptationOptions):
    """What the job reads of a run's options."""

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
    num_workers: int | None = operational(None, "Model replicas; by default one a GPU, or one a two CPUs.", ge=1)
    decode_workers: int | None = operational(None, "Decoding processes at once; by default what the CPUs allow.", ge=1)
    gpus_per_worker: float | None = operational(None, "GPUs a replica; by default 1 if there are any.", ge=0)
    batch_size: int = operational(8, "Videos a worker is handed, and adapts to, at a time.", ge=1)
    address: str | None = operational(None, "Ray cluster to use; by default the one at hand, else a local one.")
