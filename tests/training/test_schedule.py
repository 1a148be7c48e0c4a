"""A training's length, the learning rate of each of its steps, and what decays."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from zar_ray.models.systems.base import TrainingRule
from zar_ray.training.options import TrainConfig
from zar_ray.training.schedule import MULTIPLE, Schedule, learning_rate, optimiser


def rates_of(config, schedule):
    return [learning_rate(step, schedule, config) for step in range(schedule.steps)]


@given(st.integers(1, 300), st.integers(0, 100), st.floats(0, 1))
def test_the_learning_rate_warms_up_and_follows_the_cosine(steps, warmup, last):
    config = TrainConfig(lr=2.0, final_lr=last)
    rates = rates_of(config, Schedule(steps, warmup))
    assert all(0 <= rate <= 2.0 + 1e-9 for rate in rates)
    for step, rate in enumerate(rates):
        if step < warmup:
            assert rate == pytest.approx(2.0 * (step + 1) / warmup)
        else:
            share = (step - warmup) / (steps - warmup)
            assert rate == pytest.approx(2.0 * last + 2.0 * (1 - last) * (1 + math.cos(math.pi * share)) / 2)


@given(st.integers(2, 300), st.integers(0, 150), st.floats(0, 1))
def test_from_the_start_it_is_timms_scheduler_updated_after_each_step(steps, warmup, last):
    scheduler = pytest.importorskip("timm.scheduler")
    config = TrainConfig(lr=8e-6, final_lr=last, cosine_from="start")
    theirs = torch.optim.AdamW([nn.Parameter(torch.zeros(1))], lr=config.lr)
    cosine = scheduler.CosineLRScheduler(
        theirs,
        t_initial=steps,
        lr_min=config.lr * last,
        warmup_lr_init=0,
        warmup_t=warmup,
        cycle_limit=1,
        t_in_epochs=False,
    )
    for step, rate in enumerate(rates_of(config, Schedule(steps, warmup))):
        assert rate == pytest.approx(theirs.param_groups[0]["lr"], rel=1e-9, abs=1e-15)
        cosine.step_update(step)


@given(st.integers(1, 200), st.integers(0, 50), st.integers(1, 400), st.sampled_from(["warmup", "start"]))
def test_a_cosine_may_fall_over_other_steps(steps, warmup, falling, cosine_from):
    """The rates are those of a training of that length, and the last one's after its end."""
    config = TrainConfig(lr=1.0, final_lr=0.2, cosine_from=cosine_from)
    longer = max(falling, warmup + 1)
    rates = rates_of(config, Schedule(steps, warmup, longer))
    whole = rates_of(config, Schedule(longer, warmup))
    assert rates[:longer] == pytest.approx(whole[:steps])
    assert rates[longer + 1 :] == pytest.approx([0.2] * len(rates[longer + 1 :]))


def test_the_rates_of_vificlip_worked_out_by_hand():
    """Five steps of warm-up from 0 out of ten: two at nothing, fifths of the peak, then the cosine half-way down."""
    config = TrainConfig(lr=1.0, final_lr=0.01, cosine_from="start")
    rates = rates_of(config, Schedule(10, 5))
    assert rates[:6] == pytest.approx([0, 0, 0.2, 0.4, 0.6, 0.8])
    assert rates[6] == pytest.approx(0.505)
    assert rates[9] == pytest.approx(0.01 + 0.99 * (1 + math.cos(0.8 * math.pi)) / 2)


@pytest.mark.parametrize("cosine_from", ["warmup", "start"])
def test_a_warm_up_longer_than_the_training_only_warms_up(cosine_from):
    rates = rates_of(TrainConfig(lr=1.0, cosine_from=cosine_from), Schedule(5, 50))
    assert rates == sorted(rates)
    assert max(rates) <= 0.1


@given(st.integers(1, 400), st.integers(1, 64), st.integers(1, 300), st.integers(0, 300))
def test_so_many_epochs_see_every_video_so_often(videos, batch_size, tenths, warmup_tenths):
    config = TrainConfig(batch_size=batch_size, epochs=tenths / 10, warmup_epochs=warmup_tenths / 10)
    schedule = Schedule.of(config, videos)
    # In whole numbers: the fewest steps whose videos are the epochs' at least.
    assert 10 * schedule.steps * batch_size >= tenths * videos > 10 * (schedule.steps - 1) * batch_size
    assert 10 * schedule.warmup * batch_size >= warmup_tenths * videos
    assert schedule.warmup == 0 or warmup_tenths * videos > 10 * (schedule.warmup - 1) * batch_size


def test_a_part_of_an_epoch_is_not_rounded_up_by_floating_point():
    """0.07 * 100 is 7.000000000000001."""
    schedule = Schedule.of(TrainConfig(batch_size=4, epochs=0.07, warmup_epochs=0.07), 400)
    assert (schedule.steps, schedule.warmup) == (7, 7)


def test_steps_go_before_epochs():
    config = TrainConfig(batch_size=48, steps=900, warmup_steps=150, epochs=3, warmup_epochs=2)
    assert Schedule.of(config, 480) == Schedule(900, 150)
    assert Schedule.of(config.model_copy(update={"warmup_steps": 0}), 480).warmup == 0


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(4, 3)
        self.linear = nn.Linear(3, 3)
        self.norm = nn.LayerNorm(3)
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.frozen = nn.Linear(3, 3).requires_grad_(False)


def optimiser_of(network, config, rule=None):
    trained = [(name, parameter) for name, parameter in network.named_parameters() if parameter.requires_grad]
    return optimiser(trained, rule or TrainingRule(), config)


def decay_by_name(network, config):
    steps = optimiser_of(network, config)
    groups = {id(p): group["weight_decay"] for group in steps.param_groups for p in group["params"]}
    assert sum(len(group["params"]) for group in steps.param_groups) == len(groups)
    return {name: groups[id(p)] for name, p in network.named_parameters() if id(p) in groups}


def test_matrices_decay_and_gains_biases_and_the_scale_do_not():
    decays = decay_by_name(Network(), TrainConfig(weight_decay=0.3))
    assert decays == {
        "embedding.weight": 0.3,
        "linear.weight": 0.3,
        "linear.bias": 0.0,
        "norm.weight": 0.0,
        "norm.bias": 0.0,
        "scale": 0.0,
    }


def test_everything_trained_decays_as_in_vificlip():
    decays = decay_by_name(Network(), TrainConfig(weight_decay=0.3, decays="all"))
    assert set(decays) == {name for name, p in Network().named_parameters() if p.requires_grad}
    assert set(decays.values()) == {0.3}


@pytest.mark.parametrize("decays", ["matrices", "all"])
def test_a_context_alone_can_be_trained(decays):
    network = Network().requires_grad_(False)
    network.embedding.requires_grad_(True)
    steps = optimiser_of(network, TrainConfig(lr=0.1, betas=(0.8, 0.9), decays=decays))
    assert [len(group["params"]) for group in steps.param_groups] == [1]
    assert steps.param_groups[0]["betas"] == (0.8, 0.9)
    before = network.embedding.weight.detach().clone()
    network.embedding.weight.square().sum().backward()
    steps.step()
    assert not torch.equal(network.embedding.weight, before)


def test_a_systems_rule_goes_beside_the_options():
    """Its own multiple of the rate, times `fusion_lr` of what is new; what it says never decays, whatever `decays`."""
    rule = TrainingRule(
        new=lambda name: name.startswith("linear"),
        lr_multiple=lambda name: 0.5 if name.startswith(("linear", "norm")) else 1.0,
        undecayed=lambda name: name == "linear.weight",
    )
    network = Network()
    steps = optimiser_of(network, TrainConfig(weight_decay=0.3, decays="all", fusion_lr=10), rule)
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    found = {
        names[id(one)]: (group[MULTIPLE], group["weight_decay"])
        for group in steps.param_groups
        for one in group["params"]
    }
    assert found == {
        "embedding.weight": (1, 0.3),
        "linear.weight": (5, 0),
        "linear.bias": (5, 0.3),
        "norm.weight": (0.5, 0.3),
        "norm.bias": (0.5, 0.3),
        "scale": (1, 0.3),
    }
