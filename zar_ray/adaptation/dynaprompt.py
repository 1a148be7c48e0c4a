"""DynaPrompt: several contexts that go on from video to video, of which each video tunes and uses some; a stream.

Xiao et al., "DynaPrompt: Dynamic Test-Time Prompt Tuning", ICLR 2025, section 3, as the authors' code computes it. A
prompt is an offset to the initial context. The least recently used one is always tuned; once all have been used it
starts from zero again. AdamW's own state is fresh for each video, and its weight decay acts on all prompts. View 0 is
the evaluation view, which takes part and is classified. Which prompts join the least recently used one follows the
published indexing, see `choose`.

A prompt without an offset is the untuned one, whose text features and trail `PromptedClasses` keeps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from zar_ray.adaptation.base import (
    Decision,
    Shared,
    VideoFeatures,
    averaged,
    entropy,
    evaluation_logits,
    require_finite,
    select_confident,
    stream_method,
    with_plain_view,
)
from zar_ray.adaptation.caches import unless_it_fails
from zar_ray.adaptation.zar import marginal_entropy
from zar_ray.errors import NoRoomError
from zar_ray.models.fitting import MORE_MEMORY
from zar_ray.models.precision import exact_float32
from zar_ray.models.text import PromptedClasses
from zar_ray.options.base import Options, option

_TOKENS_AT_ONCE = 16_384  # a pass of the text tower with its graph, as ZAR's
_EQUAL = 1e-5  # prompts that are closer rank by their number


class DynapromptConfig(Options):
    """A pool of contexts that go on from video to video (Xiao et al., ICLR 2025)."""

    prompts: int = option(12, "Contexts in the pool.", ge=1)
    confidence: float = option(0.1, "Share of views, lowest entropy first, that tune.", gt=0, le=1)
    lr: float = option(0.005, "Learning rate of the contexts.", gt=0)
    weight_decay: float = option(0.01, "AdamW's weight decay, of all contexts' offsets.", ge=0)

    @property
    def steps(self) -> int:
        """AdamW steps a video."""
        return 1


@dataclass(frozen=True, eq=False)
class Choice:
    """Which of P prompts a video takes.

    Attributes:
        entropies: float32 (P,), nats, the mean over the views.
        differences: float32 (P,), how much larger the plain view's largest logit is than a view's, the mean over views.
        by_entropy: int64 (P,), prompts by falling entropy.
        by_difference: int64 (P,), prompts by falling difference.
        chosen: int64 (C,), those that it takes; one that comes twice counts twice.
    """

    entropies: torch.Tensor
    differences: torch.Tensor
    by_entropy: torch.Tensor
    by_difference: torch.Tensor
    chosen: torch.Tensor


@dataclass(frozen=True, eq=False)
class PoolStep:
    """What one video did to the pool.

    Attributes:
        reset: The prompt that was set back before; None where there was none.
        choice: Which prompts it took.
        view_entropies: float32 (V,), nats, the mean over the prompts chosen.
        selected: int64 (S,), the views that tuned.
        loss: float32 (), before the step.
        gradients: float32 (P, L, W), of the loss with respect to the offsets; zero where not chosen.
    """

    reset: int | None
    choice: Choice
    view_entropies: torch.Tensor
    selected: torch.Tensor
    loss: torch.Tensor
    gradients: torch.Tensor


def choose(logits: torch.Tensor, oldest: int) -> Choice:
    """The prompts for a video with logits (P, V, K), of which the `oldest` is always one.

    With the oldest at place i of the entropy ranking, the prompts behind it there and those at the first i places of
    the difference ranking are sought; the numbers of those in both are, as published, places of the entropy ranking.
    """
    entropies, largest = entropy(logits).mean(dim=1), logits.amax(dim=2)
    differences = (largest[:, :1] - largest[:, 1:]).mean(dim=1) if logits.shape[1] > 1 else torch.zeros_like(entropies)
    by_entropy, by_difference = _ranked(entropies), _ranked(differences)
    place = by_entropy.index(oldest)
    surer = by_entropy[min(place + 1, len(by_entropy) - 1) :]
    both = sorted(set(surer) & set(by_difference[:place]))
    chosen = [*(by_entropy[one] for one in both), oldest]
    return Choice(entropies, differences, *map(torch.tensor, (by_entropy, by_difference, chosen)))


def _ranked(values: torch.Tensor) -> list[int]:
    """The places of values (P,), falling; of such as are next to equal the first comes first."""
    falling, order = values.cpu().sort(descending=True, stable=True)
    ranks = torch.cat([falling.new_zeros(1), falling[:-1] - falling[1:]]).gt(_EQUAL).cumsum(dim=0).tolist()
    return [one for _, one in sorted(zip(ranks, order.tolist(), strict=True))]


class PromptPool:
    """P prompts over a stream.

    Attributes:
        offsets: float32 (P, L, W), to the initial context.
        order: int64 (P,), from the least to the most recently used; on the CPU.
        uses: int64 (P,), how often each was used since it was set back; on the CPU.
    """

    def __init__(self, classes: PromptedClasses, options: DynapromptConfig) -> None:
        self._classes = classes
        self._options = options
        self.offsets = torch.zeros_like(classes.initial_context).repeat(options.prompts, 1, 1)
        self.order = torch.arange(options.prompts)
        self.uses = torch.zeros(options.prompts, dtype=torch.int64)

    def tune(self, views: torch.Tensor) -> PoolStep:
        """One step of the optimiser on the prompts that a video's views (V, D), the plain one first, choose.

        Raises:
            NoRoomError: The text tower runs out of memory (stage ``adapt``).
            VideoError: Some logits are not finite (stage ``adapt``).
        """
        oldest, reset = int(self.order[0]), None
        if bool((self.uses > 0).all()):
            reset = oldest
            self.offsets = self.offsets.index_fill(0, torch.tensor([oldest], device=self.offsets.device), 0.0)
            self.uses = self.uses.index_fill(0, torch.tensor([oldest]), 0)
        texts = self.features(range(len(self.order)))
        logits = self._classes.logits(views, texts)
        require_finite(logits, "of the views")
        choice = choose(logits, oldest)
        self._use(choice.chosen.tolist())
        distinct, places = choice.chosen.unique(return_inverse=True)
        with torch.enable_grad(), exact_float32():
            taken = texts[distinct.to(texts.device)].requires_grad_()
            logits = self._classes.logits(views, taken[places.to(texts.device)])
            entropies = entropy(logits.detach()).mean(dim=0)
            selected = select_confident(entropies, self._options.confidence)
            loss = marginal_entropy(logits[:, selected]).mean()
            (of_texts,) = torch.autograd.grad(loss, taken)
        gradients = self._gradients(distinct.tolist(), of_texts)
        offsets = self.offsets.clone().requires_grad_()
        offsets.grad = gradients
        torch.optim.AdamW([offsets], lr=self._options.lr, weight_decay=self._options.weight_decay).step()
        self.offsets = offsets.detach()
        return PoolStep(reset, choice, entropies, selected, loss.detach(), gradients)

    def features(self, prompts: Sequence[int]) -> torch.Tensor:
        """float32 (C, K, D): the text features of some prompts.

        Raises:
            NoRoomError: The text tower runs out of memory (stage ``adapt``).
        """
        moved = self._moved(prompts)
        found = dict.fromkeys(prompts, self._classes.initial_features)
        for part, texts in self._passes(moved, self._plain_pass):
            found.update(zip(part, texts, strict=True))
        return torch.stack([found[one] for one in prompts])

    def _use(self, chosen: Sequence[int]) -> None:
        """Counts prompts as used, the last the most recently."""
        order, uses = self.order.tolist(), self.uses.clone()
        for one in chosen:
            order.remove(one)
            order.append(one)
            uses[one] += 1
        self.order, self.uses = torch.tensor(order), uses

    def _gradients(self, prompts: Sequence[int], of_texts: torch.Tensor) -> torch.Tensor:
        """float32 (P, L, W): gradients of the offsets from those (C, K, D) of some prompts' text features."""
        gradients, moved = torch.zeros_like(self.offsets), self._moved(prompts)
        rows = {one: row for row, one in enumerate(prompts)}
        untuned = [one for one in prompts if one not in moved]
        if untuned:
            gradients[untuned] = self._classes.initial_gradients(of_texts[[rows[one] for one in untuned]])

        def back(part: Sequence[int]) -> torch.Tensor:
            with torch.enable_grad(), exact_float32():
                contexts = self._contexts(part).requires_grad_()
                texts = self._classes.features(contexts)
                return torch.autograd.grad(texts, contexts, of_texts[[rows[one] for one in part]])[0]

        for part, found in self._passes(moved, back):
            gradients[list(part)] = found
        return gradients

    def _moved(self, prompts: Sequence[int]) -> list[int]:
        """Those of some prompts that have an offset."""
        moving = self.offsets.flatten(1).any(dim=1).tolist()
        return [one for one in prompts if moving[one]]

    def _contexts(self, prompts: Sequence[int]) -> torch.Tensor:
        return self._classes.initial_context + self.offsets[list(prompts)]

    def _plain_pass(self, prompts: Sequence[int]) -> torch.Tensor:
        with torch.no_grad():
            return self._classes.features(self._contexts(prompts))

    def _passes(
        self, prompts: Sequence[int], call: Callable[[Sequence[int]], torch.Tensor]
    ) -> Iterator[tuple[Sequence[int], torch.Tensor]]:
        """What a pass of the text tower gives for prompts, as many at a time as fit."""
        classes = self._classes

        def counted(part: Sequence[int]) -> torch.Tensor:
            with classes.counted.unless_it_fails():
                return call(part)

        for part, made in classes.model.text_passes.each(prompts, _TOKENS_AT_ONCE, counted, classes.tokens):
            if made is None:
                what = f"out of memory in dynaprompt over {len(classes)} classes"
                raise NoRoomError(f"{what}; {MORE_MEMORY}, or fewer classes", "adapt")
            yield part, made


class DynapromptStream:
    """The pool, as it goes on from video to video."""

    def __init__(self, classes: PromptedClasses, options: DynapromptConfig, shared: Shared) -> None:
        self._classes = classes
        self._pool = PromptPool(classes, options)

    def decide(self, video: VideoFeatures) -> Decision:
        """Tunes some prompts on a video's views, and decides by the mean of their logits.

        Raises:
            VideoError: See `PromptPool.tune`, or some logits after it are not finite; the pool is as it was.
        """
        with unless_it_fails(self._pool):
            before = evaluation_logits(video, self._classes)
            step = self._pool.tune(with_plain_view(video))
            texts = self._pool.features(step.choice.chosen.tolist())
            logits = self._classes.logits(torch.atleast_2d(video.evaluation), texts)
            after = averaged(logits.mean(dim=0))
            require_finite(after, "after adaptation")
            return Decision(
                before.cpu(), after.cpu(), step.view_entropies.cpu(), step.selected.cpu(), step.loss[None].cpu()
            )

    def state(self) -> dict[str, torch.Tensor]:
        """The prompts, the order of their use, and the counts."""
        return {name: getattr(self._pool, name) for name in ("offsets", "order", "uses")}

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Goes on from a `state`."""
        for name, value in self.state().items():
            setattr(self._pool, name, state[name].to(value.device))


METHOD = stream_method(
    "dynaprompt",
    "a pool of contexts tuned from video to video",
    DynapromptStream,
    DynapromptConfig,
    needs_views=True,
    updates="context",
    changes="a pool of contexts",
    cost="a pass of the text tower for each that was used; a step back through it, and another pass, for"
    " each that is taken",
    source="Xiao et al., ICLR 2025",
    reference="xiao2025dynaprompt",
)
