import os
import stat
import time
import warnings
import zipfile

import pytest
import torch
from safetensors.torch import save_file

from zar_ray.errors import ModelError
from zar_ray.models.architecture import build_clip
from zar_ray.models.checkpoints import load_weights, read_checkpoint, save_checkpoint
from zar_ray.models.loading import load_model
from zar_ray.models.options import ModelOptions
from zar_ray.options.layers import merge
from zar_ray.video.transforms import Preprocessing

PREPROCESSING = Preprocessing(32, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6), interpolation="bilinear", short_side=40)


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture
def archive(tmp_path, clip):
    """OpenAI's way of publishing: a traced module in half precision, with three numbers among its buffers."""
    module = build_clip(
        {
            "embed_dim": 24,
            "quick_gelu": True,
            "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 16},
            "text_cfg": {"width": 64, "heads": 1, "layers": 2},
        }
    )
    module.load_state_dict(clip.state_dict())
    for name, value in {"input_resolution": 32, "context_length": 77, "vocab_size": 49408}.items():
        if hasattr(module, name):
            delattr(module, name)
        module.register_buffer(name, torch.tensor(value))
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        inputs = (torch.zeros(1, 3, 32, 32), torch.zeros(1, 77, dtype=torch.int64))
        traced = torch.jit.trace_module(module.eval(), {"forward": inputs}, check_trace=False).half()
        path = tmp_path / "ViT-tiny.pt"
        traced.save(str(path))
    return path


class TestOwnFormat:
    def test_everything_comes_back(self, tmp_path, clip, architecture):
        path = tmp_path / "new" / "tiny.safetensors"
        save_checkpoint(clip, architecture, PREPROCESSING, path, notes={"name": "tiny", "steps": 355})
        read = read_checkpoint(path)
        assert read.origin == "zar-ray"
        assert read.architecture == architecture
        assert read.preprocessing == PREPROCESSING
        assert read.notes == {"name": "tiny", "steps": 355}
        assert same(read.tensors, clip.state_dict())

    def test_half_precision_is_saved_as_float32(self, tmp_path, clip, architecture):
        path = tmp_path / "tiny.safetensors"
        halves = {name: tensor.half() for name, tensor in clip.state_dict().items()}
        save_checkpoint(halves, architecture, PREPROCESSING, path)
        assert {tensor.dtype for tensor in read_checkpoint(path).tensors.values()} == {torch.float32}

    def test_writing_leaves_one_readable_file(self, tmp_path, clip, architecture):
        path = tmp_path / "tiny.safetensors"
        for _ in range(2):
            save_checkpoint(clip, architecture, PREPROCESSING, path)
        assert list(tmp_path.iterdir()) == [path]
        assert stat.S_IMODE(path.stat().st_mode) & stat.S_IRUSR

    def test_a_failed_write_keeps_the_old_file(self, tmp_path, clip, architecture):
        path = tmp_path / "tiny.safetensors"
        save_checkpoint(clip, architecture, PREPROCESSING, path)
        before = path.read_bytes()
        with pytest.raises(TypeError):
            save_checkpoint(clip, architecture, PREPROCESSING, path, notes={"run": object()})
        assert path.read_bytes() == before
        assert list(tmp_path.iterdir()) == [path]

    @pytest.mark.parametrize(
        ("metadata", "message"), [('{"format": 2}', "is of format 2"), ('{"format": 1}', "damaged"), ("{", "damaged")]
    )
    def test_metadata_of_another_kind_is_refused(self, tmp_path, clip, metadata, message):
        path = tmp_path / "tiny.safetensors"
        save_file(clip.state_dict(), path, metadata={"zar_ray": metadata})
        with pytest.raises(ModelError, match=message):
            read_checkpoint(path)


class TestOtherFormats:
    @pytest.mark.parametrize("wrapper", [None, "state_dict", "model", "model_state_dict"])
    @pytest.mark.parametrize("prefix", ["", "module."])
    def test_wrapped_and_prefixed_weights_are_found(self, tmp_path, clip, wrapper, prefix):
        content = {prefix + name: tensor.half() for name, tensor in clip.state_dict().items()}
        path = tmp_path / "clip.pt"
        torch.save({wrapper: content, "epoch": 3} if wrapper else content, path)
        read = read_checkpoint(path)
        assert read.origin == "clip"
        assert same(read.tensors, {name: tensor.half().float() for name, tensor in clip.state_dict().items()})

    def test_text_towers_of_their_own_are_renamed(self, tmp_path, clip):
        visual = {
            name: t for name, t in clip.state_dict().items() if name.startswith("visual.") or name == "logit_scale"
        }
        text = {f"text.{name}": t for name, t in clip.state_dict().items() if name not in visual}
        save_file({**visual, **text}, tmp_path / "custom.safetensors")
        assert same(read_checkpoint(tmp_path / "custom.safetensors").tensors, clip.state_dict())

    def test_openai_archive_is_read(self, archive, clip):
        read = read_checkpoint(archive)
        assert read.origin == "openai"
        assert same(read.tensors, {name: tensor.half().float() for name, tensor in clip.state_dict().items()})

    def test_code_in_an_archive_is_not_run(self, tmp_path, archive):
        poisoned, witness = tmp_path / "poisoned.pt", tmp_path / "witness"
        attack = b"cos\nsystem\n(S'touch " + str(witness).encode() + b"'\ntR."
        with zipfile.ZipFile(archive) as before, zipfile.ZipFile(poisoned, "w") as after:
            for name in before.namelist():
                after.writestr(name, attack if name.endswith("/data.pkl") else before.read(name))
        with pytest.raises(ModelError, match=r"cannot be read as a checkpoint \(it refers to os.system\)"):
            read_checkpoint(poisoned)
        assert not witness.exists()

    def test_code_in_a_pickle_is_not_run(self, tmp_path):
        class Attack:
            def __reduce__(self):
                return os.mkdir, (str(tmp_path / "witness"),)

        torch.save({"state_dict": {"weight": torch.zeros(1)}, "config": Attack()}, tmp_path / "attack.pt")
        with pytest.raises(ModelError, match="is not unpickled for safety"):
            read_checkpoint(tmp_path / "attack.pt")
        assert not (tmp_path / "witness").exists()

    @pytest.mark.parametrize("name", ["broken.pt", "broken.safetensors"])
    @pytest.mark.parametrize("content", [b"", b"not weights at all", b"PK\x03\x04 half a zip"])
    def test_damaged_files_are_one_line(self, tmp_path, name, content):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ModelError) as caught:
            read_checkpoint(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_a_file_without_weights_is_refused(self, tmp_path):
        torch.save({"epoch": 3}, tmp_path / "empty.pt")
        with pytest.raises(ModelError, match="holds no state dict"):
            read_checkpoint(tmp_path / "empty.pt")

    def test_missing_file_is_named(self, tmp_path):
        with pytest.raises(ModelError, match=r"gone\.pt: no such checkpoint file"):
            read_checkpoint(tmp_path / "gone.pt")


class TestLoadWeights:
    def test_logit_scale_may_be_a_vector_of_one(self, clip, architecture):
        tensors = clip.state_dict() | {"logit_scale": clip.logit_scale.detach().reshape(1)}
        other = build_clip(architecture)
        load_weights(other, tensors, "here")
        assert same(other.state_dict(), clip.state_dict())

    def test_wrong_shapes_name_the_first_and_count_the_rest(self, clip, architecture):
        architecture["embed_dim"] = 32
        with pytest.raises(ModelError, match=r"here: .*64×24 and should be 64×32 \(and 1 more .*--model"):
            load_weights(build_clip(architecture), clip.state_dict(), "here")

    def test_missing_and_unknown_tensors_are_refused(self, clip, architecture):
        tensors = clip.state_dict()
        scale = tensors.pop("logit_scale")
        with pytest.raises(ModelError, match="logit_scale is missing"):
            load_weights(build_clip(architecture), tensors, "here")
        with pytest.raises(ModelError, match="prompts does not belong"):
            load_weights(build_clip(architecture), {**tensors, "logit_scale": scale, "prompts": scale}, "here")


class TestFilesThatClaim:
    def test_numbers_of_a_script_that_stand_for_many_are_refused(self, tmp_path):
        class Module(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.register_buffer("weight", torch.zeros(1).as_strided((10**5, 10**4), (0, 0)))

            def forward(self, x):
                return x

        torch.jit.script(Module()).save(str(tmp_path / "a.pt"))
        assert (tmp_path / "a.pt").stat().st_size < 10_000
        with pytest.raises(ModelError, match="claims to hold 4000000000 bytes"):
            read_checkpoint(tmp_path / "a.pt")

    @pytest.mark.parametrize("name", ["a.pt", "a.safetensors"])
    def test_what_lies_there_instead_of_weights_is_said(self, tmp_path, name):
        (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 2\n")
        with pytest.raises(ModelError, match=f"{name}: is a Git LFS pointer"):
            read_checkpoint(tmp_path / name)
        (tmp_path / name).write_text("<!DOCTYPE html><html><title>404</title>")
        with pytest.raises(ModelError, match=f"{name}: is a web page"):
            read_checkpoint(tmp_path / name)

    @pytest.mark.parametrize(
        "change",
        [
            {"text_cfg": {"layers": 10**6}},
            {"vision_cfg": {"layers": 10**6}},
            {"vision_cfg": {"width": 2**20}},
            {"text_cfg": {"context_length": 10**6}},
            {"embed_dim": 10**7},
            {"embed_dim": -1},
            {"text_cfg": {"vocab_size": 10**9}},
            {"vision_cfg": []},
        ],
    )
    def test_sizes_that_no_tensor_has_are_refused_at_once(self, tmp_path, clip, architecture, change):
        path = tmp_path / "a.safetensors"
        claimed = merge(dict(architecture), change)
        save_checkpoint(clip, claimed, PREPROCESSING, path)
        started = time.monotonic()
        with pytest.raises(ModelError) as caught:
            load_model(ModelOptions(checkpoint=path, device="cpu"))
        assert "\n" not in str(caught.value)
        assert time.monotonic() - started < 20

    @pytest.mark.filterwarnings("ignore")
    @pytest.mark.parametrize(
        ("name", "shape"),
        [
            ("visual.conv1.weight", (3,)),
            ("text_projection", (5,)),
            ("ln_final.weight", ()),
            ("positional_embedding", (10**6, 0)),
            ("visual.positional_embedding", (0, 4)),
            ("token_embedding.weight", (10**9, 0)),
            ("text_projection", (0, 10**9)),
        ],
    )
    def test_shapes_that_no_clip_has_are_one_line(self, tmp_path, clip, name, shape):
        path = tmp_path / "a.safetensors"
        save_file({**clip.state_dict(), name: torch.zeros(shape)}, path)
        with pytest.raises(ModelError) as caught:
            load_model(ModelOptions(checkpoint=path, device="cpu"))
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_notes_that_are_nested_deep_are_damage(self, tmp_path, clip):
        save_file(clip.state_dict(), tmp_path / "a.safetensors", metadata={"zar_ray": "[" * 100_000})
        with pytest.raises(ModelError, match=r"metadata is damaged \(nested too deep\)"):
            read_checkpoint(tmp_path / "a.safetensors")


def test_no_weights_are_drawn_that_are_about_to_be_loaded(tiny_checkpoint):
    """Of a large model it takes seconds, and what a program draws next would depend on the model."""
    before = torch.get_rng_state()
    found = load_model(ModelOptions(checkpoint=tiny_checkpoint)).clip
    assert torch.equal(torch.get_rng_state(), before)
    fresh = build_clip(read_checkpoint(tiny_checkpoint).architecture)
    assert not torch.equal(torch.get_rng_state(), before)
    buffers = {name: value for name, value in fresh.named_buffers() if name not in fresh.state_dict()}
    assert buffers
    for name, value in found.named_buffers():
        assert name not in buffers or torch.equal(value, buffers[name]), name
