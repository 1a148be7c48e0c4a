"""The system ``xclip``: messages between frames, texts that follow the video, and a training step's gradients.

The made-up weights are written to a file as the official code saves them and imported as a user would. Tolerances are
those of the reference vectors: features 1e-5, logits 1e-4, the loss 1e-5, gradient norms a share of 1e-3; scores are
probabilities that follow the logits, 1e-4; token ids must be equal.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch.nn.functional import cross_entropy

from zar_ray.errors import ConfigError
from zar_ray.models.parts import following_head
from zar_ray.parity.checks import Evidence, Measured, norms
from zar_ray.parity.fixture import FileFormat, Fixture
from zar_ray.parity.published import imported, tensors

FEATURES, LOGITS, LOSS, GRADIENT_SHARE, EXACT = 1e-5, 1e-4, 1e-5, 1e-3, 0.0

_PREFIX, _SHOWN_PATCHES = "module.", 2


class XclipFacts(FileFormat):
    """What only this system's description has."""

    grad_norm_names: tuple[str, ...]


def check_xclip(fixture: Fixture, videos: Path | None) -> Evidence:
    """Imports a fixture's checkpoint, scores its input and takes a training step's gradients.

    Args:
        fixture: The fixture.
        videos: Not used: this system reads no video.

    Raises:
        ZarError: The fixture lacks something, or its weights are no X-CLIP's.
    """
    facts = fixture.read(XclipFacts, fixture.file.model_dump(), "X-CLIP's entries")
    model = imported({"model": tensors(fixture.weights("model")), "max_accuracy": 0.0, "epoch": 0})
    head = following_head(model.clip)
    if head is None:
        raise ConfigError(f"{fixture.folder}: its checkpoint holds no X-CLIP")
    ids = model.tokenize(fixture.file.class_names)
    pixels, labels = torch.from_numpy(fixture.input()), torch.from_numpy(fixture.array("labels"))
    with torch.no_grad():
        frames = model.encode_images(pixels.flatten(0, 1)).unflatten(0, pixels.shape[:2])
        texts = model.encode_embedded_text(model.embed_tokens(ids), ids.argmax(dim=1))
        features = model.view_features(frames)
        video, patches = model.fuse(frames).split([head.width, features.shape[1] - head.width], dim=1)
        prompts = head.text_embeddings(texts, patches) - texts
        logits = model.logit_scale * model.followed_cosines(features, texts)
        tokens = frames[..., head.width :].unflatten(-1, (-1, len(model.clip.visual.class_embedding)))

    clip = model.clip.requires_grad_(True)
    seen = clip.visual(pixels.flatten(0, 1)).unflatten(0, pixels.shape[:2])
    read = model.encode_embedded_text(model.embed_tokens(ids), ids.argmax(dim=1))
    found = clip.logit_scale.exp() * model.followed_cosines(model.view_features(seen), read)
    loss = cross_entropy(found, labels)
    parameters = {name.removeprefix("fusion."): one for name, one in clip.named_parameters()}
    try:
        wanted = [parameters[name.removeprefix(_PREFIX)] for name in facts.grad_norm_names]
    except KeyError as error:
        raise ConfigError(f"{fixture.folder}: grad_norm_names: no parameter is called {error}") from None
    return Evidence(
        [],
        {
            "labels": Measured(labels, EXACT),
            "token_ids": Measured(ids, EXACT),
            "frame_cls_features": Measured(frames[..., : head.width], FEATURES),
            "frame_patch_tokens": Measured(tokens[:, :, :_SHOWN_PATCHES], FEATURES),
            "video_features": Measured(video, FEATURES),
            "patch_features": Measured(patches.unflatten(1, (-1, head.width)), FEATURES),
            "text_features": Measured(texts, FEATURES),
            "text_prompts": Measured(prompts, FEATURES),
            "logits": Measured(logits, LOGITS),
            "similarity": Measured(logits.softmax(dim=-1), LOGITS),
            "loss": Measured(loss, LOSS),
            "grad_norms": Measured(norms(torch.autograd.grad(loss, wanted)), GRADIENT_SHARE, shares=True),
        },
    )
