"""Options of how a video is turned into a decision: the batch job, the service and `zar predict` share them.

Methods bring their own, so that loading this module loads all methods, and PyTorch with them.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import Field, create_model

from zar_ray.adaptation.methods import METHODS, get_method
from zar_ray.adaptation.shared_options import PredictOptions, SharedOptions
from zar_ray.data.class_texts import ClassPrompts
from zar_ray.errors import ConfigError
from zar_ray.options.base import Options


class _OwnOptions(Options):
    """Holds groups of method options, which no subclass may take the names of for other options."""

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        for name, method in METHODS.items():
            if method.options is not None and cls.model_fields[name].annotation is not method.options:
                raise ConfigError(f'a method with options is called "{name}", as another option is; rename it')

    def own(self, method: str) -> Any:
        """A method's own options; None where it has none.

        Raises:
            ConfigError: There is no such method.
        """
        return getattr(self, method) if get_method(method).options is not None else None

    def context_steps(self, method: str) -> int:
        """Steps a video by which a method tunes a context; 0 where it tunes none."""
        if get_method(method).updates != "context":
            return 0
        own = self.own(method)
        return getattr(own, "context_steps", getattr(own, "steps", 0))


def _described(kind: type[Options]) -> Any:
    """A field of a method's options, which the first line of their docstring describes."""
    return kind, Field(default_factory=kind, description=(inspect.getdoc(kind) or "").partition("\n")[0])


_fields = {name: _described(method.options) for name, method in METHODS.items() if method.options is not None}

if TYPE_CHECKING:

    class MethodGroups(_OwnOptions):
        """The options of all methods, one field each: of the method's own class, by its name."""

        def __getattr__(self, name: str) -> Any: ...

else:
    MethodGroups = create_model("MethodGroups", __base__=_OwnOptions, __module__=__name__, **_fields)


def method_groups() -> tuple[str, ...]:
    """The names of the groups of method options: those of the methods that have any."""
    return tuple(_fields)


class AdaptationOptions(SharedOptions, MethodGroups):
    """How a video is turned into a decision: what the batch job and `zar predict` have in common."""


@dataclass(frozen=True)
class Setting:
    """What a case's prediction depends on, besides its class set, model and method: options, and prompts under them.

    Attributes:
        options: The options.
        prompts: The candidate classes' prompts, a class set each.
        videos: How many videos each class set's streams will be given at most; empty where nobody knows.
    """

    options: AdaptationOptions
    prompts: tuple[ClassPrompts, ...]
    videos: tuple[int, ...] = ()


class PredictConfig(PredictOptions, AdaptationOptions):
    """Options of `zar predict`."""
