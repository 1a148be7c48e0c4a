"""OnZeta, ECALP and DynaPrompt on videos: what they remember, that it can be saved, and what they leave alone."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load, save
from torch.nn.functional import normalize

from zar_ray.adaptation.base import Shared, VideoFeatures, with_plain_view
from zar_ray.adaptation.dynaprompt import DynapromptConfig, choose
from zar_ray.adaptation.ecalp import EcalpConfig, GrowingGraph
from zar_ray.adaptation.methods import get_method
from zar_ray.adaptation.onzeta import OnlineLearner, OnzetaConfig
from zar_ray.adaptation.zar import ZarConfig, adapt_zar_batch
from zar_ray.errors import ConfigError, VideoError
from zar_ray.models.text import PromptedClasses

SETTINGS = {
    "onzeta": {"videos": 12},
    "ecalp": {"video_neighbours": 3, "class_neighbours": 2},
    "dynaprompt": {"prompts": 3, "confidence": 0.4},
}


def videos(seed, count, views=6, width=12):
    generator = torch.Generator().manual_seed(seed)
    drawn = normalize(torch.randn(count, views + 1, width, generator=generator), dim=-1)
    return [VideoFeatures(one[1:], one[0]) for one in drawn]


def opened(name, classes, **options):
    method = get_method(name)
    assert method.open_stream is not None
    return method.open_stream(classes, method.options(**(SETTINGS[name] | options)), Shared())


@pytest.fixture(scope="module")
def lone_class(tiny_model):
    return PromptedClasses(tiny_model, ["run"])


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("seen", [0, 1, 4, 9])
def test_it_goes_on_from_its_saved_state_to_the_same_bits(classes, name, seen):
    stream, given = opened(name, classes), videos(2, 12)
    for video in given[:seen]:
        stream.decide(video)
    state = load(save({key: value.contiguous() for key, value in stream.state().items()}))
    expected = [stream.decide(video).logits_after for video in given[seen:]]
    other = opened(name, classes)
    other.restore(state)
    for video, logits in zip(given[seen:], expected, strict=True):
        assert torch.equal(other.decide(video).logits_after, logits)
    assert all(torch.equal(value, stream.state()[key]) for key, value in other.state().items())


@pytest.mark.parametrize("name", SETTINGS)
def test_a_video_depends_on_those_before_it_alone(classes, name):
    method, given = get_method(name), videos(1, 12)
    options = method.options(**SETTINGS[name])
    assert method.is_stream(options)
    whole, part = (method.adapt(some, classes, options, Shared()) for some in (given, given[:8]))
    assert all(torch.equal(a.logits_after, b.logits_after) for a, b in zip(whole, part, strict=False))
    turned = method.adapt(given[::-1], classes, options, Shared())[::-1]
    assert any(not torch.equal(a.logits_after, b.logits_after) for a, b in zip(whole, turned, strict=True))
    for video, decision in zip(given, whole, strict=True):
        assert torch.equal(decision.logits_before, classes.initial_logits(video.evaluation))
        assert torch.isfinite(decision.logits_after).all()


@pytest.mark.parametrize("name", SETTINGS)
def test_a_video_that_fails_leaves_no_trace(classes, name):
    stream, (good, *more) = opened(name, classes), videos(3, 5)
    for video in more:
        stream.decide(video)
    before = {key: value.clone() for key, value in stream.state().items()}
    broken = VideoFeatures(good.views * torch.nan, good.evaluation * torch.nan)
    with pytest.raises(VideoError, match="not finite"):
        stream.decide(broken)
    assert all(torch.equal(value, before[key]) for key, value in stream.state().items())


def test_a_video_that_there_is_no_room_for_teaches_nothing(classes, monkeypatch):
    stream, (good, next_one) = opened("onzeta", classes), videos(3, 2)
    stream.decide(good)
    before = stream.state()

    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("zar_ray.adaptation.onzeta.normalize", full)
    with pytest.raises(torch.OutOfMemoryError):
        stream.decide(next_one)
    assert all(value is before[part] for part, value in stream.state().items())


@pytest.mark.parametrize("name", SETTINGS)
def test_one_class_and_the_plain_view_alone_are_enough(classes, lone_class, name):
    for those in (classes, lone_class):
        stream = opened(name, those)
        for video in videos(4, 5, views=0):
            assert torch.isfinite(stream.decide(video).logits_after).all()


@pytest.mark.parametrize("name", SETTINGS)
def test_several_evaluation_views_have_one_decision(classes, name):
    stream = opened(name, classes)
    for seed in range(3):
        rows = torch.stack([video.evaluation for video in videos(seed, 3)])
        decision = stream.decide(VideoFeatures(videos(seed, 1)[0].views, rows))
        assert decision.logits_after.shape == decision.logits_before.shape == (len(classes),)


@pytest.mark.parametrize("name", ["onzeta", "ecalp"])
def test_any_texts_do_but_such_as_follow_the_video(tiny_model, name):
    texts = [("a red circle", "circle, red"), ("a dot", "one dot"), ("bars", "a bar")]
    stream = opened(name, PromptedClasses(tiny_model, ["red circle", "dot", "bar"], texts=texts))
    assert stream.decide(videos(5, 1)[0]).logits_after.shape == (3,)
    method = get_method(name)
    assert method.unfit(tiny_model, method.options()) is None
    assert "follow the video" in method.unfit(SimpleNamespace(texts_follow_videos=True), method.options())


def test_a_stream_of_unknown_length_is_refused_in_one_line(classes):
    with pytest.raises(ConfigError, match=r"--onzeta\.videos: .* give their number") as caught:
        opened("onzeta", classes, videos=0)
    assert "\n" not in str(caught.value)
    given, method = videos(6, 4), get_method("onzeta")
    told = [
        method.adapt(given, classes, OnzetaConfig(videos=count), Shared(videos=known))
        for count, known in ((0, None), (4, None), (0, 4), (4, 9))
    ]
    for one in told[1:]:
        assert all(torch.equal(a.logits_after, b.logits_after) for a, b in zip(told[0], one, strict=True))
    more = method.adapt(given, classes, OnzetaConfig(), Shared(videos=9))
    assert not torch.equal(more[-1].logits_after, told[0][-1].logits_after)


def test_balance_brings_a_rare_class_up_and_more_videos_than_said_trust_no_more():
    texts = normalize(torch.randn(3, 12, generator=torch.Generator().manual_seed(7)), dim=1)
    learner = OnlineLearner(texts, OnzetaConfig(videos=5))
    weights = [learner.learn(texts[0]).rates[2] for _ in range(8)]
    assert weights == sorted(weights)
    assert weights[4:] == [0.8] * 4
    assert learner.duals[0] == 0
    assert (learner.duals[1:] > 0).all()
    assert learner.proxies.norm(dim=1) == pytest.approx(1)
    indifferent = OnlineLearner(texts, OnzetaConfig(videos=5, balance=0))
    indifferent.learn(texts[0])
    assert (indifferent.duals == 0).all()


def test_a_graph_with_room_for_all_is_the_rule_written_out():
    generator = torch.Generator().manual_seed(8)
    texts = normalize(torch.randn(4, 9, generator=generator) + 1, dim=1)
    features = normalize(torch.randn(7, 9, generator=generator) + 1, dim=1)
    graph = GrowingGraph(texts, EcalpConfig(class_neighbours=2, video_neighbours=30, sharpness=4, alpha=0.7))
    weights, labels = texts.var(dim=0), torch.zeros(0, 4)
    for number in range(1, 8):
        found = graph.place(features[number - 1])
        rows = torch.cat([features[:number], features[number - 1 : number]])
        weighted = normalize(rows * weights, dim=1)
        edges = torch.zeros(4 + number + 1, 4 + number + 1)
        for one in range(number + 1):
            for other in range(number + 1):
                older, newer = sorted((min(one, number - 1), min(other, number - 1)))
                edges[4 + one, 4 + other] = (weighted[older] @ rows[newer]) ** 4
            cosines = texts @ rows[one]
            for near in cosines.topk(2).indices:
                edges[4 + one, near] = cosines[near] ** 4
        edges = edges + edges.T
        assert torch.allclose(found.adjacency.to_dense(), edges, atol=1e-5)
        roots = 1 / (edges.sum(dim=1).sqrt() + 1e-6)
        start = torch.cat([labels, torch.zeros(2, 4)])
        spread = start
        for _ in range(3):
            mixed = roots[:, None] * edges * roots @ torch.cat([torch.eye(4), spread])
            spread = 0.7 * mixed[4:] + 0.3 * start
        assert torch.allclose(found.scores, spread[-1], atol=1e-5)
        labels = torch.zeros(number, 4)
        for one in range(number):
            labels[one, spread[one].argmax()] = spread[one].max() / 5


def test_scores_of_the_graph_are_shares_of_the_decision(classes):
    stream, given = opened("ecalp", classes), videos(9, 4)
    graph = GrowingGraph(classes.initial_features, EcalpConfig(**SETTINGS["ecalp"]))
    for video in given:
        scores = graph.place(video.evaluation).scores
        assert torch.allclose(stream.decide(video).logits_after.softmax(dim=0), scores / scores.sum(), atol=1e-6)


def test_one_prompt_is_tuned_for_each_video_alone(classes):
    stream = opened("dynaprompt", classes, prompts=1)
    update = ZarConfig(confidence=0.4, weight_decay=0)  # an offset of zero does not decay, and a context does
    for video in videos(10, 4):
        found = stream.decide(video)
        views = with_plain_view(video)
        (alone,) = adapt_zar_batch([VideoFeatures(views, video.evaluation)], classes, update)
        assert torch.equal(found.selected, alone.selected)
        assert torch.allclose(found.logits_after, alone.logits_after, atol=1e-3)


def test_unused_prompts_are_taken_in_their_order_and_the_oldest_is_set_back(classes):
    stream, untouched = opened("dynaprompt", classes), classes.initial_features.clone()
    for number, video in enumerate(videos(11, 3)):
        stream.decide(video)
        state = stream.state()
        assert state["order"].sort().values.tolist() == [0, 1, 2]
        assert state["uses"][number] > 0
    assert torch.equal(classes.initial_features, untouched)
    oldest, before = int(state["order"][0]), state["uses"].clone()
    stream.decide(videos(12, 1)[0])
    after = stream.state()
    assert int(after["uses"][oldest]) in (1, 2)
    assert (after["uses"] >= before)[[one for one in range(3) if one != oldest]].all()
    assert after["offsets"].flatten(1).any(dim=1).all()


def test_who_joins_the_oldest_prompt_is_read_off_the_entropy_ranking_twice():
    # Entropies fall from prompt 3 to prompt 0, and differences from prompt 0 to prompt 3.
    logits = torch.zeros(4, 2, 3)
    logits[:, :, 0] = torch.tensor([4.0, 3.0, 2.0, 1.0])[:, None]
    logits[:, 1, 0] -= torch.tensor([0.4, 0.3, 0.2, 0.1])
    found = choose(logits, oldest=2)
    assert found.by_entropy.tolist() == [3, 2, 1, 0]
    assert found.by_difference.tolist() == [0, 1, 2, 3]
    # The oldest has place 1: prompts 1 and 0 are surer, prompt 0 differs most, and place 0 is prompt 3's.
    assert found.chosen.tolist() == [3, 2]
    assert choose(logits, oldest=3).chosen.tolist() == [3]
    assert choose(logits, oldest=0).chosen.tolist() == [3, 0]
    assert choose(torch.ones(4, 2, 3), oldest=0).by_entropy.tolist() == [0, 1, 2, 3]


def test_a_prompt_that_is_chosen_twice_counts_twice(classes):
    stream = opened("dynaprompt", classes, prompts=2)
    chosen = [stream.decide(video) and stream.state()["uses"].sum() for video in videos(13, 12)]
    assert all(count >= 1 for count in chosen)
    logits = torch.zeros(2, 2, 3)
    logits[:, :, 0] = torch.tensor([1.0, 2.0])[:, None]
    logits[:, 1, 0] -= torch.tensor([0.0, 0.5])
    assert choose(logits, oldest=1).chosen.tolist() == [1, 1]


def test_texts_without_a_context_are_refused(tiny_model):
    classes = PromptedClasses(tiny_model, ["a", "b"], texts=[("a red dot", "dot"), ("bars", "a bar")])
    with pytest.raises(ConfigError):
        opened("dynaprompt", classes)
    assert DynapromptConfig().steps == 1
