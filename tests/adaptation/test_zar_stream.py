"""ZAR online: each video starts from the context that the one before has left, as the rule written out says."""

from __future__ import annotations

import warnings

import pytest
import torch
from safetensors.torch import load, save
from torch.nn.functional import normalize

from zar_ray.adaptation.base import Shared, VideoFeatures, entropy
from zar_ray.adaptation.methods import get_method
from zar_ray.adaptation.zar import ZarConfig, ZarStream, adapt_zar_batch, marginal_entropy
from zar_ray.errors import VideoError
from zar_ray.models.text import PromptedClasses

NAMES = ("red circle", "green square", "blue bar")
CONFIGS = [
    ZarConfig(stream=True, lr=0.02),
    ZarConfig(stream=True, steps=3, confidence=0.4, weight_decay=0.1),
    ZarConfig(stream=True, selection="margin", loss="mean_entropy", decision="selected"),
]


@pytest.fixture(scope="module", params=["end", "middle"])
def prompted(request, tiny_model):
    """Classes whose prompts share a prefix, and such as run through the tower as wholes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return PromptedClasses(tiny_model, NAMES, position=request.param)


def videos(count, views=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    drawn = normalize(torch.randn(count, views + 1, 12, generator=generator), dim=-1)
    return [VideoFeatures(one[1:], one[0]) for one in drawn]


def by_hand(given, classes, options):
    context = classes.initial_context.clone()
    for video in given:
        context = context.detach().requires_grad_()
        optimiser = torch.optim.AdamW([context], lr=options.lr, weight_decay=options.weight_decay)
        with torch.no_grad():
            logits = classes.logits(video.views, classes.features(context))
        p = logits.softmax(dim=-1).sort(dim=-1, descending=True).values
        doubts = entropy(logits) if options.selection == "entropy" else p[:, 1] - p[:, 0]
        chosen = doubts.argsort(stable=True)[: max(1, int(len(doubts) * options.confidence))]
        for _ in range(options.steps):
            optimiser.zero_grad()
            tuned = classes.logits(video.views[chosen], classes.features(context))
            loss = marginal_entropy(tuned) if options.loss == "mean_probability" else entropy(tuned).mean()
            loss.backward()
            optimiser.step()
        with torch.no_grad():
            text = classes.features(context)
            if options.decision == "selected":
                after = classes.logits(video.views[chosen], text).softmax(dim=-1).mean(dim=0).log()
            else:
                after = classes.logits(video.evaluation, text)
        yield chosen, entropy(logits), after


@pytest.mark.parametrize("options", CONFIGS)
def test_it_is_its_rule_written_out(prompted, options):
    given = videos(4)
    stream = ZarStream(prompted, options, Shared())
    for video, (chosen, entropies, after) in zip(given, by_hand(given, prompted, options), strict=True):
        found = stream.decide(video)
        assert torch.equal(found.logits_before, prompted.initial_logits(video.evaluation))
        assert torch.allclose(found.view_entropies, entropies, atol=1e-3)
        assert torch.equal(found.selected, chosen)
        assert torch.allclose(found.logits_after, after, atol=5e-2)
    alone = [adapt_zar_batch([video], prompted, options)[0] for video in given]
    again = get_method("zar").adapt(given, prompted, options, Shared())
    assert torch.equal(again[0].logits_after, alone[0].logits_after)
    assert torch.equal(again[-1].logits_after, found.logits_after)
    assert not torch.allclose(again[-1].logits_after, alone[-1].logits_after, atol=1e-2)


@pytest.mark.parametrize("seen", [0, 1, 3])
def test_it_goes_on_from_its_state_and_a_video_that_fails_leaves_no_trace(prompted, seen):
    options, given = CONFIGS[0], videos(5, seed=1)
    stream = ZarStream(prompted, options, Shared())
    for video in given[:seen]:
        stream.decide(video)
    state = load(save({name: value.contiguous() for name, value in stream.state().items()}))
    for broken in (
        VideoFeatures(given[0].views[:0], given[0].evaluation),
        VideoFeatures(given[0].views * torch.nan, given[0].evaluation),
    ):
        with pytest.raises(VideoError):
            stream.decide(broken)
    other = ZarStream(prompted, options, Shared())
    other.restore(state)
    for video in given[seen:]:
        assert torch.equal(other.decide(video).logits_after, stream.decide(video).logits_after)
    untouched = prompted.model.embed_tokens(prompted.token_ids)
    assert any(torch.equal(row, prompted.initial_context[0]) for row in untouched[0])


def test_by_default_no_video_depends_on_another():
    method = get_method("zar")
    assert not method.is_stream(ZarConfig())
    assert method.is_stream(ZarConfig(stream=True))
