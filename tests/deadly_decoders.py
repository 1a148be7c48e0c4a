"""Stand-ins for the decoder that do what a file's name says; they run in the decoding process.

A file that really crashes a decoder would depend on the decoder's version; the process's death is real.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from zar_ray.errors import VideoError
from zar_ray.video import decoding, reading, sandbox_process
from zar_ray.video.sandbox import PROGRAM

# Programs of a `DecoderProcess`.
DEADLY = f"import deadly_decoders as stand; stand.in_for_the_decoders(stand.decode); {PROGRAM}"
SLOW = f"import deadly_decoders as stand; stand.in_for_the_decoders(stand.decode_slowly); {PROGRAM}"


def in_for_the_decoders(decode_video):
    """Puts stand-ins into the process."""
    sandbox_process.decode_video = decode_video
    sandbox_process.open_video = open_video


def decode(path, plan_of, *args, **kwargs):
    act(path, Path(path).name.partition(".")[0])
    return decoding.decode_video(path, plan_of, *args, **kwargs)


def decode_slowly(path, plan_of, *args, **kwargs):
    """Hangs on whatever it gets, also on a file without a name."""
    Path(os.environ["ZAR_TEST_MARK"]).touch()
    time.sleep(600)


@contextmanager
def open_video(path, decoder, deadline, limits):
    """Acts before frame 10; a file called `noted` has every frame noted that is read."""
    with reading.open_video(path, decoder, deadline, limits) as reader:
        yield _Reader(path, reader)


class _Reader:
    def __init__(self, path, reader) -> None:
        self._path, self._reader, self.info = Path(path), reader, reader.info

    @property
    def warning(self):
        return self._reader.warning

    def read(self, indices, deadline):
        for index, frame in zip(indices, self._reader.read(indices, deadline), strict=True):
            kind = self._path.name.partition(".")[0]
            if kind == "noted":
                with self._path.with_suffix(".txt").open("a") as file:
                    file.write(f"{index}\n")
            elif index >= 10:
                act(str(self._path), kind)
            yield frame


def act(path: str, kind: str) -> None:
    if kind == "hang":
        time.sleep(600)
    if kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "segv":
        os.kill(os.getpid(), signal.SIGSEGV)
    if kind == "abort":
        os.abort()
    if kind == "exit":
        os._exit(3)
    if kind == "bomb":
        hoard = []
        while True:
            hoard.append(np.ones(2**24, np.uint8))
    if kind == "bug":
        raise KeyError(f"nobody foresaw\n this of {path}")
    if kind == "tells":
        raise VideoError(f"cannot open {path}\nor {os.path.realpath(path)}")
    if kind == "limits":
        kinds = (resource.RLIMIT_CORE, resource.RLIMIT_NOFILE)
        raise VideoError(
            json.dumps(
                {
                    "limits": [resource.getrlimit(kind) for kind in kinds],
                    "memory": resource.getrlimit(resource.RLIMIT_AS)[0],
                    "stderr": str(Path("/proc/self/fd/2").readlink()),
                    "interrupt": signal.getsignal(signal.SIGINT) == signal.SIG_IGN,
                    "files": len(list(Path("/proc/self/fd").iterdir())),
                }
            )
        )
