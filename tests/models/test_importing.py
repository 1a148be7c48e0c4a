"""Miniature files with the keys that each system saves."""

import hashlib
import warnings

import pytest
import torch
from safetensors.torch import save_file

from zar_ray.commands.main import main
from zar_ray.errors import ModelError
from zar_ray.models import loading
from zar_ray.models.architecture import build_clip
from zar_ray.models.checkpoints import read_checkpoint, save_checkpoint
from zar_ray.models.importing import default_output, plan_import
from zar_ray.models.loading import load_model
from zar_ray.models.options import ModelOptions
from zar_ray.models.parts import DEEP_PROMPTS
from zar_ray.models.text import PromptedClasses
from zar_ray.video.transforms import IMAGENET_MEAN, IMAGENET_STD, Preprocessing

CLASS_BUFFERS = {
    "prompt_learner.complete_text_embeddings": (3, 77, 64),
    "prompt_learner.token_prefix": (3, 1, 64),
    "prompt_learner.token_suffix": (3, 72, 64),
}
MARKS = {
    "input_resolution": torch.tensor(32),
    "context_length": torch.tensor(77),
    "vocab_size": torch.tensor(49408),
}

HEADS = [
    {"head": "LSTM"},
    {"head": "Conv_1D"},
    {"head": "Transf", "layers": 2},
    {"head": "Transf_cls", "layers": 2, "frames": 4},
]

pytestmark = pytest.mark.filterwarnings("ignore:.*read as OpenAI's CLIP:UserWarning")


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def vificlip_state(tensors, prefix="module."):
    """ViFi-CLIP's names of a CLIP's tensors; it saves no token embedding."""
    renamed = {}
    for name, tensor in tensors.items():
        if name.startswith("visual."):
            renamed[f"{prefix}image_encoder.{name.removeprefix('visual.')}"] = tensor
        elif name == "logit_scale":
            renamed[f"{prefix}{name}"] = tensor
        elif name != "token_embedding.weight":
            renamed[f"{prefix}text_encoder.{name}"] = tensor
    return renamed


@pytest.fixture
def base(tmp_path, clip, architecture):
    """The CLIP that the others were trained from: other weights, so that it shows what is taken from it."""
    torch.manual_seed(11)
    other = build_clip(architecture)
    path = tmp_path / "base.pt"
    torch.save({**other.state_dict(), **MARKS}, path)
    return path, other.state_dict()


@pytest.fixture
def vificlip(tmp_path, clip):
    """As `epoch_saving` of the official code writes it, with a prompt learner's buffers."""

    def write(prefix="module.", dtype=torch.float32, extra=None):
        state = {name: tensor.to(dtype) for name, tensor in vificlip_state(clip.state_dict(), prefix).items()}
        state |= {f"{prefix}{name}": torch.zeros(shape) for name, shape in CLASS_BUFFERS.items()}
        state |= extra or {}
        path = tmp_path / "k400.pth"
        content = {"model": state, "optimizer": {"state": {}}, "lr_scheduler": {}, "max_accuracy": 1.0, "epoch": 9}
        torch.save(content, path)
        return path

    return write


class TestVificlip:
    @pytest.mark.parametrize("prefix", ["module.", "", "module.module."])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
    def test_weights_are_the_files_and_the_token_embedding_is_the_bases(
        self, tmp_path, clip, architecture, base, vificlip, prefix, dtype
    ):
        base_path, base_tensors = base
        path, output = vificlip(prefix, dtype), tmp_path / "out" / "k400.safetensors"
        plan = plan_import(path, base_path)
        plan.write(output)
        read = read_checkpoint(output)
        expected = {name: tensor.to(dtype).float() for name, tensor in clip.state_dict().items()}
        assert same(read.tensors, {**expected, "token_embedding.weight": base_tensors["token_embedding.weight"]})
        assert read.preprocessing == Preprocessing(32, IMAGENET_MEAN, IMAGENET_STD, "bilinear", short_side=36)
        assert read.architecture == {**architecture, "system": "vificlip"}
        assert set(plan.checkpoint.left_out) == {prefix + name for name in CLASS_BUFFERS}
        assert plan.from_base == ("token_embedding.weight",)
        assert len(plan.used) == len(expected) - 1

    def test_where_it_came_from_is_written_down(self, tmp_path, base, vificlip):
        path = vificlip()
        plan_import(path, base[0]).write(tmp_path / "o.safetensors")
        notes = read_checkpoint(tmp_path / "o.safetensors").notes
        assert notes["name"] == "k400"
        source = notes["imported"]
        assert (source["format"], source["file"], source["epoch"]) == ("vificlip", "k400.pth", 9)
        assert source["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
        assert source["base"]["fingerprint"] == load_model(ModelOptions(checkpoint=base[0], device="cpu")).fingerprint

    def test_without_a_base_one_line_names_it_and_nothing_is_written(self, tmp_path, vificlip):
        plan = plan_import(vificlip())
        assert plan.missing == ("token_embedding.weight",)
        with pytest.raises(ModelError, match=r"k400\.pth: has no token_embedding\.weight; .*--base") as caught:
            plan.write(tmp_path / "o.safetensors")
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "o.safetensors").exists()

    def test_a_base_of_another_width_is_refused(self, tmp_path, vificlip, architecture):
        architecture["text_cfg"] |= {"width": 128, "heads": 2}
        torch.save({**build_clip(architecture).state_dict(), **MARKS}, tmp_path / "wide.pt")
        with pytest.raises(ModelError, match=r"wide\.pt: its token_embedding\.weight is 49408×128, and .* 49408×64"):
            plan_import(vificlip(), tmp_path / "wide.pt")

    def test_unknown_tensors_are_reported_and_refused(self, tmp_path, base, vificlip):
        extra = {"module.image_encoder.temporal.weight": torch.zeros(2)}
        plan = plan_import(vificlip(extra=extra), base[0])
        assert plan.unknown == ("visual.temporal.weight",)
        with pytest.raises(ModelError, match=r"visual\.temporal\.weight belong"):
            plan.write(tmp_path / "o.safetensors")

    def test_evaluations_read_the_file_directly_where_the_base_can_be_had(
        self, tmp_path, monkeypatch, clip, architecture, base, vificlip
    ):
        monkeypatch.setattr(loading, "cached_weights", lambda model, tag: base[0])
        monkeypatch.setattr(loading, "named_architecture", lambda name: architecture)
        model = load_model(ModelOptions(checkpoint=vificlip(), device="cpu"))
        plan_import(vificlip(), base[0]).write(tmp_path / "o.safetensors")
        imported = load_model(ModelOptions(checkpoint=tmp_path / "o.safetensors", device="cpu"))
        by_name = load_model(ModelOptions(model="vificlip", checkpoint=vificlip(), device="cpu"))
        assert model.fingerprint == imported.fingerprint == by_name.fingerprint
        assert model.preprocessing == imported.preprocessing

    @pytest.mark.parametrize("pretrained", ["openai", "random", None])
    def test_the_token_embedding_is_never_made_up(self, monkeypatch, vificlip, pretrained):
        monkeypatch.setattr(loading, "cached_weights", lambda model, tag: None)
        monkeypatch.setattr(loading, "hub_problem", lambda: "HF_HUB_OFFLINE is set")
        with pytest.raises(ModelError, match=r"no token embedding.*zar checkpoint import .*k400\.pth --base") as caught:
            load_model(ModelOptions(checkpoint=vificlip(), pretrained=pretrained, device="cpu"))
        assert "\n" not in str(caught.value)


class TestDeepPrompts:
    @pytest.fixture
    def prompted(self, architecture):
        """A model with prompt vectors in both layers of both towers, and its tensors under ViFi-CLIP's names."""
        torch.manual_seed(5)
        clip = build_clip({**architecture, DEEP_PROMPTS: {"vectors": 3, "depth": 2}}).eval()
        tensors = dict(clip.state_dict())
        image, text = tensors.pop(f"visual.{DEEP_PROMPTS}"), tensors.pop(DEEP_PROMPTS)
        state = vificlip_state(tensors) | {
            "module.image_encoder.VPT": image[0],
            "module.image_encoder.transformer.resblocks.1.VPT_shallow": image[1],
            "module.prompt_learner.ctx": text[0],
            "module.text_encoder.transformer.resblocks.1.VPT_shallow": text[1],
            "module.prompt_learner.token_prefix": torch.zeros(3, 1, 64),
        }
        return clip, state

    def test_each_vector_comes_to_its_layer_and_tower(self, tmp_path, prompted):
        clip, state = prompted
        tensors = clip.state_dict()
        torch.save({"model": state}, tmp_path / "vl.pth")
        plain = {name: tensor for name, tensor in tensors.items() if DEEP_PROMPTS not in name}
        torch.save({**plain, **MARKS}, tmp_path / "base.pt")
        plan_import(tmp_path / "vl.pth", tmp_path / "base.pt").write(tmp_path / "o.safetensors")
        read = read_checkpoint(tmp_path / "o.safetensors")
        assert read.architecture[DEEP_PROMPTS] == {"vectors": 3, "depth": 2}
        assert same(read.tensors, tensors)
        model = load_model(ModelOptions(model="vificlip", checkpoint=tmp_path / "o.safetensors", device="cpu"))
        pixels = torch.randn(2, 3, 32, 32)
        assert torch.allclose(model.encode_images(pixels), clip.encode_image(pixels), atol=1e-5)
        assert torch.equal(PromptedClasses(model, ["run", "jump"]).initial_context, tensors[DEEP_PROMPTS][0])

    @pytest.mark.parametrize(
        ("drop", "message"),
        [
            (("module.image_encoder.VPT",), r"not whole: visual\.transformer\.resblocks\.1"),
            (
                ("module.prompt_learner.ctx", "module.text_encoder.transformer.resblocks.1.VPT_shallow"),
                r"2 layers of 3 in visual\.deep_prompts, and zar-ray has as many in both",
            ),
            (("module.text_encoder.transformer.resblocks.1.VPT_shallow",), "1 layers of 3 in deep_prompts"),
        ],
    )
    def test_vectors_that_do_not_fit_are_refused(self, tmp_path, prompted, drop, message):
        state = {name: tensor for name, tensor in prompted[1].items() if name not in drop}
        torch.save({"model": state}, tmp_path / "vl.pth")
        with pytest.raises(ModelError, match=message):
            plan_import(tmp_path / "vl.pth")


class TestActionclip:
    @pytest.fixture
    def actionclip(self, tmp_path, clip):
        path = tmp_path / "model_best.pt"
        content = {
            "epoch": 48,
            "model_state_dict": {name: tensor.half() for name, tensor in clip.state_dict().items()},
            "fusion_model_state_dict": {"module.frame_position_embeddings.weight": torch.zeros(77, 64)},
            "optimizer_state_dict": {"state": {}},
        }
        torch.save(content, path)
        return path

    def test_what_the_head_does_not_read_is_reported(self, tmp_path, clip, actionclip):
        plan = plan_import(actionclip)
        assert plan.checkpoint.origin == "actionclip"
        (line,) = (line for line in plan.lines() if line.startswith("unused"))
        assert "fusion_model_state_dict/module.frame_position_embeddings.weight" in line
        assert "its fusion head does not read it" in line
        plan.write(tmp_path / "o.safetensors")
        read = read_checkpoint(tmp_path / "o.safetensors")
        assert same(read.tensors, {name: tensor.half().float() for name, tensor in clip.state_dict().items()})
        assert read.preprocessing == Preprocessing(32, short_side=36)
        assert read.notes["imported"]["epoch"] == 48
        assert read.architecture["fusion"] == {"head": "meanP"}

    @pytest.mark.parametrize("settings", HEADS, ids=lambda settings: settings["head"])
    def test_a_head_is_imported_and_told_by_its_tensors(self, tmp_path, clip, architecture, settings):
        torch.manual_seed(4)
        whole = build_clip({**architecture, "fusion": settings})
        whole.load_state_dict(clip.state_dict(), strict=False)
        head = {f"module.{name}": tensor for name, tensor in whole.fusion.state_dict().items()}
        head.setdefault("module.frame_position_embeddings.weight", torch.zeros(77, 24))
        content = {"epoch": 3, "model_state_dict": clip.state_dict(), "fusion_model_state_dict": head}
        torch.save(content, tmp_path / "best.pt")
        plan_import(tmp_path / "best.pt").write(tmp_path / "o.safetensors")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            files = (tmp_path / name for name in ("best.pt", "o.safetensors"))
            models = [load_model(ModelOptions(checkpoint=file, device="cpu")) for file in files]
        frames = torch.randn(3, 4, 24)
        for model in models:
            assert model.architecture["fusion"] == settings
            assert model.logit_scale == 100
            assert not model.random_weights
            with torch.no_grad():
                assert torch.allclose(model.fuse(frames), whole.eval().fusion(frames), atol=1e-6)
        assert models[0].fingerprint == models[1].fingerprint

    def test_towers_that_were_rebuilt_are_refused(self, tmp_path, clip):
        """A temporal shift inside the towers renames tensors, and the CLIP without it is another model."""
        state = {name.replace("attn.out_proj", "attn.net.out_proj"): t for name, t in clip.state_dict().items()}
        torch.save({"model_state_dict": state, "fusion_model_state_dict": {}}, tmp_path / "a.pt")
        with pytest.raises(ModelError, match=r"out_proj"):
            plan_import(tmp_path / "a.pt").write(tmp_path / "o.safetensors")


class TestEzclip:
    @pytest.fixture
    def ezclip(self, architecture):
        torch.manual_seed(4)
        return build_clip({**architecture, "temporal_adapters": {"frames": 3}})

    @pytest.mark.parametrize("prefix", ["", "module."])
    def test_it_is_imported_as_it_was_saved(self, tmp_path, ezclip, prefix):
        state = {prefix + name: tensor.half() for name, tensor in ezclip.state_dict().items()}
        torch.save({"epoch": 1, "model_state_dict": state, "optimizer_state_dict": {}}, tmp_path / "ez.pt")
        plan = plan_import(tmp_path / "ez.pt")
        assert plan.lines()[0].endswith("EZ-CLIP, epoch 1")
        assert (plan.missing, plan.unknown, plan.checkpoint.left_out) == ((), (), {})
        plan.write(tmp_path / "o.safetensors")
        read = read_checkpoint(tmp_path / "o.safetensors")
        assert same(read.tensors, {name: tensor.half().float() for name, tensor in ezclip.state_dict().items()})
        assert read.preprocessing == Preprocessing(32, short_side=36)
        assert read.architecture["temporal_adapters"] == {"frames": 3}
        model = load_model(ModelOptions(checkpoint=tmp_path / "o.safetensors", device="cpu"))
        assert (model.view_frames, model.frame_independent, model.logit_scale) == (3, False, 100)

    def test_a_file_without_an_adapter_is_refused(self, tmp_path, ezclip):
        state = {name: t for name, t in ezclip.state_dict().items() if not name.endswith("1.Adapter.D_fc1.weight")}
        torch.save({"model_state_dict": state}, tmp_path / "ez.pt")
        with pytest.raises(ModelError, match=r"ez\.pt: has no .*Adapter\.D_fc1\.weight") as caught:
            plan_import(tmp_path / "ez.pt").write(tmp_path / "o.safetensors")
        assert "\n" not in str(caught.value)


class TestClip:
    def test_openai_marks_are_reported_as_unused(self, tmp_path, clip):
        torch.save({**clip.state_dict(), **MARKS}, tmp_path / "a.pt")
        plan = plan_import(tmp_path / "a.pt")
        assert plan.checkpoint.origin == "openai"
        assert set(plan.checkpoint.left_out) == set(MARKS)
        plan.write(tmp_path / "o.safetensors")
        model, before = (
            load_model(ModelOptions(checkpoint=tmp_path / name, device="cpu")) for name in ("o.safetensors", "a.pt")
        )
        assert model.fingerprint == before.fingerprint

    def test_a_named_architecture_tells_the_activation(self, tmp_path, monkeypatch, clip, architecture):
        monkeypatch.setattr(loading, "named_architecture", lambda name: {**architecture, "quick_gelu": False})
        save_file(clip.state_dict(), tmp_path / "open_clip.safetensors")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            plan_import(tmp_path / "open_clip.safetensors", model="plain").write(tmp_path / "o.safetensors")
        model = load_model(ModelOptions(checkpoint=tmp_path / "o.safetensors", device="cpu"))
        assert type(model.clip.transformer.resblocks[0].mlp.gelu).__name__ == "GELU"

    def test_a_tower_alone_is_completed_by_the_base(self, tmp_path, clip, architecture):
        preprocessing = Preprocessing(32, interpolation="bilinear")
        save_checkpoint(clip, {**architecture, "quick_gelu": False}, preprocessing, tmp_path / "base.safetensors")
        torch.manual_seed(2)
        tower = {name: t for name, t in build_clip(architecture).state_dict().items() if name.startswith("visual.")}
        torch.save({"state_dict": tower}, tmp_path / "tower.pt")
        plan_import(tmp_path / "tower.pt", tmp_path / "base.safetensors").write(tmp_path / "o.safetensors")
        read = read_checkpoint(tmp_path / "o.safetensors")
        assert same(read.tensors, {**clip.state_dict(), **tower})
        assert (read.architecture["quick_gelu"], read.preprocessing) == (False, preprocessing)

    def test_own_checkpoints_need_no_import(self, tmp_path, clip, architecture):
        save_checkpoint(clip, architecture, Preprocessing(32), tmp_path / "a.safetensors")
        with pytest.raises(ModelError, match="own checkpoint already"):
            plan_import(tmp_path / "a.safetensors")


class TestCommand:
    def test_it_accounts_for_every_tensor_and_writes(self, capsys, base, vificlip):
        path = vificlip()
        assert main(["checkpoint", "import", str(path), "--base", str(base[0])]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[0] == f"{path}: ViFi-CLIP, epoch 9"
        assert lines[1].endswith("tensors used, 3 unused, 0 missing, 1 from the base")
        assert sum(line.startswith("unused") for line in lines) == 3
        assert sum(line.startswith("from the base") for line in lines) == 1
        assert default_output(path).is_file()
        assert load_model(ModelOptions(checkpoint=default_output(path), device="cpu")).name == "k400"

    def test_nothing_is_overwritten(self, tmp_path, capsys, base, vificlip):
        (tmp_path / "o.safetensors").write_text("dear")
        command = ["checkpoint", "import", str(vificlip()), "--base", str(base[0])]
        assert main([*command, "--output", str(tmp_path / "o.safetensors")]) == 1
        assert capsys.readouterr().err.startswith(f"zar: {tmp_path / 'o.safetensors'}: is there already")
        assert (tmp_path / "o.safetensors").read_text() == "dear"

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ("gone.pt", "gone.pt: no such checkpoint file; open_clip's weights are named NAME:TAG"),
            ("ViT-B-16-quickgelu", "no such checkpoint file; open_clip's weights are named NAME:TAG"),
            ("ViT-B-16-quikgelu:openai", 'did you mean "ViT-B-16-quickgelu"'),
            ("ViT-B-16-quickgelu:random", "random weights are of no use here"),
        ],
    )
    def test_a_base_that_cannot_be_had_is_one_line(self, capsys, vificlip, given, message):
        assert main(["checkpoint", "import", str(vificlip()), "--base", given]) == 1
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
