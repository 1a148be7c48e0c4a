"""The second stage: a video's predictions, in the model pool."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import torch

from zar_ray.adaptation.adapter import VideoAdapter
from zar_ray.config import EvalConfig
from zar_ray.evaluation.results import ResultRow, to_table
from zar_ray.evaluation.run_folder import write_part
from zar_ray.evaluation.spec import (
    STATUS_SCHEMA,
    Failure,
    JobSpec,
    ModelCard,
    caught,
    failed_rows,
    plan_video,
    worker_name,
)
from zar_ray.models.loading import load_model
from zar_ray.video.reading import VideoInfo


def load_card(options: EvalConfig) -> ModelCard:
    """Loads the model once, to learn what it is before a pool of workers loads it."""
    model = load_model(options)
    return ModelCard(model.name, model.fingerprint, model.preprocessing, model.random_weights)


class AdaptStage:
    """One worker of the model pool: holds a model replica, predicts, and writes the rows.

    Args:
        spec: The run.

    Raises:
        RuntimeError: The weights on this node are not the run's.
    """

    def __init__(self, spec: JobSpec) -> None:
        torch.set_num_threads(spec.threads)
        model = load_model(spec.options)
        if model.fingerprint != spec.model.fingerprint:
            raise RuntimeError(
                f"{worker_name()}: loaded weights {model.fingerprint}, the run has {spec.model.fingerprint}; "
                "every node must see the same checkpoint"
            )
        self.spec = spec
        self.adapter = VideoAdapter(model, spec.class_names, spec.options.method, spec.options, cases=spec.cases)

    def __call__(self, block: pa.Table) -> pa.Table:
        """`DECODED_SCHEMA` to `STATUS_SCHEMA`; the result rows of the block are one part of the run by then."""
        rows = [row for index in range(block.num_rows) for row in self._predict(block.slice(index, 1))]
        write_part(self.spec.storage, to_table(rows))
        ids = dict.fromkeys(row.video_id for row in rows)
        failed = {row.video_id for row in rows if row.error is not None}
        return pa.table({"video_id": list(ids), "failed": [video in failed for video in ids]}, schema=STATUS_SCHEMA)

    def _predict(self, one: pa.Table) -> list[ResultRow]:
        # to_pylist would copy the pixels: they are read in place.
        video = one.drop_columns(["pixels"]).to_pylist()[0]
        if video["error"] is not None:
            return failed_rows(self.spec, video, Failure(video["error"], video["error_stage"]))
        spec = self.spec
        failures: list[Failure] = []
        rows: list[ResultRow] = []
        with caught("adapt", failures):
            info = VideoInfo(video["frames"], 0.0, video["width"], video["height"], 0.0, video["decoder"])
            plan = plan_video(video["video_id"], info, spec.options, spec.model.preprocessing, spec.needs_views)
            pixels = np.frombuffer(one["pixels"].chunk(0)[0].as_buffer(), np.uint8).reshape(video["shape"])
            prediction = self.adapter(pixels, plan)
            rows = [
                ResultRow.from_decision(
                    video["video_id"],
                    case.case_id,
                    case.method,
                    case.decision,
                    label_id=video["label_id"],
                    label=video["label"],
                    images_encoded=prediction.images_encoded,
                    frames=video["frames"],
                    frames_decoded=video["shape"][0],
                    bytes_shipped=pixels.nbytes,
                    seconds_decode=video["seconds_decode"],
                    seconds_encode=prediction.encode_seconds,
                    seconds_adapt=case.seconds,
                    decoder=video["decoder"],
                    worker=worker_name(),
                    warning=video["warning"],
                )
                for case in prediction.cases
            ]
        return rows if not failures else failed_rows(spec, video, failures[0])
