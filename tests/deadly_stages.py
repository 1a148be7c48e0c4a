"""Stages whose processes die, hang or take notes at files of certain names, as a real run's processes do.

A file that really crashes a decoder would depend on the decoder's version; the process's death is real. Both are sent
to workers by value, as these cannot import what lies in tests/.
"""

from __future__ import annotations

import hashlib
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import torch

from zar_ray.evaluation.stages.adapt import AdaptStage
from zar_ray.evaluation.stages.decode import DecodeStage


def note(path: Path, line: str) -> None:
    """Adds a line, from any process."""
    with path.open("a") as file:
        file.write(f"{line}\n")


class DeadlyDecode(DecodeStage):
    """Decodes; the path says what happens instead."""

    def decode(self, row: dict[str, Any]) -> dict[str, Any]:
        path = row["path"]
        if "kills-decoder" in path:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().decode(row)

    def read(self, file: Any, *args: Any) -> list[dict[str, Any]]:
        path = str(file)
        if "hangs-decoder" in path:
            note(Path(path).parents[1] / "hung.txt", path)
            time.sleep(600)
        if "surprises-decoder" in path:
            raise KeyError("nobody foresaw this")
        inputs = super().read(file, *args)
        if "counted" in path and inputs:
            note(Path(path).parents[2] / "decoded.txt", path)
        return inputs


class DeadlyAdapt(AdaptStage):
    """Adapts; the videos' ids say what happens instead."""

    def __init__(self, *told: Any) -> None:
        super().__init__(*told)
        self.two_blocks = threading.Barrier(2)

    def __call__(self, block: Any) -> Any:
        if any("meets-another" in video_id for video_id in block["video_id"].to_pylist()):
            self.two_blocks.wait(timeout=30)
        return super().__call__(block)

    def predict(self, replica: Any, videos: Any) -> Any:
        ids = [video.row["video_id"] for video in videos]
        names = " ".join(ids)
        if "kills-model" in names:
            os.kill(os.getpid(), signal.SIGKILL)
        for video_id in ids:
            if "counted" in video_id:
                note(Path(self.spec.storage.path("adapted.txt")), video_id)
        if "slow-model" in names:
            time.sleep(1)
        if "breaks-storage" in names:
            # As a disk that is full, or a bucket whose keys have expired.
            parts = Path(self.spec.storage.path("parts"))
            parts.rename(parts.with_name("moved"))
            parts.write_text("no folder any more")
        for video_id in ids:
            mark = Path(self.spec.storage.path(f"{Path(video_id).name}.lost"))
            if "loses-device" in video_id and not ("once" in video_id and mark.exists()):
                mark.touch()
                replica.adapter.model.encode_images = _lost
        if "counted" in names:
            _note_images(replica.adapter.model, Path(self.spec.storage.path("encoded.txt")))
        return super().predict(replica, videos)


def _note_images(model: Any, place: Path) -> None:
    if "encode_images" in vars(model):
        return
    encode = model.encode_images

    def noted(pixels: Any) -> Any:
        note(place, "\n".join(hashlib.sha256(one.numpy().tobytes()).hexdigest() for one in pixels))
        return encode(pixels)

    model.encode_images = noted


def _lost(pixels: Any) -> Any:
    """What every call says from then on, of whatever block."""
    raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
