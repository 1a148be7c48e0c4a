"""Methods that move the image tower's weights: what MEMO and TENT share.

The weights that move are copies, which stand in the tower's place for single passes. The model itself is never written
to: what a method did to one video cannot reach another one or another method, whatever happens in between.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.func import functional_call

from zar_ray.adaptation.base import (
    Decision,
    Method,
    OpenStream,
    VideoFeatures,
    averaged,
    entropy,
    evaluation_logits,
    on_and_on,
    one_by_one,
    require_finite,
)
from zar_ray.adaptation.fusion import video_features
from zar_ray.errors import NoRoomError, VideoError
from zar_ray.models.clip import PRODUCTS, ClipModel
from zar_ray.models.fitting import MORE_MEMORY
from zar_ray.models.precision import exact_float32
from zar_ray.models.text import PromptedClasses
from zar_ray.options.base import Options
from zar_ray.video.pixels import crop_and_normalise

# Far enough from the largest float16, 65504, for the sums over all tokens of a pass.
_LARGEST = 0.25

Cut = Callable[[np.ndarray], torch.Tensor]
"""Some of a video's images, rows int64 (n,), cut out of its frames: float32 (n, 3, R, R), normalised."""


def unfit_for_steps(model: ClipModel) -> str | None:
    """Why a model's image tower cannot be moved by single images' losses; None where it can."""
    if not model.frame_independent:
        return "it encodes the frames of a view together, and here images are encoded one by one"
    if model.dtype != torch.float32:
        return f"its weights are {str(model.dtype).removeprefix('torch.')}, in which small steps are lost"
    return None


class MovingTower:
    """A model's image tower with copies of some of its weights in their place.

    Args:
        model: The model; it stays as it is.
        names: The parameters that may move, as the image tower names them.
        images_a_pass: Images that are encoded together.

    Attributes:
        weights: The copies, float32, by name, which require gradients.
    """

    def __init__(self, model: ClipModel, names: Sequence[str], images_a_pass: int) -> None:
        self.model = model
        self.images_a_pass = images_a_pass
        own = dict(model.clip.visual.named_parameters())
        self.weights = {name: own[name].detach().clone().requires_grad_() for name in names}

    def reset(self) -> None:
        """Makes the copies the model's own weights again."""
        own = dict(self.model.clip.visual.named_parameters())
        with torch.no_grad():
            for name, weight in self.weights.items():
                weight.copy_(own[name])

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """Embeds normalised images (n, 3, R, R), in one pass, in the model's precision.

        Returns:
            float32 (n, D), not normalised, differentiable with respect to `weights`.
        """
        dtype = PRODUCTS[self.model.precision]
        with exact_float32(), torch.autocast(self.model.device.type, dtype=dtype, enabled=dtype is not None):
            return functional_call(self.model.clip.visual, self.weights, (pixels,)).float()

    def embed(self, cut: Cut, rows: np.ndarray, like: torch.Tensor) -> torch.Tensor:
        """Embeds the images of some rows, int64 (n,), without gradients.

        Returns:
            float32 (I, D), as `like`, one row an image of the video, not normalised; zeros for the others.

        Raises:
            NoRoomError: There is not enough memory for one image.
        """
        embeddings = torch.zeros_like(like)
        with torch.no_grad():
            passes = self.model.image_passes
            for part, found in passes.each(
                rows.tolist(), self.images_a_pass, lambda part: self.encode(cut(np.array(part)))
            ):
                if found is None:
                    raise _no_room()
                embeddings[list(part)] = found
        return embeddings

    def _scale(self, gradient: torch.Tensor) -> torch.Tensor | None:
        """A power of two that brings a gradient's largest number near `_LARGEST`; None where products need none.

        On their way back through float16 gradients of single images, about 1e-5, would lose most of their digits
        (Micikevicius et al., "Mixed Precision Training", ICLR 2018, section 3.2).
        """
        if self.model.precision != "fp16":
            return None
        # No number is asked for, so that nothing waits for a GPU.
        largest = gradient.abs().amax().clamp(min=torch.finfo(gradient.dtype).tiny)
        return (_LARGEST / largest).log2().floor().exp2()

    def set_gradients(self, cut: Cut, rows: np.ndarray, of_embeddings: torch.Tensor) -> None:
        """Adds up the weights' gradients, a pass at a time, so that no graph is larger than a pass.

        A loss depends on the images of `rows`, and its gradient with respect to all embeddings (I, D) is given.

        Raises:
            NoRoomError: There is not enough memory for one image.
        """

        def add_up(most: int) -> bool:
            # Where memory ran out, the pass had added to some gradients, and not to others.
            for weight in self.weights.values():
                weight.grad = None
            scale = self._scale(of_embeddings)
            for first in range(0, len(rows), most):
                part = rows[first : first + most]
                with torch.enable_grad(), exact_float32():
                    given = of_embeddings[torch.from_numpy(part).to(of_embeddings.device)]
                    self.encode(cut(part)).backward(given if scale is None else given * scale)
            for weight in self.weights.values() if scale is not None else ():
                if weight.grad is not None:
                    weight.grad /= scale
            return True

        if not self.model.moving_passes.once(min(self.images_a_pass, len(rows)), add_up):
            raise _no_room()


def _no_room() -> NoRoomError:
    return NoRoomError(f"out of memory moving the weights by one image at a time; {MORE_MEMORY}", stage="adapt")


class MovingStream:
    """A tower's weights and their optimiser over a stream: both go on from video to video, or the optimiser alone.

    Args:
        classes: The candidate classes.
        tower: The weights.
        optimiser: Of ``tower.weights``.
        loss_of: The loss of the views' logits (V, K).
        steps: Steps of the optimiser a video.
        keeps_weights: Whether a video begins with the weights that the one before has left; else with the model's.
    """

    def __init__(
        self,
        classes: PromptedClasses,
        tower: MovingTower,
        optimiser: torch.optim.Optimizer,
        loss_of: Callable[[torch.Tensor], torch.Tensor],
        steps: int,
        *,
        keeps_weights: bool,
    ) -> None:
        self._classes = classes
        self._tower = tower
        self._optimiser = optimiser
        self._loss_of = loss_of
        self._steps = steps
        self._keeps_weights = keeps_weights
        self._moved = False

    def decide(self, video: VideoFeatures) -> Decision:
        """Moves the weights by a video's views, and classifies it under them.

        Raises:
            VideoError: There are no pixels or no views, logits are not finite, or there is not enough memory for one
                image (stage ``adapt``); weights and optimiser are as they were before.
        """
        before = {name: value.clone() for name, value in self.state().items()}
        if not self._keeps_weights:
            self._tower.reset()
        try:
            decision = self._decided(video, self._moved and self._keeps_weights)
        except Exception:
            self._put_back(before)
            raise
        self._moved = True
        return decision

    def _decided(self, video: VideoFeatures, moved: bool) -> Decision:
        """Moves the weights in place; where they have `moved` already, the model's embeddings are not theirs.

        The decision before is the model's own; the classes' texts stay as they are.
        """
        pixels = video.require_pixels()
        if not len(video.views):
            raise VideoError("the method needs views, and the plan has none", stage="adapt")
        plan, fuse = pixels.plan, self._tower.model.view_features
        frames, rows = pixels.frames_on(self._tower.model.device), np.unique(plan.views)

        def cut(rows: np.ndarray) -> torch.Tensor:
            return crop_and_normalise(frames, plan.images[rows], plan.boxes, self._tower.model.preprocessing)

        before = evaluation_logits(video, self._classes)
        entropies = entropy(self._classes.initial_logits(video.views))
        require_finite(entropies, "of the views")

        encoded, losses = 0, []
        for _ in range(self._steps):
            embeddings = self._tower.embed(cut, rows, pixels.embeddings) if moved else pixels.embeddings
            encoded += len(rows) * (2 if moved else 1)
            with torch.enable_grad(), exact_float32():
                leaf = embeddings.detach().clone().requires_grad_()
                loss = self._loss_of(self._classes.initial_logits(video_features(leaf, plan, fuse).views))
                require_finite(loss, "during adaptation")
                (of_embeddings,) = torch.autograd.grad(loss, leaf)
            self._tower.set_gradients(cut, rows, of_embeddings)
            self._optimiser.step()
            losses.append(loss.detach())
            moved = True
        shown = np.unique(plan.evaluation)
        evaluation = video_features(self._tower.embed(cut, shown, pixels.embeddings), plan, fuse).evaluation
        after = averaged(self._classes.initial_logits(evaluation))
        require_finite(after, "after adaptation")
        return Decision(
            logits_before=before.cpu(),
            logits_after=after.cpu(),
            view_entropies=entropies.cpu(),
            losses=torch.stack(losses).cpu(),
            encoded=encoded + len(shown),
        )

    def state(self) -> dict[str, torch.Tensor]:
        """The weights, where they are kept, the optimiser's own tensors, and whether any video has been seen."""
        weights = {f"weights/{name}": value.detach() for name, value in self._tower.weights.items()}
        held = {
            f"optimiser/{number}/{name}": value
            for number, of_weight in self._optimiser.state_dict()["state"].items()
            for name, value in of_weight.items()
            if isinstance(value, torch.Tensor)
        }
        return {**(weights if self._keeps_weights else {}), **held, "moved": torch.tensor(self._moved)}

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Goes on from a `state`."""
        self._put_back({name: value.clone() for name, value in state.items()})

    def _put_back(self, state: Mapping[str, torch.Tensor]) -> None:
        """Goes on from a `state` whose tensors nobody else has, which takes no memory."""
        with torch.no_grad():
            for name, weight in self._tower.weights.items() if self._keeps_weights else ():
                weight.copy_(state[f"weights/{name}"])
        held: dict[int, dict[str, Any]] = {}
        for name, value in state.items():
            if name.startswith("optimiser/"):
                _, number, key = name.split("/")
                held.setdefault(int(number), {})[key] = value
        groups = self._optimiser.state_dict()["param_groups"]
        self._optimiser.load_state_dict({"state": held, "param_groups": groups})
        self._moved = bool(state["moved"])


def moving_method(
    name: str, description: str, open_stream: OpenStream, options: type[Options], **declared: Any
) -> Method:
    """A method that moves weights: as a stream where its options say `stream`, else by one for each video.

    What else a `Method` has is `declared`.
    """
    alone, stream = one_by_one(lambda video, *told: open_stream(*told).decide(video)), on_and_on(open_stream)
    return Method(
        name,
        description,
        lambda videos, classes, own, shared: (stream if own.stream else alone)(videos, classes, own, shared),
        options,
        needs_views=True,
        needs_pixels=True,
        updates="weights",
        is_stream=lambda own: own.stream,
        open_stream=open_stream,
        cost="the views' images again, and back through the image tower",
        **declared,
    )
