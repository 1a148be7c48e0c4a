"""The published systems: what this code makes of a checkpoint in each one's format, and of a fixture's input.

Which samples and texts make up a training step is the fixture's to say; they are inputs, not results. Of a training
step the losses and the norms of some parameters' gradients are compared, under the parameters' published names.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch.nn.functional import cross_entropy, normalize

from zar_ray.data.class_texts import load_templates
from zar_ray.errors import ConfigError
from zar_ray.models.clip import ClipModel
from zar_ray.models.formats import count_layers
from zar_ray.models.losses import matching_losses, motion_loss, same_class
from zar_ray.models.parts import FUSION, OWN_CONTEXT, following_head
from zar_ray.models.systems import a5 as a5_system
from zar_ray.models.systems import ezclip as ezclip_system
from zar_ray.models.systems import vitaclip as vitaclip_system
from zar_ray.models.text import PromptedClasses
from zar_ray.parity.fixture import Evidence, Fixture, imported

_TEMPLATES = "actionclip"  # ActionCLIP's 16
_A5_LABELS = (2, 6)  # of the two samples of A5's training step
_VITA_CONTEXT, _SCALE = "prompt_learner.ctx", "logit_scale"
_XCLIP_PATCHES = 2  # of each frame, that the fixture shows

_Arrays = dict[str, torch.Tensor]


def vificlip(fixture: Fixture) -> Evidence:
    """ViFi-CLIP: its file lacks the token embedding, which is the base's; in names an underscore is a token."""
    derived = fixture.fact(dict[str, tuple[int, ...]], "checkpoint", "derived_keys_in_model", default={})
    content = {"model": fixture.weights("model", derived), "max_accuracy": 0.0, "epoch": 0}
    model, left_out = imported(content, fixture.weights("base_clip"))
    names, start = fixture.class_names, fixture.fact(str, "config", "trainer", "CTX_INIT")
    ids, bare = model.tokenize([f"{start} {name}." for name in names]), model.tokenize(names)
    rounded = model.encode_embedded_text(model.embed_tokens(ids).half().float(), ids)
    arrays = _evaluated(fixture, model, ids, _encoded(model, ids))
    video = arrays["video_features"]
    arrays |= {
        "token_ids_zs_eval": bare,
        "logits_zs_eval": _scores(model.logit_scale, video, _encoded(model, bare)),
        "logits_fp16_rounded_tokens": _scores(model.logit_scale, video, rounded),
    }
    return Evidence(arrays, {"left_out": (tuple(sorted(derived)), left_out)})


def actionclip(fixture: Fixture) -> Evidence:
    """ActionCLIP, with each of its heads: scores by 16 templates, and a batch's videos matched with its texts."""
    names, evidence = fixture.class_names, Evidence()
    labels, templates = fixture.array("list_id"), fixture.array("text_id")
    for head in fixture.fact(dict[str, Any], "checkpoint", "fusion_model_state_dict"):
        content = {
            "epoch": 0,
            "model_state_dict": fixture.weights("model_state_dict"),
            "fusion_model_state_dict": fixture.weights(f"fusion/{head}"),
            "optimizer_state_dict": {},
        }
        model, _ = imported(content)
        ids = _template_tokens(model, names)
        arrays = _evaluated(fixture, model, ids, normalize(_encoded(model, ids), dim=-1))
        logits = arrays["logits"].unflatten(1, (-1, len(names)))
        video = model.fuse(_frames(fixture, model, trained=True))
        found = _scores(model.clip.logit_scale.exp(), video, _encoded(model, ids[templates * len(names) + labels]))
        of_videos, of_texts = matching_losses(found, labels)
        losses = [of_videos, of_texts, (of_videos + of_texts) / 2]
        # the fusion head's parameters alone were saved under DataParallel
        parameters = _parameters(model, lambda name: name.replace(f"{FUSION}.", "module.", 1))
        arrays |= {
            "list_id": labels,
            "text_id": templates,
            "ground_truth": same_class(labels),
            "logits": logits,
            "similarity": logits.softmax(dim=-1).mean(dim=1),
        }
        evidence.add(arrays | _training_step(fixture, found, losses, parameters, head), head)
    return evidence


def ezclip(fixture: Fixture) -> Evidence:
    """EZ-CLIP: a view's frames together, adapters in both towers, descriptions as texts, and the motion loss."""
    content = {"epoch": 0, "model_state_dict": fixture.weights("model_state_dict"), "optimizer_state_dict": {}}
    model, _ = imported(content)
    names, labels = fixture.class_names, fixture.array("list_id")
    ids = model.tokenize(fixture.fact(tuple[str, ...], "descriptions"))
    of_templates = _template_tokens(model, [name.replace("_", " ") for name in names])
    arrays = _evaluated(fixture, model, ids, normalize(_encoded(model, ids), dim=-1))
    by_templates = _scores(model.logit_scale, arrays["video_features"], _encoded(model, of_templates))
    frames = _frames(fixture, model, trained=True)
    found = _scores(model.clip.logit_scale.exp(), model.fuse(frames), _encoded(model, ids[labels]))
    (of_videos, of_texts), motion = matching_losses(found, labels), motion_loss(frames)
    losses = [of_videos, of_texts, motion, (of_videos + of_texts) / 2 + motion]
    parameters = _parameters(model, lambda name: name if ezclip_system.is_trained(name) else None)
    (of_prompts,) = _gradients(fixture, losses[-1], parameters, [f"visual.transformer.{ezclip_system.PROMPTS}"])
    arrays |= {
        "list_id": labels,
        "token_ids_16_templates": of_templates,
        "similarity_16_templates": by_templates.unflatten(1, (-1, len(names))).softmax(dim=-1).mean(dim=1),
        "grad_T_prompt_embeddings": of_prompts,
        **_training_step(fixture, found, losses, parameters),
    }
    return Evidence(arrays, {"trainable": (fixture.fact(set[str], "trainable"), set(parameters))})


def a5(fixture: Fixture) -> Evidence:
    """A5, in each combination of layers over frames and vectors around class names; no tensor tells these or heads."""
    evidence, frames = Evidence(), fixture.input("feature_input")
    for name in fixture.fact(dict[str, Any], "config", "combos"):
        state, around = fixture.weights(name), ("config", "combos", name)
        words = [f"{side}={fixture.fact(int, *around, side)}" for side in ("prefix", "postfix")]
        heads = fixture.fact(int, "config", "tfm_heads", default=0)
        if heads and count_layers(state, f"{a5_system.PUBLISHED_LAYERS}resblocks."):
            words.append(f"heads={heads}")
        model, left_out = imported({"state_dict": state, "optimizer": {}, "iteration": 0}, settings=words)
        ids = model.tokenize(fixture.class_names)
        bare = torch.zeros_like(ids)  # with the tokens that are the text's own, one after another
        for row, whole in zip(bare, ids, strict=True):
            row[: (whole >= 0).sum()] = whole[whole >= 0]
        texts = _encoded(model, ids)
        of_pixels, of_features = _evaluated(fixture, model, ids, texts), model.fuse(frames)
        model.clip.requires_grad_(True)
        found = _scores(model.logit_scale, model.fuse(frames), _encoded(model, ids))
        loss = cross_entropy(found, torch.tensor(_A5_LABELS))
        parameters = _parameters(model, _a5_name)
        arrays = {
            "token_ids": bare,
            "prompt_actiontoken": ids.clamp(min=0),
            "text_features": texts,
            **{f"pixels/{what}": value for what, value in of_pixels.items()},
            "features/video_features": of_features,
            "features/logits": _scores(model.logit_scale, of_features, texts),
        }
        evidence.add(arrays | _training_step(fixture, found, [loss], parameters, name), name)
        saved = {one for one in state if not one.startswith(a5_system.PUBLISHED_CLIP)} - set(left_out)
        evidence.facts[f"{name}/trained"] = saved, set(parameters)
    return evidence


def vitaclip(fixture: Fixture) -> Evidence:
    """Vita-CLIP: prompts between frames, with a context for all classes, and with one for each, as it is trained.

    A context for each class belongs to the training's classes: it is left out of what is imported, and taken from the
    fixture here.
    """
    vectors, labels = fixture.fact(int, "config", "text_num_prompts"), fixture.array("labels")
    position = fixture.fact(str, "config", "text_prompt_pos", default="end")
    prompts = [f"{' '.join(['X'] * vectors)} {name.replace('_', ' ')}." for name in fixture.class_names]
    evidence = Evidence({"labels": labels})
    for case in ("generic", "csc"):
        derived = fixture.fact(dict[str, tuple[int, ...]], "checkpoint", case, "derived_keys")
        state = fixture.weights(case, derived)
        model, left_out = imported({"model": state, "next_step": 0})
        parameters = _parameters(model, _vita_name)
        if case == "generic":
            evidence.facts["trainable"] = fixture.fact(set[str], "trainable"), set(parameters)
        else:
            evidence.facts["left_out"] = True, any(_VITA_CONTEXT in name for name in left_out)
            parameters[_VITA_CONTEXT] = state[f"module.{_VITA_CONTEXT}"]
        ids, context = model.tokenize(prompts), parameters[_VITA_CONTEXT]
        in_context = partial(_in_context, model, fixture.class_names, ids, position)
        arrays = _evaluated(fixture, model, ids, in_context(context))
        video = model.fuse(_frames(fixture, model, trained=True))
        found = _scores(model.clip.logit_scale.exp(), video, in_context(context.requires_grad_()))
        loss = cross_entropy(found, labels)
        evidence.add(arrays | _training_step(fixture, found, [loss], parameters), case)
    return evidence


def xclip(fixture: Fixture) -> Evidence:
    """X-CLIP: messages between frames, and texts that follow the video."""
    model, _ = imported({"model": fixture.weights("model"), "max_accuracy": 0.0, "epoch": 0})
    head = following_head(model.clip)
    if head is None:
        raise ConfigError(f"{fixture.folder}: its checkpoint holds no X-CLIP")
    ids, labels = model.tokenize(fixture.class_names), fixture.array("labels")
    frames, texts = _frames(fixture, model), _encoded(model, ids)
    video, patches = model.fuse(frames).tensor_split([head.width], dim=1)
    logits = model.logit_scale * model.followed_cosines(model.view_features(frames), texts)
    tokens = frames[..., head.width :].unflatten(-1, (-1, len(model.clip.visual.class_embedding)))
    arrays = {
        "labels": labels,
        "token_ids": ids,
        "frame_cls_features": frames[..., : head.width],
        "frame_patch_tokens": tokens[:, :, :_XCLIP_PATCHES],
        "video_features": video,
        "patch_features": patches.unflatten(1, (-1, head.width)),
        "text_features": texts,
        "text_prompts": head.text_embeddings(texts, patches) - texts,
        "logits": logits,
        "similarity": logits.softmax(dim=-1),
    }
    features = model.view_features(_frames(fixture, model, trained=True))
    found = model.clip.logit_scale.exp() * model.followed_cosines(features, _encoded(model, ids))
    parameters = _parameters(model, lambda name: f"module.{name.removeprefix(f'{FUSION}.')}")
    return Evidence(arrays | _training_step(fixture, found, [cross_entropy(found, labels)], parameters))


def tcclip(fixture: Fixture) -> Evidence:
    """TC-CLIP: context tokens of a view, and prompts that follow it; its configuration is read as the file's own."""
    trainer = fixture.fact(dict[str, Any], "config", "trainer")
    if trainer.get("tome_d", 0) or trainer.get("prompt_generation_layer_level", 0) != fixture.fact(
        int, "config", "text_layers"
    ):
        raise ConfigError(f"{fixture.folder}: tome_d is 0 here, and prompts are made in front of the last text layer")
    derived = fixture.fact(tuple[str, ...], "checkpoint", "derived_keys_in_model", default=())
    state = fixture.weights("model", dict.fromkeys(derived, (1,)))
    content = {"model": state, "max_accuracy": 0.0, "epoch": 0, "config": {"trainer": trainer}}
    model, left_out = imported(content, fixture.weights("base_clip"))
    head, ids = following_head(model.clip), PromptedClasses(model, fixture.class_names).token_ids
    if head is None:
        raise ConfigError(f"{fixture.folder}: its checkpoint holds no TC-CLIP")
    groups: list[torch.Tensor] = []
    first = model.clip.visual.transformer.resblocks[0]
    hook = first.summary.register_forward_hook(lambda _module, _inputs, output: groups.append(output[1]))
    frames = _frames(fixture, model)
    hook.remove()
    texts, (video, context) = _encoded(model, ids), model.fuse(frames).tensor_split([head.width], dim=1)
    length = fixture.fact(int, "config", "trainer", "context_length")
    arrays = {
        "token_ids": ids[:, :length],
        "source_layer0_groups": groups[0],
        "frame_embeddings": frames[..., : head.width],
        "video_features": video,
        "context_tokens": context.unflatten(1, (-1, head.width)),
        "text_features": head.text_embeddings(texts, context),
        "logits": model.logit_scale * model.followed_cosines(model.view_features(frames), texts),
    }
    return Evidence(arrays, {"left_out": (tuple(sorted(derived)), left_out)})


def _frames(fixture: Fixture, model: ClipModel, trained: bool = False) -> torch.Tensor:
    """(B, T, D): embeddings of the input's frames; trained, differentiable from here on, as every parameter is."""
    pixels = fixture.input()
    encode = model.clip.requires_grad_(True).visual if trained else model.encode_images
    return encode(pixels.flatten(0, 1)).unflatten(0, pixels.shape[:2])


def _template_tokens(model: ClipModel, names: Sequence[str]) -> torch.Tensor:
    """int64 (16·K, 77): ActionCLIP's templates with K names, a template's together."""
    return model.tokenize([one.replace("{}", name) for one in load_templates(_TEMPLATES) for name in names])


def _encoded(model: ClipModel, ids: torch.Tensor) -> torch.Tensor:
    """(N, D): texts' embeddings, not normalised."""
    return model.encode_embedded_text(model.embed_tokens(ids), ids)


def _in_context(
    model: ClipModel, names: Sequence[str], ids: torch.Tensor, position: str, context: torch.Tensor
) -> torch.Tensor:
    """(K, D): texts with a context, (L, W) or one a class, in the place of their first words, around the names."""
    embeddings, own = model.embed_tokens(ids), context.expand(len(ids), -1, -1)
    before = {"end": own.shape[1], "middle": own.shape[1] // 2, "front": 0}[position]
    rows = []
    for name, row, vectors in zip(names, embeddings, own, strict=True):
        rest = row[1 + len(vectors) :]
        length = len(model.tokenizer.encode(name.replace("_", " ")))
        rows.append(torch.cat([row[:1], vectors[:before], rest[:length], vectors[before:], rest[length:]]))
    return model.encode_embedded_text(torch.stack(rows), ids)


def _scores(scale: float | torch.Tensor, videos: torch.Tensor, texts: torch.Tensor) -> torch.Tensor:
    """(B, N): logits, with the scale of an evaluation (``model.logit_scale``) or the learned one."""
    return scale * normalize(videos, dim=-1) @ normalize(texts, dim=-1).T


def _evaluated(fixture: Fixture, model: ClipModel, ids: torch.Tensor, texts: torch.Tensor) -> _Arrays:
    """What an evaluation makes of the input, and of texts (N, D)."""
    frames = _frames(fixture, model)
    video = model.fuse(frames)
    logits = _scores(model.logit_scale, video, texts)
    return {
        "token_ids": ids,
        "frame_embeddings": frames,
        "video_features": video,
        "text_features": texts,
        "logits": logits,
        "similarity": logits.softmax(dim=-1),
    }


def _training_step(
    fixture: Fixture, logits: torch.Tensor, losses: Sequence[torch.Tensor], parameters: _Arrays, *case: str
) -> _Arrays:
    """What a training step gives that minimises the last of some losses; `parameters` by their published names."""
    names = fixture.fact(tuple[str, ...], "grad_norm_names", *case)
    norms = torch.stack([one.norm() for one in _gradients(fixture, losses[-1], parameters, names)])
    every = torch.stack(list(losses))
    return {"train_logits_per_image": logits, "loss": losses[-1], "losses": every, "grad_norms": norms}


def _gradients(
    fixture: Fixture, loss: torch.Tensor, parameters: _Arrays, names: Sequence[str]
) -> tuple[torch.Tensor, ...]:
    for name in names:
        if name not in parameters:
            raise ConfigError(f"{fixture.folder}: grad_norm_names: '{name}' is not trained")
    return torch.autograd.grad(loss, [parameters[name] for name in names], retain_graph=True)


def _parameters(model: ClipModel, published: Callable[[str], str | None]) -> _Arrays:
    """What is trained, by published name; `published` gives it by ours, None where a parameter is not trained."""
    named = {published(name): parameter for name, parameter in model.clip.named_parameters()}
    return {name: parameter for name, parameter in named.items() if name is not None}


def _a5_name(name: str) -> str | None:
    """The published name of a parameter that A5 adds."""
    published = a5_system.PUBLISHED_TEXTS if name == a5_system.LEARNED_TEXTS else name.removeprefix(f"{FUSION}.")
    return published if a5_system.is_trained(name) else None


def _vita_name(name: str) -> str | None:
    """The published name of a parameter that Vita-CLIP trains."""
    published = _VITA_CONTEXT if name == OWN_CONTEXT else name.replace("transformer.resblocks.", "blocks.")
    return published if vitaclip_system.is_trained(name) or name == _SCALE else None
