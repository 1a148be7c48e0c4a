"""Label sets under one model, the last ones that were asked for, within a bound on the bytes that they hold."""

from __future__ import annotations

from collections import OrderedDict

import torch

from zar_ray.data.class_texts import ClassPrompts
from zar_ray.data.probing import usable_memory
from zar_ray.models.clip import ClipModel
from zar_ray.models.options import ClassPosition
from zar_ray.models.text import PromptedClasses

_Key = tuple[ClassPrompts, ClassPosition]


class TextCache:
    """Makes `PromptedClasses`, and keeps those that were asked for last; not for several threads at a time.

    What is held is counted when `settle` is called, after use: until then a set may hold more. A set that was asked for
    once keeps its text features, and lets go of what its gradients need, about fifty times as much; asked for again, it
    keeps both. A set that is larger than the bound is kept by nobody.

    Args:
        model: The model.
        share: Of the device's memory, or the part of it that a container may use, which is the bound.

    Attributes:
        bound: Bytes that may be held.
    """

    def __init__(self, model: ClipModel, share: float) -> None:
        self._model = model
        self.bound = int(share * device_memory(model.device))
        self._kept: OrderedDict[_Key, PromptedClasses] = OrderedDict()
        self._sizes: dict[_Key, int] = {}
        self._again: set[_Key] = set()
        self._in_use: set[_Key] = set()

    def __call__(self, prompts: ClassPrompts, position: ClassPosition = "end") -> PromptedClasses:
        """The classes under the model; see `PromptedClasses.of` for what it raises."""
        key = (prompts, position)
        if key in self._kept:
            self._again.add(key)
        else:
            self._kept[key] = PromptedClasses.of(self._model, prompts, position)
        self._kept.move_to_end(key)
        self._in_use.add(key)
        return self._kept[key]

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def held_bytes(self) -> int:
        """Bytes that all sets hold, as they were when last counted."""
        return sum(self._sizes.values())

    def clear(self) -> None:
        """Lets go of all sets."""
        for held in (self._kept, self._sizes, self._again, self._in_use):
            held.clear()

    def settle(self) -> None:
        """Counts the sets that were asked for since the last time, and lets go of what is beyond the bound."""
        for key in self._in_use:
            classes = self._kept[key]
            if key not in self._again or classes.held_bytes > self.bound:
                classes.forget_trail()
            self._sizes[key] = classes.held_bytes
            if self._sizes[key] > self.bound:
                self._let_go(key)
        self._in_use.clear()
        while self.held_bytes > self.bound:
            self._let_go(next(iter(self._kept)))

    def _let_go(self, key: _Key) -> None:
        del self._kept[key], self._sizes[key]
        self._again.discard(key)


def device_memory(device: torch.device) -> int:
    """Bytes of a GPU's memory, or of what this process may use of the machine's."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return usable_memory()
