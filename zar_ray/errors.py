"""What a user can do wrong, as exceptions that say how to put it right.

Every exception here is shown as one line (`zar: <message>`) and a non-zero exit, never as a traceback.  The
message names the thing, the place and the way out.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

_SHOWN = 50  # known values that a message lists
_LONGEST_NAME = 200


class ZarError(Exception):
    """A mistake or a condition that the user can mend; the message is one line."""


class ConfigError(ZarError):
    """An option, a configuration file or a combination of options that cannot be used."""


class ManifestError(ZarError):
    """A dataset, a manifest or a list of videos that cannot be read or does not fit."""


class ModelError(ZarError):
    """Weights or a model that cannot be loaded, or that lack what a method needs."""


class RunError(ZarError):
    """A run that cannot start, cannot be resumed or did not end well."""


class StorageError(RunError):
    """A file system that kept failing until there was no more patience with it: the store's fault, and no video's.

    Whatever meets it must let it through: a job that ends with it keeps what is finished, and the same command goes
    on, while a job that went on would lose every block after it. Raised by `zar_ray.retries.retried` alone; the
    message names the URI, and no credentials.
    """


class TrackingError(ZarError):
    """A run that could not be logged to MLflow; its own files are not affected."""


class VideoError(ZarError):
    """One video that cannot be used; in a job it becomes a row with its error and stage.

    Args:
        message: What is wrong, without the path (the row carries it).
        stage: Where it happened: ``open``, ``plan``, ``decode``, ``encode``, ``adapt`` or ``worker``.
    """

    def __init__(self, message: str, stage: str = "decode") -> None:
        super().__init__(message)
        self.stage = stage

    def __reduce__(self) -> tuple[type[VideoError], tuple[str, str]]:
        return (type(self), (str(self), self.stage))


class VideoTooLargeError(VideoError):
    """A video that is, or would become, larger than it may be."""


class NoRoomError(VideoError):
    """A video for which there was not enough memory, be the passes over it as small as they can."""


class DecoderStartError(VideoError):
    """The process that should decode a video cannot be started, which is not the file's fault."""


class DecoderClosedError(VideoError):
    """The process that should decode a video has been closed."""


class DeviceLostError(RuntimeError):
    """The device answers nothing any more: no video's fault, and nothing that this process could go on with."""


def suggestion(value: str, known: Iterable[str]) -> str:
    """Returns `; did you mean "x"?` for a near miss, otherwise the known values, ready to append to a message.

    Upper and lower case make no difference to what is near.  More than 50 known values are not listed.  A
    text that is too long for a name is compared with none, which would take its time.
    """
    known = sorted(known)
    if len(value) > _LONGEST_NAME:
        return ""
    folded = {name.casefold(): name for name in known}
    near = difflib.get_close_matches(value.casefold(), folded, n=1, cutoff=0.5)
    if near:
        return f'; did you mean "{folded[near[0]]}"?'
    return f"; known: {', '.join(known)}" if 0 < len(known) <= _SHOWN else ""


def reason_of(error: BaseException) -> str:
    """What an error says, as one line that a message can hold."""
    if isinstance(error, RecursionError):
        return "it is nested too deep"
    if type(error) is MemoryError:
        return "it takes more memory than there is"
    return (" ".join(str(error).split()) or type(error).__name__)[:200]
