"""An option's file is a path or a URI, on the command line, in files and in what a run keeps of its options."""

from pathlib import Path

import pytest
import torch
import yaml
from object_store import object_store
from pydantic import BaseModel, ValidationError

from zar_ray.commands.parsing import parse_run
from zar_ray.data.class_texts import prompts_of, read_context_file
from zar_ray.data.datasets import parse_class_names
from zar_ray.data.options import PromptOptions
from zar_ray.errors import ModelError, ZarError
from zar_ray.models.architecture import build_clip
from zar_ray.models.checkpoints import read_checkpoint, save_checkpoint
from zar_ray.models.exporting import export_checkpoint
from zar_ray.models.learned_context import LearnedContext, parse_context, save_context
from zar_ray.models.merging import merge_checkpoints
from zar_ray.models.model_folders import config_beside
from zar_ray.options.places import FilePlace, RemoteFile, file_of
from zar_ray.study.options import EvalConfig
from zar_ray.video.transforms import Preprocessing

URI = "s3://zar-bucket/weights #1/a b.safetensors"


class Some(BaseModel):
    file: FilePlace | None = None


@pytest.mark.parametrize(("place", "kind"), [(URI, RemoteFile), ("/a/b.pt", Path), (Path("b.pt"), Path)])
def test_a_file_survives_yaml_and_the_command_line(place, kind):
    kept = yaml.safe_load(yaml.safe_dump(Some(file=place).model_dump(mode="json")))
    assert kept == {"file": str(place)}
    assert isinstance(Some.model_validate(kept).file, kind)
    said = parse_run(EvalConfig, ["--checkpoint", str(place)], "zar eval").options.checkpoint
    assert (str(said), isinstance(said, kind)) == (str(place), True)
    assert (said.stem, said.suffix) == (Path(str(place)).stem, Path(str(place)).suffix)


def test_what_is_no_place_is_refused():
    with pytest.raises(ValidationError, match="must be a path or a URI"):
        Some(file=3)


@pytest.mark.process
def test_a_checkpoint_is_read_from_a_bucket(monkeypatch, tiny_checkpoint, tmp_path):
    with object_store(monkeypatch, share=0.2, seed=2) as store:
        store.bucket("zar-bucket")
        store.put("zar-bucket", "weights #1/a b.safetensors", tiny_checkpoint.read_bytes())
        config = tmp_path / "open_clip_config.json"
        config.write_text('{"model_cfg": {"vision_cfg": {}, "text_cfg": {}}}')
        assert config_beside(tmp_path / "any.pt") == ({"vision_cfg": {}, "text_cfg": {}}, None)
        assert config_beside(file_of(URI)) is None
        store.put("zar-bucket", f"weights #1/{config.name}", config.read_bytes())
        assert config_beside(file_of(URI)) == config_beside(tmp_path / "any.pt")
        store.put("zar-bucket", "bad.pt", b"nothing of the kind")
        here, there = read_checkpoint(tiny_checkpoint), read_checkpoint(URI)
        assert (there.path, there.architecture) == (file_of(URI), here.architecture)
        assert all(there.tensors[name].equal(tensor) for name, tensor in here.tensors.items())
        with pytest.raises(ModelError, match=r"^s3://zar-bucket/bad\.pt: "):
            read_checkpoint("s3://zar-bucket/bad.pt")
        with pytest.raises(ModelError, match=r"s3://zar-bucket/none\.pt: no such checkpoint file"):
            read_checkpoint("s3://zar-bucket/none.pt")


@pytest.mark.process
def test_what_is_made_of_checkpoints_may_lie_in_a_bucket(monkeypatch, tiny_checkpoint, tmp_path):
    shares = (0.25, 0.75)
    merge_checkpoints([tiny_checkpoint, tiny_checkpoint], shares, tmp_path / "mixed.safetensors")
    expected = read_checkpoint(tmp_path / "mixed.safetensors").tensors
    with object_store(monkeypatch, share=0.2, seed=5) as store:
        store.bucket("zar-bucket")
        base, mixed = "s3://zar-bucket/weights/a.safetensors", "s3://zar-bucket/made #1/mixed.safetensors"
        store.put("zar-bucket", "weights/a.safetensors", tiny_checkpoint.read_bytes())
        for replace in (False, True):
            merge_checkpoints([base, tiny_checkpoint], shares, mixed, replace=replace)
            assert all(tensor.equal(expected[name]) for name, tensor in read_checkpoint(mixed).tensors.items())
        with pytest.raises(ModelError, match=r"made #1/mixed\.safetensors: is there already"):
            merge_checkpoints([base, tiny_checkpoint], shares, mixed)
        text = {"context_length": 77, "vocab_size": 49408, "width": 8, "heads": 1, "layers": 1}
        image = {"image_size": 32, "layers": 1, "width": 8, "head_width": 8, "patch_size": 32}
        sizes = {"embed_dim": 8, "quick_gelu": True, "vision_cfg": image, "text_cfg": text}
        save_checkpoint(build_clip(sizes), sizes, Preprocessing(32), tmp_path / "small.safetensors")
        export_checkpoint(tmp_path / "small.safetensors", "s3://zar-bucket/out/openai.safetensors", to="openai")
        with pytest.raises(ModelError, match=r"s3://zar-bucket/out/folder: a folder is written to a local disk"):
            export_checkpoint(base, "s3://zar-bucket/out/folder", to="open_clip")
        assert sorted(store.keys("zar-bucket")) == [
            "made #1/mixed.safetensors",
            "out/openai.safetensors",
            "weights/a.safetensors",
        ]


@pytest.mark.process
def test_texts_and_a_learned_context_are_read_from_a_bucket(monkeypatch, tmp_path):
    context = LearnedContext(torch.randn(4, 8, generator=torch.Generator().manual_seed(0)), "a b c d", "tiny", "0" * 12)
    with object_store(monkeypatch, share=0.2, seed=7) as store:
        store.bucket("zar-bucket")
        store.put("zar-bucket", "texts.csv", b"class,text\nhigh jump,a person jumps\n")
        options = PromptOptions(class_texts="s3://zar-bucket/texts.csv")
        assert prompts_of([["high jump"]], options)[0].texts == (("a person jumps",),)
        store.put("zar-bucket", "names.txt", b"riding a bike\nhigh jump\n")
        assert parse_class_names("s3://zar-bucket/names.txt") == ("riding a bike", "high jump")
        place = "s3://zar-bucket/learned/words.safetensors"
        save_context(context, file_of(place))
        read = read_context_file(place)
        assert read.path == place
        assert parse_context(read.content, place).vectors.equal(context.vectors)
        for missing in ("texts.json", "texts.csv.gz"):
            with pytest.raises(ZarError, match=f"s3://zar-bucket/{missing}: "):
                prompts_of([["high jump"]], PromptOptions(class_texts=f"s3://zar-bucket/{missing}"))
