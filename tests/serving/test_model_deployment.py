"""A model replica's own part, beside a classifier that a test controls: who is answered with whom, and when."""

import asyncio
import logging
import threading
from types import SimpleNamespace

import pytest
import torch

from zar_ray.errors import ConfigError, DeviceLostError
from zar_ray.serving import model_deployment
from zar_ray.serving.methods import ServiceOptions
from zar_ray.serving.model_deployment import ModelDeployment
from zar_ray.serving.problems import RequestError


class Classifier:
    """Answers once its gate is open."""

    device = "cpu"

    def __init__(self, config):
        self.model = SimpleNamespace(device=SimpleNamespace(type=self.device))
        self.calls, self.gate, self.outcome = [], threading.Event(), None

    def warm_up(self):
        pass

    def answer(self, jobs):
        self.calls.append([job.name for job in jobs])
        assert self.gate.wait(30)
        return [self.outcome or job.name for job in jobs]


def job(name):
    return SimpleNamespace(
        name=name,
        query=SimpleNamespace(request_id=f"id-{name}"),
        decoded=SimpleNamespace(span=object() if name.startswith("w") else None),
    )


@pytest.fixture
def replica(monkeypatch):
    monkeypatch.setattr(model_deployment, "Classifier", Classifier)
    monkeypatch.setattr(model_deployment.torch, "set_num_threads", lambda count: None)

    def make(**options):
        config = ServiceOptions.model_validate({"batch": 4, **options})
        return ModelDeployment.func_or_class(config)

    return make


def answer(replica, *names):
    """Asks one after the other while the replica is busy with the first; returns the calls that it came to."""

    async def all_of_them():
        asked = []
        for name in names:
            asked.append(asyncio.ensure_future(replica.classify(job(name))))
            await asyncio.sleep(0.01)
        replica._classifier.gate.set()
        return await asyncio.gather(*asked)

    assert asyncio.run(all_of_them()) == list(names)
    return replica._classifier.calls


def test_whole_videos_wait_for_one_window_at_most(replica):
    assert answer(replica(), "w0", "a", "b", "w1", "w2", "c") == [["w0"], ["a", "b", "c"], ["w1"], ["w2"]]
    calls = answer(replica(batch=2), "w0", "a", "b", "w1", "c", "w2", "d")
    assert calls == [["w0"], ["a", "b"], ["w1"], ["c", "d"], ["w2"]]


def test_on_a_gpu_half_a_batch_of_windows_goes_together(replica, monkeypatch):
    monkeypatch.setattr(Classifier, "device", "cuda")
    assert answer(replica(), "a", "w0", "w1", "w2", "b") == [["a"], ["w0", "w1"], ["b"], ["w2"]]


def test_requests_that_wait_while_the_replica_is_busy_are_answered_together(replica):
    assert answer(replica(), "a", "b", "c", "d", "e", "f") == [["a"], ["b", "c", "d", "e"], ["f"]]


def test_a_free_replica_waits_for_company_where_it_is_told_to(replica):
    assert answer(replica(batch_wait=0.1), "a", "b", "c") == [["a", "b", "c"]]
    assert answer(replica(batch_wait=0.1, batch=2), "a", "b", "c")[0] == ["a", "b"]


def test_who_has_left_costs_nothing_and_keeps_nobody_waiting(replica):
    one = replica()

    async def leave():
        first = asyncio.ensure_future(one.classify(job("a")))
        await asyncio.sleep(0.01)
        gone, last = (asyncio.ensure_future(one.classify(job(name))) for name in ("gone", "b"))
        await asyncio.sleep(0.01)
        gone.cancel()
        one._classifier.gate.set()
        return await asyncio.gather(first, last)

    assert asyncio.run(leave()) == ["a", "b"]
    assert one._classifier.calls == [["a"], ["b"]]


def test_what_nobody_foresaw_is_answered_too(replica, caplog):
    one = replica()
    one._classifier.answer = lambda jobs: 1 / 0
    assert asyncio.run(one.classify(job("a"))).code == "internal-error"
    assert "questions id-a failed" in caplog.text
    del one._classifier.answer
    one._classifier.gate.set()
    assert asyncio.run(one.classify(job("a"))) == "a"


def test_answers_are_logged_by_their_request_and_loudly_where_they_failed_or_are_late(replica, caplog):
    caplog.set_level(logging.INFO, "zar_ray.serving")
    one = replica(limits={"adapt_seconds": 1.0})
    threading.Timer(0.6, one._classifier.gate.set).start()
    assert asyncio.run(one.classify(job("a"))) == "a"
    assert "request id-a answer: late after 0." in caplog.text
    asyncio.run(one.classify(job("b")))
    assert "request id-b answer: ok after 0." in caplog.text
    one._classifier.outcome = RequestError("invalid-parameters", "a secret")
    asyncio.run(one.classify(job("c")))
    assert "request id-c answer: invalid-parameters" in caplog.text
    levels = {record.args[0]: record.levelname for record in caplog.records if record.name == "zar_ray.serving"}
    assert levels == {"id-a": "WARNING", "id-b": "INFO", "id-c": "WARNING"}
    assert "secret" not in caplog.text


def test_a_replica_whose_device_is_lost_answers_so_and_asks_to_be_replaced(replica, caplog):
    one, lost = replica(), DeviceLostError("cuda:0: answers nothing any more (CUDA error: an illegal ...)")
    one._classifier.model.device = torch.device("cpu")

    def answer(jobs):
        raise lost

    async def ask():
        await one.check_health()
        waiting = one._classifier.answer
        one._classifier.answer = answer
        held = await asyncio.gather(*(one.classify(job(name)) for name in ("a", "w0", "b")))
        with pytest.raises(DeviceLostError):
            await one.check_health()
        one._classifier.answer = waiting
        return [*held, await one.classify(job("later"))]

    answers = asyncio.run(ask())
    assert {(one.code, one.status, one.retry_after) for one in answers} == {("replica-lost", 503, 5)}
    assert one._classifier.calls == []
    assert "this replica is to be replaced: cuda:0: answers nothing" in caplog.text


def test_a_device_that_is_lost_while_nothing_is_asked_is_noticed(replica, monkeypatch):
    one, alive = replica(), [True, False, True]
    one._classifier.model.device = torch.device("cuda", 0)
    monkeypatch.setattr(model_deployment, "answers", lambda device: alive.pop(0))
    asyncio.run(one.check_health())
    for _ in range(3):
        with pytest.raises(DeviceLostError, match="cuda:0: answers nothing any more"):
            asyncio.run(one.check_health())
    assert alive == [True], "a lost device is not asked again"


@pytest.mark.parametrize(
    ("reserved", "asked", "told"),
    [(1, "auto", "cuda"), (0, "auto", "cpu"), (1, "cuda", "cuda"), (1, "cpu", "cpu"), (0, "cpu", "cpu")],
)
def test_a_replica_runs_on_what_ray_has_reserved_for_it(replica, monkeypatch, reserved, asked, told):
    """Ray hides no GPU from a replica that has reserved none: all would take the first one."""
    seen = []
    monkeypatch.setattr(model_deployment, "reserved_gpus", lambda: reserved)
    monkeypatch.setattr(model_deployment, "Classifier", lambda config: seen.append(config.device) or Classifier(config))
    replica(device=asked)
    assert seen == [told]


@pytest.mark.parametrize(("share", "kept"), [(1.0, 0.2), (0.25, 0.05)])
def test_replicas_that_share_a_gpu_share_what_texts_keep(replica, monkeypatch, share, kept):
    seen = []
    monkeypatch.setattr(model_deployment, "share_of_gpu", lambda: share)
    monkeypatch.setattr(
        model_deployment, "Classifier", lambda config: seen.append(config.text_memory) or Classifier(config)
    )
    replica(text_memory=0.2)
    assert seen == [pytest.approx(kept)]


def test_a_replica_without_a_gpu_that_is_to_use_one_says_so(replica, monkeypatch):
    monkeypatch.setattr(model_deployment, "reserved_gpus", lambda: 0)
    with pytest.raises(ConfigError, match=r"^device cuda: the model has num_gpus: 0; give it a GPU, or device: cpu$"):
        replica(device="cuda")
