import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from zar_ray.commands.main import main
from zar_ray.errors import ConfigError, ModelError
from zar_ray.models import loading
from zar_ray.models.architecture import build_clip
from zar_ray.models.checkpoints import read_checkpoint, save_checkpoint
from zar_ray.models.loading import load_model
from zar_ray.models.merging import merge_checkpoints
from zar_ray.models.options import ModelOptions
from zar_ray.video.transforms import Preprocessing


@pytest.fixture(scope="module")
def files(tmp_path_factory, clip):
    """Three checkpoints of one architecture, fine-tuned apart."""
    folder = tmp_path_factory.mktemp("checkpoints")
    architecture = {
        "embed_dim": 24,
        "quick_gelu": True,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 16},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 2},
    }
    paths = []
    for seed in range(3):
        torch.manual_seed(seed)
        state = {name: tensor + torch.randn_like(tensor) * 0.05 for name, tensor in clip.state_dict().items()}
        paths.append(folder / f"{seed}.safetensors")
        save_checkpoint(state, architecture, Preprocessing(32), paths[-1], notes={"name": f"run {seed}"})
    return paths


def interpolate(first, second, alpha, output, pixels_of=None):
    merge_checkpoints((first, second), (1 - alpha, alpha), output, pixels_of)


def tensors(path):
    return read_checkpoint(path).tensors


@pytest.mark.slow
@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(alpha=st.floats(0, 1))
def test_every_tensor_is_on_the_line_between_the_two(tmp_path_factory, files, alpha):
    output = tmp_path_factory.mktemp("merged") / "m.safetensors"
    interpolate(files[0], files[1], alpha, output)
    one, other, merged = map(tensors, (files[0], files[1], output))
    assert merged.keys() == one.keys()
    assert "logit_scale" in merged
    for name, tensor in merged.items():
        expected = (1 - alpha) * one[name].double() + alpha * other[name].double()
        assert torch.equal(tensor, expected.float())


@pytest.mark.parametrize(("alpha", "which"), [(0.0, 0), (1.0, 1)])
def test_the_ends_are_the_checkpoints_themselves(tmp_path, files, alpha, which):
    interpolate(files[0], files[1], alpha, tmp_path / "m.safetensors")
    merged, end = (
        load_model(ModelOptions(checkpoint=path, device="cpu")) for path in (tmp_path / "m.safetensors", files[which])
    )
    assert merged.fingerprint == end.fingerprint


def test_without_weights_it_is_the_mean_of_all(tmp_path, files):
    merge_checkpoints(files, None, tmp_path / "soup.safetensors")
    parts = [tensors(path) for path in files]
    for name, tensor in tensors(tmp_path / "soup.safetensors").items():
        mean = torch.stack([part[name].double() for part in parts]).mean(dim=0)
        assert torch.allclose(tensor.double(), mean, atol=1e-7)


def test_where_it_came_from_is_written_down(tmp_path, files):
    merge_checkpoints(files, (0.5, 0.25, 0.25), tmp_path / "soup.safetensors")
    read = read_checkpoint(tmp_path / "soup.safetensors")
    assert read.preprocessing == Preprocessing(32)
    assert read.notes["name"] == "soup"
    assert [(part["source"], part["name"], part["weight"]) for part in read.notes["merged"]] == [
        ("0.safetensors", "run 0", 0.5),
        ("1.safetensors", "run 1", 0.25),
        ("2.safetensors", "run 2", 0.25),
    ]
    expected = [load_model(ModelOptions(checkpoint=path, device="cpu")).fingerprint for path in files]
    assert [part["fingerprint"] for part in read.notes["merged"]] == expected


def test_a_tag_of_open_clip_is_a_source(tmp_path, monkeypatch, files, architecture):
    monkeypatch.setattr(loading, "cached_weights", lambda model, tag: files[0])
    monkeypatch.setattr(loading, "named_architecture", lambda name: architecture)
    interpolate("ViT-B-16-quickgelu:openai", files[1], 0.5, tmp_path / "tag.safetensors")
    interpolate(files[0], files[1], 0.5, tmp_path / "file.safetensors")
    one, other = tensors(tmp_path / "tag.safetensors"), tensors(tmp_path / "file.safetensors")
    assert all(torch.equal(one[name], other[name]) for name in other)
    assert read_checkpoint(tmp_path / "tag.safetensors").notes["merged"][0]["source"] == "ViT-B-16-quickgelu:openai"


class TestRefusals:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"quick_gelu": False}, "quick_gelu is True and False"),
            ({"vision_cfg": {"image_size": 64, "layers": 2, "width": 64, "patch_size": 16}}, "vision_cfg.image_size"),
            ({"vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16}}, "layers is 2 and 1"),
        ],
    )
    def test_another_architecture_is_named(self, tmp_path, files, architecture, change, message):
        other = {**architecture, **change}
        save_checkpoint(build_clip(other), other, Preprocessing(32), tmp_path / "other.safetensors")
        with pytest.raises(ModelError, match=message) as caught:
            interpolate(files[0], tmp_path / "other.safetensors", 0.5, tmp_path / "m.safetensors")
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "m.safetensors").exists()

    @pytest.mark.parametrize(
        ("pixels", "message"),
        [
            (Preprocessing(32, mean=(0.5, 0.5, 0.5)), r"mean is \(0.48145466, .* and \(0.5, 0.5, 0.5\)"),
            (Preprocessing(32, interpolation="bilinear"), "interpolation is bicubic and bilinear"),
            (Preprocessing(32, short_side=36), "short_side is 32 and 36"),
        ],
    )
    def test_other_pixels_are_named(self, tmp_path, clip, files, architecture, pixels, message):
        save_checkpoint(clip, architecture, pixels, tmp_path / "other.safetensors")
        with pytest.raises(ModelError, match=message):
            merge_checkpoints([files[0], tmp_path / "other.safetensors"], None, tmp_path / "m.safetensors")

    def test_other_pixels_merge_where_one_says_whose_hold(self, tmp_path, clip, files, architecture):
        pixels, other = Preprocessing(32, interpolation="bilinear"), tmp_path / "other.safetensors"
        save_checkpoint(clip, architecture, pixels, other)
        interpolate(files[0], other, 0.5, tmp_path / "second.safetensors", pixels_of=other)
        merge_checkpoints([other, files[0]], None, tmp_path / "first.safetensors", pixels_of=files[0])
        assert read_checkpoint(tmp_path / "second.safetensors").preprocessing == pixels
        assert read_checkpoint(tmp_path / "first.safetensors").preprocessing == Preprocessing(32)
        with pytest.raises(ConfigError, match="give one of the checkpoints"):
            merge_checkpoints([other, files[0]], None, tmp_path / "none.safetensors", pixels_of="third.safetensors")

    def test_spelling_out_defaults_is_no_difference(self, tmp_path, clip, files, architecture):
        assert architecture["vision_cfg"]["head_width"] == 64
        save_checkpoint(clip, architecture, Preprocessing(32, short_side=32), tmp_path / "other.safetensors")
        merge_checkpoints([files[0], tmp_path / "other.safetensors"], None, tmp_path / "m.safetensors")

    @pytest.mark.parametrize("weights", [(0.5, 0.6), (-0.5, 1.5), (1.0,), (float("nan"), 1.0)])
    def test_weights_must_be_shares(self, tmp_path, files, weights):
        with pytest.raises(ConfigError, match="not negative and sum to 1"):
            merge_checkpoints(files[:2], weights, tmp_path / "m.safetensors")

    @pytest.mark.parametrize("alpha", [-0.1, 1.1, float("nan")])
    def test_alpha_has_a_range(self, tmp_path, capsys, files, alpha):
        words = ["checkpoint", "merge", str(files[0]), str(files[1]), f"--alpha={alpha}"]
        assert main([*words, "--output", str(tmp_path / "m.safetensors")]) != 0
        assert "give 0 (the first" in capsys.readouterr().err
        assert list(tmp_path.iterdir()) == []

    def test_random_weights_are_no_source(self, tmp_path, files):
        with pytest.raises(ModelError, match="random weights"):
            interpolate("ViT-B-16-quickgelu:random", files[1], 0.5, tmp_path / "m.safetensors")


class TestCommand:
    def test_two_with_alpha_and_several_without(self, tmp_path, capsys, files):
        names = [str(path) for path in files]
        command = ["checkpoint", "merge"]
        assert main([*command, *names[:2], "--alpha", "0.25", "--output", str(tmp_path / "a.safetensors")]) == 0
        assert main([*command, *names, "--output", str(tmp_path / "b.safetensors")]) == 0
        weights = [
            [part["weight"] for part in read_checkpoint(tmp_path / name).notes["merged"]]
            for name in ("a.safetensors", "b.safetensors")
        ]
        assert weights == [[0.75, 0.25], [1 / 3, 1 / 3, 1 / 3]]
        assert "a.safetensors: written" in capsys.readouterr().out

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (("0", "1", "2", "--alpha", "0.5"), "--alpha is for two checkpoints, and 3 are given"),
            (("0",), "merging takes at least two"),
            (("0", "nowhere.pt"), "nowhere.pt: no such checkpoint file"),
        ],
    )
    def test_mistakes_are_one_line(self, tmp_path, capsys, files, words, message):
        given = [str(files[int(word)]) if word.isdigit() else word for word in words]
        assert main(["checkpoint", "merge", *given, "--output", str(tmp_path / "m.safetensors")]) != 0
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
        assert list(tmp_path.iterdir()) == []
