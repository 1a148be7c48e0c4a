"""What is exported is loaded by open_clip itself, and imported again."""

import json

import open_clip
import pytest
import torch
from safetensors.torch import load_file

from zar_ray.commands.main import main
from zar_ray.errors import ModelError
from zar_ray.models.architecture import build_clip, named_architecture
from zar_ray.models.checkpoints import read_checkpoint, save_checkpoint
from zar_ray.models.exporting import export_checkpoint
from zar_ray.models.importing import plan_import
from zar_ray.models.loading import load_model
from zar_ray.models.options import ModelOptions
from zar_ray.models.parts import DEEP_PROMPTS
from zar_ray.video.transforms import Preprocessing

PIXELS = Preprocessing(32, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6), interpolation="bilinear")
TEXTS = ["a video of a run.", "jump"]
SMALL = "ViT-S-32-alt"  # the fewest parameters among open_clip's models


@pytest.fixture
def checkpoint(tmp_path, clip, architecture):
    def save(preprocessing=PIXELS, **changes):
        path = tmp_path / "tiny.safetensors"
        chosen = {**architecture, **changes}
        model = build_clip(chosen)
        model.load_state_dict(clip.state_dict(), strict=False)
        save_checkpoint(model, chosen, preprocessing, path)
        return path

    return save


def features(clip):
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return clip.eval().encode_image(pixels), clip.encode_text(open_clip.tokenize(TEXTS))


class TestOpenClip:
    def test_a_folder_is_loaded_by_open_clip_with_equal_features(self, tmp_path, checkpoint):
        path = checkpoint()
        export = export_checkpoint(path, tmp_path / "v1.0", "open_clip")
        assert export.lost == ()
        theirs, _, transform = open_clip.create_model_and_transforms(f"local-dir:{tmp_path / 'v1.0'}")
        ours = load_model(ModelOptions(checkpoint=path, device="cpu")).clip
        for one, other in zip(features(theirs), features(ours), strict=True):
            assert torch.allclose(one, other, atol=1e-6)
        assert all(torch.equal(tensor, ours.state_dict()[name]) for name, tensor in theirs.state_dict().items())
        normalise = transform.transforms[-1]
        assert (tuple(normalise.mean), tuple(normalise.std)) == (PIXELS.mean, PIXELS.std)
        assert transform.transforms[0].interpolation.value == "bilinear"

    def test_a_filter_that_open_clip_has_not_is_said(self, tmp_path, checkpoint):
        path = checkpoint(Preprocessing(32, interpolation="plain_bilinear"))
        assert export_checkpoint(path, tmp_path / "out", "open_clip").lost == ("interpolation plain_bilinear",)
        config = json.loads((tmp_path / "out" / "open_clip_config.json").read_text())
        assert config["preprocess_cfg"]["interpolation"] == "bilinear"

    def test_a_folder_comes_back(self, tmp_path, checkpoint):
        path = checkpoint()
        export_checkpoint(path, tmp_path / "out", "open_clip")
        weights = tmp_path / "out" / "open_clip_model.safetensors"
        plan_import(weights, path).write(tmp_path / "again.safetensors")
        before, after = (
            load_model(ModelOptions(checkpoint=file, device="cpu")) for file in (path, tmp_path / "again.safetensors")
        )
        assert before.fingerprint == after.fingerprint

    @pytest.mark.slow
    def test_a_file_alone_is_loaded_under_its_name(self, tmp_path):
        torch.manual_seed(4)
        config = named_architecture(SMALL)
        clip = build_clip(config)
        save_checkpoint(clip, config, Preprocessing(224), tmp_path / "small.safetensors")
        export = export_checkpoint(tmp_path / "small.safetensors", tmp_path / "alone.safetensors", "open_clip")
        assert f'create_model("{SMALL}", pretrained=' in export.usage
        theirs = open_clip.create_model(SMALL, pretrained=str(export.path))
        assert all(torch.equal(tensor, clip.state_dict()[name]) for name, tensor in theirs.state_dict().items())

    def test_a_file_alone_needs_a_name(self, tmp_path, checkpoint):
        with pytest.raises(ModelError, match="has no name in open_clip"):
            export_checkpoint(checkpoint(), tmp_path / "alone.safetensors", "open_clip")
        assert not (tmp_path / "alone.safetensors").exists()

    def test_what_cannot_be_told_is_said(self, tmp_path, checkpoint):
        export = export_checkpoint(checkpoint(Preprocessing(32, short_side=36)), tmp_path / "out", "open_clip")
        assert export.lost == ("short_side 36",)


class TestOpenai:
    @pytest.mark.parametrize("name", ["out.pt", "out.safetensors"])
    def test_names_and_marks_are_openais_and_it_comes_back(self, tmp_path, checkpoint, name):
        path = checkpoint(Preprocessing(32))
        export = export_checkpoint(path, tmp_path / name, "openai")
        assert export.lost == ()
        state = torch.load(tmp_path / name) if name.endswith(".pt") else load_file(tmp_path / name)
        assert {key: int(state[key]) for key in ("input_resolution", "context_length", "vocab_size")} == {
            "input_resolution": 32,
            "context_length": 77,
            "vocab_size": 49408,
        }
        plan_import(tmp_path / name).write(tmp_path / "again.safetensors")
        before, after = (
            load_model(ModelOptions(checkpoint=file, device="cpu")) for file in (path, tmp_path / "again.safetensors")
        )
        assert before.fingerprint == after.fingerprint

    def test_half_precision(self, tmp_path, checkpoint):
        path = checkpoint()
        export_checkpoint(path, tmp_path / "half.pt", "openai", half=True)
        state = torch.load(tmp_path / "half.pt")
        assert state["visual.proj"].dtype == torch.float16
        assert state["logit_scale"].dtype == torch.float32
        ours, read = read_checkpoint(path).tensors, read_checkpoint(tmp_path / "half.pt").tensors
        assert all(torch.equal(read[name], ours[name].half().float()) for name in ours if name != "logit_scale")

    def test_preprocessing_that_goes_unsaid_is_listed(self, tmp_path, checkpoint):
        lost = export_checkpoint(checkpoint(), tmp_path / "out.pt", "openai").lost
        assert lost == ("mean (0.1, 0.2, 0.3)", "std (0.4, 0.5, 0.6)", "interpolation bilinear")

    def test_a_model_that_openais_code_would_misread_is_refused(self, tmp_path, checkpoint):
        with pytest.raises(ModelError, match=r"read wrongly \(quick_gelu is False and True\); .*--format open_clip"):
            export_checkpoint(checkpoint(quick_gelu=False), tmp_path / "out.pt", "openai")


@pytest.mark.parametrize("to", ["open_clip", "openai"])
def test_deep_prompts_have_no_place_elsewhere(tmp_path, checkpoint, to):
    path = checkpoint(**{DEEP_PROMPTS: {"vectors": 2, "depth": 1}})
    with pytest.raises(ModelError, match="has more than a CLIP \\(deep_prompts\\)"):
        export_checkpoint(path, tmp_path / ("out.pt" if to == "openai" else "out"), to)


@pytest.mark.parametrize(("to", "name"), [("openai", "out.bin"), ("openai", "out"), ("open_clip", "out.pt")])
def test_endings_are_checked(tmp_path, checkpoint, to, name):
    with pytest.raises(ModelError, match=r"should end in \.safetensors"):
        export_checkpoint(checkpoint(), tmp_path / name, to)


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch, checkpoint):
    path = checkpoint()

    def fail(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(json, "dumps", fail)
    with pytest.raises(OSError, match="disk full"):
        export_checkpoint(path, tmp_path / "out", "open_clip")
    assert [file.name for file in tmp_path.iterdir()] == ["tiny.safetensors"]


def test_command(tmp_path, capsys, checkpoint):
    path = checkpoint(Preprocessing(32, short_side=36))
    command = ["checkpoint", "export", str(path), "--output", str(tmp_path / "out")]
    assert main(command) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{tmp_path / 'out'}: written")
    assert lines[1].strip() == "not told by this format: short_side 36"
    assert main(command) == 1
    assert "is there already" in capsys.readouterr().err
