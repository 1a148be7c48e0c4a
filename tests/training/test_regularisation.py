"""What is dropped in training: at the rates and in the places of the published trainings, and in training alone."""

import pytest
import torch

from zar_ray.errors import ConfigError
from zar_ray.models.architecture import build_clip
from zar_ray.models.clip import ClipModel
from zar_ray.training.options import TrainConfig
from zar_ray.training.regularisation import attach_regularisation
from zar_ray.video.transforms import Preprocessing

FRAMES = 3
TINY = {
    "embed_dim": 16,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "layers": 3, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"width": 16, "heads": 2, "layers": 4},
}
ADAPTERS = {"temporal_adapters": {"frames": FRAMES}}
HEAD = {"fusion": {"head": "Transf_cls", "layers": 2, "frames": FRAMES}}
MANY = 20_000  # draws; 0.015 is four standard deviations of a share of 0.5


def model_of(parts=ADAPTERS):
    torch.manual_seed(0)
    architecture = {**TINY, **parts}
    clip = build_clip(architecture).eval()
    with torch.no_grad():
        for parameter in clip.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)  # new adapters and prompts do next to nothing
    return ClipModel(clip, "tiny", Preprocessing(32), architecture)


def regularised(parts=ADAPTERS, **rates):
    """A model, and what drops in it, in training mode."""
    model = model_of(parts)
    model.clip.requires_grad_(True)
    dropping = attach_regularisation(model, TrainConfig(**rates))
    for module in dropping:
        module.train()
    return model, dropping


def images(views=2):
    """One view, over and over: float32 (views x T, 3, 32, 32)."""
    return torch.randn(FRAMES, 3, 32, 32, generator=torch.Generator().manual_seed(1)).repeat(views, 1, 1, 1)


@pytest.mark.parametrize("parts", [{}, ADAPTERS], ids=["clip", "ezclip"])
def test_stochastic_depth_grows_over_the_layers_and_text_layers_have_the_image_towers_rates(parts):
    model, _ = regularised(parts, drop_path=0.4)
    torch.manual_seed(2)
    for tower, rates in ((model.clip.visual, [0, 0.2, 0.4]), (model.text_tower, [0, 0.2, 0.4, 0.4])):
        for block, rate in zip(tower.transformer.resblocks, rates, strict=True):
            for branch in (block.ls_1, block.ls_2):
                put_out = branch(torch.ones(2, MANY, 3))
                assert float((put_out == 0).float().mean()) == pytest.approx(rate, abs=0.015)
                # What is kept makes up for what is not.
                assert torch.allclose(put_out[put_out > 0], torch.tensor(1 / (1 - rate)))
                assert torch.equal(put_out, put_out[:1, :, :1].expand_as(put_out))


def test_stochastic_depth_drops_what_both_parts_of_a_block_add():
    model, _ = regularised(drop_path=0.999_999)
    last = model.clip.visual.transformer.resblocks[-1]
    states = torch.randn(FRAMES, 5, 32, generator=torch.Generator().manual_seed(3))
    assert torch.equal(last(states), last.Adapter(states))
    assert not torch.allclose(last.eval()(states), last.Adapter(states), atol=1e-3)


def test_the_attention_between_frames_is_dropped_too():
    model, _ = regularised(drop_path=0.999_999)
    stack = model.clip.visual.transformer
    added = []
    stack.resblocks[-1].attn.register_forward_pre_hook(lambda _, inputs: added.append(inputs[0]))
    model.clip.visual(images(1))
    between_frames, within_frames = added
    assert between_frames.shape == (1, FRAMES, 32)
    # The norm of nothing is the norm's bias.
    assert torch.allclose(within_frames[:, -1], stack.resblocks[-1].ln_1.bias.expand(FRAMES, -1), atol=1e-4)


@pytest.mark.parametrize("rates", [{"drop_path": 0.5}, {"prompt_dropout": 0.5}], ids=str)
def test_views_of_a_pass_share_what_is_dropped(rates):
    model, _ = regularised(**rates)
    first, second = model.clip.visual(images(2)).split(FRAMES)
    assert torch.allclose(first, second, atol=1e-6)
    assert not torch.allclose(first, model.clip.visual(images(1)), atol=1e-4)


def test_prompts_lose_numbers_at_their_rate():
    model, (dropout,) = regularised(prompt_dropout=0.3)
    torch.manual_seed(4)
    put_out = dropout(torch.ones(MANY))
    assert float((put_out == 0).float().mean()) == pytest.approx(0.3, abs=0.015)
    assert "prompt_dropout" not in " ".join(model.clip.state_dict())


def test_attention_loses_weights_at_the_rates_of_the_layers():
    model, _ = regularised(attention_dropout=0.4)
    blocks = model.clip.visual.transformer.resblocks
    assert [block.attn.dropout for block in blocks] == [0, pytest.approx(0.2), 0.4]
    assert [block.attn.dropout for block in model.text_tower.transformer.resblocks][-1] == 0.4
    attention = blocks[-1].attn
    with torch.no_grad():
        # Every token has the sum of the weights that are kept, whose expectation is 1.
        attention.in_proj_weight.zero_()
        attention.in_proj_bias.copy_(torch.cat([torch.zeros(64), torch.ones(32)]))
        attention.out_proj.weight.copy_(torch.eye(32))
        attention.out_proj.bias.zero_()
    states = torch.zeros(2000, 5, 32)
    torch.manual_seed(5)
    with torch.no_grad():
        sums = attention(states, states, states, need_weights=False)[0]
    assert float(sums.mean()) == pytest.approx(1, abs=0.02)
    assert float((sums == 0).float().mean()) == pytest.approx(0.4**5, abs=0.005)


def test_the_heads_dropout_acts_within_its_layers():
    model, (head,) = regularised(HEAD, head_dropout=0.25)
    assert {module.p for module in head.modules() if isinstance(module, torch.nn.Dropout)} == {0.25}
    assert {module.dropout for module in head.modules() if isinstance(module, torch.nn.MultiheadAttention)} == {0.25}
    frames = torch.randn(1, FRAMES, 16, generator=torch.Generator().manual_seed(6)).repeat(2, 1, 1)
    first, second = head(frames)
    assert not torch.allclose(first, second, atol=1e-3)
    first, second = head.eval()(frames)
    assert torch.allclose(first, second, atol=1e-6)
    assert model.clip.fusion is head


@pytest.mark.parametrize(
    ("parts", "rates"),
    [
        (ADAPTERS, {"drop_path": 0.5}),
        (ADAPTERS, {"attention_dropout": 0.5}),
        (ADAPTERS, {"prompt_dropout": 0.5}),
        (HEAD, {"head_dropout": 0.5}),
    ],
    ids=str,
)
def test_it_acts_in_training_alone(parts, rates):
    plain, _ = regularised(parts)
    model, dropping = regularised(parts, **rates)

    def outcome(of):
        frames = of.clip.visual(images(1))
        return of.view_features(frames[None])

    assert not torch.allclose(outcome(model), outcome(plain), atol=1e-4)
    for module in dropping:
        module.eval()
    before = torch.get_rng_state()
    assert torch.equal(outcome(model), outcome(plain))
    # What `zar eval` runs: the tower made ready, from the weights.
    assert torch.equal(model.encode_images(images(1)), plain.encode_images(images(1)))
    assert torch.equal(torch.get_rng_state(), before)


def test_without_rates_nothing_is_changed():
    model, dropping = regularised()
    assert dropping == ()
    assert not any(block.ls_1._forward_hooks for block in model.clip.visual.transformer.resblocks)
    assert {block.attn.dropout for block in model.clip.visual.transformer.resblocks} == {0.0}


def test_a_tower_that_is_not_trained_drops_nothing():
    model = model_of({})
    model.clip.requires_grad_(False)
    model.clip.visual.requires_grad_(True)
    attach_regularisation(model, TrainConfig(drop_path=0.5))
    assert all(block.ls_1._forward_hooks for block in model.clip.visual.transformer.resblocks)
    assert not any(block.ls_1._forward_hooks for block in model.text_tower.transformer.resblocks)


class TestRefused:
    @pytest.mark.parametrize(
        ("parts", "trained", "rates", "message"),
        [
            ({}, "", {"drop_path": 0.1}, "--drop-path: --trains both trains no layers of tiny's towers; leave it away"),
            ({}, "", {"attention_dropout": 0.1}, "--attention-dropout: --trains both trains no layers"),
            (
                {},
                "visual",
                {"prompt_dropout": 0.1},
                "--prompt-dropout: tiny has no prompts that could drop",
            ),
            ({}, "visual", {"head_dropout": 0.1}, "--head-dropout: tiny has no head with dropout; leave"),
            (
                {"fusion": {"head": "Transf", "layers": 1}},
                "",
                {"head_dropout": 0.1},
                "--head-dropout: tiny has no head with dropout",
            ),
            (HEAD, "visual", {"head_dropout": 0.1}, "--head-dropout: --trains both does not train tiny's head"),
            (
                {"cross_frames": {"frames": FRAMES}},
                "visual",
                {"drop_path": 0.1},
                "--drop-path: not for tiny, whose frames see each other; leave it away",
            ),
            (
                {"vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8}},
                "visual",
                {"drop_path": 0.1},
                "--drop-path: not for the image tower of tiny: it has no transformer blocks of open_clip's",
            ),
        ],
    )
    def test_what_a_model_does_not_have_or_does_not_train(self, parts, trained, rates, message):
        model = model_of(parts)
        for name, parameter in model.clip.named_parameters():
            parameter.requires_grad_(bool(trained) and name.startswith(trained))
        with pytest.raises(ConfigError, match=message) as caught:
            attach_regularisation(model, TrainConfig(**rates))
        assert "\n" not in str(caught.value)
