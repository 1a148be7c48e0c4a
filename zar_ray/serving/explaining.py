"""What in a video's frames speaks for the answer, before and after tuning: the maps that the page draws."""

from __future__ import annotations

import base64
import io

import numpy as np
import torch
from PIL import Image

from zar_ray.adaptation.adapter import CasePrediction, VideoPrediction
from zar_ray.adaptation.fusion import video_features
from zar_ray.adaptation.methods import get_method
from zar_ray.adaptation.options import AdaptationOptions
from zar_ray.adaptation.zar import tuned_features
from zar_ray.errors import ModelError
from zar_ray.models.attention import class_relevance, unfit_attention
from zar_ray.models.text import PromptedClasses
from zar_ray.serving.backend import Job
from zar_ray.serving.schema import ExplainedFrame, Explanation
from zar_ray.video.pixels import cut_crops, normalise

FRAMES_SHOWN = 8
_JPEG_QUALITY = 80
_DIGITS = 4


def explain(
    job: Job, outcome: VideoPrediction, case: CasePrediction, classes: PromptedClasses, options: AdaptationOptions
) -> Explanation:
    """Gradient-weighted attention of the answer's label over frames of the classified view.

    Args:
        job: The video and the question.
        outcome: What the model made of it.
        case: The answer.
        classes: The candidate labels under the model.
        options: What the answer was found under.

    Raises:
        ModelError: The model's image tower has no such maps, or several views are classified.
    """
    model, plan = classes.model, outcome.plan
    reason = unfit_attention(model.clip.visual)
    if reason is not None:
        raise ModelError(reason)
    if plan.evaluation.ndim != 1:
        raise ModelError("the service averages over several classified views")
    if case.method != "zar" and get_method(case.method).updates != "nothing":
        raise ModelError(f"maps are drawn of what zar's tuning changes, and the answer is {case.method}'s")
    before = after = classes.initial_features
    if case.method == "zar":
        update = options.own("zar")
        after = tuned_features(
            video_features(outcome.embeddings, plan, model.view_features, update.fusion), classes, update
        )
    view = plan.images[plan.evaluation]
    # The model may have needed fewer frames than were decoded.
    rows = job.decoded.plan.frames.searchsorted(plan.frames[view[:, 0]])
    frames = torch.from_numpy(np.ascontiguousarray(job.decoded.frames[rows])).to(model.device)
    crops = cut_crops(frames, np.stack([np.arange(len(view)), view[:, 1]], axis=1), plan.boxes)
    answer = int(case.decision.logits_after.argmax())
    texts = torch.stack([before[answer], after[answer]])
    relevance = class_relevance(model, normalise(crops, model.preprocessing), texts).cpu().numpy()
    relevance = relevance / max(float(relevance.max()), np.finfo(np.float32).tiny)
    pictures, numbers = crops.cpu().numpy(), job.decoded.first_frame + plan.frames[view[:, 0]]
    # A short video's view repeats frames.
    _, distinct = np.unique(numbers, return_index=True)
    shown = distinct[np.unique(np.linspace(0, len(distinct) - 1, FRAMES_SHOWN).round().astype(int))]
    fps = job.decoded.info.fps
    return Explanation(
        label=job.query.labels[answer],
        frames=tuple(
            ExplainedFrame(
                frame=int(numbers[row]),
                seconds=float(numbers[row] / fps) if fps else None,
                image=_data_url(pictures[row]),
                before=_rows(relevance[0, row]),
                after=_rows(relevance[1, row]),
            )
            for row in shown.tolist()
        ),
    )


def _rows(patches: np.ndarray) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(round(float(value), _DIGITS) for value in row) for row in patches)


def _data_url(picture: np.ndarray) -> str:
    """uint8 (R, R, 3) as a JPEG that needs no request of its own."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=_JPEG_QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
