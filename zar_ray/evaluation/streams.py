"""Stream methods in a job: one worker, an order of the videos, and a state that is saved after every video.

The state counts the videos that went into it. What is continued begins with the first that did not, even where a kill
came between its rows and the state: the same video gives the same rows again.

Streams under several seeds, or orders, have a pass over the videos each, one after the other. Positions count on from
pass to pass, so that the one state says how far all of them are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from zar_ray.adaptation.methods import get_method
from zar_ray.adaptation.options import AdaptationOptions
from zar_ray.errors import ConfigError, RunError, reason_of
from zar_ray.evaluation.options import EvaluationOptions
from zar_ray.evaluation.orders import StreamOrder
from zar_ray.storage import Storage

STATE = "stream.safetensors"
"""File in a run's folder that holds the state."""

_POSITION = "position"


def stream_methods(runs: Iterable[AdaptationOptions]) -> tuple[str, ...]:
    """The methods of some settings that are streams under any of them, each once."""
    names = (name for options in runs for name in options.method if get_method(name).is_stream(options.own(name)))
    return tuple(dict.fromkeys(names))


def order_for(options: AdaptationOptions, method: str) -> StreamOrder | None:
    """The order in which a method wants the videos under some options; None where it is no stream under them."""
    if not get_method(method).is_stream(options.own(method)):
        return None
    return StreamOrder.of(getattr(options, "order", "manifest"), options.seed)


def orders_for(runs: Iterable[AdaptationOptions]) -> tuple[StreamOrder, ...]:
    """The orders that the streams of some settings want, each once, with its turn."""
    wanted = (order_for(options, name) for options in runs for name in options.method)
    distinct = dict.fromkeys(order for order in wanted if order is not None)
    return tuple(replace(order, turn=turn) for turn, order in enumerate(distinct))


def check_methods(options: EvaluationOptions, settings: Sequence[AdaptationOptions]) -> None:
    """Refuses operational options that a method does not go with under any of the run's settings.

    Raises:
        ConfigError: Such an option is given.
    """
    streams = stream_methods(settings)
    if options.continual and not streams:
        raise ConfigError("--continual: none of the methods learns from one video to the next; leave it out")
    if streams:
        of = f"{' and '.join(streams)} depend{'s' if len(streams) == 1 else ''} on the videos before"
        if max(options.num_workers, default=1) > 1:
            asked = " ".join(map(str, options.num_workers))
            raise ConfigError(f"--num-workers {asked}: {of}, on one worker; leave it out, or the method")
        if options.retry_failed:
            raise ConfigError(f"--retry-failed: {of}, so a failed video cannot be done later; --overwrite the run")
    asked = [(name, one.own(name)) for one in settings for name in one.method]
    from_pixels = list(dict.fromkeys(name for name, own in asked if get_method(name).works_from_pixels(own)))
    if options.features is not None and from_pixels:
        raise ConfigError(
            f"--features: {' and '.join(from_pixels)} work{'s' if len(from_pixels) == 1 else ''} from pixels, which"
            " stored features cannot stand for; leave --features out, or run the other methods by themselves"
        )


@dataclass(frozen=True, eq=False)
class StreamState:
    """What the streams of a run remember.

    Attributes:
        position: Videos that they have seen or that had no decision, in their order, of all passes together.
        tensors: What `VideoAdapter.stream_state` gave after them, of the pass that they end in; empty at the beginning.
    """

    position: int
    tensors: Mapping[str, torch.Tensor]

    def write(self, storage: Storage) -> None:
        """Saves it in a run's folder, whole or not at all."""
        storage.write(STATE, save({**self.tensors, _POSITION: torch.tensor(self.position)}))

    @classmethod
    def read(cls, storage: Storage) -> StreamState:
        """Reads what `write` wrote.

        Raises:
            RunError: It is not there or damaged: the run cannot be continued.
        """
        place = storage.path(STATE)
        if not storage.exists(STATE):
            raise RunError(f"{place}: not there, and a stream method cannot go on without it; --overwrite the run")
        try:
            tensors = load(storage.read(STATE))
            return cls(int(tensors.pop(_POSITION)), tensors)
        except (SafetensorError, KeyError, ValueError) as error:
            raise RunError(f"{place}: damaged ({reason_of(error)}); --overwrite the run") from error
