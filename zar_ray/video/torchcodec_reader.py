"""Reading with torchcodec, an optional package: on the CPU, or by a GPU's video decoder (NVDEC).

It loads PyTorch, so this module is imported where torchcodec is asked for, and nowhere else.
"""

from __future__ import annotations

import json
import re
from collections.abc import Generator
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from zar_ray.errors import ConfigError, VideoError
from zar_ray.video.inspection import Inspection
from zar_ray.video.options import Decoder
from zar_ray.video.reading import VideoReader
from zar_ray.video.streams import Deadline

# Containers with times and an index. torchcodec takes no whitelist, so it gets nothing that might be a playlist.
_CONTAINERS = {"mov", "matroska"}


def load_torchcodec() -> Any:
    """The class of torchcodec's decoders.

    Raises:
        ConfigError: The package or FFmpeg is missing, or they do not suit each other or PyTorch.
    """
    try:
        import torchcodec  # type: ignore[import-not-found]
        from torchcodec.decoders import VideoDecoder  # type: ignore[import-not-found]
    except ModuleNotFoundError as error:
        raise ConfigError(
            "torchcodec is not installed here; install zar-ray[torchcodec], or use --decoder pyav"
        ) from error
    except (ImportError, OSError, RuntimeError) as error:
        raise ConfigError(f"torchcodec does not load here ({_first_line(error)}); use --decoder pyav") from error
    # the package itself may be imported without
    if getattr(torchcodec, "ffmpeg_major_version", None) is None:
        raise ConfigError(
            "torchcodec finds no FFmpeg that it can load: the shared libraries of FFmpeg 4 to 9 (libavutil and others) "
            "must be installed, or named by LD_LIBRARY_PATH; or use --decoder pyav"
        )
    return VideoDecoder


class TorchcodecReader(VideoReader):
    """Reads with torchcodec, one frame at a time: on one thread of the CPU, or on a GPU as ``torchcodec-nvdec``.

    torchcodec does not count frames by itself, it is told those that were counted and their times; and that only the
    first is a key frame, so that it decodes from there on and never seeks. A frame that its decoder does not give is
    an error: it would give the next one instead, which is found out by its time. It does not say which frames are
    damaged.

    Raises:
        VideoError: torchcodec cannot open the file or would not read it exactly (stage ``open``).
        ConfigError: torchcodec, FFmpeg's libraries or the GPU is missing.
    """

    def __init__(self, inspection: Inspection, decoder: Decoder) -> None:
        super().__init__(inspection)
        self.info = replace(inspection.info, decoder=decoder)
        self._on_gpu = decoder == "torchcodec-nvdec"
        self._decoder = None
        refusal = None
        if inspection.container not in _CONTAINERS:
            refusal = f"is given mp4, mov, mkv and webm files, not {inspection.container}"
        elif inspection.shown.repeats:
            refusal = "leaves out frames that repeat the one before"
        elif not inspection.shown.times:
            refusal = "goes by the times of frames, which the file does not tell"
        if refusal is not None:
            raise VideoError(f"torchcodec {refusal}; PyAV reads it", "open")
        if not self._on_gpu:
            self._decoder = self._open()

    def close(self) -> None:
        """Lets go of torchcodec's decoder too."""
        super().close()
        self._decoder = None

    def _open(self) -> Any:
        make, times = load_torchcodec(), self._inspection.shown.times
        steps = np.diff(times, append=times[-1] + 1).tolist()
        keys = [1] + [0] * len(times)
        frames = [
            {"pts": time, "duration": step, "key_frame": key}
            for time, step, key in zip(times, steps, keys, strict=False)
        ]
        if self._on_gpu and not torch.cuda.is_available():
            raise ConfigError("torchcodec-nvdec wants a GPU that PyTorch can use; use --decoder torchcodec")
        try:
            decoder = make(
                self._inspection.path,
                dimension_order="NHWC",
                num_ffmpeg_threads=1,
                device="cuda" if self._on_gpu else "cpu",
                custom_frame_mappings=json.dumps({"frames": frames}),
            )
        except (RuntimeError, ValueError) as error:
            raise VideoError(f"torchcodec cannot open it: {_first_line(error)}", "open") from error
        if self._on_gpu and decoder.cpu_fallback:
            raise VideoError("NVDEC does not decode such files; --decoder torchcodec reads them on the CPU", "open")
        return decoder

    def _read(self, wanted: list[int], deadline: Deadline) -> Generator[np.ndarray]:
        shown = self._inspection.shown
        self._decoder = self._decoder or self._open()
        try:
            for index in wanted:
                deadline.check()
                try:
                    frame = self._decoder.get_frame_at(index)
                except (RuntimeError, IndexError) as error:
                    raise VideoError(f"torchcodec gives up at frame {index}: {_first_line(error)}") from error
                if round(frame.pts_seconds / shown.tick) != shown.times[index]:
                    raise VideoError(f"torchcodec gives no frame {index} of {shown.frames}; PyAV says what is wrong")
                yield self._picture(frame.data.cpu().numpy())
        finally:
            self._decoder = None

    def _picture(self, pixels: np.ndarray) -> np.ndarray:
        if pixels.shape != (self.info.height, self.info.width, 3):
            raise VideoError(
                f"torchcodec gives frames of {pixels.shape[1]}×{pixels.shape[0]} for a video of "
                f"{self.info.width}×{self.info.height}"
            )
        return pixels


def _first_line(error: BaseException) -> str:
    """Without "function, file:line, " before it."""
    lines = re.sub(r"^\w+, \S+:\d+, ", "", str(error).strip()).splitlines()
    return lines[0].strip() if lines else type(error).__name__
